"""The linear map from a stain's raw intensities to 0..255."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from tera_mind.errors import InputError
from tera_mind.formats.tissue import CELL_PX

LEVELS = 2**16
#: the darkest percent of what the camera saw is background, the brightest thousandth of the tissue is clipped
_LOW, _HIGH = 0.01, 0.999


class Histogram:
    """Raw intensities of a stain: int64 (2, 65536), of all pixels and of those in tissue."""

    def __init__(self) -> None:
        self.counts = np.zeros((2, LEVELS), np.int64)

    def add(self, window: NDArray[np.float32], tissue: NDArray[np.bool_]) -> None:
        """Count a window (y, x) whose corner lies on the grid of 64 px cells, and which of its cells are tissue."""
        values = np.rint(window).astype(np.uint16)
        self.counts[0] += np.bincount(values.ravel(), minlength=LEVELS)
        mask = tissue.repeat(CELL_PX, axis=0).repeat(CELL_PX, axis=1)[: window.shape[0], : window.shape[1]]
        self.counts[1] += np.bincount(values[mask], minlength=LEVELS)


def intensity_range(stain: str, histograms: Iterable[NDArray[np.int64]]) -> tuple[float, float]:
    """(low, high) of all sections' `Histogram.counts`: 1st percentile of all pixels, 99.9th of the tissue's.

    Pixels of 0 are no background: no camera reads 0. Raises `InputError` when the stain has no contrast.
    """
    total = np.zeros((2, LEVELS), np.int64)
    for counts in histograms:
        total += counts
    total[0, 0] = 0
    low, high = _quantile(total[0], _LOW), _quantile(total[1], _HIGH)
    if high <= low:
        raise InputError(
            f"stain {stain} has no contrast (background {low:g}, bright tissue {high:g}): is the image empty? "
            f"--range {stain}=LOW:HIGH sets the range by hand"
        )
    return low, high


def _quantile(histogram: NDArray[np.int64], share: float) -> float:
    total = histogram.sum()
    return float(np.searchsorted(np.cumsum(histogram), share * total)) if total else 0.0


def to_uint8(window: NDArray[np.float32], bounds: tuple[float, float]) -> NDArray[np.uint8]:
    """Map `low` to 0 and `high` to 255 linearly, rounded and clipped."""
    low, high = bounds
    levels = np.clip(np.rint((window - low) * (255 / (high - low))), 0, 255)
    return np.asarray(levels, np.uint8)
