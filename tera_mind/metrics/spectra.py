"""Distances of distributions that need no network: power spectra and grey-level histograms, per stain.

Both are sums over the squares of a cell, so they add over blocks. The spectrum says which sizes of structure are
missing or made up, wherever they lie; the histogram says the same of brightness.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from jaxtyping import Float, Int, UInt8
from scipy import fft

from tera_mind.errors import InputError
from tera_mind.geometry import Box
from tera_mind.metrics.bootstrap import Interval, sums_interval
from tera_mind.metrics.cells import CellIds, CellSums, sum_by_cell
from tera_mind.metrics.fidelity import ROUNDING_MSE, cut

#: frequency bands of the distance
BANDS = 8
LEVELS = 256
#: the Hann window spreads every frequency over its two neighbours: the lowest would hold the patch's slope
FIRST_RADIUS = 1.5
_BATCH = 64

Spectrum = Float[np.ndarray, " frequency"]


def frequencies(side_px: int, pixel_um: float) -> Spectrum:
    """Cycles per um of the bins 0 .. side / 2 of `power_sums`."""
    return np.arange(side_px // 2 + 1) / (side_px * pixel_um)


def band_limits(side_px: int, pixel_um: float) -> Float[np.ndarray, " limit"]:
    """Band limits in cycles per um: from 1.5 waves a square to the Nyquist frequency, even in the logarithm."""
    return np.geomspace(FIRST_RADIUS / side_px, side_px // 2 / side_px, BANDS + 1) / pixel_um


@cache
def _hann(side: int) -> Float[np.ndarray, "y x"]:
    """Hann window of unit power: white noise of variance v gets the spectrum v."""
    line = 0.5 - 0.5 * np.cos(2 * np.pi * (np.arange(side) + 0.5) / side)
    window = np.outer(line, line)
    return np.asarray(window / np.sqrt(np.square(window).sum()))


@cache
def _rings(side: int) -> tuple[Int[np.ndarray, "y half"], Int[np.ndarray, "y half"], Float[np.ndarray, " ring"]]:
    """Of the half plane of a real transform: each mode's rounded radius, how often it counts, and modes a ring."""
    ky, kx = np.abs(fft.fftfreq(side, 1 / side)), fft.rfftfreq(side, 1 / side)
    ring = np.rint(np.hypot(ky[:, None], kx[None])).astype(np.int64)
    twice = np.broadcast_to(np.where((kx == 0) | (kx == side / 2), 1, 2), ring.shape)
    modes = np.bincount(ring.ravel(), twice.ravel(), minlength=side)[: side // 2 + 1]
    return ring, twice, modes


def power_sums(image: UInt8[np.ndarray, "y x"], boxes: list[Box], cells: CellIds, side_px: int) -> CellSums:
    """Radially averaged power spectra of equal squares, added by cell: (cell, side / 2 + 2).

    Columns are the rings of 0 .. side / 2 waves a square, in squared grey levels, then the number of squares. Each
    square loses its mean and is weighed with a Hann window. `boxes` are in the pixels of the image, of one even side.
    """
    if side_px % 2 or side_px < 4 or any((box.height, box.width) != (side_px, side_px) for box in boxes):
        raise InputError(
            f"power spectra need squares of an even side of 4 px or more, got {boxes[:1]} for {side_px} px"
        )
    window = _hann(side_px)
    ring, twice, modes = _rings(side_px)
    rows = np.ones((len(boxes), side_px // 2 + 2))
    for start in range(0, len(boxes), _BATCH):
        squares = cut(image, boxes[start : start + _BATCH]).astype(np.float64)
        squares -= np.einsum("nyx,yx->n", squares, window)[:, None, None] / window.sum()
        waves = fft.rfft2(squares * window)
        power = (np.square(waves.real) + np.square(waves.imag)) * twice
        for row, plane in zip(rows[start : start + _BATCH], power, strict=True):
            row[:-1] = np.bincount(ring.ravel(), plane.ravel(), minlength=side_px)[: side_px // 2 + 1] / modes
    return sum_by_cell(rows, cells)


def mean_spectrum(sums: CellSums) -> Spectrum:
    """Mean power of the squares at `frequencies`, in squared grey levels."""
    total = sums.sums.sum(axis=0)
    return np.asarray(total[:-1] / total[-1])


def _decibels(totals: Float[np.ndarray, "draw column"]) -> Float[np.ndarray, "draw band"]:
    """Power of the bands in dB; below the power of rounding to grey levels nothing is told apart."""
    radii = np.arange(totals.shape[1] - 1)
    side = 2 * (totals.shape[1] - 2)
    limits = band_limits(side, 1.0) * side
    band = np.searchsorted(limits, radii, side="right") - 1
    band[-1] = BANDS - 1
    modes = _rings(side)[2]
    with np.errstate(invalid="ignore", divide="ignore"):
        power = totals[:, :-1] / totals[:, -1:]
    # small squares have bands without a ring
    found = [power[:, band == b] @ modes[band == b] / modes[band == b].sum() for b in range(BANDS) if (band == b).any()]
    return np.asarray(10 * np.log10(np.maximum(np.stack(found, axis=1), ROUNDING_MSE)))


def spectrum_distance(found: CellSums, real: CellSums, resamples: int, seed: int) -> Interval:
    """Root mean square over bands of the difference of the spectra in dB, 0 (alike) and up; lower is better.

    Cells are resampled, the same ones on both sides where both have the same number. A
    distance cannot be negative, so the interval of two alike images lies above 0.
    """
    if not len(found.cells) or not len(real.cells):
        return Interval(None, None, None, 0)

    def distance(first: Float[np.ndarray, "draw c"], second: Float[np.ndarray, "draw c"]) -> Float[np.ndarray, " draw"]:
        return np.asarray(np.sqrt(np.square(_decibels(first) - _decibels(second)).mean(axis=1)))

    squares = int(found.sums[:, -1].sum())
    return sums_interval((found.sums, real.sums), distance, resamples, seed, n=squares)


def histogram_sums(image: UInt8[np.ndarray, "y x"], boxes: list[Box], cells: CellIds) -> CellSums:
    """Number of pixels of each grey level in boxes of the image, added by cell: int64 (cell, 256)."""
    rows = [np.bincount(image[box.slices()].ravel(), minlength=LEVELS) for box in boxes]
    return sum_by_cell(np.array(rows, np.int64).reshape(-1, LEVELS), cells)


def histogram_wasserstein(found: CellSums, real: CellSums, resamples: int, seed: int) -> Interval:
    """Wasserstein-1 distance of two histograms in grey levels, 0 to 255; lower is better. Intervals as above."""
    if not len(found.cells) or not len(real.cells):
        return Interval(None, None, None, 0)

    def distance(first: Float[np.ndarray, "draw c"], second: Float[np.ndarray, "draw c"]) -> Float[np.ndarray, " draw"]:
        shares = [totals / totals.sum(axis=1, keepdims=True) for totals in (first, second)]
        return np.asarray(np.abs(np.cumsum(shares[0] - shares[1], axis=1)).sum(axis=1))

    sides = (found.sums.astype(np.float64), real.sums.astype(np.float64))
    return sums_interval(sides, distance, resamples, seed, n=int(found.sums.sum()))
