"""Planes made of planes: a mosaic of which a window opens only the tiles it touches, a turned one, the brightest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tera_mind.geometry import Box
from tera_mind.ingest.source import Plane
from tera_mind.ingest.tiff import MaxPlane


@dataclass(frozen=True, eq=False)
class MosaicPlane:
    """Tiles on a canvas; where two overlap the later one lies on top, where none is the value is 0.

    boxes: (tile, 4) int64, `y0, y1, x0, x1` of every tile on the canvas; tiles: their planes, of the boxes' sizes,
    opened when asked for; dtype: uint8 or uint16.
    """

    boxes: NDArray[np.int64]
    tiles: Sequence[Plane]
    shape: tuple[int, int]
    dtype: str

    def read(self, box: Box) -> NDArray[Any]:
        """Pixels (y, x) of a box inside the image; raises what the tiles raise."""
        window = np.zeros((box.height, box.width), self.dtype)
        y0, y1, x0, x1 = self.boxes.T
        touched = (y0 < box.y1) & (y1 > box.y0) & (x0 < box.x1) & (x1 > box.x0)
        for index in np.flatnonzero(touched).tolist():
            tile = Box(*self.boxes[index].tolist())
            part = tile.intersect(box)
            pixels = self.tiles[index].read(part.shift(-tile.y0, -tile.x0))
            window[part.shift(-box.y0, -box.x0).slices()] = pixels
        return window


@dataclass(frozen=True)
class TurnedPlane:
    """A plane turned by 180 degrees."""

    plane: Plane

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width)."""
        return self.plane.shape

    def read(self, box: Box) -> NDArray[Any]:
        """Pixels (y, x) of a box inside the image."""
        height, width = self.plane.shape
        return self.plane.read(Box(height - box.y1, height - box.y0, width - box.x1, width - box.x0))[::-1, ::-1]


def max_over(planes: Sequence[Plane], name: str) -> Plane:
    """The brightest of several planes of one shape; a single one as it is."""
    return planes[0] if len(planes) == 1 else MaxPlane(planes, name)
