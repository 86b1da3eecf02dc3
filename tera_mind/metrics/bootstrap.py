"""Percentile bootstrap intervals: how far a figure would move with other patches, windows or border segments.

Every draw is keyed by (seed, units), so figures over the same units are resampled alike - paired by construction -
and do not depend on the order in which they are computed. Efron, Ann. Statist. 7 (1979).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, Shaped

#: units drawn at once: bounds the memory of a resampled table
_DRAWN_AT_ONCE = 4_000_000


class Interval(NamedTuple):
    """A figure with its 95 % bootstrap interval over `n` units; None where it cannot be computed."""

    value: float | None
    low: float | None
    high: float | None
    n: int


def draws(units: int, resamples: int, seed: int) -> Iterator[Int[np.ndarray, "draw unit"]]:
    """Index tables of resamples with replacement, in blocks of bounded size, `resamples` rows in all."""
    random = np.random.default_rng([seed, units])
    block = max(1, _DRAWN_AT_ONCE // max(units, 1))
    for start in range(0, resamples, block):
        yield random.integers(0, units, size=(min(block, resamples - start), units))


def interval(
    values: Shaped[np.ndarray, "unit ..."],
    statistic: Callable[[Shaped[np.ndarray, "draw unit ..."]], Float[np.ndarray, " draw"]],
    resamples: int,
    seed: int,
) -> Interval:
    """Interval of a statistic of units, each a number or a row of numbers that stay together.

    `statistic` reduces axis 1 of (draw, unit, ...) to (draw,). Draws on which it is not finite are left out.
    """
    units = len(values)
    if units == 0:
        return Interval(None, None, None, 0)
    value = float(statistic(values[None])[0])
    if not np.isfinite(value):
        return Interval(None, None, None, units)
    if units < 2 or resamples < 1:
        return Interval(value, None, None, units)
    return Interval(value, *limits(resampled(values, statistic, resamples, seed)), units)


def resampled(
    values: Shaped[np.ndarray, "unit ..."],
    statistic: Callable[[Shaped[np.ndarray, "draw unit ..."]], Float[np.ndarray, " draw"]],
    resamples: int,
    seed: int,
) -> Float[np.ndarray, " draw"]:
    """The statistic of every resample."""
    return np.concatenate([statistic(values[index]) for index in draws(len(values), resamples, seed)])


def limits(drawn: Float[np.ndarray, " draw"]) -> tuple[float | None, float | None]:
    """Central 95 % of the finite draws."""
    drawn = drawn[np.isfinite(drawn)]
    if not len(drawn):
        return None, None
    low, high = np.percentile(drawn, [2.5, 97.5])
    return float(low), float(high)


def mean_interval(values: Float[np.ndarray, " unit"], resamples: int, seed: int) -> Interval:
    """Interval of the mean; units that are not finite are left out and not counted in `n`."""
    kept = np.asarray(values, np.float64)
    return interval(kept[np.isfinite(kept)], _mean, resamples, seed)


def _mean(drawn: Float[np.ndarray, "draw unit"]) -> Float[np.ndarray, " draw"]:
    return np.asarray(drawn.mean(axis=1))


def _median(drawn: Float[np.ndarray, "draw unit"]) -> Float[np.ndarray, " draw"]:
    return np.asarray(np.median(drawn, axis=1))


def median_interval(values: Float[np.ndarray, " unit"], resamples: int, seed: int) -> Interval:
    """Interval of the median."""
    return interval(values, _median, resamples, seed)


def median_ratio(
    values: Float[np.ndarray, " unit"], reference: Float[np.ndarray, " other"], resamples: int, seed: int
) -> Interval:
    """Interval of median(values) / median(reference), the two resampled independently."""
    if not len(values) or not len(reference):
        return Interval(None, None, None, len(values))
    value = float(np.median(values) / np.median(reference))
    first = resampled(values, _median, resamples, seed)
    return Interval(value, *limits(first / resampled(reference, _median, resamples, seed + 1)), len(values))


def pearson(pairs: Float[np.ndarray, "draw unit 2"]) -> Float[np.ndarray, " draw"]:
    """Pearson correlation of the two columns; NaN where one of them is constant."""
    centred = pairs - pairs.mean(axis=1, keepdims=True)
    spread = np.sqrt((centred**2).sum(axis=1).prod(axis=-1))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(spread > 0, centred.prod(axis=-1).sum(axis=1) / spread, np.nan)


def ratio_of_sums(pairs: Float[np.ndarray, "draw unit 2"]) -> Float[np.ndarray, " draw"]:
    """Sum of the first column over the sum of the second; NaN where that is 0."""
    sums = pairs.sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(sums[:, 1] > 0, sums[:, 0] / sums[:, 1], np.nan)
