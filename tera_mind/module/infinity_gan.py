"""The LightningModule of InfinityGAN: wiring of settings and networks, and the diversity loss."""

from __future__ import annotations

from typing import Any

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
from tera_mind.model.inputs import Inputs
from tera_mind.module.adversarial import LEARNT
from tera_mind.module.base import Batch
from tera_mind.module.gan import GanModule, without_halo


class InfinityGanModule(GanModule):
    """Trains InfinityGAN on batches of `PairsDataModule`.

    The generator needs seven bins of genes around an image, so a training image is the middle of a crop: the patch of
    the data module is the method's patch and seven bins. With bins of 16 px, data.patch_px of 176 gives images of
    128 px.

    Args:
        channels: widths of texture synthesiser and discriminator, one a resolution, from bins to pixels.
        local_channels: width of the local latents and of the structure synthesiser.
        structure_layers: layers of the structure synthesiser.
        style_channels: width of the global latent and w.
        mapping_layers: layers of the mapping network.
        discriminator_genes: channels of a gene map that the discriminator sees beside the image; 0: none.
        diversity_weight: weight of the diversity loss; 0 leaves it out.
    """

    METHOD = INFINITY_GAN

    def __init__(
        self,
        inputs: Inputs,
        channels: list[int] = [512, 512, 512, 512, 512],  # noqa: B006 (never changed; prints well in YAML)
        local_channels: int = 256,
        structure_layers: int = 4,
        style_channels: int = 512,
        mapping_layers: int = 8,
        discriminator_genes: int = 64,
        diversity_weight: float = 1.0,
        **training: Any,
    ) -> None:
        config = InfinityGanConfig(
            **without_halo(inputs, self.METHOD, HALO_BINS).sizes,
            channels=tuple(channels),
            local_channels=local_channels,
            structure_layers=structure_layers,
            style_channels=style_channels,
            mapping_layers=mapping_layers,
            discriminator_genes=discriminator_genes,
        )
        super().__init__(inputs, config, InfinityGan(config), InfinityGanDiscriminator(config), **training)
        self.diversity_weight = diversity_weight
        self.save_hyperparameters({"diversity_weight": diversity_weight})

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
