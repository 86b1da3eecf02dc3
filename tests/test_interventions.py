"""Interventions: signs that mean nothing, moments that fit, windows that agree, strengths, patterns, functions."""

from __future__ import annotations

import pickle
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from intervention_case import BIN_PX, PANEL, PATCH_PX, PIXEL_UM, SECTIONS, basis, intervention, source_of, whole_counts

from tera_mind.analysis.interventions.algebra import Spectrum, aligned, mapped_rows, matching_map, scaling_map
from tera_mind.analysis.interventions.edits import Function, Match, Replace, Scale, SelfScale, to_rows
from tera_mind.analysis.interventions.intervention import Part
from tera_mind.analysis.interventions.masks import Mask
from tera_mind.errors import InputError, PanelMismatchError
from tera_mind.geometry import Box

CANVAS, REGION = Box(-64, 96, -64, 96), Box(0, 32, 0, 32)
SIGNS = st.lists(st.sampled_from([-1.0, 1.0]), min_size=6, max_size=6).map(np.array)


def edited(own, counts):
    return own.edited(source_of(counts), SECTIONS, REGION)(CANVAS).numpy()


@settings(max_examples=30, deadline=None)
@given(SIGNS, SIGNS, st.sampled_from([1, 2, 4, None]), st.booleans(), st.booleans())
def test_signs_of_eigenvectors_change_nothing(first, second, components, centred, orthogonal):
    own, other = ((b.centred if centred else b.uncentred) for b in (basis(1), basis(2, tilt=1.0)))
    if orthogonal:  # no pair of columns shares a direction, so their product says nothing of the sign
        values = np.arange(6, 0, -1.0)
        own, other = Spectrum(values, np.eye(6)), Spectrum(2 * values, np.roll(np.eye(6), 1, axis=1))
    rows = np.random.default_rng([0]).poisson(5.0, (20, 6)).astype(float)
    plain = rows @ matching_map(own, other, components)
    flipped = [Spectrum(s.values, s.vectors * signs) for s, signs in ((own, first), (other, second))]
    assert np.abs(rows @ matching_map(*flipped, components) - plain).max() < 1e-5
    assert np.abs(rows @ scaling_map(flipped[0], 3, 0.2) - rows @ scaling_map(own, 3, 0.2)).max() < 1e-5


def test_without_alignment_one_flip_would_destroy_the_edit():
    own, other = basis(1).uncentred, basis(2, tilt=1.0).uncentred
    target_mean = basis(2, tilt=1.0).sums.mean
    rows = np.random.default_rng([0]).poisson(basis(1).sums.mean, (200, 6)).astype(float)
    moved = rows @ matching_map(own, replace(other, vectors=-other.vectors), 1)
    assert np.corrcoef(moved.mean(0), target_mean)[0, 1] > 0.99
    spoilt = (rows @ own.vectors * np.sqrt(other.values / own.values)) @ (-aligned(own.vectors, other.vectors)[1]).T
    assert spoilt.mean() < 0


@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("components", [1, 3, None])
def test_the_leading_moments_become_the_targets(centred, components):
    random = np.random.default_rng([3])
    rows = random.poisson(random.gamma(3.0, 0.5, (300, 1)) * np.linspace(3, 9, 6)).astype(float)
    own, other = basis(5), basis(2, tilt=1.0)
    own = replace(own, sums=type(own.sums).of(rows))
    match = Match(own, components, centred, target=other)
    moved = mapped_rows(rows, *match.affine(PANEL))  # before anything is clamped
    spread = moved - moved.mean(0) if centred else moved
    k = components or 6
    wanted = other.centred if centred else other.uncentred
    leading = wanted.vectors[:, :k]
    np.testing.assert_allclose(leading.T @ (spread.T @ spread / 300) @ leading, np.diag(wanted.values[:k]), atol=1e-6)
    if centred:
        np.testing.assert_allclose(moved.mean(0), other.sums.mean, atol=1e-9)
    if not centred and components == 1:  # to about the target's mean
        np.testing.assert_allclose(moved.mean(0), other.sums.mean, rtol=0.15)


def test_self_scaling_scales_the_leading_eigenvalues_alone():
    own = basis(1)
    matrix = scaling_map(own.uncentred, 2, 0.25)
    after = np.linalg.eigvalsh(matrix.T @ own.sums.second_moment @ matrix)
    expected = np.sort(own.uncentred.values * [0.25, 0.25, 1, 1, 1, 1])
    np.testing.assert_allclose(after, expected, rtol=1e-9)


EDITS = {
    "scale": Scale(("Mog", "Vip"), 0.3),
    "zero": Scale(("Mog",), 2.0, "zero"),
    "match": Match(basis(1), 1, target=basis(2, tilt=1.0)),
    "match all": Match(basis(1), None, True, ("Mog", "Th"), target=basis(2, tilt=1.0)),
    "self": SelfScale(basis(1), 100, factor=0.1),
    "noise": Replace("noise", 0.25, 4.0, genes=("Th", "Mog"), seed=3),
    "checks": Replace("checks", 0.0, 2.0, 24),
    "stripes": Replace("stripes", 0.5, 2.0, 16),
}


def placed(corner: int = 4) -> list[Part]:
    """All kinds at once, masks at bins that are not whole patches."""
    return [
        Part(
            edit, Mask(Box(corner * (n % 3), 60 - 8 * n % 24, corner, 72 - 4 * n), (0, 1, -1)[: 1 + n % 3]), 1 - n / 20
        )
        for n, edit in enumerate(EDITS.values())
    ]


@settings(max_examples=10, deadline=None)
@given(
    st.tuples(st.integers(0, 31), st.integers(1, 9), st.integers(0, 31), st.integers(1, 9)),
    st.integers(0, 3),
    st.sampled_from([0.3, 1.0]),
)
def test_any_window_gives_the_same_counts(place, first, strength):
    counts, region = whole_counts(), Box(4 * first, 4 * first + 32, -4 * first, 32 - 4 * first)
    own = intervention(*placed(), strength=strength).edited(source_of(counts), SECTIONS, region)
    inner, (y, height, x, width) = CANVAS.grow(-16), place
    bins = Box(y, min(32, y + height), x, min(32, x + width))
    box = Box(4 * bins.y0, 4 * bins.y1, 4 * bins.x0, 4 * bins.x1).shift(inner.y0, inner.x0)
    assert torch.equal(own(box), own(inner)[(..., *bins.slices())])  # to the last bit


@pytest.mark.parametrize("name", EDITS)
def test_lazy_is_eager_and_masks_are_hard(name):
    counts, edit = whole_counts(), EDITS[name]
    mask = Mask(Box(-20, 30, 0, 44), (0,))
    own = intervention(Part(edit, mask))
    out = edited(own, counts)
    inside = np.zeros(counts.shape[1:], bool)
    inside[1] = mask.at(0, CANVAS, BIN_PX)
    eager = np.where(inside, edit.apply(counts, own.window(SECTIONS, CANVAS)), counts)
    assert np.array_equal(out, eager)
    assert np.array_equal(out[:, ~inside], counts[:, ~inside])
    assert not np.array_equal(out, counts)
    assert (out >= 0).all()
    rows, before = (to_rows(each, PATCH_PX // BIN_PX).sum(-1) for each in (out, counts))
    if edit.rows:
        assert not rows[~before.any(axis=1)].any()  # nothing appears where there is no tissue


def test_a_row_edit_gives_patches_the_wanted_totals():
    counts, edit = whole_counts(), EDITS["match"]
    out = edited(intervention(Part(edit)), counts)
    before, after = (to_rows(each, 4).sum(-1) for each in (counts, out))
    matrix = matching_map(edit.population.uncentred, edit.target.uncentred, 1)
    wanted = np.where(before.any(1)[:, None], np.maximum(before @ matrix, 0), 0)
    np.testing.assert_allclose(after, wanted, rtol=1e-5, atol=1e-5)
    only = edited(intervention(Part(EDITS["match all"])), counts)
    kept = [i for i, gene in enumerate(PANEL) if gene not in ("Mog", "Th")]
    np.testing.assert_allclose(only[kept], counts[kept], rtol=1e-6)


def test_ends_and_middle_of_a_trajectory():
    counts = whole_counts()
    own = intervention(*placed())
    full = edited(own, counts)
    assert np.array_equal(edited(own.at(0.0), counts), counts)
    assert np.array_equal(edited(own.at(1.0), counts), full)
    np.testing.assert_allclose(edited(own.at(0.25), counts), 0.75 * counts + 0.25 * full, atol=1e-5)
    assert len({own.at(s).digest for s in (0.0, 0.25, 1.0)}) == 3


def test_edits_are_applied_in_order_and_scale_can_keep_or_zero_the_others():
    counts = whole_counts()
    mog, vip = (PANEL.index(gene) for gene in ("Mog", "Vip"))
    double, add = Part(Scale(("Mog",), 2.0)), Part(Replace("constant", 0.5, 4.0, genes=("Mog",)))
    np.testing.assert_allclose(edited(intervention(double, add), counts)[mog], counts[mog] + 2)
    np.testing.assert_allclose(edited(intervention(add, double), counts)[mog], counts[mog] + 4)
    zeroed = edited(intervention(Part(Scale(("Vip",), 0.5, "zero"))), counts)
    np.testing.assert_allclose(zeroed[vip], counts[vip] / 2)
    assert not np.delete(zeroed, vip, axis=0).any()


def test_noise_is_uniform_and_a_function_of_seed_gene_section_and_place():
    counts = whole_counts()
    one, two = (edited(intervention(Part(Replace("noise", 0.0, 1.0, seed=s))), counts) for s in (0, 1))
    assert not np.array_equal(one, two)
    assert len(np.unique(one)) > 0.99 * one.size  # no gene, section or place repeats another
    assert one.min() > 0
    assert one.max() < 1
    assert one.mean() == pytest.approx(0.5, abs=0.01)
    assert one.std() == pytest.approx(12**-0.5, abs=0.01)


FUNCTIONS = """
import numpy as np
def half(counts, window, factor=0.5):
    return counts * factor
def by_place(counts, window):
    x = window.box.x0 + np.arange(counts.shape[-1]) * window.bin_px
    return counts * (x < 20)
def blurred(counts, window):
    return counts * 0 + counts.mean()
def negative(counts, window):
    return counts - 100
def wrong(counts, window):
    return counts[:1]
def centred(counts, window):
    return counts / (1 + counts.sum(axis=1, keepdims=True))


def broken(counts, window):
    raise KeyError("Mog")
"""


def test_a_users_function_and_what_is_refused_of_it(tmp_path, monkeypatch):
    (tmp_path / "my_edits.py").write_text(FUNCTIONS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_edits", raising=False)
    counts = whole_counts()
    np.testing.assert_allclose(
        edited(intervention(Part(Function("my_edits:half", {"factor": 0.25}))), counts), counts / 4
    )
    placed_at = edited(intervention(Part(Function("my_edits:by_place"))), counts)
    assert not placed_at[..., 21:].any()
    assert np.array_equal(placed_at[..., :21], counts[..., :21])
    for name, words in {
        "blurred": "another outcome in another window", "centred": "in another window", "negative": "0 or more",
        "wrong": "should return",
        "broken": "failed with KeyError", "absent": "cannot be imported",
    }.items():  # fmt: skip
        with pytest.raises(InputError, match=words):
            intervention(Part(Function(f"my_edits:{name}")))


def test_what_does_not_fit_is_refused():
    with pytest.raises(PanelMismatchError, match="Absent"):
        intervention(Part(Scale(("Absent",), 1.0)))
    with pytest.raises(PanelMismatchError, match="population 'made' lacks 1 of 6 genes: Th"):
        intervention(Part(Match(basis(1, genes=PANEL[:5]), target=basis(2))))
    with pytest.raises(InputError, match="rows of 16 um, the network patches of 8 um"):
        intervention(Part(SelfScale(replace(basis(1), row_um=16.0), factor=0.5)))
    with pytest.raises(InputError, match="strength"):
        intervention(Part(Scale(("Mog",), 1.0)), strength=1.5)
    with pytest.raises(InputError, match="at least one edit"):
        intervention()


def test_digests_tell_interventions_apart_and_survive_pickling():
    made = {name: intervention(Part(edit)) for name, edit in EDITS.items()}
    made |= {"boxed": intervention(Part(EDITS["scale"], Mask(Box(0, 8, 0, 8))))}
    made |= {"weak": intervention(Part(EDITS["scale"], strength=0.5))}
    assert len({own.digest for own in made.values()}) == len(made)
    for own in made.values():
        again = pickle.loads(pickle.dumps(own))
        assert again.digest == own.digest
        assert np.array_equal(edited(again, whole_counts()), edited(own, whole_counts()))
    assert PIXEL_UM * PATCH_PX == 8.0
