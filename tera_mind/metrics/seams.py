"""Seams: are neighbouring pixels across a patch border more different than neighbours inside a patch?

index = mean |gradient| across the borders of a square grid / mean |gradient| at all other lines, both axes. It is 1
when borders look like the rest, above 1 for visible steps, below 1 for borders smoothed over. Real tissue has no
grid, so its own index on the same lines, with its sampling spread, is what a seamless volume must fall into.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Shaped

from tera_mind.metrics.bootstrap import Interval, interval

#: columns of a table of segments: sum and number of gradients on borders, then inside
Segments = Float[np.ndarray, "segment 4"]


class SeamIndex(NamedTuple):
    """The index with its interval over patches, and the index of every shift of the grid."""

    estimate: Interval
    phases: Float[np.ndarray, " phase"]


def segments(image: Shaped[np.ndarray, "y x"], patch_px: int) -> Segments:
    """Gradients of each patch: across its upper and left border, and inside it (units of a bootstrap).

    The grid starts at the image's corner; that edge has no neighbour and is not counted.
    """
    values = np.asarray(image, np.float32)
    rows, columns = (np.arange(size) // patch_px for size in values.shape)
    patch = rows[:, None] * (columns[-1] + 1) + columns[None]
    table = np.zeros((int(patch[-1, -1]) + 1, 4))
    for axis in (0, 1):
        gradient = np.abs(np.diff(values, axis=axis))
        owner = np.delete(patch, 0, axis)
        line = np.arange(1, values.shape[axis]) % patch_px == 0
        for column, chosen in ((0, line), (2, ~line)):
            owners = np.compress(chosen, owner, axis).ravel()
            table[:, column] += np.bincount(owners, np.compress(chosen, gradient, axis).ravel(), minlength=len(table))
            table[:, column + 1] += np.bincount(owners, minlength=len(table))
    return table


def phase_sums(image: Shaped[np.ndarray, "y x"], patch_px: int) -> Float[np.ndarray, "phase 4"]:
    """The four sums of `segments` over the whole image, for the grid shifted by 0, 1, ... px along both axes."""
    values = np.asarray(image, np.float32)
    border, borders = np.zeros(patch_px), np.zeros(patch_px)
    for axis in (0, 1):
        gradient = np.abs(np.diff(values, axis=axis)).sum(axis=1 - axis, dtype=np.float64)
        phase = np.arange(1, values.shape[axis]) % patch_px
        border += np.bincount(phase, gradient, minlength=patch_px)
        borders += np.bincount(phase, minlength=patch_px) * values.shape[1 - axis]
    return np.stack([border, borders, border.sum() - border, borders.sum() - borders], axis=1)


def index(drawn: Float[np.ndarray, "draw segment 4"]) -> Float[np.ndarray, " draw"]:
    """Seam index of resampled segments; NaN where there is no border or no gradient inside."""
    border, borders, inside, insides = np.moveaxis(drawn.sum(axis=1), -1, 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where((borders > 0) & (inside > 0), (border / borders) / (inside / insides), np.nan)


def seam_index(table: Segments, phases: Float[np.ndarray, "phase 4"], resamples: int, seed: int) -> SeamIndex:
    """Index of one stain from its `segments`, all sections one after the other, and its summed `phase_sums`.

    The interval resamples patches: each brings the two border segments, one patch long, that it owns and its own
    inside. `phases[k]` of the result is the index of the grid shifted by k px along both axes; phase 0 is the index.
    """
    return SeamIndex(interval(table, index, resamples, seed), index(phases[:, None]))
