"""Gene probe and gene recovery: counts in tiles, the fit, and shares of the ceiling that are known beforehand."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse

from tera_mind.errors import InputError
from tera_mind.formats.brain import Transcripts
from tera_mind.metrics.tiles import probe as probes
from tera_mind.metrics.tiles.jackknife import spatial_groups
from tera_mind.metrics.tiles.probe import fit_probe, tile_counts
from tera_mind.metrics.tiles.recovery import gene_recovery, gene_sums

GENES = 30


def grid(rows, columns, stride=32, side=64):
    y, x = (a.ravel() for a in np.indices((rows, columns)) * stride)
    return np.stack([y, y + side, x, x + side], axis=1).astype(np.int64)


def tissue(seed, boxes):
    """Features and counts that share two smooth fields; the last ten genes are independent of the image."""
    random = np.random.default_rng(0)
    mixing, effect = (
        random.normal(size=(2, 12)),
        random.uniform(0.4, 1, (2, GENES)) * random.choice([-1, 1], (2, GENES)),
    )
    effect[:, 20:] = 0
    random = np.random.default_rng([1, seed])
    phase = random.uniform(0, 6, 2)
    fields = np.stack([np.sin(boxes[:, 0] / 90 + phase[0]), np.cos(boxes[:, 2] / 70 + phase[1])], axis=1)
    features = fields @ mixing + random.normal(0, 0.3, (len(boxes), 12)) + 5
    counts = random.poisson(np.exp(1 + fields @ effect))
    return features.astype(np.float32), sparse.csr_array(counts.astype(np.float32))


@pytest.fixture(scope="module")
def fitted():
    boxes = grid(16, 24)
    return fit_probe(*tissue(0, boxes), boxes)


@pytest.fixture(scope="module")
def sums(fitted):
    boxes = grid(14, 20)
    features, counts = tissue(1, boxes)
    groups = spatial_groups(boxes)
    random = np.random.default_rng(0)
    noisy = features + random.normal(0, 3, features.shape).astype(np.float32)
    methods = {
        "real": features,
        "copy": features.copy(),
        "noisy": noisy,
        "shuffled": features[random.permutation(len(features))],
        "constant": np.repeat(features[:1], len(features), axis=0),
    }
    return {method: gene_sums(fitted, rows, counts, groups) for method, rows in methods.items()}


def test_counts_in_overlapping_tiles_agree_with_counting_one_by_one():
    random = np.random.default_rng(0)
    n = 500
    rows = Transcripts(
        *(random.integers(high, size=n).astype(np.int32) for high in (90, 120, 6)), np.full(n, 2, np.int32)
    )
    boxes = np.array([[0, 64, 0, 64], [32, 96, 10, 74], [0, 1, 0, 1], [64, 90, 64, 120]], np.int64)
    found = tile_counts(rows, boxes, 6)
    assert found.dtype == np.float32
    for index, (y0, y1, x0, x1) in enumerate(boxes.tolist()):
        for gene in range(6):
            inside = (rows.y >= y0) & (rows.y < y1) & (rows.x >= x0) & (rows.x < x1) & (rows.gene == gene)
            assert found.toarray()[index, gene] == 2 * inside.sum()
    assert tile_counts(Transcripts.empty(), boxes, 6).nnz == 0
    assert tile_counts(rows, boxes[:0], 6).shape == (0, 6)


def test_correlations_are_those_of_the_predicted_log_counts(fitted, sums):
    boxes = grid(14, 20)
    features, counts = tissue(1, boxes)
    predicted = fitted.components(features) @ fitted.weights
    measured = np.log1p(counts.toarray())
    expected = [np.corrcoef(predicted[:, gene], measured[:, gene])[0, 1] for gene in range(GENES)]
    np.testing.assert_allclose(sums["real"].r(), expected, atol=1e-9)


def test_weights_are_those_of_a_ridge_regression(fitted):
    boxes = grid(16, 24)
    features, counts = tissue(0, boxes)
    design = fitted.components(features)
    np.testing.assert_allclose(design[:, :-1].mean(axis=0), 0, atol=1e-6)
    strength = fitted.penalty * np.mean(np.sum(design[:, :-1] ** 2, axis=0))
    width = design.shape[1] - 1
    rows = np.concatenate([design, np.sqrt(strength) * np.eye(width + 1)[:width]])
    target = np.concatenate([np.log1p(counts.toarray()), np.zeros((width, GENES))])
    np.testing.assert_allclose(fitted.weights, np.linalg.lstsq(rows, target, rcond=None)[0], atol=1e-6)


def test_the_penalty_is_chosen_on_tiles_that_overlap_no_fitted_one():
    boxes = grid(16, 24)
    folds = list(probes._folds(boxes))
    assert len(folds) == probes.PARTS
    assert sorted(np.concatenate([own for own, _ in folds]).tolist()) == list(range(len(boxes)))
    for own, fit in folds:
        seen = np.zeros((600, 900), bool)
        for y0, y1, x0, x1 in boxes[own].tolist():
            seen[y0:y1, x0:x1] = True
        assert not any(seen[y0:y1, x0:x1].any() for y0, y1, x0, x1 in boxes[fit].tolist())
    # features that only remember their own place say nothing about the rest: no leak through overlapping tiles
    random = np.random.default_rng(0)
    centres = random.uniform(0, 900, (60, 2))
    places = np.exp(-(np.square(boxes[:, None, [0, 2]] - centres).sum(axis=2)) / 40**2).astype(np.float32)
    levels = np.exp(np.cumsum(random.normal(0, 0.3, (16, 24)), axis=1)).ravel()
    counts = sparse.csr_array(random.poisson(4 * levels[:, None] * np.ones((1, 8))).astype(np.float32))
    blind = fit_probe(places, counts, boxes)
    assert blind.held_out_r.mean() < 0.35


def test_one_standard_error_rule_takes_the_strongest_of_equals():
    scores = np.array([[0.1, 0.1, 0.1], [0.5, 0.3, 0.4], [0.45, 0.28, 0.38], [0.2, 0.2, 0.2]])
    assert probes._strongest_good(scores) == 2
    assert probes._strongest_good(scores[:, :1].repeat(3, axis=1)) == 1


def test_genes_without_a_trace_in_the_image_are_left_out(fitted, sums):
    found = gene_recovery(sums, 200, 0)
    assert found.kept[:20].all()
    assert found.kept[20:].sum() <= 2
    facts = fitted.facts()
    assert facts["tiles"] == 384
    assert facts["genes"] == GENES
    assert facts["held_out_genes_r_mean"] > 0.3
    assert facts["penalty"] in probes.PENALTIES


def test_recovery_is_one_for_real_tiles_and_nothing_for_shuffled_ones(sums):
    found = gene_recovery(sums, 300, 0)
    for method in ("real", "copy"):
        assert found.figures["gene_recovery", method][:3] == (1.0, 1.0, 1.0)
    shuffled = found.figures["gene_recovery", "shuffled"]
    assert abs(shuffled.value) < 0.25
    assert shuffled.low < 0.1
    assert found.figures["gene_recovery", "constant"][:3] == (0.0, 0.0, 0.0)
    noisy = found.figures["gene_recovery", "noisy"]
    assert 0.1 < noisy.value < 0.95
    assert noisy.low < noisy.value < noisy.high
    means = [found.figures["gene_r", method].value for method in ("noisy", "real")]
    assert noisy.value == pytest.approx(means[0] / means[1], rel=1e-9)
    assert found.figures["gene_r_median", "real"].value == pytest.approx(np.median(found.r["real"][found.kept]))
    assert found.figures["gene_r", "real"].n == found.kept.sum()


def test_differences_are_paired(sums):
    found = gene_recovery(sums, 300, 0)
    apart = found.difference("gene_recovery", "noisy", "shuffled")
    values = [found.figures["gene_recovery", method].value for method in ("noisy", "shuffled")]
    assert apart.value == pytest.approx(values[0] - values[1])
    assert 0 < apart.low < apart.value < apart.high
    assert apart.p < 0.01
    same = found.difference("gene_r", "real", "copy")
    assert (same.value, same.low, same.high, same.p) == (0, 0, 0, 1)
    assert gene_recovery(sums, 0, 0).difference("gene_r", "real", "copy").p is None


def test_resampling_groups_agrees_with_resampling_their_tiles(fitted, sums):
    boxes = grid(14, 20)
    features, counts = tissue(1, boxes)
    groups = spatial_groups(boxes)
    found = gene_recovery(sums, 5, 3)
    index = np.random.default_rng([3, 20]).integers(0, 20, size=(5, 20))
    predicted, measured = fitted.components(features) @ fitted.weights, np.log1p(counts.toarray())
    for draw, row in enumerate(index):
        tiles = np.concatenate([np.flatnonzero(groups == group) for group in row])
        r = [np.corrcoef(predicted[tiles, g], measured[tiles, g])[0, 1] for g in np.flatnonzero(found.kept)]
        assert found.drawn["gene_r", "real"][draw] == pytest.approx(np.mean(r), rel=1e-9)


def test_chunks_of_genes_change_nothing(monkeypatch, fitted):
    boxes = grid(16, 24)
    monkeypatch.setattr(probes, "_GENES", 7)
    again = fit_probe(*tissue(0, boxes), boxes)
    assert again.penalty == fitted.penalty
    np.testing.assert_allclose(again.weights, fitted.weights, atol=1e-12)
    np.testing.assert_allclose(again.held_out_r, fitted.held_out_r, atol=1e-12)


def test_what_cannot_be_fitted_or_computed_is_said():
    boxes = grid(16, 24)
    features, counts = tissue(0, boxes)
    with pytest.raises(InputError, match=r"at least 64 tiles .* choose a larger training region"):
        fit_probe(features[:40], counts[:40], boxes[:40])
    near = boxes * 0 + boxes[0]
    with pytest.raises(InputError, match="some of them clear of the others"):
        fit_probe(features, counts, near)
    with pytest.raises(InputError, match="look alike"):
        fit_probe(np.ones_like(features), counts, boxes)
    random = np.random.default_rng(0)
    blank = fit_probe(features, sparse.csr_array(np.ones((len(boxes), 3), np.float32)), boxes)
    ones = sparse.csr_array(np.ones((len(boxes), 3), np.float32))
    sums = {"real": gene_sums(blank, features + random.normal(size=features.shape), ones, spatial_groups(boxes))}
    found = gene_recovery(sums, 50, 0)
    assert not found.kept.any()
    assert found.figures["gene_recovery", "real"] == (None, None, None, 0)
