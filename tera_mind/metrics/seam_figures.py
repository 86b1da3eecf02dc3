"""Seams: does anything happen at the lines of a square grid (borders of patches or tiles) that no other line shows?

Three measures, both axes together; each is about 1 where borders look like the rest.

- gradient index: mean |gradient| across borders by that at all other lines. Sees rough borders; a faint step drowns in
  the texture around it, and borders smoothed over give less than 1.
- coherent step: the same ratio of |step| (`tera_mind.metrics.seam_sums`). Noise and texture average out on a stretch,
  a step in brightness does not. The mean, not the root mean square: a few steep nuclei would rule the latter.
- grid spectrum: power of the |gradient| profile at the grid's frequency and harmonics by what the frequencies beside
  give. Sees any pattern of that period, wherever in the period it lies, rough or smooth; grows with the image.

Real tissue has no grid: its own figures on the same lines, and the figures of shifted grids (the null), are what a
seamless volume must fall into.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Shaped

from tera_mind.metrics.bootstrap import Interval, drawn_sums, limits
from tera_mind.metrics.seam_sums import SeamGrid, SeamSums

#: a seam may be a few pixels wide: grids shifted by so little are no null
NEAR_PX = 2

Ratio = Callable[[Float[np.ndarray, "draw column"]], Float[np.ndarray, "draw shift"]]


class SeamFigure(NamedTuple):
    """A measure with its interval over resampled cells (`n` of them), and what other grids give.

    shifts: the measure for every shift of `SeamGrid.shifts_px` (for the spectrum: at every offset of `SeamGrid.offsets`
    from the harmonics), with the limits of its interval, NaN where there is none. null: mean and central 95 % of the
    shifts farther than `NEAR_PX` from the grid (of the offsets but 0), `n` of them.
    """

    estimate: Interval
    null: Interval
    shifts: Float[np.ndarray, " shift"]
    low: Float[np.ndarray, " shift"]
    high: Float[np.ndarray, " shift"]


def gradient_index(found: SeamSums, grid: SeamGrid, resamples: int, seed: int) -> SeamFigure:
    """Mean |gradient| at borders by that at all other lines, 0 and up."""
    return _line_figure(found, grid, slice(0, 2), resamples, seed)


def coherent_step(found: SeamSums, grid: SeamGrid, resamples: int, seed: int) -> SeamFigure:
    """Mean |coherent step| at borders by that at all other lines, 0 and up."""
    return _line_figure(found, grid, slice(2, 4), resamples, seed)


def grid_spectrum(found: SeamSums, grid: SeamGrid, resamples: int, seed: int) -> SeamFigure:
    """Power at the grid's harmonics by what chance gives, mean over harmonics and axes, 0 and up.

    Each cell's profile loses its mean. A pattern with the grid's period has the same phase in every cell, so the cells'
    transforms are added before the power is taken; chance adds powers, and is measured at the frequencies beside each
    harmonic. The spread of the null is large: a mean over so few frequencies is no steady figure. No value where cells
    are less than three grid squares wide.
    """
    pixels = found.lines[:, -1, :2].astype(np.float64)
    mean = pixels[:, 0] / np.maximum(pixels[:, 1], 1)
    waves = found.waves[:, :, 0] - mean[:, None, None, None] * found.waves[:, :, 1]
    table = np.stack([waves.real, waves.imag, np.square(np.abs(waves))], axis=1)
    beside = grid.offsets != 0

    def ratio(totals: Float[np.ndarray, "draw column"], repeats: float) -> Float[np.ndarray, "draw offset"]:
        real, imaginary, power = np.moveaxis(totals.reshape(len(totals), *table.shape[1:]), 1, 0)
        together = real**2 + imaginary**2 - repeats * power
        with np.errstate(invalid="ignore", divide="ignore"):
            chance = power[..., beside].sum(axis=-1, keepdims=True) / beside.sum()
            return np.asarray(np.maximum((together / chance).mean(axis=(1, 2)), 0.0))

    at = int(np.flatnonzero(~beside)[0])
    # a cell drawn twice agrees with itself, which adds its power once to what resamples give
    return _figure(
        table.reshape(len(table), -1),
        lambda t: ratio(t, 0.0),
        at,
        beside,
        resamples,
        seed,
        drawn=lambda t: ratio(t, 1.0),
    )


def _line_figure(found: SeamSums, grid: SeamGrid, columns: slice, resamples: int, seed: int) -> SeamFigure:
    table = found.lines[:, :, columns]

    def ratio(totals: Float[np.ndarray, "draw column"]) -> Float[np.ndarray, "draw shift"]:
        totals = totals.reshape(len(totals), *table.shape[1:])
        border, inside = totals[:, :-1], totals[:, -1:] - totals[:, :-1]
        with np.errstate(invalid="ignore", divide="ignore"):
            index = (border[..., 0] / border[..., 1]) / (inside[..., 0] / inside[..., 1])
        return np.where((border[..., 1] > 0) & (inside[..., 0] > 0), index, np.nan)

    shifts = grid.shifts_px
    far = np.minimum(shifts, grid.grid_px - shifts) > NEAR_PX
    return _figure(table.reshape(len(table), -1), ratio, 0, far, resamples, seed)


def _figure(
    table: Shaped[np.ndarray, "cell column"],
    ratio: Ratio,
    at: int,
    null: Bool[np.ndarray, " shift"],
    resamples: int,
    seed: int,
    drawn: Ratio | None = None,
) -> SeamFigure:
    """A ratio of sums by cell for every shift, `drawn` that of resamples; `at` is the grid's own place among them."""
    values = ratio(table.sum(axis=0, dtype=np.float64)[None])[0]
    low, high = np.full((2, len(values)), np.nan)
    if len(table) > 1 and resamples > 0:
        of_draws = ratio if drawn is None else drawn
        found = np.concatenate([of_draws(totals) for totals in drawn_sums(table, resamples, seed)])
        for shift in np.flatnonzero(np.isfinite(values)):
            ends = limits(found[:, shift])
            low[shift], high[shift] = (np.nan if end is None else end for end in ends)
    estimate = Interval(_known(values[at]), _known(low[at]), _known(high[at]), len(table))
    others = values[null & np.isfinite(values)]
    spread = Interval(None, None, None, len(others))
    if len(others):
        spread = Interval(float(others.mean()), *limits(others), len(others))
    return SeamFigure(estimate, spread, values, low, high)


def _known(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
