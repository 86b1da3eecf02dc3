"""A volume that grows: interrupted, joined by others, damaged, refused when something else is asked for."""

from __future__ import annotations

import errno
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
import zarr
from generate_case import TALL, forked, generate, pixels, refused, save_checkpoint, tree, words
from ome_zarr_models.v05.image import Image
from tiny_brain import make_brain

import tera_mind.sampling.launch as launching
from tera_mind.cli import status
from tera_mind.errors import FormatError, TeraMindError
from tera_mind.formats.volume import Volume, is_unfinished
from tera_mind.geometry import Box
from tera_mind.model.checkpoint import load_checkpoint
from tera_mind.sampling import wavefront
from tera_mind.sampling.job import Generation
from tera_mind.sampling.ledger import FOLDER, Ledger

#: two bands of one shard, three sections: six units, few patches
SPLIT = [
    "--region",
    "0:512,0:64",
    "--shard-px",
    "256",
    "--join",
    "6",
    "--mask",
    "none",
    "--block",
    "2x1",
    "--threads",
    "1",
]


@pytest.fixture(scope="module")
def brain(tmp_path_factory):
    return make_brain(tmp_path_factory.mktemp("brain") / "tall.zarr", shape=(2, 3, 512, 64), rows=2500)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny.ckpt", **TALL)


@pytest.fixture(scope="module")
def undisturbed(brain, checkpoint, tmp_path_factory):
    out = tmp_path_factory.mktemp("volume") / "whole.zarr"
    assert generate(brain, checkpoint, out, *SPLIT) == 0
    return out


def interrupt_after(monkeypatch, units):
    """Ctrl-C in the middle of the unit after so many."""
    real, done = wavefront.sweep, []

    def cut(*more):
        pieces = real(*more)
        yield next(pieces)
        if len(done) == units:
            raise KeyboardInterrupt
        done.append(1)
        yield from pieces

    monkeypatch.setattr(wavefront, "sweep", cut)
    return done


def test_split_volume_is_the_same_as_one_made_in_one_piece(undisturbed, brain, checkpoint, tmp_path):
    assert len(Ledger.open(undisturbed).plan.units) == 6
    assert generate(brain, checkpoint, tmp_path / "v.zarr", *SPLIT[:2], *SPLIT[-6:]) == 0
    assert len(Ledger.open(tmp_path / "v.zarr").plan.units) == 3
    one, other = Volume.open(tmp_path / "v.zarr").image(), Volume.open(undisturbed).image()
    np.testing.assert_array_equal(one, other)
    assert len(np.unique(one)) > 20


def test_finished_volume_holds_no_working_files(undisturbed):
    inside = {path.split("/")[0] for path in tree(undisturbed)}
    assert inside == {"0", "1", FOLDER, "zarr.json"}
    assert [path.name for path in (undisturbed / FOLDER).iterdir()] == ["zarr.json"]
    assert not list(undisturbed.parent.glob(".*"))
    rows = Ledger.open(undisturbed).rows()
    assert len(rows) == 6 + 2 * 3
    assert all(row.seconds > 0 and row.worker for row in rows.values())
    group = zarr.open_group(undisturbed, mode="r")
    assert sorted(name for name, _ in group.members()) == ["0", "1", FOLDER]
    assert len(Image.from_zarr(group).ome_attributes.multiscales[0].datasets) == 2  # valid OME-NGFF 0.5


def test_an_interrupted_run_goes_on(undisturbed, brain, checkpoint, tmp_path, monkeypatch, capsys):
    out = tmp_path / "v.zarr"
    with monkeypatch.context() as patch:
        interrupt_after(patch, 2)
        assert generate(brain, checkpoint, out, *SPLIT) == 130
    assert is_unfinished(out)
    with pytest.raises(FormatError, match="is not finished: give the command that began it again"):
        Volume.open(out)
    state = tree(out / FOLDER)
    assert not [name for name in state if name.startswith(("leases", "partial", "workers"))]
    assert status.run([str(out)]) == 0
    said = capsys.readouterr().out
    assert "2 of 6 done" in said
    assert "no worker is at it" in said
    made = interrupt_after(monkeypatch, 99)
    assert generate(brain, checkpoint, out, *SPLIT) == 0
    assert len(made) == 4
    assert pixels(out) == pixels(undisturbed)


def test_other_settings_are_refused_by_name(undisturbed, brain, checkpoint, tmp_path, monkeypatch, capsys):
    shutil.copytree(undisturbed, tmp_path / "v.zarr")
    for more, said in (
        (["--seed", "1"], "seed 0, not 1"),
        (["--genes", "zeroed"], "genes as measured, not zeroed"),
        (["--steps", "3"], "steps 2, not 3"),
        (["--dtype", "float16"], "dtype uint8, not float16"),
        (["--block", "1"], "block [2, 1], not [1, 1]"),
        (["--threads", "2"], "threads 1, not 2"),
    ):
        line = refused(tmp_path, capsys, brain, checkpoint, *SPLIT, *more)
        assert "exists, made with" in line
        assert said in line
        assert "--overwrite" in line
    other = save_checkpoint(tmp_path / "other.ckpt", **TALL, res_blocks=2)
    assert "checkpoint " in refused(tmp_path, capsys, brain, other, *SPLIT)
    shutil.rmtree(tmp_path / "v.zarr")
    interrupt_after(monkeypatch, 1)
    assert generate(brain, checkpoint, tmp_path / "v.zarr", *SPLIT) == 130
    assert "was begun with seed 0, not 1" in refused(tmp_path, capsys, brain, checkpoint, *SPLIT, "--seed", "1")


def test_overwrite_goes_on_with_the_same_and_replaces_another(brain, checkpoint, tmp_path, monkeypatch):
    out = tmp_path / "v.zarr"
    more = ["--region", "0:128,0:64", "--sections", "0,2", "--overwrite"]
    with monkeypatch.context() as patch:
        interrupt_after(patch, 1)
        assert generate(brain, checkpoint, out, *more) == 130
    with monkeypatch.context() as patch:
        assert interrupt_after(patch, 99) == []
        assert generate(brain, checkpoint, out, *more) == 0
    assert Volume.open(out).attributes.sections == (0, 2)
    assert generate(brain, checkpoint, out, *more, "--seed", "1") == 0
    assert Volume.open(out).attributes.seed == 1
    assert [path.name for path in tmp_path.iterdir()] == ["v.zarr"]


def test_two_commands_join_in_one_volume(undisturbed, brain, checkpoint, tmp_path):
    out = tmp_path / "v.zarr"
    command = [sys.executable, "-m", "tera_mind.cli.main", *words(brain.path, checkpoint, out, *SPLIT)]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate(timeout=200) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert pixels(out) == pixels(undisturbed)
    assert len({row.worker for row in Ledger.open(out).rows().values()}) <= 2
    assert [path.name for path in (out / FOLDER).iterdir()] == ["zarr.json"]
    assert [path.name for path in tmp_path.iterdir()] == ["v.zarr"]


def test_damage_is_found_and_repaired(undisturbed, brain, checkpoint, tmp_path, monkeypatch, capsys):
    """A torn row and a lost shard of an unfinished volume are done again; `status --verify` finds altered bytes."""
    out = tmp_path / "v.zarr"
    with monkeypatch.context() as patch:
        interrupt_after(patch, 4)
        assert generate(brain, checkpoint, out, *SPLIT) == 130
    rows = sorted((out / FOLDER / "rows").glob("unit-*.json"))
    rows[0].write_bytes(rows[0].read_bytes()[:40])
    lost = next(iter(json.loads(rows[1].read_text())["files"]))
    (out / lost).unlink()
    made = interrupt_after(monkeypatch, 99)
    assert generate(brain, checkpoint, out, *SPLIT) == 0
    assert len(made) == 2 + 2
    assert pixels(out) == pixels(undisturbed)
    capsys.readouterr()
    assert status.run([str(out), "--verify"]) == 0
    altered = out / lost
    altered.write_bytes(altered.read_bytes()[:-1] + b"x")
    assert status.run([str(out), "--verify"]) == 1
    assert f"{lost} is not as unit" in capsys.readouterr().out


def test_full_disk(brain, checkpoint, tmp_path, monkeypatch, capsys):
    """Refused beforehand with numbers; when it fills up on the way, in one line, and the run goes on later."""
    out, more = tmp_path / "v.zarr", ["--region", "0:128,0:64", "--sections", "1"]
    with monkeypatch.context() as patch:
        usage = shutil.disk_usage(tmp_path)
        patch.setattr(launching.shutil, "disk_usage", lambda _: usage._replace(free=1000))
        assert "may need 0.00 GiB, its disk has 0.00 GiB left" in refused(tmp_path, capsys, brain, checkpoint, *more)

    def full(_path):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("tera_mind.sampling.writer.fsync_path", full)
        assert generate(brain, checkpoint, out, *more) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert len(lines) == 1
    assert "no space left for" in lines[0]
    assert not list((out / FOLDER / "partial").iterdir())
    assert generate(brain, checkpoint, out, *more) == 0


@pytest.mark.parametrize(("failures", "code"), [(1, 0), (2, 2)])
def test_a_failed_unit_is_tried_once_more(failures, code, brain, checkpoint, tmp_path, monkeypatch, capsys):
    real, calls = wavefront.sweep, []

    def flaky(*more):
        calls.append(1)
        if len(calls) <= failures:
            raise RuntimeError("a cosmic ray")
        yield from real(*more)

    monkeypatch.setattr(wavefront, "sweep", flaky)
    out, more = tmp_path / "v.zarr", ["--region", "0:64,0:64", "--sections", "0,1"]
    assert generate(brain, checkpoint, out, *more) == code
    if code:
        said = capsys.readouterr().err
        assert "unit-000000 (sections 0, rows 0 to 64) failed: a cosmic ray; 3 of 6 tasks are done and kept" in said
        assert generate(brain, checkpoint, out, *more) == 0
    assert Volume.open(out).shape == (2, 2, 64, 64)


def test_out_of_memory(brain, checkpoint, tmp_path, monkeypatch, capsys):
    """At the start the micro-batch is halved until it fits; later it is a line that says what to give."""
    monkeypatch.setattr(Generation, "wanted_micro_batch", lambda *_: 8)
    real = Generation.network

    def small_device(job, device):
        if job.micro_batch > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(job, device)

    monkeypatch.setattr(Generation, "network", small_device)
    out, more = tmp_path / "v.zarr", ["--region", "0:64,0:64", "--sections", "0"]
    assert generate(brain, checkpoint, out, *more) == 0
    assert "out of memory with --micro-batch 8: taken 2 instead" in capsys.readouterr().out
    assert Volume.open(out).attributes.settings["micro_batch"] == 2
    assert generate(brain, checkpoint, tmp_path / "w.zarr", *more, "--micro-batch", "4") == 2
    assert "out of memory with --micro-batch 4: give --micro-batch 2" in capsys.readouterr().err


def test_workers_that_cannot_start_say_why(brain, checkpoint, tmp_path, monkeypatch):
    forked(monkeypatch)
    changing = shutil.copy(checkpoint, tmp_path / "changing.ckpt")
    job = Generation(load_checkpoint(changing), brain, Box(0, 64, 0, 64), (0, 1), block_rows=1, block_columns=1)
    save_checkpoint(changing, **TALL, res_blocks=2)
    with pytest.raises(TeraMindError, match=r"changing\.ckpt was changed while"):
        launching.generate(job, tmp_path / "v.zarr", launching.Launch(workers=2))
