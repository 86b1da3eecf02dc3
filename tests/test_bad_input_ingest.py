"""Every fault of an instrument's folder is one clear line, exit code 2, and nothing half written."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import tifffile
from instruments import write_merscope, write_xenium

from tera_mind.cli.main import main


def edit_table(path, **changes):
    frame = pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path, index_col=0)
    for column, value in changes.items():
        frame = frame.drop(columns=column) if value is None else frame.assign(**{column: value})
    if path.suffix == ".parquet":
        frame.to_parquet(path)
    else:
        frame.to_csv(path)


def edit_experiment(folder, **changes):
    path = folder / "experiment.xenium"
    record = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in record.items() if value is not None}))


def cut(path, keep=0.5):
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])


def ome(folder, **metadata):
    image = np.ones((200, 160), np.uint16)
    tifffile.imwrite(folder / "morphology_mip.ome.tif", image, ome=True, metadata={"axes": "YX"} | metadata)


XENIUM = {
    "no experiment file": (lambda f: (f / "experiment.xenium").unlink(), "expected experiment.xenium in"),
    "experiment is no JSON": (lambda f: (f / "experiment.xenium").write_text("{"), "cannot be read"),
    "no pixel size": (lambda f: edit_experiment(f, pixel_size=None), "has no 'pixel_size', so the units"),
    "pixel size in other units": (lambda f: edit_experiment(f, pixel_size=212.5), "are its units microns?"),
    "no transcripts file": (lambda f: (f / "transcripts.parquet").unlink(), "expected transcripts.parquet in"),
    "truncated transcripts": (lambda f: cut(f / "transcripts.parquet"), "no readable Parquet file"),
    "missing columns": (
        lambda f: edit_table(f / "transcripts.parquet", y_location=None, x_location=None),
        "lacks columns x_location, y_location; it has",
    ),
    "no transcripts": (lambda f: edit_table(f / "transcripts.parquet", qv=5.0), "has no transcripts (600 qv below 20)"),
    "no image": (lambda f: (f / "morphology_mip.ome.tif").unlink(), "expected a morphology image in"),
    "image is no TIFF": (lambda f: (f / "morphology_mip.ome.tif").write_text("hello"), "cannot be read as TIFF"),
    "image cut short": (lambda f: cut(f / "morphology_mip.ome.tif"), "damaged or incomplete"),
    "unknown unit": (
        lambda f: ome(f, PhysicalSizeX=1.0, PhysicalSizeXUnit="pixel"), "in unknown unit 'pixel', expected one of",
    ),
    "units contradict": (
        lambda f: ome(f, PhysicalSizeX=0.2, PhysicalSizeXUnit="µm"), "has pixels of 0.2 um, experiment.xenium says 0.5",
    ),
    "image without contrast": (ome, "stain DAPI has no contrast"),
    "colour image": (
        lambda f: tifffile.imwrite(f / "morphology_mip.ome.tif", np.zeros((9, 9, 3), np.uint8), metadata=None),
        "expected a 2-D uint8 or uint16 image",
    ),
    "transcripts outside": (
        lambda f: edit_table(f / "transcripts.parquet", x_location=5000.0),
        "100% of the transcripts of section s lie outside its image, at most 50% may (--max-outside): they span x 5000",
    ),
    "damaged panel file": (lambda f: (f / "gene_panel.json").write_text("{}"), "no Xenium gene panel"),
}  # fmt: skip

TRANSFORM = "images/micron_to_mosaic_pixel_transform.csv"
MERSCOPE = {
    "no transform": (lambda f: (f / TRANSFORM).unlink(), "without it the units are unknown"),
    "transform of words": (lambda f: (f / TRANSFORM).write_text("a b c\n"), "expected 3 x 3 numbers"),
    "transform of two rows": (lambda f: (f / TRANSFORM).write_text("9 0 1\n0 9 1\n"), "should be a 3 x 3 affine"),
    "transform of a line": (lambda f: (f / TRANSFORM).write_text("9 0 1\n0 0 1\n0 0 1\n"), "cannot be inverted"),
    "transform in other units": (
        lambda f: (f / TRANSFORM).write_text("9e-3 0 1\n0 9e-3 1\n0 0 1\n"), "are its units microns?",
    ),
    "no table": (lambda f: (f / "detected_transcripts.csv").unlink(), "--transcripts names another file"),
    "missing columns": (
        lambda f: edit_table(f / "detected_transcripts.csv", global_z=None, gene=None), "lacks columns global_z, gene",
    ),
    "words for numbers": (
        lambda f: edit_table(f / "detected_transcripts.csv", global_x="x"), "is damaged or its columns hold other",
    ),
    "only blanks": (
        lambda f: edit_table(f / "detected_transcripts.csv", gene="Blank-3"), "has no transcripts (600 blank codeword)",
    ),
    "no mosaics": (lambda f: [p.unlink() for p in f.glob("images/*.tif")], "expected images named mosaic_STAIN_zK.tif"),
    "planes of two shapes": (
        lambda f: tifffile.imwrite(f / "images/mosaic_DAPI_z1.tif", np.zeros((9, 9), np.uint16)),
        "should have one shape",
    ),
    "mosaic cut short": (lambda f: cut(f / "images/mosaic_DAPI_z1.tif"), "is damaged or incomplete"),
    "transcripts outside": (
        lambda f: edit_table(f / "detected_transcripts.csv", global_y=-99.0), "check units, pixel size and transform",
    ),
    "damaged codebook": (lambda f: (f / "codebook.csv").write_text("id\n1\n"), "gives no gene panel"),
}  # fmt: skip


def refused(arguments, words, capsys, tmp_path, before) -> None:
    assert main([str(argument) for argument in arguments]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert len(lines) == 1
    assert words in lines[0]
    assert {path.name for path in tmp_path.iterdir()} == before  # nothing half written


@pytest.mark.parametrize("fault", XENIUM)
def test_xenium(fault, tmp_path, capsys):
    folder = write_xenium(tmp_path / "s")
    XENIUM[fault][0](folder)
    refused(["ingest", "xenium", folder, "--out", tmp_path / "b.zarr"], XENIUM[fault][1], capsys, tmp_path, {"s"})


@pytest.mark.parametrize("fault", MERSCOPE)
def test_merscope(fault, tmp_path, capsys):
    folder = write_merscope(tmp_path / "s")
    MERSCOPE[fault][0](folder)
    refused(["ingest", "merscope", folder, "--out", tmp_path / "b.zarr"], MERSCOPE[fault][1], capsys, tmp_path, {"s"})


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--stains", "PolyT"], "has stains DAPI, not PolyT"),
        (["--z-um", "1,2"], "1 folders, 2 positions"),
        (["--pixel-um", "-1"], "needs a positive size"),
        (["--range", "PolyT=0:9"], "a range was given for stain PolyT"),
    ],
)
def test_options(options, words, tmp_path, capsys):
    folder = write_xenium(tmp_path / "s")
    refused(["ingest", "xenium", folder, "--out", tmp_path / "b.zarr", *options], words, capsys, tmp_path, {"s"})


@pytest.mark.parametrize(("planes", "words"), [("9", "has planes [0, 1]"), ("0,0", "comes once"), ("z", "or numbers")])
def test_planes(planes, words, tmp_path, capsys):
    folder = write_merscope(tmp_path / "s")
    arguments = ["ingest", "merscope", folder, "--out", tmp_path / "b.zarr", "--planes", planes]
    refused(arguments, words, capsys, tmp_path, {"s"})


def test_folders(tmp_path, capsys):
    out = tmp_path / "b.zarr"
    refused(["ingest", "xenium", tmp_path / "no", "--out", out], "nothing is there", capsys, tmp_path, set())
    refused(["ingest", "merscope", tmp_path / "no", "--out", out], "nothing is there", capsys, tmp_path, set())
    one, two = write_xenium(tmp_path / "s"), write_xenium(tmp_path / "t" / "s")
    refused(["ingest", "xenium", one, two, "--out", out], "s came twice", capsys, tmp_path, {"s", "t"})
    coarse = write_xenium(tmp_path / "coarse", pixel_um=0.6)
    before = {"s", "t", "coarse"}
    refused(["ingest", "xenium", one, coarse, "--out", out], "one size with --pixel-um", capsys, tmp_path, before)


def test_a_taken_place_is_kept(tmp_path, capsys):
    folder, out = write_xenium(tmp_path / "s"), tmp_path / "b.zarr"
    assert main(["ingest", "xenium", str(folder), "--out", str(out)]) == 0
    stored = (out / "zarr.json").read_text()
    refused(["ingest", "xenium", folder, "--out", out], "pass --overwrite", capsys, tmp_path, {"s", "b.zarr"})
    cut(folder / "morphology_mip.ome.tif", 0.9)
    arguments = ["ingest", "xenium", folder, "--out", out, "--overwrite"]
    refused(arguments, "damaged or incomplete", capsys, tmp_path, {"s", "b.zarr"})
    assert (out / "zarr.json").read_text() == stored


def test_sections_with_other_stains(tmp_path, capsys):
    one = write_merscope(tmp_path / "one")
    two = write_merscope(tmp_path / "two", stains=("DAPI", "Cellbound1"))
    arguments = ["ingest", "merscope", one, two, "--out", tmp_path / "b.zarr"]
    refused(arguments, "choose common ones with --stains", capsys, tmp_path, {"one", "two"})
