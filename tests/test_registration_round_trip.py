"""Simulate misregistered sections, write them as MERSCOPE does, ingest them registered: everything is where it was."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile
from scipy import ndimage

from tera_mind.cli.main import main
from tera_mind.formats.brain import Brain
from tera_mind.geometry import Box
from tera_mind.ingest.sections_table import SectionsTable
from tera_mind.simulate.brains import Settings
from tera_mind.simulate.merscope import um_to_mosaic
from tera_mind.simulate.truth import section_name
from tera_mind.simulate.windows import VirtualBrain

PIXEL_UM, HEIGHT_UM, WIDTH_UM, GENES = 0.5, 130.0, 150.0, 25
FIDUCIAL = "Fiducial"
#: canvas pixels at whose centres fiducials lie
DOTS = np.array([(y, x) for y in range(24, 250, 34) for x in range(24, 290, 38)])


def simulate(folder: Path, misregister: float) -> VirtualBrain:
    """Two sections with their truth."""
    sizes = {"height-um": HEIGHT_UM, "width-um": WIDTH_UM, "pixel-um": PIXEL_UM, "genes": GENES, "sections": 2}
    options = [part for name, value in sizes.items() for part in (f"--{name}", str(value))]
    arguments = ["--out", str(folder), "--workers", "1", "--misregister", str(misregister), *options]
    assert main(["simulate", *arguments]) == 0
    settings = {name.replace("-", "_"): value for name, value in sizes.items()}
    return VirtualBrain(Settings.of("main", "demo", **settings, misregister=misregister))


def add_fiducials(region: Path, mosaic_y: np.ndarray, mosaic_x: np.ndarray) -> None:
    """Draw dots into every mosaic on a dark ground, and transcripts of a gene of their own into the table."""
    for path in (region / "images").glob("mosaic_*.tif"):
        image = tifffile.imread(path) // 50
        y, x = np.mgrid[: image.shape[0], : image.shape[1]] + 0.5
        dots = sum(np.exp(-((y - py) ** 2 + (x - px) ** 2) / 8) for py, px in zip(mosaic_y, mosaic_x, strict=True))
        tifffile.imwrite(path, (image + 40_000 * dots).astype(image.dtype), tile=(64, 64))
    um = np.linalg.inv(um_to_mosaic(PIXEL_UM)) @ np.stack([mosaic_x, mosaic_y, np.ones_like(mosaic_x)])
    path = region / "detected_transcripts.csv"
    table = pd.read_csv(path, index_col=0)
    more = pd.DataFrame({"global_x": um[0], "global_y": um[1], "gene": FIDUCIAL}).reindex(columns=table.columns)
    table = pd.concat([table, more.fillna({"global_z": 0.0})])
    table.to_csv(path)
    codebook = region / "codebook_0_simulated.csv"
    codebook.write_text(codebook.read_text() + f"{FIDUCIAL},SIM999999\n")


def errors(brain: Brain, section: int, expected: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Distances in canvas pixels from truth: of dots in both stains, of fiducial transcripts."""
    rows = brain.transcripts(section, brain.canvas)
    own = rows.gene == brain.genes.index(FIDUCIAL)
    stored = np.stack([rows.y[own], rows.x[own]], axis=1) + 0.5
    assert len(stored) == len(expected)
    transcripts = np.array([np.abs(stored - dot).max(axis=1).min() for dot in expected])
    images = brain.image(brain.canvas)[:, section].astype(float)
    stains = []
    for image in images:
        centres = []
        for y, x in expected:
            window = image[int(y) - 6 : int(y) + 7, int(x) - 6 : int(x) + 7]
            window = np.clip(window - 25, 0, None)
            centres.append(np.add(ndimage.center_of_mass(window), [int(y) - 5.5, int(x) - 5.5]))
        stains.append(np.abs(np.array(centres) - expected).max(axis=1))
    return stains[0], stains[1], transcripts


def ingest(tissue: Path, out: Path, table: Path, *options: str) -> Brain:
    folders = [str(path) for path in sorted(tissue.glob("section_*"))]
    ranges = ["--range", "DAPI=0:60000", "--range", "PolyT=0:60000", "--max-outside", "0.9"]
    assert main(["ingest", "merscope", *folders, "--out", str(out), "--sections", str(table), *ranges, *options]) == 0
    return Brain.open(out)


def test_the_simulators_own_registration_with_displacement(tmp_path):
    """Sections turned, stretched, shifted and bent; truth is the map they were made with, not the files under test."""
    truth = simulate(tmp_path / "tissue", 1.0)
    (height, width), corner = truth.settings.pixels, truth.settings.corner_um
    expected = []
    for section in range(2):
        y, x = (DOTS.T + 0.5) * PIXEL_UM
        moved_y, moved_x = truth.map_of(section).to_section(y + corner[0], x + corner[1])
        y, x = (moved_y - corner[0]) / PIXEL_UM, (moved_x - corner[1]) / PIXEL_UM
        inside = (y > 9) & (y < height - 9) & (x > 9) & (x < width - 9)
        assert inside.sum() > 20
        assert np.abs(np.stack([y, x], axis=1) - DOTS)[inside].max() > 15  # far off without the registration
        add_fiducials(tmp_path / "tissue" / section_name(section), y[inside], x[inside])
        expected.append(DOTS[inside] + 0.5)
    table = tmp_path / "tissue" / "truth" / "sections.csv"
    options = ["--canvas-um", f"{HEIGHT_UM},{WIDTH_UM}"]
    brain = ingest(tmp_path / "tissue", tmp_path / "b.zarr", table, *options)
    assert brain.shape == (2, 2, height, width)
    assert [section.z_um for section in brain.sections] == pytest.approx(truth.z_um, abs=0.01)
    for section, dots in enumerate(expected):
        for error in errors(brain, section, dots):
            assert error.max() < 0.5
    # any window is the same as a part of the whole store
    window = Box(60, 200, 70, 230)
    part, whole = brain.transcripts(1, window), brain.transcripts(1, brain.canvas)
    held = (whole.y >= 60) & (whole.y < 200) & (whole.x >= 70) & (whole.x < 230)
    assert len(part) == held.sum() > 100
    np.testing.assert_array_equal(brain.image(window), brain.image(brain.canvas)[..., *window.slices()])


@pytest.mark.parametrize("pixel_um", [None, 0.8])
def test_affines_alone(tmp_path, pixel_um):
    """One section turned and mirrored, one sheared, from pixels and from um, onto the bounding canvas."""
    truth = simulate(tmp_path / "tissue", 0.0)
    height, width = truth.settings.pixels
    maps = [
        np.array([[-0.97, 0.21, 330.0], [0.2, 0.99, 12.0], [0, 0, 1]]),
        np.array([[0.98, -0.1, 30.0], [0.17, 1.03, 5.0], [0, 0, 1]]),
    ]
    y, x = (DOTS.T + 0.5)[:, (DOTS[:, 0] < height - 9) & (DOTS[:, 1] < width - 9)]
    rows = []
    for section, to_canvas in enumerate(maps):
        add_fiducials(tmp_path / "tissue" / section_name(section), y, x)
        numbers = to_canvas if section == 0 else to_canvas @ um_to_mosaic(PIXEL_UM)
        unit = ("px", "um")[section]
        rows.append([section, section_name(section), 100 * section, *numbers[:2].ravel(), unit, "px"])
    names = ["section", "section_id", "z_um", "a00", "a01", "a02", "a10", "a11", "a12", "source_unit", "canvas_unit"]
    table = tmp_path / "sections.csv"
    pd.DataFrame(rows, columns=names).to_csv(table, index=False)
    SectionsTable.read(table)
    options = [] if pixel_um is None else ["--pixel-um", str(pixel_um)]
    brain = ingest(tmp_path / "tissue", tmp_path / "b.zarr", table, *options)
    factor = PIXEL_UM / brain.pixel_um
    assert factor == pytest.approx(1 if pixel_um is None else 0.625, rel=1e-4)
    for section, to_canvas in enumerate(maps):
        there = (to_canvas @ np.stack([x, y, np.ones_like(x)]))[1::-1].T * factor
        *stains, transcripts = errors(brain, section, there)
        assert max(error.max() for error in stains) < 0.5
        assert transcripts.max() <= 0.501  # a transcript is the centre of the pixel that holds it
