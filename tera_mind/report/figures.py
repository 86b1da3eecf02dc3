"""How the report's plots look: one style, drawn for light and for dark pages, a colour and a marker each method."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from tera_mind.report.pictures import data_uri
from tera_mind.report.words import REFERENCES, method_label

#: method -> colour, the same in every figure; "real" takes the page's ink
PALETTE = {
    "generated": "#e0653a",
    "shuffled": "#5b8fd0",
    "zeroed": "#9b7fc4",
    "mean_image": "#b59a55",
    "ridge": "#3fa38c",
    "ensemble_mean": "#d277a5",
    "real_neighbour": "#6f8f6a",
    "real_vs_real": "#8b93a1",
}
#: method -> marker, for readers who cannot tell the colours apart
MARKERS = {
    "generated": "o",
    "shuffled": "s",
    "zeroed": "^",
    "mean_image": "v",
    "ridge": "D",
    "ensemble_mean": "P",
    "real_neighbour": "|",
    "real_vs_real": "|",
    "real": "|",
}
THEMES = {
    "light": {"ink": "#22262e", "soft": "#6b7280", "line": "#d5d9e0", "page": "#ffffff"},
    "dark": {"ink": "#e6e9ef", "soft": "#9aa3b2", "line": "#3a414d", "page": "#1b1f26"},
}
DASHED = (0, (4, 3))
DPI = 150


@dataclass(frozen=True)
class Plot:
    """A finished plot: PNG bytes for light and dark pages, what it shows (`alt`), and its caption.

    wide: it takes the page's whole width.
    """

    name: str
    light: bytes
    dark: bytes
    alt: str
    caption: str
    wide: bool = False

    @property
    def light_uri(self) -> str:
        return data_uri(self.light, "png")

    @property
    def dark_uri(self) -> str:
        return data_uri(self.dark, "png")


@dataclass(frozen=True)
class Part:
    """The plots of one section of the page; `absent` says why there is none, or what is missing among them."""

    plots: list[Plot]
    absent: str = ""


@dataclass(frozen=True)
class Theme:
    """Colours of the page that a plot is drawn for."""

    ink: str
    soft: str
    line: str
    page: str

    def colour(self, method: str) -> str:
        return self.ink if method == "real" else PALETTE.get(method, self.soft)


def plot(
    name: str,
    alt: str,
    caption: str,
    draw: Callable[[Axes, Theme], None],
    size: tuple[float, float] = (5.2, 3.5),
    *,
    wide: bool = False,
) -> Plot:
    """One panel of `size` inches, drawn by `draw`."""

    def fill(axes: NDArray[Any], theme: Theme) -> None:
        draw(axes[0, 0], theme)

    return panels(name, alt, caption, fill, size, wide=wide)


def panels(
    name: str,
    alt: str,
    caption: str,
    draw: Callable[[NDArray[Any], Theme], None],
    size: tuple[float, float],
    shape: tuple[int, int] = (1, 1),
    *,
    wide: bool = False,
    **options: Any,
) -> Plot:
    """A grid of panels (rows, columns) in a figure of `size` inches; `draw` gets its axes."""
    drawn = {}
    for name_of_theme, colours in THEMES.items():
        with mpl.rc_context(_style(colours)):
            figure = Figure(figsize=size, dpi=DPI, layout="constrained")
            axes = figure.subplots(*shape, squeeze=False, **options)
            for panel in axes.flat:
                panel.grid(visible=True, axis="y")
            draw(axes, Theme(**colours))
            canvas = FigureCanvasAgg(figure)
            canvas.draw()
            drawn[name_of_theme] = _png(np.asarray(canvas.buffer_rgba())[..., :3])
    return Plot(name, drawn["light"], drawn["dark"], alt, caption, wide)


def _style(colours: Mapping[str, str]) -> dict[Any, Any]:
    return {
        "font.size": 10,
        "axes.edgecolor": colours["line"],
        "axes.labelcolor": colours["soft"],
        "axes.titlecolor": colours["ink"],
        "axes.titlesize": 10,
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


def _png(rgb: NDArray[np.uint8]) -> bytes:
    """Few colours make small files: a plot has hardly more than a palette holds."""
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(rgb)).quantize(192, dither=Image.Dither.NONE).save(
        buffer, "PNG", optimize=True
    )
    return buffer.getvalue()


def dots(axes: Axes, theme: Theme, rows: Sequence[tuple[str, Mapping[str, Any]]]) -> None:
    """A dot with its interval for each (method, table row), one above the other, the first on top; names at the left.

    Rows without a value keep their line and say so.
    """
    for place, (method, row) in enumerate(rows):
        point(axes, theme, method, row, float(place), size=7.0 if method == "generated" else 5.5)
        if row["value"] is None:
            axes.annotate(
                "not known",
                (0.02, place),
                xycoords=("axes fraction", "data"),
                va="center",
                fontsize=8,
                color=theme.soft,
            )
    axes.set_yticks(range(len(rows)), [method_label(method) for method, _ in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0, labelcolor=theme.ink)
    axes.grid(visible=False, axis="y")
    axes.grid(visible=True, axis="x")
    axes.spines["left"].set_visible(False)


def point(axes: Axes, theme: Theme, method: str, row: Mapping[str, Any], place: float, size: float = 5.5) -> None:
    """One value at height `place`, with its interval where it has one."""
    value, low, high = (row.get(key) for key in ("value", "low", "high"))
    if value is None:
        return
    colour = theme.colour(method)
    if low is not None and high is not None:
        axes.plot([low, high], [place, place], color=colour, linewidth=2, alpha=0.75, solid_capstyle="butt")
    marker = MARKERS.get(method, "o")
    if method in REFERENCES:
        axes.plot(value, place, marker, color=colour, markersize=size + 5, markeredgewidth=2.2)
    else:
        axes.plot(value, place, marker, color=colour, markersize=size, markeredgecolor=theme.page, markeredgewidth=0.7)
