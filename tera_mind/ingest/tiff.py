"""Planes of TIFF files, read window by window: mapped, by tiles, or (compressed strips) by bands of rows."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
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

_UNREADABLE = (*DAMAGE, tifffile.TiffFileError, IndexError)


class TiffPlane:
    """The first page of a TIFF: a lazy 2-D image. Raises `MissingFileError` or `FormatError` when it is none."""

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise MissingFileError(f"expected an image at {path}, nothing is there")
        self.path = path
        try:
            # is_ome=False: the first page is wanted, not the set of files that the OME-XML may tie it to
            with tifffile.TiffFile(path, is_ome=False) as tif:
                page = tif.pages.first
                shape, dtype = page.shape, np.dtype(page.dtype)
                self._tiled, self._mapped = page.is_tiled, page.is_memmappable
        except _UNREADABLE as error:
            raise FormatError(f"image {path} cannot be read as TIFF ({error}); is it damaged or incomplete?") from None
        if len(shape) != 2 or dtype not in (np.uint8, np.uint16):
            raise FormatError(f"expected a 2-D uint8 or uint16 image in {path}, got {shape} {dtype}")
        self._shape: tuple[int, int] = (int(shape[0]), int(shape[1]))

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width)."""
        return self._shape

    def read(self, box: Box) -> NDArray[Any]:
        """Pixels (y, x) of a box inside the image. Raises `FormatError` where the file is damaged."""
        try:
            if self._mapped:
                return np.array(tifffile.memmap(self.path, page=0, mode="r")[box.slices()])
            if self._tiled:
                return _read_page(self.path, box)
            stamp = self.path.stat()
            rows = _read_band(self.path, stamp.st_mtime_ns, stamp.st_size, Box(box.y0, box.y1, 0, self._shape[1]))
            return rows[:, box.x0 : box.x1]
        except _UNREADABLE as error:
            message = f"image {self.path} is damaged or incomplete at {box} ({error}); copy it again"
            raise FormatError(message) from None


def _read_page(path: Path, box: Box) -> NDArray[Any]:
    with tifffile.TiffFile(path, is_ome=False) as tif, tif.pages.first.aszarr() as store:
        return np.asarray(zarr.open_array(store, mode="r")[box.slices()])


@lru_cache(maxsize=8)  # windows of a row of windows ask for the same band; up to 7 planes may be projected at once
def _read_band(path: Path, modified_ns: int, size: int, box: Box) -> NDArray[Any]:
    del modified_ns, size  # they are part of the key: a rewritten file is read again
    return _read_page(path, box)


class MaxPlane:
    """The brightest of several planes of one shape, pixel by pixel."""

    def __init__(self, planes: Sequence[Plane], name: str) -> None:
        shapes = {plane.shape for plane in planes}
        if len(shapes) != 1:
            raise InputError(f"z planes of {name} should have one shape, they have {sorted(shapes)}")
        self._planes = list(planes)

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width)."""
        return self._planes[0].shape

    def read(self, box: Box) -> NDArray[Any]:
        """Pixels (y, x) of a box inside the image."""
        brightest = self._planes[0].read(box)
        for plane in self._planes[1:]:
            brightest = np.maximum(brightest, plane.read(box))
        return brightest
