"""Whether all nuclei have transcripts: image and transcripts of different fields of view overlap only in part."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.filters import threshold_otsu

from tera_mind.formats.brain import Brain
from tera_mind.geometry import Box

#: side of a grid cell, about a nucleus
GRID_UM = 8.0
#: cells a side that are taken together, the fewest in which nuclei typically have so many transcripts
NEIGHBOURS, ENOUGH = (1, 3, 5), 10.0
#: cells with less than this part of the section's typical density around nuclei have none
BARE = 0.02


def uncovered_share(
    density: NDArray[np.float64], stain: NDArray[np.float64], tissue: NDArray[np.bool_]
) -> float | None:
    """Share of the nuclear area around which there are no transcripts; None where no nucleus can be told.

    `density` (transcripts), `stain` (mean intensity) and `tissue` are maps of one section on one grid of about
    `GRID_UM`. Nuclear area: brighter than Otsu's threshold of the tissue.
    """
    inside = stain[tissue]
    if inside.size < 2 or inside.min() == inside.max():
        return None
    nuclear = tissue & (stain > threshold_otsu(inside))
    if not nuclear.any():
        return None
    for side in NEIGHBOURS:
        around = ndimage.uniform_filter(density, side, mode="nearest")[nuclear] * side**2
        measured = around[around > 0.5]  # sums of whole numbers, but for rounding
        typical = float(np.median(measured)) if measured.size else 0.0
        if typical >= ENOUGH:
            break
    return float((around <= max(0.5, BARE * typical)).mean())


def grid_px(brain: Brain) -> int:
    """Side of a grid cell in canvas pixels."""
    return max(1, round(GRID_UM / brain.pixel_um))


def stain_grid(brain: Brain, section: int, stain: int, box: Box, step: int) -> NDArray[np.float64]:
    """Mean intensity of a band of the canvas in cells of `step` pixels; the last ones average what they hold."""
    image = brain.image(box, [section])[stain, 0].astype(np.float64)
    edges_y, edges_x = (np.arange(0, size, step) for size in image.shape)
    totals = np.add.reduceat(np.add.reduceat(image, edges_y, axis=0), edges_x, axis=1)
    heights, widths = (np.diff(edges, append=size) for edges, size in zip((edges_y, edges_x), image.shape, strict=True))
    return np.asarray(totals / np.outer(heights, widths), np.float64)
