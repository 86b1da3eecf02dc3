"""Figures of nuclei against scipy and plain bootstraps; every named metric; what fails to be computed says why."""

from __future__ import annotations

import time

import numpy as np
import pytest
from scipy.stats import ks_2samp, pearsonr, wasserstein_distance

from tera_mind.errors import InputError
from tera_mind.metrics.nuclei.scores import (
    Draw,
    Squares,
    compare,
    count_error,
    in_squares,
    nucleus_rows,
    reference_rows,
    summarise,
)
from tera_mind.metrics.nuclei.table import QUANTITIES, NucleusTable
from tera_mind.metrics.table import METRICS

SIDE = 640
DRAW = {"resamples": 200, "seed": 1}


def nuclei(count, seed=0, scale=1.0, sections=2, side=SIDE):
    """Nuclei that get denser, and larger, from left to right."""
    random = np.random.default_rng(seed)
    x = side * np.sqrt(random.random(count))
    numbers = random.gamma(9, 5 * scale, count) * (1 + x / side)
    return NucleusTable(
        section=np.sort(random.integers(0, sections, count)),
        y=side * random.random(count),
        x=x,
        area_um2=numbers,
        eccentricity=random.beta(5, 3, count),
        intensity=random.uniform(20, 90, count) * scale,
        transcripts=random.poisson(numbers),
        matched=random.random(count) < 0.6,
    )


def squares(side, step=None, sections=2, kept=None):
    step = step or side
    boxes = [
        (s, y, y + side, x, x + side)
        for s in range(sections)
        for y in range(0, SIDE - side + 1, step)
        for x in range(0, SIDE - side + 1, step)
    ]
    table = np.array(boxes, np.int64).reshape(-1, 5)
    mask = np.ones(len(table), bool) if kept is None else kept(table)
    return Squares(table, mask, cells_of(table[:, 1], table[:, 3]))


def cells_of(y, x):
    return (np.asarray(y).astype(np.int64) // 128) * 100 + np.asarray(x).astype(np.int64) // 128


def summary(table, windows, regions):
    return summarise(table, cells_of(table.y, table.x), windows, regions, 0.5)


@pytest.fixture(scope="module")
def sides():
    windows, regions = squares(64, kept=lambda boxes: boxes[:, 3] >= 128), squares(320)
    real, found = nuclei(3000), nuclei(2500, seed=1, scale=1.1)
    return summary(found, windows, regions), summary(real, windows, regions), windows, regions, found, real


def rows_of(sides, method="generated", **draw):
    found, real, windows, regions = sides[:4]
    found = real if method == "real" else found
    rows = nucleus_rows(method, found, real, windows, regions, stain="DAPI", **(DRAW | draw))
    return {row.metric: row for row in rows}


def test_squares_hold_the_nuclei_of_their_place():
    """Overlapping squares, two sections, half-open edges: against a plain loop."""
    table, boxes = nuclei(400), squares(128, 96).boxes
    found = in_squares(table, {"area": table.area_um2}, boxes)
    for box, count, median in zip(boxes, found.counts, found.medians["area"], strict=True):
        s, y0, y1, x0, x1 = box
        inside = (table.section == s) & (table.y >= y0) & (table.y < y1) & (table.x >= x0) & (table.x < x1)
        assert count == inside.sum()
        expected = np.median(table.area_um2[inside]) if inside.any() else np.nan
        np.testing.assert_allclose(median, expected)
    assert (found.counts == 0).any()
    on_edge = NucleusTable(**{name: column[:1] for name, column in table.arrays().items()})
    on_edge.y[0], on_edge.x[0] = 128.0, 0.0
    placed = in_squares(on_edge, {}, np.array([(0, 0, 128, 0, 9), (0, 128, 256, 0, 9)], np.int64))
    assert placed.counts.tolist() == [0, 1]
    assert in_squares(table, {"area": table.area_um2}, np.zeros((0, 5), np.int64)).counts.shape == (0,)


def test_every_named_figure_is_there_and_known(sides):
    rows = rows_of(sides)
    expected = {
        "nuclei_count", "nuclei_count_r", "nuclei_count_ratio", "nuclei_count_error", "nuclei_count_wasserstein",
        "nuclei_count_ks", "region_count_r", "nuclei_f1", "nucleus_size_transcripts_r",
    }  # fmt: skip
    for quantity in QUANTITIES:
        expected |= {f"nucleus_{quantity}_{what}" for what in ("median", "ratio", "wasserstein", "ks", "r")}
        expected.add(f"region_{quantity}_r")
    assert set(rows) == expected <= set(METRICS)
    for name, row in rows.items():
        assert row.value is not None, name
        assert (row.method, row.stain, row.reason) == ("generated", "DAPI", None)
        if name != "nuclei_count":
            assert row.low <= row.value <= row.high, name
            assert row.low < row.high, name
    real = rows_of(sides, "real")
    described = {"nuclei_count", "nucleus_size_transcripts_r"}
    assert set(real) == described | {f"nucleus_{quantity}_median" for quantity in QUANTITIES}


def test_size_and_transcripts_agree_with_scipy(sides):
    table = sides[4]
    expected = pearsonr(np.log(table.area_um2), np.log1p(table.transcripts)).statistic
    assert rows_of(sides)["nucleus_size_transcripts_r"].value == pytest.approx(expected)


def test_values_are_scipys(sides):
    found, real, windows, _, table, real_table = sides
    rows = rows_of(sides)
    kept = windows.kept
    assert rows["nuclei_count"].value == 2500
    assert rows["nuclei_count_ratio"].value == pytest.approx(2500 / 3000)
    counts = [side.windows.counts[kept] for side in (found, real)]
    assert rows["nuclei_count_r"].value == pytest.approx(pearsonr(*counts)[0])
    assert rows["nuclei_count_error"].value == pytest.approx(np.abs(counts[0] - counts[1]).mean())
    np.testing.assert_array_equal(count_error(found, real, windows), np.abs(counts[0] - counts[1]))
    assert rows["nuclei_count_wasserstein"].value == pytest.approx(wasserstein_distance(*counts))
    assert rows["nuclei_count_ks"].value == pytest.approx(ks_2samp(*counts).statistic)
    assert rows["region_count_r"].value == pytest.approx(pearsonr(found.regions.counts, real.regions.counts)[0])
    assert rows["nuclei_f1"].value == pytest.approx(2 * table.matched.sum() / 5500)
    for name in QUANTITIES:
        a, b = found.values[name], real.values[name]
        assert rows[f"nucleus_{name}_median"].value == np.median(a)
        assert rows[f"nucleus_{name}_ratio"].value == pytest.approx(np.median(a) / np.median(b))
        assert rows[f"nucleus_{name}_wasserstein"].value == pytest.approx(wasserstein_distance(a, b))
        assert rows[f"nucleus_{name}_ks"].value == pytest.approx(ks_2samp(a, b).statistic)
        medians = np.stack([side.windows.medians[name][kept] for side in (found, real)])
        medians = medians[:, np.isfinite(medians).all(axis=0)]
        assert rows[f"nucleus_{name}_r"].value == pytest.approx(pearsonr(*medians)[0])
    np.testing.assert_allclose(real.values["distance"], real_table.nearest_um(0.5))


def test_resampled_distances_are_those_of_resampled_nuclei():
    """Histograms of cells, drawn with the bootstrap's own indices, against gathering the nuclei of the drawn cells."""
    from tera_mind.metrics.bootstrap import draws

    random = np.random.default_rng(0)
    sides = [(random.gamma(4, 2, 700).round(2), random.integers(0, 12, 700)) for _ in range(2)]
    atoms, drawn = Draw(40, 3, paired=True).histograms(*sides)
    index = np.concatenate(list(draws(12, 40, 3)))
    for row, cells in enumerate(index):
        gathered = [np.concatenate([values[own == cell] for cell in cells]) for values, own in sides]
        shares = [np.cumsum(side[row]) / side[row].sum() for side in drawn]
        gap = np.abs(shares[0] - shares[1])
        assert gap.max() == pytest.approx(ks_2samp(*gathered).statistic)
        assert gap[:-1] @ np.diff(atoms) == pytest.approx(wasserstein_distance(*gathered))


def test_many_values_are_resampled_as_well_as_few():
    """With more distinct values than atoms the intervals stay what they are."""
    random = np.random.default_rng(0)
    sides = [(random.gamma(9, 5 * scale, 20000), random.integers(0, 100, 20000)) for scale in (1.0, 1.1)]
    fine = compare(*sides, Draw(200, 0, paired=True))
    coarse = compare(*((values.round(1), cells) for values, cells in sides), Draw(200, 0, paired=True))
    for name in ("median", "ratio", "wasserstein", "ks"):
        a, b = getattr(fine, name), getattr(coarse, name)
        spread = a.high - a.low
        assert abs((b.high - b.low) - spread) < 0.35 * spread + 0.02 * abs(a.value), name
    # mean of the second is 1.1 times as large
    assert fine.wasserstein.low < 4.5 < fine.wasserstein.high
    assert fine.ratio.low < 1 / 1.1 < fine.ratio.high


def test_intervals_are_wider_where_neighbours_are_alike():
    random = np.random.default_rng(0)
    cells = np.repeat(np.arange(40), 50)
    alone = random.normal(50, 5, 2000)
    alike = np.repeat(random.normal(50, 5, 40), 50)
    other = random.normal(50, 5, 2000), cells
    width = [
        interval.high - interval.low
        for interval in (compare((values, cells), other, Draw(300, 0, paired=True)).median for values in (alone, alike))
    ]
    assert width[1] > 3 * width[0]


def test_equal_sides_have_no_distance_and_intervals_hold_their_value(sides):
    _, real, windows, regions = sides[:4]
    same = summary(sides[5], windows, regions)
    found = nucleus_rows("shuffled", same, real, windows, regions, stain="", **DRAW)
    rows = {row.metric: row for row in found}
    for name in QUANTITIES:
        wasserstein = rows[f"nucleus_{name}_wasserstein"]
        assert (wasserstein.value, wasserstein.low, wasserstein.high) == (0, 0, 0)
        assert rows[f"nucleus_{name}_ratio"].low == 1
        assert rows[f"nucleus_{name}_r"].value == pytest.approx(1)


def test_other_tissue_is_compared_in_distribution(sides):
    _, real, windows, _, table, _ = sides
    few = squares(64, sections=1)
    one = NucleusTable(**{name: column[table.section == 0] for name, column in table.arrays().items()})
    other = summary(one, few, squares(320, sections=1))
    rows = {
        row.metric: row
        for row in reference_rows("real_vs_real", other, real, few, windows, area_share=0.5, stain="DAPI", **DRAW)
    }
    assert rows["nuclei_count_ratio"].value == pytest.approx(len(one) / (0.5 * 3000))
    assert rows["nuclei_count_ratio"].low < rows["nuclei_count_ratio"].value < rows["nuclei_count_ratio"].high
    assert not {name for name in rows if name.endswith(("_r", "_error", "_f1"))}
    wasserstein = rows["nucleus_area_wasserstein"]
    assert wasserstein.low <= wasserstein.value <= wasserstein.high


def test_what_cannot_be_computed_says_why():
    windows, regions = squares(64), Squares(np.zeros((0, 5), np.int64), np.zeros(0, bool), np.zeros(0, np.int64))
    empty, some = summary(NucleusTable.empty(), windows, regions), summary(nuclei(50), windows, regions)
    rows = {row.metric: row for row in nucleus_rows("a", empty, some, windows, regions, stain="", **DRAW)}
    assert rows["nuclei_count"].value == 0
    assert rows["nuclei_count_ratio"].value == 0
    for name in ("nucleus_area_median", "nucleus_area_ks", "region_count_r", "nucleus_distance_r"):
        assert rows[name].value is None
        assert rows[name].reason
    rows = {row.metric: row for row in nucleus_rows("a", some, empty, windows, regions, stain="", **DRAW)}
    assert rows["nuclei_count_ratio"].value is None
    assert rows["nucleus_area_median"].value is not None
    assert rows["nucleus_area_wasserstein"].reason
    both = {row.metric: row for row in nucleus_rows("a", empty, empty, windows, regions, stain="", **DRAW)}
    assert both["nuclei_count"].value == 0
    none = {row.metric: row for row in nucleus_rows("a", some, some, windows, regions, stain="", resamples=0, seed=0)}
    assert none["nucleus_area_median"].low is None
    with pytest.raises(InputError, match="as many cells"):
        summarise(nuclei(5), np.zeros(4, np.int64), windows, regions, 1.0)


def test_the_order_of_blocks_changes_nothing(sides):
    _, real, windows, regions, found, _ = sides
    shuffle = np.random.default_rng(0).permutation(len(found))
    mixed = NucleusTable(**{name: column[shuffle] for name, column in found.arrays().items()})
    tables = [NucleusTable.concatenate(parts) for parts in ([found], [mixed])]
    first, second = (
        nucleus_rows("a", summary(t, windows, regions), real, windows, regions, stain="", **DRAW) for t in tables
    )
    assert first == second


def test_a_resample_costs_the_same_for_many_nuclei():
    """1,000 resamples of 600,000 nuclei: histograms by cell, not nuclei, are drawn (seconds instead of minutes)."""
    random = np.random.default_rng(0)
    sides = [(random.gamma(9, 5, 300_000), random.integers(0, 200, 300_000)) for _ in range(2)]
    start = time.process_time()
    compare(*sides, Draw(1000, 0, paired=True))
    assert time.process_time() - start < 20
