"""Convolutions of section stacks as plane (2-D) convolutions, exactly, with as few products as there are.

Activations of Z sections are `Halves`: even sections, then odd ones, each (k * p, y, x, c) with k = Z / 2 sections of
p patches, section outermost, channels last. One section is one half. In that layout no operation of the network needs
a copy: what works on one section takes a half whole, and neighbours in z are slices.

A convolution over three sections, zero outside, gives y_z = W0 x_(z-1) + W1 x_z + W2 x_(z+1) (each product a plane
convolution). As written that is 3 Z products, of which 2 meet only zeros. Of a pair of sections (e, o) the inner part
is a 2 x 2 Toeplitz matrix, which takes three products, not four (a step of Karatsuba's):

    m = W1 (e + o),    y_e = m + (W2 - W1) o,    y_o = m + (W0 - W1) e

and each pair takes two more with its neighbours: W0 on the odd one before, W2 on the even one after.

    sections                       1    2    4    8
    as written (z padding)         3    6   12   24
    without padding (Toeplitz)     1    4   10   22
    here                           1    3    8   18

Folding (section, channel) into channels, one dense convolution, multiplies Z^2 blocks: 4, 16, 64.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

#: even sections, odd sections: (k * p, y, x, c) each
Halves = list[Float[Tensor, "_ _ _ _"]]


def products(sections: int) -> int:
    """Plane convolutions that one 3x3x3 convolution of so many sections takes."""
    return 1 if sections == 1 else 5 * sections // 2 - 2


def to_halves(x: Float[Tensor, "p c z y x"]) -> Halves:
    """Activations (p, c, z, y, x) as halves."""
    planes = x.permute(2, 0, 3, 4, 1)
    step = min(2, len(planes))
    return [planes[i::step].flatten(0, 1).contiguous() for i in range(step)]


def from_halves(halves: Sequence[Tensor], patches: int) -> Float[Tensor, "p c z y x"]:
    """Inverse of `to_halves` for so many patches."""
    planes = torch.stack([half.unflatten(0, (-1, patches)) for half in halves], dim=1).flatten(0, 1)
    return planes.permute(1, 4, 0, 2, 3)


class PlaneConv:
    """A 2-D convolution with fixed weights on channels-last planes, zero-padded, its weights packed for the CPU.

    oneDNN reorders weights into blocks at every call unless they come packed; with few patches at the deep levels
    that costs as much as the convolution.
    """

    def __init__(
        self, weight: Float[Tensor, "o i k k"], bias: Float[Tensor, " o"] | None, shape: tuple[int, int]
    ) -> None:
        """Weights in their final type and device; `shape`: planes at once and their side, for which they are packed."""
        self.padding = [weight.shape[-1] // 2] * 2
        self.bias = bias
        self.packed = weight.device.type == "cpu" and packable(weight.dtype)
        if self.packed:
            sizes = [shape[0], weight.shape[1], shape[1], shape[1]]
            dense = weight.contiguous().to_mkldnn()
            # the entry points torch.compile freezes convolutions with; torch has no public ones
            pack: Any = torch._C._nn.mkldnn_reorder_conv2d_weight  # noqa: SLF001
            weight = pack(dense, self.padding, [1, 1], [1, 1], 1, sizes)
        else:
            weight = weight.contiguous(memory_format=torch.channels_last)
        self.weight = weight

    def __call__(
        self, x: Float[Tensor, "n y x i"], plus: Float[Tensor, "n y x o"] | None = None
    ) -> Float[Tensor, "n y x o"]:
        """The convolution of x, plus what is handed in."""
        planes = x.permute(0, 3, 1, 2)
        if not self.packed:
            out = F.conv2d(planes, self.weight, self.bias, padding=self.padding).permute(0, 2, 3, 1)
            return out if plus is None else out.add_(plus)
        fixed = (self.weight, self.bias, self.padding, [1, 1], [1, 1], 1)
        pointwise = torch.ops.mkldnn._convolution_pointwise  # noqa: SLF001
        if plus is None:
            out = pointwise(planes, *fixed, "none", [], "")
        else:
            other = plus.permute(0, 3, 1, 2)
            out = pointwise.binary(planes, other, *fixed, "add", 1.0, None, [], None)
        result: Tensor = out.permute(0, 2, 3, 1)
        return result


def packable(dtype: torch.dtype) -> bool:
    """Whether oneDNN takes packed weights of this type on this CPU."""
    if not torch.backends.mkldnn.is_available():
        return False
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())  # noqa: SLF001
    return dtype == torch.float32


class SectionProducts:
    """A 3x3x3 convolution with zeros around, in `products(sections)` plane convolutions."""

    def __init__(
        self,
        weight: Float[Tensor, "o i kz k k"],
        bias: Float[Tensor, " o"] | None,
        dtype: torch.dtype,
        sections: int,
        shape: tuple[int, int],
    ) -> None:
        """`shape`: patches at once and their side at this level."""
        pairs = max(1, sections // 2)

        def plane(w: Tensor, b: Tensor | None = None, planes: int = pairs) -> PlaneConv:
            return PlaneConv(w.to(dtype), None if b is None else b.to(dtype), (planes * shape[0], shape[1]))

        if sections == 1:
            self.both = plane(weight[:, :, weight.shape[2] // 2], bias)
            return
        before, here, after = weight.double().unbind(2)
        self.both = plane(here, bias)
        self.of_odd, self.of_even = plane(after - here), plane(before - here)
        self.patches = shape[0]
        if pairs > 1:
            self.before, self.after = plane(before, planes=pairs - 1), plane(after, planes=pairs - 1)
        self.pairs = pairs

    def __call__(self, x: Halves) -> Halves:
        if len(x) == 1:
            return [self.both(x[0])]
        even, odd = x
        middle = self.both(even + odd)
        out_even, out_odd = self.of_odd(odd, plus=middle), self.of_even(even, plus=middle)
        if self.pairs > 1:
            patches = len(even) // self.pairs
            out_even[patches:] = self.before(odd[:-patches], plus=out_even[patches:])
            out_odd[:-patches] = self.after(even[patches:], plus=out_odd[:-patches])
        return [out_even, out_odd]
