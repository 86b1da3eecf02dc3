"""OME-Zarr images, 0.4 (zarr 2) and 0.5 (zarr 3): the finest level, read by windows."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from tera_mind.errors import FormatError
from tera_mind.formats.ome import DAMAGE
from tera_mind.geometry import Box
from tera_mind.ingest.features import scale_matrix
from tera_mind.ingest.mosaic import max_over
from tera_mind.ingest.source import Plane

#: microns of the units that OME-NGFF takes from UDUNITS-2
MICRONS = {"micrometer": 1.0, "nanometer": 1e-3, "millimeter": 1e3, "centimeter": 1e4, "meter": 1e6, "angstrom": 1e-4}
_MISSING = (*DAMAGE, IndexError, AttributeError)


@dataclass(frozen=True)
class ZarrPlane:
    """A plane of a zarr array: `index` for the axes before y and x."""

    path: Path
    index: tuple[int, ...]
    shape: tuple[int, int]

    def read(self, box: Box) -> NDArray[Any]:
        """Pixels (y, x) of a box inside the image. Raises `FormatError` where the array is damaged."""
        try:
            array: Any = zarr.open_array(self.path, mode="r")
            return np.asarray(array[(*self.index, *box.slices())])
        except _MISSING as error:
            raise FormatError(f"image {self.path} is damaged at {box} ({error}); copy it again") from None


@dataclass(frozen=True)
class NgffImage:
    """Names of the channels (none where the image has none), their planes, and the map from microns to pixels.

    `levels`: intensities that are 0 and 255 already, where this project exported the image.
    """

    names: list[str]
    planes: list[Plane]
    um_to_px: NDArray[np.float64] | None
    levels: tuple[float, float] | None


def open_ngff(path: Path) -> NgffImage:
    """Open the finest level. Raises `FormatError`."""
    record, own = _records(path)
    try:
        low, high = (float(level) for level in own["levels"]) if "levels" in own else (None, None)
        multiscale = record["multiscales"][0]
        axes = [axis if isinstance(axis, str) else axis["name"] for axis in multiscale.get("axes", list("tczyx"))]
        units = [None if isinstance(axis, str) else axis.get("unit") for axis in multiscale.get("axes", list("tczyx"))]
        dataset = multiscale["datasets"][0]
        level = path / str(dataset["path"])
        scale, shift = _transformations(multiscale, dataset, len(axes))
        labels = [
            str(channel["label"]) for channel in record.get("omero", {}).get("channels", []) if "label" in channel
        ]
    except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
        raise FormatError(f"{path} has no OME-Zarr metadata as versions 0.4 and 0.5 ask ({error!r})") from None
    try:
        array: Any = zarr.open_array(level, mode="r")
        shape, dtype = tuple(int(size) for size in array.shape), np.dtype(array.dtype)
    except _MISSING as error:
        raise FormatError(f"{path} names level {level.name}, which cannot be opened ({error}); copy it again") from None
    if len(shape) != len(axes) or axes[-2:] != ["y", "x"] or set(axes[:-2]) - set("tcz") or 0 in shape:
        raise FormatError(f"expected axes t, c, z, y, x (some of them) in {path}, got {axes} for {shape}")
    if dtype not in (np.uint8, np.uint16):
        raise FormatError(f"expected uint8 or uint16 pixels in {path}, got {dtype}; convert it")
    sizes = dict(zip(axes, shape, strict=True))
    if sizes.get("t", 1) != 1:
        raise FormatError(f"{path} is a time series of {sizes['t']}, expected one time; export a single one")
    planes: list[Plane] = []
    for channel in range(sizes.get("c", 1)):
        place = [{"t": 0, "c": channel}.get(axis, -1) for axis in axes[:-2]]
        found = [
            ZarrPlane(level, tuple(z if number < 0 else number for number in place), (sizes["y"], sizes["x"]))
            for z in range(sizes.get("z", 1))
        ]
        planes.append(max_over(found, path.name))
    names = labels if len(labels) == len(planes) else []
    levels = None if low is None or high is None else (low, high)
    if scale is None or any(unit not in MICRONS for unit in units[-2:]):
        return NgffImage(names, planes, None, levels)
    y_um, x_um = (scale[axis] * MICRONS[str(units[axis])] for axis in (-2, -1))
    y0_um, x0_um = (shift[axis] * MICRONS[str(units[axis])] for axis in (-2, -1))
    um_to_px = scale_matrix(float(x_um), float(y_um), path, (float(x0_um), float(y0_um)))
    return NgffImage(names, planes, um_to_px, levels)


def _records(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The attributes of OME (under `ome` in zarr 3, at the top in zarr 2), and this project's own."""
    for name in ("zarr.json", ".zattrs"):
        file = path / name
        if not file.is_file():
            continue
        try:
            record = json.loads(file.read_text())
            attributes = record["attributes"] if name == "zarr.json" else record
            found = attributes["ome"] if name == "zarr.json" else attributes
            return dict(found), dict(attributes.get("tera_mind", {}))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise FormatError(f"{file} has no OME-Zarr metadata ({error!r}); is {path} an OME-Zarr image?") from None
    raise FormatError(f"expected an OME-Zarr image at {path} (zarr.json or .zattrs in it); found neither")


def _transformations(
    multiscale: dict[str, Any], dataset: dict[str, Any], dimensions: int
) -> tuple[NDArray[np.float64] | None, NDArray[np.float64]]:
    """Scale (None where none is given) and translation of the finest level, in the axes' units."""
    scale, shift = np.ones(dimensions), np.zeros(dimensions)
    steps = [*dataset.get("coordinateTransformations", []), *multiscale.get("coordinateTransformations", [])]
    for step in steps:
        if step["type"] == "scale":
            factor = np.array(step["scale"], np.float64).reshape(dimensions)
            scale, shift = scale * factor, shift * factor
        elif step["type"] == "translation":
            shift = shift + np.array(step["translation"], np.float64).reshape(dimensions)
        elif step["type"] != "identity":
            raise ValueError(f"unknown transformation {step['type']}")
    return (scale if steps else None), shift
