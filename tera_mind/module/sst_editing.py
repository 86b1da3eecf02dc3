"""The LightningModule of SST-editing, its first stage: wiring of settings and networks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tera_mind.baselines.sst_editing import SST_EDITING, SstEditing, SstEditingConfig, SstEditingDiscriminator
from tera_mind.model.config import CountTransform
from tera_mind.model.inputs import Inputs
from tera_mind.module.gan import GanModule


class SstEditingModule(GanModule):
    """Trains the first stage of SST-editing on batches of `PairsDataModule`; an image is a whole crop.

    Args:
        channels: widths of generator and discriminator, one a resolution, from the learned constant to pixels.
        style_channels: width of z and w.
        mapping_layers: layers of the mapping network.
        drive_channels: width of the MLP from genes to factors of kernels.
        drive_layers: its layers.
        count_transform: `counts` or `log1p` of the sums.
        discriminator_genes: channels of the gene vector that the discriminator sees beside the image; 0: none.
    """

    METHOD = SST_EDITING

    def __init__(
        self,
        inputs: Inputs,
        channels: list[int] = [512, 512, 512, 512, 512, 256],  # noqa: B006 (never changed; prints well in YAML)
        style_channels: int = 512,
        mapping_layers: int = 8,
        drive_channels: int = 256,
        drive_layers: int = 8,
        count_transform: CountTransform = "log1p",
        discriminator_genes: int = 0,
        **training: Any,
    ) -> None:
        config = SstEditingConfig(
            **replace(inputs, patch_px=2 * inputs.patch_px).sizes,
            channels=tuple(channels),
            style_channels=style_channels,
            mapping_layers=mapping_layers,
            drive_channels=drive_channels,
            drive_layers=drive_layers,
            count_transform=count_transform,
            discriminator_genes=discriminator_genes,
        )
        super().__init__(inputs, config, SstEditing(config), SstEditingDiscriminator(config), **training)
