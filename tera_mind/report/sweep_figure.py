"""The figure of a sweep, in the manner of the paper's Fig. 6: metrics against a setting, all seeds shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from tera_mind.report.comparison.style import COLOURS, MARKERS, Drawing, end_labels, grid_figure
from tera_mind.report.comparison.text import label

#: panels beside each other
ACROSS = 4


def sweep_figure(table: Mapping[str, Any]) -> Drawing:
    """Draw `sweep.json` (schema: `tera_mind.sweep.results`): a panel a metric, a line a stain.

    Small dots are runs, the bar their range, the line joins their means; settings that are words, such as methods, are
    not joined. Where more than one setting varies, the others have markers and line ends of their own.
    """
    setting = table["setting"]
    measured = {value["metric"] for run in table["runs"] for value in run["values"] if value["value"] is not None}
    wanted = list(dict.fromkeys(metric["metric"] for metric in table["metrics"]))
    metrics = [metric for metric in wanted if metric in measured] or wanted  # a panel without points says nothing
    facts = {metric["metric"]: metric for metric in table["metrics"]}
    series = _series(table)
    stains = list(dict.fromkeys(stain for _, stain, _ in series))
    others = list(dict.fromkeys(rest for _, _, rest in series))
    places, ordered = _places(table, setting), _ordered(table, setting)
    across = min(ACROSS, len(metrics))

    def draw(_: Any, axes: NDArray[Any]) -> None:
        panels: list[Axes] = list(axes.ravel())
        for panel in panels[len(metrics) :]:
            panel.set_visible(False)
        for panel, metric in zip(panels, metrics, strict=False):
            ends: list[tuple[float, float, str, str]] = []
            for (own, stain, rest), points in series.items():
                if own != metric or not points:
                    continue
                colour = COLOURS[stains.index(stain) % len(COLOURS)]
                marker = MARKERS[others.index(rest) % len(MARKERS)]
                end = _line(
                    panel, {places[key]: points[key] for key in points}, colour, f"{marker}{'-' if ordered else ''}"
                )
                ends.append((*end, " ".join(filter(None, [stain, rest])), colour))
            _axis(panel, places, setting, ordered=ordered)
            fact = facts[metric]
            panel.set_title(label(metric, fact["better"], fact["unit"]))
            end_labels(panel, [end for end in ends if end[2]])

    seeds = sorted({run["seed"] for run in table["runs"]})
    done = sum(run["status"] == "done" for run in table["runs"])
    caption = (
        f"{table['name']}: scores over {setting}; {done} of {len(table['runs'])} runs, seeds "
        f"{', '.join(map(str, seeds))}. Dots: single runs; bars: their range; "
        f"{'lines' if ordered else 'markers'}: their means."
    )
    rows = -(-len(metrics) // across)
    return grid_figure(table["name"], caption, rows, across, draw, (2.7, 2.5) if ordered else (3.2, 3.3))


def _series(table: Mapping[str, Any]) -> dict[tuple[str, str, str], dict[Any, list[float]]]:
    """(metric, stain, other settings in words) -> value of the setting -> a number a run that is done."""
    setting = table["setting"]
    varied = _independent(table)
    found: dict[tuple[str, str, str], dict[Any, list[float]]] = {}
    for run in table["runs"]:
        rest = ", ".join(f"{name} {run['settings'][name]}" for name in varied)
        for value in run["values"]:
            if value["value"] is not None:
                own = found.setdefault((value["metric"], value["stain"], rest), {})
                own.setdefault(_hashable(run["settings"][setting]), []).append(value["value"])
    return found


def _independent(table: Mapping[str, Any]) -> list[str]:
    """Settings besides the axis' that take several values at one value of it."""
    setting, seen = table["setting"], dict[str, dict[Any, set[Any]]]()
    for run in table["runs"]:
        for name in table["settings"]:
            at = seen.setdefault(name, {}).setdefault(_hashable(run["settings"][setting]), set())
            at.add(_hashable(run["settings"][name]))
    return [name for name, at in seen.items() if name != setting and any(len(values) > 1 for values in at.values())]


def _hashable(value: Any) -> Any:
    return value if isinstance(value, str | int | float | bool) else str(value)


def _ordered(table: Mapping[str, Any], setting: str) -> bool:
    """Whether the values of the setting are numbers, which have an order and distances."""
    values = [run["settings"][setting] for run in table["runs"]]
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)


def _places(table: Mapping[str, Any], setting: str) -> dict[Any, float]:
    """Where each value of the setting stands: numbers at themselves, words one after the other."""
    values = list(dict.fromkeys(_hashable(run["settings"][setting]) for run in table["runs"]))
    if _ordered(table, setting):
        return {value: float(value) for value in values}
    return {value: float(index) for index, value in enumerate(values)}


def _line(panel: Axes, points: Mapping[float, Sequence[float]], colour: str, form: str) -> tuple[float, float]:
    """Draw one line of a format, such as "o-", with its runs; where it ends."""
    means = {x: float(np.mean(points[x])) for x in sorted(points)}
    for x, values in points.items():
        if len(values) > 1:
            panel.plot([x, x], [min(values), max(values)], color=colour, linewidth=1.2, alpha=0.7)
            panel.plot([x] * len(values), values, ".", color=colour, alpha=0.6, markersize=5)
    panel.plot(list(means), list(means.values()), form, color=colour, markersize=4, linewidth=1.4)
    end = max(means)
    return end, means[end]


def _axis(panel: Axes, places: Mapping[Any, float], setting: str, *, ordered: bool) -> None:
    ticks = list(places.values())
    if not ordered:
        panel.set_xticks(ticks, [str(key) for key in places], rotation=60, ha="right", rotation_mode="anchor")
        panel.set_xlim(min(ticks) - 0.6, max(ticks) + 0.6)
        panel.margins(y=0.12)
        panel.grid(visible=True)
        return
    if min(ticks) > 0 and max(ticks) >= 8 * min(ticks):
        panel.set_xscale("log")
        panel.minorticks_off()
    panel.set_xticks(ticks, [f"{key:g}" if isinstance(key, int | float) else str(key) for key in places])
    panel.margins(x=0.12, y=0.12)
    panel.grid(visible=True, axis="y")
    panel.set_xlabel(setting.replace("_", " "))
