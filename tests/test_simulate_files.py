"""`tera-mind simulate`: it writes what MERSCOPE writes, the reader takes it, the truth fits, bad input is one line."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile
from scipy import ndimage

from tera_mind.cli.main import main
from tera_mind.formats.brain import Brain
from tera_mind.geometry import Box
from tera_mind.simulate import tiles
from tera_mind.simulate.brains import Settings
from tera_mind.simulate.merscope import ORIGIN_UM
from tera_mind.simulate.windows import VirtualBrain

PIXEL_UM = 0.85
SMALL = ["--height-um", "170", "--width-um", "200", "--pixel-um", str(PIXEL_UM), "--genes", "30"]
#: the header of an instrument's own file; the index has no name
COLUMNS = ["barcode_id", "global_x", "global_y", "global_z", "x", "y", "fov", "gene", "transcript_id"]


@pytest.fixture(scope="module")
def tissue(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("simulated") / "tissue"
    given = ["--sections", "2", "--misregister", "1", *SMALL]
    assert main(["simulate", "--out", str(out), *given]) == 0
    return out


def test_layout_is_merscope(tissue: Path) -> None:
    region = tissue / "section_000"
    table = pd.read_csv(region / "detected_transcripts.csv", index_col=0)
    assert list(table.columns) == COLUMNS
    assert (region / "detected_transcripts.csv").read_text().startswith(",barcode_id")
    assert (table.index == np.arange(len(table))).all()
    transform = np.loadtxt(region / "images" / "micron_to_mosaic_pixel_transform.csv")
    assert transform.shape == (3, 3)
    assert transform[0, 2] != 0
    assert transform[0, 0] != transform[1, 1]
    for stain in ("DAPI", "PolyT"):
        image = tifffile.imread(region / "images" / f"mosaic_{stain}_z0.tif")
        assert image.dtype == np.uint16
        assert image.shape == (200, 235)
    assert json.loads((region / "images" / "manifest.json").read_text())["microns_per_pixel"] == PIXEL_UM
    assert table["global_x"].min() == pytest.approx(ORIGIN_UM[0], abs=5)


def test_truth_lies_beside(tissue: Path) -> None:
    region = tissue / "section_000"
    cells = pd.read_parquet(region / "truth" / "cells.parquet")
    labels = tifffile.imread(region / "truth" / "nuclei.tif")
    assert {"cell", "type", "region", "y_um", "x_um", "library", "passes_qc"} <= set(cells.columns)
    at = labels[(cells["y_um"] / PIXEL_UM).astype(int), (cells["x_um"] / PIXEL_UM).astype(int)]
    assert (at == cells["cell"]).mean() > 0.8
    truth = pd.read_parquet(region / "truth" / "transcripts.parquet")
    table = pd.read_csv(region / "detected_transcripts.csv", index_col=0)
    assert len(truth) == len(table)
    both = table.assign(cell=truth["cell"]).merge(cells[["cell", "y_um", "x_um"]], on="cell")
    assert np.hypot(both["x"] - both["x_um"], both["y"] - both["y_um"]).max() < 60
    names = json.loads((tissue / "truth" / "regions.json").read_text())["names"]
    here = tifffile.imread(region / "truth" / "regions.tif")
    assert {"pia", "layer 2/3"} <= {names[str(value)] for value in np.unique(here)}
    assert len(pd.read_parquet(tissue / "truth" / "expression.parquet")) == 30


def affine_of(row: dict[str, str]) -> np.ndarray:
    return np.array([[float(row[f"a{i}{j}"]) for j in range(3)] for i in range(2)] + [[0, 0, 1.0]])


def moved(row: dict[str, str], folder: Path, points: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Points (x, y) by the affine and the displacement of a row, as its documentation says."""
    x, y, _ = affine_of(row) @ np.stack([points[0], points[1], np.ones(points.shape[1])])
    if row["displacement"]:
        field = np.load(folder / row["displacement"])
        at = [(y * field.shape[1] / shape[0]) - 0.5, (x * field.shape[2] / shape[1]) - 0.5]
        y, x = (
            q + ndimage.map_coordinates(part, at, order=1, mode="nearest")
            for q, part in zip((y, x), field, strict=True)
        )
    return np.stack([x, y])


def test_registration_and_its_inverse_are_in_the_files(tissue: Path) -> None:
    """Transcripts of the misregistered section go to where the registered brain has them, and pixels back again."""
    with (tissue / "truth" / "sections.csv").open() as file:
        row = list(csv.DictReader(file))[1]
    with (tissue / "truth" / "misregistration.csv").open() as file:
        back = list(csv.DictReader(file))[1]
    settings = Settings.of("main", "demo", height_um=170.0, width_um=200.0, pixel_um=PIXEL_UM, genes=30, sections=2)
    straight = VirtualBrain(settings).cells_near(1, Box(0, 200, 0, 235), 0.0)
    cells = pd.read_parquet(tissue / "section_001" / "truth" / "cells.parquet")
    both = cells.merge(pd.DataFrame({"cell": straight.cell, "to_y": straight.y_um, "to_x": straight.x_um}), on="cell")
    assert len(both) > 30
    assert np.hypot(both["y_um"] - both["to_y"], both["x_um"] - both["to_x"]).mean() > 1
    um = np.stack([both["x_um"] + ORIGIN_UM[0], both["y_um"] / 1.000005 + ORIGIN_UM[1]])
    there = moved(row, tissue / "truth", um, settings.pixels) * PIXEL_UM
    np.testing.assert_allclose(there, np.stack([both["to_x"], both["to_y"]]), atol=0.2)
    mosaic = moved(back, tissue / "truth", there / PIXEL_UM, settings.pixels) * PIXEL_UM
    np.testing.assert_allclose(mosaic, np.stack([both["x_um"], both["y_um"]]), atol=0.3)
    assert float(row["z_um"]) > 0


def test_same_seed_same_files_other_seed_other(tissue: Path, tmp_path: Path) -> None:
    for seed, same in (("0", True), ("1", False)):
        out = tmp_path / seed
        assert main(["simulate", "--out", str(out), "--seed", seed, "--misregister", "1", *SMALL]) == 0
        for name in ("detected_transcripts.csv", "images/mosaic_DAPI_z0.tif"):
            equal = (out / "section_000" / name).read_bytes() == (tissue / "section_000" / name).read_bytes()
            assert equal is same, name


def test_image_and_transcripts_agree_after_the_real_reader(tissue: Path, tmp_path: Path) -> None:
    out = tmp_path / "brain.zarr"
    folders = [str(tissue / f"section_{z:03d}") for z in range(2)]
    assert main(["ingest", "merscope", *folders, "--out", str(out)]) == 0
    brain = Brain.open(out)
    assert brain.stains == ("DAPI", "PolyT")
    assert not [gene for gene in brain.genes if gene.startswith("Blank")]
    dapi, polyt = brain.image(brain.canvas, [0])[:, 0].astype(float)
    labels = tifffile.imread(tissue / "section_000" / "truth" / "nuclei.tif")
    assert labels.shape == dapi.shape
    assert dapi[labels > 0].mean() > 2 * dapi[labels == 0].mean()
    rows = brain.transcripts(0, brain.canvas)
    under = labels[rows.y, rows.x] > 0
    assert dapi[rows.y, rows.x][under].mean() > 2 * dapi[rows.y, rows.x][~under].mean()
    exc = brain.genes.index("Slc17a7")
    assert polyt[rows.y, rows.x][rows.gene == exc].mean() > polyt[dapi > 0].mean()


def test_tiles_make_the_same_files_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many tiles in two processes, against one: same images, same transcripts, same cells."""
    given = ["--sections", "1", "--genes", "25", "--height-um", "180", "--width-um", "200", "--pixel-um", "0.6"]
    assert main(["simulate", "--out", str(tmp_path / "one"), *given]) == 0
    monkeypatch.setattr(tiles, "SHARD_PX", 256)
    assert main(["simulate", "--out", str(tmp_path / "many"), "--workers", "2", *given]) == 0
    for name in ("images/mosaic_DAPI_z0.tif", "images/mosaic_PolyT_z0.tif", "truth/nuclei.tif", "truth/regions.tif"):
        first, second = (tifffile.imread(tmp_path / way / "section_000" / name) for way in ("one", "many"))
        np.testing.assert_array_equal(first, second)
    by = ["x", "y", "gene"]
    first, second = (
        pd.read_csv(tmp_path / way / "section_000" / "detected_transcripts.csv", index_col=0).sort_values(by)
        for way in ("one", "many")
    )
    pd.testing.assert_frame_equal(first.reset_index(drop=True), second.reset_index(drop=True))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["--genes", "3"], "marker genes"),
        (["--height-um", "5"], "at least 20 um"),
        (["--sections", "0"], "above 0"),
        (["--pixel-um", "9"], "0.05 to 2"),
        (["--height-um", "nan"], "finite"),
        (["--seed", "-1"], "not negative"),
        (["--height-um", "90000"], "12,000 um"),
        (["--scale", "0.01"], "0.08 to 1"),
        (["--bits", "12"], "8 or 16"),
        (["--misregister", "9"], "misregistration"),
        (["--workers", "0"], "--workers"),
        (["--layout", "store", "--bits", "16"], "8 bit"),
    ],
)
def test_bad_values_are_one_line(
    given: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "tissue"
    assert main(["simulate", "--out", str(out), *given]) == 2
    error = capsys.readouterr().err.strip()
    assert words in error
    assert "\n" not in error
    assert not out.exists()


def test_out_that_is_a_file_or_holds_a_torn_marker_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "unfinished.json").write_text('{"hei')
    for name, words in (("file", "is a file"), ("torn", "--overwrite")):
        assert main(["simulate", "--out", str(tmp_path / name), *SMALL]) == 2
        assert words in capsys.readouterr().err


def test_existing_output_dry_run_and_interruption(tissue: Path, tmp_path: Path) -> None:
    assert main(["simulate", "--out", str(tissue), *SMALL]) == 2
    out = tmp_path / "none"
    assert main(["simulate", "--out", str(out), "--dry-run", *SMALL]) == 0
    assert not out.exists()
    assert main(["simulate", "--out", str(out), *SMALL]) == 0
    kept = (out / "section_000" / "detected_transcripts.csv").stat().st_mtime_ns
    record = json.loads((out / "simulation.json").read_text())
    (out / "simulation.json").unlink()
    for key in ("format", "version", "tera_mind"):
        del record[key]
    (out / "unfinished.json").write_text(json.dumps(record))
    assert main(["simulate", "--out", str(out), *SMALL]) == 0
    assert (out / "section_000" / "detected_transcripts.csv").stat().st_mtime_ns == kept
    assert (out / "simulation.json").exists()
    assert main(["simulate", "--out", str(out), "--seed", "4", "--overwrite", *SMALL]) == 0
    assert json.loads((out / "simulation.json").read_text())["seed"] == 4


def test_dry_run_of_a_whole_brain_says_what_it_costs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["simulate", "--size", "brain", "--layout", "store", "--out", str(tmp_path / "b.zarr"), "--dry-run"]
    assert main([*given, "--workers", "64"]) == 0
    said = capsys.readouterr().out
    assert "50 section(s) of 73728 x 106496 px at 0.108 um, 500 genes" in said
    assert "GB" in said
    assert "64 process" in said


def test_store_is_refused_where_something_else_lies(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "other").mkdir()
    assert main(["simulate", "--layout", "store", "--out", str(tmp_path / "other"), "--overwrite", *SMALL]) == 2
    assert "expected a brain store" in capsys.readouterr().err


def test_overwrite_spares_what_was_not_simulated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "own" / "section_A"
    folder.mkdir(parents=True)
    (folder / "data").write_text("precious")
    assert main(["simulate", "--out", str(tmp_path / "own"), "--overwrite", *SMALL]) == 2
    assert "holds no simulation" in capsys.readouterr().err
    assert (folder / "data").read_text() == "precious"
    store = tmp_path / "b.zarr"
    assert main(["simulate", "--layout", "store", "--out", str(store), *SMALL]) == 0
    assert main(["simulate", "--layout", "store", "--out", str(store), "--overwrite", *SMALL]) == 0
    (tmp_path / "b.truth" / "expression.parquet").unlink()
    assert main(["simulate", "--layout", "store", "--out", str(store), "--overwrite", *SMALL]) == 2
    assert "no truth of a simulated brain" in capsys.readouterr().err
