"""The validator lists every fault with its place, and every repair with its count."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import tifffile
from instruments import write_merscope, write_xenium

from tera_mind.errors import MissingFileError
from tera_mind.ingest.check import check, read_sections
from tera_mind.ingest.faults import Faults, FaultsError
from tera_mind.ingest.merscope import MerscopeReader
from tera_mind.ingest.xenium import XeniumReader


def test_a_sound_folder_has_no_fault(tmp_path):
    folder = write_merscope(tmp_path / "r", manifest=True)
    report = check(MerscopeReader(), [folder])
    assert not report.faults
    assert report.kept == 450
    assert report.text().splitlines() == [
        "repair: section r: 150 transcripts left out: blank codeword, first in rows 4-4",
        "1 sections, 450 transcripts of genes in their images; 0 faults, 1 repairs",
    ]


def test_every_fault_of_every_folder(tmp_path):
    """Words in two columns, a broken line, a damaged mosaic, an empty one, a folder without a transform: one go."""
    one, two, three = (write_merscope(tmp_path / name) for name in ("one", "two", "three"))
    table = one / "detected_transcripts.csv"
    frame = pd.read_csv(table, dtype=str)
    frame.loc[11:14, "global_x"] = "left"
    frame.loc[300, "global_y"] = "far"
    frame.to_csv(table, index=False)
    lines = table.read_text().splitlines()
    lines[500] += ",surplus"
    table.write_text("\n".join(lines) + "\n")
    mosaic = two / "images" / "mosaic_PolyT_z1.tif"
    tifffile.imwrite(mosaic, tifffile.imread(mosaic), compression="zlib", rowsperstrip=10)
    data = bytearray(mosaic.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 50] = bytes(50)
    mosaic.write_bytes(bytes(data))
    for plane in (0, 1):
        tifffile.imwrite(two / "images" / f"mosaic_DAPI_z{plane}.tif", np.full((120, 140), 7, np.uint16))
    (three / "images" / "micron_to_mosaic_pixel_transform.csv").unlink()
    report = check(MerscopeReader(), [one, two, three])
    found = [(fault.file.name, fault.place) for fault in report.faults]
    assert found == [
        ("micron_to_mosaic_pixel_transform.csv", ""),
        ("detected_transcripts.csv", "section one, column global_x, rows 12-15"),
        ("detected_transcripts.csv", "section one, column global_y, row 301"),
        ("detected_transcripts.csv", "section one, line 501"),
        ("two", "section two, stain DAPI"),
        ("two", "section two, stain PolyT"),
    ]
    text = report.text()
    assert "4 values are no numbers, such as 'left'" in text
    assert "a line has 7 columns instead of 6" in text
    assert "every pixel is 7: the image is empty" in text
    assert "mosaic_PolyT_z1.tif" in text
    assert text.endswith("6 faults, 1 repairs")


def test_sections_that_do_not_fit_together(tmp_path):
    one = write_xenium(tmp_path / "one")
    twin = write_xenium(tmp_path / "deeper" / "one")
    coarse = write_xenium(tmp_path / "coarse", pixel_um=0.6)
    eight = write_xenium(tmp_path / "eight", image=np.random.default_rng(0).integers(0, 255, (200, 160), np.uint8))
    other = write_xenium(tmp_path / "other")
    (other / "morphology_focus").mkdir()
    for name in ("dapi", "18s"):
        pixels = np.arange(200 * 160, dtype=np.uint16).reshape(200, 160)
        tifffile.imwrite(other / "morphology_focus" / f"ch0000_{name}.ome.tif", pixels, metadata=None)
    report = check(XeniumReader(), [one, twin, coarse, eight, other])
    words = [fault.words for fault in report.faults]
    assert len(words) == 4
    assert words[0].startswith("its name came before")
    assert "its pixels are 0.6 um, those of section one 0.5 um; --pixel-um brings" in words[1]
    assert "DAPI is uint8, in section one uint16" in words[2]
    assert "it has stains 18S, DAPI, section one has DAPI" in words[3]


def test_rows_without_use(tmp_path):
    lost = write_xenium(tmp_path / "lost", x_um=np.linspace(500, 900, 60), y_um=np.linspace(0, 90, 60))
    bare = write_xenium(tmp_path / "bare", genes=["BLANK_1"] * 60, x_um=np.arange(60), y_um=np.arange(60))
    far = write_xenium(tmp_path / "far", x_um=[-5.0, *range(59)], y_um=np.arange(60), panel=("A", "B"))
    report = check(XeniumReader(), [lost, bare, far])
    assert [fault.place for fault in report.faults] == ["section lost", "section bare"]
    assert "100% of the transcripts of section lost lie outside its image" in report.faults[0].words
    assert "has no transcripts (60 blank codeword)" in report.faults[1].words
    lines = [repair.line for repair in report.repairs]
    assert "section far: 1 transcripts left out: outside the image" in lines
    assert "section far: 20 transcripts of 1 genes (C) are not in the declared panel and kept" in lines
    assert report.kept == 59


def test_reading_all_folders_raises_all_faults(tmp_path):
    good = write_xenium(tmp_path / "good")
    assert [section.z_um for section in read_sections(XeniumReader(), [good], [3.0])] == [3.0]
    with pytest.raises(MissingFileError, match="nothing is there"):  # a single fault stays what it is
        read_sections(XeniumReader(), [good, tmp_path / "no"], [0.0, 1.0])
    with pytest.raises(FaultsError) as caught:
        read_sections(XeniumReader(), [tmp_path / "no", good, tmp_path / "none"], [0.0, 1.0, 2.0])
    assert len(caught.value.lines) == 2


def test_a_damaged_parquet_names_its_rows(tmp_path):
    import pyarrow.parquet as pq

    folder = write_xenium(tmp_path / "s")
    path = folder / "transcripts.parquet"
    pq.write_table(pq.read_table(path), path, row_group_size=100)
    columns = pq.ParquetFile(path).metadata.row_group(2)
    place = next(columns.column(i) for i in range(4) if columns.column(i).path_in_schema == "x_location")
    data = bytearray(path.read_bytes())
    start = place.dictionary_page_offset or place.data_page_offset
    data[start : start + place.total_compressed_size] = bytes(place.total_compressed_size)
    path.write_bytes(bytes(data))
    (fault,) = check(XeniumReader(), [folder]).faults
    assert fault.place == "section s, column x_location, rows 201-300"


def test_collected_faults(tmp_path):
    faults = Faults()
    faults.raise_any()
    faults.add(tmp_path / "a.csv", "rows 3-4", "two\nlines")
    faults.add(tmp_path / "a.csv", "rows 3-4", "two\nlines")
    with faults.catching(tmp_path / "b", "column x"):
        raise MissingFileError("it is not there")
    with pytest.raises(ZeroDivisionError), faults.catching(tmp_path):
        1 / 0  # noqa: B018
    assert [fault.line for fault in faults] == [
        f"{tmp_path}/a.csv, rows 3-4: two lines", f"{tmp_path}/b, column x: it is not there",
    ]  # fmt: skip
    with pytest.raises(FaultsError):
        faults.raise_any()
