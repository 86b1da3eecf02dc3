"""Continuity along z: how alike neighbouring sections are in a volume, against how alike real ones are.

Each patch's correlation of two neighbouring sections, both blurred as for `pearson_blur`. Sections made apart fall
below the real value, a volume that copies a section lies above it; the gap to the real value is the score.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import UInt8

from tera_mind.geometry import Box
from tera_mind.metrics.bootstrap import Interval, sums_interval
from tera_mind.metrics.cells import CellIds, sum_by_cell
from tera_mind.metrics.fidelity import Scores, blur, cut, pearson_patches


def section_correlations(
    image: UInt8[np.ndarray, "y x"], following: UInt8[np.ndarray, "y x"], boxes: list[Box], blur_px: float
) -> Scores:
    """Correlation of each patch with the same patch of the following section, -1 to 1; NaN where either is constant.

    Images and boxes as in `fidelity.patch_scores`.
    """
    if not boxes:
        return np.zeros(0)
    pair = cut(blur(image, blur_px), boxes), cut(blur(following, blur_px), boxes)
    # pearson_patches calls a constant first image 0: here neither side is the truth
    return np.where(np.isnan(pearson_patches(pair[1], pair[0])), np.nan, pearson_patches(*pair))


def z_correlation_gap(found: Scores, real: Scores, cells: CellIds, resamples: int, seed: int) -> Interval:
    """|mean of found - mean of real| over patches with both values, 0 to 2; lower is better. Cells are resampled."""
    both = np.isfinite(found) & np.isfinite(real)
    if not both.any():
        return Interval(None, None, None, 0)
    rows = np.stack([found[both] - real[both], np.ones(int(both.sum()))], axis=1)
    sums = sum_by_cell(rows, cells[both]).sums
    return sums_interval((sums,), lambda t: np.abs(t[:, 0] / t[:, 1]), resamples, seed, n=len(rows))
