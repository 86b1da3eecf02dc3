"""The comparison's figures of nuclei: real against generated, region by region, pooled, and by section.

They hold what the paper's figures 4c to 4e (morphology of generated against real tissue) and, by section, 8 to 10 hold
as far as its text says: number and size of nuclei in 1,024 px regions and their distributions. Their layout is ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from tera_mind.report.comparison.places import Aligned, Sample
from tera_mind.report.comparison.runs import Entry
from tera_mind.report.comparison.scores import Comparison
from tera_mind.report.comparison.style import INK, LINE, SOFT, Drawing, Palette, grid_figure
from tera_mind.report.glossary import NUCLEUS, metric_words
from tera_mind.report.tables import unit_words

#: rows of a figure with a row an entry: the methods of the comparison and its two controls fit
MOST_ROWS = 13
#: fewer regions than this make no scatter: windows are shown
MIN_REGIONS = 8
#: points of a scatter, evenly thinned above
MOST_POINTS = 4000
SCATTERED = ("counts", "area", "intensity")


def draw_all(comparison: Comparison, aligned: Aligned) -> list[Drawing]:
    """Every figure of nuclei for which the runs hold something."""
    entries = [entry for entry in comparison.entries if entry.competes][:MOST_ROWS]
    found = [
        scatter(comparison, aligned, entries),
        pooled(comparison, entries),
        correlations(comparison),
        by_section(comparison, aligned, entries),
    ]
    return [drawing for drawing in found if drawing is not None]


def _words(quantity: str) -> str:
    if quantity == "counts":
        return "nuclei"
    words, unit = NUCLEUS[quantity]
    words = "nearest nucleus" if quantity == "distance" else words
    return f"{words}, {unit_words(unit)}" if unit else words


def _left_out(comparison: Comparison, entries: Sequence[Entry]) -> str:
    more = sum(entry.competes for entry in comparison.entries) - len(entries)
    return f" {more} more entries are in the tables." if more else ""


def _by_quantity(aligned: Aligned, kind: str) -> dict[str, Sample]:
    """Quantity -> its sample with the real values, of windows or regions."""
    count, prefix = ("nuclei_count_r", "nucleus") if kind == "window" else ("region_count_r", "region")
    names = {count: "counts"} | {f"{prefix}_{quantity}_r": quantity for quantity in NUCLEUS}
    return {names[sample.metric]: sample for sample in aligned.samples if sample.metric in names}


def scatter(comparison: Comparison, aligned: Aligned, entries: Sequence[Entry]) -> Drawing | None:
    """Number, median area and median intensity of nuclei, real against generated, with the regression line and r."""
    kind = "region" if len(aligned.boxes["region_boxes"]) >= MIN_REGIONS else "window"
    samples = {q: s for q, s in _by_quantity(aligned, kind).items() if q in SCATTERED}
    rows = [entry for entry in entries if any(entry.name in sample.values for sample in samples.values())]
    if not rows:
        return None
    palette = Palette(comparison.entries)
    side = rows[0].runs[0].settings.get(f"{kind}_px")
    noun = f"{side:,} px {kind}" if isinstance(side, int) else kind

    def draw(_: Any, axes: NDArray[Any]) -> None:
        for row, entry in enumerate(rows):
            for column, (quantity, sample) in enumerate(samples.items()):
                panel: Axes = axes[row, column]
                if entry.name not in sample.values or sample.real is None:
                    panel.set_visible(False)
                    continue
                _regression(panel, sample.real, sample.values[entry.name], palette.colour(entry.name))
                if row == len(rows) - 1:
                    panel.set_xlabel(f"{_words(quantity)}, real")
                if column == 0:
                    panel.set_ylabel(entry.name, color=palette.colour(entry.name), weight="bold")

    caption = (
        f"Number, median area and median intensity of nuclei per {noun}: real (across) against each entry (up). Line: "
        "least squares; dashed: where both agree; r: Pearson's correlation, the mean over seeds."
        + _left_out(comparison, rows)
    )
    return grid_figure("nuclei_real_against_generated", caption, len(rows), len(samples), draw, (2.5, 2.3))


def _regression(panel: Axes, real: NDArray[np.float64], values: NDArray[np.float64], colour: str) -> None:
    kept = np.isfinite(real) & np.isfinite(values).all(axis=0)
    x, seeds = real[kept], values[:, kept]
    if not len(x):
        panel.set_axis_off()
        panel.text(0.5, 0.5, "no nuclei to compare", transform=panel.transAxes, ha="center", color=SOFT)
        return
    panel.grid(visible=True)
    ends = np.percentile(np.concatenate([x, seeds.ravel()]), [0, 100])
    ends = ends + np.array([-0.05, 0.05]) * max(float(np.ptp(ends)), 1e-9)
    panel.plot(ends, ends, color=SOFT, linewidth=0.9, linestyle=(0, (4, 3)))
    step = -(-seeds.size // MOST_POINTS)
    for y in seeds:
        panel.scatter(x[::step], y[::step], s=10, color=colour, alpha=0.45, linewidths=0)
    panel.set(xlim=ends, ylim=ends)
    panel.set_aspect("equal")
    words = "r not defined"
    if len(x) > 2 and np.ptp(x) > 0 and (np.ptp(seeds, axis=1) > 0).all():
        slope, offset = np.polyfit(np.tile(x, len(seeds)), seeds.ravel(), 1)
        r = np.mean([np.corrcoef(x, y)[0, 1] for y in seeds])
        across = np.array([x.min(), x.max()])
        panel.plot(across, offset + slope * across, color=INK, linewidth=1.4)
        words = f"r = {r:.2f}, slope {slope:.2f}"
    panel.set_title(words, loc="left", fontsize=8.5)


def pooled(comparison: Comparison, entries: Sequence[Entry]) -> Drawing | None:
    """Distributions of nuclei per window and of every quantity over all nuclei, a row an entry, over the real one."""
    palette = Palette(comparison.entries)
    arrays = {"counts": "window_counts"} | {quantity: f"nucleus_{quantity}" for quantity in NUCLEUS}
    real: dict[str, NDArray[np.float64]] = {}
    for quantity, array in arrays.items():
        found = next((_finite(e, f"{array}/real") for e in entries if f"{array}/real" in e.runs[0].arrays), None)
        if found is not None and len(found):
            real[quantity] = found
    rows = [e for e in entries if any(f"{arrays[q]}/{e.method}" in e.runs[0].arrays for q in real)]
    if not rows:
        return None

    def draw(_: Any, axes: NDArray[Any]) -> None:
        for column, (quantity, truth) in enumerate(real.items()):
            own = {e.name: _finite(e, f"{arrays[quantity]}/{e.method}") for e in rows}
            edges = _edges([truth, *own.values()], whole=quantity == "counts")
            for row, entry in enumerate(rows):
                panel: Axes = axes[row, column]
                _steps(panel, truth, edges, INK, filled=True)
                _steps(panel, own[entry.name], edges, palette.colour(entry.name), filled=False)
                panel.set_xlim(edges[0], edges[-1])
                # a spike is cut rather than let it press the real distribution flat
                highest = np.histogram(np.clip(truth, edges[0], edges[-1]), edges)[0].max() / len(truth)
                panel.set_ylim(0, min(panel.get_ylim()[1], 2.2 * highest))
                panel.set_yticks([])
                panel.spines["left"].set_visible(False)
                if row == len(rows) - 1:
                    panel.set_xlabel("nuclei a window" if quantity == "counts" else _words(quantity))
                if column == 0:
                    panel.set_ylabel(entry.name, color=palette.colour(entry.name), weight="bold")
        axes[0, 0].set_title("grey: real", loc="left", color=SOFT, fontsize=8)

    quantities = ", ".join(NUCLEUS[quantity][0] for quantity in real if quantity in NUCLEUS)
    caption = (
        f"Distributions of nuclei per window and, over all nuclei, of their {quantities}: real tissue grey, each entry "
        "a line; ticks below are medians. The outer bins, and medians at the rim, are of all beyond; spikes are cut."
        + _left_out(comparison, rows)
    )
    return grid_figure("nuclei_distributions", caption, len(rows), len(real), draw, (2.2, 1.5))


def _finite(entry: Entry, array: str) -> NDArray[np.float64]:
    """An array of all runs of an entry, without what is not finite."""
    parts = [run.arrays[array] for run in entry.runs if array in run.arrays]
    values = np.concatenate(parts).astype(np.float64) if parts else np.zeros(0)
    return values[np.isfinite(values)]


def _edges(values: Sequence[NDArray[np.float64]], *, whole: bool) -> NDArray[np.float64]:
    """Bins to the 99.5th percentile of the widest distribution, at most twice that of the first, the real one."""
    kept = [v for v in values if len(v)]
    top = min(max(float(np.percentile(v, 99.5)) for v in kept), 2 * float(np.percentile(values[0], 99.5)))
    low = min(float(np.percentile(v, 0.5)) for v in kept)
    if whole:
        width = max(1, int(np.ceil((top - low + 1) / 25)))
        return np.arange(int(low), int(top) + 2 * width, width, dtype=np.float64) - 0.5
    return np.asarray(np.linspace(low, max(top, low + 1e-9), 37), np.float64)


def _steps(panel: Axes, values: NDArray[np.float64], edges: NDArray[np.float64], colour: str, *, filled: bool) -> None:
    if not len(values):
        return
    share = np.histogram(np.clip(values, edges[0], edges[-1]), edges)[0] / len(values)
    if filled:
        panel.stairs(share, edges, fill=True, color=LINE)
    else:
        panel.stairs(share, edges, color=colour, linewidth=1.6)
    panel.plot(
        [np.clip(np.median(values), edges[0], edges[-1])] * 2,
        [0, -0.07],
        transform=panel.get_xaxis_transform(),
        color=SOFT if filled else colour,
        linewidth=2,
        clip_on=False,
    )


def correlations(comparison: Comparison) -> Drawing | None:
    """Correlations with the real image over windows and regions: dots with intervals, an entry a colour."""
    palette = Palette(comparison.entries)
    wanted = ["nuclei_count_r", "region_count_r"] + [f"{k}_{q}_r" for q in NUCLEUS for k in ("nucleus", "region")]
    names = [entry.name for entry in comparison.entries if entry.competes]
    found = {(s.metric, s.stain) for s in comparison.scores if s.metric in wanted and s.value is not None}
    metrics = sorted(found, key=lambda pair: wanted.index(pair[0]))
    if not metrics:
        return None

    def draw(figure: Any, axes: NDArray[Any]) -> None:
        panel: Axes = axes[0, 0]
        spacing = min(0.16, 0.8 / max(len(names), 1))
        lowest = 0.0
        for place, pair in enumerate(metrics):
            for index, name in enumerate(names):
                score = comparison.score(name, *pair)
                if score is None or score.value is None:
                    continue
                y = place + (index - (len(names) - 1) / 2) * spacing
                low, high = (score.value if end is None else end for end in (score.low, score.high))
                lowest = min(lowest, low)
                panel.plot([low, high], [y, y], color=palette.colour(name), linewidth=1.5)
                label = name if place == 0 else None
                panel.plot(
                    score.value, y, palette.marker(name), color=palette.colour(name), markersize=4.5, label=label
                )
        panel.set_yticks(range(len(metrics)), [metric_words(metric).label for metric, _ in metrics])
        panel.tick_params(axis="y", length=0, labelcolor=INK)
        panel.set_ylim(len(metrics) - 0.4, -0.6)
        panel.set_xlim(min(lowest - 0.03, -0.03), 1.0)
        panel.axvline(0, color=SOFT, linewidth=0.8)
        panel.grid(visible=True, axis="x")
        panel.spines["left"].set_visible(False)
        panel.set_xlabel("correlation with the real image")
        figure.legend(loc="outside upper center", ncols=min(len(names), 4), fontsize=8.5, handletextpad=0.1)

    caption = "How well nuclei follow the real tissue from place to place: correlations with their 95 % intervals."
    height = 1.2 + max(0.42, 0.1 * len(names)) * len(metrics)
    return grid_figure("nuclei_correlations", caption, 1, 1, draw, (6.2, height))


def by_section(comparison: Comparison, aligned: Aligned, entries: Sequence[Entry]) -> Drawing | None:
    """Median and middle half of nuclei and areas per window, section by section, real and each entry."""
    samples = {q: s for q, s in _by_quantity(aligned, "window").items() if q in SCATTERED}
    rows = [entry for entry in entries if any(entry.name in sample.values for sample in samples.values())]
    sections = np.unique(aligned.boxes["window_boxes"][:, 0])
    if not rows or len(sections) < 2:
        return None
    palette = Palette(comparison.entries)

    def draw(_: Any, axes: NDArray[Any]) -> None:
        for row, (quantity, sample) in enumerate(samples.items()):
            axes[row, 0].set_ylabel(_words(quantity))
            for column, entry in enumerate(rows):
                _along(axes[row, column], sample, entry.name, sections, palette.colour(entry.name))
        for panel, entry in zip(axes[0], rows, strict=True):
            panel.set_title(entry.name, color=palette.colour(entry.name), weight="bold")
        for panel in axes[-1]:
            panel.set_xlabel("section")
        first = axes[0, 0]
        first.text(0.03, 0.96, "dark: real", transform=first.transAxes, va="top", color=SOFT, fontsize=8)

    caption = (
        "Nuclei per window, and the windows' median areas and intensities, section by section: lines are medians over "
        "windows, bands the middle half; real tissue dark, entries in colour." + _left_out(comparison, rows)
    )
    return grid_figure("nuclei_by_section", caption, len(samples), len(rows), draw, (2.4, 1.9), sharey="row")


def _along(panel: Axes, sample: Sample, name: str, sections: NDArray[np.int64], colour: str) -> None:
    """One panel: the real tissue's windows and an entry's along the sections."""
    section, own = sample.boxes[:, 0], sample.values.get(name)
    if sample.real is not None:
        _band(panel, section, sections, sample.real[None], INK)
    if own is not None:
        _band(panel, section, sections, own, colour)
    panel.grid(visible=True, axis="y")
    panel.margins(x=0.03)
    panel.set_xticks(sections[:: -(-len(sections) // 8)])


def _band(
    panel: Axes, section: NDArray[np.int64], sections: NDArray[np.int64], values: NDArray[np.float64], colour: str
) -> None:
    kept = [values[:, section == s] for s in sections]
    kept = [found[np.isfinite(found)] for found in kept]
    low, middle, high = np.array([np.percentile(v, [25, 50, 75]) if len(v) else [np.nan] * 3 for v in kept]).T
    panel.fill_between(sections, low, high, color=colour, alpha=0.18, linewidth=0)
    panel.plot(sections, middle, color=colour, linewidth=1.5)
