"""The comparison of all methods: its files are complete and resolve; planted runs become tables, tests, pictures."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from metrics_folder import write_metrics_folder
from PIL import Image
from sweep_case import write_sweep
from tiny_brain import make_brain
from tiny_training import ROOT

from tera_mind.cli.main import main
from tera_mind.cli.sweep import write_results
from tera_mind.cli.sweep_check import check_commands, check_metrics
from tera_mind.cli.sweep_compare import write_comparisons
from tera_mind.errors import InputError
from tera_mind.formats.volume import Volume, VolumeAttributes
from tera_mind.geometry import Box
from tera_mind.module import MODULES
from tera_mind.report.comparison import same_region as pictures
from tera_mind.report.comparison.runs import load_entries
from tera_mind.report.comparison.scores import Comparison
from tera_mind.report.comparison.style import Drawing
from tera_mind.sweep.definition import read_sweep
from tera_mind.sweep.plan import make_plan
from tera_mind.sweep.state import Marker

EXPERIMENTS = ROOT / "experiments"
MAIN, SWAP = EXPERIMENTS / "comparison.yaml", EXPERIMENTS / "comparison_swap.yaml"
DEMO = EXPERIMENTS / "baselines" / "demo" / "compare.yaml"
OF = {"comparison": MAIN, "swap": SWAP, "demo": DEMO}


def recipes(plan):
    """The methods' own recipe of every training, and the shared one behind it."""
    found = []
    for task in plan.of_stage("fit"):
        files = [task.words[i + 1] for i, word in enumerate(task.words) if word == "-c"]
        found.append(tuple(files))
    return found


def planned(name, tmp_path):
    folder = {"comparison": EXPERIMENTS, "swap": EXPERIMENTS, "demo": DEMO.parent}[name]
    return make_plan(read_sweep(OF[name], {"recipes": str(folder)}), tmp_path)


@pytest.mark.parametrize("name", OF)
def test_all_methods_on_the_same_shards_and_budget_with_every_control(name, tmp_path):
    plan = planned(name, tmp_path)
    check_metrics(plan.sweep)
    splits = 2 if name == "swap" else 1
    assert len(plan.of_stage("shards")) == splits
    assert len(plan.of_stage("fit")) == len(plan.runs)
    used = recipes(plan)
    budgets = {files[1] for files in used}
    assert len(budgets) == 1
    own = [yaml.safe_load(Path(files[0]).read_text()) for files in used]
    methods = {recipe.get("method", "tera-mind") for recipe in own}  # the paper's main run does not name its own
    assert methods == set(MODULES)
    budget = yaml.safe_load(Path(budgets.pop()).read_text())["trainer"]
    assert budget.keys() & {"max_steps", "max_time"} == {"max_steps", "max_time"}
    for run in plan.runs:
        words = plan.task(run, "evaluate").words
        for control in ("--generated", "--shuffled", "--zeroed"):
            stage = "generate" if control == "--generated" else control[2:]
            assert words[words.index(control) + 1] == str(plan.task(run, stage).makes)
        treatments = {s: plan.task(run, s).words for s in ("generate", "shuffled", "zeroed")}
        assert "--genes" not in treatments["generate"]
        assert treatments["shuffled"][treatments["shuffled"].index("--genes") + 1] == "shuffled"
        treated = {"--genes", "shuffled", "zeroed"}
        alike = [[w for w in words if w not in treated][:-2] for words in treatments.values()]
        assert alike[0] == alike[1] == alike[2]
    assert plan.sweep.table.compare is not None


def test_the_swap_trains_on_one_supporting_brain_and_tests_on_the_other(tmp_path):
    plan = planned("swap", tmp_path)
    # the same methods, at the same steps, as in the comparison
    alike = [{key: run.settings[key] for key in ("method", "file", "steps")} for run in plan.runs]
    own = [dict(point) for point in read_sweep(MAIN).points]
    assert alike == own * 2
    for run in plan.runs:
        train, test = run.settings["train"], run.settings["test"]
        assert {train, test} == {"609882", "609889"}
        assert f"brains/{train}.zarr" in plan.task(run, "shards").words
        words = plan.task(run, "evaluate").words
        assert words[words.index("--brain") + 1] == f"brains/{test}.zarr"
        assert words[words.index("--train-brain") + 1] == f"brains/{train}.zarr"


@pytest.mark.slow
@pytest.mark.parametrize("name", OF)
def test_every_command_of_a_comparison_is_accepted(name, tmp_path):
    plan = planned(name, tmp_path)
    seed = plan.sweep.seeds[0]
    check_commands([task for task in plan.tasks if any(run.seed == seed for run in task.runs)])


# ---- planted runs

BOX = (0, 512, 0, 512)
SHIFT = {"ours": 0, "rival": 40}


def volume(path, brain, image):
    attributes = VolumeAttributes(
        stains=tuple(brain.stains), pixel_um=brain.pixel_um, brain=brain.path.name,
        brain_fingerprint=brain.fingerprint, box=Box(*BOX), sections=(0,), patch_px=64, checkpoint="0" * 64, seed=0,
        steps=1, genes="as measured", section_um=10.0, settings={},
    )  # fmt: skip
    return Volume.write(path, image, attributes)


def real(brain):
    return brain.image(Box(*BOX), [0])


def planted_sweep(folder, split=("",)):
    """Two methods of two seeds, done: `ours` paints the tissue itself, `rival` paints it brighter and scores less."""
    brain = make_brain(folder / "brain.zarr", shape=(2, 1, 512, 512), rows=5000)
    stages = {
        "fit": {"command": "fit {recipe} --seed_everything {seed} --m {method} --s {split}", "makes": "last.ckpt"},
        "evaluate": {"command": "evaluate {fit}", "makes": "evaluation/metrics.json"},
    }
    table = {"from": "evaluate", "setting": "method", "metrics": ["psnr/DAPI"], "compare": "ours"}
    grid = {"method": ["rival", "ours", "absent"], "split": list(split)}
    path = write_sweep(folder, list=[{"x": 1}], grid=grid, stages=stages, table=table)
    plan = make_plan(read_sweep(path), folder / "out")
    for run in plan.runs:
        method = run.settings["method"]
        fit, task = plan.task(run, "fit"), plan.task(run, "evaluate")
        if method == "absent":
            fit.folder.mkdir(parents=True, exist_ok=True)
            Marker(fit.fingerprint, fit.words, "failed", 1, 1.0).write(fit.folder)
            continue
        image = np.clip(real(brain).astype(int) + SHIFT[method], 0, 255).astype(np.uint8)
        made = volume(task.folder / "volume.zarr", brain, image)
        write_metrics_folder(
            task.makes.parent, quality=1.0 if method == "ours" else 0.0, seed=run.seed, sections=(0,), test_box=BOX,
            settings={
                "brain": str(brain.path), "brain_fingerprint": brain.fingerprint, "preview_section": 0,
                "volumes": {"generated": str(made.path)},
            },
        )  # fmt: skip
        fit.folder.mkdir(parents=True, exist_ok=True)
        fit.makes.touch()
        record = {
            "format": "run", "version": 1, "method": f"of {method}", "processes": 2,
            "parameters": 10 + SHIFT[method], "tile_exact": True,
            "halo_px": 0, "global_step": 7, "device": "cpu", "precision": "32-true", "status": "finished",
            "started": "2026-01-01T00:00:00+00:00", "ended": "2026-01-02T00:00:30+00:00",
        }  # fmt: skip
        (fit.folder / "run.json").write_text(json.dumps(record))
        for done in (fit, task):
            Marker(done.fingerprint, done.words, "done", 0, 1.0).write(done.folder)
    return plan, brain


def test_planted_runs_become_tables_tests_pictures_and_a_report(tmp_path, capsys, monkeypatch):
    draw = "tera_mind.report.comparison.figures.draw_all"  # tests/test_compare.py draws the others
    monkeypatch.setattr(draw, lambda comparison, _: [pictures.same_region(comparison)])
    plan, _ = planted_sweep(tmp_path)
    assert write_results(plan) == 0
    out = plan.out / "comparison"
    content = json.loads((out / "comparison.json").read_text())
    assert content["reference"] == "ours"
    assert [e["name"] for e in content["entries"] if e["method"] == "generated"] == ["ours", "rival"]
    assert [e["name"] for e in content["entries"]][2:] == ["Ridge", "Mean image", "Real", "Real vs real"]
    assert content["notes"][0] == "Not compared, because not done: absent (fit failed)."
    assert all(len(e["runs"]) == 2 for e in content["entries"] if e["method"] == "generated")
    psnr = [test for test in content["tests"] if (test["metric"], test["stain"]) == ("psnr", "DAPI")]
    assert [test["entry"] for test in psnr] == ["rival", "Ridge", "Mean image"]
    assert psnr[0]["verdict"] == "worse"
    assert psnr[0]["p_holm"] < 0.05
    assert "figures/same_region.png" in (out / "compare.md").read_text()
    assert Image.open(out / "figures" / "same_region.png").width > 500
    with (out / "capacity.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert sorted((line["name"], line["method"], line["parameters"], line["seconds"]) for line in lines) == [
        *[("ours", "of ours", "10", "86430")] * 2,
        *[("rival", "of rival", "50", "86430")] * 2,
    ]
    capacity = (out / "capacity.md").read_text()
    assert capacity.startswith("Declared budget of each training: 3 steps.\n")  # the override, not the recipe's 1
    assert "| rival | 50 | yes | 0 | 2 | 7, 7 | 24, 24 | 2 x cpu |" in capacity
    with (out / "controls.csv").open() as file:
        scores = {line["method"]: line for line in csv.DictReader(file)}
    for name in ("ours", "rival"):
        seeds = [
            {row["method"]: row["value"] for row in found if (row["metric"], row["stain"]) == ("psnr", "DAPI")}
            for found in (
                json.loads(plan.task(run, "evaluate").makes.read_text())["table"]
                for run in plan.runs
                if run.settings["method"] == name
            )
        ]
        for made in ("generated", "shuffled", "zeroed"):
            assert float(scores[name][made]) == pytest.approx(np.mean([seed[made] for seed in seeds]))
    report = json.loads((out / "wandb_report.json").read_text())["report"]
    grids = [block for block in report["blocks"] if block["class"] == "PanelGrid"]
    shown = [metric for panel in grids[-1]["panels"] for metric in panel["metrics"]]
    assert "compare/psnr/DAPI" in shown
    # as `compare --wandb` groups by its folder; training runs of the same group are no lines of the comparison
    assert grids[0]["runsets"][0]["filters"] == "Group == 'comparison' and JobType == 'compare'"
    assert grids[0]["panels"][0]["media_keys"] == ["compare/same_region"]
    assert all(panel["max_runs_to_show"] > len(content["entries"]) for panel in grids[-1]["panels"])
    said = capsys.readouterr().out.splitlines()[-1]
    assert said.startswith("again, and into W&B: tera-mind compare --group ours=")


def test_splits_are_compared_apart_and_what_is_not_done_is_left_out(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("tera_mind.report.comparison.figures.draw_all", lambda *_: [])
    plan, _ = planted_sweep(tmp_path, ("a", "b"))
    for run in plan.runs:
        if run.settings == {"x": 1, "method": "ours", "split": "b"}:
            plan.task(run, "evaluate").makes.unlink()
    assert main(["sweep", str(plan.sweep.path), "--out", str(plan.out), "--collect"]) == 0
    assert {path.name for path in (plan.out / "comparison").iterdir()} == {"split=a"}
    assert "no comparison of split=b: it needs at least two that are done, there are 1" in capsys.readouterr().out


def test_without_the_reference_the_others_are_compared_and_the_page_says_so(tmp_path, monkeypatch):
    plan, _ = planted_sweep(tmp_path)
    monkeypatch.setattr("tera_mind.report.comparison.figures.draw_all", lambda *_: [])
    table = replace(plan.sweep.table, compare="absent")
    write_comparisons(replace(plan, sweep=replace(plan.sweep, table=table)))
    content = json.loads((plan.out / "comparison" / "comparison.json").read_text())
    assert content["reference"] == "rival"  # the first of the file
    assert "Tested against rival, in place of absent, which is not done." in content["notes"]
    assert {test["entry"] for test in content["tests"]} == {"ours", "Ridge", "Mean image"}


def test_the_reference_must_be_a_value_of_the_setting(tmp_path):
    table = {"from": "paint", "setting": "sections", "metrics": ["psnr/DAPI"], "compare": 3}
    with pytest.raises(InputError, match=r"compare is a value of sections \(1, 1, 2, 2\), got 3"):
        read_sweep(write_sweep(tmp_path, table=table))


def test_the_grid_shows_the_same_region_of_all_in_one_range(tmp_path, monkeypatch):
    """Panels as they are handed to the figure: `ours` is the tissue, but for the word on it; `rival` is brighter."""
    plan, brain = planted_sweep(tmp_path)
    runs = {run.settings["method"]: str(plan.task(run, "evaluate").makes.parent) for run in plan.runs if run.seed == 0}
    entries = load_entries([runs["ours"], runs["rival"], f"{runs['ours']}:ridge"], names=["ours", "rival", "ridge"])
    comparison = Comparison(tuple(entries), "ours", (), (), ())
    panels = {}

    class Axes:
        def imshow(self, picture, interpolation):
            assert interpolation == "nearest"
            self.picture = picture

        def set_title(self, name):
            panels[name] = self.picture.astype(int)

        def set_axis_off(self):
            pass

    def figure(name, caption, rows, columns, draw, panel):
        draw(None, np.array([[Axes() for _ in range(columns)] for _ in range(rows)]))
        return Drawing(name, b"", b"", caption)

    monkeypatch.setattr(pictures, "grid_figure", figure)
    drawing = pictures.same_region(comparison)
    assert drawing is not None
    assert drawing.name == "same_region"
    assert drawing.caption.endswith("Without a volume: ridge.")
    assert list(panels) == ["real tissue", "ours", "rival"]
    side = len(panels["ours"])
    free = slice(side // 4, side // 2)  # between the scale bar's corner and the word's
    assert (panels["real tissue"][free] == panels["ours"][free]).all()
    assert not (panels["real tissue"] == panels["ours"]).all()  # SYNTHETIC
    assert panels["rival"][free].mean() > panels["ours"][free].mean() + 5
    image = real(brain)[:, 0]
    low, high = np.percentile(image[0], [1, 99.7])
    blue = np.clip((image[0] - low) / (high - low), 0, 1) * 255  # DAPI covers: its blue adds up to full at the top
    shown = panels["ours"][:: side // 512, :: side // 512, 2]
    assert np.corrcoef(shown[64:128].ravel(), blue[64:128].ravel())[0, 1] > 0.5
    (brain.path).rename(tmp_path / "gone")
    assert pictures.same_region(comparison) is None
