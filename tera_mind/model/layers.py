"""Layers of the gene-morph UNet: section-aware convolution, RMSNorm, residual and attention blocks.

Activations are (b, c, z, y, x). With one section every 3x3x3 convolution is exactly its central 3x3 plane, so only
that plane exists; with more it is run as the plane convolutions that `planes` counts: no weight and no multiplication
is spent on padding.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Integer
from torch import Tensor, nn

Activations = Float[Tensor, "b c z y x"]


def plane_products(x: Float[Tensor, "b i z y x"], weight: Tensor, bias: Tensor | None) -> Float[Tensor, "b o z y x"]:
    """3x3x3 convolution, padding 1, of an even number of sections as plane convolutions (see `planes`)."""
    before, here, after = weight.unbind(2)
    even, odd = (half.transpose(1, 2) for half in x.unflatten(2, (-1, 2)).unbind(3))
    b, pairs = even.shape[:2]

    def conv(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        out: Tensor = F.conv2d(x.flatten(0, 1), weight, bias, padding=1).unflatten(0, (b, -1))
        return out

    middle = conv(even + odd, here, bias)
    out_even, out_odd = middle + conv(odd, after - here), middle + conv(even, before - here)
    if pairs > 1:
        out_even = out_even + F.pad(conv(odd[:, :-1], before), (0, 0, 0, 0, 0, 0, 1, 0))
        out_odd = out_odd + F.pad(conv(even[:, 1:], after), (0, 0, 0, 0, 0, 0, 0, 1))
    out: Tensor = torch.stack([out_even, out_odd], dim=2).flatten(1, 2).transpose(1, 2)
    return out


class SectionConv(nn.Module):
    """Convolution over (z, y, x), `weight` (out, in, kz, ky, kx); run on planes where it can be.

    Only the gene pyramid's first one, which makes fewer sections of many, is run as a 3-D convolution.
    """

    def __init__(self, inputs: int, outputs: int, kernel_z: int, kernel_yx: int, *, pad_z: bool = True) -> None:
        super().__init__()
        reference = nn.Conv3d(inputs, outputs, (kernel_z, kernel_yx, kernel_yx))
        self.weight, self.bias = reference.weight, reference.bias
        self.padding = (kernel_z // 2 if pad_z else 0, kernel_yx // 2, kernel_yx // 2)

    def forward(self, x: Float[Tensor, "b i z y x"]) -> Float[Tensor, "b o z2 y x"]:
        if self.padding[0]:
            return plane_products(x, self.weight, self.bias)
        if self.weight.shape[2] > 1:
            return F.conv3d(x, self.weight, self.bias, padding=self.padding)
        b, _, z, height, width = x.shape
        flat = x[:, :, 0] if z == 1 else x.transpose(1, 2).reshape(b * z, -1, height, width)
        flat = F.conv2d(flat, self.weight[:, :, 0], self.bias, padding=self.padding[1:])
        return flat.unsqueeze(2) if z == 1 else flat.unflatten(0, (b, z)).transpose(1, 2)


def conv3(inputs: int, outputs: int, sections: int) -> SectionConv:
    """The 3x3x3 convolution of the UNet, padding 1; its central plane alone where there is one section."""
    return SectionConv(inputs, outputs, 3 if sections > 1 else 1, 3)


class _RMSNormFunction(torch.autograd.Function):
    """y = x w / rms(x) with a backward written out, which keeps only x and r (docs/decisions/0003).

    With r = 1 / rms(x) and g = dL/dy: dL/dx = r (g w - x r^2 mean(g w x)), dL/dw = sum(g x r).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, axis: int) -> Tensor:
        wide = torch.promote_types(x.dtype, torch.float32)
        norm = torch.linalg.vector_norm(x, dim=axis, keepdim=True, dtype=wide)
        r = torch.rsqrt(norm.square() / x.shape[axis] + 1e-6)
        out = torch.empty_like(x)
        torch.mul(x, r, out=out)
        out.mul_(weight)
        ctx.save_for_backward(x, weight, r)
        ctx.axis = axis
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight, r = ctx.saved_tensors
        axis = ctx.axis % x.ndim
        x_unit = torch.mul(x, r, out=torch.empty_like(x))
        product = grads[0] * x_unit
        others = [i for i in range(x.ndim) if i != axis]
        grad_weight = product.sum(others, dtype=r.dtype).view(weight.shape).to(weight.dtype)
        mean = product.mul_(weight).mean(axis, keepdim=True, dtype=r.dtype).to(x.dtype)
        grad = (grads[0] * weight).addcmul_(x_unit, mean, value=-1)
        return grad.mul_(r), grad_weight, None


class RMSNorm(nn.Module):
    """Root-mean-square norm over one axis with a weight; the mean of squares is taken in float32 (eps 1e-6)."""

    def __init__(self, size: int, axis: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.axis = axis

    def forward(self, x: Float[Tensor, ...]) -> Float[Tensor, ...]:
        shape = [1] * x.ndim
        shape[self.axis] = -1
        out: Tensor = _RMSNormFunction.apply(x, self.weight.view(shape), self.axis)
        return out


class _NormSiLUFunction(torch.autograd.Function):
    """y = silu(x w / rms(x) + s) over axis 1 of (b, c, ...), keeping only x, r, w and s.

    With r = 1 / rms(x), u = x r w + s and g = dL/dy silu'(u): dL/dx = r (g w - x r mean(g w x r)),
    dL/dw = sum(g x r) and dL/ds = sum(g) over the positions, and over samples where those share w.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, shift: Tensor | None) -> Tensor:
        wide = torch.promote_types(x.dtype, torch.float32)
        norm = torch.linalg.vector_norm(x, dim=1, keepdim=True, dtype=wide)
        r = torch.rsqrt(norm.square() / x.shape[1] + 1e-6)
        ctx.save_for_backward(x, r, weight, *(() if shift is None else (shift,)))
        out = torch.mul(x, r, out=torch.empty_like(x)).mul_(weight)
        return F.silu(out if shift is None else out.add_(shift), inplace=True)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        x, r, weight, *shift = ctx.saved_tensors
        x_unit = torch.mul(x, r, out=torch.empty_like(x))
        u = x_unit * weight.to(x.dtype)
        if shift:
            u.add_(shift[0])
        g = torch.ops.aten.silu_backward(grads[0], u)
        del u
        grad_shift = _sum_to(g, shift[0]) if shift else None
        product = g * x_unit
        grad_weight = _sum_to(product, weight)
        mean = product.mul_(weight).mean(1, keepdim=True, dtype=r.dtype).to(x.dtype)
        return g.mul_(weight).addcmul_(x_unit, mean, value=-1).mul_(r), grad_weight, grad_shift


def _sum_to(x: Tensor, like: Tensor) -> Tensor:
    """Sum in float32 or wider over the axes along which `like` was broadcast."""
    axes = [i for i, size in enumerate(like.shape) if size == 1 and x.shape[i] != 1]
    wide = torch.promote_types(x.dtype, torch.float32)
    return (x.sum(axes, keepdim=True, dtype=wide) if axes else x).to(like.dtype)


def norm_silu(
    x: Activations, weight: Float[Tensor, "#b c 1 1 1"], shift: Float[Tensor, "#b c 1 1 1"] | None = None
) -> Activations:
    """SiLU of the RMSNorm of x over its channels, scaled and shifted; one operation with its own backward."""
    out: Tensor = _NormSiLUFunction.apply(x, weight, shift)
    return out


class TimeEmbedding(nn.Module):
    """Sinusoidal embedding of the timestep (cosines first), then Linear, SiLU, Linear."""

    def __init__(self, size: int, channels: int) -> None:
        super().__init__()
        frequencies = torch.exp(-math.log(10000.0) * torch.arange(size // 2, dtype=torch.float32) / (size // 2))
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.hidden = nn.Linear(size, channels)
        self.out = nn.Linear(channels, channels)

    def forward(self, t: Integer[Tensor, " b"]) -> Float[Tensor, "b c"]:
        assert isinstance(self.frequencies, Tensor)
        angles = t.float()[:, None] * self.frequencies
        embedding = torch.cat([angles.cos(), angles.sin()], dim=-1).to(self.hidden.weight.dtype)
        out: Tensor = self.out(F.silu(self.hidden(embedding)))
        return out


def resample(x: Activations, scale: str) -> Float[Tensor, "b c z y2 x2"]:
    """Nearest x2 (`up`) or 2 x 2 mean pool (`down`) in y, x; anything else leaves x as it is."""
    if scale == "up":
        return x.repeat_interleave(2, dim=-2).repeat_interleave(2, dim=-1)
    if scale == "down":
        b, c, z, height, width = x.shape
        return F.avg_pool2d(x.reshape(b, c * z, height, width), 2).view(b, c, z, height // 2, width // 2)
    return x


class ResBlock(nn.Module):
    """Residual block whose second norm is scaled and shifted by the time embedding."""

    def __init__(
        self, inputs: int, outputs: int, time_channels: int, sections: int, dropout: float, scale: str = "same"
    ) -> None:
        super().__init__()
        self.scale = scale
        self.norm_in = RMSNorm(inputs, axis=1)
        self.conv_in = conv3(inputs, outputs, sections)
        self.time = nn.Linear(time_channels, 2 * outputs)
        self.norm_out = RMSNorm(outputs, axis=1)
        self.dropout = nn.Dropout(dropout)
        self.conv_out = conv3(outputs, outputs, sections)
        nn.init.zeros_(self.conv_out.weight)
        assert self.conv_out.bias is not None
        nn.init.zeros_(self.conv_out.bias)
        self.skip = nn.Identity() if inputs == outputs else SectionConv(inputs, outputs, 1, 1)

    def forward(self, x: Float[Tensor, "b i z y x"], embedding: Float[Tensor, "b t"]) -> Float[Tensor, "b o z y2 x2"]:
        h = self.conv_in(resample(norm_silu(x, self.norm_in.weight.view(1, -1, 1, 1, 1)), self.scale))
        scale, shift = self.time(F.silu(embedding))[:, :, None, None, None].chunk(2, dim=1)
        h = norm_silu(h, self.norm_out.weight.view(1, -1, 1, 1, 1) * (1 + scale), shift)
        h = self.conv_out(self.dropout(h))
        skip: Tensor = self.skip(resample(x, self.scale))
        out: Tensor = skip + h
        return out


class MLP(nn.Module):
    """Linear to four times the width, GELU (tanh), Linear back."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(channels, 4 * channels)
        self.out = nn.Linear(4 * channels, channels)

    def forward(self, x: Float[Tensor, "... c"]) -> Float[Tensor, "... c"]:
        out: Tensor = self.out(F.gelu(self.hidden(x), approximate="tanh"))
        return out


def to_windows(x: Activations, side: int) -> Float[Tensor, "w tokens c"]:
    """Cut the plane into squares of `side`; tokens of a window are (z, y, x)."""
    b, c, z, height, width = x.shape
    x = x.view(b, c, z, height // side, side, width // side, side)
    return x.permute(0, 3, 5, 2, 4, 6, 1).reshape(-1, z * side * side, c)


def from_windows(tokens: Float[Tensor, "w tokens c"], shape: torch.Size, side: int) -> Activations:
    """Inverse of `to_windows` for activations of the given shape."""
    b, c, z, height, width = shape
    x = tokens.view(b, height // side, width // side, z, side, side, c)
    return x.permute(0, 6, 3, 1, 4, 2, 5).reshape(shape)


class GeneAttentionBlock(nn.Module):
    """Image positions attend to gene embeddings; every modulation is a linear map of the genes at that position.

    Queries come from the image, keys and values both from the embedding e (the published code; the paper's eq. 2
    takes keys from the image). One head; each quadrant of a patch's plane attends within itself, all sections
    together.
    """

    def __init__(self, channels: int, gene_channels: int, window_px: int) -> None:
        super().__init__()
        self.window_px = window_px
        self.modulation = nn.Linear(gene_channels, 7 * channels)
        self.norm_attention = RMSNorm(channels, axis=-1)
        self.query = nn.Linear(channels, channels)
        self.key = nn.Linear(channels, channels)
        self.value = nn.Linear(channels, channels)
        self.norm_query = RMSNorm(channels, axis=-1)
        self.norm_key = RMSNorm(channels, axis=-1)
        self.out = nn.Linear(channels, channels)
        self.norm_mlp = RMSNorm(channels, axis=-1)
        self.mlp = MLP(channels)

    def forward(self, x: Activations, genes: Float[Tensor, "b g z y x"]) -> Activations:
        tokens = to_windows(x, self.window_px)
        modulation = self.modulation(F.silu(to_windows(genes, self.window_px)))
        shift1, scale1, gate1, e, shift2, scale2, gate2 = modulation.chunk(7, dim=-1)
        query = self.norm_query(self.query(self.norm_attention(tokens) * (1 + scale1) + shift1))
        attended = F.scaled_dot_product_attention(
            query, self.norm_key(self.key(e)), self.value(e), scale=1.0 / tokens.shape[-1]
        )
        tokens = tokens + gate1 * self.out(attended)
        tokens = tokens + gate2 * self.mlp(self.norm_mlp(tokens) * (1 + scale2) + shift2)
        return from_windows(tokens, x.shape, self.window_px)
