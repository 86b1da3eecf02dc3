"""Nuclei before and after an intervention: number, size and brightness by zone, with intervals.

Both images are segmented by the same means with the brightness scale of the brain's real image, section by section
(`tera_mind.metrics.nuclei`). Intervals come from resampled squares of tissue, the same squares of both images.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from tera_mind.effects.zones import BEYOND, INSIDE, MARGIN, Zones
from tera_mind.formats.transcripts import Transcripts
from tera_mind.geometry import Box
from tera_mind.metrics.bootstrap import Interval, sums_interval
from tera_mind.metrics.nuclei.segmenters import Scale, Segmenter
from tera_mind.metrics.nuclei.table import NucleusTable, measure_nuclei

#: reads one stain of a section, (y, x) uint8, in canvas pixels, 0 where there is nothing
Reader = Callable[[int, Box], NDArray[np.uint8]]

#: side of a block that is segmented at once, px
_BLOCK_PX = 1024
#: patches a side of the squares that are resampled as one
_CELL_PATCHES = 2
#: a true change below this is none, and no share of it can be given
_NO_CHANGE = 1e-9
#: what is counted -> unit
QUANTITIES = {"number": "1/mm2", "area": "um2", "intensity": "grey levels"}
#: zones by the name that the tables use; "outside" is all that was not edited
ZONES: Mapping[str, tuple[int, ...]] = {"inside": (INSIDE,), "margin": (MARGIN,), "outside": (MARGIN, BEYOND)}


def scales(read: Reader, region: Box, sections: Sequence[int], segmenter: Segmenter) -> dict[int, Scale]:
    """Brightness of the real image of every section."""
    return {
        section: segmenter.calibrate(read(section, box) for box in region.tiles(_BLOCK_PX, _BLOCK_PX))
        for section in sections
    }


def nuclei_of(
    read: Reader, region: Box, segmenter: Segmenter, known: Mapping[int, Scale], pixel_um: float
) -> NucleusTable:
    """Nuclei whose centroid lies in the region, block by block; `known`: sections and their scales."""
    tables = []
    for section, scale in known.items():
        for core in region.tiles(_BLOCK_PX, _BLOCK_PX):
            at = core.grow(segmenter.halo_px).intersect(region)
            image = read(section, at)
            labels = segmenter.segment(image, scale)
            tables.append(measure_nuclei(labels, image, pixel_um, at, core, Transcripts.empty(), section=section))
    return NucleusTable.concatenate(tables)


@dataclass(frozen=True)
class NucleusRow:
    """One quantity in one zone: before, after, and the change with its 95 % interval; None where it is unknown."""

    zone: str
    quantity: str
    unit: str
    before: float | None
    after: float | None
    change: Interval


def cell_sums(table: NucleusTable, zones: Zones, wanted: Sequence[int], pixel_um: float) -> Float[np.ndarray, "cell 4"]:
    """Number of nuclei, sum of areas, sum of intensities and mm2 by square of tissue, in some zones."""
    side = zones.patch_px * _CELL_PATCHES
    rows, columns = (-(-size // side) for size in (zones.region.height, zones.region.width))
    total = len(zones.sections) * rows * columns
    sums = np.zeros((total, 4))
    if len(table):
        kept = np.isin(zones.at(table.section, table.y, table.x), wanted)
        row = (table.y[kept].astype(np.int64) - zones.region.y0) // side
        column = (table.x[kept].astype(np.int64) - zones.region.x0) // side
        plane = np.searchsorted(np.array(zones.sections), table.section[kept])
        cell = (plane * rows + row) * columns + column
        for index, values in enumerate((np.ones(int(kept.sum())), table.area_um2[kept], table.intensity[kept])):
            sums[:, index] = np.bincount(cell, values, minlength=total)
    inside = np.isin(zones.bins, wanted)
    n = side // zones.bin_px
    padded = np.zeros((len(zones.sections), rows * n, columns * n), bool)
    padded[:, : inside.shape[1], : inside.shape[2]] = inside
    bins = padded.reshape(-1, rows, n, columns, n).sum(axis=(2, 4)).ravel()
    sums[:, 3] = bins * (zones.bin_px * pixel_um / 1000) ** 2
    return sums


def figures(sums: Float[np.ndarray, "draw 4"]) -> dict[str, Float[np.ndarray, " draw"]]:
    """`QUANTITIES` of sums over cells."""
    number, area, intensity, mm2 = sums.T
    with np.errstate(invalid="ignore", divide="ignore"):
        return {
            "number": np.where(mm2 > 0, number / mm2, np.nan),
            "area": np.where(number > 0, area / number, np.nan),
            "intensity": np.where(number > 0, intensity / number, np.nan),
        }


def nucleus_rows(
    before: NucleusTable, after: NucleusTable, zones: Zones, pixel_um: float, resamples: int, seed: int
) -> list[NucleusRow]:
    """Change of every quantity in every zone."""
    rows = []
    for zone, wanted in ZONES.items():
        both = np.concatenate([cell_sums(table, zones, wanted, pixel_um) for table in (before, after)], axis=1)
        both = both[both[:, 3] > 0]
        total = both.sum(axis=0)[None]
        ends = figures(total[:, :4]), figures(total[:, 4:])
        n = int(total[0, 0] + total[0, 4])
        for quantity, unit in QUANTITIES.items():
            change = sums_interval((both,), partial(_change, 0, quantity), resamples, seed, n=n)
            rows.append(
                NucleusRow(zone, quantity, unit, _known(ends[0][quantity][0]), _known(ends[1][quantity][0]), change)
            )
    return rows


@dataclass(frozen=True)
class Moved:
    """How far an edit went towards a target inside the mask: edit / true change, 1 is all the way, below 0 away."""

    quantity: str
    true_change: Interval
    edit_change: Interval
    share: Interval


def moved_rows(
    tables: Mapping[str, NucleusTable], zones: Zones, pixel_um: float, resamples: int, seed: int
) -> list[Moved]:
    """The edit's change (`after` - `before`, generated) beside the true one (`target` - `source`, real images)."""
    names = ("before", "after", "source", "target")
    sums = np.concatenate([cell_sums(tables[name], zones, (INSIDE,), pixel_um) for name in names], axis=1)
    sums = sums[sums[:, 3] > 0]
    rows = []
    for quantity in QUANTITIES:
        wanted = (partial(_change, 2, quantity), partial(_change, 0, quantity), partial(_share, quantity))
        intervals = [sums_interval((sums,), each, resamples, seed, n=len(sums)) for each in wanted]
        rows.append(Moved(quantity, *intervals))
    return rows


def _change(first: int, quantity: str, drawn: Float[np.ndarray, "draw column"]) -> Float[np.ndarray, " draw"]:
    """Of a quantity, from table number `first` to the one after it."""
    one, two = (figures(drawn[:, 4 * k : 4 * k + 4])[quantity] for k in (first, first + 1))
    return np.asarray(two - one)


def _share(quantity: str, drawn: Float[np.ndarray, "draw column"]) -> Float[np.ndarray, " draw"]:
    edit, true = (_change(first, quantity, drawn) for first in (0, 2))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.where(np.abs(true) > _NO_CHANGE, edit / true, np.nan))


def _known(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
