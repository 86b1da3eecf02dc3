"""What a failed ingest keeps and says, and that workers elsewhere find what they are to read."""

from __future__ import annotations

import errno
import os
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
from instruments_more import write_published, write_table
from killed_ingest import canvas, write_images

from tera_mind.cli import ingest as cli_ingest
from tera_mind.cli.main import main
from tera_mind.errors import FormatError, InputError, MissingFileError, TeraMindError
from tera_mind.ingest.fingerprint import files_of
from tera_mind.ingest.pipeline import ingest
from tera_mind.ingest.placing import Canvas
from tera_mind.ingest.plan import plan_ingest
from tera_mind.ingest.tables import Table
from tera_mind.ingest.work import open_work, section_keys, work_folder

TABLE = ["--x", "x_um", "--y", "y_um", "--gene", "symbol"]


@pytest.fixture(scope="module")
def one(tmp_path_factory) -> Canvas:
    """A brain of one section."""
    folder = tmp_path_factory.mktemp("images")
    write_images(folder)
    whole = canvas(folder)
    return replace(whole, sections=whole.sections[:1])


def failing(error):
    """A hook of progress that fails when the first section is half written."""

    def hook(items, description, total=None):
        del total
        for number, item in enumerate(items):
            yield item
            if description == "writing sections" and number == 1:
                raise error

    return hook


KILLED = TeraMindError("a worker process was killed: what is finished is kept")
FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (KILLED, "a worker process was killed"),
        (MissingFileError("worker does not see it"), "does not see"),
        (FULL, r"No space left on device for .*b\.zarr \(unfinished: .*work\); free space and run the same command"),
        (OSError(errno.EDQUOT, "Disk quota exceeded", "/some/file"), r"for /some/file .* free space"),
    ],
)
def test_a_brain_of_one_section_goes_on_after_what_is_no_fault_of_its_files(one, tmp_path, error, words):
    out = tmp_path / "b.zarr"
    with pytest.raises(type(error), match=words) as caught:
        ingest(one, out, progress=failing(error))
    assert getattr(caught.value, "errno", None) == getattr(error, "errno", None)
    said: list[str] = []
    ingest(one, out, say=said.append)
    assert said == ["going on with an interrupted run: 1 of 1 sections are read"]
    assert [path.name for path in tmp_path.iterdir()] == ["b.zarr"]


@pytest.mark.parametrize("error", [InputError("bad"), FormatError("damaged")])
def test_bad_input_of_a_brain_of_one_section_leaves_nothing(one, tmp_path, error):
    with pytest.raises(type(error)):
        ingest(one, tmp_path / "b.zarr", progress=failing(error))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [InputError("bad"), TeraMindError("stopped")])
def test_a_superseded_run_leaves_the_later_ones_folder(tmp_path, error):
    """Where files cannot be locked, two runs may be at one output."""
    out = tmp_path / "b.zarr"

    def superseded() -> None:
        with open_work(out, {"s": "key"}, print) as first:
            (first.folder / "run").write_text("a later run")
            raise error

    with pytest.raises(type(error)):
        superseded()
    assert (work_folder(out) / "run").read_text() == "a later run"


def test_a_superseded_run_moves_no_store(one, tmp_path):
    out = tmp_path / "b.zarr"

    def hook(items, description, total=None):
        del total
        yield from items
        if description == "writing sections":
            (work_folder(out) / "run").write_text("a later run")

    with pytest.raises(TeraMindError, match="is being written by a later run"):
        ingest(one, out, progress=hook)
    assert not out.exists()
    assert list(work_folder(out).glob("stores/*/brain.zarr"))


# where workers look


def asked(monkeypatch, folder: Path, *arguments: str) -> Canvas:
    """What the command would ingest when it is given in a folder; pickled and back, as for a worker."""
    got = []

    def catch(canvas, out, **more):
        got.append((canvas, more["workers"]))
        raise InputError("enough")

    monkeypatch.setattr(cli_ingest, "ingest", catch)
    folder.mkdir(exist_ok=True)
    monkeypatch.chdir(folder)
    assert main(["ingest", *arguments, "--out", "b.zarr"]) == 2
    monkeypatch.chdir("/")
    return pickle.loads(pickle.dumps(got[0][0]))


def test_folders_mean_the_same_in_every_folder(tmp_path, monkeypatch):
    write_table(tmp_path / "t")
    relative = asked(monkeypatch, tmp_path, "table", "t", *TABLE)
    assert files_of(relative)
    assert all(path.is_absolute() for path in files_of(relative))
    assert sum(len(batch.gene) for batch in relative.sections[0].source.batches()) > 50
    absolute = asked(monkeypatch, tmp_path / "elsewhere", "table", str(tmp_path / "t"), *TABLE)
    assert section_keys(relative) == section_keys(absolute)


def test_a_scratch_folder_means_the_same_in_every_folder(tmp_path, monkeypatch):
    write_published(tmp_path / "p")
    found = asked(monkeypatch, tmp_path, "published", "p", "--split", "by_section")
    assert sum(len(batch.gene) for batch in found.sections[0].source.batches()) > 3
    assert (tmp_path / "by_section" / "tiles.json").is_file()


def test_tables_of_sections_and_genes_are_taken_from_the_folder_of_the_command(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = cli_ingest.build_parser().parse_args(
        ["table", "t", "--out", "b.zarr", *TABLE, "--sections", "s.csv", "--gene-names", "g.csv"]
    )
    cli_ingest._make_absolute(options)
    assert [options.folders[0], options.sections, options.gene_names] == [
        tmp_path / name for name in ("t", "s.csv", "g.csv")
    ]


def test_a_table_that_a_worker_does_not_see_is_called_missing(tmp_path):
    for name in ("spots.csv", "spots.parquet"):
        table = Table(tmp_path / name, ("x_um",), ("symbol",))
        with pytest.raises(MissingFileError, match=r"nothing is there for the worker .* do all machines see this path"):
            list(table.batches())


def test_as_many_processes_as_cores_also_where_affinity_is_unknown(tmp_path, monkeypatch):
    write_table(tmp_path / "t")
    found = asked(monkeypatch, tmp_path, "table", "t", *TABLE)
    monkeypatch.setattr(cli_ingest, "_WORTH_A_CLUSTER", 1)
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    assert cli_ingest._workers(None, found) == os.cpu_count()


# space


def test_files_that_sections_share_are_counted_once(tmp_path, monkeypatch):
    write_published(tmp_path / "p", sections=5)
    found = asked(monkeypatch, tmp_path, "published", "p")
    plan = plan_ingest(found, tmp_path / "b.zarr")
    rows = sum(-(-path.stat().st_size // 45) for path in (tmp_path / "p" / "genes").iterdir())
    assert rows <= plan.transcripts <= rows + 5
    pixels = 5 * 2 * 32 * 48 * 4 / 3
    assert plan.bytes_needed == pytest.approx(12 * rows + pixels, abs=12 * 5 + 1)
    part = replace(found, sections=found.sections[:2])
    assert plan_ingest(part, tmp_path / "b.zarr").transcripts == pytest.approx(rows, abs=2)
