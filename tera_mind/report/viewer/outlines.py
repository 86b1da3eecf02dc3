"""Outlines of nuclei, found when they are looked at: blocks are segmented with a halo, and cut into tiles.

A tile's byte is `RIM + PER_PX x d`, d the signed distance in canvas pixels to the nearest nucleus' rim (positive
inside), so that the page draws a line of one width at every zoom. Segmenting what is seen costs under a second a
block and no storage; a label image of a whole brain would double the store.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.segmentation import find_boundaries

from tera_mind.errors import InputError
from tera_mind.formats.ome import mean_pool
from tera_mind.geometry import Box
from tera_mind.report.viewer.layers import Layer
from tera_mind.report.viewer.tiles import Tiles, tile_box

#: side of the square that is segmented at once, and how many are kept
BLOCK_PX = 512
BLOCKS_KEPT = 256
#: a nucleus narrower than this on the screen gets no outline
LEAST_SCREEN_PX = 6.0
RIM, PER_PX = 128, 16


@dataclass(frozen=True)
class Segmenter:
    """How nuclei are found, for all layers alike.

    segment: (section number, image (y, x) uint8) -> labels (y, x), 0 for background; stain: the one it is meant for;
    diameter_px: typical nucleus; halo_px: margin of a block within which its image must be known, so that its nuclei
    are the whole image's; both in canvas pixels.
    """

    segment: Callable[[int, NDArray[np.uint8]], NDArray[np.integer[Any]]]
    stain: str
    diameter_px: float
    halo_px: int

    @property
    def levels(self) -> int:
        """Pyramid levels at which a nucleus is still `LEAST_SCREEN_PX` wide."""
        return max(1, int(np.log2(max(self.diameter_px / LEAST_SCREEN_PX, 1.0))) + 1)

    def to_json(self) -> dict[str, Any]:
        facts = {"stain": self.stain, "levels": self.levels, "diameter_px": self.diameter_px}
        return facts | {"least_screen_px": LEAST_SCREEN_PX, "rim": RIM, "per_px": PER_PX}


class Outlines:
    """Outline tiles of a scene's images; safe to share between threads, every block is segmented once."""

    def __init__(self, tiles: Tiles, segmenter: Segmenter) -> None:
        self._tiles, self._segmenter = tiles, segmenter
        self._blocks: OrderedDict[tuple[str, int, int, int], NDArray[np.uint8]] = OrderedDict()
        self._locks: dict[tuple[str, int, int, int], threading.Lock] = {}
        self._guard = threading.Lock()

    def tile(self, name: str, level: int, section: int, row: int, column: int) -> NDArray[np.uint8]:
        """Distances to rims in a tile, (y, x) uint8, of the same squares as `Tiles.tile`.

        Raises `InputError` where there is no such tile, where nuclei would be too small to be outlined, or where the
        layer lacks the stain.
        """
        layer = self._tiles.layer(name, level, section)
        stain, levels = self._segmenter.stain, self._segmenter.levels
        if stain not in layer.channels or layer.kind == "map":
            raise InputError(f"nuclei are outlined in {stain}, which layer {name} does not have")
        if level >= levels:
            raise InputError(f"nuclei are outlined at levels 0 to {levels - 1}, got {level}")
        box, step = tile_box(layer, level, row, column), 2**level
        height, width = layer.levels[0]
        wide = Box(box.y0 * step, box.y1 * step, box.x0 * step, box.x1 * step).intersect(Box(0, height, 0, width))
        distance = self._region(layer, section, wide)
        for _ in range(level):
            distance = mean_pool(distance)
        return distance

    def _region(self, layer: Layer, section: int, box: Box) -> NDArray[np.uint8]:
        """Distances at full resolution, put together from blocks."""
        whole = np.empty((box.height, box.width), np.uint8)
        for row in range(box.y0 // BLOCK_PX, -(-box.y1 // BLOCK_PX)):
            for column in range(box.x0 // BLOCK_PX, -(-box.x1 // BLOCK_PX)):
                block = Box(row * BLOCK_PX, (row + 1) * BLOCK_PX, column * BLOCK_PX, (column + 1) * BLOCK_PX)
                part = block.intersect(box)
                values = self._block(layer, section, row, column)
                whole[part.shift(-box.y0, -box.x0).slices()] = values[part.shift(-block.y0, -block.x0).slices()]
        return whole

    def _block(self, layer: Layer, section: int, row: int, column: int) -> NDArray[np.uint8]:
        key = (layer.id, section, row, column)
        with self._guard:
            lock = self._locks.setdefault(key, threading.Lock())
        with lock:  # whoever comes second waits and finds it done
            with self._guard:
                if key in self._blocks:
                    self._blocks.move_to_end(key)
                    return self._blocks[key]
            values = self._measure(layer, section, row, column)
            with self._guard:
                self._blocks[key] = values
                while len(self._blocks) > BLOCKS_KEPT:
                    oldest, _ = self._blocks.popitem(last=False)
                    self._locks.pop(oldest, None)
        return values

    def _measure(self, layer: Layer, section: int, row: int, column: int) -> NDArray[np.uint8]:
        height, width = layer.levels[0]
        block = Box(row * BLOCK_PX, (row + 1) * BLOCK_PX, column * BLOCK_PX, (column + 1) * BLOCK_PX)
        block = block.intersect(Box(0, height, 0, width))
        wide = block.grow(self._segmenter.halo_px).intersect(Box(0, height, 0, width))
        image = self._tiles.window(layer, 0, section, wide, layer.channels.index(self._segmenter.stain))
        if not image.any():
            return np.ones((block.height, block.width), np.uint8)
        distance = rim_distance(self._segmenter.segment(section, image))
        return distance[block.shift(-wide.y0, -wide.x0).slices()]


def rim_distance(labels: NDArray[np.integer[Any]]) -> NDArray[np.uint8]:
    """`RIM + PER_PX x` the signed distance to the nearest rim pixel, positive inside, kept within 1 .. 255."""
    rim = find_boundaries(labels, mode="inner")
    if not rim.any():
        return np.ones(labels.shape, np.uint8)
    distance = ndimage.distance_transform_edt(~rim)
    signed = np.where(labels > 0, distance, -distance)
    return np.asarray(np.clip(np.rint(RIM + PER_PX * signed), 1, 255), np.uint8)
