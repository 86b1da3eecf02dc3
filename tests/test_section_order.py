"""Sections come by ascending z, whatever says where they lie: a store's neighbours are neighbours in the tissue."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
from instruments_more import BUILDERS, write_table

from tera_mind.cli.main import main
from tera_mind.formats.brain import Brain
from tera_mind.ingest.source import by_number

TB = ("--x", "x_um", "--y", "y_um", "--gene", "symbol")


@pytest.fixture(autouse=True)
def _no_fsync(monkeypatch):
    """Stores that nobody keeps need not reach the disk."""
    monkeypatch.setattr("os.fsync", lambda _handle: None)


def cli(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--z-um", "200,0,100"], "section b at z 0 um does not lie beyond section a at z 200 um"),
        (["--z-um", "0,0,5"], "section b at z 0 um does not lie beyond section a at z 0 um"),
        (["--z-um", "nan,0,5"], "section a lies at z nan um"),
        (["--z-um", "0,inf,3"], "section b lies at z inf um"),
        (["--section-um", "0"], "--section-um is a distance above 0, got 0"),
        (["--section-um", "-10"], "--section-um is a distance above 0, got -10"),
        (["--section-um", "nan"], "--section-um is a distance above 0, got nan"),
    ],
)
def test_positions_that_are_no_order_are_refused_by_ingest_and_check(tmp_path, options, words, capsys):
    folders = [tmp_path / name for name in "abc"]
    for folder in folders:
        write_table(folder)
    assert cli("ingest", "table", *folders, "--out", tmp_path / "b.zarr", *TB, *options) == 2
    error = capsys.readouterr().err.strip()
    assert words in error
    assert len(error.splitlines()) == 1
    assert cli("ingest", "table", *folders, "--check", *TB, *options) == 1
    assert words in capsys.readouterr().out
    assert {path.name for path in tmp_path.iterdir()} == set("abc")


def write_sections(folder: Path) -> Path:
    """One table of sections s10, s2, s1 in that order of rows, at z 20, 5 and 0; their images' grey is their number."""
    folder.mkdir()
    random = np.random.default_rng(0)
    names, depths = ("s10", "s2", "s1"), (20, 5, 0)
    rows = [
        f"{random.uniform(0, 40):.3f},{random.uniform(0, 32):.3f},G{index % 2},{names[index % 3]},{depths[index % 3]}"
        for index in range(90)
    ]
    (folder / "spots.csv").write_text("\n".join(["x_um,y_um,symbol,sec,depth", *rows]) + "\n")
    for name in names:
        tifffile.imwrite(folder / f"{name}.tif", np.full((64, 80), int(name[1:]), np.uint16))
    return folder


@pytest.mark.parametrize(
    ("options", "z_um"), [(["--z", "depth"], [0, 5, 20]), ([], [0, 10, 20]), (["--section-step", "25"], [0, 25, 50])]
)
def test_sections_of_one_table_come_by_z_or_by_number(tmp_path, options, z_um):
    folder = write_sections(tmp_path / "m")
    words = ("--section", "sec", "--images", "DAPI={section}.tif", "--image-um", 0.5, "--range", "DAPI=0:255", *options)
    assert cli("ingest", "table", folder, "--out", tmp_path / "b.zarr", *TB, *words) == 0
    brain = Brain.open(tmp_path / "b.zarr")
    assert [(section.name, section.z_um) for section in brain.sections] == list(
        zip(("s1", "s2", "s10"), z_um, strict=True)
    )
    image = brain.image(brain.canvas)[0]
    assert [set(np.unique(plane)) for plane in image] == [{1}, {2}, {10}]  # each with its own image


def test_folders_of_several_sections_may_not_interleave(tmp_path, capsys):
    """Two folders of two sections 100 um apart, the second 10 um below the first; 200 um make an order of them."""
    one, two = (BUILDERS["published"](tmp_path / name)[0].rename(tmp_path / f"{name}_brain") for name in ("p", "q"))
    out = tmp_path / "b.zarr"
    assert cli("ingest", "published", one, two, "--out", out) == 2
    assert "section q_brain_00 at z 10 um does not lie beyond section p_brain_01 at z 100 um" in capsys.readouterr().err
    assert cli("ingest", "published", one, two, "--out", out, "--section-um", 200) == 0
    assert [section.z_um for section in Brain.open(out).sections] == [0, 100, 200, 300]


def test_names_sort_by_their_numbers():
    names = ["region_10", "region_2", "2b", "region", "10a", "region_2_11", "region_2_9"]
    assert sorted(names, key=by_number) == ["2b", "10a", "region", "region_2", "region_2_9", "region_2_11", "region_10"]
