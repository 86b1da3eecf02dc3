"""ABBA's files into sections.csv: affines multiplied in ABBA's order, splines refused, faults listed, one command."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from instruments import PIXEL_UM, write_xenium

from tera_mind.cli import sections
from tera_mind.cli.main import main
from tera_mind.errors import InputError, MissingFileError, TeraMindError
from tera_mind.ingest.abba import import_abba
from tera_mind.ingest.faults import FaultsError
from tera_mind.ingest.placing import place
from tera_mind.ingest.sections_table import SectionsTable
from tera_mind.ingest.xenium import XeniumReader

ATLAS = "allen_mouse_10um_java"
#: an atlas of 13.2 x 8 x 11.4 mm with axes front to back, top to bottom, left to right; slicing along the first
TO_SLICES = np.array([[0, 0, 1, -5.7], [0, 1, 0, -4.0], [1, 0, 0, 0], [0, 0, 0, 1.0]])


def turned(degrees: float, scale: float, x_mm: float, y_mm: float) -> np.ndarray:
    cos, sin = scale * np.cos(np.deg2rad(degrees)), scale * np.sin(np.deg2rad(degrees))
    return np.array([[cos, -sin, 0, x_mm], [sin, cos, 0, y_mm], [0, 0, 1, 0], [0, 0, 0, 1.0]])


def to_pixels(z_mm: float, pixel_um: float = PIXEL_UM) -> np.ndarray:
    """From a slice in mm to pixels of its image, whose corner lies at (-0.05, -0.04) mm; the slice becomes z = 0."""
    scale = 1000 / pixel_um
    return np.array([[scale, 0, 0, 0.05 * scale], [0, scale, 0, 0.04 * scale], [0, 0, 1, -z_mm], [0, 0, 0, 1]])


def simple(matrix: np.ndarray) -> dict:
    return {"type": "AffineTransform3D", "affinetransform3d": matrix[:3].ravel().tolist()}


def sequence(*transforms: dict) -> dict:
    named = {f"realTransform_{index}": transform for index, transform in enumerate(transforms)}
    return {"type": "InvertibleRealTransformSequence", "size": len(transforms), **named}


SPLINE = {"type": "ThinplateSplineTransform", "srcPts": [[0, 1, 2], [0, 1, 0]], "tgtPts": [[0, 1, 2], [0, 1.1, 0]]}
WRAPPED = {
    "type": "Wrapped2DTransformAs3D",
    "wrappedTransform": {"type": "WrappedIterativeInvertibleRealTransform", "wrappedTransform": SPLINE},
}


def export(folder: Path, name: str, transform: object, atlas: str = ATLAS) -> Path:
    path = folder / name / f"ABBA-Transform-{atlas}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(transform if isinstance(transform, str) else json.dumps(transform))
    return path


def test_affines_are_followed_point_by_point(tmp_path):
    """Atlas points, taken through ABBA's transforms one after the other, end at the pixels that the table maps back."""
    matrices = {}
    for name, z_mm, degrees in (("late", 6.2, -7.0), ("early", 5.0, 11.0)):
        matrices[name] = [TO_SLICES, turned(degrees, 1.04, 0.3, -0.2), turned(2, 0.99, 0, 0.1), to_pixels(z_mm)]
        first, second, third, last = map(simple, matrices[name])
        bounded = {"type": "BoundedRealTransform", "realTransform": third, "interval_min": [0], "interval_max": [1]}
        export(tmp_path, name, sequence(first, sequence(second, bounded), last))
    imported = import_abba(tmp_path, tmp_path / "sections.csv")
    assert imported.axes == (2, 1, 0)
    assert [row.section_id for row in imported.table.rows] == ["early", "late"]
    assert [row.z_um for row in imported.table.rows] == pytest.approx([5000, 6200])
    imported.table.write()
    for row in SectionsTable.read(tmp_path / "sections.csv").rows:
        assert (row.source_unit, row.canvas_unit) == ("px", "um")
        for y_mm, x_mm in [(4.0, 5.7), (3.1, 6.9), (5.5, 5.0)]:
            at = np.array([row.z_um / 1000, y_mm, x_mm, 1])
            for matrix in matrices[row.section_id]:
                at = matrix @ at
            assert at[2] == pytest.approx(0, abs=1e-9)
            # a pixel's centre has whole numbers in ABBA and halves here
            back = row.affine @ np.array([at[0] + 0.5, at[1] + 0.5, 1])
            np.testing.assert_allclose(back[:2], [1000 * x_mm, 1000 * y_mm], atol=1e-6)


def test_an_oblique_cut_is_projected_onto_the_atlas(tmp_path):
    tilted = TO_SLICES.copy()
    tilted[2, :3] = [1, 0.2, -0.05]  # z of the slices grows with the atlas' y: the cut is not coronal
    for name, z_mm in (("a", 5.0), ("b", 5.4)):
        export(tmp_path, name, sequence(simple(tilted), simple(to_pixels(z_mm))))
    first, second = import_abba(tmp_path, tmp_path / "t.csv").table.rows
    assert second.z_um - first.z_um == pytest.approx(400)
    px = to_pixels(5.0) @ tilted @ np.array([5 - 0.2 * 3 + 0.05 * 6, 3, 6, 1])  # the point of the cut at y 3, x 6 mm
    assert px[2] == pytest.approx(0)
    np.testing.assert_allclose(first.affine @ [px[0] + 0.5, px[1] + 0.5, 1], [6000, 3000, 1])


def test_splines_need_a_field(tmp_path):
    for name, z_mm in (("plain", 5.0), ("bent", 5.2)):
        spline = [WRAPPED] if name == "bent" else []
        export(tmp_path / "abba", name, sequence(simple(TO_SLICES), *spline, simple(to_pixels(z_mm))))
    with pytest.raises(InputError, match=r"holds 1 spline\(s\), .*field named bent\.npy .*--displacements"):
        import_abba(tmp_path / "abba", tmp_path / "t.csv")
    (tmp_path / "fields").mkdir()
    np.save(tmp_path / "fields" / "bent.npy", np.zeros((2, 40, 57), np.float32))
    table = import_abba(tmp_path / "abba", tmp_path / "t.csv", displacements=tmp_path / "fields").table
    table.write()
    plain, bent = SectionsTable.read(tmp_path / "t.csv").rows
    assert plain.displacement is None
    assert bent.displacement.resolve() == tmp_path / "fields" / "bent.npy"
    np.testing.assert_allclose(plain.affine, bent.affine)


FAULTS = {
    "no JSON": ("{", "cannot be read as JSON"),
    "a list": ("[1, 2]", "no transform as ABBA writes it"),
    "unknown type": (sequence({"type": "BSpline"}), "unknown type 'BSpline'"),
    "short": (sequence(simple(TO_SLICES)) | {"size": 3}, "no transform as ABBA writes it"),
    "eleven numbers": (sequence({"affinetransform3d": [1.0] * 11}), "12 finite numbers"),
    "words": (sequence({"affinetransform3d": ["a"] * 12}), "no transform as ABBA writes it"),
    "not finite": (sequence({"affinetransform3d": [float("nan")] * 12}), "12 finite numbers"),
    "flat": (sequence(simple(np.diag([1.0, 0, 1, 1]))), "cannot be inverted"),
    "all zero": (sequence(simple(np.zeros((4, 4)))), "cannot be inverted"),
    "in um": (sequence(simple(TO_SLICES), simple(to_pixels(5.0, 5e5))), "is the atlas in mm?"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_file_that_abba_did_not_write(tmp_path, fault):
    text, words = FAULTS[fault]
    export(tmp_path, "s", text)
    with pytest.raises(TeraMindError) as caught:
        import_abba(tmp_path, tmp_path / "t.csv")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_all_faults_come_together(tmp_path):
    for name, fault in (("a", "no JSON"), ("b", "flat"), ("c", "unknown type")):
        export(tmp_path, name, FAULTS[fault][0])
    with pytest.raises(FaultsError) as caught:
        import_abba(tmp_path, tmp_path / "t.csv")
    assert len(caught.value.lines) == 3


def test_folders(tmp_path):
    with pytest.raises(MissingFileError, match="nothing is there"):
        import_abba(tmp_path / "no", tmp_path / "t.csv")
    with pytest.raises(MissingFileError, match="found none"):
        import_abba(tmp_path, tmp_path / "t.csv")
    good = sequence(simple(TO_SLICES), simple(to_pixels(5.0)))
    export(tmp_path, "a", good)
    export(tmp_path, "b", good)
    with pytest.raises(InputError, match=r"sections a and b.*same place in z"):
        import_abba(tmp_path, tmp_path / "t.csv")
    export(tmp_path, "b", sequence(simple(TO_SLICES), simple(to_pixels(6.0))))
    export(tmp_path, "b", good, atlas="other")
    with pytest.raises(InputError, match=f"atlases {ATLAS}, other: choose one with --atlas"):
        import_abba(tmp_path, tmp_path / "t.csv")
    assert len(import_abba(tmp_path, tmp_path / "t.csv", atlas=ATLAS).table.rows) == 2
    with pytest.raises(InputError, match="not of third"):
        import_abba(tmp_path, tmp_path / "t.csv", atlas="third")


def test_a_qupath_project_gives_the_names_and_ingest_takes_the_table(tmp_path, capsys):
    project = tmp_path / "project"
    images = []
    for entry, name in enumerate(["front", "back"], start=3):
        export(project / "data", str(entry), sequence(simple(TO_SLICES), simple(to_pixels(entry + 0.5))))
        images.append({"entryID": entry, "imageName": name})
    (project / "project.qpproj").write_text(json.dumps({"version": "0.4.3", "images": images}))
    out = tmp_path / "sections.csv"
    assert sections.run([str(project), "--out", str(out)]) == 0
    assert "2 sections, z 3500 to 4500 um" in capsys.readouterr().out
    with pytest.raises(InputError, match="already there"):
        sections.run([str(project), "--out", str(out)])
    sources = [s for name in ("back", "front") for s in XeniumReader().sections(write_xenium(tmp_path / name), 0.0)]
    canvas = place(sources, table=SectionsTable.read(out), canvas_um=(4100.0, 5800.0), pixel_um=2.0)
    assert [placed.source.name for placed in canvas.sections] == ["front", "back"]
    assert [placed.source.z_um for placed in canvas.sections] == pytest.approx([3500, 4500])
    # the image's corner lies at 5.7 - 0.05 and 4 - 0.04 mm of the atlas, less half a pixel
    y, x = canvas.sections[0].registration.positions(np.zeros(1), np.zeros(1))
    assert (2 * y[0], 2 * x[0]) == pytest.approx((3960 - PIXEL_UM / 2, 5650 - PIXEL_UM / 2))


def test_help(capsys):
    with pytest.raises(SystemExit):
        sections.run(["--help"])
    assert "tera-mind sections abba_export --out sections.csv" in capsys.readouterr().out
    assert main(["no-such"]) == 2
