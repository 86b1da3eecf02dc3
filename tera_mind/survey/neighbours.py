"""How neighbouring sections lie on each other: shift and likeness of their tissue, on a coarse pyramid level."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from skimage.registration import phase_cross_correlation

#: a shift beyond this part of the tissue's extent is worth a word
FAR = 0.05
#: below this overlap of the tissue of two neighbours, something is turned, mirrored or missing
LITTLE = 0.7


@dataclass(frozen=True)
class Neighbours:
    """Section `first` against the next: the shift (y, x) that lays the next on it, and the overlap (Dice) of tissue."""

    first: int
    shift_um: tuple[float, float]
    overlap: float
    extent_um: float

    @property
    def suspicious(self) -> bool:
        return self.overlap < LITTLE or float(np.hypot(*self.shift_um)) > FAR * self.extent_um


def compare_neighbours(tissue: NDArray[np.bool_], cell_um: float) -> list[Neighbours]:
    """Every section with the next one, by their tissue masks (section, y, x); pairs with an empty one are left out.

    The masks lie on one canvas, so a registered brain has shifts near 0 and overlaps near 1.
    """
    found = []
    for first in range(len(tissue) - 1):
        one, other = tissue[first], tissue[first + 1]
        if not (one.any() and other.any()):
            continue
        shift, _, _ = phase_cross_correlation(
            one.astype(np.float32), other.astype(np.float32), normalization=None, upsample_factor=1
        )
        rows, columns = np.nonzero(one.any(axis=1))[0], np.nonzero(one.any(axis=0))[0]
        found.append(
            Neighbours(
                first=first,
                shift_um=(float(shift[0]) * cell_um, float(shift[1]) * cell_um),
                overlap=float(2 * (one & other).sum() / (one.sum() + other.sum())),
                extent_um=float(max(np.ptp(rows), np.ptp(columns)) + 1) * cell_um,
            )
        )
    return found
