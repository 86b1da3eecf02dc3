"""Where the tissue is, in cells of 64 px: from the density of transcripts, helped by the first stain."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

CELL_PX = 64
_SMOOTHING_CELLS = 1.5
_DENSITY_SHARE = 0.1


def tissue_grid(height_px: int, width_px: int) -> tuple[int, int]:
    """Rows and columns of 64 px cells that cover a canvas."""
    return -(-height_px // CELL_PX), -(-width_px // CELL_PX)


def dense_cells(counts: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Cells whose smoothed count is above a tenth of the usual one: (row, column) counts -> bool of that shape."""
    if not counts.any():
        return np.zeros(counts.shape, bool)
    smooth = ndimage.gaussian_filter(counts.astype(np.float64), _SMOOTHING_CELLS, mode="nearest")
    usual = np.median(smooth[counts > 0])
    return np.asarray(smooth > _DENSITY_SHARE * usual)


def tissue_mask(counts: NDArray[np.int64], brightness: NDArray[np.float32]) -> NDArray[np.bool_]:
    """The tissue of a section, holes filled.

    A cell is tissue when transcripts are dense there, or when its mean brightness (same shape, first stain) is nearer
    to that of the dense cells than to that of the others: a layer poor in transcripts still has nuclei.
    """
    dense = dense_cells(counts)
    if dense.any() and not dense.all():
        smooth = ndimage.gaussian_filter(brightness, _SMOOTHING_CELLS, mode="nearest")
        inside, outside = np.median(smooth[dense]), np.median(smooth[~dense])
        if inside > outside:
            dense |= smooth > (inside + outside) / 2
    closed = ndimage.binary_closing(np.pad(dense, 2, mode="edge"), iterations=2)[2:-2, 2:-2]
    return np.asarray(ndimage.binary_fill_holes(dense | closed))
