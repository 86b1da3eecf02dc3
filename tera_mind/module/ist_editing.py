"""The LightningModule of IST-editing: wiring of settings and networks."""

from __future__ import annotations

from typing import Any

from tera_mind.baselines.ist_editing import (
    HALO_BINS,
    IST_EDITING,
    IstEditing,
    IstEditingConfig,
    IstEditingDiscriminator,
)
from tera_mind.model.config import CountTransform
from tera_mind.model.inputs import Inputs
from tera_mind.module.gan import GanModule, without_halo


class IstEditingModule(GanModule):
    """Trains IST-editing on batches of `PairsDataModule`.

    The generator needs four bins of genes around an image, so a training image is the middle of a crop: the patch of
    the data module is the method's patch and four bins. With bins of 32 px, data.patch_px of 192 gives the published
    images of 128 px.

    Args:
        channels: widths of generator and discriminator, one a resolution, from a sample a bin to a sample a pixel.
        style_channels: width of z and w.
        mapping_layers: layers of the mapping network.
        count_transform: `counts` (published) or `log1p`.
        discriminator_genes: channels of a gene map that the discriminator sees beside the image; 0: none.
    """

    METHOD = IST_EDITING

    def __init__(
        self,
        inputs: Inputs,
        channels: list[int] = [512, 512, 512, 512, 512, 256],  # noqa: B006 (never changed; prints well in YAML)
        style_channels: int = 512,
        mapping_layers: int = 8,
        count_transform: CountTransform = "counts",
        discriminator_genes: int = 0,
        **training: Any,
    ) -> None:
        config = IstEditingConfig(
            **without_halo(inputs, self.METHOD, HALO_BINS).sizes,
            channels=tuple(channels),
            style_channels=style_channels,
            mapping_layers=mapping_layers,
            count_transform=count_transform,
            discriminator_genes=discriminator_genes,
        )
        super().__init__(inputs, config, IstEditing(config), IstEditingDiscriminator(config), **training)
