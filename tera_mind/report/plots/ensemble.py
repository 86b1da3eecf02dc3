"""Several seeds: whether their spread equals their error, and whether both lie in the same places."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from tera_mind.report.figures import DASHED, PALETTE, Part, Plot, Theme, panels, plot
from tera_mind.report.inputs import Evaluation
from tera_mind.report.tables import rows_of
from tera_mind.report.words import number

ABSENT = "Left out: one seed was evaluated; `tera-mind evaluate --ensemble` takes volumes of other seeds."
#: a spread that differs from the error by less than this share is called calibrated
TOLERANCE = 0.1
COLOURS = (PALETTE["generated"], PALETTE["shuffled"], PALETTE["ridge"], PALETTE["zeroed"])


def ensemble(evaluation: Evaluation) -> Part:
    """The calibration plot and, for every stain, the maps of spread and error of the section shown."""
    found = evaluation.ensemble
    if found is None:
        return Part([], ABSENT)
    seeds = len(found.get("seeds", []))
    plots = []
    bins = [r for r in found.get("calibration", []) if r["spread"] is not None and r["error"] is not None]
    if bins:
        plots.append(calibration(evaluation, bins, seeds))
    boxes = evaluation.arrays.get("patch_boxes")
    lacking = []
    for stain in evaluation.settings.get("stains", []):
        pair = [evaluation.arrays.get(f"{what}/{stain}") for what in ("uncertainty", "error")]
        if boxes is None or pair[0] is None or pair[1] is None or not len(boxes):
            lacking.append(stain)
            continue
        section = int(evaluation.settings.get("preview_section", boxes[0, 0]))
        here = boxes[:, 0] == section
        if here.any():
            plots.append(maps(stain, boxes[here], pair[0][here], pair[1][here]))
    absent = f"No map of the spread for {', '.join(lacking)}: the evaluation does not hold it." if lacking else ""
    return Part(plots, absent)


def _judged(ratio: float | None) -> str:
    if ratio is None or 1 - TOLERANCE <= ratio <= 1 + TOLERANCE:
        return ""
    return " (too sure of itself)" if ratio < 1 else " (too careful)"


def calibration(evaluation: Evaluation, bins: Sequence[dict[str, Any]], seeds: int) -> Plot:
    """Error against spread in tenths of the patches, with the diagonal of a calibrated ensemble."""
    stains = list(dict.fromkeys(row["stain"] for row in bins))
    top = 1.08 * max(max(row["spread"], row["error"]) for row in bins)
    said = []
    for stain in stains:
        ratio, skill = (
            rows_of(evaluation, metric, stain).get("ensemble_mean", {}).get("value")
            for metric in ("spread_error_ratio", "spread_skill")
        )
        sure = (
            "" if ratio is None else " (too sure of itself)" if ratio < 0.9 else " (too careful)" if ratio > 1.1 else ""
        )
        said.append(f"{stain}: spread by error {number(ratio)}{sure}, correlation over patches {number(skill)}")

    def draw(axes: Axes, theme: Theme) -> None:
        axes.grid(visible=True, axis="both")
        axes.plot([0, top], [0, top], color=theme.ink, linewidth=1, linestyle=DASHED, alpha=0.6)
        for number_of, stain in enumerate(stains):
            rows = [row for row in bins if row["stain"] == stain]
            colour = COLOURS[number_of % len(COLOURS)]
            x, y = ([row[key] for row in rows] for key in ("spread", "error"))
            axes.plot(x, y, "o-", color=colour, markersize=5, linewidth=1.3, label=stain)
        axes.set(xlabel="spread of the seeds, grey levels", ylabel="error of their mean, grey levels")
        axes.set(xlim=(0, top), ylim=(0, top))
        axes.set_aspect("equal")
        axes.text(0.97, 0.22, "too careful", transform=axes.transAxes, ha="right", color=theme.soft, fontsize=8.5)
        axes.text(0.03, 0.95, "too sure", transform=axes.transAxes, color=theme.soft, fontsize=8.5)
        axes.legend(fontsize=8.5, loc="lower right")

    caption = (
        f"{seeds} seeds: patches sorted by the seeds' spread, each dot a tenth of them. On the dashed line, patches "
        f"where the seeds disagree by as much as they err; above it they err by more than they disagree. "
        f"{'; '.join(said)}."
    )
    return plot("calibration", f"Calibration of {seeds} seeds; {'; '.join(said)}", caption, draw, (4.8, 4.4))


def patch_map(boxes: NDArray[np.int64], values: NDArray[Any]) -> NDArray[np.float64]:
    """Values a patch as an image, a pixel a patch; NaN where there is no patch. Boxes: section, y0, y1, x0, x1."""
    step = int(boxes[0, 2] - boxes[0, 1])
    rows, columns = (boxes[:, 1] - boxes[:, 1].min()) // step, (boxes[:, 3] - boxes[:, 3].min()) // step
    image = np.full((int(rows.max()) + 1, int(columns.max()) + 1), np.nan)
    image[rows, columns] = values
    return image


def maps(stain: str, boxes: NDArray[np.int64], spread: NDArray[Any], error: NDArray[Any]) -> Plot:
    """Spread of the seeds beside the error of their mean, patch by patch."""
    images = {"spread of the seeds": patch_map(boxes, spread), "error of their mean": patch_map(boxes, error)}
    edges = [int(boxes[:, i].min() if i in {1, 3} else boxes[:, i].max()) for i in (3, 4, 2, 1)]
    ratio = images["error of their mean"].shape[0] / images["error of their mean"].shape[1]

    def draw(axes: NDArray[Any], theme: Theme) -> None:
        for panel, (title, image) in zip(axes[0], images.items(), strict=True):
            panel.grid(visible=False)
            low, high = np.nanpercentile(image, [1, 99])
            drawn = panel.imshow(
                image, cmap="magma", vmin=low, vmax=max(high, low + 1e-6), extent=edges, interpolation="nearest"
            )
            panel.set_title(title)
            panel.set_xlabel("x, px")
            for spine in panel.spines.values():
                spine.set_visible(False)
            bar = panel.figure.colorbar(drawn, ax=panel, shrink=0.85)
            bar.set_label("grey levels", color=theme.soft)
            bar.outline.set_visible(False)  # type: ignore[operator]
        axes[0, 0].set_ylabel("y, px")
        axes[0, 1].set_yticklabels([])

    n = len(boxes)
    caption = (
        f"{stain}, the section shown above, {n:,} patches: where the seeds disagree, and where their mean is wrong. "
        f"Each map has its own scale; bright in the same places means that the disagreement warns of errors."
    )
    size = (6.6, float(np.clip(2.6 * ratio + 0.6, 2.6, 7.0)))
    return panels(f"uncertainty_{stain}", f"Maps of spread and error of {stain}", caption, draw, size, (1, 2))
