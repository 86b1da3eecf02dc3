"""The three networks of StyleGAN2: mapping, synthesis with skip connections, residual discriminator.

Karras et al. 2020 (arXiv:1912.04958), figure 7 and appendix B. The synthesis network begins with a map of features
instead of the learned constant, so that what a method knows of a place (its genes, its position) can enter there.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from tera_mind.baselines.stylegan2.layers import EqualConv, EqualLinear, StyledConv, ToImage, activate, upsampled
from tera_mind.errors import InputError


class Mapping(nn.Module):
    """z to w: `layers` fully connected layers at a hundredth of the others' rate, on a normalised z."""

    def __init__(self, style_channels: int, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(EqualLinear(style_channels, style_channels, rate=0.01) for _ in range(layers))

    def forward(self, z: Float[Tensor, "n style"]) -> Float[Tensor, "n style"]:
        w = z * torch.rsqrt(z.square().mean(1, keepdim=True) + 1e-8)
        for layer in self.layers:
            w = activate(layer(w))
        return w


class Synthesis(nn.Module):
    """From a map of features to an image: a styled convolution, then two for each doubling of the resolution.

    Without padding (the default) n x n features leave 2^L (n - 7) + 5 pixels a side after L doublings, on the grid of
    `alignment.layer_windows`; with padding 2^L n.
    """

    def __init__(
        self,
        c_in: int,
        channels: Sequence[int],
        image_channels: int,
        style_channels: int,
        *,
        padded: bool = False,
    ) -> None:
        """`channels`: one width a resolution, coarsest first."""
        super().__init__()
        self.padded = padded
        self.first = StyledConv(c_in, channels[0], style_channels, padded=padded)
        self.images = nn.ModuleList(ToImage(width, image_channels, style_channels) for width in channels)
        self.ups, self.convs = nn.ModuleList(), nn.ModuleList()
        for width, finer in itertools.pairwise(channels):
            self.ups.append(StyledConv(width, finer, style_channels, up=True, padded=padded))
            self.convs.append(StyledConv(finer, finer, style_channels, padded=padded))

    @property
    def layers(self) -> int:
        """Styled convolutions; each takes a plane of noise and a style. An image layer shares the next one's style."""
        return 1 + 2 * len(self.ups)

    def forward(
        self,
        features: Float[Tensor, "n c_in y x"],
        w: Float[Tensor, "n layer style"],
        noise: Sequence[Float[Tensor, "n _ _"]],
    ) -> Float[Tensor, "n image_channel y2 x2"]:
        """w: a style for each styled convolution; noise: a plane for each, on the grid of its output."""
        if w.shape[1] != self.layers or len(noise) != self.layers:
            raise InputError(f"{self.layers} styles and planes of noise are needed, got {w.shape[1]} and {len(noise)}")
        x = self.first(features, w[:, 0], noise[0])
        image: Tensor = self.images[0](x, w[:, min(1, self.layers - 1)])
        for level, (up, conv) in enumerate(zip(self.ups, self.convs, strict=True)):
            i = 1 + 2 * level
            x = conv(up(x, w[:, i], noise[i]), w[:, i + 1], noise[i + 1])
            image = self._finer(image) + self.images[level + 1](x, w[:, min(i + 2, self.layers - 1)])
        return image

    def _finer(self, image: Float[Tensor, "n c y x"]) -> Float[Tensor, "n c y2 x2"]:
        if self.padded:
            return F.interpolate(image, scale_factor=2, mode="bilinear", align_corners=False)
        return upsampled(image)[..., 2:-2, 2:-2]


class Discriminator(nn.Module):
    """Residual discriminator with the standard deviation of the minibatch as a last feature."""

    def __init__(
        self, image_channels: int, channels: Sequence[int], image_px: int, group: int = 4, pooled: int | None = None
    ) -> None:
        """`channels`: one width a resolution, finest first, the last for all coarser; images end at 4 x 4.

        group: samples over which the standard deviation is taken. pooled: side to which the last features are averaged,
        so that images of other sizes can be judged as well (Xu 2021). Raises `InputError` unless `image_px` is 4 times
        a power of two.
        """
        super().__init__()
        halvings = round(math.log2(image_px / 4)) if image_px >= 4 else -1
        if halvings < 0 or 4 << halvings != image_px:
            raise InputError(f"the discriminator takes images of 4, 8, 16, ... px, got {image_px} px")
        widths = [channels[min(level, len(channels) - 1)] for level in range(halvings + 1)]
        self.enter = EqualConv(image_channels, widths[0], 1)
        self.blocks = nn.ModuleList(_Residual(fine, coarse) for fine, coarse in itertools.pairwise(widths))
        self.group, self.pooled = group, pooled
        self.last = EqualConv(widths[-1] + 1, widths[-1], 3, padded=True)
        self.dense = EqualLinear(widths[-1] * (pooled or 4) ** 2, widths[-1])
        self.score = EqualLinear(widths[-1], 1)

    def forward(self, image: Float[Tensor, "n image_channel y x"]) -> Float[Tensor, " n"]:
        """Logit of "real" for each image; above 0 means real."""
        x = activate(self.enter(image))
        for block in self.blocks:
            x = block(x)
        x = activate(self.last(with_spread(x, self.group)))
        if self.pooled is not None:
            x = F.adaptive_avg_pool2d(x, self.pooled)
        logits: Tensor = self.score(activate(self.dense(x.flatten(1))))[:, 0]
        return logits


def with_spread(x: Float[Tensor, "n c y x"], group: int) -> Float[Tensor, "n c1 y x"]:
    """The features and one more: their standard deviation over groups of samples, averaged over features and places.

    Karras et al. 2018, section 3. Groups have at most `group` samples and divide the batch.
    """
    n, c, y, width = x.shape
    size = max(k for k in range(1, min(group, n) + 1) if n % k == 0)
    grouped = x.view(size, n // size, c, y, width).float()  # as published: samples i, i + n / size, ... are a group
    spread = (grouped.var(0, correction=0) + 1e-8).sqrt().mean((1, 2, 3))
    return torch.cat([x, spread.repeat(size).to(x.dtype)[:, None, None, None].expand(n, 1, y, width)], 1)


class _Residual(nn.Module):
    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.first = EqualConv(c_in, c_in, 3, padded=True)
        self.second = EqualConv(c_in, c_out, 3, padded=True, down=True)
        self.skip = EqualConv(c_in, c_out, 1, down=True, bias=False)

    def forward(self, x: Float[Tensor, "n c_in y x"]) -> Float[Tensor, "n c_out y2 x2"]:
        out: Tensor = (activate(self.second(activate(self.first(x)))) + self.skip(x)) / math.sqrt(2)
        return out
