"""The comparison's figures of fidelity, of one setting, and along the sections.

They hold what the paper's figures 2e (fidelity by method), 6 (ablations) and 8 to 10 (by section) hold as far as its
text says: PSNR, SSIM and a feature distance for each stain; over numbers of sections, patch sizes and sampling steps;
stratified by section. Their layout is ours. Nuclei are drawn in `tera_mind.report.comparison.morphology`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray
from scipy.stats import gaussian_kde

from tera_mind.report.comparison import morphology
from tera_mind.report.comparison.places import Aligned
from tera_mind.report.comparison.runs import Entry
from tera_mind.report.comparison.same_region import same_region
from tera_mind.report.comparison.scores import Comparison, Score
from tera_mind.report.comparison.style import COLOURS, INK, SOFT, Drawing, Palette, end_labels, grid_figure
from tera_mind.report.comparison.text import label
from tera_mind.report.glossary import FIDELITY, LOOKS, NUCLEI, SHAPES, metric_words

#: feature distances, the paper's own first
DISTANCES = ("sfid", "fid", "frechet")
#: settings of a volume that do not change what it shows: its noise, and how much was computed at once
NO_RECIPE = frozenset({"seed", "block", "micro_batch", "patches_at_once"})
#: more sections than this are lines without markers
MARKED_SECTIONS = 12
#: bands of more entries than this would hide each other
MOST_BANDS = 5
#: panels across where stains do not decide
ACROSS = 3
#: most points that a density is estimated from
DENSITY_POINTS = 5000


def draw_all(comparison: Comparison, aligned: Aligned) -> list[Drawing]:
    """Every figure for which the runs hold something, in the order of the page."""
    found = [same_region(comparison), fidelity(comparison, aligned)]
    found += morphology.draw_all(comparison, aligned)
    found += [ablation(comparison, name, places) for name, places in varied(comparison)]
    found += [sections(comparison, name, groups) for name, groups in SECTION_FIGURES.items()]
    return [drawing for drawing in found if drawing is not None]


def fidelity(comparison: Comparison, aligned: Aligned) -> Drawing | None:
    """PSNR, SSIM and the feature distance of every entry and stain, with the spread over patches."""
    palette, entries = Palette(comparison.entries), [e for e in comparison.entries if e.competes]
    measured = {s.metric for s in comparison.scores if s.value is not None}
    metrics = [m for m in ("psnr", "ssim", _distance(comparison)) if m in measured]
    stains = list(dict.fromkeys(s.stain for s in comparison.scores if s.metric in metrics))
    if not metrics:
        return None
    samples = {(s.metric, s.stain): s for s in aligned.samples}

    def draw(_: Any, axes: NDArray[Any]) -> None:
        for (row, stain), (column, metric) in ((a, b) for a in enumerate(stains) for b in enumerate(metrics)):
            panel: Axes = axes[row, column]
            values = samples[metric, stain].values if (metric, stain) in samples else {}
            shown: list[float] = []
            for place, entry in enumerate(entries):
                own = values.get(entry.name)
                if own is not None:
                    kept = own[np.isfinite(own)]
                    shown += np.percentile(kept, [0.5, 99.5]).tolist() if len(kept) else []
                    _cloud(panel, kept, place, palette.colour(entry.name))
                _dot(panel, comparison.score(entry.name, metric, stain), place, palette)
            _ceiling(panel, comparison, metric, stain)
            if shown:
                panel.set_xlim(min(shown) - 0.02 * np.ptp(shown), max(shown) + 0.02 * np.ptp(shown))
            panel.set_yticks(range(len(entries)), [entry.name for entry in entries])
            panel.set_ylim(len(entries) - 0.55, -0.75)
            panel.tick_params(axis="y", length=0, labelleft=column == 0, labelcolor=INK)
            panel.grid(visible=True, axis="x")
            panel.spines["left"].set_visible(False)
            panel.set_xlabel(_axis(comparison, metric, stain))
            if column == 0:
                panel.set_title(stain, loc="left", weight="bold")

    caption = (
        f"Fidelity ({', '.join(stains)}): dots are values with their 95 % intervals, clouds the distribution over the "
        f"{len(aligned.boxes['patch_boxes']):,} patches that all share. Dashed: real tissue against other real tissue."
        + (" Thin bars: standard deviation over seeds." if any(len(e.runs) > 1 for e in entries) else "")
    )
    return grid_figure(
        "fidelity", caption, len(stains), len(metrics), draw, (3.1, 0.9 + 0.42 * len(entries)), sharey="all"
    )


def _distance(comparison: Comparison) -> str:
    present = {score.metric for score in comparison.scores if score.value is not None}
    return next((metric for metric in DISTANCES if metric in present), "frechet")


def _axis(comparison: Comparison, metric: str, stain: str) -> str:
    score = next(s for s in comparison.scores if s.metric == metric and s.stain in {stain, ""})
    return label(metric, score.better, score.unit)


def _cloud(panel: Axes, values: NDArray[np.float64], place: int, colour: str) -> None:
    """The density of values as a hill above a line of the axis."""
    if len(values) < 3 or np.ptp(values) <= 1e-9 * max(1.0, float(np.abs(values).max())):
        return
    points = values if len(values) <= DENSITY_POINTS else values[:: -(-len(values) // DENSITY_POINTS)]
    low, high = np.percentile(values, [0.5, 99.5])
    x = np.linspace(low, high, 160)
    density = gaussian_kde(points)(x)
    panel.fill_between(x, place - 0.1, place - 0.1 - 0.5 * density / density.max(), color=colour, alpha=0.28, lw=0)


def _dot(panel: Axes, score: Score | None, place: int, palette: Palette) -> None:
    if score is None or score.value is None:
        return
    colour = palette.colour(score.entry)
    if score.low is not None and score.high is not None:
        panel.plot([score.low, score.high], [place, place], color=colour, linewidth=2, solid_capstyle="butt")
    if score.spread is not None:
        ends = [score.value - score.spread, score.value + score.spread]
        panel.plot(ends, [place + 0.16] * 2, color=colour, linewidth=1, marker="|", markersize=4)
    panel.plot(
        score.value,
        place,
        palette.marker(score.entry),
        color=colour,
        markersize=5.5,
        markeredgecolor="white",
        markeredgewidth=0.6,
    )


def _ceiling(panel: Axes, comparison: Comparison, metric: str, stain: str) -> None:
    """What real tissue reaches against other real tissue, as a line."""
    for entry in comparison.entries:
        score = comparison.score(entry.name, metric, stain)
        if not entry.competes and score is not None and score.value is not None:
            panel.axvline(score.value, color=SOFT, linewidth=1, linestyle=(0, (4, 3)))
            panel.annotate(
                entry.name.lower(),
                (score.value, 1.0),
                xycoords=panel.get_xaxis_transform(),
                xytext=(3, 1),
                textcoords="offset points",
                color=SOFT,
                fontsize=7.5,
            )


def recipe(entry: Entry) -> dict[str, float]:
    """Steps and numeric settings of a run's generation, with dotted names, that all runs of the entry share."""
    shared: dict[str, float] | None = None
    for run in entry.runs:
        steps = {"steps": run.settings["steps"]} if "steps" in run.settings else {}
        own = dict(_numbers(steps | (run.settings.get("generation") or {})))
        shared = own if shared is None else {k: v for k, v in shared.items() if own.get(k) == v}
    return shared or {}


def _networks(entry: Entry) -> set[Any]:
    """Names of the networks that painted the runs of an entry."""
    return {(run.settings.get("generation") or {}).get("method") for run in entry.runs}


def _numbers(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{prefix}{key}.")
        elif isinstance(value, int | float) and not isinstance(value, bool) and key not in NO_RECIPE:
            yield f"{prefix}{key}", float(value)


def varied(comparison: Comparison) -> list[tuple[str, dict[str, float]]]:
    """Settings in which entries of the reference's method and network differ: (name, entry -> number), each once.

    What sets two networks apart is no setting that was varied: their sizes and steps mean different things.
    """
    like = next(entry for entry in comparison.entries if entry.name == comparison.reference)
    alike = [e for e in comparison.entries if e.method == like.method and _networks(e) == _networks(like)]
    recipes = {entry.name: recipe(entry) for entry in alike}
    found: dict[tuple[tuple[str, float], ...], str] = {}
    for key in sorted({key for own in recipes.values() for key in own}, key=lambda k: (k.count("."), k)):
        places = {name: own[key] for name, own in recipes.items() if key in own}
        if len(set(places.values())) > 1:
            # the volume's patch_px is the model's as well: one figure is enough
            found.setdefault(tuple(places.items()), key)
    return [(key, dict(places)) for places, key in found.items()]


def ablation(comparison: Comparison, setting: str, places: Mapping[str, float]) -> Drawing | None:
    """Scores over one numeric setting, a line a stain; small dots are seeds. None where nothing was measured."""
    known = [s for s in comparison.scores if s.value is not None and s.entry in places]
    wanted = ("psnr", "ssim", _distance(comparison), "nuclei_count_r")
    metrics = [metric for metric in wanted if any(score.metric == metric for score in known)]
    stains = list(dict.fromkeys(score.stain for score in known if score.metric in metrics))
    colour = {stain: COLOURS[index % len(COLOURS)] for index, stain in enumerate(stains)}
    if not metrics:
        return None
    ticks = sorted(set(places.values()))
    entries = {entry.name: entry for entry in comparison.entries}

    def draw(_: Any, axes: NDArray[Any]) -> None:
        for panel, metric in zip(axes[0], metrics, strict=True):
            ends = []
            for stain in stains:
                own = [(places[s.entry], s) for s in known if (s.metric, s.stain) == (metric, stain)]
                for x, score in own:
                    _error_bar(panel, x, score, colour[stain])
                    seeds = [v for run in entries[score.entry].runs for v in _own(run.table, score, entries)]
                    if len(seeds) > 1:
                        panel.plot([x] * len(seeds), seeds, ".", color=colour[stain], alpha=0.45, markersize=4)
                means = {
                    x: np.mean([s.value for at, s in own if at == x and s.value is not None])
                    for x in sorted({x for x, _ in own})
                }
                panel.plot(list(means), list(means.values()), "o-", color=colour[stain], markersize=4.5, linewidth=1.5)
                if means:
                    ends.append((max(means), float(means[max(means)]), stain, colour[stain]))
            if min(ticks) > 0 and max(ticks) >= 8 * min(ticks):
                panel.set_xscale("log")
                panel.minorticks_off()
            panel.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
            panel.margins(x=0.12, y=0.12)
            panel.grid(visible=True, axis="y")
            panel.set(xlabel=setting, title=_axis(comparison, metric, ends[0][2]))
            end_labels(panel, ends)

    others = [name for name, _ in varied(comparison) if name != setting]
    caption = (
        f"Scores over {setting}. Bars: standard deviation over seeds (small dots), or the 95 % interval where there is "
        "one seed." + (f" Beware: the runs differ in {', '.join(others)} as well." if others else "")
    )
    name = "ablation_" + "".join(letter if letter.isalnum() else "_" for letter in setting)
    return grid_figure(name, caption, 1, len(metrics), draw, (2.7, 2.5))


def _own(table: Sequence[Mapping[str, Any]], score: Score, entries: Mapping[str, Entry]) -> list[float]:
    wanted = (entries[score.entry].method, score.metric, score.stain)
    rows = [row for row in table if (row["method"], row["metric"], row.get("stain") or "") == wanted]
    return [row["value"] for row in rows if row["value"] is not None]


def _error_bar(panel: Axes, x: float, score: Score, colour: str) -> None:
    assert score.value is not None
    low, high = score.low, score.high
    if score.spread is not None:
        low, high = score.value - score.spread, score.value + score.spread
    if low is not None and high is not None:
        panel.plot([x, x], [low, high], color=colour, linewidth=1.2, alpha=0.8)


#: figure by section -> groups of metrics that it shows
SECTION_FIGURES = {"sections_fidelity": (FIDELITY, LOOKS), "sections_nuclei": (NUCLEI, SHAPES)}


def sections(comparison: Comparison, name: str, groups: Sequence[str]) -> Drawing | None:
    """Every metric of the groups along the sections, a panel a metric and stain; None without two sections."""
    palette, curves = Palette(comparison.entries), _by_section(comparison.entries, groups)
    banded = max((len(own) for own in curves.values()), default=0) <= MOST_BANDS
    order = sorted({g for by in curves.values() for own in by.values() for g in own}, key=_natural)
    if len(order) < 2:
        return None
    pairs = [pair for _, group in comparison.rows() for pair in group if pair in curves]
    stains = list(dict.fromkeys(stain for _, stain in pairs))
    cells = _layout(pairs, stains)
    down, across = (max(at) + 1 for at in zip(*cells.values(), strict=True))

    def draw(_: Any, axes: NDArray[Any]) -> None:
        for index, any_panel in enumerate(axes.ravel()):
            any_panel.set_visible(divmod(index, across) in cells.values())
        for pair, (row, column) in cells.items():
            panel: Axes = axes[row, column]
            ends = []
            for entry in comparison.entries:
                own = curves[pair].get(entry.name)
                if own:
                    ends.append(_curve(panel, own, order, entry.name, palette, banded=banded))
            step = -(-len(order) // 8)
            panel.set_xticks(range(0, len(order), step), order[::step])
            panel.margins(x=0.03)
            panel.grid(visible=True, axis="y")
            panel.set_title(f"{_axis(comparison, *pair)}  {pair[1]}".rstrip(), loc="left")
            if row == max(r for r, c in cells.values() if c == column):
                panel.set_xlabel("section")
            if column == across - 1 or (row, column + 1) not in cells.values():
                end_labels(panel, ends)

    caption = f"By section ({len(order)} sections): {', '.join(group.lower() for group in groups)}." + (
        " Bands: 95 % interval, or the standard deviation over seeds where there are several." if banded else ""
    )
    return grid_figure(name, caption, down, across, draw, (3.3, 2.0))


#: (metric, stain) -> entry -> section -> rows, one a seed
Curves = dict[tuple[str, str], dict[str, dict[str, list[dict[str, Any]]]]]


def _by_section(entries: Sequence[Entry], groups: Sequence[str]) -> Curves:
    """The rows by section of all metrics of the groups."""
    curves: Curves = {}
    found = ((entry, row) for entry in entries for run in entry.runs for row in run.strata)
    for entry, row in found:
        wanted = row["stratum"] == "section" and row["method"] == entry.method and row["value"] is not None
        if wanted and metric_words(row["metric"]).group in groups:
            own = curves.setdefault((row["metric"], row.get("stain") or ""), {}).setdefault(entry.name, {})
            own.setdefault(str(row["group"]), []).append(row)
    return curves


def _layout(pairs: Sequence[tuple[str, str]], stains: Sequence[str]) -> dict[tuple[str, str], tuple[int, int]]:
    """Row and column of each panel: metrics down and stains across, or one after the other for a single stain."""
    if len(stains) <= 1:
        return {pair: divmod(index, ACROSS) for index, pair in enumerate(pairs)}
    metrics = list(dict.fromkeys(metric for metric, _ in pairs))
    return {(metric, stain): (metrics.index(metric), stains.index(stain)) for metric, stain in pairs}


def _natural(text: str) -> tuple[float, str]:
    """Numbers by their size, before other names by their letters."""
    try:
        return float(text), ""
    except ValueError:
        return math.inf, text


def _curve(
    panel: Axes,
    own: Mapping[str, list[dict[str, Any]]],
    order: Sequence[str],
    name: str,
    palette: Palette,
    *,
    banded: bool,
) -> tuple[float, float, str, str]:
    """Draw one entry along the sections; returns where its line ends, for its label."""
    x = np.array([index for index, group in enumerate(order) if group in own])
    rows = [own[order[index]] for index in x]
    mean = np.array([np.mean([row["value"] for row in group]) for group in rows])
    if max(map(len, rows)) > 1:
        spread = np.array([np.std([row["value"] for row in g], ddof=1) if len(g) > 1 else np.nan for g in rows])
        low, high = mean - spread, mean + spread
    else:
        low, high = (np.array([g[0].get(end, None) for g in rows], np.float64) for end in ("low", "high"))
    colour = palette.colour(name)
    if banded:
        panel.fill_between(x, low, high, color=colour, alpha=0.11, linewidth=0)
    marker = palette.marker(name) if len(order) <= MARKED_SECTIONS else ""
    panel.plot(x, mean, palette.line(name), color=colour, marker=marker, markersize=3.5, linewidth=1.4)
    return float(x[-1]), float(mean[-1]), name, colour
