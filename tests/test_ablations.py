"""The ablations of experiments/ can run as they stand, and what cannot is refused before anything does."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from tera_mind.cli.sweep import run as sweep_command
from tera_mind.cli.sweep_check import check_commands, check_metrics
from tera_mind.errors import InputError
from tera_mind.sweep.definition import read_sweep
from tera_mind.sweep.plan import make_plan, select_runs

FOLDER = Path(__file__).resolve().parents[1] / "experiments" / "ablations"
FILES = sorted(FOLDER.rglob("*.yaml"))
#: the paper's settings
PAPER = {"sections": [1, 2, 4, 8], "whole_patch_px": [64, 128, 256], "steps": [4, 5, 8, 10, 15, 25, 50]}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(FOLDER)))
def test_every_ablation_can_run(path, tmp_path):
    sweep = read_sweep(path)
    plan = make_plan(sweep, tmp_path)
    setting = sweep.table.setting
    found = [point[setting] for point in sweep.points]
    if path.parent.name == "demo":
        assert len(found) == len(PAPER[setting])  # a twin of the published one
        assert len(sweep.seeds) >= 2
    else:
        assert found == PAPER[setting]
    check_metrics(sweep)
    last = select_runs(plan, [f"{setting}={found[-1]}", f"seed={sweep.seeds[-1]}"])
    check_commands(plan.of_run(last[0]))
    names = [callback["class_path"] for callback in yaml.safe_load(sweep.recipe.read_text())["trainer"]["callbacks"]]
    if {name.split(".")[1] for name in names} & {"sampling", "morphometrics", "steps"}:
        assert all("--val" in task.words for task in plan.of_stage("shards"))  # what these callbacks paint
    if setting == "steps":
        assert len(plan.of_stage("fit")) == len(sweep.seeds)  # one trained model a seed


def test_the_published_number_of_patches_and_sections_is_kept(tmp_path):
    for name in ("sections", "patch_size"):
        for point in read_sweep(FOLDER / f"{name}.yaml").points:
            assert point["data.batch_size"] * point["trainer.accumulate_grad_batches"] == 64
    for point in read_sweep(FOLDER / "patch_size.yaml").points:
        assert point["whole_patch_px"] == 2 * point["data.patch_px"]


@pytest.mark.parametrize(
    ("part", "change", "said"),
    [
        ("overrides", {"model.lost": 1}, "model.lost"),
        ("overrides", {"trainer.max_steps": "many"}, "max_steps"),
        ("overrides", {"model.margin_px": 7}, "margin_px must be"),
        ("stages", {"shards": {"command": "shards {brain} --lost --out {here}/s", "makes": "s"}}, "--lost"),
        ("stages", {"shards": {"command": "shred {brain}", "makes": "s"}}, "no command 'shred'"),
        ("table", {"metrics": ["psnt/DAPI"]}, "no metric 'psnt'"),
    ],
)
def test_what_cannot_run_is_refused_before_anything_does(part, change, said, tmp_path):
    raw = yaml.safe_load((FOLDER / "demo" / "steps.yaml").read_text())
    raw |= {"recipe": str(FOLDER.parent / "demo.yaml"), part: raw[part] | change}
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(raw, sort_keys=False))
    with pytest.raises(InputError, match=said):
        sweep_command([str(tmp_path / "sweep.yaml"), "--out", str(tmp_path / "out"), "--only", "steps=4", "seed=0"])
    assert not (tmp_path / "out").exists()
