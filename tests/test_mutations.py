"""Damaged input ends in a clear error or in a store that accounts for every row; nothing else, and nothing beside."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import instruments_more
import numpy as np
import pytest
from instruments import write_merscope, write_xenium
from mutations import all_mutations, mutate
from table_mutations import read_table

from tera_mind.errors import TeraMindError
from tera_mind.formats.brain import Brain
from tera_mind.ingest.check import check, read_sections
from tera_mind.ingest.faults import FaultsError
from tera_mind.ingest.pipeline import ingest
from tera_mind.ingest.placing import place
from tera_mind.ingest.registry import READERS
from tera_mind.ingest.source import Reader

MUTATIONS = 210
WORK = ".b.zarr.work"  # what was read already, for the rerun that goes on


@dataclass(frozen=True)
class Format:
    """Tiny folders as the instrument writes them, a reader's settings, and the end of the names of its tables."""

    build: Callable[[Path], Sequence[Path]]
    tables: str
    settings: dict[str, object] | None = None
    #: share of the mutations that must be refused; chunks of pixels, most of some stores, bear any change
    refused: float = 1 / 3


def _merscope(folder: Path) -> list[Path]:
    return [write_merscope(folder / "s", rows=200, shape=(64, 56), stains=("DAPI",), manifest=True)]


def _xenium(folder: Path) -> list[Path]:
    rng = np.random.default_rng(0)
    image = rng.integers(100, 900, (64, 48)).astype(np.uint16)
    x_um, y_um = rng.uniform(0, 24, 200), rng.uniform(0, 32, 200)
    return [write_xenium(folder / "s", image=image, x_um=x_um, y_um=y_um, panel=("A", "B", "C"), run_name="r")]


def _spatialdata(folder: Path) -> list[Path]:
    """A store as scverse writes it: an image of two channels, 200 points in microns."""
    import pandas as pd
    from spatialdata import SpatialData
    from spatialdata.models import Image2DModel, PointsModel
    from spatialdata.transformations import Scale

    rng = np.random.default_rng(0)
    image = rng.integers(100, 900, (2, 64, 48)).astype(np.uint16)
    frame = pd.DataFrame({"x": rng.uniform(0, 24, 200), "y": rng.uniform(0, 32, 200)})
    frame["gene"] = pd.Categorical(rng.choice(["A", "B", "C"], 200))
    halves = {"global": Scale([0.5, 0.5], axes=("x", "y"))}
    SpatialData(
        images={
            "stack": Image2DModel.parse(image, dims=("c", "y", "x"), c_coords=["DAPI", "PolyT"], transformations=halves)
        },
        points={"spots": PointsModel.parse(frame, coordinates={"x": "x", "y": "y"}, feature_key="gene")},
    ).write(folder / "s.zarr")
    return [folder / "s.zarr"]


#: where other formats keep their rows; "": they are no rows
TABLES = {"cosmx": "_tx_file.csv", "table": "spots.csv", "bil": "detected_transcripts.csv", "published": ""}
#: one mutation of so many among the quick tests, all of them among the slow ones
EVERY = {"merscope": 3, "xenium": 3}
EVERY_OTHER = 8
#: a new format has its builder beside the other tiny folders, and a line above
FORMATS: dict[str, Format] = {
    "merscope": Format(_merscope, "detected_transcripts.csv"),
    "xenium": Format(_xenium, "transcripts.parquet"),
    **({"spatialdata": Format(_spatialdata, "part.0.parquet", refused=1 / 6)} if find_spec("spatialdata") else {}),
    **{
        name: Format(build, TABLES[name], instruments_more.SETTINGS[name])
        for name, build in instruments_more.BUILDERS.items()
    },
}


def make_store(reader: Reader, folders: Sequence[Path], out: Path) -> Brain:
    """The way of the command line, in this process; the one place to change when `ingest` changes."""
    return ingest(place(read_sections(reader, folders, [50.0 * index for index in range(len(folders))])), out)


class Case:
    """The folders of a format, ready to be mutated."""

    def __init__(self, name: str, home: Path) -> None:
        self.format = FORMATS[name]
        self.reader = READERS[name](**(self.format.settings or {}))
        self.pristine, self.work = home / "pristine", home / "work"
        self.folders = [path.relative_to(self.pristine) for path in self.format.build(self.pristine)]

    def fresh(self) -> tuple[Path, list[Path]]:
        """A copy, and its folders."""
        shutil.rmtree(self.work, ignore_errors=True)
        root = Path(shutil.copytree(self.pristine, self.work / "in"))
        return root, [root / folder for folder in self.folders]

    def outcome(self, folders: Sequence[Path]) -> TeraMindError | Brain:
        try:
            return make_store(self.reader, folders, self.work / "b.zarr")
        except TeraMindError as error:
            return error

    def rows(self, root: Path) -> int:
        files = [path for path in root.rglob("*") if path.is_file() and not path.name.startswith(".")]
        return sum(len(read_table(path)) for path in files if path.name.lower().endswith(self.format.tables))

    def beside(self) -> set[str]:
        return {path.name for path in self.work.iterdir()}


def accounts(brain: Brain) -> int:
    return sum(section.transcripts + sum(section.dropped.values()) for section in brain.sections)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Hundreds of stores that nobody keeps need not reach the disk; pandas and tifffile warn of the mutations."""
    monkeypatch.setattr("os.fsync", lambda _handle: None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.mark.parametrize("name", FORMATS)
def test_some_mutated_folders(name, tmp_path):
    survive(name, tmp_path, every=EVERY.get(name, EVERY_OTHER))


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
def test_mutated_folders(name, tmp_path):
    survive(name, tmp_path, every=1)


def survive(name: str, home: Path, *, every: int) -> None:
    """Mutate and ingest; `every`: 1 for all mutations, else one of so many."""
    case = Case(name, home)
    _, folders = case.fresh()
    truth = make_store(case.reader, folders, home / "truth.zarr")
    refused, resumed = 0, 0
    seeds = range(0, max(MUTATIONS, len(all_mutations(case.pristine))), every)
    for seed in seeds:
        root, folders = case.fresh()
        words = mutate(root, seed)
        result = case.outcome(folders)
        if isinstance(result, Brain):
            assert case.beside() - {"in"} == {"b.zarr"}, words
            if case.format.tables:
                assert accounts(result) == case.rows(root), words
            continue
        refused += 1
        lines = result.lines if isinstance(result, FaultsError) else (" ".join(str(result).split()),)
        assert all(5 < len(line) < 2000 for line in lines), (words, lines)
        assert case.beside() <= {"in", WORK}, (words, lines)
        if WORK in case.beside() and resumed < 3:  # the user repairs the folder and runs again
            resumed += 1
            shutil.rmtree(root)
            shutil.copytree(case.pristine, root)
            brain = make_store(case.reader, folders, case.work / "b.zarr")
            assert [section.sha256 for section in brain.sections] == [section.sha256 for section in truth.sections]
            assert case.beside() == {"in", "b.zarr"}, words
    assert refused > len(seeds) * case.format.refused


@pytest.mark.parametrize("name", FORMATS)
def test_the_validator_never_breaks(name, tmp_path):
    """A report always comes, and has a fault in it just when no store can be made."""
    case = Case(name, tmp_path)
    for seed in range(3, MUTATIONS, 30):
        root, folders = case.fresh()
        words = mutate(root, seed)
        report = check(case.reader, folders)
        assert case.beside() == {"in"}, words
        result = case.outcome(folders)
        assert bool(report.faults) == isinstance(result, TeraMindError), (words, report.text(), result)
