"""Workers that are slow, not dead: their task is taken over, or their volume replaced, while they still write."""

from __future__ import annotations

import errno
import os
import shutil

import numpy as np
import pytest
import torch
import zarr
from generate_case import TALL, forked, generate, pixels, save_checkpoint
from test_ledger import make_volume
from tiny_brain import make_brain

from tera_mind.errors import InputError, TeraMindError
from tera_mind.formats.brain import Brain
from tera_mind.formats.ome import open_level
from tera_mind.formats.volume import Volume
from tera_mind.geometry import Box
from tera_mind.model.checkpoint import load_checkpoint
from tera_mind.sampling import launch as launching
from tera_mind.sampling import leases as leasing
from tera_mind.sampling import worker as working
from tera_mind.sampling.job import Generation
from tera_mind.sampling.leases import Leases, heartbeat
from tera_mind.sampling.ledger import FOLDER, Ledger
from tera_mind.sampling.worker import Worker
from tera_mind.sampling.writer import ShardWriter

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def brain(tmp_path_factory):
    return make_brain(tmp_path_factory.mktemp("brain") / "tall.zarr", shape=(2, 1, 512, 64), rows=800)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny.ckpt", **TALL)


def job_of(brain, checkpoint, seed=0):
    return Generation(
        load_checkpoint(checkpoint), Brain.open(brain.path), Box(0, 512, 0, 64), (0,), seed=seed, steps=2,
        masked=False, block_rows=2, block_columns=1,
    )  # fmt: skip


LAUNCH = launching.Launch(share=2, shard_px=256, threads=1)


def test_a_shard_that_was_taken_away_is_not_an_empty_one(tmp_path, monkeypatch):
    """The folder of what is being written goes between the writing of a shard and its move: nothing is removed."""
    volume = make_volume(tmp_path / "v.zarr").volume
    box, full = Box(0, 256, 0, 256), np.full((256, 256), 7, np.uint8)
    first = ShardWriter(volume, volume / FOLDER / "partial" / "a", "uint8")
    first.write(0, 0, 0, box, full)
    slow = ShardWriter(volume, volume / FOLDER / "partial" / "b", "uint8")
    real = zarr.Array.__setitem__

    def gone(self, where, value):
        real(self, where, value)
        shutil.rmtree(slow.staging)

    monkeypatch.setattr(zarr.Array, "__setitem__", gone)
    with pytest.raises(FileNotFoundError):
        slow.write(0, 0, 0, box, full)
    assert (np.asarray(open_level(volume)[0, 0, :256, :256]) == 7).all()
    assert not slow.files


def test_a_task_taken_over_from_a_live_worker_ends_the_same(brain, checkpoint, tmp_path, monkeypatch):
    """A second worker takes over in the middle of a unit and does everything; the first stops and spoils nothing."""
    job = job_of(brain, checkpoint)
    whole = tmp_path / "whole.zarr"
    launching.generate(job, whole, LAUNCH)
    out = tmp_path / "v.zarr"
    ledger = launching.prepare(job, out, LAUNCH)
    slow, real, taken = Worker(job, ledger, CPU, 0), ShardWriter.write, []

    def write(self, *given):
        if "-0" in self.staging.name[-2:] and not taken:
            taken.append(self.staging)
            lease = next((out / FOLDER / "leases").glob("unit*.json"))
            os.utime(lease, (0, 0))
            Worker(job, Ledger.open(out), CPU, 1).run()
        real(self, *given)

    monkeypatch.setattr(ShardWriter, "write", write)
    slow.run()
    assert taken
    assert {row.worker[-2:] for row in Ledger.open(out).rows().values()} == {"-1"}
    assert launching.generate(job, out, LAUNCH) is not None
    assert pixels(out) == pixels(whole)


def test_a_worker_does_not_write_into_a_volume_put_in_its_place(brain, checkpoint, tmp_path):
    """`--overwrite` with another seed between a command's start and its first claim."""
    out = tmp_path / "v.zarr"
    ledger = launching.prepare(job_of(brain, checkpoint), out, LAUNCH)
    other = job_of(brain, checkpoint, seed=1)
    launching.prepare(other, out, launching.Launch(overwrite=True, shard_px=256, threads=1))
    with pytest.raises(InputError, match="was replaced or removed"):
        Worker(job_of(brain, checkpoint), ledger, CPU).run()
    assert not pixels(out)
    assert not list((out / FOLDER / "leases").glob("*.json"))
    assert Ledger.open(out).facts["seed"] == 1


def test_worker_processes_refuse_a_volume_put_in_its_place(brain, checkpoint, tmp_path, monkeypatch):
    """Processes start slowly; what lies at the path by then may be another's."""
    forked(monkeypatch)
    out, job = tmp_path / "v.zarr", job_of(brain, checkpoint)
    ledger = launching.prepare(job, out, LAUNCH)
    launching.prepare(job_of(brain, checkpoint, 1), out, launching.Launch(overwrite=True, shard_px=256, threads=1))
    with pytest.raises(TeraMindError, match="was replaced or removed"):
        launching._work_in_processes(job, ledger, launching.Launch(workers=1, threads=1), lambda _: None)
    assert not pixels(out)


def test_a_volume_removed_meanwhile_is_said(brain, checkpoint, tmp_path, monkeypatch):
    out, real = tmp_path / "v.zarr", working.run_unit

    def removed(*given, **more):
        files = real(*given, **more)
        shutil.rmtree(out)
        return files

    monkeypatch.setattr(working, "run_unit", removed)
    with pytest.raises(InputError, match="was replaced or removed"):
        launching.generate(job_of(brain, checkpoint), out, LAUNCH)


def test_no_one_begins_again_while_a_finished_volume_is_cleaned(brain, checkpoint, tmp_path):
    """The rows are gone, the leases not yet: a waiting worker must not take every task for undone."""
    out, job = tmp_path / "v.zarr", job_of(brain, checkpoint)
    late = Worker(job, launching.prepare(job, out, LAUNCH), CPU, 7)
    launching.generate(job, out, LAUNCH)
    (out / FOLDER / "leases").mkdir()
    late.run()
    assert not (out / FOLDER / "rows").exists()
    assert not (out / FOLDER / "partial").exists()


def test_heartbeat_survives_a_stumble_and_leaves_anothers_lease_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(leasing, "HEARTBEAT_S", 0.01)
    leases, beaten, real = Leases(tmp_path, "a"), [], os.utime

    def utime(path):
        beaten.append(path)
        if len(beaten) == 1:
            raise OSError(errno.EIO, "stumbled")
        real(path)

    monkeypatch.setattr(leasing.os, "utime", utime)
    assert leases.claim("task", 0.0)
    with heartbeat(leases, "task"):
        for _ in range(500):
            if len(beaten) > 2:
                break
            leasing.threading.Event().wait(0.01)
    assert len(beaten) > 2
    (tmp_path / "task.json").unlink()
    assert Leases(tmp_path, "b").claim("task", 0.0)
    count = len(beaten)
    with heartbeat(leases, "task"):
        leasing.threading.Event().wait(0.2)
    assert len(beaten) == count


def test_a_lease_that_does_not_fit_on_the_disk_is_not_left(tmp_path, monkeypatch):
    class Full:
        def __init__(self, handle):
            self.handle = handle

        def __enter__(self):
            return self

        def __exit__(self, *_):
            os.close(self.handle)

        def write(self, _):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(leasing.os, "fdopen", lambda handle, *_, **__: Full(handle))
    with pytest.raises(OSError, match="No space"):
        Leases(tmp_path, "a").claim("task", 0.0)
    assert not list(tmp_path.iterdir())


def test_looking_on_needs_no_right_to_write(tmp_path, monkeypatch):
    """`tera-mind status` on somebody else's volume, or on one that is mounted for reading only."""
    assert Leases(tmp_path, "a").claim("task", 0.0)
    path = type(tmp_path)

    def refuse(self, _):
        raise PermissionError(errno.EROFS, "Read-only file system", str(self))

    monkeypatch.setattr(path, "write_bytes", refuse)
    assert not Leases(tmp_path, "status").held()["task"].expired


def test_a_link_is_followed(brain, checkpoint, tmp_path):
    """The volume goes where the link leads: overwriting does not leave the old one there and a new one here."""
    far = tmp_path / "far"
    far.mkdir()
    link = tmp_path / "v.zarr"
    link.symlink_to(far / "real.zarr")
    some = ("--region", "0:64,0:64", "--sections", "0", "--threads", "1")
    assert generate(brain, checkpoint, link, *some) == 0
    assert generate(brain, checkpoint, link, *some, "--seed", "1", "--overwrite") == 0
    assert link.is_symlink()
    assert Volume.open(far / "real.zarr").attributes.seed == 1
