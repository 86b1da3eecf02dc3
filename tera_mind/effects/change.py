"""Pixels before and after: the map of change, and the proof that nothing changed beyond the margin."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tera_mind.effects.zones import BEYOND, NAMES, Zones
from tera_mind.errors import InputError
from tera_mind.formats.maps import Map, MapAttributes, value_range
from tera_mind.formats.volume import Volume

#: patches a side of what is compared at once
_PATCHES = 16


@dataclass(frozen=True, eq=False)
class Change:
    """counterfactual - factual, grey levels.

    mean: of every patch, (stain, section, row, column); absolute: mean absolute change, likewise; by_zone: mean
    absolute change by zone and stain; beyond: largest absolute change beyond the margin, which must be exactly 0;
    beyond_px: pixels compared there.
    """

    mean: NDArray[np.float32]
    absolute: NDArray[np.float32]
    by_zone: dict[str, list[float | None]]
    beyond: float
    beyond_px: int

    def facts(self) -> dict[str, Any]:
        return {
            "mean_absolute_change": self.by_zone,
            "largest_change_beyond_margin": self.beyond,
            "pixels_beyond_margin": self.beyond_px,
        }


def compare(factual: Volume, counterfactual: Volume, zones: Zones) -> Change:
    """Compare two volumes of one region, a block of patches at a time, in the type in which they are stored."""
    if factual.box != counterfactual.box or factual.attributes.sections != counterfactual.attributes.sections:
        raise InputError(f"{factual.path} and {counterfactual.path} do not cover the same box and sections")
    side, region = zones.patch_px, zones.region
    stains = factual.shape[0]
    grid = (stains, len(zones.sections), region.height // side, region.width // side)
    mean, absolute = np.zeros(grid, np.float32), np.zeros(grid, np.float32)
    sums = np.zeros((len(NAMES), stains))
    sizes = np.zeros(len(NAMES), np.int64)
    beyond = 0.0
    scale = 1.0 if factual.attributes.dtype == "uint8" else 127.5  # grey levels
    for plane, section in enumerate(zones.sections):
        for box in region.tiles(side * _PATCHES, side * _PATCHES):
            before, after = (v.values(box, [section])[:, 0].astype(np.float32) for v in (factual, counterfactual))
            apart = (after - before) * np.float32(scale)
            tiles = apart.reshape(stains, box.height // side, side, box.width // side, side)
            place = box.shift(-region.y0, -region.x0)
            rows = slice(place.y0 // side, place.y1 // side)
            columns = slice(place.x0 // side, place.x1 // side)
            mean[:, plane, rows, columns] = tiles.mean((2, 4))
            absolute[:, plane, rows, columns] = np.abs(tiles).mean((2, 4))
            zone = zones.pixels(section, box)
            for number in NAMES:
                own = np.abs(apart[:, zone == number])
                sums[number] += own.sum(axis=1, dtype=np.float64)
                sizes[number] += own.shape[1]
                if number == BEYOND and own.size:
                    beyond = max(beyond, float(own.max()))
    by_zone = {
        name: [float(total) / int(sizes[number]) if sizes[number] else None for total in sums[number]]
        for number, name in NAMES.items()
    }
    return Change(mean, absolute, by_zone, beyond, int(sizes[BEYOND]))


def write_change(change: Change, path: Path, factual: Volume, zones: Zones, details: dict[str, Any]) -> Map:
    """The map of change, a pixel a patch: mean and mean absolute change of every stain, in grey levels."""
    values = np.concatenate([change.mean, change.absolute])
    stains = factual.attributes.stains
    attributes = MapAttributes(
        name="change by intervention",
        unit="grey levels",
        channels=(*(f"{stain}, mean change" for stain in stains), *(f"{stain}, absolute change" for stain in stains)),
        low=0.0,
        high=1.0,
        box=zones.region,
        sections=zones.sections,
        step_px=zones.patch_px,
        pixel_um=factual.attributes.pixel_um,
        ranges=tuple(value_range(plane) for plane in values),
        exact=True,
        details=details,
    )
    return Map.write(path, values, attributes)
