"""Populations, reach, latent scores, nulls: against hand-made and independent figures."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from intervention_case import basis, intervention
from tiny_blocks import TinyBlocks, tiny_counts
from tiny_brain import GENES, make_brain
from tiny_model import tiny_config, tiny_network

from tera_mind.analysis.interventions.declaration import read_experiment
from tera_mind.analysis.interventions.edits import Match, Scale
from tera_mind.analysis.interventions.intervention import Intervention, Part
from tera_mind.analysis.interventions.locality import margin_px, reached_patches
from tera_mind.analysis.interventions.masks import Mask
from tera_mind.analysis.interventions.population import Basis, measure
from tera_mind.analysis.latents import Spread, bottleneck_features, eigenvalue_score, pyramid_features
from tera_mind.effects.latent import spread_of, strangeness
from tera_mind.effects.nulls import null_genes, null_intervention, rank_p
from tera_mind.errors import FormatError, InputError, MissingFileError
from tera_mind.formats.brain import gene_bins
from tera_mind.geometry import Box, SectionGroup
from tera_mind.metrics.regions import RegionMap
from tera_mind.sampling.domain import Domain
from tera_mind.sampling.plain import SamplerSettings, box_noise
from tera_mind.sampling.wavefront import sweep
from tera_mind.sums import Sums


@pytest.fixture(scope="module")
def brain(tmp_path_factory):
    return make_brain(tmp_path_factory.mktemp("population") / "brain.zarr", rows=900)


def test_a_streamed_basis_is_the_one_in_memory(brain, monkeypatch, tmp_path):
    monkeypatch.setattr("tera_mind.analysis.interventions.population._TILE_BYTES", 4 * 5 * 9)  # three rows a side
    mask = Mask(Box(0, 120, 0, 150), (0, 2))
    streamed = measure("own", brain, 16, mask=mask)
    rows = np.concatenate(
        [gene_bins(brain, (z,), Box(0, 112, 0, 192), 16)[:, 0, :, :9].reshape(len(GENES), -1).T for z in (0, 2)]
    )
    rows = rows[rows.any(axis=1)].astype(np.float64)  # the ninth column's centre lies at 136, the tenth's at 152
    assert streamed.sums.n == len(rows) > 100
    assert np.array_equal(streamed.sums.outer, rows.T @ rows)  # whole numbers: to the last bit
    np.testing.assert_allclose(streamed.sums.mean, rows.mean(0))
    np.testing.assert_allclose(streamed.sums.covariance, np.cov(rows.T, bias=True))
    singular = np.linalg.svd(rows / np.sqrt(len(rows)), compute_uv=False)
    np.testing.assert_allclose(np.sqrt(streamed.uncentred.values), singular, rtol=1e-9)
    streamed.write(tmp_path / "own.npz")
    again = Basis.read(tmp_path / "own.npz")
    assert again.digest == streamed.digest
    assert again.facts["brain_fingerprint"] == brain.fingerprint
    assert again.row_um == pytest.approx(6.4)
    some = again.of(("Vip", "Aqp4"))
    own = rows[:, [4, 0]]
    assert np.array_equal(some.sums.outer, own.T @ own)


def test_damaged_and_empty_populations_are_refused(brain, tmp_path):
    with pytest.raises(MissingFileError, match="no population"):
        Basis.read(tmp_path / "no.npz")
    (tmp_path / "text.npz").write_text("nonsense")
    with pytest.raises(FormatError, match="cannot be read"):
        Basis.read(tmp_path / "text.npz")
    basis(1).write(tmp_path / "own.npz")
    with np.load(tmp_path / "own.npz") as file:
        arrays = dict(file)
    arrays["outer"] = arrays["outer"] + 1
    np.savez(tmp_path / "own.npz", **arrays)
    with pytest.raises(FormatError, match="digest differs"):
        Basis.read(tmp_path / "own.npz")
    arrays["attributes"] = np.array(json.dumps({**json.loads(str(arrays["attributes"])), "version": 9}))
    np.savez(tmp_path / "own.npz", **arrays)
    with pytest.raises(FormatError, match="version 1"):
        Basis.read(tmp_path / "own.npz")
    with pytest.raises(InputError, match="no square with transcripts"):
        measure("none", brain, 16, mask=Mask(Box(500, 600, 500, 600)))


@pytest.mark.parametrize(("steps", "patch", "halo", "margin"), [(15, 64, 32, 928), (1, 64, 32, 32), (3, 8, 12, 44)])
def test_margins(steps, patch, halo, margin):
    assert margin_px(steps, patch, halo) == margin


@settings(max_examples=4, deadline=None)
@given(
    st.sampled_from([(1, 4, "ddim"), (2, 4, "ddpm"), (3, 4, "dpm++"), (2, 12, "unipc")]), st.integers(0, 10),
    st.integers(0, 10), st.booleans(),
)  # fmt: skip
@example((4, 4, "dpm++"), 5, 5, False)
@example((4, 4, "unipc"), 5, 5, False)
def test_an_edit_changes_nothing_beyond_the_patches_it_reaches(sizes, row, column, neighbour):
    """On the wavefront sampler, every solver, with a network that looks exactly as far as it says."""
    steps, halo, stepper = sizes
    network, region = TinyBlocks(8, halo), Box(0, 80, 8, 96)
    group = SectionGroup((0,), (0,))
    mask = Mask(Box(4 * row, 4 * row + 4, 4 * column, 4 * column + 4), (0, 1))
    own = Intervention("one bin", (Part(Scale(("b",), 3.0), mask),), ("a", "b", "c"), 8, 4, 1.0)
    images = []
    plain = lambda box: tiny_counts(box).float()  # noqa: E731
    for counts in (plain, own.edited(plain, (1 if neighbour else 0,), region)):
        made = SamplerSettings("v", steps, stepper, block_rows=3, block_columns=2)
        image = torch.zeros(2, 80, 88, dtype=torch.float64)
        for box, piece in sweep(network, counts, box_noise(0, group, 2), Domain.whole(region, 8), made):
            image[(..., *box.shift(0, -8).slices())] = piece.double()
        images.append(image)
    apart = (images[1] - images[0]).abs().amax(0).reshape(10, 8, 11, 8).amax((1, 3)).numpy()
    reached = reached_patches((mask,), group, region, steps=steps, patch_px=8, bin_px=4, halo_px=halo)
    assert not apart[~reached].any()  # exactly 0
    moved = tiny_counts(Box(4 * row, 4 * row + 4, 4 * column, 4 * column + 4))[1].item() > 0
    if moved and Box(0, 80, 8, 96).contains(mask.box):
        assert apart[row // 2, (column - 2) // 2] > 0
        assert (apart[reached] > 0).mean() > 0.5  # the margin is no larger than it must be


def test_an_edit_of_one_section_reaches_only_groups_that_read_it():
    mask = Mask(None, (2,))
    sizes = {"steps": 1, "patch_px": 8, "bin_px": 4, "halo_px": 4}
    groups = {(0, 1): (-1, 0, 1, 2), (2, 3): (1, 2, 3, 4), (4, 5): (3, 4, 5, 6)}
    for image, genes in groups.items():
        reached = reached_patches((mask,), SectionGroup(image, genes), Box(0, 16, 0, 16), **sizes)
        assert reached.all() == (2 in genes)
        assert reached.any() == (2 in genes)


def test_latent_eigenvalue_scores_by_hand():
    own, reference = np.array([16.0, 1.0, 4.0, 0.0]), np.array([4.0, 4.0, 1.0, 0.0])
    # ((4 - 2) / 2)^2 = 1, ((1 - 2) / 2)^2 = 0.25, ((2 - 1) / 1)^2 = 1
    assert eigenvalue_score(own, reference) == {1: 1.0, 2: 1.25, 3: 2.25, 4: None, 5: None, 10: None}
    assert eigenvalue_score(reference, reference)[3] == 0
    rows = np.random.default_rng([0]).normal(size=(50, 4)).astype(np.float32)
    parts = Sums.of(rows[:20]).merge(Sums.of(rows[20:]))
    np.testing.assert_allclose(parts.eigenvalues, np.linalg.svd(rows, compute_uv=False) ** 2 / 50, rtol=1e-5)


def test_features_of_patches_do_not_depend_on_their_neighbours():
    config = tiny_config()
    network = tiny_network(config, dtype=torch.float32)
    counts = torch.poisson(torch.full((6, 5, 1, 2, 2), 2.0), generator=torch.Generator().manual_seed(0))
    images = torch.rand(6, 2, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1
    kinds = (
        lambda own: pyramid_features(network.pyramid, counts[own]),
        lambda own: bottleneck_features(network, images[own], counts[own]),
    )
    for features in kinds:
        every = features(slice(0, 6))
        np.testing.assert_allclose(np.concatenate([features(slice(0, 2)), features(slice(2, 6))]), every, atol=1e-5)
        assert every.std(axis=0).max() > 0
    assert every.shape == (6, 8)


def test_genes_out_of_bounds_are_flagged_and_usual_ones_are_not():
    random = np.random.default_rng([0])
    rows = random.normal(size=(2000, 6)).astype(np.float32) * [5, 3, 2, 1, 1, 0.1]
    spread = spread_of(lambda: iter(np.array_split(rows.astype(np.float32), 7)))
    assert isinstance(spread, Spread)
    assert np.sqrt(np.square(spread.distances(rows)).mean()) == pytest.approx(1, abs=0.01)
    usual = rows[:200].astype(np.float32)
    assert not strangeness(spread, iter([usual]), iter([usual])).flagged
    strange = strangeness(spread, iter([usual]), iter([usual + np.float32(12)]))
    assert strange.flagged
    assert strange.share_after > 0.9
    assert strange.share_before < 0.05


def test_what_is_unknown_of_a_null_makes_nothing_significant():
    assert rank_p(3.0, [1.0, None, -4.0, 2.0]) == 3 / 5
    assert rank_p(None, [1.0]) is None
    assert rank_p(3.0, []) is None


def test_a_name_means_all_its_labels_and_edits_stay_in_the_brain(tmp_path):
    """Two hemispheres of one name; windows that reach beyond the canvas and the sections hold nothing there."""
    brain = make_brain(tmp_path / "brain.zarr", shape=(2, 2, 64, 64))
    np.save(tmp_path / "map.npy", np.array([[1, 2], [3, 0]], np.uint8))
    (tmp_path / "map.json").write_text('{"1": "cortex", "2": "other", "3": "cortex"}')
    (tmp_path / "x.yaml").write_text(
        "regions: {c: {labels: map.npy, names: [cortex]}}\n"
        "edits: [{kind: replace, pattern: constant, high: 7.0, region: c}, "
        "{kind: replace, pattern: constant, high: 7.0, genes: [Mog]}]\n"
    )
    own = read_experiment(tmp_path / "x.yaml").intervention(
        brain, brain.genes, patch_px=16, bin_px=8, populations={}, open_labels=RegionMap.open
    )
    source = own.edited(
        lambda box: torch.zeros(5, 4, box.height // 8, box.width // 8), (-1, 0, 1, 2), Box(0, 64, 0, 64)
    )
    counts = source(Box(-16, 80, -16, 80)).numpy()
    assert not counts[:, [0, 3]].any()
    inside = counts[:, 1:3, 2:-2, 2:-2]
    assert counts.sum() == inside.sum()
    assert (inside[brain.genes.index("Mog")] == 7).all()
    aqp4 = inside[brain.genes.index("Aqp4"), 0] == 7
    assert aqp4[:4, :4].all()
    assert aqp4[4:, :4].all()
    assert not aqp4[:, 4:].any()


def test_null_sets_are_of_equal_expression_and_never_the_edited_genes():
    panel = tuple(f"g{n}" for n in range(60))
    level = np.exp(np.linspace(-5, 5, 60))
    sets = [null_genes(("g10", "g50"), panel, level, draw, 0) for draw in range(40)]
    assert len(set(sets)) > 20
    for low, high in sets:
        assert low not in {"g10", "g50", high}
        assert abs(int(low[1:]) - 10) <= 8
        assert abs(int(high[1:]) - 50) <= 8
    assert sets[3] == null_genes(("g10", "g50"), panel, level, 3, 0)
    with pytest.raises(InputError, match="a null needs 5 genes"):
        null_genes(panel[:5], panel[:8], level[:8], 0, 0)
    own = intervention(Part(Scale(("Mog", "Vip"), 0.1), strength=0.5))
    drawn = null_intervention(own, np.ones(6), 0, 0).parts[0]
    assert not set(drawn.edit.genes) & {"Mog", "Vip"}
    assert (drawn.edit.factor, drawn.strength) == (0.1, 0.5)
    with pytest.raises(InputError, match="kind match"):
        null_intervention(intervention(Part(Match(basis(1), target=basis(2)))), np.ones(6), 0, 0)
    assert rank_p(-3.0, [1.0, -2.0, 0.0]) == 0.25
    assert rank_p(0.5, [1.0, -2.0, 0.0]) == 0.75
    assert rank_p(1.0, []) is None
