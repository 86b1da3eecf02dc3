"""OME-Zarr 0.5 multiscale images, (c, z, y, x): creating them, their pyramids, and reading windows.

Pixels are uint8; those of a volume may be float16, in [-1, 1], where -1 is what uint8 calls 0. Chunks are 256 px
squares inside shards of at most 2048 px, one stain and one section each, zstd with the checksum of its content. Level
k is the 2 x 2 mean of level k - 1 in y and x. Source of the layout: OME-NGFF 0.5.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import ZstdCodec

from tera_mind.errors import FormatError
from tera_mind.geometry import Box

CHUNK_PX = 256
SHARD_PX = 2048
#: what zarr and its codecs raise on damaged data
DAMAGE = (OSError, ValueError, RuntimeError, KeyError, TypeError)

ZarrArray = zarr.Array[Any]
#: what a pixel is stored as
PixelType = Literal["uint8", "float16"]
PIXEL_TYPES: tuple[PixelType, ...] = ("uint8", "float16")
#: lowest and highest value of a pixel; the lowest is stored nowhere
PIXEL_RANGE: dict[PixelType, tuple[float, float]] = {"uint8": (0, 255), "float16": (-1, 1)}
_COLOURS = ("0000FF", "00FF00", "FF0000", "FFFF00", "FF00FF", "00FFFF", "FFFFFF")


def _shard_px(size_px: int, most_px: int = SHARD_PX) -> int:
    return min(most_px, -(-size_px // CHUNK_PX) * CHUNK_PX)


def _level_shapes(shape: tuple[int, int, int, int]) -> list[tuple[int, int, int, int]]:
    shapes = [shape]
    while max(shapes[-1][2:]) > CHUNK_PX:
        stain, section, height, width = shapes[-1]
        shapes.append((stain, section, -(-height // 2), -(-width // 2)))
    return shapes


def _attributes(
    name: str, stains: Sequence[str], levels: int, pixel_um: float, section_um: float, dtype: PixelType
) -> dict[str, Any]:
    axes = [{"name": "c", "type": "channel"}]
    axes += [{"name": axis, "type": "space", "unit": "micrometer"} for axis in "zyx"]
    datasets = []
    for level in range(levels):
        size_um = pixel_um * 2**level
        shift_um = (size_um - pixel_um) / 2  # the centre of a pooled pixel lies between those it was made of
        datasets.append(
            {
                "path": str(level),
                "coordinateTransformations": [
                    {"type": "scale", "scale": [1.0, section_um, size_um, size_um]},
                    {"type": "translation", "translation": [0.0, 0.0, shift_um, shift_um]},
                ],
            }
        )
    low, high = PIXEL_RANGE[dtype]
    channels = [
        {
            "label": stain,
            "color": _COLOURS[index % len(_COLOURS)],
            "active": True,
            "window": {"start": low, "end": high, "min": low, "max": high},
        }
        for index, stain in enumerate(stains)
    ]
    multiscale = {"name": name, "axes": axes, "datasets": datasets, "type": "2 x 2 mean"}
    return {"version": "0.5", "multiscales": [multiscale], "omero": {"channels": channels}}


def create_multiscale(
    folder: Path,
    shape: tuple[int, int, int, int],
    *,
    name: str,
    stains: Sequence[str],
    pixel_um: float,
    section_um: float = 10.0,
    dtype: PixelType = "uint8",
    shard_px: int = SHARD_PX,
) -> ZarrArray:
    """Create an empty multiscale group in `folder` and return level 0, (stain, section, y, x), for writing.

    `section_um` is the spacing a viewer shows; OME-Zarr 0.5 knows no irregular one. `shard_px`, whole chunks, is the
    largest side of a shard. Fill level 0 in the windows of `shard_windows` (so that no shard is written twice), then
    call `build_pyramid`.
    """
    group = zarr.create_group(folder, zarr_format=3)
    shapes = _level_shapes(shape)
    for level, level_shape in enumerate(shapes):
        group.create_array(
            str(level),
            shape=level_shape,
            dtype=dtype,
            chunks=(1, 1, CHUNK_PX, CHUNK_PX),
            shards=(1, 1, _shard_px(level_shape[2], shard_px), _shard_px(level_shape[3], shard_px)),
            compressors=ZstdCodec(level=3, checksum=True),
            fill_value=PIXEL_RANGE[dtype][0],
            dimension_names=("c", "z", "y", "x"),
        )
    group.attrs["ome"] = _attributes(name, stains, len(shapes), pixel_um, section_um, dtype)
    return open_level(folder, mode="r+", dtype=dtype)


def shard_windows(shape: tuple[int, ...], shard_px: int = SHARD_PX) -> Iterator[Box]:
    """Windows of a level that each fill whole shards, row by row."""
    height, width = shape[-2:]
    return Box(0, height, 0, width).tiles(_shard_px(height, shard_px), _shard_px(width, shard_px))


def window_grid(shape: tuple[int, ...]) -> tuple[int, int]:
    """Rows and columns of the windows of `shard_windows`."""
    height, width = shape[-2:]
    return -(-height // _shard_px(height)), -(-width // _shard_px(width))


def open_level(folder: Path, level: int = 0, mode: Literal["r", "r+"] = "r", dtype: PixelType = "uint8") -> ZarrArray:
    """Open one pyramid level. Raises `FormatError` when it is missing, not 4-D, or of another type."""
    try:
        array = zarr.open_array(folder / str(level), mode=mode)
    except DAMAGE as error:
        raise FormatError(f"expected an image level at {folder / str(level)}, found none ({error})") from None
    if array.ndim != 4 or array.dtype != np.dtype(dtype):
        remedy = "; generate it with --dtype uint8 for this use" if array.dtype == np.float16 else ""
        raise FormatError(
            f"expected a 4-D {dtype} image at {folder / str(level)}, got {array.ndim}-D {array.dtype}{remedy}"
        )
    return array


def holds_bytes(path: Path) -> bool:
    """Whether a file is there and not empty; zarr reads a lost or empty one as zeros."""
    try:
        found = path.stat()
    except OSError:
        return False
    return stat.S_ISREG(found.st_mode) and found.st_size > 0


def pyramid_levels(folder: Path) -> int:
    """Number of pyramid levels in a multiscale group."""
    return sum(1 for path in folder.iterdir() if path.name.isdigit())


def mean_pool(image: NDArray[Any]) -> NDArray[Any]:
    """Halve y and x of (..., y, x) by the rounded mean of 2 x 2 pixels; an odd last row or column counts twice."""
    odd_y, odd_x = image.shape[-2] % 2, image.shape[-1] % 2
    if odd_y or odd_x:
        image = np.pad(image, [(0, 0)] * (image.ndim - 2) + [(0, odd_y), (0, odd_x)], mode="edge")
    whole = image.dtype == np.uint8
    wide: Any = image.astype(np.uint16 if whole else np.float32)
    total = wide[..., ::2, ::2] + wide[..., 1::2, ::2] + wide[..., ::2, 1::2] + wide[..., 1::2, 1::2]
    pooled: NDArray[Any] = ((total + 2) // 4 if whole else total / 4).astype(image.dtype)
    return pooled


def build_pyramid(folder: Path) -> None:
    """Fill levels 1, 2, ... from level 0, a shard at a time."""
    stains, sections = open_level(folder).shape[:2]
    for stain in range(stains):
        for section in range(sections):
            build_plane_pyramid(folder, stain, section)


def build_plane_pyramid(folder: Path, stain: int, section: int) -> None:
    """Fill levels 1, 2, ... of one stain and section from its level 0, a shard at a time."""
    for level in range(1, pyramid_levels(folder)):
        fine, coarse = open_level(folder, level - 1), open_level(folder, level, "r+")
        height, width = fine.shape[2:]
        for box in shard_windows(coarse.shape):
            source = Box(2 * box.y0, min(2 * box.y1, height), 2 * box.x0, min(2 * box.x1, width))
            window = cast("NDArray[np.uint8]", fine[(stain, section, *source.slices())])
            if window.any():  # empty chunks are not stored
                coarse[(stain, section, *box.slices())] = mean_pool(window)


def read_window(array: ZarrArray, box: Box, sections: Iterable[int], fill: int) -> NDArray[Any]:
    """Read (stain, section, y, x) of a box that may leave the image; what lies outside it is `fill`.

    `sections` are indices on the z axis in any order; those that do not exist are `fill` throughout. Raises
    `FormatError` when the stored data is damaged.
    """
    sections = list(sections)
    stains, depth, height, width = array.shape
    window = np.full((stains, len(sections), box.height, box.width), fill, array.dtype)
    inside = box.intersect(Box(0, height, 0, width))
    if inside.is_empty:
        return window
    target = inside.shift(-box.y0, -box.x0).slices()
    try:
        for first, last in _runs(sections, depth):
            if 0 <= sections[first] < depth:
                planes = slice(sections[first], sections[last - 1] + 1)
                window[(slice(None), slice(first, last), *target)] = array[(slice(None), planes, *inside.slices())]
    except DAMAGE as error:
        raise FormatError(f"image data of {array.store_path} is damaged at {inside}: {error}; write it again") from None
    return window


def _runs(sections: list[int], depth: int) -> Iterator[tuple[int, int]]:
    """Positions [first, last) of stretches of consecutive sections, wholly inside 0 .. depth - 1 or outside."""
    first = 0
    for index in range(1, len(sections) + 1):
        if index == len(sections) or sections[index] != sections[index - 1] + 1 or sections[index] in {0, depth}:
            yield first, index
            first = index
