"""Area under the ROC curve of a map against known places, with an interval from resampled squares of patches."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int


class Area(NamedTuple):
    """An area with its 95 % bootstrap interval (None without two cells of each kind) over so many places."""

    value: float | None
    low: float | None
    high: float | None
    positives: int
    negatives: int


def auroc(
    scores: Float[np.ndarray, " place"],
    positive: Bool[np.ndarray, " place"],
    weights: Float[np.ndarray, " place"] | None = None,
) -> float | None:
    """Chance that a positive place scores higher than a negative one, ties counting half; None without both.

    `weights` count a place several times (Mann and Whitney, Ann. Math. Stat. 18, 1947).
    """
    weights = np.ones(len(scores)) if weights is None else weights
    values, place = np.unique(scores, return_inverse=True)
    above, below = (np.bincount(place, weights * kind, len(values)) for kind in (positive, ~positive))
    total = above.sum() * below.sum()
    if not total:
        return None
    return float((above * (np.cumsum(below) - below / 2)).sum() / total)


def auroc_interval(
    scores: Float[np.ndarray, " place"],
    positive: Bool[np.ndarray, " place"],
    cells: Int[np.ndarray, " place"],
    resamples: int,
    seed: int,
) -> Area:
    """`auroc` of the finite scores with an interval from resampled `cells`: neighbours are alike, so go together."""
    known = np.isfinite(scores)
    scores, positive = scores[known].astype(np.float64), positive[known]
    value = auroc(scores, positive)
    _, place = np.unique(cells[known], return_inverse=True)
    count = int(place.max()) + 1 if len(place) else 0
    # a kind that lies in one square varies in no resample that holds it: its interval would be too narrow
    spread = count > 1 and min(len(np.unique(place[kind])) for kind in (positive, ~positive)) > 1
    drawn = []
    random = np.random.default_rng([seed, count])
    for _ in range(resamples if spread else 0):
        times = np.bincount(random.integers(0, count, count), minlength=count)
        drawn.append(auroc(scores, positive, times[place].astype(np.float64)))
    finite = [area for area in drawn if area is not None]
    low, high = np.percentile(finite, [2.5, 97.5]).tolist() if len(finite) > resamples // 2 else (None, None)
    return Area(value, low, high, int(positive.sum()), int((~positive).sum()))
