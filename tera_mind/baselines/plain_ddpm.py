"""Plain conditional diffusion: a 2-D UNet that denoises whole patches one by one; an ablation of this project's own.

What is left of the method when its boundary path is taken away (DDPM, Ho 2020): no patch sees another, so tiles are
put side by side and their borders need not fit. Sections are denoised by themselves; genes of a window's sections
are concatenated at every level of encoder and decoder.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Integer
from torch import Tensor

from tera_mind.baselines.genes import CountPyramid
from tera_mind.baselines.unet import ConditionalUNet, UNetConfig
from tera_mind.model import collage
from tera_mind.model.methods import Method, MethodNetwork, register


@dataclass(frozen=True)
class WholePatchConfig(UNetConfig):
    """A UNet on whole patches, twice as large as the small ones of a crop; it reads nothing around them."""

    @property
    def halo_px(self) -> int:
        return 0

    @property
    def tile_exact(self) -> bool:
        return False


class PlainDDPM(MethodNetwork):
    """A `BlockNetwork` whose patches do not know of each other."""

    config: WholePatchConfig

    def __init__(self, config: WholePatchConfig) -> None:
        super().__init__(config)
        self.pyramid = CountPyramid(config, config.pyramid_channels, config.count_transform)
        self.unet = ConditionalUNet(config, config.stains, encoder_genes=True, flat=True)

    def forward(
        self,
        x: Float[Tensor, "b c y x"],
        t: Integer[Tensor, " b"],
        counts: Float[Tensor, "b gene section bin_y bin_x"],
    ) -> Float[Tensor, "b c y x"]:
        """The network on planes of any size at once: a whole patch in training, a whole region to compare with."""
        genes, embedding = self.pyramid(counts), self.unet.time(t)
        planes = x.unflatten(1, (self.config.stains, self.config.sections))
        h, skips = self.unet.encode(planes, embedding, genes)
        return self.unet.decode(h, skips, embedding, genes)

    def predict(
        self,
        window: Float[Tensor, "n channel y x"],
        t: Integer[Tensor, " n"],
        counts: Float[Tensor, "n gene section bin_y bin_x"],
    ) -> Float[Tensor, "n channel y x"]:
        """Every whole patch of the blocks by itself, whatever the block (see `BlockNetwork`)."""
        side, weight = self.patch_px, self.unet.head.weight
        rows, columns = window.shape[-2] // side, window.shape[-1] // side
        out = self(
            collage.to_patches(window, side).to(weight),
            t.to(weight.device).repeat_interleave(rows * columns, 0),
            collage.counts_to_patches(counts, self.config.bins).to(weight),
        )
        out = collage.from_patches(out, rows, columns)
        return out.to(torch.promote_types(out.dtype, torch.float32))


register(Method("plain-ddpm", WholePatchConfig, PlainDDPM))
