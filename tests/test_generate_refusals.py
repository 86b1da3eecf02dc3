"""What `tera-mind generate` refuses: in one line, with exit code 2, and nothing is written."""

from __future__ import annotations

import json

import pytest
import torch
from generate_case import refused, save_checkpoint
from tiny_brain import GENES, make_brain

from tera_mind.sampling.worker import Worker


@pytest.fixture(scope="module")
def brain(tmp_path_factory):
    return make_brain(tmp_path_factory.mktemp("brain") / "tiny.zarr", shape=(2, 3, 70, 100), rows=2500)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny.ckpt")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--steps", "37"], "the nearest that exist: 36 and 38"),
        (["--steps", "0"], "nearest"),
        (["--block", "-1"], "--patches-at-once must be at least 1"),
        (["--seed", "-1"], "--seed 0 or more"),
        (["--region", "0:64,90:200"], "leaves the canvas"),
        (["--region", "left"], "y0:y1,x0:x1"),
        (["--region", "0:8,0:64"], "smaller than one patch"),
        (["--sections", "3"], "sections 0 to 2"),
        (["--sections", "1:9"], "sections 0 to 2"),
        (["--sections", "2:1"], "sections 0 to 2"),
        (["--sections", "one"], "numbers or first:last"),
        (["--sections", "1,1"], "a section twice"),
        (["--region", "0um:5xx,:"], "no pixel, percentage or distance"),
        (["--eta", "2"], "eta"),
        (["--stepper", "dpm++", "--eta", "0.5"], "eta"),
        (["--preset", "published", "--steps", "10"], "one or the other"),
        (["--workers", "0"], "--workers and --join must be at least 1"),
        (["--join", "2", "--overwrite"], "would let each command remove"),
        (["--devices", "0,9"], "CUDA devices here"),
        (["--devices", "one"], "numbers of GPUs"),
        (["--micro-batch", "0"], "--patches-at-once must be at least 1"),
        (["--block", "8*8"], "rows x columns"),
        (["--group", "3"], "section groups 0 to 2"),
        (["--group", "0", "--sections", "1"], "not both"),
        (["--device", "abacus"], "is no device"),
    ],
)
def test_bad_options(arguments, words, brain, checkpoint, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(Worker, "run", None)  # nothing may be started
    assert words in refused(tmp_path, capsys, brain, checkpoint, *arguments)


def test_checkpoint_that_is_not_there(brain, tmp_path, capsys):
    assert "no checkpoint at" in refused(tmp_path, capsys, brain, tmp_path / "none.ckpt")


@pytest.mark.parametrize("kept", [0, 100, 0.5, 0.98])
def test_truncated_checkpoint(kept, brain, checkpoint, tmp_path, capsys):
    content = checkpoint.read_bytes()
    broken = tmp_path / "broken.ckpt"
    broken.write_bytes(content[: kept if isinstance(kept, int) else int(kept * len(content))])
    assert "cannot be read as a checkpoint" in refused(tmp_path, capsys, brain, broken)


def test_file_that_is_no_checkpoint(brain, tmp_path, capsys):
    (tmp_path / "words.ckpt").write_text("these are words")
    assert "cannot be read as a checkpoint" in refused(tmp_path, capsys, brain, tmp_path / "words.ckpt")
    torch.save({"state_dict": {}}, tmp_path / "foreign.ckpt")
    assert "import-checkpoint" in refused(tmp_path, capsys, brain, tmp_path / "foreign.ckpt")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda content: content["tera_mind"].update(version=99), "checkpoint version 99"),
        (lambda content: content["tera_mind"].pop("genes"), "cannot be read: KeyError('genes')"),
        (lambda content: content["tera_mind"]["model"].update(base_channels=16), "do not fit its own description"),
    ],
)
def test_checkpoint_that_does_not_fit_its_description(change, words, brain, checkpoint, tmp_path, capsys):
    content = torch.load(checkpoint, weights_only=True)
    change(content)
    torch.save(content, tmp_path / "changed.ckpt")
    assert words in refused(tmp_path, capsys, brain, tmp_path / "changed.ckpt")


def test_panel_mismatch_names_the_missing_genes(brain, tmp_path, capsys):
    other = save_checkpoint(tmp_path / "other.ckpt", genes=(*GENES[:3], "Foxp2", "Sst"))
    said = refused(tmp_path, capsys, brain, other)
    assert "lacks 2 of them: Foxp2, Sst;" in said
    assert "--allow-missing-genes" in said
    none = save_checkpoint(tmp_path / "none.ckpt", genes=("Foxp2", "Sst"))
    assert "none of the checkpoint's 2 genes" in refused(tmp_path, capsys, brain, none, "--allow-missing-genes")


def test_another_pixel_size(brain, tmp_path, capsys):
    other = save_checkpoint(tmp_path / "other.ckpt", pixel_um=0.8)
    assert "ingest it again with --pixel-um 0.8" in refused(tmp_path, capsys, brain, other)


def test_store_of_an_unknown_version(checkpoint, tmp_path, capsys):
    brain = make_brain(tmp_path / "future.zarr", shape=(2, 1, 32, 32), rows=50)
    metadata = brain.path / "zarr.json"
    content = json.loads(metadata.read_text())
    content["attributes"]["tera_mind"]["version"] = 99
    metadata.write_text(json.dumps(content))
    assert "unknown version 99" in refused(tmp_path, capsys, brain.path, checkpoint)
    assert "nothing is there" in refused(tmp_path, capsys, tmp_path / "none.zarr", checkpoint)


def test_shuffling_needs_half_patches(brain, tmp_path, capsys):
    odd = save_checkpoint(tmp_path / "odd.ckpt", bin_px=16)
    assert "even number of bins" in refused(tmp_path, capsys, brain, odd, "--genes", "shuffled")
