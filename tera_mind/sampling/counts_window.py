"""Gene counts that a sweep needs for many steps, read once: a window of cells that moves with the wavefront."""

from __future__ import annotations

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from tera_mind.geometry import Box
from tera_mind.sampling.plain import CountSource


def compact(counts: Float[Tensor, "gene section y x"]) -> Shaped[Tensor, "gene section y x"]:
    """The counts as bytes where they are whole numbers up to 255, as nearly all are; else as they came."""
    small = counts.to(torch.uint8)
    return small if torch.equal(small.to(counts.dtype), counts) else counts


class CountsWindow:
    """Counts of any box, from cells of `cell` pixels anchored at `origin` that are read once and kept until let go.

    Beyond `bounds` counts are zero: nothing there is asked for in earnest. Boxes are in the brain's pixels and start at
    whole bins.
    """

    def __init__(
        self, source: CountSource, bin_px: int, cell_px: tuple[int, int], origin: tuple[int, int], bounds: Box
    ) -> None:
        self._source, self._bin_px, self._bounds = source, bin_px, bounds
        self._cell_px, self._origin = cell_px, origin
        self._cells: dict[tuple[int, int], tuple[Box, Tensor]] = {}

    def get(self, box: Box) -> Float[Tensor, "gene section bin_y bin_x"]:
        """Counts of a box, in the source's type."""
        inside = box.intersect(self._bounds)
        parts = [self._cell(i, k) for i, k in self._keys(inside)]
        shape, dtype = self._kind
        out = torch.zeros(*shape, box.height // self._bin_px, box.width // self._bin_px, dtype=dtype)
        for cell, counts in parts:
            common = cell.intersect(inside)
            target = self._bins(common.shift(-box.y0, -box.x0))
            out[(..., *target.slices())] = counts[(..., *self._bins(common.shift(-cell.y0, -cell.x0)).slices())]
        return out

    def let_go(self, x: int) -> None:
        """Forget the cells that end at or left of x."""
        self._cells = {key: held for key, held in self._cells.items() if held[0].x1 > x}

    def _keys(self, inside: Box) -> list[tuple[int, int]]:
        (height, width), (y, x) = self._cell_px, self._origin
        return [
            (i, k)
            for i in range((inside.y0 - y) // height, -(-(inside.y1 - y) // height))
            for k in range((inside.x0 - x) // width, -(-(inside.x1 - x) // width))
        ]

    def _cell(self, i: int, k: int) -> tuple[Box, Tensor]:
        if (i, k) not in self._cells:
            (height, width), (y, x) = self._cell_px, self._origin
            cell = Box(i * height, (i + 1) * height, k * width, (k + 1) * width).shift(y, x).intersect(self._bounds)
            counts = self._source(cell)
            self._kind = (tuple(counts.shape[:2]), counts.dtype)
            self._cells[i, k] = cell, compact(counts)
        return self._cells[i, k]

    def _bins(self, box: Box) -> Box:
        """Pixels to bins, relative to a corner at a whole bin."""
        size = self._bin_px
        return Box(box.y0 // size, box.y1 // size, box.x0 // size, box.x1 // size)
