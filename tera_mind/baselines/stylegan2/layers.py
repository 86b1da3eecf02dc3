"""Layers of StyleGAN2: equalised learning rate, modulated convolution, FIR resampling, noise.

Karras et al. 2020 (arXiv:1912.04958), section 2.2 and appendix B; equalised rates from Karras et al. 2018
(arXiv:1710.10196), section 4.1. Plain PyTorch operations only, all of them twice differentiable.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

#: keeps the variance of a leaky ReLU's output
_GAIN = math.sqrt(2)
#: taps of the FIR filters: bilinear on grids that share lines, and on grids half a sample apart
_ODD, _EVEN = (1.0, 2.0, 1.0), (1.0, 3.0, 3.0, 1.0)


def activate(x: Float[Tensor, ...]) -> Float[Tensor, ...]:
    """Leaky ReLU of slope 0.2, scaled to keep the variance."""
    return F.leaky_relu(x, 0.2) * _GAIN


def filtered(
    x: Float[Tensor, "n channel y x"], taps: tuple[float, ...], gain: float = 1.0
) -> Float[Tensor, "n channel y2 x2"]:
    """Every channel under a separable FIR filter of sum `gain`, without padding."""
    line = torch.tensor(taps, dtype=x.dtype, device=x.device)
    line = line * (math.sqrt(gain) / sum(taps))
    channels = x.shape[1]
    x = F.conv2d(x, line.view(1, 1, -1, 1).expand(channels, 1, -1, 1), groups=channels)
    return F.conv2d(x, line.view(1, 1, 1, -1).expand(channels, 1, 1, -1), groups=channels)


def upsampled(x: Float[Tensor, "n channel y x"]) -> Float[Tensor, "n channel y2 x2"]:
    """Bilinear, on the grid that keeps the samples and adds one between any two: n become 2 n - 1."""
    size = (2 * x.shape[-2] - 1, 2 * x.shape[-1] - 1)
    return F.interpolate(x, size, mode="bilinear", align_corners=True)


def modulated_convolution(
    x: Float[Tensor, "n c_in y x"],
    weight: Float[Tensor, "c_out c_in k k"],
    style: Float[Tensor, "n c_in"],
    *,
    demodulate: bool = True,
    up: bool = False,
    padded: bool = False,
) -> Float[Tensor, "n c_out y2 x2"]:
    """Convolution whose weights are scaled by each sample's style, w'_ijk = s_i w_ijk, and brought back to unit norm.

    Equations 1 and 3 of Karras 2020. Scaling the input and the output instead of the weights is the same and lets all
    samples share one convolution. With `up` the input is upsampled first, bilinearly: without padding onto the grid
    that keeps its lines (n become 2 n - 3 with k = 3; done by a transposed convolution and a filter, which is the same
    at a quarter of the work), with padding onto the half-sample grid (n become 2 n).
    """
    x = x * style.to(x.dtype)[:, :, None, None]
    side = weight.shape[-1]
    if up and padded:
        x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
    if up and not padded:
        flipped = weight.flip(2, 3).transpose(0, 1)  # a transposed convolution spreads its kernel the other way round
        crop = side - 2  # samples that miss a part of their neighbourhood
        x = filtered(F.conv_transpose2d(x, flipped.to(x.dtype), stride=2, padding=crop), _ODD, gain=4.0)
    else:
        x = F.conv2d(x, weight.to(x.dtype), padding=side // 2 if padded else 0)
    if demodulate:
        norm = style.float().square() @ weight.float().square().sum((2, 3)).T
        x = x * torch.rsqrt(norm + 1e-8).to(x.dtype)[:, :, None, None]
    return x


class EqualLinear(nn.Module):
    """Linear layer with weights of unit variance, scaled at run time, so that all layers learn at one rate."""

    def __init__(self, c_in: int, c_out: int, *, bias: float = 0.0, rate: float = 1.0) -> None:
        """`bias` is the starting bias, `rate` the layer's learning rate over the others'."""
        super().__init__()
        self.weight = nn.Parameter(torch.randn(c_out, c_in) / rate)
        self.bias = nn.Parameter(torch.full((c_out,), bias / rate))
        self.scale, self.rate = rate / math.sqrt(c_in), rate

    def forward(self, x: Float[Tensor, "n c_in"]) -> Float[Tensor, "n c_out"]:
        return F.linear(x, self.weight * self.scale, self.bias * self.rate)


class EqualConv(nn.Module):
    """Convolution with equalised rate; `padded` keeps the size, `down` halves it behind an FIR filter."""

    def __init__(
        self, c_in: int, c_out: int, side: int, *, padded: bool = False, down: bool = False, bias: bool = True
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(c_out, c_in, side, side))
        self.bias = nn.Parameter(torch.zeros(c_out)) if bias else None
        self.scale, self.down = 1 / math.sqrt(c_in * side * side), down
        self.padding = side // 2 if padded else 0

    def forward(self, x: Float[Tensor, "n c_in y x"]) -> Float[Tensor, "n c_out y2 x2"]:
        weight = self.weight * self.scale
        if not self.down:
            return F.conv2d(x, weight, self.bias, padding=self.padding)
        rim = 1 + self.padding
        return F.conv2d(filtered(F.pad(x, (rim, rim, rim, rim)), _EVEN), weight, self.bias, stride=2)


class StyledConv(nn.Module):
    """Modulated 3 x 3 convolution, noise of a learned strength, bias, leaky ReLU."""

    def __init__(self, c_in: int, c_out: int, style_channels: int, *, up: bool = False, padded: bool = False) -> None:
        super().__init__()
        self.style = EqualLinear(style_channels, c_in, bias=1.0)
        self.weight = nn.Parameter(torch.randn(c_out, c_in, 3, 3))
        self.scale = 1 / math.sqrt(9 * c_in)
        self.strength = nn.Parameter(torch.zeros(()))
        self.bias = nn.Parameter(torch.zeros(c_out))
        self.up, self.padded = up, padded

    def forward(
        self,
        x: Float[Tensor, "n c_in y x"],
        w: Float[Tensor, "n style"],
        noise: Float[Tensor, "n y2 x2"],
    ) -> Float[Tensor, "n c_out y2 x2"]:
        """noise: standard normal, on the grid of the output, the same for all channels."""
        style = self.style(w)
        x = modulated_convolution(x, self.weight * self.scale, style, up=self.up, padded=self.padded)
        return activate(x + (self.strength * noise[:, None]).to(x.dtype) + self.bias.to(x.dtype)[:, None, None])


class ToImage(nn.Module):
    """Modulated 1 x 1 convolution to the image's channels, without demodulation."""

    def __init__(self, c_in: int, image_channels: int, style_channels: int) -> None:
        super().__init__()
        self.style = EqualLinear(style_channels, c_in, bias=1.0)
        self.weight = nn.Parameter(torch.randn(image_channels, c_in, 1, 1))
        self.scale = 1 / math.sqrt(c_in)
        self.bias = nn.Parameter(torch.zeros(image_channels))

    def forward(
        self, x: Float[Tensor, "n c_in y x"], w: Float[Tensor, "n style"]
    ) -> Float[Tensor, "n image_channel y x"]:
        image = modulated_convolution(x, self.weight * self.scale, self.style(w), demodulate=False)
        return image.to(self.bias) + self.bias[:, None, None]  # images of all resolutions are summed in full precision
