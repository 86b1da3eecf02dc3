"""Seams: brute force, any blocks = the whole, and a faint step at patch borders that only the coherent step sees."""

from __future__ import annotations

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from tera_mind.errors import InputError
from tera_mind.geometry import Box
from tera_mind.metrics.seam_figures import coherent_step, gradient_index, grid_spectrum
from tera_mind.metrics.seam_sums import HALO_PX, SeamGrid, merge_seams, seam_cell_px, seam_sums

MEASURES = (gradient_index, coherent_step, grid_spectrum)


def tissue(seed, height, width):
    """Bright blobs on a dark, slowly varying ground, with camera noise."""
    random = np.random.default_rng(seed)
    ground = ndimage.gaussian_filter(random.normal(size=(height, width)), 20)
    nuclei = ndimage.gaussian_filter(random.normal(size=(height, width)), 4)
    image = 70 + 15 * ground / ground.std() + 60 * np.maximum(nuclei / nuclei.std() - 0.5, 0)
    return image + random.normal(0, 4, image.shape)


def grey(image):
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)


def checkerboard(shape, side_px, high):
    y, x = np.indices(shape) // side_px
    return np.where((y + x) % 2, high, 1.0)


def figures(image, patch_px, cell_px=None, resamples=300):
    box = Box(0, image.shape[0], 0, image.shape[1])
    grid = SeamGrid(box, patch_px, (0, 0), patch_px, cell_px or seam_cell_px(box, patch_px))
    sums = seam_sums(image, box, box, grid)
    return {measure.__name__: measure(sums, grid, resamples, 0) for measure in MEASURES}


def slow_ratios(image, grid_px, origin, shift, stretch_px):
    """Gradient index and coherent step of a shifted grid, line by line."""
    sums = np.zeros((2, 2))  # (gradient, step) by (border, elsewhere)
    counts = np.zeros((2, 2))
    for values, start in ((image.astype(float), origin[0]), (image.T.astype(float), origin[1])):
        for line in range(1, len(values)):
            kind = int((line - start) % grid_px != shift)
            gradient = np.abs(values[line] - values[line - 1])
            sums[0, kind] += gradient.sum()
            counts[0, kind] += len(gradient)
            if not 2 <= line <= len(values) - 2:
                continue
            for first in range(0, values.shape[1] - stretch_px + 1, stretch_px):
                level = values[line - 2 : line + 2, first : first + stretch_px].mean(axis=1)
                change = np.diff(level)
                sums[1, kind] += abs(change[1] - (change[0] + change[2]) / 2)
                counts[1, kind] += 1
    means = sums / counts
    return means[:, 0] / means[:, 1]


@pytest.mark.parametrize("origin", [(0, 0), (3, 5)])
def test_index_and_step_agree_with_brute_force(origin):
    image = np.random.default_rng(0).integers(0, 255, (38, 51), np.uint8)
    box = Box(0, 38, 0, 51)
    grid = SeamGrid(box, 8, origin, 4, 16)
    sums = seam_sums(image, box, box, grid)
    slow = np.array([slow_ratios(image, 8, origin, shift, 4) for shift in range(8)])
    np.testing.assert_allclose(gradient_index(sums, grid, 9, 0).shifts, slow[:, 0], rtol=1e-12)
    np.testing.assert_allclose(coherent_step(sums, grid, 9, 0).shifts, slow[:, 1], rtol=1e-12)


def test_spectrum_agrees_with_a_plain_fourier_transform():
    image = grey(tissue(0, 96, 64))
    box = Box(0, 96, 0, 64)
    grid = SeamGrid(box, 4, (0, 0), 4, 32)
    found = grid_spectrum(seam_sums(image, box, box, grid), grid, 0, 0)
    maps = []  # |gradient| and whether there is a line, both axes
    for axis in (0, 1):
        first = [(1, 0) if a == axis else (0, 0) for a in (0, 1)]
        gradient = np.pad(np.abs(np.diff(image.astype(float), axis=axis)), first)
        maps.append((gradient, np.pad(np.ones_like(np.diff(gradient, axis=axis)), first)))
    waves = [[], []]
    for cell in box.tiles(32, 32):
        total, pixels = (sum(pair[k][cell.slices()].sum() for pair in maps) for k in (0, 1))
        for axis in (0, 1):
            gradient, line = (array[cell.slices()] for array in maps[axis])
            waves[axis].append(np.fft.fft((gradient - line * total / pixels).sum(axis=1 - axis)))
    # eight waves a cell of 32 px are the grid's; three frequencies to either side
    around, beside = np.arange(5, 12), [5, 6, 7, 9, 10, 11]
    expected = np.mean(
        [
            np.abs(np.sum(own, axis=0)[around]) ** 2 / (np.abs(np.array(own)[:, beside]) ** 2).sum(axis=0).mean()
            for own in waves
        ],
        axis=0,
    )
    np.testing.assert_allclose(found.shifts, expected, rtol=1e-9)
    assert found.estimate.value == pytest.approx(expected[3])


@settings(max_examples=25, deadline=None)
@given(
    block=st.integers(1, 12).map(lambda n: 8 * n),
    size=st.tuples(st.integers(20, 90), st.integers(20, 90)),
    cell=st.sampled_from([8, 16, 40]),
    origin=st.tuples(st.integers(-9, 9), st.integers(-9, 9)),
)
def test_blocks_add_up_to_the_whole(block, size, cell, origin):
    image = np.random.default_rng([*size]).integers(0, 255, size, np.uint8)
    # the test box lies somewhere on a canvas
    whole = Box(100, 100 + size[0], 40, 40 + size[1])
    grid = SeamGrid(whole, 8, (100 + origin[0], 40 + origin[1]), 8, cell)
    expected = seam_sums(image, whole, whole, grid)
    parts = []
    for core in whole.tiles(block, block):
        at = core.grow(HALO_PX).intersect(whole)
        parts.append(seam_sums(image[at.shift(-100, -40).slices()], at, core, grid))
    found = merge_seams(parts)
    np.testing.assert_array_equal(found.cells, expected.cells)
    np.testing.assert_array_equal(found.lines, expected.lines)
    np.testing.assert_allclose(found.waves, expected.waves, atol=1e-6)
    # every line is owned once: H - 1 across the rows, W - 1 across the columns
    height, width = size
    assert found.lines[:, -1, 1].sum() == (height - 1) * width + (width - 1) * height


@pytest.mark.parametrize("patch_px", [32, 64])
def test_a_two_percent_checkerboard_is_seen_by_the_coherent_step_alone(patch_px):
    image = tissue(1, 768, 768)
    clean = figures(grey(image), patch_px)
    stepped = figures(grey(image * checkerboard(image.shape, patch_px, 1.02)), patch_px)
    step = stepped["coherent_step"]
    assert clean["coherent_step"].estimate.low <= 1 <= clean["coherent_step"].estimate.high
    assert step.estimate.low > 1.2 * max(clean["coherent_step"].estimate.high, step.null.high)
    assert np.argmax(step.shifts) == 0
    assert abs(stepped["gradient_index"].estimate.value - 1) < 0.05
    # nor is a step inside the patches one of this grid
    moved = figures(np.roll(grey(image * checkerboard(image.shape, patch_px, 1.02)), 5, (0, 1)), patch_px)
    assert np.argmax(moved["coherent_step"].shifts) == 5
    assert moved["coherent_step"].estimate.value < 1.1


@pytest.mark.parametrize("patch_px", [32, 64])
def test_the_step_is_seen_on_real_tissue(real_data, patch_px):
    image = tifffile.imread(real_data / "xenium_breast_crop" / "morphology_mip.ome.tif")[:1792, :1792].astype(float)
    image *= 255 / np.percentile(image, 99.8)
    clean = figures(grey(image), patch_px)
    stepped = figures(grey(image * checkerboard(image.shape, patch_px, 1.02)), patch_px)
    assert stepped["coherent_step"].estimate.low > 1.4 * clean["coherent_step"].estimate.high
    assert stepped["gradient_index"].estimate.value < 1.07
    for name in ("coherent_step", "gradient_index"):
        assert clean[name].estimate.low < clean[name].null.high
    # half of one per cent is still told from the grids that are none
    faint = figures(grey(image * checkerboard(image.shape, patch_px, 1.005)), patch_px)["coherent_step"]
    assert faint.estimate.low > faint.null.value
    assert np.argmax(faint.shifts) == 0


def test_a_step_of_the_tissue_itself_is_no_seam():
    """A steep but even slope has the same change at every line."""
    slope = np.linspace(20, 230, 256)[:, None] + np.random.default_rng(0).normal(0, 3, (256, 256))
    found = figures(grey(slope), 16)["coherent_step"]
    assert found.estimate.low < 1.05
    assert found.estimate.high > 0.95


def test_the_spectrum_sees_a_pattern_of_the_grid_that_is_no_step():
    image = tissue(2, 512, 512)
    random = np.random.default_rng(3)
    y, x = np.indices(image.shape) % 32
    # bands of noisier pixels 12 px beside the borders: no border is rougher than the rest
    band = ((y >= 12) & (y < 16)) | ((x >= 12) & (x < 16))
    patterned = grey(image + band * random.normal(0, 3, image.shape))
    clean, found = figures(grey(image), 32), figures(patterned, 32)
    assert found["grid_spectrum"].estimate.low > 3 * max(clean["grid_spectrum"].estimate.value, 1)
    assert found["grid_spectrum"].estimate.low > found["grid_spectrum"].null.high
    assert found["gradient_index"].estimate.value < 1.02
    # chance alone gives about 1, and the intervals hold it
    assert clean["grid_spectrum"].estimate.low < 1.5
    assert clean["grid_spectrum"].null.value == pytest.approx(1, abs=0.5)


def test_borders_smoothed_over_lower_the_gradient_index():
    image = tissue(4, 256, 256)
    for axis in (0, 1):
        image = np.moveaxis(image, axis, 0)
        for line in range(16, 256, 16):
            image[line - 1 : line + 1] = image[line - 1 : line + 1].mean(axis=0)
        image = np.moveaxis(image, 0, axis)
    found = figures(grey(image), 16)
    assert found["gradient_index"].estimate.high < 0.5
    assert found["grid_spectrum"].estimate.low > 3


def test_wide_grids_keep_bounded_sums():
    image = grey(tissue(5, 600, 600))
    box = Box(0, 600, 0, 600)
    grid = SeamGrid(box, 300, (0, 0), 60, 600)
    sums = seam_sums(image, box, box, grid)
    assert sums.lines.shape == (1, 129, 4)
    found = gradient_index(sums, grid, 100, 0)
    assert found.estimate.value == pytest.approx(slow_ratios(image, 300, (0, 0), 0, 60)[0])
    # a single cell has no interval, and cells this small no spectrum
    assert found.estimate.low is None
    assert grid_spectrum(sums, grid, 100, 0).estimate.value is None


def test_an_image_without_gradient_has_no_seams_to_measure():
    found = figures(np.full((128, 128), 9, np.uint8), 16)
    assert all(figure.estimate.value is None and figure.null.n == 0 for figure in found.values())


def test_cells_grow_with_the_box():
    sides = [seam_cell_px(Box(0, n, 0, n), 32) for n in (64, 256, 512, 1024, 8192, 2**20)]
    assert sides[:3] == [32, 64, 128]
    assert sides == sorted(sides)
    assert 36 <= (2**20 // sides[-1]) ** 2 < 4 * 36


def test_blocks_that_do_not_fit_are_refused():
    image, box = np.zeros((64, 64), np.uint8), Box(0, 64, 0, 64)
    grid = SeamGrid(box, 16, (0, 0), 16, 32)
    with pytest.raises(InputError, match="need the pixels"):
        seam_sums(image[:32], Box(0, 32, 0, 64), Box(0, 32, 0, 64), grid)
    with pytest.raises(InputError, match="between stretches"):
        seam_sums(image, box, Box(0, 24, 0, 64), grid)
    with pytest.raises(InputError, match="multiple of the grid"):
        SeamGrid(box, 16, (0, 0), 16, 40)
    with pytest.raises(InputError, match="4 px or more"):
        SeamGrid(box, 2, (0, 0), 2, 4)
