"""How the comparison's figures look: one style, colours that colour-blind readers can tell apart, PNG and PDF."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from tera_mind.report.comparison.runs import Entry
from tera_mind.report.figures import THEMES

INK, SOFT, LINE = (THEMES["light"][name] for name in ("ink", "soft", "line"))
#: after Okabe and Ito (2008), without yellow, which is lost on white
COLOURS = ("#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7a4fa3", "#7f7f7f")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "h")
DPI = 160


@dataclass(frozen=True)
class Drawing:
    """A finished figure: file name without ending, PNG and PDF bytes, and its caption."""

    name: str
    png: bytes
    pdf: bytes
    caption: str


class Palette:
    """Colour and marker of each entry, the same in every figure; real tissue is ink."""

    def __init__(self, entries: Sequence[Entry]) -> None:
        competing = [entry.name for entry in entries if entry.competes]
        self._place = {name: index for index, name in enumerate(competing)}

    def colour(self, name: str) -> str:
        return COLOURS[self._place[name] % len(COLOURS)] if name in self._place else INK

    def marker(self, name: str) -> str:
        # past the last colour, the same colours with other markers
        place = self._place.get(name, 0)
        return MARKERS[(place + place // len(COLOURS)) % len(MARKERS)]

    def line(self, name: str) -> str:
        """Solid, and dashed where the colour is a second entry's."""
        return "--" if self._place.get(name, 0) >= len(COLOURS) else "-"


def grid_figure(
    name: str,
    caption: str,
    rows: int,
    columns: int,
    draw: Callable[[Figure, Any], None],
    panel: tuple[float, float] = (3.0, 2.4),
    **options: Any,
) -> Drawing:
    """Draw a grid of panels of `panel` inches; `draw` gets the figure and its axes (rows, columns)."""
    style: dict[Any, Any] = {
        "font.size": 9,
        "axes.edgecolor": LINE,
        "axes.labelcolor": SOFT,
        "axes.titlecolor": INK,
        "axes.titlesize": 9.5,
        "xtick.color": SOFT,
        "ytick.color": SOFT,
        "text.color": INK,
        "axes.facecolor": "#ffffff",
        "figure.facecolor": "#ffffff",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "legend.frameon": False,
        "grid.color": LINE,
        "grid.linewidth": 0.6,
        "axes.axisbelow": True,
        # text stays text in the PDF, and equal figures are equal files
        "pdf.fonttype": 42,
    }
    with mpl.rc_context(style):
        figure = Figure(figsize=(panel[0] * columns, panel[1] * rows), dpi=DPI, layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False, **options)
        draw(figure, axes)
        png, pdf = io.BytesIO(), io.BytesIO()
        FigureCanvasAgg(figure).print_png(png)
        figure.set_layout_engine("none")  # it was laid out for the PNG: both are alike, and once is enough
        figure.savefig(pdf, format="pdf", metadata={"CreationDate": None})
    return Drawing(name, png.getvalue(), pdf.getvalue(), caption)


def end_labels(axes: Axes, ends: Sequence[tuple[float, float, str, str]]) -> None:
    """Names of lines at their right ends (x, y, name, colour), moved apart where they would overlap.

    Call it when the limits of the axes are final.
    """
    low, high = axes.get_ylim()
    gap = (high - low) * 0.085
    ordered = sorted(ends, key=lambda end: end[1])
    heights: list[float] = []
    for _, y, _, _ in ordered:
        heights.append(max(y, heights[-1] + gap) if heights else y)
    # what was pushed above the panel comes back down
    ceiling = high
    for index in reversed(range(len(heights))):
        heights[index] = min(heights[index], ceiling)
        ceiling = heights[index] - gap
    for (x, _, name, colour), height in zip(ordered, heights, strict=True):
        axes.annotate(
            name,
            (x, height),
            xytext=(6, 0),
            textcoords="offset points",
            color=colour,
            fontsize=8,
            va="center",
            annotation_clip=False,
        )
