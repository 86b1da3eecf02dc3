"""What `tera-mind generate --overwrite` refuses, it refuses before the old volume is touched."""

from __future__ import annotations

import errno
import shutil

import pytest
import torch
from generate_case import generate, save_checkpoint, tree
from tiny_baselines import tiny
from tiny_brain import GENES, make_brain

from tera_mind.model.checkpoint import CheckpointInfo, checkpoint_content
from tera_mind.sampling import launch as launching
from tera_mind.sampling import ledger as ledgers
from tera_mind.sampling.job import Generation
from tera_mind.sampling.leases import Leases
from tera_mind.sampling.ledger import FOLDER

NEW = ["--overwrite", "--seed", "1"]


@pytest.fixture(scope="module")
def brain(tmp_path_factory):
    return make_brain(tmp_path_factory.mktemp("brain") / "tiny.zarr", shape=(2, 2, 40, 70), rows=1000)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny.ckpt")


@pytest.fixture(scope="module")
def made(brain, checkpoint, tmp_path_factory):
    out = tmp_path_factory.mktemp("made") / "v.zarr"
    assert generate(brain, checkpoint, out, "--region", "0:32,0:64") == 0
    return out


@pytest.fixture
def keeps(made, tmp_path, capsys):
    """A function that runs the command on a copy of the volume and returns the one line with which it is refused."""
    out = tmp_path / "out" / "v.zarr"
    shutil.copytree(made, out)

    def run(brain, checkpoint, *more):
        before = tree(out)
        capsys.readouterr()
        code = generate(brain, checkpoint, out, *more)
        said = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
        assert code == 2, said
        assert len(said) == 1, said
        assert tree(out) == before
        assert [path.name for path in out.parent.iterdir()] == ["v.zarr"]
        return said[0]

    run.out = out
    return run


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--compile"], "needs a CUDA device"),
        (["--devices", "0,9"], "CUDA devices here"),
        (["--threads", "0"], "--threads must be 1 to"),
        (["--threads", "1000000000000"], "--threads must be 1 to"),
        (["--memory-gb", "1e-6"], "give more memory"),
        (["--memory-gb", "0"], "more than 0"),
        (["--memory-gb", "nan"], "more than 0"),
        (["--memory-gb", "inf"], "more than 0"),
        (["--region", "0:64,0:999"], "leaves the canvas"),
        (["--shard-px", "100"], "whole number of chunks"),
        (["--workers", "0"], "must be at least 1"),
        (["--join", "2"], "would let each command remove"),
    ],
)
def test_options(arguments, words, keeps, brain, checkpoint):
    assert words in keeps(brain, checkpoint, *NEW, *arguments)


def test_another_command_that_joins(keeps, brain, checkpoint):
    line = keeps(brain, checkpoint, "--join", "2", "--seed", "1", "--region", "0:32,0:64")
    assert "seed 0, not 1" in line


def test_a_rival_is_not_compiled(keeps, brain, tmp_path):
    network = tiny("patch-dm")
    info = CheckpointInfo(
        network.config, "v", GENES, ("DAPI", "PolyT"), 0.4, dict.fromkeys(("DAPI", "PolyT"), (0.0, 255.0)),
        method="patch-dm",
    )  # fmt: skip
    torch.save(checkpoint_content(info, network), tmp_path / "rival.ckpt")
    assert "patch-dm is not compiled" in keeps(brain, tmp_path / "rival.ckpt", *NEW, "--compile")


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_broken_weights(value, keeps, brain, checkpoint, tmp_path):
    content = torch.load(checkpoint, weights_only=True)
    name = max(content["state_dict"], key=lambda name: content["state_dict"][name].numel())
    content["state_dict"][name].view(-1)[0] = value
    torch.save(content, tmp_path / "broken.ckpt")
    line = keeps(brain, tmp_path / "broken.ckpt", *NEW)
    assert "no finite numbers" in line
    assert name.partition(".")[2] in line


@pytest.mark.parametrize("part", ["rows/c/0/0", "indptr/zarr.json"])
def test_genes_that_cannot_be_read(part, keeps, brain, checkpoint, tmp_path):
    """Of the last section, at which no worker would arrive first."""
    broken = tmp_path / "broken.zarr"
    shutil.copytree(brain.path, broken)
    file = broken / "transcripts" / "1" / part
    file.write_bytes(file.read_bytes()[:20])
    assert "ingest the brain again" in keeps(broken, checkpoint, *NEW)


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize(
    ("error", "words"),
    [(MemoryError(), "out of memory"), (OSError(errno.EIO, "the device does not answer"), "does not answer")],
)
def test_a_network_that_cannot_be_built(error, words, workers, keeps, brain, checkpoint, monkeypatch):
    """Workers would die of it at their start, in processes of their own too."""

    def fails(_job, _device):
        raise error

    monkeypatch.setattr(Generation, "network", fails)
    assert words in keeps(brain, checkpoint, *NEW, "--workers", workers, "--threads", "1")


def test_a_full_disk(keeps, brain, checkpoint, monkeypatch):
    with monkeypatch.context() as patch:
        usage = shutil.disk_usage(brain.path)
        patch.setattr(launching.shutil, "disk_usage", lambda _: usage._replace(free=10))
        assert "make room" in keeps(brain, checkpoint, *NEW)

    def full(_folder):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(ledgers, "fsync_tree", full)
    assert "No space left" in keeps(brain, checkpoint, *NEW)


def test_workers_that_are_at_it(keeps, brain, checkpoint, monkeypatch):
    """An unfinished volume is not replaced under the hands of a worker."""
    with monkeypatch.context() as patch:
        patch.setattr(launching, "_work_here", lambda *_: None)
        assert generate(brain, checkpoint, keeps.out, *NEW) == 0
    assert Leases(keeps.out / FOLDER / "leases", "someone").claim("unit-000000", 0.0)
    assert "someone is at work" in keeps(brain, checkpoint, "--overwrite", "--seed", "2")
