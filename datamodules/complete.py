"""Batches completed on the device: turned and flipped, then binned; pixels normalised.

Never bin first: bins of a crop start at the turned crop's own corner, wherever that is. Image, mask and transcripts are
turned by one table, so they stay registered.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from datamodules.crops import SYMMETRIES, Batch
from tera_mind.model.binning import bin_rows


def complete_batch(batch: Batch, *, genes: int, gene_sections: int, bin_px: int) -> Batch:
    """The batch as the network takes it, from that of `datamodules.crops.PairMaker`, on the device where it is.

    `image` float32 (b, stain, section, y, x) in [-1, 1]; `genes` float32 (b, gene, gene section, bin, bin); `inside`
    bool (b, section, y, x); `position` and `number` as they are. A complete batch is returned as it is.
    """
    if "rows" not in batch:
        return batch
    image, rows = batch["image"], batch["rows"]
    inside = _mask(batch["bounds"], batch["exists"], image.shape[-1])
    if "symmetry" in batch:
        image, inside = (turn_pixels(pixels, batch["symmetry"]) for pixels in (image, inside))
        rows = turn_rows(rows, batch["symmetry"], image.shape[-1])
    bins = image.shape[-1] // bin_px
    return {
        "image": _signed(image.device)[image.int()],
        "genes": bin_rows(rows, (image.shape[0], genes, gene_sections, bins, bins), bin_px),
        "inside": inside,
        "position": batch["position"],
        "number": batch["number"],
    }


def turn_rows(rows: Int[Tensor, "6 n"], symmetry: Int[Tensor, " b"], size_px: int) -> Int[Tensor, "6 n"]:
    """Transcripts of square crops, each turned by its crop's symmetry.

    `symmetry % 4` quarter turns counterclockwise; from 4 on, then x flipped.
    """
    (yy, yx, y1), (xy, xx, x1) = _maps(rows.device)[symmetry][rows[0]].permute(1, 2, 0)
    y, x, last = rows[3], rows[4], size_px - 1
    return torch.stack([*rows[:3], yy * y + yx * x + y1 * last, xy * y + xx * x + x1 * last, rows[5]])


def turn_pixels(pixels: Tensor, symmetry: Int[Tensor, " b"]) -> Tensor:
    """Images or masks (b, ..., y, x), each turned as `turn_rows` turns its transcripts."""
    source = _sources(pixels.shape[-1], pixels.device)[symmetry]
    flat = pixels.flatten(-2).flatten(1, -2)
    return flat.gather(2, source[:, None].expand(-1, flat.shape[1], -1)).view(pixels.shape)


def _mask(bounds: Int[Tensor, "b 4"], exists: Bool[Tensor, "b section"], size: int) -> Bool[Tensor, "b section y x"]:
    at = torch.arange(size, device=bounds.device, dtype=bounds.dtype)
    y0, y1, x0, x1 = bounds[:, :, None].unbind(1)
    rows, columns = (at >= y0) & (at < y1), (at >= x0) & (at < x1)
    return exists[:, :, None, None] & (rows[:, :, None] & columns[:, None, :])[:, None]


@lru_cache(maxsize=4)
def _maps(device: torch.device) -> Int[Tensor, "8 2 3"]:
    """The symmetries as (y, x, last) -> (y, x) with whole coefficients."""
    maps = []
    for symmetry in range(SYMMETRIES):
        y, x = np.array([1, 0, 0]), np.array([0, 1, 0])
        last = np.array([0, 0, 1])
        for _ in range(symmetry % 4):
            y, x = last - x, y
        maps.append((y, last - x if symmetry >= 4 else x))
    return torch.tensor(np.array(maps), dtype=torch.int32, device=device)


@lru_cache(maxsize=16)
def _sources(size: int, device: torch.device) -> Int[Tensor, "8 pixels"]:
    """For every symmetry and pixel of the turned crop, the pixel that lands there; from turning pixels as points."""
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    zero = torch.zeros(size * size, dtype=torch.int64)
    points = torch.stack([zero, zero, zero, y.flatten(), x.flatten(), zero])
    tables = []
    for symmetry in range(SYMMETRIES):
        turned = turn_rows(points, torch.tensor([symmetry]), size)
        tables.append(torch.argsort(turned[3] * size + turned[4]))
    return torch.stack(tables).to(device)


@lru_cache(maxsize=4)
def _signed(device: torch.device) -> Tensor:
    """uint8 intensity -> [-1, 1]; a table gives the same bits on every device."""
    return torch.from_numpy((np.arange(256) / 127.5 - 1).astype(np.float32)).to(device)
