"""An ingest gives the same bytes however often it dies and whoever does the work, within its memory and disk."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from killed_ingest import HEIGHT, SECTIONS, WIDTH, canvas, write_images
from tiny_brain import make_brain

from tera_mind.errors import FormatError, InputError, MissingFileError, TeraMindError
from tera_mind.formats.brain import Brain
from tera_mind.formats.transcripts import pack_keys, tile_grid
from tera_mind.ingest.fingerprint import digest, files_of
from tera_mind.ingest.pipeline import ingest
from tera_mind.ingest.plan import plan_ingest
from tera_mind.ingest.reading import read_transcripts
from tera_mind.ingest.spool import Spool, SpoolWriter
from tera_mind.ingest.tasks import Task, runner
from tera_mind.ingest.work import open_work, read_mark, work_folder, write_mark

HERE = Path(__file__).parent


def bytes_of(store: Path) -> dict[str, str]:
    files = sorted(path for path in store.rglob("*") if path.is_file())
    return {str(path.relative_to(store)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    write_images(folder)
    return folder


@pytest.fixture(scope="module")
def expected(images, tmp_path_factory) -> dict[str, str]:
    """The store of an ingest that nothing disturbed."""
    out = tmp_path_factory.mktemp("whole") / "b.zarr"
    brain = ingest(canvas(images), out)
    assert brain.shape == (1, SECTIONS, HEIGHT, WIDTH)
    assert [section.transcripts for section in brain.sections] == [2000] * SECTIONS
    assert not work_folder(out).exists()
    return bytes_of(out)


@pytest.fixture(autouse=True)
def _no_fsync(monkeypatch):
    """What a test writes need not outlive the machine."""
    monkeypatch.setattr("os.fsync", lambda _handle: None)


# external sort


@settings(max_examples=25, deadline=None)
@given(
    rows=st.integers(0, 400), seed=st.integers(0, 2**16), run=st.integers(1, 90), band=st.integers(1, 90),
    height=st.integers(1, 900), width=st.integers(1, 900),
)  # fmt: skip
def test_external_sort_is_a_sort(rows, seed, run, band, height, width):
    rng, grid = np.random.default_rng(seed), tile_grid(height, width)
    y, x = (np.minimum(rng.exponential(size / 3, rows), size - 1).astype(np.int64) for size in (height, width))
    keys = pack_keys(y, x, rng.integers(0, 5, rows), grid[1])
    with tempfile.TemporaryDirectory() as folder:
        with closing(SpoolWriter(Path(folder) / "s", grid, run_keys=run)) as writer:
            for part in np.array_split(keys, 7):
                writer.append(part)
        spool = Spool(Path(folder) / "s", np.array(writer.runs, np.int64), writer.cells)
        bands = list(spool.bands(band))
    assert sum(writer.runs) == rows
    assert max(writer.runs, default=0) <= run
    tiles = [np.unique(keys >> np.uint64(32)) for keys in bands]
    for part, own in zip(bands, tiles, strict=True):
        assert len(part) <= band or len(own) == 1
    assert len(np.unique(np.concatenate([*tiles, []]))) == sum(map(len, tiles)), "a tile was split"
    merged = np.concatenate([np.sort(part) for part in bands]) if bands else np.zeros(0, np.uint64)
    np.testing.assert_array_equal(merged, np.sort(keys))


# interrupted and resumed


def test_killed_again_and_again(images, expected, tmp_path):
    out, log = tmp_path / "b.zarr", tmp_path / "log"
    rng = np.random.default_rng(0)
    # of about 400 without a death; the last ones come while the finished store is put in place
    deaths = [2, *rng.integers(12, 40, 2).tolist(), *rng.integers(80, 130, 4).tolist(), 14, 22, 30]
    command = [sys.executable, HERE / "killed_ingest.py", images, out, log, ",".join(map(str, deaths))]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)
    lines = done.stdout.splitlines()
    killed = lines.count("killed")
    assert killed >= 7
    assert lines[-1] == "ended 0"
    assert any(line.startswith("going on with an interrupted run") for line in lines)
    assert bytes_of(out) == expected
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b.zarr", "log"]
    # a death costs the reading of one section at most
    assert len(log.read_text().split()) <= SECTIONS + killed


def interrupt(images: Path, out: Path, **more) -> Path:
    """Run until all sections are read and the first is written; the work folder."""

    def stopping(items, description, total=None):
        del total
        for number, item in enumerate(items):
            yield item
            if description == "writing sections" and number == 3:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ingest(canvas(images), out, progress=stopping, **more)
    assert not out.exists()
    return work_folder(out)


@pytest.mark.parametrize("torn", ["sections/*/transcripts.npz", "sections/*/intensities-0.npz", "stores/*/marks/*.npz"])
def test_torn_marks_are_done_again(images, expected, tmp_path, torn):
    work = interrupt(images, tmp_path / "b.zarr")
    marks = sorted(work.glob(torn))
    assert marks
    for mark in marks:
        mark.write_bytes(mark.read_bytes()[:-40])
    ingest(canvas(images), tmp_path / "b.zarr")
    assert bytes_of(tmp_path / "b.zarr") == expected


@pytest.mark.parametrize("data", ["sections/*/transcripts.bin", "stores/*/brain.zarr/images/0/c/0/0/1/0"])
def test_lost_data_is_made_again(images, expected, tmp_path, data):
    """A mark counts only beside the data that it vouches for."""
    work = interrupt(images, tmp_path / "b.zarr")
    for path in work.glob(data):
        path.write_bytes(path.read_bytes()[:-8])
    for mark in work.glob("stores/*/marks/section-0.npz"):
        mark.unlink()
    ingest(canvas(images), tmp_path / "b.zarr")
    assert bytes_of(tmp_path / "b.zarr") == expected


def test_only_what_changed_is_read_again(images, tmp_path):
    mine, out = tmp_path / "images", tmp_path / "b.zarr"
    shutil.copytree(images, mine)
    interrupt(mine, out)
    (mine / "1.tif").touch()  # the same pixels, written later
    said: list[str] = []
    ingest(canvas(mine), out, say=said.append)
    assert said == [
        "section s1 changed since the interrupted run (or its settings did): read again",
        "going on with an interrupted run: 2 of 3 sections are read",
    ]


def test_other_rules_keep_what_was_read(images, tmp_path):
    """A change of panel rule or range reads nothing again, and the store is that of the new settings."""
    out, log = tmp_path / "b.zarr", tmp_path / "log"

    def stop(items, description, total=None):
        del total
        if description == "writing sections":
            raise KeyboardInterrupt
        yield from items

    with pytest.raises(KeyboardInterrupt):
        ingest(canvas(images, str(log)), out, progress=stop)
    brain = ingest(canvas(images, str(log)), out, genes="all", ranges={"DAPI": (0.0, 1000.0)})
    assert len(log.read_text().split()) == SECTIONS
    assert brain.intensity_range == {"DAPI": (0.0, 1000.0)}


def test_the_old_store_stays_until_the_new_is_whole(images, expected, tmp_path):
    out = tmp_path / "b.zarr"
    make_brain(out)
    (out / "old").touch()
    with pytest.raises(InputError, match="already there"):
        ingest(canvas(images), out)
    work = None
    with pytest.raises(AssertionError):
        work = interrupt(images, out, overwrite=True)  # its last check: nothing is there
    assert work is None
    assert (out / "old").exists()
    ingest(canvas(images), out, overwrite=True)
    assert bytes_of(out) == expected


def test_two_ingests_of_one_output(images, tmp_path):
    out = tmp_path / "b.zarr"

    def meddling(items, description, total=None):
        del total
        if description == "reading sections":
            with pytest.raises(InputError, match="another tera-mind ingest is writing"):
                ingest(canvas(images), out)
        yield from items

    ingest(canvas(images), out, progress=meddling)
    assert Brain.open(out).sections


# disk


def test_space_is_checked_first(images, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=10**6))
    with pytest.raises(InputError, match=r"need up to 1\.01 MB, its file system has 1 MB free; make room"):
        ingest(canvas(images), tmp_path / "b.zarr")
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=10**9))
    plan = plan_ingest(canvas(images), tmp_path / "b.zarr")
    assert [section.pixels for section in plan.sections] == [HEIGHT * WIDTH] * SECTIONS
    assert plan.stains == ("DAPI",)


def test_plan_knows_what_is_read(images, tmp_path):
    interrupt(images, tmp_path / "b.zarr")
    plan = plan_ingest(canvas(images), tmp_path / "b.zarr")
    assert [section.read for section in plan.sections] == [True] * SECTIONS
    assert plan.transcripts == 2000 * SECTIONS


# facts


def test_digest_follows_values_and_files(images, tmp_path):
    placed = canvas(images).sections[0]
    assert digest(placed) == digest(canvas(images).sections[0])
    assert digest(placed) != digest(replace(placed, shape=(HEIGHT, WIDTH - 1)))
    moved = replace(placed.registration, um_to_canvas=np.diag([1, 1.0001, 1]))
    assert digest(placed) != digest(replace(placed, registration=moved))
    assert files_of(placed) == [images / "0.tif"]
    file = tmp_path / "f"
    file.write_text("a")
    before = digest({"f": file, "n": np.arange(3)})
    assert before == digest({"n": np.arange(3), "f": file})
    file.write_text("ab")
    assert digest({"f": file, "n": np.arange(3)}) != before
    loop: list[object] = []
    loop.append(loop)
    assert digest(loop) == digest(loop)


def test_marks_vouch_for_their_data(tmp_path):
    data, mark = tmp_path / "d", tmp_path / "marks" / "m.npz"
    data.mkdir()
    (data / "x").write_text("12345")
    write_mark(mark, {"n": 3}, data, a=np.arange(4))
    found = read_mark(mark, data)
    assert found is not None
    assert found.record["n"] == 3
    assert found.arrays["a"].tolist() == [0, 1, 2, 3]
    (data / "x").write_text("1234")
    assert read_mark(mark, data) is None
    assert read_mark(tmp_path / "other", data) is None


def test_a_straggler_stops(images, tmp_path):
    """A worker that a killed run left behind sees that another run is at it."""
    placed = canvas(images).sections[0]
    with open_work(tmp_path / "b.zarr", {"s0": "key"}, print) as old:
        old.keep({"key": placed})
    with open_work(tmp_path / "b.zarr", {"s0": "key"}, print) as new:
        new.check()
        with pytest.raises(TeraMindError, match="written by a later run"):
            list(read_transcripts(old, "key", (HEIGHT, WIDTH)))
        list(read_transcripts(new, "key", (HEIGHT, WIDTH)))
    shutil.rmtree(new.folder)
    with pytest.raises(MissingFileError, match="does not see"):
        new.check()


# workers


@pytest.fixture(scope="module")
def scheduler():
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0", memory_limit=0) as cluster:
        yield cluster.scheduler_address


def test_a_cluster_gives_the_same_bytes(images, expected, scheduler, tmp_path):
    steps = []

    def count(items, description, total=None):
        for item in items:
            steps.append((description, total))
            yield item

    ingest(canvas(images), tmp_path / "b.zarr", scheduler=scheduler, progress=count)
    assert bytes_of(tmp_path / "b.zarr") == expected
    # transcripts, two windows to measure; rows, two windows to write, tissue and pyramid
    assert steps.count(("reading sections", 3 * SECTIONS)) == 3 * SECTIONS
    assert steps.count(("writing sections", 4 * SECTIONS)) == 4 * SECTIONS


def test_an_error_on_a_worker_is_one_line(images, scheduler, tmp_path, capfd, monkeypatch):
    mine = tmp_path / "images"
    shutil.copytree(images, mine)
    damaged = mine / "2.tif"
    sections = canvas(mine)
    content = bytearray(damaged.read_bytes())
    content[500:2000] = bytes(1500)
    damaged.write_bytes(content)
    with pytest.raises(FormatError, match="is damaged") as caught:
        ingest(sections, tmp_path / "b.zarr", scheduler=scheduler)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr().err == ""
    assert not (tmp_path / "b.zarr").exists()
    monkeypatch.setattr("tera_mind.ingest.tasks._PATIENCE_S", 1)
    with pytest.raises(InputError, match=r"no Dask scheduler answers at tcp://127\.0\.0\.1:9"):
        ingest(sections, tmp_path / "b.zarr", scheduler="tcp://127.0.0.1:9")


@pytest.mark.parametrize("end", ["kill", pytest.param("interrupt", marks=pytest.mark.slow)])
def test_workers_end_with_their_parent(images, expected, tmp_path, end):
    out, log = tmp_path / "b.zarr", tmp_path / "log"
    code = (
        "from pathlib import Path\nfrom killed_ingest import canvas\nfrom tera_mind.ingest.pipeline import ingest\n"
        f"if __name__ == '__main__':\n    ingest(canvas(Path({str(images)!r}), {str(log)!r}, 0.5), "
        f"Path({str(out)!r}), workers=2)\n"
    )
    script = tmp_path / "script.py"
    script.write_text(code)
    process = subprocess.Popen(
        [sys.executable, script], stderr=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])])},
    )  # fmt: skip
    until = time.monotonic() + 60
    while not log.exists() and time.monotonic() < until:
        time.sleep(0.1)
    family = psutil.Process(process.pid).children(recursive=True)
    assert len(family) >= 2
    process.send_signal(signal.SIGKILL if end == "kill" else signal.SIGINT)
    _, said = process.communicate(timeout=60)
    _, alive = psutil.wait_procs(family, timeout=20)
    assert not alive
    if end == "interrupt":
        assert said.strip().splitlines()[-1] == "KeyboardInterrupt"
        assert "distributed.worker" not in said
    assert not out.exists()
    assert work_folder(out).exists()


def _die():
    os.kill(os.getpid(), signal.SIGKILL)
    yield


@pytest.mark.slow
def test_a_killed_worker_is_one_line(capfd):
    with (
        pytest.raises(TeraMindError, match=r"a worker process was killed; .* fewer --workers"),
        runner(2) as run,
    ):
        list(run.run([Task("die", _die, ())]))
    assert capfd.readouterr().err == ""
