"""Seams: the profile across a patch, and the three measures of a seam beside what chance gives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from tera_mind.report.figures import DASHED, Part, Plot, Theme, dots, panels, plot
from tera_mind.report.glossary import NULLS, metric_words
from tera_mind.report.inputs import Evaluation
from tera_mind.report.tables import rows_of
from tera_mind.report.words import METHODS, method_label, number

#: a peak so near the border is the border's own
NEAR_PX = 2
MEASURES = ("seam_index", "seam_step", "seam_spectrum")
#: measure -> the name of its null
_NULL_OF = {metric: null for null, metric in NULLS.items()}


@dataclass(frozen=True)
class Profile:
    """Mean absolute gradient by position in the patch, divided by its own mean; the border is at `offset_px` 0."""

    offset_px: NDArray[np.int64]
    mean: NDArray[np.float64]
    error: NDArray[np.float64]


def seam_profile(name: str, stain: str, profiles: Mapping[str, Profile]) -> Plot:
    """Gradient across the patch, a method each, with the border between two patches in the middle."""

    def draw(axes: Axes, theme: Theme) -> None:
        axes.axvline(0, color=theme.ink, linewidth=1, linestyle=DASHED, alpha=0.6)
        axes.axhline(1, color=theme.ink, linewidth=0.8, alpha=0.3)
        for method, profile in profiles.items():
            colour = theme.colour(method)
            axes.fill_between(
                profile.offset_px,
                profile.mean - 1.96 * profile.error,
                profile.mean + 1.96 * profile.error,
                color=colour,
                alpha=0.15,
                linewidth=0,
            )
            width = 1.8 if method in {"real", "generated"} else 1.1
            axes.plot(profile.offset_px, profile.mean, color=colour, linewidth=width, label=method_label(method))
        axes.set(xlabel="position relative to the patch border, px", ylabel="grey-level step / its mean")
        axes.margins(x=0)
        axes.legend(fontsize=8.5)

    at_border = ", ".join(f"{method_label(m).lower()} {p.mean[p.offset_px == 0][0]:.2f}" for m, p in profiles.items())
    caption = (
        f"{stain}: mean absolute step between neighbouring pixels by where they lie in the patch, rows and columns "
        f"together, divided by its mean; band: 95 % interval. At the border (dashed): {at_border}. A peak there is a "
        f"visible patch grid.{_elsewhere(profiles)}"
    )
    return plot(name, f"Seam profile of {stain}; at the patch border {at_border}", caption, draw)


def _elsewhere(profiles: Mapping[str, Profile]) -> str:
    """A warning of a peak of the generated tissue that is not at the border, beyond all that real tissue shows."""
    own, real = profiles.get("generated"), profiles.get("real")
    if own is None or real is None:
        return ""
    peak = int(np.argmax(own.mean))
    offset = int(own.offset_px[peak])
    sure = own.mean[peak] - 1.96 * own.error[peak] > (real.mean + 1.96 * real.error).max()
    if not sure or abs(offset) <= NEAR_PX:
        return ""
    return (
        f" Beware: the generated tissue peaks {abs(offset)} px from the border ({own.mean[peak]:.2f}), where no "
        f"measure of the border sees it: a grid shows there."
    )


def measures(evaluation: Evaluation) -> Part:
    """For every stain and grid, the three measures of each method, beside the same on grids where no border is."""
    plots = []
    for stain in evaluation.settings.get("stains", []):
        for prefix, grid in (("", "patch"), ("tile_", "tile")):
            found = {f"{prefix}{name}": rows_of(evaluation, f"{prefix}{name}", stain) for name in MEASURES}
            known = {name: rows for name, rows in found.items() if any(r["value"] is not None for r in rows.values())}
            if known:
                nulls = {name: rows_of(evaluation, _NULL_OF[name], stain) for name in known}
                plots.append(measure_panels(f"seam_measures_{grid}_{stain}", stain, grid, known, nulls))
    return Part(plots, "" if plots else "The evaluation holds no measure of seams: no border lies in the region.")


Rows = Mapping[str, Mapping[str, Mapping[str, Any]]]


def measure_panels(name: str, stain: str, grid: str, found: Rows, nulls: Rows) -> Plot:
    """A panel a measure; grey bars are the central 95 % of the same measure where no border is."""
    methods = [m for m in METHODS if any(m in rows and rows[m]["value"] is not None for rows in found.values())]

    def draw(axes: NDArray[Any], theme: Theme) -> None:
        for panel, (metric, rows) in zip(axes[0], found.items(), strict=True):
            shown = [(m, rows.get(m, {"value": None})) for m in methods]
            dots(panel, theme, shown)
            for place, method in enumerate(methods):
                null = nulls[metric].get(method, {})
                low, high = null.get("low"), null.get("high")
                if low is not None and high is not None:
                    panel.fill_betweenx(
                        [place - 0.36, place + 0.36], low, high, color=theme.soft, alpha=0.25, linewidth=0, zorder=0.5
                    )
            panel.axvline(1, color=theme.ink, linewidth=1, linestyle=DASHED, alpha=0.6)
            panel.set_title(metric_words(metric).label)
            if metric.endswith("spectrum"):
                least = min([r["value"] for r in rows.values() if r["value"]], default=1.0)
                panel.set_xscale("symlog", linthresh=max(1.0, least), linscale=0.6)
                ends = [r[k] for r in rows.values() for k in ("value", "high") if r.get(k) is not None]
                ticks = [t for t in (0, 1, 3, 10, 30, 100, 300, 1000) if t <= 1.2 * max(ends, default=1)]
                panel.set_xticks(ticks, [str(t) for t in ticks])
                panel.minorticks_off()
        for panel in axes[0, 1:]:
            panel.set_yticks([])

    said = ", ".join(
        f"{metric_words(metric).label} {number(rows['generated']['value'])}"
        for metric, rows in found.items()
        if "generated" in rows
    )
    caption = (
        f"{stain}, at the borders of the {grid} grid; 1 (dashed) is no seam. Grey: the same measure where no border "
        f"is, the central 95 %: what chance gives, wider where another grid shows (see the profile). A seam lies to "
        f"the right of its grey bar. Generated: {said}."
    )
    size = (9.6, 1.15 + 0.32 * len(methods))
    return panels(name, f"Seam measures of {stain}: {said}", caption, draw, size, (1, len(found)), wide=True)
