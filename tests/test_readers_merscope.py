"""MERSCOPE: z planes, ways of storing mosaics, tables, and the manifest against transform and mosaics."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pandas as pd
import pytest
import tifffile
from instruments import write_merscope
from instruments_more import dropped, found

from tera_mind.errors import FormatError, InputError
from tera_mind.geometry import Box
from tera_mind.ingest.faults import FaultsError
from tera_mind.ingest.merscope import MerscopeReader
from tera_mind.ingest.tiff import MaxPlane, TiffPlane

WHOLE = Box(0, 120, 0, 140)


def change(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize(
    "way",
    [
        {},
        {"rowsperstrip": 11},
        {"bigtiff": True, "byteorder": ">"},
        {"tile": (32, 48), "compression": "lzw", "predictor": True},
        {"compression": "zlib", "rowsperstrip": 9},
        {"tile": (64, 64), "compression": "jpeg2000", "bigtiff": True},
        {"compression": "zstd", "tile": (16, 16)},
    ],
)
def test_mosaics_of_every_kind_are_read_by_windows(tmp_path, way):
    folder = write_merscope(tmp_path / "r", planes=(0, 3))
    images = {}
    for path in sorted((folder / "images").glob("*.tif")):
        images[path.name] = tifffile.imread(path)
        tifffile.imwrite(path, images[path.name], **way)
    (section,) = MerscopeReader().sections(folder, 0.0)
    for stain in section.stains:
        brightest = np.maximum(images[f"mosaic_{stain.name}_z0.tif"], images[f"mosaic_{stain.name}_z3.tif"])
        for box in WHOLE.tiles(47, 53):
            np.testing.assert_array_equal(stain.plane.read(box), brightest[box.slices()])


def test_a_plane_that_a_stain_lacks_is_left_out_and_said(tmp_path):
    folder = write_merscope(tmp_path / "r", planes=(0, 1, 2), manifest=True)
    (folder / "images" / "mosaic_PolyT_z1.tif").unlink()
    for planes, expected in (("max", [[0, 2]]), ("each", [[0], [2]]), ("2", [[2]])):
        sections = MerscopeReader(planes=planes).sections(folder, 0.0)
        assert [section.provenance["planes"] for section in sections] == expected
        assert sections[0].provenance["notices"] == [
            "DAPI: z planes [1] are not in every stain and left out",
            "manifest.json lists 1 mosaics that are not there, the first is mosaic_PolyT_z1.tif",
        ]
    (only,) = MerscopeReader(stains=("DAPI",)).sections(folder, 0.0)
    assert only.provenance["planes"] == [0, 1, 2]
    with pytest.raises(InputError, match=r"has planes \[0, 2\] in every chosen stain, asked for 1"):
        MerscopeReader(planes="1").sections(folder, 0.0)


def test_a_parquet_table_is_the_same_as_the_csv(tmp_path):
    folder = write_merscope(tmp_path / "r")
    (as_csv,) = MerscopeReader().sections(folder, 0.0)
    rows = found(as_csv)
    pd.read_csv(folder / "detected_transcripts.csv").to_parquet(folder / "detected_transcripts.parquet")
    (chosen,) = MerscopeReader(transcripts="detected_transcripts.parquet").sections(folder, 0.0)
    (folder / "detected_transcripts.csv").unlink()
    (beside,) = MerscopeReader().sections(folder, 0.0)
    assert rows == found(chosen) == found(beside)
    assert dropped(beside) == {"blank codeword": 150}


def test_dropped_rows_say_where_they_are(tmp_path):
    folder = write_merscope(tmp_path / "r", genes=("A", "B"))
    table = pd.read_csv(folder / "detected_transcripts.csv", index_col=0)
    table.loc[9:12, "global_x"] = np.nan
    table.loc[20, "global_y"] = -np.inf
    table.loc[30:31, "global_y"] = 1e300
    table.loc[40, "gene"] = ""
    table.to_csv(folder / "detected_transcripts.csv")
    (section,) = MerscopeReader().sections(folder, 0.0)
    (batch,) = section.batches()
    assert batch.dropped == {"no position": 5, "position beyond 10 m": 2, "no gene name": 1}
    assert batch.spans == {"no position": (10, 13), "position beyond 10 m": (31, 32), "no gene name": (41, 41)}
    assert len(batch.gene) + sum(batch.dropped.values()) == 600


def test_sections_travel_to_other_processes(tmp_path):
    folder = write_merscope(tmp_path / "r")
    for section in MerscopeReader(planes="each").sections(folder, 0.0):
        copy = pickle.loads(pickle.dumps(section))
        assert found(copy) == found(section)
        for one, other in zip(copy.stains, section.stains, strict=True):
            np.testing.assert_array_equal(one.plane.read(WHOLE), other.plane.read(WHOLE))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"microns_per_pixel": 0.2}, "says 0.2 um a pixel, the transform 0.107991"),
        ({"mosaic_width_pixels": 139}, r"says mosaics of \(120, 139\) px, the TIFFs have \(120, 140\)"),
        ({"bbox_microns": [0, 0, 15.1, 13.0]}, "puts the mosaic's corners 30 px away"),
        ({"bbox_microns": [0, 0, 15.1]}, "is no manifest of mosaics.*not enough values to unpack"),
        ({"microns_per_pixel": 108}, "are its units microns"),
        ({"mosaic_files": [{"z": 1}]}, "no 'file_name'"),
    ],
)
def test_a_manifest_that_contradicts(tmp_path, values, words):
    folder = write_merscope(tmp_path / "r", manifest=True)
    MerscopeReader().sections(folder, 0.0)
    change(folder / "images" / "manifest.json", **values)
    with pytest.raises((FormatError, InputError), match=words):
        MerscopeReader().sections(folder, 0.0)


def test_all_faults_of_a_folder_come_at_once(tmp_path):
    folder = write_merscope(tmp_path / "r", manifest=True)
    (folder / "images" / "micron_to_mosaic_pixel_transform.csv").write_text("9 0 1\n0 9 nan\n0 0 1\n")
    (folder / "images" / "manifest.json").write_text("[]")
    (folder / "images" / "mosaic_PolyT_z1.tif").write_bytes(b"II*\0")
    (folder / "detected_transcripts.csv").write_text(",global_x,global_x,gene\n")
    (folder / "codebook.csv").write_text("id\n1\n")
    with pytest.raises(FaultsError) as caught:
        MerscopeReader().sections(folder, 0.0)
    files = [fault.file.name for fault in caught.value.faults]
    assert sorted(set(files)) == sorted(
        [
            "micron_to_mosaic_pixel_transform.csv",
            "manifest.json",
            "mosaic_PolyT_z1.tif",
            "detected_transcripts.csv",
            "r",
        ]
    )
    assert len(caught.value.lines) == 6  # the table lacks two columns and has one twice
    assert all(str(folder) in line and "\n" not in line for line in caught.value.lines)
    assert pickle.loads(pickle.dumps(caught.value)).lines == caught.value.lines


def test_the_brightest_of_planes(tmp_path):
    images = np.random.default_rng(0).integers(0, 255, (3, 30, 40)).astype(np.uint8)
    for index, image in enumerate(images):
        tifffile.imwrite(tmp_path / f"{index}.tif", image)
    planes = [TiffPlane(tmp_path / f"{index}.tif") for index in range(3)]
    np.testing.assert_array_equal(MaxPlane(planes).read(Box(3, 20, 5, 33)), images.max(axis=0)[3:20, 5:33])
    tifffile.imwrite(tmp_path / "1.tif", images[0, :9])
    with pytest.raises(InputError, match="should have one shape"):
        MaxPlane([planes[0], TiffPlane(tmp_path / "1.tif")], "DAPI")
