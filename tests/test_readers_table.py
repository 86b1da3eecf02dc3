"""A user's own table and images: units, counts, several sections, every kind of image file."""

from __future__ import annotations

import gzip
import json
import pickle

import numpy as np
import pandas as pd
import pytest
import tifffile
from instruments_more import (
    dropped,
    expected,
    found,
    ome_xml,
    read_all,
    same_images,
    same_transcripts,
    write_ngff,
    write_table,
)

from tera_mind.errors import TeraMindError
from tera_mind.geometry import Box
from tera_mind.ingest.channels import open_channels
from tera_mind.ingest.source import expanded
from tera_mind.ingest.table import TableReader

COLUMNS = {"x": "x_um", "y": "y_um", "gene": "symbol", "quality": "score", "min_quality": 20.0}


@pytest.mark.parametrize("kind", ["csv", "tsv", "csv.gz", "parquet", "semicolon"])
def test_a_table_in_microns(tmp_path, kind):
    truth = write_table(tmp_path / "spots")
    frame = pd.read_csv(tmp_path / "spots" / "spots.csv", keep_default_na=False)
    (tmp_path / "spots" / "spots.csv").unlink()
    if kind == "parquet":
        frame.assign(symbol=frame.symbol.astype("category")).to_parquet(tmp_path / "spots" / "s.parquet")
    elif kind == "semicolon":
        frame.to_csv(tmp_path / "spots" / "s.csv", sep=";", index=False)
    else:
        frame.to_csv(tmp_path / "spots" / f"s.{kind}", sep="\t" if kind == "tsv" else ",", index=False)
    (section,) = pickle.loads(pickle.dumps(TableReader(**COLUMNS).sections(tmp_path / "spots", 7.0)))
    assert (section.name, section.z_um, section.panel) == ("spots", 7.0, None)
    assert [stain.name for stain in section.stains] == ["DAPI", "PolyT"]
    same_transcripts(section, truth)
    same_images(section, truth)
    assert dropped(section) == {"blank codeword": 30, "score below 20": 18}
    x, y, _ = section.stains[0].um_to_px @ np.stack([truth.x_um, truth.y_um, np.ones_like(truth.x_um)])
    assert (truth.images["DAPI"][y.astype(int), x.astype(int)] == 4000).all()


@pytest.mark.parametrize("unit", ["px", "0.5"])
def test_binned_counts_of_a_gem(tmp_path, unit):
    """Stereo-seq: comments, tabs, bins of half a micron, a count; the image's pixels are the bins."""
    x, y, count = [3, 3, 9, 9, 40, 41, 42, 43], [5, 5, 6, 7, 2, 2, 2, 2], [2, 1, 70_000, 0, 4, "", 1.5, 9]
    gene = ["Gad1", "Vip", "Vip", "Vip", "Gad1", "Gad1", "Gad1", "Blank-7"]
    rows = ["#FileFormat=GEMv0.1", "#BinType=Bin", "geneID\tx\ty\tMIDCount\tExonCount"]
    rows += [f"{g}\t{a}\t{b}\t{c}\t0" for g, a, b, c in zip(gene, x, y, count, strict=True)]
    (tmp_path / "S1.gem.gz").write_bytes(gzip.compress("\n".join(rows).encode()))
    tifffile.imwrite(tmp_path / "ssdna.tif", np.zeros((20, 50), np.uint8))
    reader = TableReader(gene="geneID", count="MIDCount", unit=unit, image_um=0.5, images=("DAPI=ssdna.tif",))
    (section,) = reader.sections(tmp_path / "S1.gem.gz", 0.0)
    assert section.name == "S1"
    assert found(section) == [*[("Gad1", 1.5, 2.5)] * 2, *[("Gad1", 20.0, 1.0)] * 4, ("Vip", 1.5, 2.5)]
    assert dropped(section) == {
        "no count": 1, "count of zero": 0, "count above 65535": 70_000, "count that is no whole number": 1,
        "blank codeword": 9,
    }  # fmt: skip
    (batch,) = section.batches()
    assert batch.count.tolist() == [2, 1, 4]
    assert [len(piece.gene) for piece in expanded(section.batches())] == [7]


def test_sections_of_one_table(tmp_path):
    """A section's rows are its own, its z the mean of its rows', its image found by its name."""
    rng = np.random.default_rng(1)
    frame = pd.DataFrame({"x": rng.uniform(0, 10, 90), "y": rng.uniform(0, 8, 90), "gene": ["A", "B", "C"] * 30})
    frame["slice"] = rng.permutation(np.repeat([7, 3, 11], 30))
    frame["depth"] = frame.slice * 100.0 + np.tile([-1, 1], 45)
    frame.loc[4, "depth"] = np.nan
    for number in (3, 7, 11):
        tifffile.imwrite(tmp_path / f"{number}.tif", np.full((16, 20), number, np.uint8))
    reader = TableReader(section="slice", z="depth", images=("DAPI={section}.tif",), image_um=0.5, table="t.csv")
    frame.to_csv(tmp_path / "t.csv", index=False)
    sections = reader.sections(tmp_path, 0.0)
    order = [str(number) for number in dict.fromkeys(frame.slice)]
    assert [section.name for section in sections] == order
    for section in sections:
        own = frame[frame.slice == int(section.name)]
        assert section.z_um == pytest.approx(own.depth.mean())
        rows = zip(own.gene, own.x.round(3), own.y.round(3), strict=True)
        assert found(section) == sorted(rows)
        assert (section.stains[0].plane.read(Box(0, 16, 0, 20)) == int(section.name)).all()
    frame.to_parquet(tmp_path / "t.parquet")
    again = TableReader(section="slice", z="depth", images=reader.images, image_um=0.5, table="t.parquet")
    same = again.sections(tmp_path, 0.0)
    assert [(s.name, s.z_um, found(s)) for s in same] == [(s.name, s.z_um, found(s)) for s in sections]
    with pytest.raises(TeraMindError, match="say which image is whose"):
        TableReader(section="slice", table="t.csv", image_um=0.5).sections(tmp_path, 0.0)
    (only,) = TableReader(z="depth", images=("7.tif",), image_um=0.5, table="t.csv").sections(tmp_path, 0.0)
    assert only.z_um == pytest.approx(frame.depth.mean())


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_ome_zarr_of_both_versions(tmp_path, version):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 9000, (2, 3, 50, 70)).astype(np.uint16)
    path = write_ngff(tmp_path / "i.zarr", image, version=version, pixel_um=0.4, labels=("DAPI", "GFAP"))
    channels = open_channels(path)
    assert list(channels.planes) == ["DAPI", "GFAP"]
    for index, plane in enumerate(pickle.loads(pickle.dumps(list(channels.planes.values())))):
        assert plane.shape == (50, 70)
        for box in Box(0, 50, 0, 70).tiles(19, 33):
            np.testing.assert_array_equal(plane.read(box), image[index].max(axis=0)[box.slices()])
    # the corner lies at x = 1, y = 2 um
    np.testing.assert_allclose(channels.um_to_px @ [1 + 4, 2 + 8, 1], [10, 20, 1])
    assert list(open_channels(path, ("a", "b")).planes) == ["a", "b"]


@pytest.mark.parametrize("how", ["rgb", "pages", "imagej", "single", "ome z"])
def test_tiffs_of_every_kind(tmp_path, how):
    rng = np.random.default_rng(0)
    path, stack = tmp_path / "cells.tif", rng.integers(0, 255, (3, 41, 60)).astype(np.uint8)
    wanted = dict(zip(["channel0", "channel1", "channel2"], stack, strict=True))
    if how == "rgb":
        tifffile.imwrite(path, np.moveaxis(stack, 0, 2), photometric="rgb", tile=(16, 16), compression="zlib")
        wanted = dict(zip(["red", "green", "blue"], stack, strict=True))
    elif how == "pages":
        tifffile.imwrite(path, stack, photometric="minisblack", compression="zlib", rowsperstrip=5)
    elif how == "imagej":
        tifffile.imwrite(path, stack[None, None], imagej=True, metadata={"axes": "TZCYX"})
    elif how == "single":
        tifffile.imwrite(path, stack[0])
        wanted = {"cells": stack[0]}
    else:
        xml = ome_xml((1, 41, 60), ("DAPI",), 0.2).replace('SizeZ="1"', 'SizeZ="3"').replace("uint16", "uint8")
        tifffile.imwrite(path, stack, photometric="minisblack", description=xml, metadata=None)
        wanted = {"DAPI": stack.max(axis=0)}
    channels = open_channels(path)
    assert list(channels.planes) == list(wanted)
    assert (channels.um_to_px is not None) == (how == "ome z")
    for plane, whole in zip(channels.planes.values(), wanted.values(), strict=True):
        for box in Box(0, 41, 0, 60).tiles(17, 29):
            np.testing.assert_array_equal(plane.read(box), whole[box.slices()])


def test_features_give_panel_and_symbols(tmp_path):
    write_table(tmp_path / "spots")
    ids = ["ENSMUSG00000000001", "ENSMUSG00000000002"]
    rows = [f"{ids[0]}\tGad1\tGene Expression", f"{ids[1]}\tVip\tGene Expression", "x\tCD3\tAntibody Capture"]
    rows += [f"DEPRECATED_{ids[0]}\tOld\tGene Expression"]
    (tmp_path / "spots" / "features.tsv.gz").write_bytes(gzip.compress("\n".join(rows).encode()))
    reader = TableReader(**COLUMNS, features="features.tsv.gz")
    (section,) = reader.sections(tmp_path / "spots", 0.0)
    assert section.panel == tuple(ids)
    assert section.symbols == dict(zip(ids, ["Gad1", "Vip"], strict=True))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"gene": "target"}, "lacks columns target"),
        ({"x": "symbol"}, "one meaning"),
        ({"unit": "inch"}, "the unit of x and y is"),
        ({"unit": "0"}, "the unit of x and y is"),
        ({"images": ("none.tif",)}, "nothing is there"),
        ({"channels": ("one",)}, "has 2 channels, 1 names"),
        ({"channels": ("one", "one")}, "several channels called one"),
        ({"stains": ("GFAP",)}, "has stains DAPI, PolyT, not GFAP"),
        ({"images": ("stains.ome.tif", "stains.ome.tif")}, "both have a channel DAPI"),
        ({"image_um": -1.0}, "gives a pixel of -1 um"),
        ({"features": "list.txt"}, "expected a list of features"),
        ({"z": "score", "quality": "", "section": "symbol", "images": ("{section}.tif",)}, "expected an image at"),
        ({"min_quality": float("nan")}, "the least quality is a number"),
        ({"table": "other.csv"}, "nothing is there"),
    ],
)
def test_settings_that_do_not_fit(tmp_path, settings, words):
    write_table(tmp_path / "spots")
    with pytest.raises(TeraMindError, match=words) as caught:
        read_all(TableReader(**COLUMNS | settings), tmp_path / "spots")
    assert "\n" not in str(caught.value)


def test_images_that_do_not_say_their_size(tmp_path):
    truth = write_table(tmp_path / "spots", pixel_um=0.5)
    path = tmp_path / "spots" / "stains.ome.tif"
    path.unlink()
    tifffile.imwrite(tmp_path / "spots" / "DAPI.tif", truth.images["DAPI"])
    with pytest.raises(TeraMindError, match="pass --image-um"):
        TableReader(**COLUMNS).sections(tmp_path / "spots", 0.0)
    (section,) = TableReader(**COLUMNS, image_um=0.5).sections(tmp_path / "spots" / "spots.csv", 0.0)
    same_images(section, truth)
    assert found(section) == expected(truth)


TWO_SCALES = json.dumps(
    {
        "multiscales": [
            {
                "axes": ["c", "z", "y", "x"],
                "datasets": [{"path": "s0", "coordinateTransformations": [{"type": "scale", "scale": [1, 2]}]}],
            }
        ]
    }
)


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ("{", "no OME-Zarr metadata"),
        ("{}", "no OME-Zarr metadata"),
        ('{"multiscales": []}', "no OME-Zarr metadata"),
        ('{"multiscales": [{"datasets": [{"path": "9"}]}]}', "level 9, which cannot be opened"),
        ('{"multiscales": [{"axes": ["x", "y"], "datasets": [{"path": "s0"}]}]}', "expected axes"),
        ('{"multiscales": [{"axes": [{"name": "t"}, "z", "y", "x"], "datasets": [{"path": "s0"}]}]}', "a time series"),
        (TWO_SCALES, "no OME-Zarr metadata"),
    ],
)
def test_broken_ome_zarr(tmp_path, record, words):
    path = write_ngff(tmp_path / "i.zarr", np.zeros((2, 1, 9, 9), np.uint8), version="0.4", pixel_um=1.0, labels=())
    (path / ".zattrs").write_text(record)
    with pytest.raises(TeraMindError, match=words) as caught:
        open_channels(path)
    assert "\n" not in str(caught.value)
