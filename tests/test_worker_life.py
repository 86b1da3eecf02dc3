"""A worker's life: what it costs in operations on files, and what is lost of a unit that is cut short."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest
import torch
from generate_case import TALL, pixels, save_checkpoint
from tiny_brain import make_brain

from tera_mind.formats.brain import Brain
from tera_mind.formats.volume import VolumeAttributes
from tera_mind.geometry import Box, SectionGroup
from tera_mind.model.checkpoint import load_checkpoint
from tera_mind.sampling import launch as launching
from tera_mind.sampling import wavefront
from tera_mind.sampling.job import Generation
from tera_mind.sampling.ledger import Ledger, Row
from tera_mind.sampling.plain import SamplerSettings
from tera_mind.sampling.plan import Plan, Unit
from tera_mind.sampling.worker import Worker
from tera_mind.sampling.writer import ShardWriter

CPU = torch.device("cpu")
LISTED = {"os.listdir", "os.scandir"}
CHANGED = {"open", "os.remove", "os.rename", "os.mkdir", "os.utime"}


def many_units(path, units) -> Ledger:
    """One section in as many bands."""
    region = Box(0, 256 * units, 0, 256)
    attributes = VolumeAttributes(
        stains=("DAPI",), pixel_um=0.4, brain="b.zarr", brain_fingerprint="01", box=region, sections=(0,),
        patch_px=64, checkpoint="ab", seed=0, steps=1,
    )  # fmt: skip
    plan = Plan(
        region=region, groups=(SectionGroup((0,), (0,)),),
        units=tuple(Unit(k, 0, (4 * k, 4 * k + 4), 1) for k in range(units)), settings=SamplerSettings("v", 1),
        patch_px=64, halo_px=32, shard_px=256, necessary_blocks=units, memory_bytes=1, bytes_written=1, bytes_read=1,
        flop=1,
    )  # fmt: skip
    Ledger.create(path, attributes, {"sections": [0]}, plan, threads=1)
    return Ledger.open(path)


class Counted:
    """Operations on files below a folder that Python reports, and the names that were listed."""

    def __init__(self, folder) -> None:
        self.folder, self.operations, self.on = str(folder), 0, False
        sys.addaudithook(self.hook)

    def hook(self, event, arguments) -> None:
        if self.on and event in LISTED | CHANGED:
            place = str(arguments[0])
            if place.startswith(self.folder):
                self.on = False
                self.operations += 1 + (len(list(Path(place).iterdir())) if event in LISTED else 0)
                self.on = True


def life(folder, units, monkeypatch) -> int:
    """Operations of a worker that finds all units undone, and nothing to do in any of them."""

    def attempt(self, task):
        self.ledger.write(Row(task.name, self.name, 0.0, 0.0))

    ledger = many_units(folder / f"{units}.zarr", units)
    monkeypatch.setattr(Worker, "_attempt", attempt)
    counted = Counted(folder)
    counted.on = True
    Worker(Generation.__new__(Generation), ledger, CPU).run()
    counted.on = False
    assert len(ledger.rows()) == units + 1
    return counted.operations


def test_a_life_is_linear_in_its_units(tmp_path, monkeypatch):
    few, many = (life(tmp_path, units, monkeypatch) for units in (20, 80))
    assert many < 4 * few
    assert many / 80 < 40


def test_who_comes_late_takes_up_what_others_did(tmp_path, monkeypatch):
    ledger, done = many_units(tmp_path / "v.zarr", 6), []
    for name in ("unit-000001", "unit-000004"):
        Ledger.open(ledger.volume).write(Row(name, "other", 0.0, 0.0))
    ledger.fail("unit-000003", "other", "a reason")

    def attempt(self, task):
        done.append(task.name)
        self.ledger.write(Row(task.name, self.name, 0.0, 0.0))

    monkeypatch.setattr(Worker, "_attempt", attempt)
    begun = time.monotonic()
    Worker(Generation.__new__(Generation), ledger, CPU).run()  # the pyramid can never be made: it does not wait for it
    assert time.monotonic() - begun < 30
    assert done == ["unit-000000", "unit-000002", "unit-000005"]
    assert not list((ledger.folder / "leases").iterdir())


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    """One unit of three columns of shards, twelve patches wide."""
    folder = tmp_path_factory.mktemp("job")
    brain = make_brain(folder / "wide.zarr", shape=(2, 1, 64, 768), rows=2000)
    return Generation(
        load_checkpoint(save_checkpoint(folder / "tiny.ckpt", **TALL)), Brain.open(brain.path), Box(0, 64, 0, 768),
        (0,), steps=2, masked=False, block_rows=1, block_columns=3,
    )  # fmt: skip


LAUNCH = launching.Launch(shard_px=256, threads=1)


@pytest.mark.parametrize("lost", [False, True])
def test_a_unit_goes_on_at_its_last_column_of_shards(lost, job, tmp_path, monkeypatch):
    """Cut short while it writes the second column; `lost`: a shard of the first is gone, so all is made again."""
    whole, out = tmp_path / "whole.zarr", tmp_path / "v.zarr"
    launching.generate(job, whole, LAUNCH)
    real, sweep, swept = ShardWriter.write, wavefront.sweep, []

    def write(self, level, stain, plane, box, values):
        if level == 0 and box.x0:
            raise KeyboardInterrupt
        real(self, level, stain, plane, box, values)

    def watched(*given):
        swept.append(given[6])
        return sweep(*given)

    monkeypatch.setattr(wavefront, "sweep", watched)
    with monkeypatch.context() as patch:
        patch.setattr(ShardWriter, "write", write)
        with pytest.raises(KeyboardInterrupt):
            launching.generate(job, out, LAUNCH)
    right, files = Ledger.open(out).begun("unit-000000")
    assert right == 256
    assert sorted(files) == [f"0/c/{stain}/0/0/0" for stain in range(2)]
    if lost:
        (out / "0/c/1/0/0/0").unlink()
    assert launching.generate(job, out, LAUNCH) is not None
    assert swept == [(0, 12), (0, 12) if lost else (4, 12)]
    assert pixels(out) == pixels(whole)
    assert not list(Ledger.open(out).lost(read=True))
    assert len(Ledger.open(out).rows()["unit-000000"].files) == 6
