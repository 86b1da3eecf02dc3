"""`tera-mind generate`: what it writes, what changes the result and what does not, what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from generate_case import generate, save_checkpoint, tree
from tiny_brain import GENES, make_brain

from tera_mind.cli.main import main
from tera_mind.formats.brain import gene_bins
from tera_mind.formats.volume import Volume
from tera_mind.geometry import Box
from tera_mind.model.checkpoint import load_checkpoint
from tera_mind.sampling.counts import count_source, panel_index


@pytest.fixture(scope="module")
def brain(tmp_path_factory):
    return make_brain(tmp_path_factory.mktemp("brain") / "tiny.zarr", shape=(2, 3, 70, 100), rows=2500)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny.ckpt")


@pytest.fixture(scope="module")
def wide_checkpoint(tmp_path_factory):
    """Two image sections from four gene sections."""
    return save_checkpoint(tmp_path_factory.mktemp("wide") / "wide.ckpt", gene_sections=4)


@pytest.fixture(scope="module")
def first(brain, checkpoint, tmp_path_factory):
    """Section 1, as measured, seed 0."""
    out = tmp_path_factory.mktemp("volume") / "first.zarr"
    assert generate(brain, checkpoint, out, "--sections", "1") == 0
    return Volume.open(out)


def test_volume_says_where_it_belongs_and_how_it_was_made(first, brain, checkpoint):
    said = first.attributes
    assert (said.seed, said.steps, said.genes, said.sections) == (0, 2, "as measured", (1,))
    assert said.box == Box(0, 64, 0, 96)  # whole patches of 16 px out of 70 x 100
    assert (said.brain, said.brain_fingerprint) == ("tiny.zarr", brain.fingerprint)
    assert (said.stains, said.pixel_um, said.patch_px) == (("DAPI", "PolyT"), 0.4, 16)
    assert said.checkpoint == load_checkpoint(checkpoint).sha256
    assert said.to_json()["synthetic"] is True
    assert said.settings["precision"] == "32"
    image = first.image()
    assert image.shape == (2, 1, 64, 96)
    assert len(np.unique(image)) > 20
    assert not list(first.path.parent.glob(".*"))  # nothing is left beside it


def test_same_command_twice_leaves_it_alone_and_overwrite_makes_the_same(first, brain, checkpoint, capsys):
    before, written = first.image(), tree(first.path)
    assert generate(brain, checkpoint, first.path, "--sections", "1") == 0
    assert tree(first.path) == written
    assert generate(brain, checkpoint, first.path, "--sections", "1", "--overwrite") == 0
    assert tree(first.path).keys() == written.keys()
    np.testing.assert_array_equal(Volume.open(first.path).image(), before)


def test_another_seed_paints_another_picture(first, brain, checkpoint, tmp_path):
    assert generate(brain, checkpoint, tmp_path / "v.zarr", "--sections", "1", "--seed", "1") == 0
    other = Volume.open(tmp_path / "v.zarr")
    assert other.attributes.seed == 1
    assert np.mean(other.image() != first.image()) > 0.5


@pytest.mark.parametrize("block", ["1", "5"])
def test_block_size_does_not_change_the_picture(block, first, brain, checkpoint, tmp_path):
    assert generate(brain, checkpoint, tmp_path / "v.zarr", "--sections", "1", "--block", block) == 0
    difference = Volume.open(tmp_path / "v.zarr").image().astype(int) - first.image()
    assert np.abs(difference).max() <= 1  # sums of another order round differently


@pytest.mark.parametrize("treatment", ["shuffled", "zeroed"])
def test_controls_are_marked_and_look_different(treatment, first, brain, checkpoint, tmp_path):
    assert generate(brain, checkpoint, tmp_path / "v.zarr", "--sections", "1", "--genes", treatment) == 0
    volume = Volume.open(tmp_path / "v.zarr")
    assert volume.attributes.genes == treatment
    assert np.mean(volume.image() != first.image()) > 0.1


def test_ddpm_is_another_sampler(first, brain, checkpoint, tmp_path):
    arguments = ["--sections", "1", "--region", "0:32,0:32", "--stepper", "ddpm"]
    assert generate(brain, checkpoint, tmp_path / "v.zarr", *arguments) == 0
    volume = Volume.open(tmp_path / "v.zarr")
    assert volume.attributes.settings["stepper"] == "ddpm"
    assert np.mean(volume.image() != first.image(Box(0, 32, 0, 32))) > 0.5


def test_region_and_sections_are_those_asked_for(brain, checkpoint, tmp_path, capsys):
    arguments = ["--region", "16:50,50%:", "--sections", "1:"]
    assert generate(brain, checkpoint, tmp_path / "v.zarr", *arguments) == 0
    volume = Volume.open(tmp_path / "v.zarr")
    assert volume.attributes.box == Box(16, 48, 50, 98)
    assert volume.attributes.sections == (1, 2)
    assert volume.shape == (2, 2, 32, 48)
    assert "cut from 16:50,50:100" in capsys.readouterr().out


def test_every_section_comes_once_also_the_odd_one(brain, wide_checkpoint, tmp_path):
    """Three sections with two a group: the last group holds a section that is not there."""
    region = ["--region", "0:32,0:48"]
    assert generate(brain, wide_checkpoint, tmp_path / "all.zarr", *region) == 0
    whole = Volume.open(tmp_path / "all.zarr")
    assert whole.attributes.sections == (0, 1, 2)
    assert generate(brain, wide_checkpoint, tmp_path / "last.zarr", *region, "--group", "1") == 0
    last = Volume.open(tmp_path / "last.zarr")
    assert last.attributes.sections == (2,)
    np.testing.assert_array_equal(last.image(), whole.image(sections=[2]))
    assert generate(brain, wide_checkpoint, tmp_path / "one.zarr", *region, "--sections", "1") == 0
    one = Volume.open(tmp_path / "one.zarr")
    np.testing.assert_array_equal(one.image(), whole.image(sections=[1]))
    assert np.mean(whole.image(sections=[0]) != whole.image(sections=[1])) > 0.5


def test_dry_run_writes_nothing(brain, checkpoint, tmp_path, capsys):
    assert generate(brain, checkpoint, tmp_path / "v.zarr", "--dry-run") == 0
    said = capsys.readouterr().out
    assert "3 of 3 section groups, for 1 worker(s)" in said
    assert "9 blocks of 4 x 6 patches" in said  # three sections: one block, and for the step before, moved, two
    assert "FLOP" in said
    assert "nothing was written" in said
    assert not list(tmp_path.iterdir())


def source_of(brain, region, treatment, *, sections=(1,)):
    index = panel_index(brain.genes, GENES, allow_missing=False)
    return count_source(brain, sections, index, region, patch_px=16, bin_px=4, treatment=treatment, seed=3)


def test_shuffled_moves_whole_patches_and_keeps_totals(brain):
    region = Box(16, 64, 12, 76)
    measured, shuffled = (source_of(brain, region, treatment) for treatment in ("as measured", "shuffled"))
    before, after = measured(region), shuffled(region)
    torch.testing.assert_close(after.sum((1, 2, 3)), before.sum((1, 2, 3)), rtol=0, atol=0)

    def patches(counts):
        cut = counts.unfold(2, 4, 4).unfold(3, 4, 4)
        return [cut[:, :, r, k].numpy().tobytes() for r in range(3) for k in range(4)]

    assert sorted(patches(after)) == sorted(patches(before))
    moved = sum(a != b for a, b in zip(patches(after), patches(before), strict=True))
    assert moved >= 8


def test_shuffled_leaves_the_surroundings_alone(brain):
    region = Box(16, 64, 12, 76)
    around = region.grow(8)
    before, after = source_of(brain, region, "as measured")(around), source_of(brain, region, "shuffled")(around)
    inside = torch.zeros(before.shape[2:], dtype=torch.bool)
    inside[2:-2, 2:-2] = True
    assert torch.equal(after[..., ~inside], before[..., ~inside])
    assert not torch.equal(after[..., inside], before[..., inside])


def test_shuffled_is_the_same_for_every_window(brain):
    """Blocks read windows that overlap by half a patch; all must see one permutation."""
    region = Box(16, 64, 12, 76)
    shuffled = source_of(brain, region, "shuffled")
    whole = shuffled(region.grow(8))
    for window in (Box(24, 56, 20, 52), Box(8, 40, 4, 36), Box(40, 72, 52, 84)):
        rows = slice((window.y0 - 8) // 4, (window.y1 - 8) // 4)
        columns = slice((window.x0 - 4) // 4, (window.x1 - 4) // 4)
        assert torch.equal(shuffled(window), whole[..., rows, columns])


def test_measured_and_zeroed_counts(brain):
    region = Box(0, 64, 0, 96)
    measured = source_of(brain, region, "as measured", sections=(0, 3))(region.grow(8))
    np.testing.assert_array_equal(measured.numpy(), gene_bins(brain, (0, 3), region.grow(8), 4))
    zeroed = source_of(brain, region, "zeroed", sections=(0, 3))(region.grow(8))
    assert zeroed.shape == measured.shape
    assert not zeroed.any()


def test_genes_follow_the_checkpoints_order(brain):
    index = panel_index(brain.genes, ["Vip", "Nope", "Aqp4"], allow_missing=True)
    box = Box(0, 64, 0, 96)
    counts = count_source(
        brain, (0,), index, box, patch_px=16, bin_px=4, treatment="as measured", seed=0
    )(box)  # fmt: skip
    all_genes = gene_bins(brain, (0,), box, 4)
    np.testing.assert_array_equal(counts[0].numpy(), all_genes[4])
    assert not counts[1].any()
    np.testing.assert_array_equal(counts[2].numpy(), all_genes[0])


def test_missing_genes_are_zero_where_that_is_allowed(brain, tmp_path, capsys):
    other = save_checkpoint(tmp_path / "other.ckpt", genes=(*GENES[:3], "Foxp2", "Sst"))
    arguments = ["--region", "0:16,0:16", "--sections", "0"]
    assert generate(brain, other, tmp_path / "v.zarr", *arguments, "--allow-missing-genes") == 0
    assert "2 genes are taken as zero: Foxp2, Sst" in capsys.readouterr().out
    assert Volume.open(tmp_path / "v.zarr").attributes.settings["genes_missing"] == ["Foxp2", "Sst"]


def test_sizes_of_a_pass_are_facts_and_a_volume_keeps_its_own(brain, checkpoint, tmp_path, capsys):
    out = tmp_path / "sized.zarr"
    words = ["generate", "--checkpoint", str(checkpoint), "--brain", str(brain.path), "--out", str(out)]
    words += ["--steps", "1", "--device", "cpu", "--precision", "32"]
    assert main([*words, "--patches-at-once", "3"]) == 0
    assert Volume.open(out).attributes.settings["patches_at_once"] == 3
    capsys.readouterr()
    assert main(words) == 0  # not asked for again: the volume's own
    assert "is there already" in capsys.readouterr().out
    assert main([*words, "--patches-at-once", "2"]) == 2
    assert "3" in capsys.readouterr().err
    assert main([*words, "--compile", "--overwrite"]) == 2
    assert "needs a CUDA device" in capsys.readouterr().err
    assert Volume.open(out).attributes.settings["patches_at_once"] == 3
