"""Partners of a gene: sums against loops, p values uniform where nothing is planted and small where it is."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from tiny_model import tiny_config, tiny_network

from tera_mind.analysis import readout
from tera_mind.analysis.partners import PartnerSettings, PartnerSums, partner_table, shifted_sums
from tera_mind.analysis.roc import auroc, auroc_interval
from tera_mind.analysis.significance import benjamini_hochberg, own_p, pooled_p
from tera_mind.errors import InputError

GENES = 24
PANEL = tuple(f"g{k}" for k in range(GENES))
GRID = (6, 7)


@pytest.fixture(scope="module")
def pyramid():
    return tiny_network(tiny_config(genes=GENES, count_transform="log1p"), dtype=torch.float32).pyramid


def counts(seed, planted=None, scale=2.0):
    """Independent negative binomial counts (patch, gene, 1, 2, 2); gene `planted` goes with gene 0."""
    random = np.random.default_rng(seed)
    means = scale * random.gamma(2.0, 0.5, (GRID[0] * GRID[1], GENES, 1, 2, 2))
    if planted is not None:
        means[:, planted] = means[:, 0]
        means[:, [0, planted]] *= 4
    return torch.from_numpy(random.poisson(means).astype(np.float32))


def sums_of(pyramid, blocks, setting, dark=()):
    """Added-up sums of blocks, as units are; patches `dark` of the first hold nothing."""
    total = {}
    for number, block in enumerate(blocks):
        known = block.sum((1, 2, 3, 4)) > 0
        if number == 0:
            known[list(dark)] = False
        sums = PartnerSums(setting, PANEL)
        with torch.no_grad():
            queries = readout.queries(pyramid, block[known])
        sums.add(GRID, known, queries, block.sum((2, 3, 4)), (number,))
        for name, value in sums.arrays().items():
            if name in total:
                total[name] = total[name] + value if name.startswith("sum:") else np.concatenate([total[name], value])
            else:
                total[name] = value
    return total


def test_shifted_sums_are_those_of_explicit_shifts(pyramid):
    block = counts(3)
    known = torch.ones(len(block), dtype=torch.bool)
    known[[4, 20]] = False
    with torch.no_grad():
        found = readout.queries(pyramid, block[known])
        every = readout.queries(pyramid, block)
    weight = block.sum((2, 3, 4))[known, 0].double().numpy()
    scores = torch.einsum("pd,pjd->pj", found[:, 0], found).double() / 4
    sums, weights = shifted_sums(GRID, known.numpy(), found, scores, weight, 0)
    for dy, dx in ((0, 0), (1, 0), (2, 5), (5, 6)):
        expected, total = np.zeros(GENES), 0.0
        for k, patch in enumerate(np.flatnonzero(known.numpy())):
            y, x = divmod(int(patch), GRID[1])
            other = ((y + dy) % GRID[0]) * GRID[1] + (x + dx) % GRID[1]
            if not known[other]:
                continue
            total += weight[k]
            for gene in range(GENES):  # the whole softmax, with this one partner moved
                keys = every[patch].clone()
                keys[gene] = every[other, gene]
                logits = (keys @ every[patch, 0]).double() / 4
                if gene == 0:  # the query stays, its key is the moved one
                    logits = (keys @ found[k, 0]).double() / 4
                expected[gene] += weight[k] * torch.softmax(logits, 0)[gene].item()
        np.testing.assert_allclose(sums[dy * GRID[1] + dx], expected, rtol=1e-5)
        assert weights[dy * GRID[1] + dx] == pytest.approx(total)


def test_the_table_holds_what_it_says(pyramid):
    blocks = [counts(1), counts(2)]
    setting = PartnerSettings("g5", 19)
    table = partner_table(setting, PANEL, sums_of(pyramid, blocks, setting, dark=(0, 9)))
    assert len(table) == GENES - 1
    assert [p.attention for p in table] == sorted((p.attention for p in table), reverse=True)
    block = torch.cat([blocks[0][[k for k in range(len(blocks[0])) if k not in {0, 9}]], blocks[1]])
    with torch.no_grad():
        rows = pyramid.attention(block)[:, 0, 5].double().numpy()
    x = block.sum((2, 3, 4)).double().numpy()
    partner = next(p for p in table if p.gene == "g11")
    assert partner.attention == pytest.approx((x[:, 5] @ rows[:, 11]) / x[:, 5].sum(), rel=1e-5)
    assert partner.ratio == pytest.approx(partner.attention * GENES)
    assert partner.plain == pytest.approx(rows[:, 11].mean(), rel=1e-5)
    assert partner.expression == pytest.approx(x[:, 11].mean())
    assert partner.product == pytest.approx((x[:, 5] * x[:, 11]).mean())
    assert partner.correlation == pytest.approx(np.corrcoef(x[:, 5], x[:, 11])[0, 1])


def test_p_values_are_uniform_where_nothing_is_planted(pyramid):
    """Genes that are all alike: both nulls are true, so p is even over 0 to 1."""
    drawn = {"p_genes": [], "p_shift": []}
    for seed in range(12):
        setting = PartnerSettings("g0", 99, seed)
        for partner in partner_table(setting, PANEL, sums_of(pyramid, [counts(100 + seed)], setting)):
            for name, values in drawn.items():
                values.append(getattr(partner, name))
    for name, values in drawn.items():
        assert len(values) == 12 * (GENES - 1)
        # partners of one brain share its softmax, so the test is a little generous
        assert stats.kstest(values, "uniform").pvalue > 0.01, name
        assert 0.02 < np.mean(np.array(values) <= 0.05) < 0.09, name


def test_a_planted_partner_is_found(pyramid):
    setting = PartnerSettings("g0", 199)
    table = partner_table(setting, PANEL, sums_of(pyramid, [counts(7, planted=3), counts(8, planted=3)], setting))
    first = table[0]
    assert first.gene == "g3"
    assert first.p_genes < 1e-3
    assert first.p_shift == pytest.approx(1 / 200)
    assert first.q_genes < 0.05
    assert first.correlation > 0.3
    assert sum(p.q_genes < 0.05 for p in table) <= 3


def test_draws_are_the_seeds_alone(pyramid):
    blocks = [counts(1)]
    first, again, other = (sums_of(pyramid, blocks, PartnerSettings("g0", 9, seed))["sum:shifts"] for seed in (4, 4, 5))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_partners_that_cannot_be_sought(pyramid):
    for change in ({"permutations": 0}, {"seed": -1}):
        with pytest.raises(InputError, match="at least 1 and the seed 0 or more"):
            PartnerSettings("g0", **change)
    block = counts(1)
    block[:, 2] = 0
    setting = PartnerSettings("g2", 9)
    with pytest.raises(InputError, match="g2 has no transcript in the region"):
        partner_table(setting, PANEL, sums_of(pyramid, [block], setting))


def test_p_values_by_counting():
    random = np.random.default_rng(0)
    observed, null = random.normal(size=5), random.normal(size=(40, 5))
    null[3, 2] = np.nan
    for k in range(5):
        own = [draw for draw in null[:, k] if np.isfinite(draw)]
        assert own_p(observed, null)[k] == (1 + sum(d >= observed[k] for d in own)) / (1 + len(own))
        pool = null[np.isfinite(null)]
        assert pooled_p(observed, null)[k] == (1 + sum(d >= observed[k] for d in pool)) / (1 + len(pool))
    assert own_p(np.ones(1), np.full((4, 1), np.nan)).tolist() == [1.0]


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(0.001, 1.0), min_size=1, max_size=12))
def test_false_discovery_rates_are_scipys(values):
    np.testing.assert_allclose(benjamini_hochberg(np.array(values)), stats.false_discovery_control(values))


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 25), st.integers(0, 10_000))
def test_area_is_the_share_of_pairs(size, seed):
    random = np.random.default_rng(seed)
    scores, positive = random.integers(0, 6, size).astype(float), random.random(size) < 0.5
    weights = random.integers(0, 3, size).astype(float)

    def brute(times):
        pairs = [
            (times[i] * times[j], (scores[i] > scores[j]) + 0.5 * (scores[i] == scores[j]))
            for i in np.flatnonzero(positive)
            for j in np.flatnonzero(~positive)
        ]
        total = sum(weight for weight, _ in pairs)
        return sum(weight * won for weight, won in pairs) / total if total else None

    for found, expected in ((auroc(scores, positive), brute(np.ones(size))),):
        assert found == (None if expected is None else pytest.approx(expected))
    expected = brute(weights)
    assert auroc(scores, positive, weights) == (None if expected is None else pytest.approx(expected))


def test_area_with_its_interval():
    random = np.random.default_rng(1)
    positive = np.repeat(random.random(60) < 0.5, 5)
    cells = np.repeat(np.arange(60), 5)
    scores = random.normal(size=300) + positive
    scores[:3] = np.nan
    found = auroc_interval(scores, positive, cells, 300, 0)
    assert found.value == auroc(scores[3:], positive[3:])
    assert found.positives + found.negatives == 297
    assert 0.6 < found.low < found.value < found.high < 0.9
    alone = auroc_interval(scores, positive, np.zeros(300, np.int64), 300, 0)
    assert (alone.low, alone.high) == (None, None)
    assert auroc_interval(scores, np.ones(300, bool), cells, 10, 0).value is None
    once = cells == 7  # all positives lie in one square: its resamples say nothing of how they vary
    assert auroc_interval(scores, once, cells, 300, 0)[:3] == (auroc(scores[3:], once[3:]), None, None)


def test_what_is_equal_up_to_rounding_is_not_significant(pyramid):
    """A gene without any transcript has one query everywhere: shifted or not, attention to it is the same."""
    setting, block = PartnerSettings("g0", 99, 0), counts(3)
    block[:, 5] = 0
    table = {row.gene: row for row in partner_table(setting, PANEL, sums_of(pyramid, [block], setting))}
    assert table["g5"].p_shift == 1
