"""From nuclei to figures: numbers, sizes, shapes, brightness, spacing and transcripts against the real image.

Intervals come from resampled bootstrap cells, squares of neighbouring tissue (`tera_mind.metrics.bootstrap`), with all
nuclei and windows in them: nuclei of one place are alike. Distributions are resampled as histograms by cell over at
most `ATOMS` values, so a resample costs the same for a thousand nuclei and for a million; the value itself is that of
the nuclei, not of the histogram.

A distance of two samples is never below 0 and every resample adds noise of its own, so resampled distances lie above
the distance they are resampled from, by much where that is near 0. Their spread is therefore laid around the value:
the interval is value + (quantiles of the resamples - their median), cut at 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped
from scipy.stats import ks_2samp, wasserstein_distance

from tera_mind.errors import InputError
from tera_mind.metrics.bootstrap import Interval, cell_mean, cell_pearson, drawn_sums, limits
from tera_mind.metrics.nuclei.table import QUANTITIES, NucleusTable
from tera_mind.metrics.table import Row

#: most values that a resampled distribution tells apart
ATOMS = 2048

Values = Float[np.ndarray, " unit"]
#: values and the bootstrap cell of each; two sides differ in length
Side = tuple[Float[np.ndarray, "_"], Int[np.ndarray, "_"]]
#: distinct values, rising
Atoms = Float[np.ndarray, " atom"]
Ids = Int[np.ndarray, " unit"]


@dataclass(frozen=True)
class Squares:
    """Windows, or regions: (section, y0, y1, x0, x1) in canvas px; which count, and the bootstrap cell of each."""

    boxes: Int[np.ndarray, "square 5"]
    kept: Bool[np.ndarray, " square"]
    cells: Int[np.ndarray, " square"]

    def __post_init__(self) -> None:
        if not len(self.boxes) == len(self.kept) == len(self.cells):
            raise InputError("squares need boxes, a mask and cells of one length")


@dataclass(frozen=True)
class InSquares:
    """Nuclei by square: their number, and the median of every quantity, NaN where there are none."""

    counts: Int[np.ndarray, " square"]
    medians: Mapping[str, Float[np.ndarray, " square"]]


@dataclass(frozen=True)
class Nuclei:
    """All nuclei of a method and what they are in windows and regions; `cells`: the bootstrap cell of each nucleus."""

    values: Mapping[str, Float[np.ndarray, " nucleus"]]
    matched: Bool[np.ndarray, " nucleus"]
    cells: Int[np.ndarray, " nucleus"]
    windows: InSquares
    regions: InSquares


def summarise(
    table: NucleusTable, cells: Int[np.ndarray, " nucleus"], windows: Squares, regions: Squares, pixel_um: float
) -> Nuclei:
    """A method's merged table by window and region. Raises `InputError` where `cells` is of another length."""
    if len(cells) != len(table):
        raise InputError(f"{len(table)} nuclei need as many cells, got {len(cells)}")
    values = table.quantities(pixel_um)
    counted = (in_squares(table, values, squares.boxes) for squares in (windows, regions))
    return Nuclei(values, table.matched, cells, *counted)


def members(
    table: NucleusTable, boxes: Int[np.ndarray, "square 5"]
) -> tuple[Int[np.ndarray, " member"], Int[np.ndarray, " member"]]:
    """Square and nucleus of every (square, nucleus inside it); squares may overlap."""
    squares, nuclei = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    order = np.lexsort((table.y, table.section))
    bands, band = np.unique(boxes[:, :3], axis=0, return_inverse=True)
    for index, (section, y0, y1) in enumerate(bands.tolist()):
        rows = order[slice(*np.searchsorted(table.section[order], [section, section + 1]))]
        rows = rows[slice(*np.searchsorted(table.y[rows], [y0, y1]))]
        rows = rows[np.argsort(table.x[rows], kind="stable")]
        own = np.flatnonzero(band.ravel() == index)
        first, last = (np.searchsorted(table.x[rows], boxes[own, column]) for column in (3, 4))
        size = last - first
        start = np.repeat(first - np.cumsum(size) + size, size)
        squares.append(np.repeat(own, size))
        nuclei.append(rows[start + np.arange(int(size.sum()))])
    return np.concatenate(squares), np.concatenate(nuclei)


def in_squares(table: NucleusTable, values: Mapping[str, Values], boxes: Int[np.ndarray, "square 5"]) -> InSquares:
    """Number and medians of the nuclei whose centroid lies in each square, half open."""
    square, nucleus = members(table, boxes)
    counts = np.bincount(square, minlength=len(boxes))
    return InSquares(counts, {name: _medians(square, column[nucleus], counts) for name, column in values.items()})


def _medians(square: Ids, values: Values, counts: Int[np.ndarray, " square"]) -> Float[np.ndarray, " square"]:
    """Median of the finite values of each square."""
    finite = np.isfinite(values)
    square, values = square[finite], values[finite]
    counts = np.bincount(square, minlength=len(counts))
    values = values[np.lexsort((values, square))]
    last = np.cumsum(counts)
    medians = np.full(len(counts), np.nan)
    some = counts > 0
    low, high = ((last - counts + (counts - 1 + odd) // 2)[some] for odd in (0, 1))
    medians[some] = (values[low] + values[high]) / 2
    return medians


class Draw:
    """Resamples of distributions by cell: the same draw takes the same cells of both sides where they are paired."""

    def __init__(self, resamples: int, seed: int, *, paired: bool) -> None:
        self.resamples, self.seed, self.paired = resamples, seed, paired

    def histograms(self, first: Side, second: Side) -> tuple[Atoms, list[Float[np.ndarray, "draw atom"]]]:
        """The atoms, and for each side (values and their cells) the resampled numbers of values at each atom."""
        atoms = _atoms(np.concatenate([first[0], second[0]]))
        numbers = [np.unique(cells) for _, cells in (first, second)]
        if self.paired:
            numbers = [np.union1d(*numbers)] * 2
        drawn = []
        for side, ((values, cells), own) in enumerate(zip((first, second), numbers, strict=True)):
            keys = np.searchsorted(own, cells) * len(atoms) + _nearest(atoms, values)
            counts = np.bincount(keys, minlength=len(own) * len(atoms)).reshape(len(own), len(atoms))
            seed = self.seed + (0 if self.paired else side)
            enough = self.resamples if len(own) > 1 else 0
            blocks = [np.zeros((0, len(atoms))), *drawn_sums(counts, enough, seed)]
            drawn.append(np.concatenate(blocks))
        return atoms, drawn


def _atoms(values: Values) -> Atoms:
    """The distinct values, or where they are too many, evenly spread quantiles."""
    distinct = np.unique(values)
    if len(distinct) <= ATOMS:
        return distinct
    return np.unique(np.quantile(values, (np.arange(ATOMS) + 0.5) / ATOMS))


def _nearest(atoms: Atoms, values: Values) -> Ids:
    return np.searchsorted((atoms[1:] + atoms[:-1]) / 2, values)


@dataclass(frozen=True)
class Distribution:
    """How the values of one side are distributed beside those of the other."""

    median: Interval
    ratio: Interval
    wasserstein: Interval
    ks: Interval


def compare(first: Side, second: Side, draw: Draw) -> Distribution:
    """Median of the first side's values, ratio of the medians, Wasserstein-1 and Kolmogorov-Smirnov distance.

    A side is its values and the bootstrap cell of each; values that are not finite are left out.
    """
    first, second = ((values[np.isfinite(values)], cells[np.isfinite(values)]) for values, cells in (first, second))
    (a, _), (b, _) = first, second
    n = len(a)
    none = Interval(None, None, None, n)
    if not n:
        return Distribution(none, none, none, none)
    if not len(b):
        return Distribution(Interval(float(np.median(a)), None, None, n), none, none, none)
    atoms, drawn = draw.histograms(first, second)
    rows = min(len(side) for side in drawn)
    shares = [_shares(side[:rows]) for side in drawn]
    medians = [_weighted_median(atoms, side) for side in shares]
    gap = np.abs(shares[0] - shares[1])
    real_median = float(np.median(b))
    ratio = none
    if real_median > 0:
        with np.errstate(invalid="ignore", divide="ignore"):
            ratio = Interval(float(np.median(a)) / real_median, *limits(medians[0] / medians[1]), n)
    return Distribution(
        Interval(float(np.median(a)), *limits(medians[0]), n),
        ratio,
        _around(float(wasserstein_distance(a, b)), gap[:, :-1] @ np.diff(atoms), n),
        _around(float(ks_2samp(a, b, method="asymp").statistic), gap.max(axis=1, initial=0.0), n),
    )


def _shares(counts: Float[np.ndarray, "draw atom"]) -> Float[np.ndarray, "draw atom"]:
    """Distribution functions; NaN where a resample is empty."""
    reached = np.cumsum(counts, axis=1)
    with np.errstate(invalid="ignore"):
        return np.asarray(reached / reached[:, -1:])


def _weighted_median(atoms: Atoms, shares: Float[np.ndarray, "draw atom"]) -> Float[np.ndarray, " draw"]:
    median = atoms[np.argmax(shares >= 0.5, axis=1)]
    return np.where(np.isfinite(shares[:, -1]), median, np.nan)


def _around(value: float, drawn: Float[np.ndarray, " draw"], n: int) -> Interval:
    """The spread of resampled distances laid around the distance itself (see the module's docstring)."""
    low, high = limits(drawn)
    if low is None or high is None:
        return Interval(value, None, None, n)
    centre = float(np.median(drawn[np.isfinite(drawn)]))
    return Interval(value, max(0.0, value + min(0.0, low - centre)), value + max(0.0, high - centre), n)


def nucleus_rows(
    method: str,
    found: Nuclei,
    real: Nuclei,
    windows: Squares,
    regions: Squares,
    *,
    stain: str,
    resamples: int,
    seed: int,
) -> list[Row]:
    """Every figure of a method's nuclei against those of the real image of the same place.

    The real image against itself has numbers and medians alone.
    """
    draw = Draw(resamples, seed, paired=True)
    none, apart = "no nuclei", "the same number in every square, or too few squares with transcripts"
    alike = "too few squares with nuclei in both images"
    settings = resamples, seed
    total = Interval(float(len(found.cells)), None, None, int(windows.kept.sum()))
    figures: dict[str, tuple[Interval, str]] = {"nuclei_count": (total, none)}
    if found is not real:
        ones = [(np.ones(len(side.cells)), side.cells) for side in (found, real)]
        counts = [_kept(side.windows.counts, windows) for side in (found, real)]
        in_regions = [_kept(side.regions.counts, regions) for side in (found, real)]
        cells = windows.cells[windows.kept]
        figures |= {
            "nuclei_count_ratio": (_ratio(ones[0], ones[1], draw), "no nuclei in the real image"),
            "nuclei_count_r": (cell_pearson(counts[0], counts[1], cells, *settings), apart),
            "nuclei_count_error": (cell_mean(np.abs(counts[0] - counts[1]), cells, *settings), apart),
            "nuclei_f1": (_f1(found, real, draw), none),
            "region_count_r": (
                cell_pearson(in_regions[0], in_regions[1], regions.cells[regions.kept], *settings),
                apart,
            ),
        }
    figures["nucleus_size_transcripts_r"] = (_size_and_transcripts(found, *settings), "fewer than two nuclei")
    figures |= _distributions(found, real, windows, windows, draw)
    for name in QUANTITIES if found is not real else ():
        for prefix, squares, by_square in (
            ("nucleus", windows, [side.windows for side in (found, real)]),
            ("region", regions, [side.regions for side in (found, real)]),
        ):
            medians = [_kept(side.medians[name], squares) for side in by_square]
            r = cell_pearson(medians[0], medians[1], squares.cells[squares.kept], *settings)
            figures[f"{prefix}_{name}_r"] = (r, alike)
    return [Row.of(method, metric, stain, value, reason) for metric, (value, reason) in figures.items()]


def reference_rows(
    method: str,
    found: Nuclei,
    real: Nuclei,
    windows: Squares,
    real_windows: Squares,
    *,
    area_share: float,
    stain: str,
    resamples: int,
    seed: int,
) -> list[Row]:
    """Figures of nuclei of another place, which can only be compared in distribution.

    `area_share` is that place's area by the area of the real image; its cells are resampled apart from the real ones.
    """
    draw = Draw(resamples, seed, paired=False)
    ones = [(np.ones(len(side.cells)), side.cells) for side in (found, real)]
    ratio = _ratio(ones[0], ones[1], draw, 1 / area_share)
    total = Interval(float(len(found.cells)), None, None, int(windows.kept.sum()))
    figures = {"nuclei_count": (total, "no nuclei"), "nuclei_count_ratio": (ratio, "no nuclei in the real image")}
    figures |= _distributions(found, real, windows, real_windows, draw)
    return [Row.of(method, metric, stain, value, reason) for metric, (value, reason) in figures.items()]


def _kept(column: Shaped[np.ndarray, " square"], squares: Squares) -> Values:
    return np.asarray(column[squares.kept], np.float64)


def _distributions(
    found: Nuclei, real: Nuclei, windows: Squares, real_windows: Squares, draw: Draw
) -> dict[str, tuple[Interval, str]]:
    """Numbers a window and every quantity of nuclei, compared as distributions; the real image's medians alone."""
    figures: dict[str, tuple[Interval, str]] = {}
    none = "no nuclei"
    for name in QUANTITIES:
        same = compare((found.values[name], found.cells), (real.values[name], real.cells), draw)
        figures[f"nucleus_{name}_median"] = (same.median, none)
        if found is not real:
            figures[f"nucleus_{name}_ratio"] = (same.ratio, "no nuclei, or a median of 0 in the real image")
            figures[f"nucleus_{name}_wasserstein"] = (same.wasserstein, none)
            figures[f"nucleus_{name}_ks"] = (same.ks, none)
    if found is not real:
        sides = [
            (_kept(side.windows.counts, squares), squares.cells[squares.kept])
            for side, squares in ((found, windows), (real, real_windows))
        ]
        counts = compare(sides[0], sides[1], draw)
        figures["nuclei_count_wasserstein"] = (counts.wasserstein, "no window with transcripts")
        figures["nuclei_count_ks"] = (counts.ks, "no window with transcripts")
    return figures


def _ratio(first: Side, second: Side, draw: Draw, factor: float = 1.0) -> Interval:
    """Number of the first side's nuclei by the second's, times a factor."""
    n = len(first[0])
    if not len(second[0]):
        return Interval(None, None, None, n)
    _, (a, b) = draw.histograms(first, second)
    rows = min(len(a), len(b))
    with np.errstate(invalid="ignore", divide="ignore"):
        drawn = a[:rows].sum(axis=1) / b[:rows].sum(axis=1) * factor
    return Interval(n / len(second[0]) * factor, *limits(drawn), n)


def _size_and_transcripts(found: Nuclei, resamples: int, seed: int) -> Interval:
    """Correlation over nuclei of log area and log (1 + transcripts): larger nuclei hold more."""
    area, transcripts = found.values["area"], found.values["transcripts"]
    return cell_pearson(np.log(area), np.log1p(transcripts), found.cells, resamples, seed)


def _f1(found: Nuclei, real: Nuclei, draw: Draw) -> Interval:
    """2 matched / (found + real), with cells resampled; None without any nucleus."""
    total = len(found.cells) + len(real.cells)
    if not total:
        return Interval(None, None, None, 0)
    # atom 1 holds the matched nuclei, atom 0 the others; the real side needs its number alone
    sides = (found.matched.astype(np.float64), found.cells), (np.zeros(len(real.cells)), real.cells)
    atoms, (own, other) = draw.histograms(*sides)
    hits = own @ (atoms == 1).astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        drawn = 2 * hits / (own.sum(axis=1) + other.sum(axis=1))
    return Interval(2 * float(found.matched.sum()) / total, *limits(drawn), len(real.cells))


def count_error(found: Nuclei, real: Nuclei, windows: Squares) -> Values:
    """Error of the number of nuclei in every window that counts, for paired differences."""
    return np.asarray(np.abs(_kept(found.windows.counts, windows) - _kept(real.windows.counts, windows)))
