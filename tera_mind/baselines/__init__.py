"""The methods to compare with; importing this package makes their checkpoints readable (`tera_mind.model.methods`)."""

from tera_mind.baselines import (
    coco_gan,
    infinity_gan,
    ist_editing,
    ms_pie,
    patch_dm,
    plain_ddpm,
    regression,
    sinfusion,
    sst_editing,
)

__all__ = [
    "coco_gan",
    "infinity_gan",
    "ist_editing",
    "ms_pie",
    "patch_dm",
    "plain_ddpm",
    "regression",
    "sinfusion",
    "sst_editing",
]
