"""SinFusion (Nikankin, Haim & Irani, "SinFusion: Training Diffusion Models on a Single Image or Video", ICML 2023).

A fully convolutional chain of ConvNeXt blocks (Liu 2022: depthwise 7 x 7, norm, 1 x 1 to four times the width, GELU,
1 x 1) without downsampling or attention, trained on large random crops. Adapted to genes as in the paper of
Tera-MIND (arXiv 2503.01220): noise prediction, skips from the first half to the second as in a UNet, a gene pyramid
concatenated in every block of the second half. This project's choices: the schedule of the other methods (T = 1000;
the original has T = 50 and predicts the image), the shared crop of two patches a side, and generation in tiles that
read `halo_px` around themselves.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Integer
from torch import Tensor, nn

from tera_mind.baselines.genes import CountPyramid, check_pyramid
from tera_mind.errors import InputError
from tera_mind.model.config import BlockConfig, CountTransform
from tera_mind.model.layers import RMSNorm, TimeEmbedding
from tera_mind.model.methods import Method, MethodNetwork, register

KERNEL_PX = 7


@dataclass(frozen=True)
class SinFusionConfig(BlockConfig):
    """Width and depth of the chain, and how far around a tile it may look."""

    #: channels of a block; the published 64 or, at the size of another method, more
    width: int = 64
    #: an even number: every block of the first half hands its output to one of the second
    blocks: int = 16
    time_channels: int = 256
    #: widths of the gene pyramid down to single pixels, after G
    pyramid_channels: tuple[int, ...] = (128, 64, 32)
    count_transform: CountTransform = "counts"
    #: pixels around a tile that are read; tiles are exact from `reach_px` on
    halo_px: int = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.width, self.blocks, *self.pyramid_channels) < 1 or self.blocks % 2 or self.width % 2:
            raise InputError(f"width and blocks must be even numbers above 0, got {self.width} and {self.blocks}")
        if self.halo_px < 0 or self.halo_px % self.bin_px:
            raise InputError(f"halo_px must be 0 or a multiple of bin_px ({self.bin_px}), got {self.halo_px}")
        check_pyramid(self, self.pyramid_channels)

    @property
    def reach_px(self) -> int:
        """How far a pixel of the output looks, in whole bins: the further of image and genes."""
        radius = KERNEL_PX // 2
        image = 2 + self.blocks * radius  # first and last convolution, 3 x 3 each
        genes = 1 + self.blocks // 2 * radius
        for cell in (*(2 << level for level in range(len(self.pyramid_channels))), self.bin_px):
            genes = -(-genes // cell) * cell + cell  # a 3 x 3 convolution among cells that lie fixed in the bins
        return -(-max(image, genes) // self.bin_px) * self.bin_px

    @property
    def tile_exact(self) -> bool:
        return self.halo_px >= self.reach_px


class ConvNeXtBlock(nn.Module):
    """Residual block over (b, c, y, x); the time is added after the depthwise convolution."""

    def __init__(self, inputs: int, outputs: int, time_channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(inputs, inputs, KERNEL_PX, padding=KERNEL_PX // 2, groups=inputs)
        self.time = nn.Linear(time_channels, inputs)
        self.norm = RMSNorm(inputs, axis=1)
        self.widen = nn.Conv2d(inputs, 4 * outputs, 1)
        self.narrow = nn.Conv2d(4 * outputs, outputs, 1)
        self.skip = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Float[Tensor, "b i y x"], embedding: Float[Tensor, "b t"]) -> Float[Tensor, "b o y x"]:
        h = self.norm(self.depthwise(x) + self.time(F.silu(embedding))[:, :, None, None])
        out: Tensor = self.skip(x) + self.narrow(F.gelu(self.widen(h), approximate="tanh"))
        return out


class SinFusion(MethodNetwork):
    """A `BlockNetwork`; sections and stains are channels of one plane."""

    config: SinFusionConfig

    def __init__(self, config: SinFusionConfig) -> None:
        super().__init__(config)
        width, time, half = config.width, config.time_channels, config.blocks // 2
        entering = 2 * width + config.pyramid_channels[-1] * config.sections
        self.pyramid = CountPyramid(config, config.pyramid_channels, config.count_transform)
        self.time = TimeEmbedding(width, time)
        self.stem = nn.Conv2d(config.image_channels, width, 3, padding=1)
        self.first = nn.ModuleList(ConvNeXtBlock(width, width, time) for _ in range(half))
        self.second = nn.ModuleList(ConvNeXtBlock(entering, width, time) for _ in range(half))
        self.head = nn.Conv2d(width, config.image_channels, 3, padding=1)

    def forward(
        self,
        x: Float[Tensor, "b c y x"],
        t: Integer[Tensor, " b"],
        counts: Float[Tensor, "b gene section bin_y bin_x"],
    ) -> Float[Tensor, "b c y x"]:
        """The network on planes of any size (whole bins), padded with zeros."""
        embedding = self.time(t)
        genes = self.pyramid(counts)[-1].flatten(1, 2)
        h = self.stem(x)
        skips = []
        for block in self.first:
            h = block(h, embedding)
            skips.append(h)
        for block in self.second:
            h = block(torch.cat([h, skips.pop(), genes], dim=1), embedding)
        out: Tensor = self.head(h)
        return out

    def predict(
        self,
        window: Float[Tensor, "n channel y x"],
        t: Integer[Tensor, " n"],
        counts: Float[Tensor, "n gene section bin_y bin_x"],
    ) -> Float[Tensor, "n channel y2 x2"]:
        """The blocks with what lies `halo_px` around them, the halo cropped away (see `BlockNetwork`)."""
        weight, halo = self.stem.weight, self.halo_px
        out: Tensor = self(window.to(weight), t.to(weight.device), counts.to(weight))
        out = out[..., halo : out.shape[-2] - halo, halo : out.shape[-1] - halo]
        return out.to(torch.promote_types(out.dtype, torch.float32))


register(Method("sinfusion", SinFusionConfig, SinFusion))
