"""Leases and the ledger by themselves: who may claim what, what expires, what a snapshot and a map say."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
import time
from dataclasses import asdict, replace

import numpy as np
import pytest
from PIL import Image

from tera_mind.errors import FormatError
from tera_mind.formats.volume import Volume, VolumeAttributes, is_unfinished
from tera_mind.geometry import Box, SectionGroup
from tera_mind.processes import Process
from tera_mind.sampling.leases import EXPIRY_S, Leases, heartbeat
from tera_mind.sampling.ledger import FOLDER, Ledger, Row, differences
from tera_mind.sampling.plain import SamplerSettings
from tera_mind.sampling.plan import Plan, Unit
from tera_mind.sampling.progress import WorkerFile, snapshot
from tera_mind.sampling.progress_map import text_map, write_figure
from tera_mind.sampling.pyramid import run_pyramid
from tera_mind.sampling.writer import BandWriter, ShardWriter

FACTS = {"sections": [0, 1, 2], "seed": 0}


def make_volume(path, dtype="uint8", facts=None) -> Ledger:
    """Three sections of one group each, two bands: 512 x 300 px in shards of 256."""
    region = Box(0, 512, 0, 300)
    attributes = VolumeAttributes(
        stains=("DAPI",), pixel_um=0.4, brain="b.zarr", brain_fingerprint="01", box=region, sections=(0, 1, 2),
        patch_px=32, checkpoint="ab", seed=0, steps=1, dtype=dtype,
    )  # fmt: skip
    plan = Plan(
        region=region,
        groups=tuple(SectionGroup((z,), (z,)) for z in range(3)),
        units=tuple(Unit(2 * z + k, z, (8 * k, 8 * k + 8), 10) for z in range(3) for k in range(2)),
        settings=SamplerSettings("v", 1),
        patch_px=32, halo_px=16, shard_px=256, necessary_blocks=60, memory_bytes=1, bytes_written=1, bytes_read=1,
        flop=1,
    )  # fmt: skip
    Ledger.create(path, attributes, facts or FACTS, plan, threads=1)
    return Ledger.open(path)


def fill(ledger, name, files=None) -> None:
    ledger.write(Row(name, "someone", time.time(), 2.0, files or {}))


@pytest.fixture
def ledger(tmp_path):
    return make_volume(tmp_path / "v.zarr")


def claim_all(folder, number, ready, taken):
    leases = Leases(folder, f"worker-{number}")
    ready.wait()
    taken.put([name for name in map(str, range(40)) if leases.claim(name, 0.0)])


def test_a_task_has_one_holder(tmp_path):
    """Four processes run for the same forty tasks at once."""
    context = multiprocessing.get_context("fork")
    ready, taken = context.Event(), context.Queue()
    processes = [context.Process(target=claim_all, args=(tmp_path, n, ready, taken)) for n in range(4)]
    for process in processes:
        process.start()
    ready.set()
    mine = [taken.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    assert sorted((name for each in mine for name in each), key=int) == list(map(str, range(40)))


def test_leases_expire_and_are_taken_over(tmp_path):
    first, second = Leases(tmp_path, "a"), Leases(tmp_path, "b")
    assert first.claim("x", 1.0)
    assert not second.claim("x", 2.0)
    long_ago = time.time() - EXPIRY_S - 5
    os.utime(tmp_path / "x.json", (long_ago, long_ago))
    assert second.held()["x"].expired
    assert second.claim("x", 2.0)
    assert second.holds("x")
    first.release("x")  # it is no longer theirs to give
    assert second.holds("x")
    second.release("x")
    assert not list(tmp_path.iterdir())


def test_the_lease_of_a_dead_process_of_this_machine_counts_for_nothing(tmp_path):
    say = "from tera_mind.processes import Process; print(Process.own().word)"
    said = subprocess.run([sys.executable, "-c", say], capture_output=True, text=True, check=True).stdout
    dead, own = Process.of(said.strip()), Process.own()
    again = replace(dead, pid=own.pid)  # its number was given to another: this process
    for process, expired in ((dead, True), (own, False), (again, True), (replace(dead, machine="else"), False)):
        (tmp_path / "x.json").write_text(json.dumps({"worker": "w", "since": 0.0, **asdict(process)}))
        assert Leases(tmp_path, "b").held()["x"].expired is expired


@pytest.mark.parametrize("content", ["", '{"worker": "w", "mach', "[]"])
def test_a_torn_lease_of_a_writer_that_died_expires_by_age(tmp_path, content):
    (tmp_path / "x.json").write_text(content)
    leases = Leases(tmp_path, "b")
    assert not leases.claim("x", 0.0)
    os.utime(tmp_path / "x.json", (0, 0))
    assert leases.claim("x", 0.0)


def test_heartbeat_keeps_a_lease_young(tmp_path, monkeypatch):
    monkeypatch.setattr("tera_mind.sampling.leases.HEARTBEAT_S", 0.02)
    leases = Leases(tmp_path, "a")
    leases.claim("x", 0.0)
    os.utime(tmp_path / "x.json", (0, 0))
    with heartbeat(leases, "x"):
        until = time.monotonic() + 30
        while leases.held()["x"].expired:
            assert time.monotonic() < until
            time.sleep(0.02)


def test_the_first_plan_stands(ledger):
    make_volume(ledger.volume, facts=FACTS | {"seed": 9})
    again = Ledger.open(ledger.volume)
    assert again.facts == FACTS
    assert differences(again.facts, FACTS | {"seed": 9}) == "seed 0, not 9"
    assert [path.name for path in ledger.volume.parent.iterdir()] == ["v.zarr"]


def test_rows_torn_or_of_another_plan_do_not_count(ledger):
    fill(ledger, "unit-000000")
    fill(ledger, "unit-000001")
    path = ledger.folder / "rows" / "unit-000000.json"
    path.write_bytes(path.read_bytes()[:-5])
    other = json.loads((ledger.folder / "rows" / "unit-000001.json").read_text()) | {"fingerprint": "another"}
    (ledger.folder / "rows" / "unit-000002.json").write_text(json.dumps(other))
    fresh = Ledger.open(ledger.volume)
    assert set(fresh.rows()) == {"unit-000001"}
    assert not fresh.done("unit-000000")


def test_pyramids_wait_for_their_planes_alone(ledger):
    needs = {task.plane: task.needs for task in ledger.tasks if task.unit is None}
    assert needs[0, 1] == ("unit-000002", "unit-000003")
    assert len(needs) == 3


def test_ledger_that_is_lost_or_damaged(ledger):
    (ledger.folder / "plan.json").write_text("{")
    with pytest.raises(FormatError, match="no readable record of its generation"):
        Ledger.open(ledger.volume)


def test_snapshot_and_maps(ledger, tmp_path):
    fill(ledger, "unit-000000")
    leases = Leases(ledger.folder / "leases", "me")
    leases.claim("unit-000003", time.time())
    WorkerFile(ledger, "me").write(task="unit-000003", done=4)
    ledger.fail("unit-000004", "me", "a reason")
    state = snapshot(Ledger.open(ledger.volume))
    assert (state.total, state.done) == (63, 14)
    assert [(each.task.name, each.share) for each in state.running] == [("unit-000003", 0.4)]
    assert state.failed == {"unit-000004": "a reason"}
    assert state.remaining_s == pytest.approx(49 * 2.0 / 10)  # one worker, at the pace of the unit that is done
    lines = text_map(ledger, state).splitlines()
    assert [line.strip() for line in lines[1:17]] == ["#.x"] * 8 + [".+."] * 8
    write_figure(ledger, state, tmp_path / "p.png", "v.zarr")
    image = np.asarray(Image.open(tmp_path / "p.png").convert("RGB"), np.int32)
    for colour in ((0x4C, 0x95, 0x6C), (0xF2, 0xA5, 0x41), (0xC8, 0x55, 0x3D)):
        assert (np.abs(image - colour).sum(-1) < 6).sum() > 500


@pytest.mark.parametrize("dtype", ["uint8", "float16"])
def test_shards_and_pyramid_hold_what_was_given(dtype, tmp_path):
    """Pieces of odd widths, empty ones too, against the whole image; levels against plain means."""
    import torch

    ledger = make_volume(tmp_path / "v.zarr", dtype)
    rng = np.random.default_rng(0)
    image = rng.uniform(-1, 1, (3, 512, 300)).astype(np.float32)
    image[:, :256, :256] = -1  # a shard of nothing
    for unit in ledger.plan.units:
        shards = ShardWriter(ledger.volume, ledger.partial(f"unit-{unit.index:06d}", "me"), dtype)
        band = ledger.plan.box(unit)
        writer = BandWriter(shards, band, 1, (unit.group,), (256, 256))
        for x0, x1 in ((0, 96), (96, 257), (257, 300)):
            box = Box(band.y0, band.y1, x0, x1)
            writer.add(box, torch.from_numpy(image[unit.group][box.slices()][None]))
        writer.finish()
        fill(ledger, f"unit-{unit.index:06d}", shards.seal())
        shards.close()
    with pytest.raises(FormatError, match="is not finished"):
        Volume.open(ledger.volume)
    for plane in range(3):
        files = run_pyramid(ledger.volume, ledger.partial(f"pyramid-0-{plane:04d}", "me"), dtype, 0, plane)
        fill(ledger, f"pyramid-0-{plane:04d}", files)
    assert not (ledger.volume / "0" / "c" / "0" / "0" / "0" / "0").exists()
    assert not list(ledger.lost(read=True))
    ledger.seal()
    assert not is_unfinished(ledger.volume)
    assert [path.name for path in (ledger.volume / FOLDER).iterdir()] == ["zarr.json"]
    volume = Volume.open(ledger.volume)
    expected = np.clip(np.rint((image + 1) * 127.5), 0, 255).astype(np.uint8)
    found = volume.image()[0]
    assert found.dtype == np.uint8
    assert np.abs(found.astype(int) - expected).max() <= (0 if dtype == "uint8" else 1)
    if dtype == "float16":
        np.testing.assert_array_equal(volume.values()[0], image.astype(np.float16))
    import zarr

    fine, coarse = (np.asarray(zarr.open_array(ledger.volume / str(level))[0], np.float64) for level in (0, 1))
    means = fine.reshape(3, 256, 2, 150, 2).mean((2, 4))
    assert np.abs(coarse - means).max() <= (0.5 if dtype == "uint8" else 2**-11)
