"""Maps over a brain: one number a place (uncertainty, attention, density), as OME-Zarr (channel, section, y, x) uint8.

Version 1. Value 0 says that nothing is known there; 1 .. 255 stand for `low` .. `high` in even steps. A map pixel
covers a square of `step_px` canvas pixels; pixel (0, 0) starts at the box's corner. Pyramid levels average what is
known, so that holes do not darken their surroundings.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import zarr
from numpy.typing import NDArray

from tera_mind import __version__
from tera_mind.errors import FormatError, InputError
from tera_mind.formats.atomic import atomic_directory
from tera_mind.formats.brain import read_attributes
from tera_mind.formats.ome import (
    ZarrArray,
    create_multiscale,
    open_level,
    pyramid_levels,
    read_window,
    shard_windows,
)
from tera_mind.geometry import Box

VERSION = 1
#: steps between `low` (stored as 1) and `high` (stored as 255)
STEPS = 254
_KEYS = ("name", "unit", "low", "high", "box", "sections", "step_px", "pixel_um", "channels")


@dataclass(frozen=True)
class MapAttributes:
    """What a map shows and where it lies.

    name: shown to readers; unit: of its values, "" where there is none; channels: one name each; low, high: values
    stored as 1 and 255, what lies beyond is clipped; box: canvas pixels covered; sections: the brain's section
    numbers, one a plane; step_px: canvas pixels a map pixel; pixel_um: size of a canvas pixel.
    """

    name: str
    unit: str
    channels: tuple[str, ...]
    low: float
    high: float
    box: Box
    sections: tuple[int, ...]
    step_px: int
    pixel_um: float

    def __post_init__(self) -> None:
        if not (np.isfinite([self.low, self.high]).all() and self.low < self.high):
            raise InputError(f"a map needs finite bounds low < high, got {self.low} and {self.high}")
        if self.step_px < 1 or self.box.is_empty or not self.channels or not self.sections:
            raise InputError(
                "a map needs channels, sections, a box and a step of at least 1 px, "
                f"got {len(self.channels)} channels, {len(self.sections)} sections, box {self.box}, {self.step_px} px"
            )
        for what, names in (("channel", self.channels), ("section", self.sections)):
            if len(set(names)) != len(names):
                raise InputError(f"every {what} of a map comes once, got {names}")

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(channel, section, rows, columns) of map pixels; those at the far edges may reach beyond the box."""
        height, width = (-(-size // self.step_px) for size in (self.box.height, self.box.width))
        return len(self.channels), len(self.sections), height, width

    def to_json(self) -> dict[str, Any]:
        return {
            "format": "map",
            "version": VERSION,
            "name": self.name,
            "unit": self.unit,
            "channels": list(self.channels),
            "low": self.low,
            "high": self.high,
            "box": [self.box.y0, self.box.y1, self.box.x0, self.box.x1],
            "sections": list(self.sections),
            "step_px": self.step_px,
            "pixel_um": self.pixel_um,
            "software": {"tera_mind": __version__, "zarr": zarr.__version__},
        }

    @staticmethod
    def from_json(record: Mapping[str, Any]) -> MapAttributes:
        return MapAttributes(
            name=str(record["name"]),
            unit=str(record["unit"]),
            channels=tuple(record["channels"]),
            low=float(record["low"]),
            high=float(record["high"]),
            box=Box(*record["box"]),
            sections=tuple(record["sections"]),
            step_px=int(record["step_px"]),
            pixel_um=float(record["pixel_um"]),
        )

    def encode(self, values: NDArray[np.float32]) -> NDArray[np.uint8]:
        """Values as stored: 1 .. 255, 0 where they are not finite."""
        known = np.isfinite(values)
        share = (np.where(known, values, self.low) - self.low) / (self.high - self.low)
        return np.where(known, np.rint(share.clip(0, 1) * STEPS) + 1, 0).astype(np.uint8)

    def decode(self, stored: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Stored bytes as values, NaN where nothing is known."""
        values = self.low + (stored.astype(np.float32) - 1) * ((self.high - self.low) / STEPS)
        return np.where(stored == 0, np.float32(np.nan), values).astype(np.float32)


class Map:
    """A map opened for reading; picklable, arrays are opened when first used."""

    def __init__(self, path: Path, attributes: MapAttributes) -> None:
        self.path = path
        self.attributes = attributes

    @classmethod
    def open(cls, path: str | Path) -> Map:
        """Open and validate a map. Raises `MissingFileError` or `FormatError`."""
        path = Path(path)
        record = read_attributes(path, "map", VERSION, _KEYS, "give a map that tera-mind wrote")
        try:
            opened = cls(path, MapAttributes.from_json(record))
        except (KeyError, TypeError, ValueError) as error:
            raise FormatError(f"attributes of {path} are malformed ({error!r}); write the map again") from None
        if opened._image.shape != opened.shape:
            raise FormatError(f"{path} promises a map of {opened.shape}, holds {opened._image.shape}")
        return opened

    @classmethod
    def write(
        cls, path: str | Path, values: NDArray[np.float32], attributes: MapAttributes, *, overwrite: bool = True
    ) -> Map:
        """Write float32 (channel, section, y, x) with its pyramid, whole or not at all, and open it.

        Values that are not finite become "nothing known". Raises `InputError` when the values do not have the
        attributes' shape, or the path is taken and `overwrite` is false.
        """
        path = Path(path)
        if path.exists() and not overwrite:
            raise InputError(f"{path} is already there; choose another path or overwrite it")
        shape = attributes.shape
        if values.shape != shape:
            raise InputError(f"a map of {shape} was promised, got {values.shape}")
        with atomic_directory(path) as folder:
            level = create_multiscale(
                folder,
                shape,
                name=attributes.name,
                stains=attributes.channels,
                pixel_um=attributes.pixel_um * attributes.step_px,
            )
            for channel in range(shape[0]):
                for plane in range(shape[1]):
                    for box in shard_windows(shape):
                        at = (channel, plane, *box.slices())
                        level[at] = attributes.encode(values[at])
            _build_pyramid(folder)
            zarr.open_group(folder, mode="r+").attrs["tera_mind"] = attributes.to_json()
        return cls.open(path)

    def __reduce__(self) -> tuple[Any, ...]:
        return Map, (self.path, self.attributes)

    def __repr__(self) -> str:
        return f"Map({str(self.path)!r}, name={self.attributes.name!r}, shape={self.shape})"

    @cached_property
    def _image(self) -> ZarrArray:
        return open_level(self.path)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(channel, section, rows, columns)."""
        return self.attributes.shape

    def values(self) -> NDArray[np.float32]:
        """The whole map, (channel, section, y, x), NaN where nothing is known."""
        rows, columns = self.shape[2:]
        return self.attributes.decode(read_window(self._image, Box(0, rows, 0, columns), range(self.shape[1]), 0))


def value_range(values: NDArray[np.float32]) -> tuple[float, float]:
    """Bounds (low, high) that hold all finite values, low < high always. Raises `InputError` where none is finite."""
    known = values[np.isfinite(values)]
    if not known.size:
        raise InputError("a map needs at least one finite value to have a range, got none")
    low, high = float(known.min()), float(known.max())
    return (low, high) if low < high else (low, low + max(abs(low), 1.0) * 1e-3)


def known_mean(stored: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Halve y and x of (y, x) by the rounded mean of the known ones of 2 x 2 pixels; 0 where none is known."""
    wide = np.pad(stored, [(0, size % 2) for size in stored.shape]).astype(np.uint16)
    quarters = np.stack([wide[::2, ::2], wide[1::2, ::2], wide[::2, 1::2], wide[1::2, 1::2]])
    count = (quarters > 0).sum(0)
    return np.asarray((2 * quarters.sum(0) + count) // np.maximum(2 * count, 1), np.uint8)


def _build_pyramid(folder: Path) -> None:
    for number in range(1, pyramid_levels(folder)):
        fine, coarse = open_level(folder, number - 1), open_level(folder, number, "r+")
        height, width = fine.shape[2:]
        for box in shard_windows(coarse.shape):
            source = Box(2 * box.y0, min(2 * box.y1, height), 2 * box.x0, min(2 * box.x1, width))
            for channel in range(fine.shape[0]):
                for plane in range(fine.shape[1]):
                    window = cast("NDArray[np.uint8]", fine[(channel, plane, *source.slices())])
                    coarse[(channel, plane, *box.slices())] = known_mean(window)
