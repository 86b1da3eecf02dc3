"""A map of the brain's regions, so that figures can be given region by region."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from jaxtyping import Int
from numpy.typing import NDArray

from tera_mind.errors import FormatError, InputError, MissingFileError
from tera_mind.formats.brain import Brain


@dataclass(frozen=True)
class RegionMap:
    """Labels (section or 1, row, column), 0 = no region, one cell every `step_px` canvas pixels; names by label."""

    labels: NDArray[Any]
    step_px: float
    names: dict[int, str]

    @classmethod
    def open(cls, path: Path, brain: Brain) -> RegionMap:
        """Read `.npy` or `.tif`: whole numbers (row, column) for all sections, or (section, row, column).

        It covers the brain's canvas, at a whole number of pixels a cell or at the `pixel_um` that a JSON file of the
        same name states: {"pixel_um": 8.0, "names": {"1": "cortex"}}; {"1": "cortex"} gives names alone. A folder is
        read as `tera-mind simulate` writes the truth of a brain store: `section_*/regions.tif` and `regions.json`.
        Raises `MissingFileError`, `FormatError`, or `InputError` where its shape does not fit the brain.
        """
        labels = _folder(path) if path.is_dir() else _image(path)
        names, pixel_um = _names(path / "regions.json" if path.is_dir() else path.with_suffix(".json"))
        if labels.ndim == 2:
            labels = labels[None]
        if labels.ndim != 3 or labels.dtype.kind not in "ui" or not labels.size:
            raise FormatError(
                f"region map {path} should be whole numbers (section, row, column), is {labels.shape} {labels.dtype}"
            )
        _, sections, height, width = brain.shape
        step = float(-(-height // labels.shape[1])) if pixel_um is None else pixel_um / brain.pixel_um
        expected = (math.ceil(height / step - 1e-6), math.ceil(width / step - 1e-6))
        if labels.shape[0] not in {1, sections} or labels.shape[1:] != expected:
            raise InputError(
                f"region map {path} is {labels.shape}, expected (1 or {sections}, {expected[0]}, {expected[1]}) at "
                f"{step:g} px a cell: resample it to the brain's canvas"
            )
        return cls(labels, step, names)

    def at(self, boxes: Int[np.ndarray, "box 5"]) -> Int[np.ndarray, " box"]:
        """The most frequent label in each box (section, y0, y1, x0, x1 in canvas pixels)."""
        found = np.zeros(len(boxes), np.int32)
        for index, (section, y0, y1, x0, x1) in enumerate(boxes.tolist()):
            plane = self.labels[section if len(self.labels) > 1 else 0]
            rows, columns = (slice(int(a / self.step_px), math.ceil(b / self.step_px)) for a, b in ((y0, y1), (x0, x1)))
            labels, counts = np.unique(plane[rows, columns], return_counts=True)
            found[index] = labels[counts.argmax()]
        return found


def _image(path: Path) -> NDArray[Any]:
    if not path.is_file():
        raise MissingFileError(f"no region map at {path}: expected a .npy or .tif of whole numbers, or a truth folder")
    try:
        return np.asarray(np.load(path, mmap_mode="r") if path.suffix == ".npy" else tifffile.imread(path))
    except (OSError, ValueError, EOFError) as error:
        raise FormatError(f"region map {path} cannot be read ({error}): expected a .npy or .tif") from None


def _folder(path: Path) -> NDArray[Any]:
    files = sorted(path.glob("section_*/regions.tif"))
    if not files:
        raise MissingFileError(f"no section_*/regions.tif in {path}: expected the truth folder of a simulated brain")
    planes = [_image(file) for file in files]
    if len({plane.shape for plane in planes}) > 1:
        raise FormatError(f"the region maps in {path} differ in shape: {sorted({plane.shape for plane in planes})}")
    return np.stack(planes)


def _names(path: Path) -> tuple[dict[int, str], float | None]:
    """Names by label, and the size of a cell in um; neither where there is no file."""
    if not path.is_file():
        return {}, None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        names = record.get("names", {key: name for key, name in record.items() if key != "pixel_um"})
        pixel_um = float(record["pixel_um"]) if "pixel_um" in record else None
        found = {int(label): str(name) for label, name in names.items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise FormatError(f"{path} should map labels to names and cannot be read ({error})") from None
    if pixel_um is not None and not pixel_um > 0:
        raise FormatError(f"{path}: pixel_um should be above 0, is {pixel_um:g}")
    return found, pixel_um
