"""Names that differ by case alone are one gene in all sections of a brain, and that they were is said."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import tifffile

from tera_mind.cli.main import main
from tera_mind.formats.brain import Brain
from tera_mind.ingest.panel import SectionGenes, common_panel

TB = ("--x", "x_um", "--y", "y_um", "--gene", "symbol", "--image-um", 0.5)
ROWS = 60


@pytest.fixture(autouse=True)
def _no_fsync(monkeypatch):
    """Stores that nobody keeps need not reach the disk."""
    monkeypatch.setattr("os.fsync", lambda _handle: None)


def write(folder: Path, genes: Sequence[str]) -> Path:
    """The same 60 places in every folder, their genes in turns."""
    folder.mkdir()
    random = np.random.default_rng(0)
    lines = [
        f"{random.uniform(0, 40):.3f},{random.uniform(0, 32):.3f},{genes[row % len(genes)]}" for row in range(ROWS)
    ]
    (folder / "spots.csv").write_text("\n".join(["x_um,y_um,symbol", *lines]) + "\n")
    tifffile.imwrite(folder / "DAPI.tif", random.integers(100, 4000, (64, 80)).astype(np.uint16))
    return folder


def cli(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


@pytest.mark.parametrize("rule", ["same", "shared", "all"])
def test_sections_without_a_panel_share_the_first_spelling(tmp_path, rule, capsys):
    folders = [write(tmp_path / "c1", ["Gapdh", "Actb"]), write(tmp_path / "c2", ["GAPDH", "ACTB"])]
    out = tmp_path / "b.zarr"
    assert cli("ingest", "table", *folders, "--check", *TB, "--genes", rule) == 0
    assert cli("ingest", "table", *folders, "--out", out, *TB, "--genes", rule) == 0
    warnings = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
    assert len(warnings) == 1
    assert "section c2: 60 transcripts in 2 other spellings (ACTB, GAPDH) were added" in warnings[0]
    brain = Brain.open(out)
    assert brain.genes == ("Actb", "Gapdh")
    one, two = (brain.transcripts(section, brain.canvas) for section in (0, 1))
    for column in ("y", "x", "gene", "count"):
        np.testing.assert_array_equal(getattr(one, column), getattr(two, column))
    assert "genes_absent" not in brain.sections[1].source


def test_two_spellings_in_one_section_are_added_and_said(tmp_path, capsys):
    folder = write(tmp_path / "c3", ["Gapdh", "GAPDH", "Actb"])
    assert cli("ingest", "table", folder, "--check", *TB) == 0
    words = "20 transcripts in 1 other spelling (GAPDH) were added to genes that differ by case"
    assert f"repair: section c3: {words}" in capsys.readouterr().out
    assert cli("ingest", "table", folder, "--out", tmp_path / "b.zarr", *TB) == 0
    assert f"warning: section c3: {words}" in capsys.readouterr().err
    brain = Brain.open(tmp_path / "b.zarr")
    found = brain.transcripts(0, brain.canvas)
    assert brain.genes == ("Actb", "Gapdh")
    assert np.bincount(found.gene, found.count).tolist() == [20, 40]


def test_counts_of_spellings_are_added_before_panels_are_compared():
    """Apart, `a` and `A` would each be too rare in the second section to be missed."""
    one = SectionGenes("one", {"A": 1000, "b": 30, "B": 30}, None)
    assert common_panel([one, SectionGenes("two", {"a": 900, "B": 9}, None)], "shared") == ["A", "b"]
    assert common_panel([one, SectionGenes("two", {}, ("a", "B"))], "same") == ["A", "b"]
