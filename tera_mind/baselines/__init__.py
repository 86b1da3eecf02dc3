"""The methods to compare with; importing this package makes their checkpoints readable (`tera_mind.model.methods`)."""

from tera_mind.baselines import ist_editing, ms_pie, patch_dm, plain_ddpm, regression, sinfusion, sst_editing

__all__ = ["ist_editing", "ms_pie", "patch_dm", "plain_ddpm", "regression", "sinfusion", "sst_editing"]
