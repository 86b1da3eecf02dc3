"""sections.csv: every fault with its row and column, sections where it says, canvases and missing sections as asked."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from instruments import PIXEL_UM, write_xenium

from tera_mind.cli.main import main
from tera_mind.errors import FormatError, InputError, MissingFileError
from tera_mind.formats.brain import Brain
from tera_mind.ingest.faults import FaultsError
from tera_mind.ingest.placing import place
from tera_mind.ingest.sections_table import COLUMNS, SectionsTable
from tera_mind.ingest.source import SectionSource
from tera_mind.ingest.xenium import XeniumReader

IDENTITY = (1, 0, 0, 0, 1, 0)


def write_table(path: Path, *rows: dict[str, object]) -> Path:
    """Rows have defaults: the identity from um to um, 10 um apart."""
    names = [*COLUMNS, "displacement"]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        for index, row in enumerate(rows):
            default = dict(zip(COLUMNS, [index, "s", 10.0 * index, *IDENTITY, "um", "um"], strict=True))
            writer.writerow(default | row)
    return path


def affine(*numbers: float) -> dict[str, object]:
    return dict(zip(COLUMNS[3:9], numbers, strict=True))


def sources(folder: Path, *names: str) -> list[SectionSource]:
    return [source for name in names for source in XeniumReader().sections(write_xenium(folder / name), 0.0)]


# reading


def test_every_fault_comes_with_its_row_and_column(tmp_path):
    path = write_table(
        tmp_path / "sections.csv",
        {"section_id": "a"},
        {"section_id": "b", "z_um": "ten", "a11": "nan", "source_unit": "mm"},
        {"section_id": "a", **affine(1, 2, 0, 2, 4, 0)},
        {"section_id": "d", **affine(1000, 0, 0, 0, 1000, 0)},
        {"section_id": "e", **affine(1, 0, 0, 0, 3, 0)},
        {"section_id": "", "z_um": 5},
        {"section_id": "g", "displacement": "gone.npy"},
        {"section_id": "a", "section": 0, "z_um": -3, "canvas_unit": "px"},
    )
    with pytest.raises(FaultsError) as caught:
        SectionsTable.read(path)
    lines = caught.value.lines
    expected = [
        "row 3, column z_um: should be a finite number, got 'ten'",
        "row 3, column a11: should be a finite number, got 'nan'",
        "row 3, column source_unit: should be um or px, got 'mm'",
        "row 4, columns a00 to a12: the affine of 'a' cannot be inverted",
        "row 5, columns a00 to a12: the affine of 'd' scales by 1e+03, expected 0.5 to 2: check source_unit",
        "row 6, columns a00 to a12: the affine of 'e' stretches one direction 3 times as much",
        "row 7, column section_id: is empty",
        "row 8, column displacement: expected a field at",
        "row 9, column section: '0' stands in row 2 already",
        "row 9, column section_id: 'a' stands in row 2 already",
        "row 9, column z_um: -3 does not lie beyond 0 of row 2",
        "row 9, column canvas_unit: px differs from um of row 2",
    ]
    assert len(lines) == len(expected)
    for line, words in zip(lines, expected, strict=True):
        assert words in line, line
        assert "sections.csv" in line


TABLES = {
    "nothing": (None, MissingFileError, "expected a table of sections"),
    "empty": ("", FormatError, "lacks columns section, section_id"),
    "header alone": (",".join(COLUMNS) + "\n", InputError, "has no rows"),
    "columns missing": ("section,section_id,z_um,a00\n", FormatError, "lacks columns a01, a02"),
    "column twice": (",".join([*COLUMNS, "z_um"]) + "\n1\n", FormatError, "columns z_um more than once"),
    "torn row": (",".join(COLUMNS) + "\n0,s,0,1,0\n", InputError, "row 2: ends before column a02"),
    "open quote": (",".join(COLUMNS) + '\n"0,s,0,1,0\n', FormatError, "cannot be read as CSV"),
    "no text": (b"\xff\xfe\x00\x01", FormatError, "cannot be read as CSV"),
}


@pytest.mark.parametrize("fault", TABLES)
def test_a_file_that_is_no_table(tmp_path, fault):
    text, kind, words = TABLES[fault]
    path = tmp_path / "sections.csv"
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(kind) as caught:
        SectionsTable.read(path)
    assert words in str(caught.value)


def test_a_table_survives_writing(tmp_path):
    (tmp_path / "fields").mkdir()
    np.save(tmp_path / "fields" / "f.npy", np.zeros((2, 3, 4), np.float32))
    table = SectionsTable.read(
        write_table(
            tmp_path / "sections.csv",
            {"section_id": "a", "displacement": "fields/f.npy", **affine(0.1, -0.9, 1 / 3, 1.1, 0.2, 1e5 / 7)},
            {"section_id": "b", "source_unit": "px"},
        )
    )
    (tmp_path / "copy").mkdir()
    copy = SectionsTable(tmp_path / "copy" / "sections.csv", table.rows)
    copy.write()
    again = SectionsTable.read(copy.path)
    for one, two in zip(table.rows, again.rows, strict=True):
        np.testing.assert_array_equal(one.affine, two.affine)
        assert (one.section_id, one.z_um, one.source_unit) == (two.section_id, two.z_um, two.source_unit)
    assert again.rows[0].displacement.resolve() == tmp_path / "fields" / "f.npy"


# placing


@pytest.mark.parametrize("source_unit", ["um", "px"])
@pytest.mark.parametrize("canvas_unit", ["um", "px"])
@pytest.mark.parametrize("pixel_um", [None, 1.25])
def test_units(tmp_path, source_unit, canvas_unit, pixel_um):
    """The same turn and shift of (30, 20) um, in any units and at any pixel size, is the same map."""
    turn = np.array([[0.8, -0.6, 30 + 40], [0.6, 0.8, 20], [0, 0, 1.0]])
    px = np.diag([PIXEL_UM, PIXEL_UM, 1.0])
    given = turn @ px if source_unit == "px" else turn
    given = np.linalg.inv(px) @ given if canvas_unit == "px" else given
    row = {"source_unit": source_unit, "canvas_unit": canvas_unit, **affine(*given[:2].ravel())}
    table = SectionsTable.read(write_table(tmp_path / "t.csv", row))
    canvas = place(sources(tmp_path, "s"), pixel_um=pixel_um, table=table)
    assert canvas.pixel_um == (pixel_um or PIXEL_UM)
    expected = turn @ np.array([[0, 50], [0, 60], [1, 1.0]])
    y, x = canvas.sections[0].registration.positions(np.array([0.0, 50]), np.array([0.0, 60]))
    np.testing.assert_allclose(np.stack([x, y]) * canvas.pixel_um, expected[:2])
    # 80 x 100 um turned: from x = 70 - 60 to 70 + 64, from y = 20 to 20 + 80 + 48
    assert canvas.shape == (int(np.ceil(148 / canvas.pixel_um)), int(np.ceil(134 / canvas.pixel_um)))
    assert canvas.notes == ()


def test_sections_left_of_the_corner_move_the_canvas(tmp_path):
    table = SectionsTable.read(
        write_table(
            tmp_path / "t.csv",
            {"section_id": "a", **affine(1, 0, -10, 0, 1, 5)},
            {"section_id": "b", **affine(-1, 0, 90, 0, 1, -4)},
        )
    )
    canvas = place(sources(tmp_path, "b", "a"), table=table)
    assert [placed.source.name for placed in canvas.sections] == ["a", "b"]
    assert [placed.source.z_um for placed in canvas.sections] == [0, 10]
    # x -10 .. 90 um, y -4 .. 105 um in pixels of 0.5 um
    assert canvas.shape == (218, 200)
    assert "corner lies at y -8, x -20 px" in canvas.notes[0]
    assert "mirrors 1 section(s): b" in canvas.notes[1]
    for placed, corner in zip(canvas.sections, [(18, 0), (0, 200)], strict=True):
        y, x = placed.registration.positions(np.zeros(1), np.zeros(1))
        assert (y[0], x[0]) == corner


def test_a_given_canvas_cuts_and_counts(tmp_path, capsys):
    folder = write_xenium(tmp_path / "s")
    out = tmp_path / "b.zarr"
    assert main(["ingest", "xenium", str(folder), "--out", str(out), "--canvas-um", "60,80"]) == 0
    brain = Brain.open(out)
    assert brain.shape[2:] == (120, 160)
    errors = capsys.readouterr().err
    assert "about 39.4% of its image lies beyond the canvas" in errors  # of the probes; 40 % of the area
    cut = brain.sections[0].dropped["outside the canvas"]
    assert f"{cut} transcripts of section s lie beyond the canvas" in errors
    assert cut + brain.sections[0].transcripts == 600
    assert 200 < cut < 280
    table = write_table(tmp_path / "t.csv", affine(1, 0, 500, 0, 1, 0))
    arguments = ["ingest", "xenium", folder, "--out", out, "--canvas-um", "60,80", "--sections", table, "--overwrite"]
    assert main([str(argument) for argument in arguments]) == 2
    assert "section s lies outside the canvas of 120 x 160 px, at y 0..200, x 1000..1160" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([{"section_id": "a"}], "has no row for b; its sections are a"),
        ([{"section_id": "x"}, {"section_id": "y"}], "has no row for a, b"),
        ([{"section_id": "a"}, {"section_id": "b"}, {"section_id": "c"}], "1 of 3 sections of"),
        ([{"section_id": name, **affine(0.3, 0, 0, 0, 0.3, 0), "canvas_unit": "px"} for name in "ab"], "scales by"),
        ([{"section_id": "a", **affine(1, 0, 1e9, 0, 1, 0)}, {"section_id": "b"}], "the canvas would be"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(tmp_path, rows, words):
    with pytest.raises(InputError) as caught:
        place(sources(tmp_path, "a", "b"), table=SectionsTable.read(write_table(tmp_path / "t.csv", *rows)))
    assert words in str(caught.value)


def test_names_may_stand_in_either_column(tmp_path):
    """Numbers as section_id, as the simulator writes them, leave the name to `section`."""
    table = write_table(tmp_path / "t.csv", {"section": "a", "section_id": 0}, {"section": "b", "section_id": 1})
    canvas = place(sources(tmp_path, "a", "b"), table=SectionsTable.read(table))
    assert [placed.source.name for placed in canvas.sections] == ["a", "b"]


def test_missing_sections_stay_empty_if_wanted(tmp_path, capsys):
    table = write_table(tmp_path / "t.csv", *({"section_id": name} for name in "abc"))
    folders = [str(write_xenium(tmp_path / name)) for name in "ac"]
    out = str(tmp_path / "b.zarr")
    arguments = ["ingest", "xenium", *folders, "--out", out, "--sections", str(table)]
    assert main(arguments) == 2
    assert "1 of 3 sections" in (error := capsys.readouterr().err)
    assert "(b)" in error
    assert main([*arguments, "--missing", "empty"]) == 0
    assert "1 section(s) of t.csv have no folder and stay empty: b" in capsys.readouterr().err
    brain = Brain.open(out)
    assert [section.name for section in brain.sections] == ["a", "b", "c"]
    assert [section.z_um for section in brain.sections] == [0, 10, 20]
    assert [section.transcripts for section in brain.sections] == [600, 0, 600]
    assert brain.sections[1].source["missing"]
    assert not brain.image(brain.canvas)[:, 1].any()
    assert brain.image(brain.canvas)[:, 2].any()
    assert not brain.tissue(1).any()
    assert not len(brain.transcripts(1, brain.canvas))


def test_a_field_needs_the_canvas_it_was_made_for(tmp_path):
    np.save(tmp_path / "f.npy", np.full((2, 10, 8), 3, np.float32))
    row = {"section_id": "s", "displacement": "f.npy"}
    table = SectionsTable.read(write_table(tmp_path / "t.csv", row))
    with pytest.raises(InputError, match=r"--canvas-um HEIGHT,WIDTH \(or --canvas-px\) says how large"):
        place(sources(tmp_path, "s"), table=table)
    with pytest.raises(InputError, match=r"expected \(2, 200 / s, 100 / s\)"):
        place(sources(tmp_path, "s"), table=table, canvas_um=(100.0, 50.0))
    assert place(sources(tmp_path, "s"), table=table, canvas_px=(200, 160)).shape == (200, 160)
    canvas = place(sources(tmp_path, "s"), table=table, canvas_um=(100.0, 80.0), pixel_um=0.25)
    y, x = canvas.sections[0].registration.positions(np.array([10.0]), np.array([20.0]))
    assert (y[0], x[0]) == (23 / 0.25, 13 / 0.25)  # the field is in the canvas' unit, um
    assert json.dumps(canvas.sections[0].source.provenance["registration"]).count("f.npy") == 1
