"""Image metrics that add over blocks: parity with independent code, and any blocks = the whole."""

from __future__ import annotations

import numpy as np
import pytest
import tifffile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage, stats
from skimage import data
from torchmetrics.functional.image import (
    multiscale_structural_similarity_index_measure,
    structural_similarity_index_measure,
)

from tera_mind.errors import InputError
from tera_mind.geometry import Box
from tera_mind.metrics import cells as by_cell
from tera_mind.metrics import ensemble, fidelity, spectra, strata, zcontinuity


def texture(seed, height, width, sigma=1.5):
    random = np.random.default_rng(seed)
    image = ndimage.gaussian_filter(random.normal(size=(height, width)), sigma)
    return np.clip(image / image.std() * 45 + 90, 0, 255).astype(np.uint8)


def squares(height, width, side):
    return [box for box in Box(0, height, 0, width).tiles(side, side) if (box.height, box.width) == (side, side)]


@pytest.fixture(scope="module")
def pair():
    real = texture(0, 352, 400)
    noisy = real * 0.8 + texture(1, 352, 400) * 0.3 + np.random.default_rng(2).normal(0, 9, real.shape)
    return np.clip(noisy, 0, 255).astype(np.uint8), real


def torched(patches):
    return torch.from_numpy(patches.astype(np.float64))[:, None]


@pytest.mark.parametrize(("height", "width"), [(16, 16), (33, 64), (128, 11)])
def test_ssim_agrees_with_torchmetrics(pair, height, width):
    boxes = list(Box(0, 352 // height * height, 0, 400 // width * width).tiles(height, width))
    image, real = (fidelity.cut(x, boxes) for x in pair)
    expected = structural_similarity_index_measure(
        torched(image), torched(real), gaussian_kernel=True, sigma=1.5, data_range=255.0, reduction="none"
    )
    np.testing.assert_allclose(fidelity.ssim(image, real), expected.numpy(), atol=1e-9)


def test_ssim_of_flat_patches_agrees_with_torchmetrics():
    image, real = np.full((2, 16, 16), 37, np.uint8), np.stack([np.full((16, 16), v, np.uint8) for v in (37, 90)])
    expected = structural_similarity_index_measure(
        torched(image), torched(real), gaussian_kernel=True, sigma=1.5, data_range=255.0, reduction="none"
    )
    np.testing.assert_allclose(fidelity.ssim(image, real), expected.numpy(), atol=1e-9)


@pytest.mark.parametrize("side", [176, 187, 192])
def test_ms_ssim_agrees_with_torchmetrics(pair, side):
    boxes = squares(352, 400, side)
    image, real = (fidelity.cut(x, boxes) for x in pair)
    expected = multiscale_structural_similarity_index_measure(
        torched(image), torched(real), gaussian_kernel=True, sigma=1.5, data_range=255.0, reduction="none"
    )
    scores = fidelity.large_scores(*pair, boxes)["ms_ssim"]
    np.testing.assert_allclose(scores, expected.numpy(), atol=1e-9)
    assert (scores < 0.97).all()
    assert fidelity.ms_ssim(real, real) == pytest.approx(1)
    # unlike at the finest scale means 0, not a complex power
    assert fidelity.ms_ssim(255 - real, real) == pytest.approx(0)


def test_large_squares_are_whole_patches():
    assert [fidelity.large_side(side) for side in (16, 64, 128, 176, 300)] == [176, 192, 256, 176, 300]
    with pytest.raises(InputError, match="at least 176 px"):
        fidelity.ms_ssim(np.zeros((1, 175, 175)), np.zeros((1, 175, 175)))


def cut_with_halo(size, block_px, halo_px):
    """Blocks of a plane with their halo, which ends where the plane ends."""
    whole = Box(0, size[0], 0, size[1])
    return [(core, core.grow(halo_px).intersect(whole)) for core in whole.tiles(block_px, block_px)]


@settings(max_examples=12, deadline=None)
@given(block=st.integers(1, 9).map(lambda n: 32 * n), sigma=st.sampled_from([0.8, 2.35]), seed=st.integers(0, 9))
def test_patch_scores_do_not_depend_on_the_blocks(block, sigma, seed):
    image, real, size = texture(seed, 96, 160), texture(seed + 1, 96, 160), (96, 160)
    whole = fidelity.patch_scores(image, real, squares(*size, 32), sigma)
    places, parts = [], []
    for core, at in cut_with_halo(size, block, fidelity.blur_halo(sigma)):
        boxes = list(core.tiles(32, 32))
        places += boxes
        local = [box.shift(-at.y0, -at.x0) for box in boxes]
        parts.append(fidelity.patch_scores(image[at.slices()], real[at.slices()], local, sigma))
    order = np.argsort([box.y0 * 1000 + box.x0 for box in places])
    for name, values in whole.items():
        streamed = np.concatenate([part[name] for part in parts])[order]
        np.testing.assert_allclose(streamed, values, atol=1e-6, err_msg=name)


def test_sums_by_cell_add_exactly():
    random = np.random.default_rng(0)
    values, cells = random.normal(size=(200, 3)), random.integers(0, 40, 200) * 7
    whole = by_cell.sum_by_cell(values, cells)
    np.testing.assert_array_equal(whole.cells, np.unique(cells))
    np.testing.assert_allclose(whole.sums, [values[cells == cell].sum(axis=0) for cell in whole.cells])
    merged = by_cell.merge([by_cell.sum_by_cell(values[part], cells[part]) for part in np.split(np.arange(200), 8)])
    np.testing.assert_array_equal(merged.cells, whole.cells)
    np.testing.assert_allclose(merged.sums, whole.sums)
    assert by_cell.sum_by_cell(np.zeros((0, 3)), np.zeros(0, np.int64)).sums.shape == (0, 3)
    assert by_cell.sum_by_cell(np.array([True, True]), np.array([4, 4])).sums.tolist() == [2]


def slow_power(square):
    """Radially averaged power of one square, mode by mode."""
    side = len(square)
    line = np.sin(np.pi * (np.arange(side) + 0.5) / side) ** 2
    window = np.outer(line, line)
    centred = square - np.average(square, weights=window)
    power = np.abs(np.fft.fft2(centred * window)) ** 2 / (window**2).sum()
    k = np.fft.fftfreq(side, 1 / side)
    radius = np.rint(np.hypot(k[:, None], k[None]))
    return np.array([power[radius == r].mean() for r in range(side // 2 + 1)])


def test_power_spectrum_agrees_with_brute_force():
    image = texture(3, 64, 96)
    boxes, cells = squares(64, 96, 32), np.array([0, 0, 1, 1, 5, 5])
    found = spectra.power_sums(image, boxes, cells, 32)
    slow = np.array([slow_power(image[box.slices()].astype(float)) for box in boxes])
    np.testing.assert_allclose(found.sums[:, :-1], slow.reshape(3, 2, -1).sum(axis=1), rtol=1e-9, atol=1e-9)
    np.testing.assert_array_equal(found.sums[:, -1], 2)
    np.testing.assert_allclose(spectra.mean_spectrum(found), slow.mean(axis=0), atol=1e-9)
    frequency = spectra.frequencies(32, 0.5)
    assert frequency[-1] == pytest.approx(1.0)  # Nyquist of 0.5 um pixels
    limits = spectra.band_limits(32, 0.5)
    assert (len(limits), limits[0], limits[-1]) == (9, pytest.approx(1.5 / 16), pytest.approx(1.0))


def test_white_noise_has_the_spectrum_of_its_variance():
    noise = np.random.default_rng(0).integers(0, 256, (512, 512)).astype(np.uint8)
    boxes = squares(512, 512, 64)
    found = spectra.power_sums(noise, boxes, np.arange(len(boxes)), 64)
    assert spectra.mean_spectrum(found)[2:] == pytest.approx(np.full(31, (256**2 - 1) / 12), rel=0.1)


def test_spectrum_distance_is_the_gain_in_decibels():
    boxes = squares(256, 256, 64)
    image = texture(4, 256, 256)
    cells = np.arange(len(boxes))
    real, half = (spectra.power_sums(x, boxes, cells, 64) for x in (image, image // 2 * 2))
    # a gain of g on all grey levels shifts every band by 20 log10 g
    louder = real._replace(sums=real.sums * np.append(np.full(33, 4.0), 1.0))
    found = spectra.spectrum_distance(louder, real, 200, 0)
    assert found.value == pytest.approx(20 * np.log10(2))
    assert found.low == pytest.approx(found.high)
    assert spectra.spectrum_distance(real, real, 50, 0).value == 0
    assert 0 < spectra.spectrum_distance(half, real, 50, 0).value < 3
    blurred = [
        spectra.spectrum_distance(
            spectra.power_sums(np.asarray(ndimage.gaussian_filter(image, s), np.uint8), boxes, cells, 64), real, 50, 0
        )
        for s in (0.5, 1, 2)
    ]
    assert [b.value for b in blurred] == sorted(b.value for b in blurred)
    assert all(b.low < b.value < b.high for b in blurred)
    # a constant image ends at the power of rounding, not at minus infinity
    flat = spectra.power_sums(np.full_like(image, 90), boxes, cells, 64)
    assert 10 < spectra.spectrum_distance(flat, real, 50, 0).value < 100
    with pytest.raises(InputError, match="even side"):
        spectra.power_sums(image, [Box(0, 9, 0, 9)], np.zeros(1, np.int64), 9)


def test_histogram_distance_agrees_with_scipy():
    boxes = squares(96, 96, 32)
    image, real = texture(5, 96, 96), texture(6, 96, 96) // 2 + 60
    cells = np.arange(9) // 3
    sums = [spectra.histogram_sums(x, boxes, cells) for x in (image, real)]
    counts = [np.bincount(x.ravel(), minlength=256) for x in (image, real)]
    expected = stats.wasserstein_distance(np.arange(256), np.arange(256), *counts)
    found = spectra.histogram_wasserstein(sums[0], sums[1], 300, 0)
    assert found.value == pytest.approx(expected)
    assert found.low < found.value < found.high
    assert found.n == 96 * 96
    np.testing.assert_array_equal(sums[0].sums.sum(axis=0), counts[0])
    assert spectra.histogram_wasserstein(spectra.histogram_sums(image, [], cells[:0]), sums[1], 9, 0).value is None


@settings(max_examples=8, deadline=None)
@given(block=st.integers(1, 5).map(lambda n: 32 * n), cell=st.integers(1, 4))
def test_spectra_and_histograms_do_not_depend_on_the_blocks(block, cell):
    image, size = texture(7, 96, 128), (96, 128)

    def cells(boxes):
        return np.array([box.y0 // (32 * cell) * 4 + box.x0 // (32 * cell) for box in boxes])

    whole = squares(*size, 32)
    for measure in (lambda *block: spectra.power_sums(*block, 32), spectra.histogram_sums):
        expected = measure(image, whole, cells(whole))
        parts = []
        for core, _ in cut_with_halo(size, block, 0):
            boxes = list(core.tiles(32, 32))
            local = [box.shift(-core.y0, -core.x0) for box in boxes]
            parts.append(measure(image[core.slices()], local, cells(boxes)))
        # a block without any square adds nothing
        parts.append(measure(image, [], np.zeros(0, np.int64)))
        found = by_cell.merge(parts)
        np.testing.assert_array_equal(found.cells, expected.cells)
        np.testing.assert_allclose(found.sums, expected.sums, rtol=1e-9)


def test_sections_that_are_alike_correlate():
    first = texture(8, 64, 64, 3)
    second = np.clip(first * 0.7 + texture(9, 64, 64, 3) * 0.3, 0, 255).astype(np.uint8)
    boxes = squares(64, 64, 32)
    found = zcontinuity.section_correlations(first, second, boxes, 1.5)
    blurred = [ndimage.gaussian_filter(x.astype(float), 1.5, mode="nearest", truncate=3.0) for x in (first, second)]
    expected = [stats.pearsonr(*(b[box.slices()].ravel() for b in blurred)).statistic for box in boxes]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    for pair in ((first, np.full_like(first, 7)), (np.full_like(first, 7), first)):
        assert np.isnan(zcontinuity.section_correlations(*pair, boxes, 1.5)).all()


def test_real_planes_are_more_alike_the_nearer_they_are(real_data):
    folder = real_data / "merscope_sample" / "images"
    planes = [tifffile.imread(folder / f"mosaic_DAPI_z{z}.tif").astype(float) for z in (2, 3, 6)]
    near, far = (
        zcontinuity.section_correlations(*(np.uint8(p / p.max() * 255) for p in pair), squares(512, 512, 128), 4.0)
        for pair in (planes[:2], planes[::2])
    )
    assert np.mean(near) > np.mean(far)


def test_z_gap_is_the_difference_of_the_means():
    random = np.random.default_rng(0)
    real = random.uniform(0.4, 0.6, 60)
    found = real - 0.2 + random.normal(0, 0.02, 60)
    found[3], real[4] = np.nan, np.nan
    gap = zcontinuity.z_correlation_gap(found, real, np.arange(60) // 3, 500, 0)
    both = np.isfinite(found) & np.isfinite(real)
    assert gap.value == pytest.approx(abs(found[both].mean() - real[both].mean()))
    assert gap.low < gap.value < gap.high
    assert gap.n == 58
    assert zcontinuity.z_correlation_gap(found * np.nan, real, np.arange(60), 5, 0).value is None


def test_ensemble_scores_agree_with_brute_force():
    random = np.random.default_rng(0)
    real = texture(10, 48, 48)
    members = np.clip(real + random.normal(0, 20, (4, 48, 48)), 0, 255).astype(np.uint8)
    boxes = squares(48, 48, 16)
    found = ensemble.ensemble_scores(members, real, boxes, 1.2)
    blurred = [ndimage.gaussian_filter(x.astype(float), 1.2, mode="nearest", truncate=3.0) for x in (*members, real)]
    spread = np.std(blurred[:4], axis=0, ddof=1)
    error = np.mean(blurred[:4], axis=0) - blurred[4]
    for name, image in (("uncertainty", spread), ("error", error)):
        expected = [np.sqrt(np.mean(image[box.slices()] ** 2)) for box in boxes]
        np.testing.assert_allclose(found[name], expected, rtol=1e-4)
    with pytest.raises(InputError, match="at least 2 members"):
        ensemble.ensemble_scores(members[:1], real, boxes, 1.2)


@pytest.mark.parametrize("members", [2, 3, 10])
def test_an_honest_ensemble_is_calibrated(members):
    random = np.random.default_rng(1)
    scale = np.repeat(random.uniform(1, 9, 4000), 16).reshape(4000, 16)
    # truth and members from one distribution, its width another at every patch
    draws = random.normal(size=(members + 1, 4000, 16)) * scale
    uncertainty = np.sqrt(draws[:-1].var(axis=0, ddof=1).mean(axis=1))
    error = np.sqrt(((draws[:-1].mean(axis=0) - draws[-1]) ** 2).mean(axis=1))
    cells = np.arange(4000) // 40
    ratio = ensemble.spread_error_ratio(uncertainty, error, members, cells, 400, 0)
    assert ratio.low < 1 < ratio.high
    assert ratio.value == pytest.approx(1, abs=0.03)
    bins = ensemble.calibration(uncertainty, error, members)
    assert [b.n for b in bins] == [400] * 10
    assert [b.spread for b in bins] == sorted(b.spread for b in bins)
    rms = np.sqrt(np.mean([b.error**2 for b in bins]))
    assert rms == pytest.approx(np.sqrt(np.mean(error**2)))
    skill = ensemble.spread_skill(uncertainty, error, cells, 300, 0)
    rank = ensemble.spread_skill_rank(uncertainty, error, cells, 300, 0)
    assert skill.value == pytest.approx(stats.pearsonr(uncertainty, error).statistic)
    assert rank.value == pytest.approx(stats.spearmanr(uncertainty, error).statistic)
    assert skill.low < skill.value < skill.high
    assert len(ensemble.calibration(uncertainty[:4], error[:4], members)) == 4


def test_strata_are_the_means_of_their_patches():
    random = np.random.default_rng(0)
    sections, regions = np.repeat([3, 8], 45), np.tile([0, 1, 2], 30)
    transcripts = random.permutation(90)
    scores = {("generated", "ssim", "DAPI"): random.normal(size=90), ("ridge", "ssim", "DAPI"): random.normal(size=90)}
    scores["ridge", "ssim", "DAPI"][0] = np.nan
    found = strata.groups(sections, transcripts, regions, {1: "cortex"})
    names = [(group.stratum, group.name) for group in found]
    assert names == [
        *(("section", "3"), ("section", "8")),
        *(("density", "low"), ("density", "middle"), ("density", "high")),
        *(("region", "cortex"), ("region", "2")),
    ]
    np.testing.assert_array_equal(found[2].members, transcripts < 30)
    rows = strata.strata_rows(scores, found, np.arange(90) // 3, 200, 0)
    assert len(rows) == 7 * 2
    for row in rows:
        group = next(g for g in found if (g.stratum, g.name) == (row.stratum, row.group))
        values = scores[row.method, row.metric, row.stain][group.members]
        assert row.value == pytest.approx(np.nanmean(values))
        assert row.low < row.value < row.high
        assert row.n == np.isfinite(values).sum()
    assert [g.name for g in strata.groups(np.zeros(4, int), np.full(4, 7))] == ["0", "low"]


def test_more_blur_is_a_worse_score():
    real = data.camera()[:384, :384]
    boxes, large = squares(384, 384, 64), squares(384, 384, 192)
    scores = []
    for sigma in (0.5, 1.5, 4):
        image = np.asarray(ndimage.gaussian_filter(real, sigma), np.uint8)
        found = fidelity.patch_scores(image, real, boxes, 2.0) | fidelity.large_scores(image, real, large)
        scores.append({name: values.mean() for name, values in found.items()})
    for name in scores[0]:
        assert scores[0][name] > scores[1][name] > scores[2][name], name
