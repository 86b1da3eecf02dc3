"""Images that users bring: the channels of a TIFF, OME-TIFF or OME-Zarr as named planes, and where their pixels lie."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
import zarr
from numpy.typing import NDArray

from tera_mind.errors import FormatError, InputError, MissingFileError
from tera_mind.geometry import Box
from tera_mind.ingest.features import scale_matrix
from tera_mind.ingest.mosaic import max_over
from tera_mind.ingest.ngff import open_ngff
from tera_mind.ingest.ome_tiff import describe
from tera_mind.ingest.source import Plane
from tera_mind.ingest.tiff import UNREADABLE, TiffPlane

_SAMPLES = ("red", "green", "blue", "alpha")


@dataclass(frozen=True, eq=False)
class Channels:
    """An image's channels by name, in order; `um_to_px` (3 x 3) where its metadata give the pixels' size.

    `levels`: as in `StainImage`.
    """

    planes: Mapping[str, Plane]
    um_to_px: NDArray[np.float64] | None
    levels: tuple[float, float] | None = None


def open_channels(path: Path, names: Sequence[str] = ()) -> Channels:
    """The channels of an image file or OME-Zarr folder; z planes become the brightest of them.

    `names` replaces the channels' names. Raises `MissingFileError`, `FormatError` or `InputError`.
    """
    levels = None
    if path.is_dir():
        image = open_ngff(path)
        found, planes, um_to_px, levels = image.names, image.planes, image.um_to_px, image.levels
    elif path.is_file():
        found, planes, um_to_px = _open_tiff(path)
    else:
        raise MissingFileError(f"expected an image at {path}, nothing is there")
    if names and len(names) != len(planes):
        raise InputError(f"{path} has {len(planes)} channels, {len(names)} names were given ({', '.join(names)})")
    called = list(names or found)
    if not called:
        stem = path.name.split(".")[0]
        called = [stem] if len(planes) == 1 else [f"channel{index}" for index in range(len(planes))]
    twice = sorted({name for name in called if called.count(name) > 1})
    if twice:
        raise InputError(f"{path} has several channels called {', '.join(twice)}; name them with --channels")
    return Channels(dict(zip(called, planes, strict=True)), um_to_px, levels)


@dataclass(frozen=True)
class SamplePlane:
    """One sample (red, green, ...) of a TIFF page whose samples lie side by side, (y, x, sample)."""

    path: Path
    page: int
    sample: int
    shape: tuple[int, int]

    def read(self, box: Box) -> NDArray[Any]:
        """Pixels (y, x) of a box inside the image. Raises `FormatError` where the file is damaged."""
        try:
            with tifffile.TiffFile(self.path, is_ome=False) as tif:
                page: Any = tif.pages[self.page]
                with page.aszarr() as store:
                    array: Any = zarr.open_array(store, mode="r")
                    return np.asarray(array[(*box.slices(), self.sample)])
        except UNREADABLE as error:
            message = f"image {self.path} is damaged or incomplete at {box} ({error}); copy it again"
            raise FormatError(message) from None


def _open_tiff(path: Path) -> tuple[list[str], list[Plane], NDArray[np.float64] | None]:
    try:
        with tifffile.TiffFile(path, is_ome=False) as tif:
            first: Any = tif.pages.first
            samples = tuple(int(size) for size in first.shape) if first.axes == "YXS" else ()
            axes, shape = (tif.series[0].axes, tif.series[0].shape) if not samples else ("YXS", samples)
            pages, is_ome, dtype = len(tif.pages), "<OME" in str(first.description), np.dtype(first.dtype)
    except UNREADABLE as error:
        raise FormatError(f"image {path} cannot be read as TIFF ({error}); is it damaged or incomplete?") from None
    if dtype not in (np.uint8, np.uint16):
        raise FormatError(f"expected uint8 or uint16 pixels in {path}, got {dtype}; convert it")
    if samples:
        height, width, count = samples
        return (
            list(_SAMPLES[:count] if count <= len(_SAMPLES) else ()),
            [SamplePlane(path, 0, sample, (height, width)) for sample in range(count)],
            None,
        )
    if is_ome:
        ome = describe(path)
        planes = [
            max_over([TiffPlane(path, page) for page in channel.pages], channel.name or path.name)
            for channel in ome.channels
        ]
        names = [channel.name for channel in ome.channels]
        um_to_px = None if ome.pixel_um is None else scale_matrix(ome.pixel_um, ome.pixel_um, path)
        return names if all(names) else [], planes, um_to_px
    sizes = dict(zip(axes, shape, strict=True))
    channel = [axis for axis in axes[:-2] if axis not in "ZT" or sizes[axis] != 1]
    if axes[-2:] != "YX" or len(channel) > 1 or channel == ["T"] or pages != np.prod(shape[:-2], dtype=np.int64):
        raise FormatError(
            f"expected a page a channel in {path}, got {pages} pages for axes {axes} {tuple(shape)}; "
            "save it as OME-TIFF"
        )
    found: list[Plane] = [TiffPlane(path, page) for page in range(pages)]
    return [], [max_over(found, path.name)] if channel == ["Z"] else found, None
