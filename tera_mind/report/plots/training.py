"""The loss curve of the training."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes

from tera_mind.report.figures import PALETTE, Plot, Theme, plot


def loss_curve(name: str, curves: Mapping[str, tuple[list[int], list[float]]]) -> Plot:
    """Training loss, raw and smoothed, and validation loss against optimiser steps."""

    def draw(axes: Axes, theme: Theme) -> None:
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
        axes.set_ylabel("loss", color=theme.ink)
        axes.margins(x=0.01)
        axes.legend(fontsize=8.5)

    last = ", ".join(f"{curve} {values[-1]:.3g}" for curve, (_, values) in curves.items())
    caption = f"Loss during training (faint: as logged, strong: running mean). Last values: {last}."
    return plot(name, f"Loss curve; last values {last}", caption, draw, (7.6, 3.4))
