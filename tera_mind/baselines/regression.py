"""Deterministic regression: a UNet from genes to the mean image; a baseline of this project's own.

It minimises the squared error, so it sets the mark for PSNR and cannot make texture: what genes say of the average
tissue, in one pass. Whole patches are painted one by one, as in `plain_ddpm`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from tera_mind.baselines.genes import CountPyramid
from tera_mind.baselines.plain_ddpm import WholePatchConfig
from tera_mind.baselines.unet import ConditionalUNet
from tera_mind.geometry import Box
from tera_mind.model import collage
from tera_mind.model.blocks import NoisePlane
from tera_mind.model.methods import Method, MethodNetwork, register


class Regression(MethodNetwork):
    """A `Painter` without noise."""

    config: WholePatchConfig

    def __init__(self, config: WholePatchConfig) -> None:
        super().__init__(config)
        self.pyramid = CountPyramid(config, config.pyramid_channels, config.count_transform)
        self.unet = ConditionalUNet(config, config.pyramid_channels[-1], encoder_genes=True, flat=True)

    def forward(self, counts: Float[Tensor, "b gene section bin_y bin_x"]) -> Float[Tensor, "b c y x"]:
        """Image of planes of any size at once: the finest gene features stand where a noisy image would."""
        genes = self.pyramid(counts)
        embedding = self.unet.time(torch.zeros(len(counts), dtype=torch.int64, device=genes[-1].device))
        h, skips = self.unet.encode(genes[-1], embedding, genes)
        return self.unet.decode(h, skips, embedding, genes)

    def noise_planes(self, bins: Box) -> Sequence[NoisePlane]:
        """None: the picture is a function of the genes."""
        del bins
        return []

    def paint(
        self,
        counts: Float[Tensor, "n gene section bin_y bin_x"],
        noise: Sequence[Float[Tensor, "n _ _"]],
    ) -> Float[Tensor, "n channel y x"]:
        """Every whole patch of the blocks by itself (see `Painter`)."""
        del noise
        bins = self.config.bins
        out = self(collage.counts_to_patches(counts, bins))
        out = collage.from_patches(out, counts.shape[-2] // bins, counts.shape[-1] // bins)
        return out.to(torch.promote_types(out.dtype, torch.float32)).clamp(-1, 1)


register(Method("regression", WholePatchConfig, Regression))
