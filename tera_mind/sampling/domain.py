"""Where a region is generated: the patches in and near tissue. Everywhere else the state is OUTSIDE at every step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool
from numpy.typing import NDArray
from scipy import ndimage

from tera_mind.errors import InputError
from tera_mind.formats.brain import Brain
from tera_mind.formats.tissue import CELL_PX
from tera_mind.geometry import Box

#: patches by which tissue is widened at least, so that nothing of it feels the edge of the domain
MIN_DILATION = 2


@dataclass(frozen=True, eq=False)
class Domain:
    """The active patches of a region: bool (rows, columns) of patches; none at all is a legal domain.

    `region` is in the brain's pixels. Raises `InputError` where it is not a whole number of patches a side, or the
    mask has another shape.
    """

    region: Box
    patch_px: int
    active: Bool[np.ndarray, "rows columns"]

    def __post_init__(self) -> None:
        side, region = self.patch_px, self.region
        if region.is_empty or region.height % side or region.width % side:
            raise InputError(f"a region must be a whole number of {side} px patches a side, got {region}")
        if self.active.shape != (self.rows, self.columns):
            raise InputError(
                f"a domain of {self.rows} x {self.columns} patches needs a mask of that shape, got {self.active.shape}"
            )

    @staticmethod
    def whole(region: Box, patch_px: int) -> Domain:
        """Every patch of the region."""
        return Domain(region, patch_px, np.ones((region.height // patch_px, region.width // patch_px), bool))

    @staticmethod
    def of_tissue(
        brain: Brain, sections: Sequence[int], region: Box, patch_px: int, dilate: int = MIN_DILATION
    ) -> Domain:
        """Patches at most `dilate` patches (in y and in x, at least 2) from tissue of any of the sections.

        A group's sections are generated together, so they share one domain. Tissue around the region counts too.
        Sections that do not exist have none.
        """
        if dilate < MIN_DILATION:
            raise InputError(f"tissue is widened by at least {MIN_DILATION} patches, got {dilate}")
        wide = region.grow(dilate * patch_px)
        tissue = np.zeros((wide.height // patch_px, wide.width // patch_px), bool)
        for section in sections:
            if 0 <= section < brain.shape[1]:
                tissue |= _patches(brain.tissue(section), wide, patch_px)
        side = 2 * dilate + 1
        near = ndimage.binary_dilation(tissue, np.ones((side, side), bool))
        return Domain(region, patch_px, np.ascontiguousarray(near[dilate:-dilate, dilate:-dilate]))

    @property
    def rows(self) -> int:
        return self.region.height // self.patch_px

    @property
    def columns(self) -> int:
        return self.region.width // self.patch_px

    @property
    def share(self) -> float:
        """Share of active patches."""
        return float(self.active.mean())

    def mask(self, patches: Box) -> Bool[np.ndarray, "rows2 columns2"]:
        """Active patches of a box in patches of the region; what lies beyond the region is not."""
        out = np.zeros((patches.height, patches.width), bool)
        inside = patches.intersect(Box(0, self.rows, 0, self.columns))
        if not inside.is_empty:
            out[inside.shift(-patches.y0, -patches.x0).slices()] = self.active[inside.slices()]
        return out

    def pixels(self, patches: Box) -> Box:
        """A box in patches of the region, in the brain's pixels."""
        side, region = self.patch_px, self.region
        box = Box(patches.y0 * side, patches.y1 * side, patches.x0 * side, patches.x1 * side)
        return box.shift(region.y0, region.x0)


def _patches(cells: NDArray[np.bool_], wide: Box, patch_px: int) -> NDArray[np.bool_]:
    """Which patches of a box touch a cell of tissue (cells of 64 px from the canvas' corner)."""
    total = np.zeros((cells.shape[0] + 1, cells.shape[1] + 1), np.int64)
    total[1:, 1:] = cells.cumsum(0).cumsum(1)

    def ends(start: int, stop: int, limit: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        first = np.arange(start, stop, patch_px)
        return (first // CELL_PX).clip(0, limit), (-(-(first + patch_px) // CELL_PX)).clip(0, limit)

    y0, y1 = ends(wide.y0, wide.y1, cells.shape[0])
    x0, x1 = ends(wide.x0, wide.x1, cells.shape[1])
    inside = total[y1][:, x1] - total[y0][:, x1] - total[y1][:, x0] + total[y0][:, x0]
    return np.asarray(inside > 0)
