"""Sums by bootstrap cell: what a block of tissue leaves behind, and how blocks add up.

A cell is a square of neighbouring patches, resampled as one because neighbours are alike. Sums by cell are bounded by
the number of cells, whatever the number of pixels, and they add exactly: a cell cut by the edge of a block gets its sum
in parts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, Shaped

CellIds = Int[np.ndarray, " unit"]


class CellSums(NamedTuple):
    """`sums[i]` belongs to cell number `cells[i]`; the numbers rise."""

    cells: Int[np.ndarray, " cell"]
    sums: Shaped[np.ndarray, "cell ..."]


def compact(cells: CellIds) -> tuple[Int[np.ndarray, " cell"], CellIds]:
    """The numbers that occur (0 and up), rising, and for each unit the place of its own among them."""
    if not len(cells):
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    present = np.flatnonzero(np.bincount(cells))
    place = np.zeros(int(present[-1]) + 1, np.int64)
    place[present] = np.arange(len(present))
    return present, place[cells]


def sum_by_cell(values: Shaped[np.ndarray, "unit ..."], cells: CellIds) -> CellSums:
    """Values of units added up in their cells; integers stay integers and are exact."""
    numbers, place = compact(cells)
    if values.ndim == 1 and values.dtype.kind == "f":
        # much the fastest for many values; of none it would be whole numbers
        return CellSums(numbers, np.bincount(place, values, minlength=len(numbers)).astype(np.float64, copy=False))
    kind = np.int64 if values.dtype.kind in "biu" else values.dtype
    sums = np.zeros((len(numbers), *values.shape[1:]), kind)
    np.add.at(sums, place, values)
    return CellSums(numbers, sums)


def merge(parts: Sequence[CellSums]) -> CellSums:
    """Sums of several blocks as one, added in the order given."""
    return sum_by_cell(np.concatenate([part.sums for part in parts]), np.concatenate([part.cells for part in parts]))
