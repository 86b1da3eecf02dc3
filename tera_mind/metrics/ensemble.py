"""Several seeds of one volume: how far they spread, how far their mean is from the truth, and whether the two agree.

Spread is honest when it equals the error. For M members drawn from the same distribution as the truth, the squared
error of their mean exceeds their variance (with M - 1 in the denominator) by the factor (M + 1) / M, since the mean of
a few members errs itself (Fortin et al., J. Hydrometeor. 15, 1708, 2014). So spreads are multiplied by
sqrt((M + 1) / M) before they are held against errors: a ratio of 1 is calibrated, below 1 overconfident.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, UInt8
from scipy.stats import rankdata

from tera_mind.errors import InputError
from tera_mind.geometry import Box
from tera_mind.metrics.bootstrap import Interval, cell_pearson, sums_interval
from tera_mind.metrics.cells import CellIds, sum_by_cell
from tera_mind.metrics.fidelity import Scores, blur, cut


class CalibrationBin(NamedTuple):
    """Patches of like spread: root mean square of their spread (with the ensemble's factor) and error, grey levels."""

    spread: float
    error: float
    n: int


def ensemble_scores(
    members: UInt8[np.ndarray, "member y x"], real: UInt8[np.ndarray, "y x"], boxes: list[Box], blur_px: float
) -> dict[str, Scores]:
    """Spread and error of each patch in grey levels, of images blurred by `blur_px`; images as for `patch_scores`.

    "uncertainty": root mean square over pixels of the standard deviation over members; "error": root mean square
    difference of the members' mean and the real image. Raises for fewer than two members.
    """
    if len(members) < 2:
        raise InputError(f"an ensemble needs at least 2 members, got {len(members)}: generate with other seeds")
    if not boxes:
        return {"uncertainty": np.zeros(0), "error": np.zeros(0)}
    total, square = np.zeros((2, *real.shape))
    first = blur(members[0], blur_px)
    for member in members:
        # squares of differences from one member are small, so their difference keeps its digits
        change = (blur(member, blur_px) - first).astype(np.float64)
        total += change
        square += change**2
    count = len(members)
    variance = np.maximum(square - total**2 / count, 0) / (count - 1)
    error = first + total / count - blur(real, blur_px)
    return {
        "uncertainty": np.sqrt(cut(variance, boxes).mean(axis=(1, 2))),
        "error": np.sqrt(np.square(cut(error, boxes)).mean(axis=(1, 2))),
    }


def finite_ensemble_factor(members: int) -> float:
    """sqrt((M + 1) / M): what a calibrated ensemble's spread must be multiplied by to equal its mean's error."""
    return float(np.sqrt((members + 1) / members))


def calibration(uncertainty: Scores, error: Scores, members: int, bins: int = 10) -> list[CalibrationBin]:
    """Patches sorted by spread into bins of equal number (deciles), least spread first; fewer bins for few patches."""
    order = np.argsort(uncertainty, kind="stable")
    factor = finite_ensemble_factor(members)
    return [
        CalibrationBin(factor * _rms(uncertainty[part]), _rms(error[part]), len(part))
        for part in np.array_split(order, bins)
        if len(part)
    ]


def _rms(values: Float[np.ndarray, " patch"]) -> float:
    return float(np.sqrt(np.square(values).mean()))


def spread_error_ratio(
    uncertainty: Scores, error: Scores, members: int, cells: CellIds, resamples: int, seed: int
) -> Interval:
    """Root mean square spread, with the ensemble's factor, by root mean square error: 1 is calibrated."""
    sums = np.stack([sum_by_cell(np.square(x), cells).sums for x in (uncertainty, error)], axis=1)
    factor = finite_ensemble_factor(members)

    def ratio(totals: Float[np.ndarray, "draw 2"]) -> Float[np.ndarray, " draw"]:
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(totals[:, 1] > 0, factor * np.sqrt(totals[:, 0] / totals[:, 1]), np.nan)

    return sums_interval((sums,), ratio, resamples, seed, n=len(error))


def spread_skill(uncertainty: Scores, error: Scores, cells: CellIds, resamples: int, seed: int) -> Interval:
    """Pearson correlation over patches of spread and error: does the ensemble know where it is wrong?"""
    return cell_pearson(uncertainty, error, cells, resamples, seed)


def spread_skill_rank(uncertainty: Scores, error: Scores, cells: CellIds, resamples: int, seed: int) -> Interval:
    """Spearman correlation over patches of spread and error; resamples keep the ranks of the whole."""
    return cell_pearson(rankdata(uncertainty), rankdata(error), cells, resamples, seed)
