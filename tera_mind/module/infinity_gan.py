"""The LightningModule of InfinityGAN: wiring of settings and networks, and the diversity loss."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from tera_mind.baselines.infinity_gan import (
    HALO_BINS,
    INFINITY_GAN,
    InfinityGan,
    InfinityGanConfig,
    InfinityGanDiscriminator,
    diversity_loss,
)
from tera_mind.errors import InputError
from tera_mind.module.adversarial import LEARNT
from tera_mind.module.base import Batch, described
from tera_mind.module.gan import GanModule


class InfinityGanModule(GanModule):
    """Trains InfinityGAN on batches of `PairsDataModule`.

    The generator needs seven bins of genes around an image, so a training image is the middle of a crop: the patch of
    the data module is the method's patch and seven bins. With bins of 16 px, data.patch_px of 176 gives images of
    128 px.

    Args:
        genes: panel, linked from the data.
        stains: stains, linked from the data.
        pixel_um: pixel size in micrometres, linked from the data.
        intensity_range: raw value of 0 and 255 for each stain, linked from the data.
        gene_sections: gene sections in a window, linked from the data.
        patch_px: half a crop of the data module, seven bins included, linked from the data.
        bin_px: side of a gene bin, linked from the data.
        channels: widths of texture synthesiser and discriminator, one a resolution, from bins to pixels.
        local_channels: width of the local latents and of the structure synthesiser.
        structure_layers: layers of the structure synthesiser.
        style_channels: width of the global latent and w.
        mapping_layers: layers of the mapping network.
        discriminator_genes: channels of a gene map that the discriminator sees beside the image; 0: none.
        learning_rate: rate of both Adams.
        r1_gamma: weight of the gradient penalty on real images; 0 leaves it out.
        path_weight: weight of the path length; 0 leaves it out.
        diversity_weight: weight of the diversity loss; 0 leaves it out.
        init_from: checkpoint whose generator training starts from; its panel must be this one.
        seed: seed of the global latent and noise.
    """

    METHOD = INFINITY_GAN
    JITTERED: ClassVar[bool] = False

    def __init__(
        self,
        genes: list[str],
        stains: list[str],
        pixel_um: float,
        intensity_range: dict[str, list[float]],
        gene_sections: int = 4,
        patch_px: int = 176,
        bin_px: int = 16,
        channels: list[int] = [512, 512, 512, 512, 512],  # noqa: B006 (never changed; prints well in YAML)
        local_channels: int = 256,
        structure_layers: int = 4,
        style_channels: int = 512,
        mapping_layers: int = 8,
        discriminator_genes: int = 64,
        learning_rate: float = 2e-3,
        r1_gamma: float = 10.0,
        path_weight: float = 2.0,
        diversity_weight: float = 1.0,
        init_from: str | None = None,
        seed: int = 0,
    ) -> None:
        halo_px = HALO_BINS * bin_px
        if patch_px <= halo_px:
            raise InputError(
                f"infinity-gan needs {HALO_BINS} bins of genes around an image: data.patch_px must be more than "
                f"{halo_px} with bins of {bin_px} px, got {patch_px}; take a larger patch_px or smaller bins"
            )
        config = InfinityGanConfig(
            genes=len(genes),
            stains=len(stains),
            gene_sections=gene_sections,
            patch_px=patch_px - halo_px,
            bin_px=bin_px,
            channels=tuple(channels),
            local_channels=local_channels,
            structure_layers=structure_layers,
            style_channels=style_channels,
            mapping_layers=mapping_layers,
            discriminator_genes=discriminator_genes,
        )
        super().__init__(
            described(self.METHOD, config, "x0", genes, stains, pixel_um, intensity_range),
            InfinityGan(config),
            InfinityGanDiscriminator(config),
            learning_rate=learning_rate,
            r1_gamma=r1_gamma,
            path_weight=path_weight,
            init_from=init_from,
            seed=seed,
        )
        self.diversity_weight = diversity_weight
        own = {"r1_gamma": r1_gamma, "path_weight": path_weight, "diversity_weight": diversity_weight}
        self.save_hyperparameters(config.to_dict() | own)

    def terms(self, counts: Tensor, batch: Batch) -> dict[str, Tensor]:
        """The diversity loss, all samples under the global latent of the batch's first."""
        if not self.diversity_weight:
            return {}
        generator = self.network
        assert isinstance(generator, InfinityGan)
        with torch.autocast(counts.device.type, enabled=False):
            z, _ = self.noise(counts[:1], batch["number"][:1], LEARNT)
            w = generator.styles(z)[:, : generator.config.structure_layers]
            z_l = generator.local_latents(counts)
            z_s = generator.structure(z_l, w.expand(len(counts), -1, -1))
            return {"diversity": diversity_loss(z_l, z_s) * self.diversity_weight}
