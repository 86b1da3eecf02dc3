"""Tiles for the page: squares of one pyramid level, as they lie in the store."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from tera_mind.errors import FormatError, InputError
from tera_mind.formats.ome import DAMAGE, ZarrArray, open_level
from tera_mind.geometry import Box
from tera_mind.report.viewer.layers import TILE_PX, Layer, Scene

#: tiles kept in memory, at most 64 KiB each
TILES_KEPT = 2048


class Tiles:
    """Reads tiles of a scene's layers and keeps the latest; safe to share between threads."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        self._arrays: dict[tuple[str, int], ZarrArray] = {}
        self.tile = lru_cache(maxsize=TILES_KEPT)(self._tile)

    def layer(self, name: str, level: int, section: int) -> Layer:
        """The layer of this id. Raises `InputError` where it, its level or its section does not exist."""
        layer = self._scene.layer(name)
        if layer is None:
            raise InputError(f"expected a layer of {[layer.id for layer in self._scene.layers]}, got {name!r}")
        if not 0 <= level < len(layer.levels):
            raise InputError(f"layer {name} has levels 0 to {len(layer.levels) - 1}, got {level}")
        if section not in layer.sections:
            raise InputError(f"layer {name} has sections {list(layer.sections)}, got {section}")
        return layer

    def _tile(self, name: str, level: int, section: int, row: int, column: int, channel: int) -> NDArray[np.uint8]:
        """A square of `TILE_PX` pixels of a level (less at its far edges), (y, x) uint8.

        `section` is the canvas' number, `channel` the layer's. Raises `InputError` when there is no such tile,
        `FormatError` when its data is damaged.
        """
        layer = self.layer(name, level, section)
        if not 0 <= channel < len(layer.channels):
            raise InputError(f"layer {name} has {len(layer.channels)} channels, got number {channel}")
        return self.window(layer, level, section, tile_box(layer, level, row, column), channel)

    def window(self, layer: Layer, level: int, section: int, box: Box, channel: int) -> NDArray[np.uint8]:
        """A box inside a level, (y, x) uint8."""
        key = (layer.id, level)
        if key not in self._arrays:
            self._arrays[key] = open_level(layer.image, level)
        try:
            return np.asarray(self._arrays[key][(channel, layer.sections.index(section), *box.slices())], np.uint8)
        except DAMAGE as error:
            raise FormatError(f"{layer.store} is damaged at level {level}, {box}: {error}; write it again") from None


def tile_box(layer: Layer, level: int, row: int, column: int) -> Box:
    """Pixels of a level that a tile covers. Raises `InputError` when it lies outside."""
    height, width = layer.levels[level]
    if not (0 <= row * TILE_PX < height and 0 <= column * TILE_PX < width):
        rows, columns = -(-height // TILE_PX), -(-width // TILE_PX)
        raise InputError(f"level {level} of {layer.id} has {rows} x {columns} tiles, got ({row}, {column})")
    return Box(row * TILE_PX, (row + 1) * TILE_PX, column * TILE_PX, (column + 1) * TILE_PX).intersect(
        Box(0, height, 0, width)
    )
