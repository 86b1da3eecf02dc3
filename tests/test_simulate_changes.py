"""Changed and interrupted brains: perturbations stay where they are meant, misregistration is undone, runs go on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tera_mind.cli.main import main
from tera_mind.errors import FormatError, InputError
from tera_mind.formats.brain import Brain
from tera_mind.geometry import Box
from tera_mind.simulate import celltypes, optics, regions
from tera_mind.simulate.brains import Settings
from tera_mind.simulate.cells import LARGEST_CELL_UM
from tera_mind.simulate.perturb import Change, Perturbation
from tera_mind.simulate.transcripts import TranscriptRows
from tera_mind.simulate.windows import VirtualBrain

TYPE, REGION = celltypes.INDEX, regions.INDEX


def brain_of(**changes) -> VirtualBrain:
    return VirtualBrain(Settings.of("main", "tiny", **changes))


def ordered(rows: TranscriptRows) -> np.ndarray:
    table = np.array([rows.y_um, rows.x_um, rows.gene, rows.cell, rows.place])
    return table[:, np.lexsort(table)]


def test_perturbed_genes_change_nothing_else() -> None:
    box = Box(200, 560, 300, 700)
    plain = brain_of(misregister=0.0).window(0, box)
    change = Change(genes=("Slc17a7",), scale=0.2, regions=("layer 5", "layer 6"))
    brain = brain_of(misregister=0.0, perturbation=Perturbation((change,)))
    changed = brain.window(0, box)
    np.testing.assert_array_equal(plain.images, changed.images)
    gene = brain.genes.index("Slc17a7")
    before, after = ordered(plain.transcripts), ordered(changed.transcripts)
    others = [table[:, table[2] != gene] for table in (before, after)]
    # misread copies of the gene go with it, everything else stays
    lost = len(others[0][0]) - len(others[1][0])
    assert 0 <= lost < 0.05 * (before[2] == gene).sum() + 5
    kept = {tuple(column) for column in others[1].T.tolist()}
    assert kept <= {tuple(column) for column in others[0].T.tolist()}
    count = {}
    for name, window in (("before", plain), ("after", changed)):
        rows, cells = window.transcripts, window.cells
        meant = set(cells.cell[np.isin(cells.region, [REGION["layer 5"], REGION["layer 6"]])].tolist())
        own = np.isin(rows.cell, list(meant)) & (rows.gene == gene)
        count[name] = own.sum(), (~own & (rows.gene == gene) & (rows.place < 3)).sum()
    assert 0.1 < count["after"][0] / count["before"][0] < 0.3


def test_depleted_and_enlarged_cells_change_only_their_surroundings() -> None:
    box = Box(300, 500, 400, 700)
    plain = brain_of(misregister=0.0).window(0, box)
    fewer = brain_of(misregister=0.0, perturbation=Perturbation((Change(types=("Oligodendrocyte",), deplete=1.0),)))
    window = fewer.window(0, box)
    gone = plain.cells.kind == TYPE["Oligodendrocyte"]
    np.testing.assert_array_equal(window.cells.cell, plain.cells.cell[~gone])
    kept = plain.transcripts.take(~np.isin(plain.transcripts.cell, window.cells.cell) & (plain.transcripts.cell > 0))
    assert set(kept.cell) <= set(plain.cells.cell[gone]) | set(kept.cell[~np.isin(kept.cell, plain.cells.cell)])
    pixel = fewer.settings.pixel_um
    y, x = plain.cells.y_um[gone] / pixel - box.y0, plain.cells.x_um[gone] / pixel - box.x0
    far = np.ones(plain.labels.shape, bool)
    grid_y, grid_x = np.mgrid[: box.height, : box.width]
    reach = optics.reach_px(pixel) + 12
    for at_y, at_x in zip(y, x, strict=True):
        far &= np.maximum(abs(grid_y - at_y), abs(grid_x - at_x)) > reach
    far[:reach], far[-reach:], far[:, :reach], far[:, -reach:] = False, False, False, False
    assert far.any()
    np.testing.assert_array_equal(plain.images[..., far], window.images[..., far])
    assert (plain.images[..., ~far] != window.images[..., ~far]).any()
    larger = brain_of(misregister=0.0, perturbation=Perturbation((Change(types=("L56 exc",), enlarge=1.4),))).window(
        0, box
    )
    factor = larger.cells.major_um / plain.cells.major_um
    np.testing.assert_allclose(factor, np.where(plain.cells.kind == TYPE["L56 exc"], 1.4, 1.0))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("changes: 3", "list `changes`"),
        ("changes: [{genes: [Nothing1], scale: 0}]", "no gene Nothing1"),
        ("changes: [{types: [Neurone], deplete: 0.5}]", "no cell type Neurone"),
        ("changes: [{types: [MSN], deplete: many}]", "cannot be read"),
        ("changes: [{genes: [Th]}]", "both `genes`"),
        ("changes: [{colour: red}]", "a change has"),
        ("a: [", "no YAML"),
    ],
)
def test_bad_perturbations_are_one_line(text, words, tmp_path, capsys) -> None:
    (tmp_path / "p.yaml").write_text(text)
    assert main(["simulate", "--out", str(tmp_path / "o"), "--perturb", str(tmp_path / "p.yaml")]) == 2
    error = capsys.readouterr().err.strip()
    assert words in error
    assert "\n" not in error
    assert main(["simulate", "--out", str(tmp_path / "o"), "--perturb", str(tmp_path / "none.yaml")]) == 2


def test_misregistration_has_its_inverse() -> None:
    mapped = VirtualBrain(Settings.of("main", "brain")).map_of(7)
    random = np.random.default_rng(0)
    y, x = random.uniform(0, 7000, 500), random.uniform(-5000, 5000, 500)
    there = mapped.to_section(y, x)
    assert np.hypot(there[0] - y, there[1] - x).max() > 30
    back = mapped.to_atlas(*there)
    np.testing.assert_allclose(back, (y, x), atol=1e-4)
    y0, y1, x0, x1 = mapped.atlas_window(1000.0, 2000.0, -500.0, 800.0)
    inside = (there[0] > 1000) & (there[0] < 2000) & (there[1] > -500) & (there[1] < 800)
    assert inside.any()
    assert ((y[inside] > y0) & (y[inside] < y1) & (x[inside] > x0) & (x[inside] < x1)).all()


def test_misregistered_brain_is_the_registered_one_moved() -> None:
    straight, moved = brain_of(misregister=0.0), brain_of(misregister=1.0)
    own = straight.cells_near(0, Box(200, 700, 300, 1000), 0.0)
    other = moved.cells_near(0, Box(100, 800, 200, 1100), 0.0)
    index = np.searchsorted(other.cell, own.cell)
    assert (other.cell[index] == own.cell).all()
    corner = straight.settings.corner_um
    y, x = moved.map_of(0).to_atlas(other.y_um[index] + corner[0], other.x_um[index] + corner[1])
    np.testing.assert_allclose(y - corner[0], own.y_um, atol=1e-3)
    np.testing.assert_allclose(x - corner[1], own.x_um, atol=1e-3)
    np.testing.assert_array_equal(other.kind[index], own.kind)


def test_killed_run_goes_on_with_what_is_missing(tmp_path) -> None:
    out = tmp_path / "brain.zarr"
    command = [
        "simulate",
        "--size",
        "tiny",
        "--layout",
        "store",
        "--sections",
        "4",
        "--workers",
        "1",
        "--genes",
        "30",
        "--out",
        str(out),
    ]
    code = f"import sys; from tera_mind.cli.main import main; sys.exit(main({command!r}))"
    process = subprocess.Popen([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)})
    parts = tmp_path / "brain.zarr.parts"
    limit = time.monotonic() + 60
    while not list(parts.glob("*/tile_*.npz")):
        assert process.poll() is None
        assert time.monotonic() < limit
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not out.exists()
    done = {path: path.stat().st_mtime_ns for path in parts.glob("*/tile_*.npz")}
    assert 0 < len(done) < 4
    from tera_mind.simulate.tiles import Tiles

    kept: list[int] = []
    drop, Tiles.drop = Tiles.drop, lambda self, section=None: kept.extend(p.stat().st_mtime_ns for p in done)  # type: ignore[assignment]
    try:
        assert main(command) == 0
    finally:
        Tiles.drop = drop  # type: ignore[method-assign]
    assert kept == list(done.values())
    brain = Brain.open(out)
    assert len(brain.sections) == 4
    assert not list(tmp_path.rglob("*partial*"))
    fresh = VirtualBrain(Settings.of("main", "tiny", sections=4, genes=30, bits=8, misregister=0.0))
    box = Box(300, 420, 500, 640)
    np.testing.assert_array_equal(brain.image(box, [3])[:, 0], fresh.window(3, box).images[:, 0])
    rows = fresh.transcripts(3, box)
    assert brain.transcripts(3, box).count.sum() == (rows.gene < len(fresh.genes)).sum()
    assert [section.z_um for section in brain.sections] == fresh.z_um


def test_changes_that_add_up_stay_in_bounds() -> None:
    thrice = Perturbation.from_json([{"enlarge": 1.6}] * 3)
    small = Settings.of("main", "demo", perturbation=thrice)
    whole = VirtualBrain(small).window(0, Box(40, 200, 60, 260))
    part = VirtualBrain(small).window(0, Box(100, 180, 120, 220))
    np.testing.assert_array_equal(whole.images[..., 60:140, 60:160], part.images)
    assert whole.cells.soma_um.max() <= LARGEST_CELL_UM
    with pytest.raises(InputError, match="together scale"):
        Perturbation.from_json([{"genes": "*", "scale": 20}] * 2).check(["a", "b"])


@pytest.mark.parametrize("text", ["changes: []", "changes:\n- {deplete: 0.5}\nfoo: 3"])
def test_files_that_would_change_nothing_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "p.yaml").write_text(text)
    with pytest.raises(FormatError, match="should hold a list"):
        Perturbation.read(tmp_path / "p.yaml")
