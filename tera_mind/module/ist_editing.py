"""The LightningModule of IST-editing: wiring of settings and networks."""

from __future__ import annotations

from tera_mind.baselines.ist_editing import (
    HALO_BINS,
    IST_EDITING,
    IstEditing,
    IstEditingConfig,
    IstEditingDiscriminator,
)
from tera_mind.errors import InputError
from tera_mind.model.config import CountTransform
from tera_mind.module.base import described
from tera_mind.module.gan import GanModule


class IstEditingModule(GanModule):
    """Trains IST-editing on batches of `PairsDataModule`.

    The generator needs four bins of genes around an image, so a training image is the middle of a crop: the patch of
    the data module is the method's patch and four bins. With bins of 32 px, data.patch_px of 192 gives the published
    images of 128 px.

    Args:
        genes: panel, linked from the data.
        stains: stains, linked from the data.
        pixel_um: pixel size in micrometres, linked from the data.
        intensity_range: raw value of 0 and 255 for each stain, linked from the data.
        gene_sections: gene sections in a window, linked from the data.
        patch_px: half a crop of the data module, four bins included, linked from the data.
        bin_px: side of a gene bin, linked from the data.
        channels: widths of generator and discriminator, one a resolution, from a sample a bin to a sample a pixel.
        style_channels: width of z and w.
        mapping_layers: layers of the mapping network.
        count_transform: `counts` (published) or `log1p`.
        discriminator_genes: channels of a gene map that the discriminator sees beside the image; 0: none.
        learning_rate: rate of both Adams.
        r1_gamma: weight of the gradient penalty on real images; 0 leaves it out.
        path_weight: weight of the path length; 0 leaves it out.
        init_from: checkpoint whose generator training starts from; its panel must be this one.
        seed: seed of z, noise and jitter.
    """

    METHOD = IST_EDITING

    def __init__(
        self,
        genes: list[str],
        stains: list[str],
        pixel_um: float,
        intensity_range: dict[str, list[float]],
        gene_sections: int = 4,
        patch_px: int = 192,
        bin_px: int = 32,
        channels: list[int] = [512, 512, 512, 512, 512, 256],  # noqa: B006 (never changed; prints well in YAML)
        style_channels: int = 512,
        mapping_layers: int = 8,
        count_transform: CountTransform = "counts",
        discriminator_genes: int = 0,
        learning_rate: float = 2e-3,
        r1_gamma: float = 10.0,
        path_weight: float = 2.0,
        init_from: str | None = None,
        seed: int = 0,
    ) -> None:
        halo_px = HALO_BINS * bin_px
        if patch_px <= halo_px:
            raise InputError(
                f"ist-editing needs {HALO_BINS} bins of genes around an image: data.patch_px must be more than "
                f"{halo_px} with bins of {bin_px} px, got {patch_px}; take a larger patch_px or smaller bins"
            )
        config = IstEditingConfig(
            genes=len(genes),
            stains=len(stains),
            gene_sections=gene_sections,
            patch_px=patch_px - halo_px,
            bin_px=bin_px,
            channels=tuple(channels),
            style_channels=style_channels,
            mapping_layers=mapping_layers,
            count_transform=count_transform,
            discriminator_genes=discriminator_genes,
        )
        super().__init__(
            described(self.METHOD, config, "x0", genes, stains, pixel_um, intensity_range),
            IstEditing(config),
            IstEditingDiscriminator(config),
            learning_rate=learning_rate,
            r1_gamma=r1_gamma,
            path_weight=path_weight,
            init_from=init_from,
            seed=seed,
        )
        self.save_hyperparameters(config.to_dict() | {"r1_gamma": r1_gamma, "path_weight": path_weight})
