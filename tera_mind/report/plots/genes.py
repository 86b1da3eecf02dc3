"""Gene recovery: what a probe reads back from real, generated and control images, gene by gene and as a share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from tera_mind.report.figures import DASHED, Part, Plot, Theme, dots, plot
from tera_mind.report.glossary import BEST_PUBLISHED_RECOVERY
from tera_mind.report.inputs import Evaluation
from tera_mind.report.tables import rows_of
from tera_mind.report.words import METHODS, REFERENCES, method_label, number

#: r of the real image at which a gene counts, as in `tera_mind.metrics.tiles.probe`, where the settings do not say
MIN_R = 0.1
#: genes named as the best and the worst recovered
NAMED = 8
ABSENT = "Left out: the evaluation holds no gene probe (it needs enough tiles of tissue to learn from)."

Reading = Mapping[str, NDArray[np.float64]]


@dataclass(frozen=True)
class Genes:
    """Plots, and the genes that the generated image carries best and worst: (name, r real, r generated)."""

    part: Part
    best: list[tuple[str, str, str]]
    worst: list[tuple[str, str, str]]


def genes(evaluation: Evaluation) -> Genes:
    """What the probe reads; only its absence where it was not fitted."""
    found = evaluation.per_method("gene_r")
    if not {"real", "generated"} <= found.keys():
        return Genes(Part([], ABSENT), [], [])
    reading = {m: found[m].astype(np.float64) for m in METHODS if m in found}
    kept = reading["real"] >= MIN_R
    shares = {m: row for m, row in rows_of(evaluation, "gene_recovery", "").items() if m != "real"}
    plots = [sorted_genes(reading, kept)] if kept.any() else []
    if any(row["value"] is not None for row in shares.values()):
        plots.append(recovery(shares, int(kept.sum())))
    names = evaluation.arrays.get("genes")
    best, worst = _named(reading, kept, names)
    return Genes(Part(plots, "" if plots else "Left out: the probe reads no gene from the real image."), best, worst)


def _named(
    reading: Reading, kept: NDArray[np.bool_], names: NDArray[Any] | None
) -> tuple[list[tuple[str, str, str]], list[tuple[str, str, str]]]:
    """The genes whose r falls least and most, among those that the real image shows."""
    if names is None or len(names) != len(kept):
        return [], []
    real, generated = reading["real"], reading["generated"]
    index = np.flatnonzero(kept)
    order = index[np.argsort((real - generated)[index], kind="stable")]
    size = min(NAMED, len(order) // 2)
    rows = [(str(names[i]), number(float(real[i])), number(float(generated[i]))) for i in order]
    return rows[:size], rows[::-1][:size]


def sorted_genes(reading: Reading, kept: NDArray[np.bool_]) -> Plot:
    """R of every gene, sorted by what the real image gives; controls as running means."""
    order = np.argsort(-reading["real"], kind="stable")
    rank = np.arange(1, len(order) + 1)
    counted = int(kept.sum())
    window = max(1, len(order) // 20)
    # no minus before a zero
    mean = {m: round(float(r[kept].mean()), 2) + 0.0 for m, r in reading.items()}

    def draw(axes: Axes, theme: Theme) -> None:
        axes.axhline(0, color=theme.ink, linewidth=0.8, alpha=0.35)
        if counted < len(order):
            axes.axvspan(counted + 0.5, len(order) + 0.5, color=theme.soft, alpha=0.12, linewidth=0)
        axes.plot(rank, reading["generated"][order], ".", color=theme.colour("generated"), markersize=3.5, alpha=0.5)
        for method, r in reading.items():
            line: dict[str, Any] = {"color": theme.colour(method)}
            line["label"] = f"{method_label(method)}, mean {mean[method]:.2f}"
            if method == "real":
                axes.plot(rank, r[order], linewidth=2.2, **line)
            else:
                smooth = np.convolve(np.pad(r[order], window // 2, "edge"), np.ones(window) / window, "valid")
                axes.plot(rank, smooth[: len(rank)], linewidth=2.0 if method == "generated" else 1.1, **line)
        axes.set(xlabel="genes, sorted by r of the real image", ylabel="r of predicted and measured counts")
        axes.set_xlim(0.5, len(order) + 0.5)
        axes.legend(fontsize=8, ncols=2, loc="upper right")

    caption = (
        f"How well a probe, fitted on real tissue of the training region, reads each of {len(order):,} genes from a "
        f"picture of the test region. Ink: from the real picture, the ceiling. Dots: from the generated one; lines: "
        f"running means. The {counted:,} genes that the real picture shows (r at least {MIN_R:g}, left of the grey) "
        f"count."
    )
    said = ", ".join(f"{m} {number(value)}" for m, value in mean.items())
    return plot("gene_r", f"r of every gene; means {said}", caption, draw, (5.4, 4.0))


def recovery(shares: Mapping[str, Mapping[str, Any]], counted: int) -> Plot:
    """Share of the real image's reading that each method reaches, with the best published share."""
    rows = [(m, {k: _percent(row.get(k)) for k in ("value", "low", "high")}) for m, row in shares.items()]
    best = 100 * BEST_PUBLISHED_RECOVERY

    def draw(axes: Axes, theme: Theme) -> None:
        dots(axes, theme, rows)
        axes.axvline(100, color=theme.ink, linewidth=2)
        axes.axvline(best, color=theme.soft, linewidth=1, linestyle=DASHED)
        axes.annotate(
            f"best published, {best:.0f} %",
            (best, 1.0),
            xycoords=("data", "axes fraction"),
            xytext=(-4, 3),
            textcoords="offset points",
            ha="right",
            fontsize=8,
            color=theme.soft,
        )
        axes.annotate(
            "real",
            (100, 1.0),
            xycoords=("data", "axes fraction"),
            xytext=(0, 3),
            textcoords="offset points",
            fontsize=8,
        )
        axes.set_xlabel("gene recovery, % of the real image")

    said = ", ".join(f"{method_label(m).lower()} {number(row['value'])} %" for m, row in rows)
    caption = (
        f"Gene recovery, the share of the real picture's reading over {counted:,} genes: {said}. The best published "
        f"share is of other tissue and another probe, so it is a landmark, not a rival.{_warning(shares)}"
    )
    return plot("gene_recovery", f"Gene recovery: {said}", caption, draw, (5.4, 1.3 + 0.34 * len(rows)))


def _warning(shares: Mapping[str, Mapping[str, Any]]) -> str:
    """What it means that another method's share is larger than that of the generated picture."""
    own = shares.get("generated", {}).get("value")
    if own is None:
        return ""
    ahead = {m for m, row in shares.items() if m not in REFERENCES and row["value"] is not None and row["value"] > own}
    said = ""
    if wrong := [method_label(m) for m in METHODS if m in ahead & {"shuffled", "zeroed", "mean_image"}]:
        said = f" {' and '.join(wrong)} reach as much without the right genes: this share is no better than chance."
    if ahead & {"ridge"}:
        said += " Ridge reaches more: a picture painted straight from genes is easy to read, so a share proves little."
    return said


def _percent(value: float | None) -> float | None:
    return None if value is None else 100 * value
