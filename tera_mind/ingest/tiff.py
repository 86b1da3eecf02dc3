"""Planes of TIFF files, read window by window: mapped, by tiles, or (compressed strips) by bands of rows."""

from __future__ import annotations

import logging
import struct
import threading
import zlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
import zarr
from numpy.typing import NDArray

from tera_mind.errors import FormatError, InputError, MissingFileError
from tera_mind.formats.ome import DAMAGE
from tera_mind.geometry import Box
from tera_mind.ingest.source import Plane

#: what tifffile and its codecs raise on damaged files
UNREADABLE = (
    *DAMAGE, tifffile.TiffFileError, IndexError, ArithmeticError, AttributeError, MemoryError, struct.error, zlib.error
)  # fmt: skip
#: what it logs about a damaged file is told, in one line, by the error that follows
tifffile.logger().setLevel(logging.CRITICAL)
#: decoded strips that are kept for the next window beside
_BAND_BYTES = 2**29


class TiffPlane:
    """A page of a TIFF (BigTIFF, OME-TIFF), the first by default: a lazy 2-D image.

    Raises `MissingFileError` or `FormatError` when it is none, or when the file ends before its pixels do.
    """

    def __init__(self, path: Path, page: int = 0) -> None:
        if not path.is_file():
            raise MissingFileError(f"expected an image at {path}, nothing is there")
        self.path, self.page = path, page
        try:
            # is_ome=False: this page is wanted, not the set of files that the OME-XML may tie it to
            with tifffile.TiffFile(path, is_ome=False) as tif:
                found: Any = tif.pages[page]
                shape, dtype = found.shape, np.dtype(found.dtype)
                self._tiled, self._mapped = bool(found.is_tiled), bool(found.is_memmappable)
                complaint = _incomplete(found, path.stat().st_size)
        except UNREADABLE as error:
            raise FormatError(f"image {path} cannot be read as TIFF ({error}); is it damaged or incomplete?") from None
        if len(shape) != 2 or dtype not in (np.uint8, np.uint16) or 0 in shape:
            raise FormatError(f"expected a 2-D uint8 or uint16 image in {path}, got {shape} {dtype}")
        if complaint:
            raise FormatError(f"image {path} is damaged or incomplete ({complaint}); copy it again")
        self.dtype = dtype
        self._shape: tuple[int, int] = (int(shape[0]), int(shape[1]))

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width)."""
        return self._shape

    def read(self, box: Box) -> NDArray[Any]:
        """Pixels (y, x) of a box inside the image. Raises `FormatError` where the file is damaged."""
        try:
            if self._mapped:
                return np.array(tifffile.memmap(self.path, page=self.page, mode="r")[box.slices()])
            if self._tiled:
                return _read_page(self.path, self.page, box)
            rows = _bands.read(self.path, self.page, Box(box.y0, box.y1, 0, self._shape[1]))
            return rows[:, box.x0 : box.x1]
        except UNREADABLE as error:
            message = f"image {self.path} is damaged or incomplete at {box} ({error}); copy it again"
            raise FormatError(message) from None


def _incomplete(page: Any, file_bytes: int) -> str:
    """Why the pixels cannot all be in the file, or nothing; only the page's index of strips or tiles is read."""
    offsets = np.asarray(page.dataoffsets, np.float64)
    counts = np.asarray(page.databytecounts, np.float64)
    height, width = page.tilelength or page.rowsperstrip, page.tilewidth or page.imagewidth
    expected = -(-page.imagelength // height) * -(-page.imagewidth // width) if height and width else 0
    if page.samplesperpixel == 1 and not page.is_memmappable and len(offsets) != expected:
        return f"{expected} strips or tiles expected, {len(offsets)} listed"
    if len(offsets) != len(counts) or not len(offsets):
        return "its strips or tiles are not listed"
    if page.is_memmappable and offsets[0] + np.prod(page.shape, dtype=np.float64) * page.dtype.itemsize > file_bytes:
        return f"{np.prod(page.shape)} pixels do not fit in {file_bytes} bytes"
    if (offsets + counts).max() > file_bytes:
        return f"its pixels end at byte {(offsets + counts).max():.0f}, the file at {file_bytes}"
    return ""


def _read_page(path: Path, page: int, box: Box) -> NDArray[Any]:
    with tifffile.TiffFile(path, is_ome=False) as tif:
        found: Any = tif.pages[page]
        with found.aszarr() as store:
            return np.asarray(zarr.open_array(store, mode="r")[box.slices()])


class _Bands:
    """The latest bands of rows: the windows of a row of windows ask for the same one, of every projected plane."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._kept: OrderedDict[tuple[Any, ...], NDArray[Any]] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, path: Path, page: int, box: Box) -> NDArray[Any]:
        """Rows of a page, as wide as it is; a file that was rewritten is read again."""
        stamp = path.stat()
        key = (path, page, stamp.st_mtime_ns, stamp.st_size, box)
        band = self._kept.get(key)
        if band is None:
            band = _read_page(path, page, box)
        with self._lock:
            self._kept[key] = band
            self._kept.move_to_end(key)
            while len(self._kept) > 1 and sum(kept.nbytes for kept in self._kept.values()) > self._limit_bytes:
                self._kept.popitem(last=False)
        return band


_bands = _Bands(_BAND_BYTES)


@dataclass(frozen=True)
class MaxPlane:
    """The brightest of several planes of one shape, pixel by pixel. Raises `InputError` where their shapes differ."""

    planes: Sequence[Plane]
    name: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        shapes = {plane.shape for plane in self.planes}
        if len(shapes) != 1:
            raise InputError(f"z planes of {self.name} should have one shape, they have {sorted(shapes)}")

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width)."""
        return self.planes[0].shape

    def read(self, box: Box) -> NDArray[Any]:
        """Pixels (y, x) of a box inside the image."""
        return reduce(np.maximum, (plane.read(box) for plane in self.planes))
