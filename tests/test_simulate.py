"""Simulated tissue: the layout is MERSCOPE's, the statistics are the stated ones, and genes tell about morphology."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile
from scipy.spatial import cKDTree

from tera_mind.cli.main import main
from tera_mind.formats.brain import Brain
from tera_mind.simulate.anatomy import REGIONS, Anatomy
from tera_mind.simulate.cells import make_cells
from tera_mind.simulate.optics import render
from tera_mind.simulate.tissue import ORIGIN_UM
from tera_mind.simulate.transcripts import MARKERS, expression, make_transcripts, panel

PIXEL_UM = 0.85
SMALL = ["--height-um", "170", "--width-um", "200", "--pixel-um", str(PIXEL_UM), "--genes", "30"]
#: the header of an instrument's own file; the index has no name
COLUMNS = ["barcode_id", "global_x", "global_y", "global_z", "x", "y", "fov", "gene", "transcript_id"]


@pytest.fixture(scope="module")
def tissue(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("simulated") / "tissue"
    assert main(["simulate", "--out", str(out), "--sections", "2", *SMALL]) == 0
    return out


def test_layout_is_merscope(tissue: Path) -> None:
    region = tissue / "section_000"
    table = pd.read_csv(region / "detected_transcripts.csv", index_col=0)
    assert list(table.columns) == COLUMNS
    assert (region / "detected_transcripts.csv").read_text().startswith(",barcode_id")
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


def test_same_seed_same_files_other_seed_other(tissue: Path, tmp_path: Path) -> None:
    for seed, same in (("0", True), ("1", False)):
        out = tmp_path / seed
        assert main(["simulate", "--out", str(out), "--seed", seed, *SMALL]) == 0
        for name in ("detected_transcripts.csv", "images/mosaic_DAPI_z0.tif"):
            equal = (out / "section_000" / name).read_bytes() == (tissue / "section_000" / name).read_bytes()
            assert equal is same, name


def test_densities_and_spacing_are_as_stated() -> None:
    anatomy = Anatomy(600.0, 900.0, seed=3)
    cells = make_cells(anatomy, 0, 0.0)
    y, x = np.mgrid[1:600:4, 1:900:4].astype(float)
    region = anatomy.region(y, x, 0.0)
    for name, wanted in (("layer 2/3", 1.4 * 1880), ("granule sheet", 1.4 * 6850)):
        area_mm2 = (region == REGIONS.index(name)).mean() * 0.6 * 0.9
        assert (cells["region"] == name).sum() / area_mm2 == pytest.approx(wanted, rel=0.12)
    points = cells.loc[cells["region"] == "layer 2/3", ["y_um", "x_um"]].to_numpy()
    nearest = cKDTree(points).query(points, k=2)[0][:, 1]
    assert nearest.min() > 6.9
    assert 9 < np.median(nearest) < 16
    transcripts = make_transcripts(cells, 60, anatomy, 0, 0.0)
    tissue_um2 = (region > 0).mean() * 600 * 900
    assert len(transcripts) / tissue_um2 * 100 == pytest.approx(60, rel=0.15)


def test_markers_mark_their_types() -> None:
    means = pd.DataFrame(expression(40), index=panel(40))
    assert means.loc["Slc17a7", 0] > 50 * means.loc["Slc17a7", 4]
    assert means.loc["Aqp4"].idxmax() == 4
    assert means.loc["Mog"].idxmax() == 5
    assert list(panel(40)[: len(MARKERS)]) == list(MARKERS)


def test_library_size_shapes_the_cell() -> None:
    cells = make_cells(Anatomy(400.0, 900.0, seed=0), 0, 0.0)
    neurons = cells[cells["type"] == "L56 exc"]
    assert np.corrcoef(neurons["library"], neurons["major_um"])[0, 1] > 0.3
    assert np.corrcoef(neurons["library"], neurons["polyt"])[0, 1] > 0.5
    by_type = cells.groupby("type")["major_um"].mean()
    assert by_type["L56 exc"] > by_type["L23 exc"] > by_type["Oligodendrocyte"]


def test_regions_continue_from_section_to_section() -> None:
    anatomy = Anatomy(480.0, 800.0, seed=0)
    y, x = np.mgrid[1:480:6, 1:800:6].astype(float)
    first, second, far = (anatomy.region(y, x, z) for z in (0.0, 100.0, 1500.0))
    assert 0.9 < (first == second).mean() < 1.0
    assert (first == far).mean() < (first == second).mean()


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


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["--genes", "3"], "marker genes"),
        (["--height-um", "5"], "at least 60 um"),
        (["--sections", "0"], "above 0"),
        (["--pixel-um", "9"], "0.05 to 2"),
        (["--height-um", "nan"], "finite"),
        (["--seed", "-1"], "not negative"),
        (["--height-um", "90000", "--width-um", "90000"], "GB"),
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


def test_cells_larger_than_the_texture_tile_are_drawn() -> None:
    anatomy = Anatomy(30.0, 30.0, seed=0)
    cells = make_cells(anatomy, 0, 0.0).head(1).assign(y_um=15.0, x_um=15.0, soma_um=16.0)
    picture = render(cells, anatomy, 0, 0.0, 0.05)
    assert picture.dapi[picture.labels > 0].mean() > 2 * picture.dapi[picture.labels == 0].mean()


def test_tissues_of_other_seeds_share_the_biology() -> None:
    totals = []
    for seed in (0, 1):
        anatomy = Anatomy(400.0, 600.0, seed)
        rows = make_transcripts(make_cells(anatomy, 0, 0.0), 120, anatomy, 0, 0.0)
        totals.append(np.bincount(rows["gene"], minlength=125)[len(MARKERS) : 120])
    assert np.corrcoef(np.log1p(totals))[0, 1] > 0.9


def test_existing_output_dry_run_and_interruption(tissue: Path, tmp_path: Path) -> None:
    assert main(["simulate", "--out", str(tissue), *SMALL]) == 2
    out = tmp_path / "none"
    assert main(["simulate", "--out", str(out), "--dry-run", *SMALL]) == 0
    assert not out.exists()
    assert main(["simulate", "--out", str(out), *SMALL]) == 0
    kept = (out / "section_000" / "detected_transcripts.csv").stat().st_mtime_ns
    settings = json.loads((out / "simulation.json").read_text())
    (out / "simulation.json").unlink()
    del settings["format"], settings["version"], settings["tera_mind"]
    (out / "unfinished.json").write_text(json.dumps(settings))
    assert main(["simulate", "--out", str(out), *SMALL]) == 0
    assert (out / "section_000" / "detected_transcripts.csv").stat().st_mtime_ns == kept
    assert (out / "simulation.json").exists()
