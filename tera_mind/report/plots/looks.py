"""Texture and brightness: power spectra and grey-level histograms, real beside generated and its controls."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from tera_mind.report.figures import DASHED, Part, Plot, Theme, panels, plot
from tera_mind.report.inputs import Evaluation
from tera_mind.report.tables import rows_of
from tera_mind.report.words import METHODS, method_label, number

#: power of rounding to whole grey levels: nothing below it is told apart
ROUNDING_POWER = 1 / 12
#: frequencies below this number of waves a patch hold the patch's slope
FIRST_WAVES = 2
#: grey levels to a bin of the histogram
BIN_LEVELS = 4
#: a histogram with more than this share in one bin is a line
ONE_LEVEL = 0.98
#: share of pixels, in per cent, below which the histogram is not drawn
LEAST_SHARE = 0.005

Curves = Mapping[str, NDArray[np.float64]]


def looks(evaluation: Evaluation) -> Part:
    """A spectrum and a histogram for every stain that has them."""
    frequency = evaluation.arrays.get("spectrum_cycles_per_um")
    plots, lacking = [], []
    for stain in evaluation.settings.get("stains", []):
        curves = _curves(evaluation, "spectrum", stain)
        if frequency is not None and {"real", "generated"} <= curves.keys():
            plots.append(spectrum(stain, frequency, curves, _values(evaluation, "spectrum_distance", stain, "dB")))
        else:
            lacking.append(f"spectrum of {stain}")
        counts = _curves(evaluation, "histogram", stain)
        if {"real", "generated"} <= counts.keys():
            plots.append(levels(stain, counts, _values(evaluation, "histogram_wasserstein", stain, "grey levels")))
        else:
            lacking.append(f"grey levels of {stain}")
    return Part(plots, f"Left out, as the evaluation does not hold them: {', '.join(lacking)}." if lacking else "")


def _curves(evaluation: Evaluation, name: str, stain: str) -> dict[str, NDArray[np.float64]]:
    found = {m: evaluation.arrays.get(f"{name}/{m}/{stain}") for m in METHODS}
    return {m: curve.astype(np.float64) for m, curve in found.items() if curve is not None and curve.sum() > 0}


def _values(evaluation: Evaluation, metric: str, stain: str, unit: str) -> str:
    rows = rows_of(evaluation, metric, stain)
    said = [f"{method_label(m).lower()} {number(row['value'])}" for m, row in rows.items() if row["value"] is not None]
    return f" Distance to real, {unit}: {', '.join(said)}." if said else ""


def _line(theme: Theme, method: str) -> dict[str, Any]:
    """How a method's curve is drawn: real and generated strong, the ceiling dashed."""
    width = {"real": 2.2, "generated": 2.0}.get(method, 1.2)
    style = DASHED if method in {"real_vs_real", "real_neighbour"} else "-"
    return {"color": theme.colour(method), "linewidth": width, "linestyle": style, "label": method_label(method)}


def spectrum(stain: str, frequency: NDArray[np.float64], curves: Curves, more: str) -> Plot:
    """Power in decibels against spatial frequency, and below it the difference to the real image."""
    kept = slice(FIRST_WAVES, None)
    decibels = {m: 10 * np.log10(np.maximum(curve, ROUNDING_POWER))[kept] for m, curve in curves.items()}
    floor = 10 * np.log10(ROUNDING_POWER)
    flat = [m for m, curve in decibels.items() if (curve <= floor + 1e-6).all()]
    shown = {m: curve for m, curve in decibels.items() if m not in flat}
    x, real = frequency[kept], decibels["real"]

    def draw(axes: NDArray[Any], theme: Theme) -> None:
        top, low = axes[:, 0]
        for method, curve in shown.items():
            top.plot(x, curve, **_line(theme, method))
            low.plot(x, curve - real, **_line(theme, method))
        top.set_ylabel("power, dB")
        low.set_ylabel("minus real, dB")
        worst = max([6.0, *(float(np.abs(curve - real).max()) for m, curve in shown.items() if m == "generated")])
        low.set_ylim(-2.2 * worst, 1.4 * worst)
        low.set_xscale("log")
        low.set_xlim(x[0], x[-1])
        low.set_xlabel("spatial frequency, cycles per µm")
        ticks = [t for t in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0) if x[0] <= t <= x[-1]]
        low.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        low.minorticks_off()
        upper = top.secondary_xaxis("top")
        upper.set_xticks(ticks, [f"{1 / tick:g} µm" for tick in ticks])
        upper.minorticks_off()
        upper.spines["top"].set_visible(False)
        upper.tick_params(length=0)
        top.legend(fontsize=8, ncols=2)

    beside = f" Not drawn, for it has no structure: {', '.join(method_label(m).lower() for m in flat)}." if flat else ""
    caption = (
        f"{stain}: how much structure there is of each size (above: the size, as the length of a wave), and below the "
        f"difference to the real tissue. Below 0 at the right: too smooth; above: too grainy.{more}{beside}"
    )
    return panels(
        f"spectrum_{stain}",
        f"Power spectra of {stain}: {', '.join(shown)}",
        caption,
        draw,
        (5.2, 4.9),
        (2, 1),
        sharex="all",
        height_ratios=(1.7, 1),
    )


def levels(stain: str, counts: Curves, more: str) -> Plot:
    """Grey-level histograms on a logarithmic scale; one grey level alone is a line."""
    shares = {m: 100 * c.reshape(-1, BIN_LEVELS).sum(1) / c.sum() for m, c in counts.items()}
    edges = np.arange(0, 257, BIN_LEVELS)
    last = max(int(np.flatnonzero(share > LEAST_SHARE).max(initial=0)) for share in shares.values()) + 1

    def draw(axes: Axes, theme: Theme) -> None:
        for method, share in shares.items():
            line = _line(theme, method)
            if share.max() > 100 * ONE_LEVEL:
                axes.axvline(float(edges[int(share.argmax())]) + BIN_LEVELS / 2, **line | {"linestyle": (0, (1, 2))})
            elif method == "real":
                axes.stairs(share, edges, fill=True, baseline=LEAST_SHARE, alpha=0.2, color=line["color"])
                axes.stairs(share, edges, **line)
            else:
                axes.stairs(share, edges, **line)
        axes.set_yscale("log")
        axes.set(xlabel="grey level", ylabel="pixels, %", xlim=(0, edges[last]), ylim=(LEAST_SHARE, None))
        axes.set_yticks([0.01, 0.1, 1, 10], ["0.01", "0.1", "1", "10"])
        axes.minorticks_off()
        axes.legend(fontsize=8, ncols=2)

    caption = f"{stain}: share of pixels by grey level (0 to 255, logarithmic scale, {BIN_LEVELS} levels a bin).{more}"
    return plot(f"levels_{stain}", f"Grey-level histograms of {stain}: {', '.join(shares)}", caption, draw, (5.2, 4.2))
