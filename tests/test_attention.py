"""Attention maps: the definition against loops, rows against the whole matrix, bands against everything at once."""

from __future__ import annotations

import dataclasses
import math
import pickle

import numpy as np
import pytest
import torch
from attention_case import PANEL, make_case, write_checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st
from test_golden import golden  # noqa: F401
from tiny_brain import make_brain
from tiny_model import counts_for, tiny_config, tiny_network

from tera_mind.analysis import attention as module
from tera_mind.analysis import readout
from tera_mind.analysis.attention import AttentionJob
from tera_mind.analysis.pathways import gene_positions, read_pathways
from tera_mind.errors import FormatError, InputError, MissingFileError, PanelMismatchError
from tera_mind.formats.attention_map import ATTENTION, NEXT, PREVIOUS, PRODUCT, UNWEIGHTED
from tera_mind.formats.brain import Transcripts
from tera_mind.geometry import Box
from tera_mind.model.published import import_state
from tera_mind.model.unet import GeneMorphUNet
from tera_mind.sampling.verify import Golden

GLUT = ("Slc17a6", "Slc17a7")


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    return make_case(tmp_path_factory.mktemp("attention"))


@pytest.mark.parametrize("transform", ["counts", "log1p"])
def test_rows_of_a_set_are_those_of_the_whole_matrix(transform):
    config = tiny_config(genes=7, gene_sections=4, count_transform=transform)
    pyramid, counts = tiny_network(config).pyramid, counts_for(config, 3, 2, 2)
    genes = torch.tensor([5, 0, 2])
    with torch.no_grad():
        whole, found = pyramid.attention(counts)[:, 0], readout.queries(pyramid, counts)
        torch.testing.assert_close(readout.attention_rows(found, genes), whole[:, genes])
        torch.testing.assert_close(readout.set_attention(found, genes), whole[:, genes][:, :, genes])


@pytest.mark.parametrize("name", ["golden_1slice.npz", "golden_4slices.npz"])
def test_rows_are_those_of_the_published_model(golden, name):  # noqa: F811
    file = Golden.read(golden / name)
    network = GeneMorphUNet(file.config)
    network.load_state_dict(import_state(file.config, file.state))
    n = file.config.bins
    counts = file.tensor("genes").transpose(1, 2)
    patches = counts.unfold(3, n, n).unfold(4, n, n).permute(0, 3, 4, 1, 2, 5, 6).flatten(0, 2)
    genes = torch.arange(0, file.config.genes, 3)
    with torch.no_grad():
        rows = readout.attention_rows(readout.queries(network.pyramid, patches), genes)
    expected = file.data["gene_attention"][:, 0, genes.numpy()]
    assert np.abs(rows.numpy() - expected).max() <= 1e-4


@settings(max_examples=15, deadline=None)
@given(st.integers(2, 5), st.integers(0, 10_000))
def test_readouts_are_the_sums_they_say(size, seed):
    random = np.random.default_rng(seed)
    a, x = random.random((2, size, size)), random.integers(0, 9, (2, size)).astype(float)
    pairs = [(i, j) for i in range(size) for j in range(size)]
    for patch in range(2):
        weighted = sum(a[patch, i, j] * x[patch, j] for i, j in pairs)
        across = [a[patch, i, j] for i, j in pairs if i != j]
        products = [x[patch, i] * x[patch, j] for i, j in pairs if i < j]
        at, xt = torch.from_numpy(a), torch.from_numpy(x)
        assert readout.weighted(at, xt)[patch].item() == pytest.approx(weighted)
        assert readout.unweighted(at)[patch].item() == pytest.approx(np.mean(across))
        assert readout.product(xt)[patch].item() == pytest.approx(np.mean(products))


def brute_force(case, job, section, row, column):
    """All channels of one patch, from single transcripts and explicit loops."""
    pyramid, brain = case.checkpoint.network.pyramid, case.brain
    first = 2 * (section // 2)
    window = range(first - 1, first + 3)
    side, bin_px = 32, 16
    y0, x0 = job.region.y0 + row * side, job.region.x0 + column * side
    counts = np.zeros((len(PANEL), 4, 2, 2), np.float32)
    for layer, z in enumerate(window):
        rows = brain.transcripts(z, Box(y0, y0 + side, x0, x0 + side))
        for y, x, gene, count in zip(rows.y, rows.x, rows.gene, rows.count, strict=True):
            if brain.genes[gene] in PANEL:
                counts[PANEL.index(brain.genes[gene]), layer, y // bin_px, x // bin_px] += count
    which = [PANEL.index(gene) for gene in job.genes]
    x = counts.sum((2, 3))[which, window.index(section)]

    def attention(kept):
        seen = np.zeros_like(counts)
        for layer, z in enumerate(window):
            if z in kept:
                seen[:, layer] = counts[:, layer]
        with torch.no_grad():
            return pyramid.attention(torch.from_numpy(seen)[None])[0, 0].numpy()[np.ix_(which, which)]

    def total(a):
        return sum(a[i, j] * x[j] for i in range(len(which)) for j in range(len(which)))

    there = range(len(brain.sections))
    a = attention(window)
    found = {ATTENTION: total(a), UNWEIGHTED: (a.sum() - np.trace(a)) / (len(which) * (len(which) - 1))}
    found[PREVIOUS] = total(attention((section - 1, section))) if section - 1 in there else math.nan
    found[NEXT] = total(attention((section, section + 1))) if section + 1 in there else math.nan
    found |= dict(zip(job.genes, x, strict=True))
    return found | {PRODUCT: (x.sum() ** 2 - (x**2).sum()) / (len(which) * (len(which) - 1))}


def planes_of(job):
    """(channel, section, row, column) of all units of a job."""
    out = np.full((len(job.channels), len(job.sections), *job.grid), np.nan, np.float32)
    for unit in job.units:
        for layer, section in enumerate(job.own_sections(unit.group)):
            out[:, job.sections.index(section), unit.first : unit.last] = job(unit)["planes"][:, layer]
    return out


def test_every_channel_is_as_loops_say(case):
    genes = ("Cldn5", "Mog", "Slc17a7")
    region = Box(10, 120, 33, 140)
    job = AttentionJob.of(case.checkpoint, case.brain, genes, region=region, sections=(0, 3, 4), pairwise=True)
    assert job.region == Box(10, 106, 33, 129)
    planes = planes_of(job)
    for section, row, column in ((0, 0, 0), (0, 2, 1), (3, 1, 2), (4, 2, 2)):
        expected = brute_force(case, job, section, row, column)
        found = planes[:, job.sections.index(section), row, column]
        np.testing.assert_allclose(found, [expected[name] for name in job.channels], rtol=2e-5, atol=1e-6)


def test_masked_pairs_know_nothing_of_other_sections(case, tmp_path):
    """Transcripts of section 4 are others: only what sees it changes."""
    whole = AttentionJob.of(case.checkpoint, case.brain, GLUT, sections=(2, 3), pairwise=True)
    full = Box(0, *case.brain.shape[2:3], 0, case.brain.shape[3])
    rows = [case.brain.transcripts(z, full) for z in range(5)]
    rows[4] = Transcripts(rows[0].y, rows[0].x, rows[0].gene, rows[0].count)
    changed = make_brain(tmp_path / "b.zarr", shape=case.brain.shape, genes=case.brain.genes, transcripts=rows)
    other = AttentionJob.of(case.checkpoint, changed, GLUT, sections=(2, 3), pairwise=True)
    before, after = planes_of(whole), planes_of(other)
    same = {(c, z) for c in range(len(whole.channels)) for z in (0, 1) if np.array_equal(before[c, z], after[c, z])}
    names = {(whole.channels[c], (2, 3)[z]) for c, z in same}
    assert {(PREVIOUS, 2), (NEXT, 2), (PREVIOUS, 3), ("Slc17a6", 3), (PRODUCT, 2)} <= names
    assert not {(NEXT, 3), (ATTENTION, 2), (ATTENTION, 3), (UNWEIGHTED, 2)} & names


def test_bands_and_blocks_are_the_whole_in_memory(case, monkeypatch):
    whole = planes_of(AttentionJob.of(case.checkpoint, case.brain, GLUT, pairwise=True))
    monkeypatch.setattr(module, "BLOCK_PATCHES", 4)
    job = AttentionJob.of(case.checkpoint, case.brain, GLUT, pairwise=True)
    assert job.grid == (9, 12)
    assert len(job.units) == 3 * 3  # three groups of two sections, three bands
    assert len({unit.name for unit in job.units}) == 9
    np.testing.assert_allclose(planes_of(pickle.loads(pickle.dumps(job))), whole, rtol=2e-5, atol=1e-7)
    region = AttentionJob.of(case.checkpoint, case.brain, GLUT, pairwise=True, region=Box(64, 192, 96, 320))
    np.testing.assert_allclose(planes_of(region), whole[:, :, 2:6, 3:10], rtol=2e-5, atol=1e-7)


def test_a_block_is_bounded_in_memory(case):
    job = AttentionJob.of(case.checkpoint, case.brain, GLUT)
    wide = dataclasses.replace(job, panel=tuple(map(str, range(20_000))), bin_px=8, gene_sections=16)
    bytes_a_patch = 4 * 20_000 * 16 * 16
    assert wide.block_patches**2 * bytes_a_patch <= module.BLOCK_BYTES < 4 * wide.block_patches**2 * bytes_a_patch
    assert job.block_patches == module.BLOCK_PATCHES


def test_nothing_is_known_without_transcripts(tmp_path, case):
    rows = [Transcripts(*(np.array([k], np.int32) for k in (40, 70, 0, 2)))] + [Transcripts.empty()] * 4
    brain = make_brain(tmp_path / "b.zarr", shape=(2, 5, 96, 128), genes=case.brain.genes, transcripts=rows)
    planes = planes_of(AttentionJob.of(case.checkpoint, brain, GLUT))
    known = np.isfinite(planes)
    # section 0 alone holds a transcript, which the windows of groups (0, 1) and (2, 3) do and do not see
    assert known[:, :2, 1, 2].all()
    assert known.sum() == 2 * len(planes)


def test_genes_that_the_brain_lacks(tmp_path, case):
    brain = make_brain(tmp_path / "b.zarr", shape=(2, 1, 64, 64), genes=("Slc17a6", "Slc17a7", "Mog"))
    with pytest.raises(PanelMismatchError, match=r"lacks 3 of the genes.*Aqp4.*--allow-missing-genes"):
        AttentionJob.of(case.checkpoint, brain, GLUT)
    job = AttentionJob.of(case.checkpoint, brain, GLUT, allow_missing=True)
    assert job.facts()["genes_missing"] == ["Aqp4", "Cldn5", "Vip"]
    with pytest.raises(PanelMismatchError, match=r"lacks 1 .*Aqp4; choose other genes"):
        AttentionJob.of(case.checkpoint, brain, ("Slc17a6", "Aqp4"), allow_missing=True)


def test_what_does_not_fit_is_refused(case, tmp_path):
    def refused(words, error=InputError, genes=GLUT, checkpoint=case.checkpoint, brain=case.brain, **more):
        with pytest.raises(error, match=words):
            AttentionJob.of(checkpoint, brain, genes, **more)

    refused("at least two genes", genes=("Mog",))
    refused("named once", genes=("Mog", "Mog"))
    refused(r"lacks Slc17A8 \(nearest: Slc17a[67], ", PanelMismatchError, ("Mog", "Slc17A8"))
    refused("sections 0 to 4, asked for", sections=(5,))
    refused("sections 0 to 4, asked for", sections=())
    refused("smaller than one patch", region=Box(0, 31, 0, 99))
    refused("one section at a time", checkpoint=write_checkpoint(tmp_path / "one.ckpt", gene_sections=1), pairwise=True)
    other = make_brain(tmp_path / "b.zarr", shape=(2, 1, 64, 64), genes=case.brain.genes, pixel_um=0.5)
    refused("trained at 0.4 um a pixel, the brain has 0.5", brain=other)


def test_pathways(tmp_path):
    shipped = read_pathways()
    assert shipped == {"GLUT": GLUT, "DOPA": ("Nr4a2", "Th"), "BLOD": ("Cldn5", "Aqp4")}
    with pytest.raises(MissingFileError, match="no file is there"):
        read_pathways(tmp_path / "none.yaml")
    for text, words in (("A: [", "cannot be read as YAML"), ("- A", "should map names"), ("A: Mog", "'A' should be")):
        (tmp_path / "own.yaml").write_text(text)
        with pytest.raises(FormatError, match=words) as caught:
            read_pathways(tmp_path / "own.yaml")
        assert "\n" not in str(caught.value)
    assert gene_positions(("b", "a"), ("a", "b")).tolist() == [1, 0]
