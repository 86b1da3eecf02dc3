"""A denoising network of a few weights with any halo, for tests of samplers: it looks exactly as far as it says."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from tera_mind.geometry import Box


class TinyBlocks:
    """Every output pixel mixes a pixel, pixels `halo_px` away, counts, t, and the mean of its patch with the halo."""

    def __init__(
        self, patch_px: int = 8, halo_px: int = 4, channels: int = 2, dtype: torch.dtype = torch.float64
    ) -> None:
        self.patch_px, self.halo_px, self.channels, self.bin_px, self.training = patch_px, halo_px, channels, 4, False
        self.dtype = dtype
        #: shapes of the windows of every pass
        self.passes: list[tuple[int, ...]] = []

    def predict(self, window: Tensor, t: Tensor, counts: Tensor) -> Tensor:
        self.passes.append(tuple(window.shape))
        x, halo = window.to(self.dtype), self.halo_px
        size = (window.shape[-2] - 2 * halo, window.shape[-1] - 2 * halo)
        near = sum(
            (0.2 + 0.1 * dy - 0.07 * dx) * x[..., (1 + dy) * halo :, (1 + dx) * halo :][..., : size[0], : size[1]]
            for dy in (-1, 0, 1)
            for dx in (-1, 0, 1)
        )
        mean = F.avg_pool2d(x, self.patch_px + 2 * halo, self.patch_px)
        genes = counts.to(x).mean((1, 2))[:, None].repeat_interleave(self.bin_px, -1).repeat_interleave(self.bin_px, -2)
        genes = F.avg_pool2d(genes, 2 * halo + 1, 1) - 1
        patch = mean.repeat_interleave(self.patch_px, -1).repeat_interleave(self.patch_px, -2)
        phase = torch.sin(t.to(x) / 300)[:, None, None, None]
        mixed = near + 2 * patch.flip(1) + genes + phase
        out = torch.sin(2 * mixed) + 0.3 * near
        return out.to(torch.promote_types(out.dtype, torch.float32))


def tiny_counts(box: Box) -> Tensor:
    """Counts of bins of 4 px, a function of the place alone: (gene, section, bin_y, bin_x)."""
    y = torch.arange(box.y0 // 4, box.y1 // 4, dtype=torch.float64)[:, None]
    x = torch.arange(box.x0 // 4, box.x1 // 4, dtype=torch.float64)[None]
    planes = [torch.floor(2 + 1.5 * torch.sin(a * y * math.pi + 0.7 * x + a * x * y)) for a in (0.3, 0.5, 0.9)]
    return torch.stack(planes)[:, None]
