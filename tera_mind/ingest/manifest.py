"""MERSCOPE's `images/manifest.json`: the mosaics' size and place, to be checked against the transform and the TIFFs.

The transform stays the measure: the manifest repeats it in other words (`microns_per_pixel` and `bbox_microns`,
rounded), so where they contradict each other a file is of another region.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tera_mind.errors import FormatError
from tera_mind.ingest.faults import Faults
from tera_mind.ingest.features import check_pixel_um
from tera_mind.ingest.records import read_record, understanding
from tera_mind.ingest.registration import pixel_size_um

#: the manifest's numbers are rounded: of a pixel's size, and of the mosaic's size for its corners
_SAME_PIXEL, _SAME_CORNER = 0.01, 0.02


@dataclass(frozen=True)
class Manifest:
    """What the manifest says; None or nothing where it is silent. `shape` is (height, width), `box_um` x, y, x, y."""

    path: Path
    pixel_um: float | None
    shape: tuple[int, int] | None
    box_um: tuple[float, float, float, float] | None
    files: tuple[str, ...]

    def check(self, um_to_px: NDArray[np.float64], shape: tuple[int, int], faults: Faults) -> None:
        """Note where it contradicts the transform or the mosaics' `shape`."""
        own = pixel_size_um(um_to_px)
        if self.pixel_um is not None and abs(self.pixel_um / own - 1) > _SAME_PIXEL:
            self._add(faults, "microns_per_pixel", f"says {self.pixel_um:g} um a pixel, the transform {own:g}")
        if self.shape is not None and self.shape != shape:
            self._add(faults, "mosaic_height_pixels", f"says mosaics of {self.shape} px, the TIFFs have {shape}")
        if self.box_um is not None:
            x0, y0, x1, y1 = self.box_um
            corners = (um_to_px @ np.array([[x0, x1], [y0, y1], [1.0, 1.0]]))[:2]
            expected = np.array([[0, shape[1]], [0, shape[0]]])
            off_px = float(np.abs(np.sort(corners, axis=1) - expected).max())
            if not off_px <= max(2.0, _SAME_CORNER * max(shape)):
                words = f"puts the mosaic's corners {off_px:.0f} px away from where the transform does"
                self._add(faults, "bbox_microns", words)

    def _add(self, faults: Faults, key: str, words: str) -> None:
        with faults.catching(self.path, key):
            raise FormatError(
                f"{self.path}, {key}: {words}; are all files of one region? Copy them again, or take the manifest out"
            )


def read_manifest(path: Path) -> Manifest | None:
    """Read it; None where there is none. Raises `FormatError` where it makes no sense."""
    if not path.exists():
        return None
    complaint = "is no manifest of mosaics; copy it again or take it out of the folder"
    record = read_record(path, complaint)
    with understanding(path, complaint):
        box = record.get("bbox_microns")
        size = (record.get("mosaic_height_pixels"), record.get("mosaic_width_pixels"))
        manifest = Manifest(
            path=path,
            pixel_um=None if record.get("microns_per_pixel") is None else float(record["microns_per_pixel"]),
            shape=None if None in size else (int(size[0] or 0), int(size[1] or 0)),
            box_um=None if box is None else _four(box),
            files=tuple(str(entry["file_name"]) for entry in record.get("mosaic_files") or []),
        )
    if manifest.pixel_um is not None:
        check_pixel_um(manifest.pixel_um, path)
    return manifest


def _four(numbers: list[Any]) -> tuple[float, float, float, float]:
    x0, y0, x1, y1 = (float(number) for number in numbers)
    return x0, y0, x1, y1
