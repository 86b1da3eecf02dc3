"""Figures of an attention map in the manner of arXiv 2503.01220: heat maps, joint plots, the surface of neighbours.

Levels are log2(attention * G + 1) and log2(transcripts + 1), so that uniform attention to a gene and a transcript both
are 1. As published, attention levels are 0 where a gene of the set is absent, and joint plots leave such patches out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray
from scipy import ndimage

from tera_mind.formats.attention_map import ATTENTION, NEXT, PREVIOUS, PRODUCT, UNWEIGHTED
from tera_mind.formats.maps import Map
from tera_mind.report.figures import Plot, Theme, panels

Plane = NDArray[np.float32]
#: Gaussian of the heat maps, patches
SIGMA = 2.0
#: most genes with a panel of their own, most patches a side of a picture, most points of a joint plot
MOST_GENES, MOST_PATCHES, MOST_POINTS = 6, 700, 20_000
_COLOURS = ("#e0653a", "#5b8fd0", "#3fa38c", "#b59a55", "#9b7fc4", "#d277a5")


def smooth(level: Plane, sigma: float = SIGMA) -> Plane:
    """Gaussian mean of what is known around each patch; NaN stays NaN and darkens nothing."""
    known = np.isfinite(level)
    total = ndimage.gaussian_filter(np.where(known, level, 0.0).astype(np.float64), sigma, mode="constant")
    share = ndimage.gaussian_filter(known.astype(np.float64), sigma, mode="constant")
    return np.where(known, total / np.maximum(share, 1e-12), np.nan).astype(np.float32)


class Levels:
    """One section of an attention map as levels."""

    def __init__(self, attention: Map, section: int) -> None:
        self.map, self.section = attention, section
        self.genes: tuple[str, ...] = tuple(attention.attributes.details["genes"])
        self.panel = int(attention.attributes.details["panel"])
        self.expression = {gene: self._read(gene) for gene in self.genes}
        self.present = np.all([values > 0 for values in self.expression.values()], axis=0)

    def _read(self, channel: str) -> Plane:
        return self.map.plane(channel, self.section)

    def gene(self, gene: str) -> Plane:
        """log2(transcripts + 1)."""
        return np.log2(self.expression[gene] + 1)

    def product(self) -> Plane:
        """log2(product + 1)."""
        return np.log2(self._read(PRODUCT) + 1)

    def attention(self, channel: str = ATTENTION) -> Plane:
        """log2(attention * G + 1), 0 where a gene of the set is absent."""
        level = np.log2(self._read(channel) * self.panel + 1)
        return np.where(np.isfinite(level), level * self.present, np.nan).astype(np.float32)

    def unweighted(self) -> Plane:
        """log2(attention * G + 1) without expression; known wherever there are transcripts."""
        return np.log2(self._read(UNWEIGHTED) * self.panel + 1)


def _coarse(level: Plane) -> Plane:
    step = max(1, -(-max(level.shape) // MOST_PATCHES))
    return level[::step, ::step]


def heat_maps(levels: Levels) -> Plot:
    """Attention, weighted and not, the product and the genes, each smoothed."""
    shown: list[tuple[str, Plane, str]] = [
        ("attention", levels.attention(), "inferno"),
        ("attention, unweighted", levels.unweighted(), "inferno"),
        ("product of expression", levels.product(), "viridis"),
        *((gene, levels.gene(gene), "viridis") for gene in levels.genes[:MOST_GENES]),
    ]
    across = min(3, len(shown))
    rows = -(-len(shown) // across)
    height, width = shown[0][1].shape

    def draw(axes: NDArray[Any], _theme: Theme) -> None:
        for panel in axes.flat[len(shown) :]:
            panel.set_visible(False)
        for panel, (name, level, colours) in zip(axes.flat, shown, strict=False):
            picture = smooth(level)
            known = picture[np.isfinite(picture)]
            low = float(np.percentile(known, 1)) if name.endswith("unweighted") and len(known) else 0.0
            high = float(np.percentile(known, 99.5)) if len(known) else 1.0
            image = panel.imshow(
                _coarse(picture), cmap=colours, vmin=low, vmax=max(high, low + 1e-3), interpolation="nearest"
            )
            panel.set_title(name)
            panel.grid(visible=False)
            panel.set_xticks([])
            panel.set_yticks([])
            for spine in panel.spines.values():
                spine.set_visible(False)
            panel.figure.colorbar(image, ax=panel, shrink=0.8)

    size = (11.0, 0.5 + rows * (0.4 + 3.3 * min(1.6, max(0.3, height / width))))
    words = f"log2 levels of section {levels.section}, Gaussian of {SIGMA:g} patches"
    return panels(
        "maps", f"heat maps of attention and expression, {words}", f"{words}. Attention that looks like the product "
        "or a gene's map says no more than these do.", draw, size, (rows, across), wide=True,
    )  # fmt: skip


def regression(x: NDArray[Any], y: NDArray[Any]) -> tuple[float, float, float] | None:
    """Slope, intercept and Pearson correlation of y on x; None where either does not vary."""
    if len(x) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    slope, intercept = np.polyfit(x.astype(np.float64), y.astype(np.float64), 1)
    return float(slope), float(intercept), float(np.corrcoef(x, y)[0, 1])


def joint_plots(levels: Levels) -> Plot:
    """Attention against each gene's expression over patches where the whole set is present, with marginals."""
    genes = levels.genes[:MOST_GENES]
    kept = levels.present & np.isfinite(levels.attention())
    y = levels.attention()[kept]
    chosen = np.random.default_rng([0, len(y)]).permutation(len(y))[:MOST_POINTS]

    def draw(axes: NDArray[Any], theme: Theme) -> None:
        for k, gene in enumerate(genes):
            colour = _COLOURS[k % len(_COLOURS)]
            _joint(axes[:, 2 * k : 2 * k + 2], levels.gene(gene)[kept], y, chosen, gene, colour, theme)

    ratios = {"width_ratios": [4, 1] * len(genes), "height_ratios": [1, 4]}
    words = f"patches of section {levels.section} that hold every gene of the set ({len(y):,})"
    return panels(
        "joint", f"attention against expression, {words}", f"{words}; the line is the least-squares fit of attention "
        "on that gene's expression. Attention is weighted by expression, so some slope is there by construction.",
        draw, (4.6 * len(genes), 4.4), (2, 2 * len(genes)), wide=True, gridspec_kw=ratios,
    )  # fmt: skip


def _joint(
    axes: NDArray[Any], x: Plane, y: Plane, chosen: NDArray[np.int64], gene: str, colour: str, theme: Theme
) -> None:
    top, corner, middle, right = axes[0, 0], axes[0, 1], axes[1, 0], axes[1, 1]
    corner.set_visible(False)
    middle.plot(x[chosen], y[chosen], ".", color=colour, markersize=2, alpha=0.35, rasterized=True)
    fit = regression(x, y)
    if fit is not None:
        ends = np.array([x.min(), x.max()])
        middle.plot(ends, fit[0] * ends + fit[1], color=theme.ink, linewidth=1.6)
        top.set_title(f"{gene}: slope {fit[0]:.2f}, r {fit[2]:.2f}", loc="left")
    else:
        top.set_title(f"{gene}: too few patches", loc="left")
    middle.set_xlabel(f"{gene}, log2(transcripts + 1)")
    middle.set_ylabel("attention, log2(A x G + 1)")
    if len(x):
        top.hist(x, bins=40, color=colour, alpha=0.7)
        right.hist(y, bins=40, color=theme.soft, alpha=0.7, orientation="horizontal")
        top.set_xlim(middle.get_xlim())
        right.set_ylim(middle.get_ylim())
    for panel in (top, right):
        panel.set_xticks([])
        panel.set_yticks([])
        panel.grid(visible=False)
        for spine in panel.spines.values():
            spine.set_visible(False)


def neighbour_surface(levels: Levels) -> Plot:
    """Attention between the section and the one before (upwards) and the one after (downwards, mirrored)."""
    up, down = (smooth(levels.attention(channel)) for channel in (PREVIOUS, NEXT))
    step = max(1, -(-max(up.shape) // 160))
    known = np.concatenate([part[np.isfinite(part)] for part in (up, down)])
    high = max(float(np.percentile(known, 99.5)), 1e-3) if len(known) else 1.0
    gap = high / 2

    def draw(axes: NDArray[Any], theme: Theme) -> None:
        panel: Any = axes[0, 0]  # an Axes3D, which has no type stubs
        y, x = np.mgrid[0 : up.shape[0] : step, 0 : up.shape[1] : step]
        for level, sign, colours in ((up, 1.0, "coolwarm"), (down, -1.0, "coolwarm_r")):
            part = level[::step, ::step]
            height = np.where(np.isfinite(part), sign * (part + gap), np.nan)
            limits = (gap, gap + high) if sign > 0 else (-gap - high, -gap)
            panel.plot_surface(
                x, y, height, cmap=colours, vmin=limits[0], vmax=limits[1], rstride=1, cstride=1, linewidth=0
            )
        panel.set_box_aspect((up.shape[1], up.shape[0], 0.5 * max(up.shape)))
        panel.invert_yaxis()
        panel.set_xticks([])
        panel.set_yticks([])
        ticks = [-gap - high, -gap, gap, gap + high]
        panel.set_zticks(ticks, [f"{abs(tick) - gap:.1f}" for tick in ticks])
        panel.set_zlabel("next        previous")
        panel.set_facecolor(theme.page)

    words = (
        f"attention of section {levels.section} with its neighbours alone: above previous-current, below current-next"
    )
    return panels(
        "neighbours", words, f"{words}; log2 levels, Gaussian of {SIGMA:g} patches, both on one scale.", draw,
        (7.5, 5.5), wide=True, subplot_kw={"projection": "3d"},
    )  # fmt: skip


def partner_bars(gene: str, table: Sequence[Mapping[str, Any]]) -> Plot:
    """The first partners of a gene: attention over uniform, filled where both nulls are left behind (q < 0.05)."""

    def draw(axes: NDArray[Any], theme: Theme) -> None:
        panel: Axes = axes[0, 0]
        for place, row in enumerate(table):
            clear = row["q_genes"] < 0.05 and row["q_shift"] < 0.05
            panel.plot([1, row["ratio"]], [place, place], color=_COLOURS[0], linewidth=2)
            panel.plot(
                row["ratio"], place, "o", color=_COLOURS[0], markerfacecolor=_COLOURS[0] if clear else theme.page
            )
        panel.axvline(1.0, color=theme.soft, linewidth=1)
        panel.set_yticks(range(len(table)), [row["gene"] for row in table])
        panel.set_ylim(len(table) - 0.4, -0.6)
        panel.set_xlabel("attention over uniform attention")
        panel.grid(visible=False, axis="y")

    words = f"genes that {gene} attends to most, weighted by its own expression"
    return panels(
        "partners", words, f"{words}. Filled: q < 0.05 under both nulls (genes permuted, spatial shift).", draw,
        (5.4, 0.9 + 0.3 * len(table)),
    )  # fmt: skip
