"""`tera-mind attention`: its files and figures, going on after a kill, the viewer's layer, one line where it cannot."""

from __future__ import annotations

import csv
import json
import signal
import subprocess
import sys

import numpy as np
import pytest
from attention_case import BRAIN_GENES, make_case
from PIL import Image
from test_attention import planes_of
from tiny_brain import make_brain

from tera_mind.analysis import attention as module
from tera_mind.analysis.attention import AttentionJob
from tera_mind.cli.attention import run
from tera_mind.cli.attention_compare import compare
from tera_mind.errors import InputError, PanelMismatchError
from tera_mind.formats.attention_map import ATTENTION, PREVIOUS
from tera_mind.formats.maps import Map
from tera_mind.report.attention import page
from tera_mind.report.attention.figures import smooth
from tera_mind.report.viewer.layers import manifest, open_scene
from tera_mind.report.viewer.tiles import Tiles

GLUT = ("Slc17a6", "Slc17a7")


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    return make_case(tmp_path_factory.mktemp("cli"), shape=(2, 3, 170, 260), rows=5000)


@pytest.fixture
def no_figures(monkeypatch):
    """Drawing takes most of a small run."""
    monkeypatch.setattr(page, "write_figures", lambda *_: [])


def asked(case, out, *more):
    return ["--checkpoint", str(case.checkpoint.path), "--brain", str(case.brain.path), "--out", str(out), *more]


@pytest.fixture(scope="module")
def done(case):
    """A whole run, pairs and partners included."""
    out = case.folder / "glut"
    partners = ("--partners", "Slc17a7", "--permutations", "19")
    assert run(asked(case, out, "--pathway", "GLUT", "--pairwise", *partners)) == 0
    return out


def test_the_map_is_what_was_computed_and_says_how(case, done):
    job = AttentionJob.of(case.checkpoint, case.brain, GLUT, pairwise=True)
    opened = Map.open(done / "attention.zarr")
    expected = planes_of(job)
    assert opened.shape == (len(job.channels), 3, 5, 8)
    np.testing.assert_array_equal(opened.values(), expected)
    np.testing.assert_array_equal(opened.plane("Slc17a7", 1), expected[job.channels.index("Slc17a7"), 1])
    own = opened.attributes
    assert (own.step_px, own.pixel_um, own.box, own.sections) == (32, 0.4, job.region, (0, 1, 2))
    assert own.details["checkpoint"] == case.checkpoint.sha256
    assert own.details["brain_fingerprint"] == case.brain.fingerprint
    assert own.details["pathway"] == "GLUT"
    assert own.details["genes"] == list(GLUT)
    assert "sum over i, j of the set of A_ij x_j" in own.details["definition"]
    for channel in range(len(job.channels)):  # colours: to half a step, clipped above
        low, high = own.bounds(channel)
        plane = expected[channel][np.isfinite(expected[channel])]
        assert low == 0
        assert (plane > high * 1.001).mean() < 0.2
        known = np.asarray(opened._image[channel])[np.isfinite(expected[channel])]
        assert np.abs((known - 1) / 254 * high - plane.clip(0, high)).max() <= high / 508 * 1.01


def test_summary_figures_and_tables(done):
    record = json.loads((done / "summary.json").read_text())
    assert record["format"] == "attention"
    assert record["figures"] == ["maps.png", "joint.png", "neighbours.png", "partners.png"]
    shown = (done / "summary.html").read_text()
    for name in record["figures"]:
        picture = np.asarray(Image.open(done / name).convert("RGB"))
        assert picture.std() > 5
        assert f'src="{name}"' in shown
    assert not (done / ".work").exists()
    with (done / "partners.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["rank"] for row in rows] == ["1", "2", "3", "4", "5"]
    assert {row["gene"] for row in rows} == {"Mog", "Slc17a6", "Aqp4", "Cldn5", "Vip"}
    assert record["partners_top"][0]["gene"] == rows[0]["gene"]
    own = Map.open(done / "attention.zarr")
    said = {(row["channel"], row["with"]): row["value"] for row in record["restates"]}
    levels = [np.log2(v.ravel() * k + 1) for v, k in ((own.plane(ATTENTION, 1), 6), (own.plane("Slc17a6", 1), 1))]
    assert said[ATTENTION, "Slc17a6"] == pytest.approx(np.corrcoef(*levels)[0, 1], abs=1e-5)


def test_the_viewer_shows_it_over_the_brain(case, done):
    scene = open_scene([case.brain.path, done / "attention.zarr"])
    layer = next(layer for layer in manifest(scene, None)["layers"] if layer["kind"] == "map")
    assert layer["name"] == "attention GLUT"
    assert layer["step_px"] == 32
    assert len(layer["ranges"]) == len(layer["channels"]) == 7
    tile = Tiles(scene).tile(layer["id"], 0, 2, 0, 0, layer["channels"].index(PREVIOUS))
    assert tile.shape == (5, 8)
    assert tile.all()


@pytest.mark.usefixtures("no_figures")
def test_a_killed_run_goes_on(case, tmp_path, monkeypatch, capfd):
    more = ("--genes", "Mog,Cldn5", "--workers", "1")
    out = tmp_path / "out"
    script = (
        "import os, sys\n"
        "from tera_mind.analysis import attention as module\n"
        "module.BLOCK_PATCHES = 2\n"
        "job, done = module.AttentionJob.__call__, []\n"
        "def call(self, unit):\n"
        "    done.append(unit)\n"
        "    return os.kill(os.getpid(), 9) if len(done) == 4 else job(self, unit)\n"
        "module.AttentionJob.__call__ = call\n"
        "from tera_mind.cli.attention import run\n"
        "run(sys.argv[1:])\n"
    )
    killed = subprocess.run([sys.executable, "-c", script, *asked(case, out, *more)], capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert [path.name for path in out.iterdir()] == [".work"]
    monkeypatch.setattr(module, "BLOCK_PATCHES", 2)
    again = []
    job = AttentionJob.__call__
    monkeypatch.setattr(AttentionJob, "__call__", lambda self, unit: again.append(unit) or job(self, unit))
    assert run(asked(case, out, *more)) == 0
    assert len(again) == 2 * 3 - 3
    whole = planes_of(AttentionJob.of(case.checkpoint, case.brain, ("Mog", "Cldn5")))
    np.testing.assert_array_equal(Map.open(out / "attention.zarr").values(), whole)
    assert "6/6" in capfd.readouterr().err


@pytest.mark.usefixtures("no_figures")
def test_finished_folders_stores_and_inputs_are_not_overwritten(case, done, tmp_path):
    before = (done / "summary.json").read_bytes()
    with pytest.raises(InputError, match="holds a finished analysis: give --overwrite"):
        run(asked(case, done, "--pathway", "GLUT"))
    assert (done / "summary.json").read_bytes() == before
    with pytest.raises(InputError, match="is a file or a store"):
        run(asked(case, done / "attention.zarr", "--pathway", "GLUT"))
    with pytest.raises(InputError, match="holds the input"):
        run(asked(case, case.folder, "--pathway", "GLUT"))
    out = tmp_path / "out"
    for genes in ("Mog,Vip", "Vip,Aqp4"):
        assert run(asked(case, out, "--genes", genes, "--sections", "1", "--region", "0:64,0:96", "--overwrite")) == 0
    assert Map.open(out / "attention.zarr").attributes.channels[2:4] == ("Vip", "Aqp4")
    assert Map.open(out / "attention.zarr").shape == (5, 1, 2, 3)


def test_a_dry_run_writes_nothing(case, tmp_path, capsys):
    assert run(asked(case, tmp_path / "out", "--pathway", "BLOD", "--dry-run")) == 0
    assert "nothing was written" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_asked(case, tmp_path):
    own = tmp_path / "own.yaml"
    own.write_text("PAIR: [Mog, Slc17A6]\n")
    for more, error, words in (
        (("--pathway", "DOPA"), PanelMismatchError, r"panel of 6 genes lacks Nr4a2 .*; Th"),
        (("--pathway", "NONE"), InputError, "no pathway 'NONE'; there are GLUT, DOPA, BLOD"),
        (("--pathway", "PAIR", "--pathways", str(own)), PanelMismatchError, r"lacks Slc17A6 \(nearest: Slc17a6"),
        (("--pathway", "GLUT", "--partners", "Foo"), PanelMismatchError, "lacks Foo"),
        (("--pathway", "GLUT", "--sections", "x"), InputError, "--sections is a number or first:last"),
        (("--pathway", "GLUT", "--sections", "0", "--figure-section", "2"), InputError, "--figure-section must be"),
        (("--pathway", "GLUT", "--workers", "-1"), InputError, "--workers"),
        (("--pathway", "GLUT", "--partners", "Mog", "--permutations", "0"), InputError, "permutations must be"),
    ):
        with pytest.raises(error, match=words) as caught:
            run(asked(case, tmp_path / "out", *more))
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("no_figures")
def test_two_brains_are_compared(case, done, tmp_path):
    """A brain with the same transcripts agrees with itself, one with others does not; rankings as scipy has them."""
    attention = Map.open(done / "attention.zarr")
    same = compare(attention, done, 0)
    assert same["maps"][ATTENTION]["value"] == pytest.approx(1)
    assert same["partners"]["value"] == pytest.approx(1)
    make_brain(tmp_path / "other.zarr", shape=(2, 3, 170, 260), rows=5000, genes=BRAIN_GENES, seed=9)
    line = ["--checkpoint", str(case.checkpoint.path), "--brain", str(tmp_path / "other.zarr"), "--pathway", "GLUT"]
    assert run([*line, "--out", str(tmp_path / "o"), "--compare", str(done), "--partners", "Slc17a7"]) == 0
    record = json.loads((tmp_path / "o/summary.json").read_text())
    found = record["reproducibility"][0]
    assert abs(found["maps"][ATTENTION]["value"]) < 0.5
    assert found["maps"][ATTENTION]["low"] < found["maps"][ATTENTION]["value"] < found["maps"][ATTENTION]["high"]
    orders = []
    for folder in (done, tmp_path / "o"):
        with (folder / "partners.csv").open() as file:
            orders.append({row["gene"]: int(row["rank"]) for row in csv.DictReader(file)})
    n = len(orders[0])
    gaps = sum((orders[0][gene] - orders[1][gene]) ** 2 for gene in orders[0])
    assert found["partners"]["value"] == pytest.approx(1 - 6 * gaps / (n * (n**2 - 1)))
    run([*line, "--region", "0:64,0:64", "--out", str(tmp_path / "p"), "--compare", str(done)])
    assert "other boxes" in json.loads((tmp_path / "p/summary.json").read_text())["reproducibility"][0]["lines"][0]


def test_smoothing_leaves_holes_and_darkens_nothing():
    level = np.full((20, 20), 3.0, np.float32)
    level[4:9, 5:11] = np.nan
    found = smooth(level)
    np.testing.assert_array_equal(np.isnan(found), np.isnan(level))
    np.testing.assert_allclose(found[np.isfinite(found)], 3.0, rtol=1e-6)
