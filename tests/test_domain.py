"""Where a region is generated: tissue of any section of the group, widened; and the controls that leave it alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tiny_brain import make_brain

from tera_mind.errors import InputError
from tera_mind.formats.brain import Brain
from tera_mind.geometry import Box
from tera_mind.sampling.domain import Domain


@pytest.fixture(scope="module")
def brain(tmp_path_factory: pytest.TempPathFactory) -> Brain:
    """Three sections of 5 x 8 cells of 64 px; tissue is one cell of section 0 and one of section 1."""
    path: Path = tmp_path_factory.mktemp("brain") / "cells.zarr"
    tissue = np.zeros((3, 5, 8), bool)
    tissue[0, 1, 2], tissue[1, 4, 7] = True, True
    return make_brain(path, shape=(1, 3, 310, 500), rows=50, stains=("DAPI",), tissue=tissue)


def by_hand(brain: Brain, sections: tuple[int, ...], region: Box, patch_px: int, dilate: int) -> np.ndarray:
    """Pixel by pixel: tissue within `dilate` patches of the patch, clipped to the canvas."""
    mask = np.any([brain.tissue(z) for z in sections if 0 <= z < 3], axis=0)
    pixels = np.kron(mask, np.ones((64, 64), bool)) if mask.ndim else np.zeros((320, 512), bool)
    out = np.zeros((region.height // patch_px, region.width // patch_px), bool)
    for r, k in np.ndindex(out.shape):
        y, x = region.y0 + r * patch_px, region.x0 + k * patch_px
        box = Box(y, y + patch_px, x, x + patch_px).grow(dilate * patch_px)
        out[r, k] = pixels[max(0, box.y0) : max(0, box.y1), max(0, box.x0) : max(0, box.x1)].any()
    return out


@pytest.mark.parametrize("sections", [(0, 1), (0,), (-1, 1), (2,), (7, 8)])
@pytest.mark.parametrize(
    ("region", "patch_px"), [(Box(0, 304, 0, 496), 16), (Box(40, 200, -30, 210), 40), (Box(64, 192, 192, 448), 128)]
)
def test_patches_near_tissue_of_any_section(
    brain: Brain, sections: tuple[int, ...], region: Box, patch_px: int
) -> None:
    for dilate in (2, 3):
        domain = Domain.of_tissue(brain, sections, region, patch_px, dilate)
        np.testing.assert_array_equal(domain.active, by_hand(brain, sections, region, patch_px, dilate))
        assert domain.region == region


def test_tissue_just_outside_the_region_counts(brain: Brain) -> None:
    domain = Domain.of_tissue(brain, (0,), Box(128, 192, 128, 192), 16)  # below the cell at 64:128,128:192
    assert domain.active[:2].all()
    assert not domain.active[2:].any()


def test_masks_and_pixels_of_boxes() -> None:
    active = np.arange(12).reshape(3, 4) % 2 == 0
    domain = Domain(Box(10, 34, -8, 24), 8, active)
    assert (domain.rows, domain.columns, domain.share) == (3, 4, 0.5)
    np.testing.assert_array_equal(domain.mask(Box(-1, 2, 3, 6)), [[0, 0, 0], [0, 0, 0], [0, 0, 0]])
    np.testing.assert_array_equal(domain.mask(Box(1, 4, 1, 3)), [[0, 1], [0, 1], [0, 0]])
    assert not domain.mask(Box(5, 6, 0, 1)).any()
    assert domain.pixels(Box(-1, 2, 3, 6)) == Box(2, 26, 16, 40)
    assert Domain.whole(Box(10, 34, -8, 24), 8).share == 1


def test_what_does_not_fit_is_refused(brain: Brain) -> None:
    with pytest.raises(InputError, match="at least 2 patches"):
        Domain.of_tissue(brain, (0,), Box(0, 64, 0, 64), 16, dilate=1)
    with pytest.raises(InputError, match="whole number of 16 px"):
        Domain.whole(Box(0, 60, 0, 64), 16)
    with pytest.raises(InputError, match=r"4 x 4 patches needs a mask of that shape, got \(4, 3\)"):
        Domain(Box(0, 64, 0, 64), 16, np.ones((4, 3), bool))
