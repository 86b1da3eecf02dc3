"""CosMx: fields of view of every version of the export come together as the slide they were cut from."""

from __future__ import annotations

import pickle
import re
import shutil

import numpy as np
import pytest
import tifffile
from instruments_more import COSMX_UM, dropped, read_all, same_images, same_transcripts, write_cosmx

from tera_mind.errors import FormatError, InputError, MissingFileError, TeraMindError
from tera_mind.geometry import Box
from tera_mind.ingest import tiff
from tera_mind.ingest.cosmx import CosMxReader

READER = CosMxReader(fov_pixel_um=COSMX_UM)


@pytest.mark.parametrize(
    "how", [{}, {"older": True}, {"millimetres": True}, {"zipped": True}, {"gap": True, "older": True}], ids=str
)
def test_fovs_become_the_slide_they_were_cut_from(tmp_path, how):
    truth = write_cosmx(tmp_path / "slide", **how)
    (section,) = pickle.loads(pickle.dumps(READER.sections(tmp_path / "slide", 30.0)))
    assert (section.name, section.z_um) == ("slide", 30.0)
    assert [stain.name for stain in section.stains] == ["rRNA", "DAPI"]
    assert section.panel == ("Gad1", "Slc17a7", "Aqp4", "Vip")
    assert section.provenance["y_local"] == ("up" if how.get("older") else "down")
    same_images(section, truth)
    same_transcripts(section, truth, within_um=2e-4 * COSMX_UM + 1e-3)
    notices = ["1 of 4 FOVs: FOV 4 has a position and no image; left out"] if "gap" in how else []
    assert section.provenance.get("notices", []) == notices
    lost = dropped(section)
    assert {"negative control", "blank codeword", "system control"} <= set(lost)
    assert ("field of view without image or position" in lost) == ("gap" in how)
    # and a transcript lies on its bright pixel
    batch = next(iter(section.batches()))
    for image in section.stains:
        x, y, _ = image.um_to_px @ np.stack([batch.x_um, batch.y_um, np.ones_like(batch.x_um)])
        picture = image.plane.read(Box(0, 80, 0, 96))
        assert (picture[np.floor(y + 1e-4).astype(int), np.floor(x + 1e-4).astype(int)] >= 3000).mean() > 0.98


def test_a_window_opens_only_the_fovs_it_touches(tmp_path, monkeypatch):
    write_cosmx(tmp_path / "slide")
    (section,) = READER.sections(tmp_path / "slide", 0.0)
    opened = []
    original = tiff.TiffPlane.read
    monkeypatch.setattr(
        tiff.TiffPlane, "read", lambda plane, box: (opened.append(plane.path.name), original(plane, box))[1]
    )
    section.stains[0].plane.read(Box(5, 35, 50, 90))
    assert [re.search(r"F(\d+)", name)[1] for name in opened] == ["00002"]


def test_turned_images_and_names_of_channels(tmp_path):
    truth = write_cosmx(tmp_path / "slide")
    for path in (tmp_path / "slide" / "CellStatsDir" / "Morphology2D").iterdir():
        tifffile.imwrite(path, np.rot90(tifffile.imread(path), 2, axes=(1, 2)), photometric="minisblack")
    reader = CosMxReader(fov_pixel_um=COSMX_UM, turned=True, channels=("rRNA", "DAPI"), stains=("dapi",))
    (section,) = reader.sections(tmp_path / "slide", 0.0)
    assert [stain.name for stain in section.stains] == ["DAPI"]
    same_images(section, truth)


def test_way_of_local_y_can_be_said(tmp_path):
    truth = write_cosmx(tmp_path / "slide", older=True)
    table = tmp_path / "slide" / "S1_tx_file.csv"
    rows = [line.split(",") for line in table.read_text().splitlines()]
    table.write_text("\n".join(",".join(row[:4] + row[6:]) for row in rows))
    with pytest.raises(InputError, match="which way y_local_px counts"):
        READER.sections(tmp_path / "slide", 0.0)
    (section,) = CosMxReader(fov_pixel_um=COSMX_UM, y_local="up").sections(tmp_path / "slide", 0.0)
    same_transcripts(section, truth, within_um=2e-4)


def _edited(name, change):
    def apply(folder):
        path = folder / f"S1_{name}_file.csv"
        path.write_text(change(path.read_text()))

    return apply


def _positions(old, new):
    return _edited("fov_positions", lambda text: text.replace(old, new))


def _other_numbers(text):
    header, *lines = text.splitlines()
    numbered = [f"{number},{line.split(',', 1)[1]}" for number, line in zip("4321", lines, strict=True)]
    return "\n".join([header, *numbered])


def _two_slides(folder):
    shutil.copy(folder / "S1_tx_file.csv", folder / "S2_tx_file.csv")


@pytest.mark.parametrize(
    ("damage", "kind", "words"),
    [
        (_edited("fov_positions", _other_numbers), FormatError, "px from where the positions file puts it"),
        (_positions("x_global_px", "left"), FormatError, "should have columns FOV and"),
        (_edited("fov_positions", lambda text: text + "2,1,1\n"), FormatError, "FOV 2 has two positions"),
        (_positions("51000.0", "x"), FormatError, "row 1: expected numbers"),
        (_positions("51000.0", "nan"), FormatError, "finite numbers"),
        (_positions("51000.0", "-9e9"), InputError, "px apart"),
        (_edited("tx", lambda text: text.replace("target", "gene")), FormatError, "lacks columns target"),
        (lambda folder: (folder / "S1_tx_file.csv").unlink(), MissingFileError, "expected one"),
        (_two_slides, InputError, "a folder is one slide"),
        (lambda folder: shutil.rmtree(folder / "CellStatsDir"), MissingFileError, "a TIFF a field of view"),
    ],
)
def test_damage_is_told_in_one_line(tmp_path, damage, kind, words):
    write_cosmx(tmp_path / "slide")
    damage(tmp_path / "slide")
    with pytest.raises(TeraMindError, match=words) as caught:
        read_all(READER, tmp_path / "slide")
    assert isinstance(caught.value, kind)
    assert "\n" not in str(caught.value)
