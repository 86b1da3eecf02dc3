"""Nuclei as rows of a table: what is measured of each, and how the tables of blocks become one.

A block of an image is measured together with a margin around its core, and a nucleus belongs to the block whose core
holds its centroid. All sums are of whole numbers and the tables of a section's blocks are put in one order by
`NucleusTable.concatenate`, so the result does not depend, to the last bit, on how the section was cut - as long as
the segmentation itself does not (`tera_mind.metrics.nuclei.segmenters`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from tera_mind.errors import InputError
from tera_mind.formats.transcripts import Transcripts
from tera_mind.geometry import Box
from tera_mind.metrics.nuclei.match import same_nuclei

#: what is measured of a nucleus -> its unit
QUANTITIES = {"area": "um^2", "eccentricity": "", "intensity": "grey levels", "distance": "um", "transcripts": ""}


@dataclass(frozen=True)
class NucleusTable:
    """One entry a nucleus, in arrays of one length."""

    #: brain section
    section: Int[np.ndarray, " nucleus"]
    #: centroid, mean of the pixel indices, canvas px
    y: Float[np.ndarray, " nucleus"]
    x: Float[np.ndarray, " nucleus"]
    area_um2: Float[np.ndarray, " nucleus"]
    #: of the ellipse with the same second moments: 0 a disc, towards 1 a needle
    eccentricity: Float[np.ndarray, " nucleus"]
    #: mean grey level
    intensity: Float[np.ndarray, " nucleus"]
    #: transcripts on its pixels
    transcripts: Int[np.ndarray, " nucleus"]
    #: whether the reference segmentation has the same nucleus
    matched: Bool[np.ndarray, " nucleus"]

    def __len__(self) -> int:
        return len(self.y)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The columns by name; `NucleusTable(**arrays)` is the table again."""
        return {column.name: getattr(self, column.name) for column in fields(self)}

    @staticmethod
    def empty() -> NucleusTable:
        none, number = np.zeros(0, np.int64), np.zeros(0)
        return NucleusTable(none, number, number, number, number, number, none, np.zeros(0, bool))

    @staticmethod
    def concatenate(tables: Sequence[NucleusTable]) -> NucleusTable:
        """All nuclei, by section, y and x: the same table however the sections were cut and in whatever order."""
        tables = [NucleusTable.empty(), *tables]
        joined = {name: np.concatenate([table.arrays()[name] for table in tables]) for name in tables[0].arrays()}
        order = np.lexsort((joined["area_um2"], joined["x"], joined["y"], joined["section"]))
        return NucleusTable(**{name: column[order] for name, column in joined.items()})

    def nearest_um(self, pixel_um: float) -> Float[np.ndarray, " nucleus"]:
        """Distance between a nucleus' centroid and the nearest other one of its section; NaN for a lone nucleus.

        Only of a table that holds whole regions: the neighbour may lie in another block.
        """
        distance = np.full(len(self), np.nan)
        for section in np.unique(self.section):
            rows = np.flatnonzero(self.section == section)
            if len(rows) > 1:
                points = np.stack([self.y[rows], self.x[rows]], axis=1)
                # the nearest but one: the nearest is the nucleus itself
                nearest = np.asarray(cKDTree(points).query(points, k=[2])[0])
                distance[rows] = nearest[:, 0] * pixel_um
        return distance

    def quantities(self, pixel_um: float) -> dict[str, Float[np.ndarray, " nucleus"]]:
        """Every one of `QUANTITIES`, in its unit."""
        return {
            "area": self.area_um2,
            "eccentricity": self.eccentricity,
            "intensity": self.intensity,
            "distance": self.nearest_um(pixel_um),
            "transcripts": self.transcripts.astype(np.float64),
        }


def measure_nuclei(
    labels: Int[np.ndarray, "y x"],
    image: UInt8[np.ndarray, "y x"],
    pixel_um: float,
    at: Box,
    core: Box,
    transcripts: Transcripts,
    *,
    section: int,
    reference: Int[np.ndarray, "y x"] | None = None,
) -> NucleusTable:
    """The nuclei (0 is background) whose centroid lies in `core`, measured on all of their pixels.

    `at` is the box of the image, `core` a part of it, both in canvas pixels; transcripts are in pixels of the image,
    those outside it are ignored. `matched` says which are also nuclei of `reference`, the labels of another image of
    the same box (`same_nuclei`); without one it is False. Raises `InputError` where the image does not fill its box.
    """
    if labels.shape != (at.height, at.width):
        raise InputError(f"an image of {labels.shape} px does not fill the box {at}")
    inked = np.flatnonzero(labels)
    label = labels.ravel()[inked].astype(np.int64)
    bins = int(label.max()) + 1 if len(label) else 1
    row, column = np.divmod(inked, labels.shape[1])

    def total(weights: NDArray[Any]) -> Float[np.ndarray, " label"]:
        # whole numbers below 2^53: the sum is exact in any order
        return np.bincount(label, weights, minlength=bins).astype(np.float64)

    area = np.bincount(label, minlength=bins)
    present = area > 0
    safe = np.maximum(area, 1)
    # from the canvas' corner, so that the quotient is rounded alike in every block
    y, x = (total(row) + at.y0 * area) / safe, (total(column) + at.x0 * area) / safe
    dy = row + at.y0 - np.floor(y).astype(np.int64)[label]
    dx = column + at.x0 - np.floor(x).astype(np.int64)[label]
    sy, sx = total(dy) / safe, total(dx) / safe
    eccentricity = _eccentricity(
        total(dy * dy) / safe - sy * sy, total(dx * dx) / safe - sx * sx, total(dy * dx) / safe - sy * sx
    )
    kept = present & (y >= core.y0) & (y < core.y1) & (x >= core.x0) & (x < core.x1)
    matched = np.zeros(bins, bool)
    if reference is not None:
        matched[same_nuclei(reference, labels)[:, 1]] = True
    return NucleusTable(
        section=np.full(int(kept.sum()), section, np.int64),
        y=y[kept],
        x=x[kept],
        area_um2=(area * pixel_um**2)[kept],
        eccentricity=eccentricity[kept],
        intensity=(total(image.ravel()[inked]) / safe)[kept],
        transcripts=_counts(labels, transcripts, bins)[kept],
        matched=matched[kept],
    )


def _eccentricity(
    yy: Float[np.ndarray, " label"], xx: Float[np.ndarray, " label"], yx: Float[np.ndarray, " label"]
) -> Float[np.ndarray, " label"]:
    """From the central second moments, as scikit-image's `regionprops`; 0 for a single pixel."""
    half, turn = (yy + xx) / 2, np.hypot((yy - xx) / 2, yx)
    major = half + turn
    with np.errstate(invalid="ignore", divide="ignore"):
        flat = np.where(major > 0, np.maximum(half - turn, 0) / major, 1.0)
    return np.asarray(np.sqrt(1 - flat))


def _counts(labels: Int[np.ndarray, "y x"], spots: Transcripts, bins: int) -> Int[np.ndarray, " label"]:
    inside = (spots.y >= 0) & (spots.y < labels.shape[0]) & (spots.x >= 0) & (spots.x < labels.shape[1])
    under = labels[spots.y[inside], spots.x[inside]]
    return np.bincount(under, spots.count[inside], minlength=bins).astype(np.int64)
