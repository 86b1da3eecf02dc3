"""Counts of a batch in bins, from its transcripts, on the device that will use them."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor


def bin_rows(
    rows: Int[Tensor, "6 n"], shape: tuple[int, int, int, int, int], bin_px: int
) -> Float[Tensor, "b gene section row column"]:
    """Sum transcripts in bins of `bin_px`: float32 counts of `shape` (sample, gene, gene section, row, column).

    `rows` holds sample, gene, gene section, y and x in pixels of the crop, and count, one column a transcript row.
    Nothing of the size genes x pixels is made. Sums of whole numbers below 2^24 are exact in float32 in any order, so
    the result is the same on every device.
    """
    sample, gene, section, y, x, count = rows.long()
    _, genes, sections, height, width = shape
    index = (((sample * genes + gene) * sections + section) * height + y // bin_px) * width + x // bin_px
    counts = torch.zeros(shape, dtype=torch.float32, device=rows.device)
    counts.view(-1).index_add_(0, index, count.float())
    return counts
