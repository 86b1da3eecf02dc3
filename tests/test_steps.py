"""benchmarks/steps.py: which settings its gate calls faithful, and the page, figure and last line it makes of them."""

from __future__ import annotations

import importlib.util
import json
import sys

import pytest
from tiny_training import ROOT

STAINS = ("DAPI", "PolyT")


def load(name, monkeypatch):
    """A benchmark as a module; its neighbours can be imported, as when it is run."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def page(monkeypatch):
    return load("steps_page", monkeypatch)


def row(stepper, steps, seed=0, **changes):
    """Figures of a setting as good as the reference, but for changes (`frechet_DAPI=130.0`)."""
    both = {
        "frechet": [100.0, 80.0, 120.0],
        "seam_index": [0.98, 0.95, 1.01],
        "seam_step": [1.0, 0.9, 1.1],
        "psnr": [20.0, 19.0, 21.0],
        "pearson_blur": [0.6, 0.5, 0.7],
        "psnr_difference": [0.0, -0.1, 0.1],
    }
    one = {"nuclei_count_ratio": [1.2, 1.1, 1.3], "nuclei_f1": [0.5, 0.4, 0.6], "nucleus_area_ks": [0.1, 0.05, 0.15]}
    made = {f"{name}/{stain}": list(value) for name, value in both.items() for stain in STAINS}
    made |= {f"{name}/DAPI": list(value) for name, value in one.items()}
    for name, value in changes.items():
        made[name[::-1].replace("_", "/", 1)[::-1]][0] = value
    return {"stepper": stepper, "steps": steps, "seed": seed, "distance": [1.0 / steps, 0.0, 1.0], "real": {}, **made}


def verdicts(page, *rows):
    found = page.faithful(rows, page.Setting("ddim", 25))
    return [not verdict for verdict in found]


@pytest.mark.parametrize(
    ("changes", "fits"),
    [
        ({}, True),
        ({"frechet_PolyT": 121.0}, False),
        ({"frechet_DAPI": 40.0}, True),  # nearer to real tissue than the reference
        ({"seam_index_DAPI": 0.94}, False),
        ({"seam_index_DAPI": 1.02}, True),  # outside, but nearer to one than the interval's far end
        ({"seam_index_DAPI": 1.06}, False),
        ({"nuclei_f1_DAPI": 0.39}, False),
        ({"nuclei_f1_DAPI": 0.9}, True),
        ({"nuclei_count_ratio_DAPI": 1.31}, False),
        ({"nuclei_count_ratio_DAPI": 1.0}, True),
        ({"nucleus_area_ks_DAPI": 0.2}, False),
        ({"psnr_PolyT": 18.9}, False),
        ({"pearson_blur_DAPI": 0.1}, True),  # shown, not gated
        ({"nuclei_f1_DAPI": None}, False),
    ],
)
def test_a_setting_is_faithful_within_the_references_intervals(page, changes, fits):
    assert verdicts(page, row("ddim", 25), row("dpm++", 10, **changes)) == [True, fits]


def test_a_lucky_small_number_is_not_faithful(page):
    """Four steps pass where eight of the same solver fail: they fail too; another solver is not touched."""
    rows = [row("ddim", 25), row("dpm++", 8, frechet_DAPI=130.0), row("dpm++", 4), row("unipc", 4), row("dpm++", 15)]
    assert verdicts(page, *rows) == [True, False, False, True, True]
    found = page.faithful(rows, page.Setting("ddim", 25))
    assert found[1] == ["frechet/DAPI"]
    assert found[2] == ["frechet/DAPI at 8 steps"]


def test_the_page_says_what_was_found(page):
    reference, solution = page.Setting("ddim", 25), page.Setting("dpm++", 50)
    rows = [row("ddim", 25), row("unipc", 8), row("ddim", 8, frechet_DAPI=130.0), row("ddim", 25, seed=1),
            row("dpm++", 50)]  # fmt: skip
    found = page.faithful(rows, reference)
    text = page.page(rows, found, STAINS, "a piece", reference, solution, page.Setting("unipc", 8))
    assert "**The cheapest faithful setting is UniPC-2 with 8 steps**: 1.9" in text
    lines = text.splitlines()
    assert any(line.startswith("| DDIM | 8 | no | 130 [80, 120] / 100 [80, 120] |") for line in lines)
    assert any(line.startswith("| UniPC-2 | 8 | yes |") for line in lines)
    assert any(line.startswith("| DDIM, other noise | 25 |  |") for line in lines)
    assert "- DDIM, 8: frechet/DAPI" in lines
    assert page.figure(rows, STAINS, reference).startswith(b"\x89PNG")


@pytest.mark.slow
def test_the_study_runs_and_goes_on(monkeypatch, tmp_path, capsys):
    """A patch of tissue with the shipped checkpoint; given again, the kept rows make the same page without painting."""
    steps = load("steps", monkeypatch)
    given = ["--tiny", "--device", "cpu", "--work", str(tmp_path / "work"), "--write", str(tmp_path / "docs/steps.md")]
    assert steps.main(given) == 0
    result = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert result["benchmark"] == "steps"
    assert {(r["stepper"], r["steps"], r["seed"]) for r in result["rows"]} >= {("ddim", 4, 1), ("unipc", 4, 0)}
    own = next(r for r in result["rows"] if (r["stepper"], r["steps"]) == ("ddim", 5))
    assert own["distance"][0] == 0  # the solution itself
    assert all(r["distance"][0] > 0 for r in result["rows"] if r is not own)
    page = (tmp_path / "docs/steps.md").read_text()
    assert (tmp_path / "docs/img/steps.png").stat().st_size > 10_000
    monkeypatch.setattr(steps, "sample_steps", None)
    assert steps.main(given) == 0
    assert (tmp_path / "docs/steps.md").read_text() == page
