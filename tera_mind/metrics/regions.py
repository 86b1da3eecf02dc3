"""A map of the brain's regions, so that figures can be given region by region."""

from __future__ import annotations

import json
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
    step_px: int
    names: dict[int, str]

    @classmethod
    def open(cls, path: Path, brain: Brain) -> RegionMap:
        """Read `.npy` or `.tif`: whole numbers (row, column) for all sections, or (section, row, column).

        It covers the brain's canvas at a whole number of pixels a cell. Names come from a JSON file of the same name,
        {"1": "cortex", ...}; without one a region is called by its number. Raises `MissingFileError`, `FormatError`, or
        `InputError` where its shape does not fit the brain.
        """
        if not path.is_file():
            raise MissingFileError(f"no region map at {path}: expected a .npy or .tif of whole numbers")
        try:
            labels = np.load(path, mmap_mode="r") if path.suffix == ".npy" else tifffile.imread(path)
        except (OSError, ValueError, EOFError) as error:
            raise FormatError(f"region map {path} cannot be read ({error}): expected a .npy or .tif") from None
        if labels.ndim == 2:
            labels = labels[None]
        if labels.ndim != 3 or labels.dtype.kind not in "ui" or not labels.size:
            raise FormatError(
                f"region map {path} should be whole numbers (section, row, column), is {labels.shape} {labels.dtype}"
            )
        _, sections, height, width = brain.shape
        step = -(-height // labels.shape[1])
        if labels.shape[0] not in {1, sections} or labels.shape[1:] != (-(-height // step), -(-width // step)):
            raise InputError(
                f"region map {path} is {labels.shape}, expected (1 or {sections}, {height} / s, {width} / s) for a "
                "whole s: resample it to the brain's canvas"
            )
        return cls(labels, step, _names(path.with_suffix(".json")))

    def at(self, boxes: Int[np.ndarray, "box 5"]) -> Int[np.ndarray, " box"]:
        """The most frequent label in each box (section, y0, y1, x0, x1 in canvas pixels)."""
        found = np.zeros(len(boxes), np.int32)
        for index, (section, y0, y1, x0, x1) in enumerate(boxes.tolist()):
            plane = self.labels[section if len(self.labels) > 1 else 0]
            rows, columns = (slice(a // self.step_px, -(-b // self.step_px)) for a, b in ((y0, y1), (x0, x1)))
            labels, counts = np.unique(plane[rows, columns], return_counts=True)
            found[index] = labels[counts.argmax()]
        return found

    def name(self, label: int) -> str:
        return self.names.get(label, f"region {label}")


def _names(path: Path) -> dict[int, str]:
    if not path.is_file():
        return {}
    try:
        return {int(label): str(name) for label, name in json.loads(path.read_text(encoding="utf-8")).items()}
    except (ValueError, AttributeError) as error:
        raise FormatError(f"{path} should map labels to names and cannot be read ({error})") from None
