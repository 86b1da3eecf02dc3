"""From measurements to figures: rows with intervals, paired differences, acceptance lines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Shaped
from scipy.stats import wasserstein_distance

from tera_mind.metrics import frechet
from tera_mind.metrics.bootstrap import (
    Interval,
    interval,
    mean_interval,
    median_interval,
    median_ratio,
    pearson,
    ratio_of_sums,
)
from tera_mind.metrics.measure import Measured, WindowNuclei
from tera_mind.metrics.seams import SeamIndex, seam_index
from tera_mind.metrics.table import PATCH_METRICS, Criterion, Paired, Row, find_row

CEILING = "real_vs_real"
REAL = "real"


@dataclass(frozen=True)
class Resampling:
    """Number of bootstrap resamples and their seed."""

    resamples: int
    seed: int


def patch_rows(method: str, found: Measured, stains: Sequence[str], draw: Resampling) -> list[Row]:
    """Means over patches of the paired scores."""
    rows = []
    for metric in PATCH_METRICS:
        for stain in stains:
            mean = mean_interval(found.scores[metric, stain], draw.resamples, draw.seed)
            rows.append(Row.of(method, metric, stain, mean, "no patch has transcripts and contrast"))
    return rows


def seam_rows(method: str, stain: str, found: SeamIndex) -> list[Row]:
    """The seam index, and what the same image gives on grids that are no patch grid (all shifts but 0)."""
    reason = "no patch border inside the box, or an image without any gradient"
    others = found.phases[1:][np.isfinite(found.phases[1:])]
    null = Interval(None, None, None, len(others))
    if len(others):
        low, high = np.percentile(others, [2.5, 97.5])
        null = Interval(float(others.mean()), float(low), float(high), len(others))
    return [
        Row.of(method, "seam_index", stain, found.estimate, reason),
        Row.of(method, "seam_null", stain, null, reason),
    ]


def seam_indices(
    measured: Mapping[str, Measured], stains: Sequence[str], draw: Resampling
) -> dict[tuple[str, str], SeamIndex]:
    """Seam index by method and stain, for every method that has an image of the test box."""
    return {
        (method, stain): seam_index(found.segments[stain], found.phases[stain], draw.resamples, draw.seed)
        for method, found in measured.items()
        for stain in stains
        if stain in found.segments
    }


def frechet_rows(measured: Mapping[str, Measured], stains: Sequence[str]) -> list[Row]:
    """Every method's tiles, and the real tiles of the ceiling box, against the real tiles of the test box."""
    rows = []
    for stain in stains:
        real, ceiling = (measured[method].features[stain] for method in (REAL, CEILING))
        tiles = min(len(real), len(ceiling))
        reason = f"needs at least {frechet.MIN_TILES} tiles of tissue on each side, has {len(ceiling)} and {len(real)}"
        space = None
        if tiles >= frechet.MIN_TILES:
            space = frechet.feature_space(np.concatenate([real, ceiling]), frechet.components_for(tiles))
        for method, found in measured.items():
            if method != REAL:
                other = found.features[stain]
                value = None if space is None else frechet.frechet_distance(other, real, space)
                n = min(len(other), len(real))
                rows.append(Row.of(method, "frechet", stain, Interval(value, None, None, n), reason))
    return rows


def nucleus_rows(
    method: str,
    found: WindowNuclei,
    real: WindowNuclei,
    kept: Bool[np.ndarray, " window"],
    *,
    stain: str,
    draw: Resampling,
) -> list[Row]:
    """Numbers and areas against the real image of the same windows (`kept`: those with transcripts)."""
    counts = np.stack([found.counts, real.counts], axis=1).astype(np.float64)
    areas = np.stack([found.areas, real.areas], axis=1)[kept]
    both = areas[np.isfinite(areas).all(axis=1)]
    settings = draw.resamples, draw.seed
    error = np.abs(counts[kept, 0] - counts[kept, 1])
    none = "no nuclei"
    ratio = interval(counts, ratio_of_sums, *settings)
    if ratio.value is not None:  # overlapping windows may count a nucleus twice: the spread alone is theirs
        ratio = ratio._replace(value=len(found.area_um2) / len(real.area_um2))
    figures = {
        "nuclei_count": (_plain(float(len(found.area_um2)), len(found.counts)), none),
        "nuclei_count_r": (interval(counts[kept], pearson, *settings), "the same number in every window"),
        "nuclei_count_ratio": (ratio, "no nuclei in the real image"),
        "nuclei_count_error": (mean_interval(error, *settings), "no window with transcripts"),
        "nuclei_count_wasserstein": (_wasserstein(counts[kept, 0], counts[kept, 1]), "no window"),
        "nucleus_area_median_um2": (median_interval(found.area_um2, *settings), none),
        "nucleus_area_ratio": (median_ratio(found.area_um2, real.area_um2, *settings), none),
        "nucleus_area_r": (interval(both, pearson, *settings), "too few windows with nuclei in both images"),
        "nucleus_area_wasserstein": (_wasserstein(found.area_um2, real.area_um2), none),
    }
    if method == REAL:
        figures = {metric: figures[metric] for metric in ("nuclei_count", "nucleus_area_median_um2")}
    return [Row.of(method, metric, stain, value, reason) for metric, (value, reason) in figures.items()]


def ceiling_nucleus_rows(
    ceiling: WindowNuclei,
    real: WindowNuclei,
    kept: Bool[np.ndarray, " window"],
    *,
    area_share: float,
    stain: str,
    draw: Resampling,
) -> list[Row]:
    """Real nuclei of the ceiling box against those of the test box; `area_share` is the ceiling box's area by its."""
    settings = draw.resamples, draw.seed
    total, reference = len(ceiling.area_um2), len(real.area_um2) * area_share
    ratio = _plain(total / reference, len(ceiling.counts)) if reference else Interval(None, None, None, 0)
    none = "no nuclei"
    figures = {
        "nuclei_count": (_plain(float(total), len(ceiling.counts)), none),
        "nuclei_count_ratio": (ratio, "no nuclei in the real image"),
        "nuclei_count_wasserstein": (_wasserstein(ceiling.counts, real.counts[kept]), "no window"),
        "nucleus_area_median_um2": (median_interval(ceiling.area_um2, *settings), none),
        "nucleus_area_ratio": (median_ratio(ceiling.area_um2, real.area_um2, *settings), none),
        "nucleus_area_wasserstein": (_wasserstein(ceiling.area_um2, real.area_um2), none),
    }
    return [Row.of(CEILING, metric, stain, value, reason) for metric, (value, reason) in figures.items()]


def _plain(value: float, n: int) -> Interval:
    return Interval(value, None, None, n)


def _wasserstein(first: Shaped[np.ndarray, " a"], second: Shaped[np.ndarray, " b"]) -> Interval:
    if not len(first) or not len(second):
        return Interval(None, None, None, len(first))
    return _plain(float(wasserstein_distance(first, second)), len(first))


def paired_rows(
    measured: Mapping[str, Measured],
    controls: Sequence[str],
    stains: Sequence[str],
    nuclei: tuple[str, Bool[np.ndarray, " window"]] | None,
    draw: Resampling,
) -> list[Paired]:
    """Generated against each control on the same patches and windows; positive: generated is better.

    `nuclei` names the stain in which nuclei were sought and the windows that count.
    """
    rows = []
    for control in controls:
        for metric in PATCH_METRICS:
            for stain in stains:
                gain = measured["generated"].scores[metric, stain] - measured[control].scores[metric, stain]
                rows.append(_paired(metric, stain, control, gain, draw))
        if nuclei is not None:
            stain, kept = nuclei
            errors = {method: _count_error(measured, method)[kept] for method in ("generated", control)}
            gain = errors[control] - errors["generated"]
            rows.append(_paired("nuclei_count_error", stain, control, gain, draw))
    return rows


def _count_error(measured: Mapping[str, Measured], method: str) -> Float[np.ndarray, " window"]:
    found, real = measured[method].nuclei, measured[REAL].nuclei
    assert found is not None
    assert real is not None
    return np.asarray(np.abs(found.counts - real.counts), np.float64)


def _paired(metric: str, stain: str, control: str, gain: Float[np.ndarray, " unit"], draw: Resampling) -> Paired:
    value, low, high, n = mean_interval(gain, draw.resamples, draw.seed)
    return Paired(metric, stain, control, value, low, high, n, None if value is not None else "no patch or window")


def acceptance(table: list[Row], paired: list[Paired], stains: Sequence[str], stain_of_nuclei: str) -> list[Criterion]:
    """The lines a generated volume is judged by; one that cannot be computed is not passed."""
    lines = [
        Criterion(
            f"{row.metric} {row.stain} beats shuffled",
            row.difference,
            "interval above 0",
            row.low is not None and row.low > 0,
        )
        for row in paired
        if row.control == "shuffled"
    ]
    if not lines:
        lines.append(Criterion("paired scores beat shuffled", None, "needs a volume with shuffled genes", passed=False))

    def value(metric: str, stain: str, method: str = "generated") -> float | None:
        row = find_row(table, method, metric, stain)
        return None if row is None else row.value

    for metric, low, high in (
        ("nuclei_count_r", 0.5, 1.0),
        ("nucleus_area_ratio", 0.8, 1.2),
        ("nuclei_count_ratio", 0.75, 1.25),
    ):
        words = f"at least {low:g}" if metric == "nuclei_count_r" else f"{low:g} to {high:g}"
        lines.append(_within(metric, value(metric, stain_of_nuclei), words, low, high + 1e-9))
    for stain in stains:
        distance, zeroed, ceiling = (value("frechet", stain, m) for m in ("generated", "zeroed", CEILING))
        words = "needs a volume with zeroed genes" if zeroed is None else f"below {zeroed:.4g}, genes zeroed"
        passed = distance is not None and zeroed is not None and distance < zeroed
        lines.append(Criterion(f"frechet {stain} below zeroed", distance, words, passed))
        ratio = None if distance is None or not ceiling else distance / ceiling
        lines.append(_within(f"frechet {stain} by real against real", ratio, "at most 3", 0.0, 3.0))
        real = find_row(table, REAL, "seam_index", stain)
        index = value("seam_index", stain)
        if real is None or real.low is None or real.high is None:
            lines.append(Criterion(f"seam_index {stain}", index, "needs the real image's interval", passed=False))
        else:
            words = f"{real.low:.4f} to {real.high:.4f}, as real"
            lines.append(_within(f"seam_index {stain}", index, words, real.low, real.high))
    return lines


def _within(name: str, value: float | None, words: str, low: float, high: float) -> Criterion:
    return Criterion(name, value, words, value is not None and low <= value <= high)
