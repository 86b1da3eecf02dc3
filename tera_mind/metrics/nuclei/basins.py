"""Basins of a height map: every pixel goes uphill to its peak, shallow basins join their neighbours.

The watershed of Cousty et al., IEEE TPAMI 31 (2009), by steepest ascent and pointer jumping, and basins joined by the
depth of the saddle between them, as in Najman and Schmitt, IEEE TPAMI 18 (1996). Ties are broken by raster order, so
the outcome around a pixel is the same in every crop that holds its basins.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray

Plane = Float[np.ndarray, "y x"]
Labels = Int[np.ndarray, "y x"]
Pairs = Int[np.ndarray, "pair 2"]


def basins(height: Plane, foreground: Bool[np.ndarray, "y x"]) -> tuple[Labels, Float[np.ndarray, " label"]]:
    """Basins 1, 2, ... of the foreground (0 elsewhere), numbered by their peaks' raster order, and their peaks.

    A pixel goes to the highest of its 8 neighbours, of equal ones to the first; `peaks[0]` stands for the background.
    """
    rows, columns = (size + 2 for size in height.shape)
    padded = np.full((rows, columns), -np.inf, np.float32)
    padded[1:-1, 1:-1][foreground] = height[foreground]
    flat = padded.ravel()
    inked = np.flatnonzero(flat > -np.inf)
    highest, target = flat[inked], inked
    # the nearer of the earlier neighbours first: of equal ones the last to be looked at wins, the first in the raster
    for step in (-1, 1 - columns, -columns, -1 - columns):
        candidate = flat[inked + step]
        higher = candidate >= highest
        highest, target = np.where(higher, candidate, highest), np.where(higher, inked + step, target)
    for step in (1, columns - 1, columns, columns + 1):
        candidate = flat[inked + step]
        higher = candidate > highest
        highest, target = np.where(higher, candidate, highest), np.where(higher, inked + step, target)
    place = np.zeros(flat.size, np.int32)
    place[inked] = np.arange(len(inked), dtype=np.int32)
    uphill = place[target]
    while not np.array_equal(further := uphill[uphill], uphill):
        uphill = further
    is_peak = uphill == np.arange(len(inked))
    labels = np.zeros(flat.size, np.int32)
    labels[inked] = np.cumsum(is_peak)[uphill]
    peaks = np.concatenate([np.zeros(1, np.float32), flat[inked[is_peak]]])
    return labels.reshape(rows, columns)[1:-1, 1:-1], peaks


def borders(
    labels: Labels, *, diagonal: bool
) -> tuple[Int[np.ndarray, " contact"], NDArray[np.intp], NDArray[np.intp]]:
    """Contacts of pixels with different labels: the pair's key (smaller * bins + larger) and both flat positions.

    `bins` is the largest label + 1; contacts come in one order of directions, each in raster order.
    """
    rows, columns = labels.shape
    position = np.arange(labels.size).reshape(rows, columns)
    bins = int(labels.max(initial=0)) + 1
    steps = [(0, 1), (1, 0), (1, 1), (1, -1)] if diagonal else [(0, 1), (1, 0)]
    keys, first, second = [], [], []
    for dy, dx in steps:
        here = slice(0, rows - dy), slice(max(0, -dx), columns - max(0, dx))
        there = slice(dy, rows), slice(max(0, dx), columns - max(0, -dx))
        a, b = labels[here], labels[there]
        differ = (a != b) & (a > 0) & (b > 0)
        a, b = a[differ].astype(np.int64), b[differ].astype(np.int64)
        keys.append(np.minimum(a, b) * bins + np.maximum(a, b))
        first.append(position[here][differ])
        second.append(position[there][differ])
    return np.concatenate(keys), np.concatenate(first), np.concatenate(second)


def join_shallow(labels: Labels, height: Plane, peaks: Float[np.ndarray, " label"], depth: float) -> Labels:
    """Join basins over saddles that lie less than `depth` below the lower of their two peaks, highest saddle first."""
    keys, first, second = borders(labels, diagonal=True)
    flat = height.ravel()
    saddle = np.minimum(flat[first], flat[second])
    order = np.lexsort((-saddle, keys))
    keys, saddle = keys[order], saddle[order]
    highest = np.diff(keys, prepend=-1) > 0
    keys, saddle = keys[highest], saddle[highest]
    order = np.argsort(-saddle, kind="stable")
    root, top = list(range(len(peaks))), peaks.tolist()
    pairs = zip(*(column.tolist() for column in np.divmod(keys[order], len(peaks))), strict=True)
    for (one, other), at in zip(pairs, saddle[order].tolist(), strict=True):
        a, b = find(root, one), find(root, other)
        if a != b and min(top[a], top[b]) - at < depth:
            a, b = (b, a) if top[a] < top[b] else (a, b)
            root[b] = a
    return relabel(labels, root)


def find(root: list[int], item: int) -> int:
    """The item that stands for this one's set; shortens the way there."""
    while root[item] != item:
        root[item] = root[root[item]]
        item = root[item]
    return item


def relabel(labels: Labels, root: list[int]) -> Labels:
    """Every label's set, numbered 1, 2, ... by its smallest label."""
    sets = np.array([find(root, item) for item in range(len(root))], np.int64)
    smallest = np.full(len(root), len(root))
    np.minimum.at(smallest, sets, np.arange(len(root)))
    number = np.unique(smallest[sets], return_inverse=True)[1].astype(np.int32)
    return np.asarray(number[labels])
