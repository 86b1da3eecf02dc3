"""Where an effect is counted: inside the edited mask, within the margin that an edit can reach, and beyond it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tera_mind.analysis.interventions.intervention import Intervention
from tera_mind.analysis.interventions.locality import edited_bins, reached_patches
from tera_mind.geometry import Box, SectionGroup

BEYOND, MARGIN, INSIDE = 0, 1, 2
NAMES = {INSIDE: "inside", MARGIN: "margin", BEYOND: "beyond"}


@dataclass(frozen=True, eq=False)
class Zones:
    """Zone of every bin of a region: uint8 (section, row, column), in the order of `sections`."""

    region: Box
    sections: tuple[int, ...]
    patch_px: int
    bin_px: int
    margin_px: int
    bins: NDArray[np.uint8]

    @staticmethod
    def of(
        intervention: Intervention,
        groups: Sequence[SectionGroup],
        sections: Sequence[int],
        region: Box,
        *,
        steps: int,
        halo_px: int,
        margin_px: int,
    ) -> Zones:
        """Zones of an intervention; a section's neighbours in its group's gene window reach it too."""
        masks, side, bin_px = intervention.masks, intervention.patch_px, intervention.bin_px
        planes: dict[int, NDArray[np.uint8]] = {}
        for group in groups:
            reached = (
                reached_patches(masks, group, region, steps=steps, patch_px=side, bin_px=bin_px, halo_px=halo_px)
                .repeat(side // bin_px, 0)
                .repeat(side // bin_px, 1)
            )
            for section in set(group.image) & set(sections):
                plane = np.where(reached, MARGIN, BEYOND).astype(np.uint8)
                plane[edited_bins(masks, (section,), region, bin_px)] = INSIDE
                planes[section] = plane
        bins = np.stack([planes[section] for section in sections])
        return Zones(region, tuple(sections), side, bin_px, margin_px, bins)

    def pixels(self, section: int, box: Box) -> NDArray[np.uint8]:
        """Zone of every pixel of a box of whole bins in the region."""
        inner = box.shift(-self.region.y0, -self.region.x0)
        bins = Box(*(edge // self.bin_px for edge in (inner.y0, inner.y1, inner.x0, inner.x1)))
        plane = self.bins[self.sections.index(section)][bins.slices()]
        return np.asarray(plane.repeat(self.bin_px, 0).repeat(self.bin_px, 1))

    def at(self, section: NDArray[np.int64], y: NDArray[np.float64], x: NDArray[np.float64]) -> NDArray[np.uint8]:
        """Zone of points in the region, canvas pixels."""
        plane = np.searchsorted(np.array(self.sections), section)
        row, column = (
            (np.floor(v).astype(np.int64) - o) // self.bin_px for v, o in ((y, self.region.y0), (x, self.region.x0))
        )
        return self.bins[plane, row, column]

    def patches(self, zone: int) -> NDArray[np.bool_]:
        """Patches that hold a bin of a zone: bool (section, row, column)."""
        n = self.patch_px // self.bin_px
        planes, rows, columns = self.bins.shape
        return np.asarray((self.bins.reshape(planes, rows // n, n, columns // n, n) == zone).any(axis=(2, 4)))
