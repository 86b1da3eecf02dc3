"""Paired tests of two methods on the same places: is one better here, or did it only meet easier places?

Places (patches, windows, regions) that lie beside each other are alike, so they are not resampled one by one but in
square cells of neighbouring places, as large as leaves about a hundred (a block bootstrap: Kunsch, Ann. Statist. 17,
1989). Both methods are resampled alike. The signed-rank test (Wilcoxon, Biometrics Bulletin 1, 1945) runs on the means
of the cells, for the same reason; its effect size is the matched-pairs rank-biserial correlation (Kerby, Comprehensive
Psychology 3, 2014). Many tests are corrected together (Holm, Scand. J. Statist. 6, 1979).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float, Int
from scipy.stats import rankdata, wilcoxon

from tera_mind.metrics.bootstrap import Interval, drawn_sums, limits, two_sided_p

#: cells grow until fewer than this many would be left
CELLS = 100
#: resamples: enough for a p-value to survive the correction of a hundred tests
RESAMPLES = 10_000
#: fewer cells than this say nothing
MIN_CELLS = 2

Values = Float[np.ndarray, "seed unit"]
#: of a method that may have another number of seeds
OtherValues = Float[np.ndarray, "other unit"]


@dataclass(frozen=True)
class PairedTest:
    """First method against second on the same places; `difference` > 0: the first is better.

    low, high: 95 % bootstrap interval of the difference; p: two-sided, of `test`; p_bootstrap: two-sided, the share of
    resamples on the other side of 0; effect: rank-biserial correlation, -1 (worse in every cell) to 1 (better in every
    cell); n: places; cells: their groups; reason: why something is None.
    """

    difference: float | None
    low: float | None
    high: float | None
    p: float | None
    test: Literal["signed-rank", "bootstrap"]
    p_bootstrap: float | None
    effect: float | None
    n: int
    cells: int
    reason: str | None = None


def spatial_cells(boxes: Int[np.ndarray, "unit 5"]) -> Int[np.ndarray, " unit"]:
    """Cell number, from 0, of each place (section, y0, y1, x0, x1): squares of 1, 2, 4, ... places a side.

    The largest squares are taken that leave at least `CELLS` cells with a place in them, or single places.
    """
    if not len(boxes):
        return np.zeros(0, np.int64)
    side = int(max((boxes[:, 2] - boxes[:, 1]).max(), (boxes[:, 4] - boxes[:, 3]).max(), 1))
    corners = boxes[:, [0, 1, 3]]
    corners = corners - corners.min(axis=0) * [0, 1, 1]
    cells = _squares(corners, side)
    while True:
        side *= 2
        larger = _squares(corners, side)
        if larger.max() + 1 < CELLS or larger.max() == cells.max():
            return cells
        cells = larger


def _squares(corners: Int[np.ndarray, "unit 3"], side: int) -> Int[np.ndarray, " unit"]:
    return np.asarray(np.unique(corners // [1, side, side], axis=0, return_inverse=True)[1].reshape(-1), np.int64)


def estimate(
    values: Values,
    cells: Int[np.ndarray, " unit"],
    real: Float[np.ndarray, " unit"] | None = None,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> tuple[Interval, float | None]:
    """Mean over places, or where `real` is given Pearson correlation with it, averaged over seeds; and its spread.

    Places where anything is not finite are left out. The interval is that of other places, the spread (standard
    deviation, None for one seed) that of other seeds. Uncomputable figures are None.
    """
    kept = _finite(values, real)
    n = int(kept.sum())
    if not n:
        return Interval(None, None, None, 0), None
    sums = _sums(values[:, kept], cells[kept], None if real is None else real[kept])
    by_seed = _statistic(sums.sum(axis=1))
    if not np.isfinite(by_seed).all():
        return Interval(None, None, None, n), None
    spread = float(by_seed.std(ddof=1)) if len(by_seed) > 1 else None
    low, high = limits(_resampled(sums, resamples, seed).mean(axis=1)) if sums.shape[1] >= MIN_CELLS else (None, None)
    return Interval(float(by_seed.mean()), low, high, n), spread


def paired_test(
    first: Values,
    second: OtherValues,
    cells: Int[np.ndarray, " unit"],
    real: Float[np.ndarray, " unit"] | None = None,
    *,
    better: Literal["higher", "lower"],
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> PairedTest:
    """Test means over places (signed-rank), or where `real` is given correlations with it (bootstrap).

    Rows are seeds of one method, which are averaged; the two may have different numbers of them. Places where anything
    is not finite are left out.
    """
    kept = _finite(first, real) & _finite(second, real)
    n, sign = int(kept.sum()), 1.0 if better == "higher" else -1.0
    kind: Literal["signed-rank", "bootstrap"] = "signed-rank" if real is None else "bootstrap"
    if not n or len(np.unique(cells[kept])) < MIN_CELLS:
        reason = f"fewer than {MIN_CELLS} groups of places that both have"
        return PairedTest(None, None, None, None, kind, None, None, n, min(n, 1), reason)
    sums = _sums(np.concatenate([first, second])[:, kept], cells[kept], None if real is None else real[kept])
    seeds, count = len(first), sums.shape[1]

    def gain(by_seed: Float[np.ndarray, "*rows seed"]) -> Float[np.ndarray, "*rows"]:
        return np.asarray(sign * (by_seed[..., :seeds].mean(axis=-1) - by_seed[..., seeds:].mean(axis=-1)))

    value = float(gain(_statistic(sums.sum(axis=1))))
    if not np.isfinite(value):
        return PairedTest(None, None, None, None, kind, None, None, n, count, "not defined: one side is constant")
    drawn = gain(_resampled(sums, resamples, seed))
    low, high = limits(drawn)
    p_bootstrap = two_sided_p(drawn)
    if real is not None:
        return PairedTest(value, low, high, p_bootstrap, kind, p_bootstrap, None, n, count)
    by_cell = gain(_statistic(sums).T)
    return PairedTest(value, low, high, _signed_rank(by_cell), kind, p_bootstrap, rank_biserial(by_cell), n, count)


def _finite(values: Values, real: Float[np.ndarray, " unit"] | None) -> np.ndarray:
    finite = np.isfinite(values).all(axis=0)
    return np.asarray(finite if real is None else finite & np.isfinite(real))


def _sums(
    values: Values, cells: Int[np.ndarray, " unit"], real: Float[np.ndarray, " unit"] | None
) -> Float[np.ndarray, "seed cell term"]:
    """What the statistic needs of each cell, summed over its places: n and x, or n, x, y, xx, yy, xy."""
    cell = np.unique(cells, return_inverse=True)[1].reshape(-1)
    ones = np.ones(values.shape[1])
    # centred first: sums of squares of numbers far from 0 lose their digits
    y = None if real is None else real - real.mean()
    rows = []
    for x in values:
        centred = x if y is None else x - x.mean()
        terms = [ones, x] if y is None else [ones, centred, y, centred**2, y**2, centred * y]
        rows.append(np.stack([np.bincount(cell, term) for term in terms], axis=1))
    return np.stack(rows)


def _statistic(sums: Float[np.ndarray, "*rows term"]) -> Float[np.ndarray, "*rows"]:
    """Mean (two terms) or Pearson correlation (six terms); NaN where it is not defined."""
    with np.errstate(invalid="ignore", divide="ignore"):
        if sums.shape[-1] == 2:
            return np.asarray(sums[..., 1] / sums[..., 0])
        n, x, y, xx, yy, xy = np.moveaxis(sums, -1, 0)
        spread = (xx - x * x / n) * (yy - y * y / n)
        # rounding leaves a constant side with a variance just above 0
        defined = spread > 1e-18 * np.maximum(xx * yy, 1e-300)
        return np.asarray(np.where(defined, (xy - x * y / n) / np.sqrt(spread), np.nan))


def _resampled(sums: Float[np.ndarray, "seed cell term"], resamples: int, seed: int) -> Float[np.ndarray, "draw seed"]:
    """The statistic of every seed, all resampled alike."""
    seeds, cells, terms = sums.shape
    columns = sums.transpose(1, 0, 2).reshape(cells, seeds * terms)
    totals = [drawn.reshape(-1, seeds, terms) for drawn in drawn_sums(columns, resamples, seed)]
    return _statistic(np.concatenate(totals))


def _signed_rank(differences: Float[np.ndarray, " cell"]) -> float:
    if not differences.any():
        return 1.0
    return float(wilcoxon(differences).pvalue)


def rank_biserial(differences: Float[np.ndarray, " pair"]) -> float:
    """Matched-pairs rank-biserial correlation, -1 to 1: ranks of gains minus ranks of losses, over all; 0 for ties."""
    moved = differences[differences != 0]
    if not len(moved):
        return 0.0
    ranks = rankdata(np.abs(moved))
    return float((ranks * np.sign(moved)).sum() / ranks.sum())


def holm(p: Sequence[float | None]) -> list[float | None]:
    """p-values corrected so that any false finding among all of them is as likely as stated; None stays None."""
    order = sorted((index for index, value in enumerate(p) if value is not None), key=lambda i: float(p[i] or 0.0))
    corrected: list[float | None] = [None] * len(p)
    largest = 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, float(p[index] or 0.0) * (len(order) - rank)))
        corrected[index] = largest
    return corrected
