"""Each metric against an independent implementation or a case whose answer is known."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import scipy.linalg
import skimage.metrics
from scipy import ndimage, stats
from tiny_brain import make_brain

from tera_mind.errors import InputError
from tera_mind.formats.brain import Transcripts, gene_bins
from tera_mind.geometry import Box
from tera_mind.metrics import bootstrap, controls, fidelity
from tera_mind.metrics.tiles import features, frechet
from tera_mind.metrics.unit import transcripts_in


@pytest.fixture
def pair():
    random = np.random.default_rng(3)
    real = ndimage.gaussian_filter(random.uniform(0, 255, (3, 40, 40)), (0, 1.5, 1.5))
    real = (real - real.min()) / np.ptp(real) * 255
    return np.clip(real + random.normal(0, 20, real.shape), 0, 255).astype(np.uint8), real.astype(np.uint8)


def test_psnr_and_ssim_agree_with_skimage(pair):
    image, real = pair
    expected = [skimage.metrics.peak_signal_noise_ratio(r, i, data_range=255) for i, r in zip(*pair, strict=True)]
    np.testing.assert_allclose(fidelity.psnr(image, real), expected, rtol=1e-9)
    for index, score in enumerate(fidelity.ssim(image, real)):
        # the window sees the image mirrored at its edges; skimage mirrors otherwise, so it is given a margin
        wide = [np.pad(x[index].astype(float), 10, mode="reflect") for x in (real, image)]
        _, scores = skimage.metrics.structural_similarity(
            *wide, data_range=255, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, full=True
        )
        assert score == pytest.approx(scores[10:-10, 10:-10].mean(), abs=1e-4)


def test_equal_patches_score_best(pair):
    _, real = pair
    assert fidelity.psnr(real, real) == pytest.approx(10 * np.log10(255**2 * 12))
    assert fidelity.ssim(real, real) == pytest.approx(1)
    assert fidelity.pearson_patches(real, real) == pytest.approx(1)


def test_pearson_agrees_with_scipy_and_knows_constants(pair):
    image, real = pair
    expected = [stats.pearsonr(i.ravel(), r.ravel()).statistic for i, r in zip(*pair, strict=True)]
    np.testing.assert_allclose(fidelity.pearson_patches(image, real), expected, rtol=1e-9)
    flat = np.full_like(real, 9)
    np.testing.assert_array_equal(fidelity.pearson_patches(flat, real), 0)
    assert np.isnan(fidelity.pearson_patches(image, flat)).all()


def test_ssim_refuses_tiny_patches():
    with pytest.raises(InputError, match="at least 11 px"):
        fidelity.ssim(np.zeros((1, 8, 8)), np.zeros((1, 8, 8)))


def test_interval_covers_like_the_normal_theory():
    values = np.random.default_rng(0).normal(5, 2, 400)
    found = bootstrap.cell_mean(values, np.arange(400), 2000, 0)
    half = 1.96 * values.std(ddof=1) / 20
    assert found.value == pytest.approx(values.mean())
    assert found.low == pytest.approx(values.mean() - half, abs=0.04)
    assert found.high == pytest.approx(values.mean() + half, abs=0.04)
    assert found == bootstrap.cell_mean(np.append(values, np.nan), np.arange(401), 2000, 0)


def test_frechet_agrees_with_the_matrix_square_root():
    random = np.random.default_rng(0)
    first, second = random.normal(size=(200, 6)), random.normal(0.3, 1.5, size=(150, 6))
    space = frechet.FeatureSpace(np.zeros(6), np.eye(6))
    c1, c2 = np.cov(first.T), np.cov(second.T)
    expected = np.square(first.mean(0) - second.mean(0)).sum()
    expected += np.trace(c1 + c2 - 2 * scipy.linalg.sqrtm(c1 @ c2).real)
    assert frechet.frechet_distance(first, second, space) == pytest.approx(expected, rel=1e-9)
    assert frechet.frechet_distance(first, first, space) == pytest.approx(0, abs=1e-6)


def test_frechet_outside_the_leading_directions_compares_total_variance():
    random = np.random.default_rng(0)
    first = random.normal(size=(400, 8)) * [5, 5, 1, 1, 1, 1, 1, 1]
    space = frechet.feature_space(first, 2)
    wider = first * [1, 1, 2, 2, 2, 2, 2, 2]
    # six directions of variance 1 against 4: sqrt(6) (2 - 1), squared
    assert frechet.frechet_distance(wider, first, space) == pytest.approx(6, rel=0.15)


def test_frechet_grows_with_blur_and_noise():
    random = np.random.default_rng(0)
    side = 256
    y, x = np.indices((side, side))
    image = np.full((side, side), 15.0)
    for cy, cx, radius in zip(*random.uniform([[0], [0], [6]], [[side], [side], [14]], (3, 70)), strict=True):
        image[np.hypot(y - cy, x - cx) < radius] = random.uniform(80, 200)
    image = np.clip(image + random.normal(0, 5, image.shape), 0, 255)
    corners = range(0, side - 127, 32)
    tiles = np.array([(y, y + 128, x, x + 128) for y in corners for x in corners])

    def rows(x):
        found = features.image_features(np.clip(x, 0, 255).astype(np.uint8), tiles, features.EfficientNetLite0())
        return found.astype(np.float64)

    real = rows(image)
    space = frechet.feature_space(real, frechet.components_for(len(tiles)))
    blurred = [frechet.frechet_distance(rows(ndimage.gaussian_filter(image, s)), real, space) for s in (0.5, 1, 2, 4)]
    assert blurred == sorted(blurred)
    noisy = [frechet.frechet_distance(rows(image + random.normal(0, s, image.shape)), real, space) for s in (5, 20, 60)]
    assert noisy == sorted(noisy)
    assert blurred[0] > 1e-3


def test_ridge_solution_agrees_with_least_squares():
    random = np.random.default_rng(0)
    x = np.column_stack([random.normal(size=(80, 5)), np.ones(80)])
    y = x @ random.normal(size=(6, 2)) + random.normal(size=(80, 2))
    plain = controls.solve_ridge(x.T @ x, x.T @ y, 0.0)
    np.testing.assert_allclose(plain, np.linalg.lstsq(x, y, rcond=None)[0], atol=1e-8)
    strength = 0.3 * np.mean(np.diag(x.T @ x)[:-1])
    rows = np.vstack([x, np.sqrt(strength) * np.eye(6)[:5]])
    expected = np.linalg.lstsq(rows, np.vstack([y, np.zeros((5, 2))]), rcond=None)[0]
    np.testing.assert_allclose(controls.solve_ridge(x.T @ x, x.T @ y, 0.3), expected, atol=1e-8)


def test_neighbourhood_lists_the_nine_bins():
    layers = np.arange(2 * 4 * 5, dtype=float).reshape(2, 4, 5)
    features = controls.neighbourhood(layers)
    assert features.shape == (2 * 3, 19)
    row, column = 1, 2
    expected = [layers[c, row + y, column + x] for y in range(3) for x in range(3) for c in range(2)]
    np.testing.assert_array_equal(features[row * 3 + column], [*expected, 1])


def test_transcripts_of_boxes_are_counted():
    rows = Transcripts(*(np.array(v, np.int32) for v in ([0, 7, 7], [3, 4, 7], [0, 0, 0], [1, 1, 3])))
    origin = Box(100, 108, 200, 208)
    boxes = list(origin.tiles(4, 4))
    np.testing.assert_array_equal(transcripts_in(rows, origin, boxes), [1, 0, 0, 4])


def test_ridge_boxes_fit_together(tmp_path):
    brain = make_brain(tmp_path / "b.zarr", shape=(2, 1, 200, 260), pixel_um=1.0)
    ridge = controls.fit_ridge(brain, [0], Box(0, 200, 0, 130), 1.0)
    within = Box(3, 200, 130, 257)
    whole = controls.predict_ridge(brain, 0, within, within, ridge)
    assert whole.shape == (2, 197, 127)
    assert np.ptp(whole) > 0
    for box in (Box(3, 100, 130, 257), Box(50, 51, 140, 170), Box(120, 200, 201, 257)):
        part = controls.predict_ridge(brain, 0, box, within, ridge)
        np.testing.assert_array_equal(part, whole[(slice(None), *box.shift(-3, -130).slices())])


def test_ridge_of_shared_genes_ignores_the_others(tmp_path):
    brain = make_brain(tmp_path / "b.zarr", shape=(1, 1, 128, 128), stains=("DAPI",), pixel_um=1.0)
    own = np.array([4, 0])
    ridge = controls.fit_ridge(brain, [0], brain.canvas, 1.0, own)
    assert ridge.axes.shape[0] == 2
    assert controls.predict_ridge(brain, 0, brain.canvas, brain.canvas, ridge, own).shape == (1, 128, 128)


def dense_components(brain, box, bin_px, genes=None):
    """Principal components of log1p counts a bin, from the dense table."""
    levels = np.log1p(gene_bins(brain, [0], box, bin_px, genes)[:, 0]).reshape(-1, box.height * box.width // bin_px**2)
    rows = levels.T.astype(np.float64)
    return np.linalg.svd(rows - rows.mean(axis=0), full_matrices=False)[2][: controls.MAX_COMPONENTS].T


@pytest.fixture(scope="module")
def wide_panel(tmp_path_factory):
    names = [f"G{gene}" for gene in range(160)]
    folder = tmp_path_factory.mktemp("wide")
    return make_brain(folder / "b.zarr", shape=(1, 1, 192, 192), stains=("DAPI",), genes=names, rows=9000, pixel_um=1.0)


@pytest.mark.parametrize("few", [controls.FEW_GENES, 8])
def test_components_are_those_of_the_dense_table(wide_panel, monkeypatch, few):
    """Covariance and Lanczos span what a singular value decomposition spans, whatever the tiles."""
    monkeypatch.setattr(controls, "FEW_GENES", few)
    monkeypatch.setattr(controls, "TILE_BINS", 20)
    own = np.random.default_rng(1).permutation(160)[:140]
    for genes in (None, own):
        expected = dense_components(wide_panel, wide_panel.canvas, 3, genes)
        ridge = controls.fit_ridge(wide_panel, [0], wide_panel.canvas, 1.0, genes)
        np.testing.assert_allclose(ridge.axes @ ridge.axes.T, expected @ expected.T, atol=1e-7)
        again = controls.fit_ridge(wide_panel, [0], wide_panel.canvas, 1.0, genes)
        np.testing.assert_array_equal(ridge.axes, again.axes)
        np.testing.assert_array_equal(ridge.weights, again.weights)


def test_layers_are_those_of_dense_counts(wide_panel):
    own, box = np.random.default_rng(2).permutation(160)[:30], Box(0, 60, 150, 192)
    axes = np.random.default_rng(3).normal(size=(30, 4))
    counts = np.log1p(gene_bins(wide_panel, [0], box.grow(3), 3, own)[:, 0])
    found = controls._layers(wide_panel, 0, box, 3, axes, own)
    np.testing.assert_allclose(found, np.einsum("gyx,gc->cyx", counts, axes), atol=1e-6)


def test_ridge_of_a_large_panel_needs_no_more_than_its_transcripts(tmp_path):
    """20,000 genes in 64 x 64 bins: a table of genes by genes would have 3.2 GB, one of genes by bins 348 MB."""
    names = [f"G{gene}" for gene in range(20_000)]
    brain = make_brain(
        tmp_path / "b.zarr", shape=(1, 1, 192, 192), stains=("DAPI",), genes=names, rows=4000, pixel_um=1.0
    )
    tracemalloc.start()
    try:
        ridge = controls.fit_ridge(brain, [0], brain.canvas, 1.0)
        image = controls.predict_ridge(brain, 0, brain.canvas, brain.canvas, ridge)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert ridge.axes.shape == (20_000, controls.MAX_COMPONENTS)
    assert np.ptp(image) > 0
    assert peak < 200e6


def test_components_of_many_transcripts_take_evenly_spread_tiles(wide_panel, monkeypatch):
    monkeypatch.setattr(controls, "FEW_GENES", 8)
    monkeypatch.setattr(controls, "TILE_BINS", 16)
    monkeypatch.setattr(controls, "MAX_ENTRIES", 4000)
    seen = []
    monkeypatch.setattr(controls, "_many_components", lambda tables, genes: seen.extend(tables) or np.eye(genes, 2))
    controls.fit_ridge(wide_panel, [0], wide_panel.canvas, 1.0)
    tiles = list(wide_panel.canvas.tiles(48, 48))
    expected = [(gene_bins(wide_panel, [0], tile, 3) > 0).sum() for tile in tiles[::4]]
    assert [table.nnz for table in seen] == expected
    assert 2000 < sum(expected) <= 4000


def test_ridge_of_an_empty_region_is_a_constant(tmp_path, monkeypatch):
    monkeypatch.setattr(controls, "FEW_GENES", 2)
    image = np.full((1, 1, 192, 192), 90, np.uint8)
    tissue = np.ones((1, 3, 3), bool)
    brain = make_brain(
        tmp_path / "b.zarr", shape=image.shape, stains=("DAPI",), rows=0, image=image, tissue=tissue, pixel_um=1.0
    )
    ridge = controls.fit_ridge(brain, [0], brain.canvas, 1.0)
    assert (controls.predict_ridge(brain, 0, brain.canvas, brain.canvas, ridge) == 90).all()
