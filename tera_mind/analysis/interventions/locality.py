"""How far from an edit a generated image can change: beyond it the difference is 0, not nearly 0.

One pass of the network over a patch reads the patch and `halo_px` around it, genes and state alike. After k steps a
patch of side p has read as far as halo + (k - 1) p ceil(halo / p) around itself: 32 + 64 (k - 1) px for patches of
64 px and a halo of half a patch (928 px for 15 steps). Patches are whole, so the margin is counted from a patch's edge.

It holds for every solver: those of higher order look back at images of earlier steps at the same pixel, which have read
less. A network whose tiles are not exact sees all of the block that a patch is painted in, hence `reach_px`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from tera_mind.analysis.interventions.masks import Mask
from tera_mind.geometry import Box, SectionGroup


def margin_px(steps: int, patch_px: int, halo_px: int) -> int:
    """Distance in pixels, from the edge of a patch, beyond which no count reaches it in `steps` steps."""
    return halo_px + (steps - 1) * patch_px * -(-halo_px // patch_px)


def reach_px(halo_px: int, patch_px: int, block: tuple[int, int], *, tile_exact: bool) -> int:
    """How far around a patch one pass looks: the halo, and without exact tiles the rest of its block as well."""
    return halo_px if tile_exact else halo_px + (max(block) - 1) * patch_px


def edited_bins(masks: Sequence[Mask], sections: Sequence[int], box: Box, bin_px: int) -> NDArray[np.bool_]:
    """Bins of a box that any of the masks holds in any of the sections: bool (rows, columns)."""
    found = np.zeros((box.height // bin_px, box.width // bin_px), bool)
    for section in sections:
        for mask in masks:
            found |= mask.at(section, box, bin_px)
    return found


def reached_patches(
    masks: Sequence[Mask], group: SectionGroup, region: Box, *, steps: int, patch_px: int, bin_px: int, halo_px: int
) -> NDArray[np.bool_]:
    """Patches of a region that an edit can change in `steps` steps, for a section group: bool (rows, columns).

    An edit counts in all gene sections of the group and in bins around the region too. Patches outside this set hold
    what they held, exactly.
    """
    margin = margin_px(steps, patch_px, halo_px)
    # bins of whole patches around, so that both grids share a corner
    around = -(-margin // patch_px) * patch_px
    bins = edited_bins(masks, group.genes, region.grow(around), bin_px)
    reach = margin // bin_px
    wide = ndimage.maximum_filter1d(bins, 2 * reach + 1, axis=0, mode="constant", cval=False) if reach else bins
    wide = ndimage.maximum_filter1d(wide, 2 * reach + 1, axis=1, mode="constant", cval=False) if reach else wide
    cut = around // bin_px
    inner = wide[cut : wide.shape[0] - cut, cut : wide.shape[1] - cut]
    n = patch_px // bin_px
    return np.asarray(inner.reshape(inner.shape[0] // n, n, inner.shape[1] // n, n).any(axis=(1, 3)))
