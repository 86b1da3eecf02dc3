"""--overwrite replaces what the command itself wrote, and nothing else: no input, no folder or file of the user's."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path

import pytest
from instruments_more import write_table
from tiny_brain import make_brain

from tera_mind.cli.main import main
from tera_mind.errors import InputError
from tera_mind.export.selection import Selection
from tera_mind.formats.replaceable import check_replaceable, kind_of

TABLE = ["--x", "x_um", "--y", "y_um", "--gene", "symbol"]


def everything(folder: Path) -> dict[str, bytes | None]:
    """All that lies below a folder, hidden things too."""
    paths = sorted(folder.rglob("*"))
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in paths}


@pytest.fixture(scope="module")
def brain(tmp_path_factory):
    return make_brain(tmp_path_factory.mktemp("brain") / "b.zarr", shape=(2, 2, 130, 150), rows=100).path


@pytest.fixture
def place(brain, tmp_path, monkeypatch):
    """A folder with a brain, a raw section, a folder and a file of the user's, run in a folder beside."""
    shutil.copytree(brain, tmp_path / "data" / "b.zarr")
    write_table(tmp_path / "raw" / "s")
    for path in (tmp_path / "own" / "thesis.txt", tmp_path / "notes.txt", tmp_path / "run" / "here.txt"):
        path.parent.mkdir(exist_ok=True)
        path.write_text("mine")
    monkeypatch.chdir(tmp_path / "run")
    return tmp_path


def refused(place: Path, capsys: pytest.CaptureFixture[str], words: str, *arguments: str) -> None:
    """The command ends with one line that has the words, and everything is as it was."""
    before = everything(place)
    capsys.readouterr()
    assert main([*arguments, "--overwrite"]) == 2
    error = capsys.readouterr().err.strip()
    assert words in error
    assert len(error.splitlines()) == 1
    assert everything(place) == before


FOREIGN = [
    ("../own", "is no store of tera-mind"),
    ("../notes.txt", "is no store of tera-mind"),
    (".", "is the folder that the command runs in"),
    ("..", "is the folder that the command runs in, or above it"),
]


@pytest.mark.parametrize(
    ("out", "words"),
    [
        *FOREIGN,
        ("../raw/s", "holds the input"),
        ("../raw", "holds the input"),
        ("../raw/s/spots.csv", "is an input"),
        ("../data/b.zarr/images", "is no store of tera-mind"),
    ],
)
def test_ingest_replaces_brains_alone(place, capsys, out, words):
    refused(place, capsys, words, "ingest", "table", "../raw/s", "--out", out, *TABLE)


def test_ingest_replaces_a_brain_and_writes_beside_its_source(place):
    for out in ("../data/b.zarr", "../raw/s/b.zarr"):
        assert main(["ingest", "table", "../raw/s", "--out", out, "--overwrite", *TABLE]) == 0
        assert len(json.loads((Path(out) / "zarr.json").read_text())["attributes"]["tera_mind"]["sections"]) == 1


@pytest.mark.parametrize("kind", ["ome-zarr", "spatialdata"])
@pytest.mark.parametrize(
    ("out", "words"),
    [
        *FOREIGN,
        ("../data", "holds the input"),
        ("../data/b.zarr", "is an input"),
        ("../link", "is an input"),
        ("../data/b.zarr/images", "lies inside the input"),
        ("../data/b.zarr/new", "lies inside the input"),
        ("../other.zarr", "a store of format brain of tera-mind, expected export"),
    ],
)
def test_export_replaces_exports_alone(place, capsys, kind, out, words):
    (place / "link").symlink_to(place / "data" / "b.zarr")
    shutil.copytree(place / "data" / "b.zarr", place / "other.zarr")
    refused(place, capsys, words, "export", "../data/b.zarr", "--to", kind, "--out", out)


def test_export_replaces_either_kind_of_export(place):
    pytest.importorskip("spatialdata")
    for kind in ("ome-zarr", "spatialdata", "ome-zarr"):
        assert main(["export", "../data/b.zarr", "--to", kind, "--out", "x.zarr", "--overwrite"]) == 0
        assert kind_of(Path("x.zarr")) == "export"


def test_tiffs_replace_files_outside_the_store(place, capsys):
    command = ["export", "../data/b.zarr", "--to", "ome-tiff", "--out"]
    refused(place, capsys, "lies inside the input", *command, "../data/b.zarr")
    Path("section_000.ome.tif").mkdir()
    refused(place, capsys, "is no file", *command, ".")
    Path("section_000.ome.tif").rmdir()
    for _ in range(2):
        assert main([*command, ".", "--overwrite"]) == 0


@pytest.mark.parametrize(
    ("out", "words"), [*FOREIGN, ("../data", "holds the input"), ("../data/b.zarr/shards", "lies inside the input")]
)
def test_shards_replace_shards_alone(place, capsys, out, words):
    refused(place, capsys, words, "shards", "../data/b.zarr", "--out", out, "--core-px", "64", "--crop-px", "64")


@pytest.mark.parametrize(
    ("out", "words"),
    [
        *FOREIGN,
        ("../data", "holds the input"),
        ("../data/b.zarr", "is an input"),
        ("last.ckpt", "is an input"),
        ("../other.zarr", "a store of format brain of tera-mind, expected volume"),
    ],
)
def test_generate_replaces_volumes_alone(place, capsys, out, words):
    shutil.copytree(place / "data" / "b.zarr", place / "other.zarr")
    refused(place, capsys, words, "generate", "--checkpoint", "last.ckpt", "--brain", "../data/b.zarr", "--out", out)


@pytest.mark.parametrize("record", ["{", "[]", '{"attributes": []}', '{"attributes": {"tera_mind": "brain"}}', "\xff"])
def test_damaged_attributes_promise_nothing(tmp_path, record):
    path = tmp_path / "b.zarr"
    check_replaceable(path, ("brain",), [])
    path.mkdir()
    check_replaceable(path, ("brain",), [])  # empty
    (path / "zarr.json").write_bytes(record.encode("latin-1"))
    with pytest.raises(InputError, match=r"no store of tera-mind, expected brain; .* remove it yourself"):
        check_replaceable(path, ("brain",), [])


def test_scratch_of_a_killed_export_goes_with_the_next(place):
    command = ["export", "../data/b.zarr", "--to", "ome-tiff", "--out", "../x.ome.tif", "--sections", "0"]
    child = os.fork()
    if child == 0:
        Selection.image = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
        os._exit(main(command))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert len(list(place.glob(".x*"))) == 2
    assert main(command) == 0
    assert not list(place.glob(".x*"))
