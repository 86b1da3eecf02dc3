"""The report's plots: histograms, scatter, seam profile, loss curve; each drawn for light and for dark pages."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from tera_mind.report.pictures import data_uri
from tera_mind.report.words import method_label

#: method -> colour, the same in every figure; "real" takes the page's ink
PALETTE = {
    "generated": "#e0653a",
    "shuffled": "#5b8fd0",
    "zeroed": "#9b7fc4",
    "mean_image": "#b59a55",
    "ridge": "#3fa38c",
    "real_vs_real": "#8b93a1",
}
THEMES = {
    "light": {"ink": "#22262e", "soft": "#6b7280", "line": "#d5d9e0", "page": "#ffffff"},
    "dark": {"ink": "#e6e9ef", "soft": "#9aa3b2", "line": "#3a414d", "page": "#1b1f26"},
}


@dataclass(frozen=True)
class Plot:
    """A finished plot: PNG bytes for light and dark pages, what it shows (`alt`), and its caption."""

    name: str
    light: bytes
    dark: bytes
    alt: str
    caption: str

    @property
    def light_uri(self) -> str:
        return data_uri(self.light, "png")

    @property
    def dark_uri(self) -> str:
        return data_uri(self.dark, "png")


@dataclass(frozen=True)
class Profile:
    """Mean absolute gradient by position in the patch, divided by its own mean; the border is at `offset_px` 0."""

    offset_px: NDArray[np.int64]
    mean: NDArray[np.float64]
    error: NDArray[np.float64]


def _colour(method: str, ink: str) -> str:
    return ink if method == "real" else PALETTE.get(method, "#8b93a1")


def _plot(
    name: str, alt: str, caption: str, draw: Callable[[Axes, str], None], size: tuple[float, float] = (5.2, 3.5)
) -> Plot:
    drawn = {}
    for theme, colours in THEMES.items():
        style: dict[Any, Any] = {
            "font.size": 10,
            "axes.edgecolor": colours["line"],
            "axes.labelcolor": colours["soft"],
            "xtick.color": colours["soft"],
            "ytick.color": colours["soft"],
            "text.color": colours["ink"],
            "axes.facecolor": colours["page"],
            "figure.facecolor": colours["page"],
            "axes.spines.top": False,
            "axes.spines.right": False,
            "legend.frameon": False,
            "grid.color": colours["line"],
            "grid.linewidth": 0.6,
            "axes.axisbelow": True,
        }
        with mpl.rc_context(style):
            figure = Figure(figsize=size, dpi=150, layout="constrained")
            axes = figure.add_subplot()
            axes.grid(visible=True, axis="y")
            draw(axes, colours["ink"])
            buffer = io.BytesIO()
            FigureCanvasAgg(figure).print_png(buffer)
            drawn[theme] = buffer.getvalue()
    return Plot(name, drawn["light"], drawn["dark"], alt, caption)


def histogram(
    name: str, values: Mapping[str, NDArray[np.generic]], axis_label: str, noun: str, *, whole: bool = False
) -> Plot:
    """Overlaid histograms of one quantity, a method each; real filled, others as lines; medians as ticks.

    `whole`: the quantity counts things, so bins hold whole numbers. Bins end at the 99.5th percentile of all.
    """
    kept = {m: v[np.isfinite(v)].astype(np.float64) for m, v in values.items()}
    kept = {m: v for m, v in kept.items() if v.size}
    top = max(float(np.percentile(v, 99.5)) for v in kept.values()) if kept else 1.0
    if whole:
        width = max(1, int(np.ceil((top + 1) / 28)))
        edges = [edge - 0.5 for edge in range(0, int(top) + 2 * width, width)]
    else:
        edges = np.linspace(0, max(top, 1e-9), 37).tolist()

    def draw(axes: Axes, ink: str) -> None:
        for method, data in kept.items():
            weights = np.full(data.size, 100 / data.size)
            colour, label = _colour(method, ink), f"{method_label(method)} (n = {data.size:,})"
            shown = np.clip(data, edges[0], edges[-1])
            if method == "real":
                axes.hist(shown, edges, weights=weights, color=colour, alpha=0.22, label=label)
            else:
                strong = method == "generated"
                axes.hist(
                    shown,
                    edges,
                    weights=weights,
                    histtype="step",
                    color=colour,
                    linewidth=2.0 if strong else 1.2,
                    label=label,
                )
            axes.axvline(float(np.median(data)), color=colour, linewidth=1, linestyle=(0, (4, 3)))
        axes.set(xlabel=axis_label, ylabel=f"{noun}, %", xlim=(edges[0], edges[-1]))
        axes.legend(fontsize=8.5)

    medians = ", ".join(f"{method_label(m).lower()} {np.median(v):.3g}" for m, v in kept.items())
    caption = f"{axis_label.capitalize()}: share of {noun}. Dashed: medians ({medians}). The last bin holds all above."
    return _plot(name, f"Histograms of {axis_label} for {', '.join(kept)}; medians {medians}", caption, draw)


def scatter(name: str, real: NDArray[np.generic], other: NDArray[np.generic], noun: str) -> Plot:
    """Window by window, real against generated, with the identity line and Pearson's r."""
    x, y = real.astype(np.float64), other.astype(np.float64)
    fits = x.size > 2 and x.std() > 0 and y.std() > 0
    r = f"r = {np.corrcoef(x, y)[0, 1]:.2f}" if fits else "r not defined"
    # whole numbers fall on each other: spread them a little, the same way every time
    spread = np.random.default_rng([0, 7]).uniform(-0.3, 0.3, (2, x.size))
    top = max(float(x.max(initial=1)), float(y.max(initial=1))) * 1.05

    def draw(axes: Axes, ink: str) -> None:
        axes.grid(visible=True, axis="both")
        axes.plot([0, top], [0, top], color=ink, linewidth=1, linestyle=(0, (4, 3)), alpha=0.6)
        axes.scatter(x + spread[0], y + spread[1], s=14, color=PALETTE["generated"], alpha=0.5, linewidths=0)
        axes.set(xlabel=f"{noun}, real", ylabel=f"{noun}, generated", xlim=(-0.5, top), ylim=(-0.5, top))
        axes.set_aspect("equal")
        axes.text(0.04, 0.95, r, transform=axes.transAxes, va="top", fontsize=12, weight="bold")

    caption = f"{noun.capitalize()}: each point is one window (n = {x.size:,}), {r}. On the dashed line both agree."
    return _plot(name, f"Scatter of {noun}, real against generated, {r}", caption, draw)


def seam_profile(name: str, stain: str, profiles: Mapping[str, Profile]) -> Plot:
    """Gradient across the patch, a method each, with the border between two patches in the middle."""

    def draw(axes: Axes, ink: str) -> None:
        axes.axvline(0, color=ink, linewidth=1, linestyle=(0, (4, 3)), alpha=0.6)
        axes.axhline(1, color=ink, linewidth=0.8, alpha=0.3)
        for method, profile in profiles.items():
            colour = _colour(method, ink)
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
        f"visible patch grid."
    )
    return _plot(name, f"Seam profile of {stain}; at the patch border {at_border}", caption, draw)


def loss_curve(name: str, curves: Mapping[str, tuple[list[int], list[float]]]) -> Plot:
    """Training loss, raw and smoothed, and validation loss against optimiser steps."""

    def draw(axes: Axes, ink: str) -> None:
        colours = iter([PALETTE["shuffled"], PALETTE["ridge"], PALETTE["zeroed"], PALETTE["mean_image"]] * 8)
        for curve, (steps, values) in curves.items():
            if curve.startswith("val/"):
                axes.plot(steps, values, "o-", color=PALETTE["generated"], markersize=3.5, linewidth=1.4, label=curve)
                continue
            colour = next(colours)
            window = max(1, len(values) // 40)
            axes.plot(steps, values, color=colour, alpha=0.28 if window > 1 else 1, linewidth=0.9)
            smooth = np.convolve(values, np.ones(window) / window, "valid")
            axes.plot(steps[window - 1 :], smooth, color=colour, linewidth=1.6, label=curve)
        if all(value > 0 for _, values in curves.values() for value in values):
            axes.set_yscale("log")
        axes.set_xlabel("optimiser step")
        axes.set_ylabel("loss", color=ink)
        axes.margins(x=0.01)
        axes.legend(fontsize=8.5)

    last = ", ".join(f"{curve} {values[-1]:.3g}" for curve, (_, values) in curves.items())
    caption = f"Loss during training (faint: as logged, strong: running mean). Last values: {last}."
    return _plot(name, f"Loss curve; last values {last}", caption, draw, (7.6, 3.4))
