"""Intervals by resampled cells: coverage on correlated values, p values, and parity with plain resampling."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage, stats

from tera_mind.metrics import bootstrap


def test_single_cells_resample_like_units():
    values = np.random.default_rng(1).normal(size=50)
    found = bootstrap.cell_mean(values, np.arange(50), 500, 4)
    drawn = values[np.concatenate(list(bootstrap.draws(50, 500, 4)))].mean(axis=1)
    assert found == pytest.approx((values.mean(), *np.percentile(drawn, [2.5, 97.5]), 50))


def test_mean_and_correlation_agree_with_resampling_by_hand():
    random = np.random.default_rng(1)
    x = random.uniform(1, 2, 60)
    y = x + random.normal(0, 0.3, 60)
    cells = np.arange(60) // 6
    index = np.concatenate(list(bootstrap.draws(10, 400, 3)))
    members = np.arange(60).reshape(10, 6)
    drawn = [members[row].ravel() for row in index]
    mean = bootstrap.cell_mean(y, cells, 400, 3)
    by_hand = [y[d].mean() for d in drawn]
    assert mean == pytest.approx((y.mean(), *np.percentile(by_hand, [2.5, 97.5]), 60))
    pearson = bootstrap.cell_pearson(y, x, cells, 400, 3)
    by_hand = [stats.pearsonr(y[d], x[d]).statistic for d in drawn]
    assert pearson == pytest.approx((stats.pearsonr(y, x).statistic, *np.percentile(by_hand, [2.5, 97.5]), 60))
    assert bootstrap.cell_pearson(y * 0, x, cells, 9, 3).value is None


def test_cells_cover_where_neighbours_are_alike():
    """A smooth random field of mean 0: patch-wise intervals miss 0 far too often, cell-wise ones seldom."""
    side, cell_px = 64, 16
    y, x = np.indices((side, side)) // cell_px
    cells = (y * 4 + x).ravel()
    missed = np.zeros(2)
    for seed in range(60):
        noise = np.random.default_rng(seed).normal(size=(side, side))
        field = ndimage.gaussian_filter(noise, 2.5, mode="wrap").ravel()
        for kind, found in enumerate(
            (bootstrap.cell_mean(field, np.arange(len(field)), 200, 0), bootstrap.cell_mean(field, cells, 200, 0))
        ):
            missed[kind] += not found.low <= 0 <= found.high
    assert missed[0] > 30
    assert missed[1] < 12


def test_p_values_are_uniform_without_and_small_with_a_difference():
    random = np.random.default_rng(0)
    cells = np.arange(400) // 10
    shared = random.normal(size=400)
    p = []
    for seed in range(80):
        noise = np.random.default_rng([1, seed]).normal(0, 0.1, (2, 400))
        p.append(bootstrap.cell_difference(shared + noise[0], shared + noise[1], cells, 300, seed).p)
    assert stats.kstest(p, "uniform").pvalue > 0.01
    better = bootstrap.cell_difference(shared + 0.1, shared + random.normal(0, 0.1, 400), cells, 999, 0)
    assert better.p == pytest.approx(2 / 1000)
    assert better.low > 0


def test_p_agrees_with_the_normal_theory():
    values = np.random.default_rng(5).normal(0.09, 1, 400)
    found = bootstrap.cell_difference(values, np.zeros(400), np.arange(400), 20000, 0)
    assert found.p == pytest.approx(stats.ttest_1samp(values, 0).pvalue, rel=0.25)


def test_two_sided_p_counts_both_ties():
    assert bootstrap.two_sided_p(np.array([1.0, 2.0, 3.0])) == pytest.approx(2 / 4)
    assert bootstrap.two_sided_p(np.zeros(9)) == 1
    assert bootstrap.two_sided_p(np.array([np.nan])) is None


def test_nothing_to_resample():
    none = np.zeros(0, np.int64)
    assert bootstrap.cell_mean(np.zeros(0), none, 10, 0) == (None, None, None, 0)
    assert bootstrap.cell_difference(np.zeros(0), np.zeros(0), none, 10, 0) == (None, None, None, None, 0)
    one = bootstrap.cell_mean(np.array([1.0, 2.0]), np.array([3, 3]), 10, 0)
    assert one == (1.5, None, None, 2)
    assert bootstrap.cell_difference(np.ones(2), np.zeros(2), np.array([3, 3]), 10, 0) == (1, None, None, None, 2)


def test_the_blocks_of_draws_do_not_matter(monkeypatch):
    values = np.random.default_rng(0).normal(size=300)
    whole = bootstrap.cell_mean(values, np.arange(300) // 3, 200, 0)
    monkeypatch.setattr(bootstrap, "_DRAWN_AT_ONCE", 700)
    assert bootstrap.cell_mean(values, np.arange(300) // 3, 200, 0) == pytest.approx(whole)
