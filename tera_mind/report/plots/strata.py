"""Where a method does well: scores by section, by density of transcripts and by region, as dots with intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from tera_mind.report.figures import Part, Plot, Theme, panels, point
from tera_mind.report.glossary import metric_words
from tera_mind.report.inputs import Evaluation
from tera_mind.report.tables import unit_words
from tera_mind.report.words import METHODS, REFERENCES, method_label

#: stratum -> what it is in words
STRATA = {"section": "section", "density": "density of transcripts", "region": "region of the map"}
#: metrics drawn, those that are there, at most `PANELS`
METRICS = ("psnr", "ssim", "pearson_blur", "nuclei_count_r", "nuclei_count_error", "nuclei_count_ratio")
PANELS = 4
#: methods drawn: more would not be told apart
SHOWN = ("generated", "shuffled", "ridge")
#: more groups than this become a line
MANY_GROUPS = 16
#: letters of a name under a line: names of sections differ at their ends
TAIL = 6

#: group -> method -> row
Groups = Mapping[str, Mapping[str, Mapping[str, Any]]]


def strata(evaluation: Evaluation) -> Part:
    """A plot for every stratum of two groups or more, a row of panels a stain; says which there are none of."""
    plots, lacking = [], []
    for stratum, words in STRATA.items():
        found = _found(evaluation, stratum)
        groups = {group for panel in found.values() for group in panel}
        if len(groups) < 2:
            lacking.append(words)
            continue
        plots.append(stratum_plot(stratum, words, found))
    said = {
        "section": "one section",
        "density of transcripts": "patches of one density",
        "region of the map": "no region map",
    }
    reasons = ", ".join(f"by {words} ({said[words]})" for words in lacking)
    return Part(plots, f"Left out: {reasons}." if lacking else "")


def _found(evaluation: Evaluation, stratum: str) -> dict[tuple[str, str], Groups]:
    """(stain, metric) -> group -> method -> row, in the order of `METRICS`."""
    panels_found: dict[tuple[str, str], dict[str, dict[str, Mapping[str, Any]]]] = {}
    for row in evaluation.strata:
        if row["stratum"] == stratum and row["metric"] in METRICS and row["method"] in METHODS:
            groups = panels_found.setdefault((row.get("stain") or "", row["metric"]), {})
            if row["method"] in SHOWN or row["method"] in REFERENCES:
                groups.setdefault(str(row["group"]), {})[row["method"]] = row
    stains = list(dict.fromkeys(stain for stain, _ in panels_found))
    chosen = [m for m in METRICS if any((s, m) in panels_found for s in stains)][:PANELS]
    return {(s, m): panels_found[s, m] for s in stains for m in chosen if (s, m) in panels_found}


def stratum_plot(stratum: str, words: str, found: Mapping[tuple[str, str], Groups]) -> Plot:
    """Panels by stain (rows) and metric (columns)."""
    stains = list(dict.fromkeys(stain for stain, _ in found))
    metrics = list(dict.fromkeys(metric for _, metric in found))
    order = list(dict.fromkeys(group for panel in found.values() for group in panel))
    methods = [m for m in METHODS if any(m in rows for panel in found.values() for rows in panel.values())]
    many = len(order) > MANY_GROUPS
    n = {g: max((r.get("n") or 0 for p in found.values() for r in p.get(g, {}).values()), default=0) for g in order}

    def draw(axes: NDArray[Any], theme: Theme) -> None:
        for (row, stain), (column, metric) in ((a, b) for a in enumerate(stains) for b in enumerate(metrics)):
            panel: Axes = axes[row, column]
            if (stain, metric) not in found:
                panel.set_visible(False)
                continue
            groups = found[stain, metric]
            (_lines if many else _dodged)(panel, theme, order, methods, groups)
            unit = next((unit_words(r.get("unit")) for g in groups.values() for r in g.values() if r.get("unit")), "")
            panel.set_title(
                f"{metric_words(metric).label}{', ' + unit if unit else ''}  {stain}".rstrip(), fontsize=9.5
            )
            if column and not many:
                panel.set_yticklabels([])
        handles = [axes[0, 0].plot([], [], "o", color=theme.colour(m), label=method_label(m))[0] for m in methods]
        axes[0, 0].figure.legend(handles=handles, loc="outside upper left", ncols=len(methods), fontsize=8.5)

    counts = "" if many else f" Squares or windows: {', '.join(f'{g} {n[g]:,}' for g in order)}."
    caption = f"Scores by {words}, with their 95 % intervals.{counts}"
    if stratum == "density":
        caption += " Low, middle, high: thirds of the patches by number of transcripts."
    height = 2.4 if many else 0.85 + 0.34 * len(order)
    size = (2.9 * len(metrics) + 0.9, height * len(stains) + 0.35)
    alt = f"Scores by {words}: {', '.join(order[:MANY_GROUPS])}"
    return panels(f"strata_{stratum}", alt, caption, draw, size, (len(stains), len(metrics)), wide=True)


def _dodged(panel: Axes, theme: Theme, order: Sequence[str], methods: Sequence[str], groups: Groups) -> None:
    """A line of the panel for every group, its methods a little apart."""
    step = 0.64 / max(len(methods), 1)
    for place, group in enumerate(order):
        for number, method in enumerate(methods):
            row = groups.get(group, {}).get(method)
            if row is not None:
                point(panel, theme, method, row, place + (number - (len(methods) - 1) / 2) * step, 5.0)
    panel.set_yticks(range(len(order)), [_short(group) for group in order])
    panel.set_ylim(len(order) - 0.45, -0.55)
    panel.tick_params(axis="y", length=0, labelcolor=theme.ink)
    panel.grid(visible=False, axis="y")
    panel.grid(visible=True, axis="x")
    panel.locator_params(axis="x", nbins=5)
    panel.spines["left"].set_visible(False)


def _lines(panel: Axes, theme: Theme, order: Sequence[str], methods: Sequence[str], groups: Groups) -> None:
    """Many groups along the axis, a line with its band for every method."""
    for method in methods:
        rows = [(x, groups[g][method]) for x, g in enumerate(order) if method in groups.get(g, {})]
        x = np.array([at for at, _ in rows], np.float64)
        value, low, high = (np.array([row.get(k) for _, row in rows], np.float64) for k in ("value", "low", "high"))
        colour = theme.colour(method)
        panel.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
        panel.plot(x, value, color=colour, linewidth=1.8 if method == "generated" else 1.1)
    step = -(-len(order) // 6)
    panel.set_xticks(
        range(0, len(order), step),
        [group if len(group) <= TAIL else f"…{group[-TAIL:]}" for group in order[::step]],
        fontsize=8,
    )
    panel.margins(x=0.02)


def _short(name: str, most: int = 22) -> str:
    return name if len(name) <= most else f"{name[: most - 1]}…"
