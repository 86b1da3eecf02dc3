"""Percentile bootstrap intervals: how far a figure would move with other patches, windows or border segments.

Neighbouring patches are alike, so resampling them one by one makes intervals too narrow: the functions with `cells`
resample whole squares of neighbours (a block bootstrap: Hall, Stoch. Process. Appl. 20, 1985). They need sums by cell
alone, so their cost hardly grows with the number of patches.

Every draw is keyed by (seed, units), so figures over the same units are resampled alike - paired by construction -
and do not depend on the order in which they are computed. Efron, Ann. Statist. 7 (1979).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, Shaped

from tera_mind.metrics.cells import CellIds, sum_by_cell

#: units drawn at once: bounds the memory of a resampled table
_DRAWN_AT_ONCE = 4_000_000


class Interval(NamedTuple):
    """A figure with its 95 % bootstrap interval over `n` units; None where it cannot be computed."""

    value: float | None
    low: float | None
    high: float | None
    n: int


class Difference(NamedTuple):
    """A paired difference with its 95 % interval and two-sided p value over `n` pairs; None where there is none."""

    value: float | None
    low: float | None
    high: float | None
    p: float | None
    n: int


def draws(units: int, resamples: int, seed: int) -> Iterator[Int[np.ndarray, "draw unit"]]:
    """Index tables of resamples with replacement, in blocks of bounded size, `resamples` rows in all."""
    random = np.random.default_rng([seed, units])
    block = max(1, _DRAWN_AT_ONCE // max(units, 1))
    for start in range(0, resamples, block):
        yield random.integers(0, units, size=(min(block, resamples - start), units))


def limits(drawn: Float[np.ndarray, " draw"]) -> tuple[float | None, float | None]:
    """Central 95 % of the finite draws."""
    drawn = drawn[np.isfinite(drawn)]
    if not len(drawn):
        return None, None
    low, high = np.percentile(drawn, [2.5, 97.5])
    return float(low), float(high)


def drawn_sums(
    sums: Shaped[np.ndarray, "cell column"], resamples: int, seed: int
) -> Iterator[Float[np.ndarray, "draw column"]]:
    """Sums of resampled cells, in blocks of draws; tables of as many cells are resampled alike."""
    for index in draws(len(sums), resamples, seed):
        count, cells = index.shape
        keys = (index + np.arange(count)[:, None] * cells).ravel()
        times = np.bincount(keys, minlength=count * cells).reshape(count, cells)
        yield times.astype(np.float64) @ sums


def sums_interval(
    sides: tuple[Shaped[np.ndarray, "_ _"], ...],
    statistic: Callable[..., Float[np.ndarray, " draw"]],
    resamples: int,
    seed: int,
    *,
    n: int,
) -> Interval:
    """Interval of a statistic of sums by cell; `statistic` takes the (draw, column) sums of every side.

    `n` is the number of units behind the sums, for the record.
    """
    if not all(len(side) for side in sides):
        return Interval(None, None, None, 0)
    value = float(statistic(*(side.sum(axis=0, dtype=np.float64)[None] for side in sides))[0])
    if not np.isfinite(value):
        return Interval(None, None, None, n)
    drawn = _drawn(sides, statistic, resamples, seed)
    return Interval(value, *limits(drawn), n)


def _drawn(
    sides: tuple[Shaped[np.ndarray, "_ _"], ...],
    statistic: Callable[..., Float[np.ndarray, " draw"]],
    resamples: int,
    seed: int,
) -> Float[np.ndarray, " draw"]:
    """The statistic of every resample; none where there is a single cell, whose resamples are all alike."""
    if resamples < 1 or min(len(side) for side in sides) < 2:
        return np.zeros(0)
    columns = [np.concatenate(list(drawn_sums(side, resamples, seed))) for side in sides]
    return statistic(*columns)


def _quotient(totals: Float[np.ndarray, "draw 2"]) -> Float[np.ndarray, " draw"]:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(totals[:, 1] > 0, totals[:, 0] / totals[:, 1], np.nan)


def _mean_sums(values: Float[np.ndarray, " unit"], cells: CellIds) -> tuple[Float[np.ndarray, "cell 2"], int]:
    """Sum and number of the finite values by cell, and their number in all."""
    kept = np.isfinite(values)
    own = cells[kept]
    columns = (np.asarray(values[kept], np.float64), np.ones(len(own)))
    return np.stack([sum_by_cell(column, own).sums for column in columns], axis=1), len(own)


def cell_mean(values: Float[np.ndarray, " unit"], cells: CellIds, resamples: int, seed: int) -> Interval:
    """Interval of the mean by resampled cells; units that are not finite are left out and not counted in `n`."""
    sums, n = _mean_sums(values, cells)
    return sums_interval((sums,), _quotient, resamples, seed, n=n)


def cell_pearson(
    first: Float[np.ndarray, " unit"], second: Float[np.ndarray, " unit"], cells: CellIds, resamples: int, seed: int
) -> Interval:
    """Interval of the Pearson correlation by resampled cells; pairs that are not finite are left out."""
    kept = np.isfinite(first) & np.isfinite(second)
    x, y = (np.asarray(values[kept], np.float64) for values in (first, second))
    # moments about the means lose no digits
    x, y = (values - values.mean() if len(values) else values for values in (x, y))
    moments = np.stack([sum_by_cell(m, cells[kept]).sums for m in (np.ones(len(x)), x, y, x * x, y * y, x * y)], axis=1)
    return sums_interval((moments,), _pearson_of_moments, resamples, seed, n=len(x))


def _pearson_of_moments(totals: Float[np.ndarray, "draw 6"]) -> Float[np.ndarray, " draw"]:
    n, x, y, xx, yy, xy = totals.T
    spreads = n * xx - x * x, n * yy - y * y
    # what rounding leaves of a resample without any spread is no variance
    varies = (spreads[0] > 1e-12 * n * xx) & (spreads[1] > 1e-12 * n * yy)
    with np.errstate(invalid="ignore", divide="ignore"):
        r = (n * xy - x * y) / np.sqrt(spreads[0] * spreads[1])
    return np.where(varies, np.clip(r, -1, 1), np.nan)


def cell_difference(
    first: Float[np.ndarray, " unit"], second: Float[np.ndarray, " unit"], cells: CellIds, resamples: int, seed: int
) -> Difference:
    """Mean of first - second over pairs with both, with interval and p value from the same resampled cells."""
    sums, n = _mean_sums(np.asarray(first, np.float64) - np.asarray(second, np.float64), cells)
    if not n:
        return Difference(None, None, None, None, 0)
    value = float(_quotient(sums.sum(axis=0)[None])[0])
    drawn = _drawn((sums,), _quotient, resamples, seed)
    return Difference(value, *limits(drawn), two_sided_p(drawn), n)


def two_sided_p(drawn: Float[np.ndarray, " draw"]) -> float | None:
    """Twice the share of resampled differences beyond 0, at most 1 and never 0; None without resamples.

    (k + 1) / (R + 1) with k draws of R on the rarer side: Davison and Hinkley, Bootstrap Methods (1997), chapter 4.
    """
    drawn = drawn[np.isfinite(drawn)]
    if not len(drawn):
        return None
    rarer = min(int((drawn <= 0).sum()), int((drawn >= 0).sum()))
    return min(1.0, 2 * (rarer + 1) / (len(drawn) + 1))
