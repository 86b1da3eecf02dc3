"""`--check` passes exactly when `ingest` with the same options does."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from instruments import write_xenium
from instruments_more import write_table

from tera_mind.cli.main import main

TB = ("--x", "x_um", "--y", "y_um", "--gene", "symbol")


@pytest.fixture(autouse=True)
def _no_fsync(monkeypatch):
    """Stores that nobody keeps need not reach the disk."""
    monkeypatch.setattr("os.fsync", lambda _handle: None)


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Path:
    """fine and coarse pixels; far: 60 % beside the image; twice: two ids of one symbol; other: another gene."""
    root = tmp_path_factory.mktemp("in")
    write_table(root / "coarse")
    write_table(root / "fine", pixel_um=0.25)
    for name, changed in (("far", None), ("twice", ("Gad1", "ENSMUSG00000070880")), ("other", ("Aqp4", "Vip"))):
        shutil.copytree(root / "coarse", root / name)
        path = root / name / "spots.csv"
        frame = pd.read_csv(path)
        if changed is None:
            frame.loc[np.arange(len(frame)) % 5 < 3, "x_um"] += 1000
        else:
            frame["symbol"] = frame.symbol.replace(*changed)
        frame.to_csv(path, index=False)
    (root / "names.csv").write_text("ENSMUSG00000070880,Gad1\n")
    header = "section,section_id,z_um,a00,a01,a02,a10,a11,a12,source_unit,canvas_unit"
    rows = [f"{index},{name},{100 * index},1,0,0,0,1,0,um,um" for index, name in enumerate(("coarse", "fine"))]
    (root / "sections.csv").write_text("\n".join([header, *rows]) + "\n")
    shifted = [row.replace("1,0,0,0,1,0", "1,0,20,0,1,0") for row in rows]
    (root / "shifted.csv").write_text("\n".join([header, *shifted]) + "\n")
    return root


@pytest.mark.parametrize(
    ("names", "options", "passes"),
    [
        (["coarse", "fine"], [], False),
        (["coarse", "fine"], ["--pixel-um", "0.5"], True),
        (["coarse", "fine"], ["--sections", "sections.csv"], True),
        (["coarse", "fine"], ["--sections", "sections.csv", "--canvas-um", "9,9"], True),
        (["coarse", "fine"], ["--sections", "shifted.csv", "--canvas-um", "9,0.001"], False),
        (["coarse", "fine"], ["--pixel-um", "0.5", "--z-um", "3"], False),
        (["coarse", "far"], [], False),
        (["coarse", "far"], ["--max-outside", "0.7"], True),
        (["coarse"], ["--max-outside", "0"], True),
        (["far"], ["--max-outside", "0.55"], False),
        (["coarse", "twice"], [], False),
        (["coarse", "twice"], ["--gene-names", "names.csv"], True),
        (["coarse", "twice"], ["--gene-names", "none.csv"], False),
        (["coarse", "other"], [], False),
        (["coarse", "other"], ["--genes", "shared"], True),
        (["coarse", "other"], ["--genes", "all"], True),
        (["coarse", "other"], ["--drop-genes", "vip|aqp4"], True),
        (["coarse"], ["--drop-genes", ".*"], False),
        (["coarse"], ["--range", "GFP=0:9"], False),
    ],
)
def test_check_passes_when_ingest_does(folders, tmp_path, names, options, passes, monkeypatch, capsys):
    monkeypatch.chdir(folders)
    before = sorted(folders.rglob("*"))
    checked = main(["ingest", "table", *names, "--check", *TB, *options])
    report = capsys.readouterr().out
    assert sorted(folders.rglob("*")) == before
    made = main(["ingest", "table", *names, "--out", str(tmp_path / "b.zarr"), *TB, *options])
    assert (checked, made) == ((0, 0) if passes else (1, 2)), (report, capsys.readouterr().err)


def test_declared_features_that_become_one_gene_are_a_fault(tmp_path, capsys):
    folder = write_xenium(tmp_path / "s", genes=["Gad1"] * 600, panel=("Gad1", "ENSMUSG00000070880"))
    (tmp_path / "names.csv").write_text("ENSMUSG00000070880,Gad1\n")
    words = ["--gene-names", str(tmp_path / "names.csv")]
    assert main(["ingest", "xenium", str(folder), "--check", *words]) == 1
    assert "both become gene Gad1" in capsys.readouterr().out
    assert main(["ingest", "xenium", str(folder), "--check"]) == 0
