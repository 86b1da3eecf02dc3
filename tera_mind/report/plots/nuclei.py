"""Nuclei: what real and generated ones are like, and whether a window's nuclei follow the real ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from numpy.typing import NDArray

from tera_mind.report.figures import DASHED, PALETTE, Part, Plot, Theme, panels, plot
from tera_mind.report.glossary import NUCLEUS
from tera_mind.report.inputs import Evaluation
from tera_mind.report.tables import rows_of, unit_words
from tera_mind.report.words import method_label, number

#: methods whose nuclei are drawn; the last is the ceiling
SHOWN = ("real", "generated", "shuffled", "real_vs_real")
BINS = 36
#: more points than this are drawn as a map of their number
MANY_POINTS = 3000
#: fewer large squares than this say nothing
FEW_REGIONS = 5
NO_NUCLEI = "Left out: the evaluation holds no nuclei of both real and generated tissue (it needs a DAPI stain)."

Values = NDArray[np.float64]


class Axis(NamedTuple):
    """How the values of a histogram are binned: whole numbers, from 0, within fixed limits, or as they lie."""

    label: str
    whole: bool = False
    low: float | None = 0.0
    high: float | None = None


AXES = {
    "area": Axis("nucleus area, µm²"),
    "eccentricity": Axis("nucleus eccentricity (0 round, 1 a line)", high=1.0),
    "intensity": Axis("nucleus intensity, grey levels", low=None),
    "distance": Axis("distance to the nearest nucleus, µm"),
    "transcripts": Axis("transcripts a nucleus", whole=True),
}


def distributions(evaluation: Evaluation) -> Part:
    """A histogram for every quantity of a nucleus, and for the number of nuclei a window."""
    plots, lacking = [], []
    for quantity, (words, _) in NUCLEUS.items():
        values = _values(evaluation, f"nucleus_{quantity}")
        if values is None:
            lacking.append(words)
            continue
        plots.append(histogram(f"nucleus_{quantity}", values, AXES[quantity], "nuclei", _ks(evaluation, quantity)))
    counts = _values(evaluation, "window_counts")
    if counts is not None:
        axis = Axis(_window(evaluation), whole=True)
        plots.append(histogram("window_counts", counts, axis, "windows", _ks(evaluation, "")))
    if not plots:
        return Part([], NO_NUCLEI)
    return Part(plots, f"Not in this evaluation: {', '.join(lacking)}." if lacking else "")


def windows(evaluation: Evaluation) -> Part:
    """Real against generated, window by window and in larger squares."""
    plots = []
    for places, noun in (("window", _window(evaluation)), ("region", _region(evaluation))):
        pair = [evaluation.arrays.get(f"{places}_counts/{method}") for method in ("real", "generated")]
        if pair[0] is not None and pair[1] is not None and len(pair[0]) >= (1 if places == "window" else FEW_REGIONS):
            plots.append(scatter(f"{places}_counts_scatter", pair[0], pair[1], noun, places))
    medians = {}
    for quantity in NUCLEUS:
        pair = [evaluation.arrays.get(f"window_{quantity}/{method}") for method in ("real", "generated")]
        if pair[0] is None or pair[1] is None:
            continue
        both = np.isfinite(pair[0]) & np.isfinite(pair[1])
        if both.sum() > 2:
            medians[quantity] = (pair[0][both].astype(np.float64), pair[1][both].astype(np.float64))
    if medians:
        plots.append(median_scatters(medians))
    return Part(plots, "" if plots else "Left out: the evaluation counted no nuclei in windows.")


def _window(evaluation: Evaluation) -> str:
    side = evaluation.settings.get("window_px")
    return f"nuclei per {side} px window" if side else "nuclei per window"


def _region(evaluation: Evaluation) -> str:
    side = evaluation.settings.get("region_px")
    return f"nuclei per {side:,} px region" if side else "nuclei per region"


def _values(evaluation: Evaluation, prefix: str) -> dict[str, Values] | None:
    """Finite values of the methods shown; None where real or generated have none."""
    found = {}
    for method in SHOWN:
        array = evaluation.arrays.get(f"{prefix}/{method}")
        if array is not None:
            values = np.asarray(array, np.float64)
            values = values[np.isfinite(values)]
            if values.size:
                found[method] = values
    return found if {"real", "generated"} <= found.keys() else None


def _ks(evaluation: Evaluation, quantity: str) -> str:
    """The distance of the distributions, beside that of two pieces of real tissue."""
    name = f"nucleus_{quantity}_ks" if quantity else "nuclei_count_ks"
    rows = rows_of(evaluation, name, evaluation.settings.get("nucleus_stain") or "")
    said = [
        f"{method_label(method).lower()} {number(rows[method]['value'])}"
        for method in SHOWN[1:]
        if method in rows and rows[method]["value"] is not None
    ]
    return f" Largest gap between cumulative curves (KS) to real: {', '.join(said)}." if said else ""


def bin_edges(values: Sequence[Values], axis: Axis) -> Values:
    """Bins up to the 99.5th percentile of the method that reaches farthest; whole numbers fall inside a bin."""
    top = axis.high if axis.high is not None else max(float(np.percentile(v, 99.5)) for v in values)
    if axis.whole:
        width = max(1, int(np.ceil((top + 1) / 28)))
        return np.asarray(np.arange(0, int(top) + 2 * width, width) - 0.5, np.float64)
    low = axis.low if axis.low is not None else min(float(np.percentile(v, 0.5)) for v in values)
    return np.linspace(low, max(top, low + 1e-9), BINS + 1)


def histogram(name: str, values: Mapping[str, Values], axis: Axis, noun: str, more: str = "") -> Plot:
    """Overlaid histograms of one quantity, a method each; real filled, others as lines; medians as ticks."""
    edges = bin_edges(list(values.values()), axis)
    # counted once: a brain has millions of nuclei, and every plot is drawn twice
    shares = {m: 100 * np.histogram(np.clip(v, edges[0], edges[-1]), edges)[0] / v.size for m, v in values.items()}
    medians = {m: float(np.median(v)) for m, v in values.items()}

    def draw(axes: Axes, theme: Theme) -> None:
        for method, share in shares.items():
            colour, label = theme.colour(method), f"{method_label(method)} (n = {values[method].size:,})"
            if method == "real":
                axes.stairs(share, edges, fill=True, color=colour, alpha=0.2, label=label)
            else:
                ceiling = method == "real_vs_real"
                axes.stairs(
                    share,
                    edges,
                    color=colour,
                    linewidth=2.0 if method == "generated" else 1.3,
                    linestyle=DASHED if ceiling else "-",
                    label=label,
                )
            axes.plot(medians[method], 0, "^", color=colour, markersize=7, clip_on=False, zorder=5)
        axes.set(xlabel=axis.label, ylabel=f"{noun}, %", xlim=(edges[0], edges[-1]), ylim=(0, None))
        axes.legend(fontsize=8.5)

    said = ", ".join(f"{method_label(m).lower()} {number(v)}" for m, v in medians.items())
    first = axis.label[0].upper() + axis.label[1:]
    caption = f"{first}: share of {noun}; the last bin holds all above. Triangles: medians ({said}).{more}"
    return plot(name, f"Histograms of {axis.label} for {', '.join(values)}; medians {said}", caption, draw, (4.5, 3.2))


def pearson(x: Values, y: Values) -> str:
    fits = x.size > 2 and x.std() > 0 and y.std() > 0
    return f"r = {np.corrcoef(x, y)[0, 1]:.2f}" if fits else "r not defined"


def scatter(name: str, real: NDArray[Any], other: NDArray[Any], noun: str, place: str = "window") -> Plot:
    """Place by place, real against generated, with the identity line and Pearson's r."""
    x, y = real.astype(np.float64), other.astype(np.float64)
    r = pearson(x, y)
    # whole numbers fall on each other: spread them a little, the same way every time
    spread = np.random.default_rng([0, 7]).uniform(-0.3, 0.3, (2, x.size))
    top = max(float(x.max(initial=1)), float(y.max(initial=1))) * 1.05

    def draw(axes: Axes, theme: Theme) -> None:
        _against(axes, theme, x + spread[0], y + spread[1], (-0.5, top))
        axes.set(xlabel=f"{noun}, real", ylabel=f"{noun}, generated")
        axes.text(0.04, 0.95, r, transform=axes.transAxes, va="top", fontsize=12, weight="bold")

    caption = f"{noun.capitalize()}: each point is one {place} (n = {x.size:,}), {r}. On the dashed line both agree."
    if x.size > MANY_POINTS:
        caption = caption.replace("each point is one", "darker where there are more; one point is a")
    return plot(name, f"Scatter of {noun}, real against generated, {r}", caption, draw, (4.6, 4.3))


def median_scatters(medians: Mapping[str, tuple[Values, Values]]) -> Plot:
    """The median of every quantity window by window, real against generated, a panel each."""
    r = {quantity: pearson(*pair) for quantity, pair in medians.items()}

    def draw(axes: NDArray[Any], theme: Theme) -> None:
        for panel, (quantity, (x, y)) in zip(axes[0], medians.items(), strict=True):
            words, unit = NUCLEUS[quantity]
            both = np.concatenate([x, y])
            low, high = np.percentile(both, [0.5, 99.5])
            room = 0.06 * max(high - low, 1e-9)
            _against(panel, theme, x, y, (low - room, high + room))
            panel.set_title(f"{words}, {unit_words(unit)}".strip(" ,").replace("distance to the ", ""), fontsize=9.5)
            panel.text(0.05, 0.95, r[quantity], transform=panel.transAxes, va="top", weight="bold")
            panel.set_xlabel("real")
        axes[0, 0].set_ylabel("generated")

    said = ", ".join(f"{NUCLEUS[quantity][0]} {text}" for quantity, text in r.items())
    n = ", ".join(dict.fromkeys(f"{x.size:,}" for x, _ in medians.values()))
    caption = (
        f"Medians of a window's nuclei, real against generated, over windows that have nuclei on both sides "
        f"(n = {n}). On the dashed line both agree; a cloud without a slope means that the picture has the right kind "
        f"of nuclei, but not in the right windows."
    )
    size = (2.55 * len(medians) + 0.3, 2.9)
    return panels("window_medians", f"Scatters by window: {said}", caption, draw, size, (1, len(medians)), wide=True)


def _against(axes: Axes, theme: Theme, x: Values, y: Values, limits: tuple[float, float]) -> None:
    axes.grid(visible=True, axis="both")
    axes.plot(limits, limits, color=theme.ink, linewidth=1, linestyle=DASHED, alpha=0.6)
    if x.size > MANY_POINTS:
        shades = LinearSegmentedColormap.from_list("shades", [theme.page, PALETTE["generated"], theme.ink])
        axes.hexbin(x, y, gridsize=45, extent=(*limits, *limits), mincnt=1, bins="log", cmap=shades, linewidths=0)
    else:
        axes.scatter(x, y, s=14, color=PALETTE["generated"], alpha=0.5, linewidths=0)
    axes.set(xlim=limits, ylim=limits)
    axes.set_aspect("equal")
