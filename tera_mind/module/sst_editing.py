"""The LightningModule of SST-editing, its first stage: wiring of settings and networks."""

from __future__ import annotations

from tera_mind.baselines.sst_editing import SST_EDITING, SstEditing, SstEditingConfig, SstEditingDiscriminator
from tera_mind.model.config import CountTransform
from tera_mind.module.base import described
from tera_mind.module.gan import GanModule


class SstEditingModule(GanModule):
    """Trains the first stage of SST-editing on batches of `PairsDataModule`; an image is a whole crop.

    Args:
        genes: panel, linked from the data.
        stains: stains, linked from the data.
        pixel_um: pixel size in micrometres, linked from the data.
        intensity_range: raw value of 0 and 255 for each stain, linked from the data.
        gene_sections: gene sections in a window, linked from the data.
        patch_px: half the side of a crop, linked from the data; the method's patch is the whole crop.
        bin_px: side of a gene bin, linked from the data; bins are summed over the patch.
        channels: widths of generator and discriminator, one a resolution, from the learned constant to pixels.
        style_channels: width of z and w.
        mapping_layers: layers of the mapping network.
        drive_channels: width of the MLP from genes to factors of kernels.
        drive_layers: its layers.
        count_transform: `counts` or `log1p` of the sums.
        discriminator_genes: channels of the gene vector that the discriminator sees beside the image; 0: none.
        learning_rate: rate of both Adams.
        r1_gamma: weight of the gradient penalty on real images; 0 leaves it out.
        path_weight: weight of the path length; 0 leaves it out.
        init_from: checkpoint whose generator training starts from; its panel must be this one.
        seed: seed of z, noise and jitter.
    """

    METHOD = SST_EDITING

    def __init__(
        self,
        genes: list[str],
        stains: list[str],
        pixel_um: float,
        intensity_range: dict[str, list[float]],
        gene_sections: int = 4,
        patch_px: int = 64,
        bin_px: int = 16,
        channels: list[int] = [512, 512, 512, 512, 512, 256],  # noqa: B006 (never changed; prints well in YAML)
        style_channels: int = 512,
        mapping_layers: int = 8,
        drive_channels: int = 256,
        drive_layers: int = 8,
        count_transform: CountTransform = "log1p",
        discriminator_genes: int = 0,
        learning_rate: float = 2e-3,
        r1_gamma: float = 10.0,
        path_weight: float = 2.0,
        init_from: str | None = None,
        seed: int = 0,
    ) -> None:
        config = SstEditingConfig(
            genes=len(genes),
            stains=len(stains),
            gene_sections=gene_sections,
            patch_px=2 * patch_px,
            bin_px=bin_px,
            channels=tuple(channels),
            style_channels=style_channels,
            mapping_layers=mapping_layers,
            drive_channels=drive_channels,
            drive_layers=drive_layers,
            count_transform=count_transform,
            discriminator_genes=discriminator_genes,
        )
        super().__init__(
            described(self.METHOD, config, "x0", genes, stains, pixel_um, intensity_range),
            SstEditing(config),
            SstEditingDiscriminator(config),
            learning_rate=learning_rate,
            r1_gamma=r1_gamma,
            path_weight=path_weight,
            init_from=init_from,
            seed=seed,
        )
        self.save_hyperparameters(config.to_dict() | {"r1_gamma": r1_gamma, "path_weight": path_weight})
