"""Maps over a brain: one number a place (uncertainty, attention, density), as OME-Zarr (channel, section, y, x) uint8.

Version 2. Value 0 says that nothing is known there; 1 .. 255 stand for `low` .. `high` in even steps, or for a
channel's own range. A map pixel covers a square of `step_px` canvas pixels; pixel (0, 0) starts at the box's corner.
Pyramid levels average what is known, so that holes do not darken their surroundings. An exact map keeps its numbers
beside the image as well: `values`, float32 of the image's shape, NaN where nothing is known; measure on these. Version
1, still read, had neither ranges by channel nor exact values nor details.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import ZstdCodec

from tera_mind import __version__
from tera_mind.errors import FormatError, InputError
from tera_mind.formats.atomic import atomic_directory
from tera_mind.formats.brain import read_attributes
from tera_mind.formats.ome import (
    CHUNK_PX,
    DAMAGE,
    ZarrArray,
    create_multiscale,
    open_level,
    pyramid_levels,
    shard_windows,
)
from tera_mind.geometry import Box

VERSION = 2
_OLDEST_VERSION = 1
#: the numbers themselves, in the group of an exact map
_VALUES = "values"
#: steps between `low` (stored as 1) and `high` (stored as 255)
STEPS = 254
_KEYS = ("name", "unit", "low", "high", "box", "sections", "step_px", "pixel_um", "channels")


@dataclass(frozen=True)
class MapAttributes:
    """What a map shows and where it lies.

    name: shown to readers; unit: of its values, "" where there is none; channels: one name each; low, high: values
    stored as 1 and 255, what lies beyond is clipped; box: canvas pixels covered; sections: the brain's section
    numbers, one a plane; step_px: canvas pixels a map pixel; pixel_um: size of a canvas pixel; ranges: (low, high) of
    every channel, where they differ; exact: whether the numbers themselves are kept; details: how the map was made,
    plain JSON.
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
    ranges: tuple[tuple[float, float], ...] = ()
    exact: bool = False
    details: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for low, high in ((self.low, self.high), *self.ranges):
            if not (np.isfinite([low, high]).all() and low < high):
                raise InputError(f"a map needs finite bounds low < high, got {low} and {high}")
        if self.ranges and len(self.ranges) != len(self.channels):
            raise InputError(f"a map has one range a channel, got {len(self.ranges)} for {len(self.channels)} channels")
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

    def bounds(self, channel: int) -> tuple[float, float]:
        """Values of a channel that are stored as 1 and 255."""
        return self.ranges[channel] if self.ranges else (self.low, self.high)

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
            "ranges": [list(bounds) for bounds in self.ranges],
            "exact": self.exact,
            "details": self.details,
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
            ranges=tuple((float(low), float(high)) for low, high in record.get("ranges", ())),
            exact=bool(record.get("exact", False)),
            details=dict(record.get("details", {})),
        )

    def encode(self, values: NDArray[np.float32], channel: int) -> NDArray[np.uint8]:
        """A channel's values as stored: 1 .. 255, 0 where they are not finite."""
        low, high = self.bounds(channel)
        known = np.isfinite(values)
        share = (np.where(known, values, low) - low) / (high - low)
        return np.where(known, np.rint(share.clip(0, 1) * STEPS) + 1, 0).astype(np.uint8)

    def decode(self, stored: NDArray[np.uint8], channel: int) -> NDArray[np.float32]:
        """Stored bytes of a channel as values, NaN where nothing is known."""
        low, high = self.bounds(channel)
        values = low + (stored.astype(np.float32) - 1) * ((high - low) / STEPS)
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
        record = read_attributes(path, "map", VERSION, _KEYS, "give a map that tera-mind wrote", oldest=_OLDEST_VERSION)
        try:
            opened = cls(path, MapAttributes.from_json(record))
        except (KeyError, TypeError, ValueError) as error:
            raise FormatError(f"attributes of {path} are malformed ({error!r}); write the map again") from None
        if opened._image.shape != opened.shape:
            raise FormatError(f"{path} promises a map of {opened.shape}, holds {opened._image.shape}")
        if opened.attributes.exact and opened._exact.shape != opened.shape:
            raise FormatError(f"{path} promises values of {opened.shape}, holds {opened._exact.shape}")
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
        if values.shape != attributes.shape:
            raise InputError(f"a map of {attributes.shape} was promised, got {values.shape}")
        with writing_map(path, attributes) as writer:
            for box in writer.windows:
                for channel, plane in np.ndindex(values.shape[:2]):
                    writer.write(channel, plane, box, values[(channel, plane, *box.slices())])
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

    @cached_property
    def _exact(self) -> ZarrArray:
        try:
            return zarr.open_array(self.path / _VALUES, mode="r")
        except DAMAGE as error:
            raise FormatError(f"expected the values of a map at {self.path / _VALUES}, found none ({error})") from None

    def plane(self, channel: str, section: int, box: Box | None = None) -> NDArray[np.float32]:
        """A channel of a section, (y, x) map pixels of a box (default: all), NaN where nothing is known.

        Exact where the map is, else to half a step. Raises `InputError` where there is no such channel or section,
        `FormatError` where data is damaged.
        """
        own = self.attributes
        if channel not in own.channels or section not in own.sections:
            raise InputError(
                f"map {self.path} has channels {', '.join(own.channels)} and sections {list(own.sections)}, asked for "
                f"{channel!r} of section {section}"
            )
        number, layer = own.channels.index(channel), own.sections.index(section)
        box = Box(0, self.shape[2], 0, self.shape[3]) if box is None else box
        source = self._exact if own.exact else self._image
        try:
            window = np.asarray(source[(number, layer, *box.slices())])
        except DAMAGE as error:
            raise FormatError(f"{self.path} is damaged at {box}: {error}; write it again") from None
        return window.astype(np.float32) if own.exact else own.decode(window, number)

    def values(self) -> NDArray[np.float32]:
        """The whole map, (channel, section, y, x), NaN where nothing is known; exact where the map is."""
        own = self.attributes
        return np.stack([np.stack([self.plane(name, z) for z in own.sections]) for name in own.channels])


class MapWriter:
    """Fills a map window by window; only what is being written is in memory."""

    def __init__(self, folder: Path, attributes: MapAttributes) -> None:
        self._attributes, shape = attributes, attributes.shape
        self._level = create_multiscale(
            folder,
            shape,
            name=attributes.name,
            stains=attributes.channels,
            pixel_um=attributes.pixel_um * attributes.step_px,
        )
        self._exact: ZarrArray | None = None
        #: map pixels to write at once, so that no file is written twice
        self.windows = tuple(shard_windows(shape))
        if attributes.exact:
            self._exact = zarr.open_group(folder, mode="r+").create_array(
                _VALUES,
                shape=shape,
                dtype="float32",
                chunks=(1, 1, CHUNK_PX, CHUNK_PX),
                shards=self._level.shards,
                compressors=ZstdCodec(level=3, checksum=True),
                fill_value=np.nan,
                dimension_names=("c", "z", "y", "x"),
            )

    def write(self, channel: int, plane: int, box: Box, values: NDArray[np.float32]) -> None:
        """One of `windows` of a channel and plane: float32 (y, x), not finite where nothing is known."""
        at = (channel, plane, *box.slices())
        self._level[at] = self._attributes.encode(values, channel)
        if self._exact is not None:
            self._exact[at] = np.where(np.isfinite(values), values, np.float32(np.nan)).astype(np.float32)


@contextmanager
def writing_map(path: Path, attributes: MapAttributes) -> Iterator[MapWriter]:
    """A writer of the map at `path`, which appears whole, with its pyramid, when the block ends without an error."""
    with atomic_directory(path) as folder:
        yield MapWriter(folder, attributes)
        _build_pyramid(folder)
        zarr.open_group(folder, mode="r+").attrs["tera_mind"] = attributes.to_json()


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
