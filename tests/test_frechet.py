"""Distances between sets of tiles: against other implementations, from merged sums, and their intervals."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from tera_mind.metrics.tiles import frechet
from tera_mind.metrics.tiles.frechet import distance, gaussian
from tera_mind.metrics.tiles.jackknife import difference, jackknife, spatial_groups
from tera_mind.metrics.tiles.kernel import kernel_distance, kernel_jackknife
from tera_mind.sums import Sums


class Pass(nn.Module):
    """Images of 1 x 1 px, whose channels are the features."""

    num_features = 24

    def forward(self, x):
        return x.flatten(1)


def images(features):
    return torch.from_numpy(features)[:, :, None, None]


@pytest.fixture(scope="module")
def sets():
    random = np.random.default_rng(0)
    mixing = random.normal(size=(24, 24))
    first = random.normal(size=(90, 24)) @ mixing
    second = random.normal(0.3, 1.2, size=(90, 24)) @ mixing + random.normal(size=(90, 24))
    return first.astype(np.float32), second.astype(np.float32)


def test_plain_distance_agrees_with_torchmetrics_and_the_matrix_square_root(sets):
    metric = FrechetInceptionDistance(feature=Pass()).set_dtype(torch.float64)
    metric.update(images(sets[0].astype(float)), real=True)
    metric.update(images(sets[1].astype(float)), real=False)
    first, second = (gaussian(Sums.of(features)) for features in sets)
    assert distance(first, second) == pytest.approx(float(metric.compute()), rel=1e-6)
    c1, c2 = (np.cov(features.astype(float).T) for features in sets)
    expected = np.square(sets[0].mean(0, dtype=float) - sets[1].mean(0, dtype=float)).sum()
    expected += np.trace(c1 + c2 - 2 * scipy.linalg.sqrtm(c1 @ c2).real)
    assert distance(first, second) == pytest.approx(expected, rel=1e-9)
    assert distance(first, first) == pytest.approx(0, abs=1e-6)


def shrunk_reference(first, second, axes):
    """The shrunk distance as its formula reads, with dense covariances."""
    total = np.square(first.mean(0) - second.mean(0)).sum()
    leading, rest = [], []
    for features in (first, second):
        covariance = np.cov(features.T)
        leading.append(axes.T @ covariance @ axes)
        rest.append(np.trace(covariance) - np.trace(leading[-1]))
    total += np.trace(leading[0] + leading[1] - 2 * scipy.linalg.sqrtm(leading[0] @ leading[1]).real)
    return total + (np.sqrt(rest[0]) - np.sqrt(rest[1])) ** 2


def test_shrunk_distance_is_the_same_from_rows_and_from_sums(sets):
    first, second = sets
    sums = [Sums.of(features) for features in sets]
    both = sums[0].merge(sums[1])
    space = frechet.feature_space(np.concatenate(sets), 5)
    expected = shrunk_reference(first.astype(float), second.astype(float), space.axes)
    assert frechet.frechet_distance(first, second, space) == pytest.approx(expected, rel=1e-9)
    from_sums = frechet.leading_space(both, 5)
    np.testing.assert_allclose(from_sums.axes @ from_sums.axes.T, space.axes @ space.axes.T, atol=1e-9)
    assert distance(*(gaussian(m, from_sums) for m in sums)) == pytest.approx(expected, rel=1e-9)
    assert distance(gaussian(sums[0], space), gaussian(sums[0], space)) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("cuts", [[45], [1, 2, 3], [10, 20, 80], list(range(1, 90))])
def test_sums_merge_in_any_grouping(sets, cuts):
    features = sets[0]
    whole, parts = Sums.of(features), [Sums.of(part) for part in np.split(features, cuts)]
    left = parts[0]
    for part in parts[1:]:
        left = left.merge(part)
    right = parts[-1]
    for part in reversed(parts[:-1]):
        right = part.merge(right)
    for merged in (left, right):
        assert merged.n == len(features)
        np.testing.assert_allclose(merged.total, whole.total, rtol=1e-9)
        other = gaussian(Sums.of(sets[1]))
        assert distance(gaussian(merged), other) == pytest.approx(distance(gaussian(whole), other), rel=1e-9)


def test_kernel_distance_agrees_with_torchmetrics_and_with_pairs(sets):
    metric = KernelInceptionDistance(feature=Pass(), subsets=1, subset_size=90).set_dtype(torch.float64)
    metric.update(images(sets[0].astype(float)), real=True)
    metric.update(images(sets[1].astype(float)), real=False)
    assert kernel_distance(*sets) == pytest.approx(float(metric.compute()[0]), rel=1e-6)

    first, second = sets[0][:7].astype(float), sets[1][:5].astype(float)

    def k(a, b):
        return (a @ b / 24 + 1) ** 3

    inside = [np.mean([k(a, b) for i, a in enumerate(s) for j, b in enumerate(s) if i != j]) for s in (first, second)]
    expected = sum(inside) - 2 * np.mean([k(a, b) for a in first for b in second])
    assert kernel_distance(first, second) == pytest.approx(expected, rel=1e-9)


def test_kernel_sums_do_not_depend_on_the_chunks(sets, monkeypatch):
    groups = np.repeat(np.arange(9), 10)
    whole = kernel_jackknife(*sets, groups)
    monkeypatch.setattr("tera_mind.metrics.tiles.kernel._ROWS", 7)
    chunked = kernel_jackknife(*sets, groups)
    assert chunked.value == pytest.approx(whole.value, rel=1e-9)
    np.testing.assert_allclose(chunked.without, whole.without, rtol=1e-9)


def groups_of(n, count):
    return np.arange(n) * count // n


@pytest.mark.parametrize("paired", [True, False])
def test_jackknives_hold_the_distances_without_each_group(sets, paired):
    first, second = sets[0], sets[1] if paired else sets[1][:70]
    groups = groups_of(len(first), 6) + 3
    other = None if paired else groups_of(len(second), 5)
    space = frechet.feature_space(first, 4)
    found = {
        "plain": frechet.plain_jackknife(first, second, groups, other),
        "shrunk": frechet.shrunk_jackknife(first, second, space, groups, other),
        "kernel": kernel_jackknife(first, second, groups, other),
    }
    expected = {
        "plain": lambda a, b: distance(gaussian(Sums.of(a)), gaussian(Sums.of(b))),
        "shrunk": lambda a, b: shrunk_reference(a.astype(float), b.astype(float), space.axes),
        "kernel": kernel_distance,
    }
    for name, function in expected.items():
        assert found[name].value == pytest.approx(function(first, second), rel=1e-8)
        if paired:
            left_out = [function(first[groups != g], second[groups != g]) for g in range(3, 9)]
        else:
            left_out = [function(first[groups != g], second) for g in range(3, 9)]
            left_out += [function(first, second[other != g]) for g in range(5)]
        np.testing.assert_allclose(found[name].without, left_out, rtol=1e-8)
        interval = found[name].interval()
        assert interval.low < interval.value < interval.high
        assert interval.n == len(second)


def test_jackknife_error_of_a_mean_is_the_textbook_one():
    values = np.random.default_rng(0).normal(size=40)
    found = jackknife(lambda keep, _: float(values[keep].mean()), np.arange(40))
    error, freedom = found.error()
    assert error == pytest.approx(values.std(ddof=1) / np.sqrt(40), rel=1e-9)
    assert freedom == 39
    # two independent sets: variances add
    others = np.random.default_rng(1).normal(size=30)
    apart = jackknife(lambda keep, kept: float(values[keep].mean() - others[kept].mean()), np.arange(40), np.arange(30))
    expected = np.sqrt(values.var(ddof=1) / 40 + others.var(ddof=1) / 30)
    assert apart.error()[0] == pytest.approx(expected, rel=1e-9)
    assert jackknife(lambda keep, _: float(keep.sum()), np.zeros(40, int)).interval() == (40.0, None, None, 40)


def test_jackknife_error_is_the_spread_of_repeated_samples():
    random = np.random.default_rng(0)
    values, errors, resampled = [], [], []
    for _ in range(60):
        first, second = random.normal(size=(80, 6)), random.normal(0.4, 1.3, size=(80, 6))
        space = frechet.feature_space(first, 3)
        found = frechet.shrunk_jackknife(first, second, space, groups_of(80, 20))
        values.append(found.value)
        errors.append(found.error()[0])
        draw = random.integers(80, size=80)
        resampled.append(frechet.frechet_distance(first[draw], second[draw], space) - found.value)
    assert np.mean(errors) == pytest.approx(np.std(values), rel=0.35)
    # why it is no bootstrap: resampling with replacement drives the distance up
    assert np.mean(resampled) > 2 * np.std(resampled) / np.sqrt(60)


def test_paired_difference_sees_what_single_intervals_do_not():
    random = np.random.default_rng(0)
    real = random.normal(size=(100, 8))
    groups = np.repeat(np.arange(20), 5)
    # both methods fail at the same places, one everywhere a little more
    fault = random.uniform(0, 2, 20)[groups][:, None] + random.normal(0, 0.3, real.shape)
    space = frechet.feature_space(real, 3)
    worse, better = (frechet.shrunk_jackknife(real, real + fault + shift, space, groups) for shift in (0.05, 0.0))
    apart = difference(worse, better)
    assert apart.value == worse.value - better.value
    assert apart.low < apart.value < apart.high
    assert apart.low > 0
    assert apart.p < 0.01
    assert worse.interval().low < better.value
    same = difference(worse, worse)
    assert (same.value, same.p) == (0, 1)


def test_spatial_groups_are_compact_and_equal():
    boxes = np.array([[y, y + 128, x, x + 128] for y in range(0, 1600, 32) for x in range(0, 640, 32)], np.int64)
    boxes = np.concatenate([boxes, boxes])  # two sections
    groups = spatial_groups(boxes)
    sizes = np.bincount(groups)
    assert len(sizes) == 20
    assert np.ptp(sizes) <= 20
    extents = [np.ptp(boxes[groups == group][:, [0, 2]], axis=0).max() for group in range(20)]
    assert max(extents) < 640
    # one place, one group, but for a border that runs through equal coordinates
    half = len(boxes) // 2
    assert np.mean(groups[:half] == groups[half:]) > 0.85
    assert spatial_groups(boxes[:3], 20).tolist() == [0, 1, 2]
    assert spatial_groups(boxes[:0]).shape == (0,)
