"""A sweep: expanded, done as processes (a stand-in for tera-mind), gone on with, tabulated, exported."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from sweep_case import FILE, ROOT, SWEEP, calls, stand_in, write_sweep
from wandb.sdk.launch.sweeps import utils as wandb_sweeps

from tera_mind.cli.sweep import run as sweep_command
from tera_mind.errors import FormatError, InputError, MissingFileError
from tera_mind.sweep.definition import read_sweep
from tera_mind.sweep.execute import Workers, execute, seconds_left
from tera_mind.sweep.export import slurm_jobs, wandb_definition, with_dependencies
from tera_mind.sweep.plan import make_plan, select_runs
from tera_mind.sweep.results import as_csv, as_markdown, collect
from tera_mind.sweep.state import Marker, state_of


def plan_of(tmp_path, out="out", **changes):
    return make_plan(read_sweep(write_sweep(tmp_path, **changes)), tmp_path / out)


def outcomes(results):
    return {result.task.name: result.outcome for result in results}


def test_stages_that_would_be_alike_are_done_once(tmp_path):
    plan = plan_of(tmp_path)
    assert len(plan.runs) == 2 * 2 * 2
    assert [len(plan.of_stage(name)) for name in ("brain", "shards", "fit", "paint")] == [1, 2, 4, 8]
    assert len({task.folder for task in plan.tasks}) == len(plan.tasks) == 15
    run = select_runs(plan, ["sections=2", "steps=5", "seed=1"])[0]
    words = {task.stage.name: " ".join(task.words) for task in plan.of_run(run)}
    out = tmp_path / "out"
    assert words["shards"] == f"shards {out}/shared/brain/brain --zg 4 --make {out}/shared/shards/sections=2_zg=4/s"
    assert words["fit"].startswith(f"fit -c {tmp_path}/recipe.yaml --trainer.max_steps=3 --data.shards {out}/shared/sh")
    assert plan.task(run, "paint").folder == out / "runs" / "sections=2_zg=4_steps=5_seed=1" / "paint"


def test_several_lists_are_multiplied_and_each_keeps_together(tmp_path):
    lists = [[{"sections": 1, "zg": 1}, {"sections": 2, "zg": 4}], [{"steps": 4, "eta": 0}, {"steps": 5, "eta": 1}]]
    paint = {"command": "paint {fit} --eta {eta} --make {here}/metrics.json", "makes": "metrics.json"}
    plan = plan_of(tmp_path, list=lists, grid={}, stages=SWEEP["stages"] | {"paint": paint})
    found = [tuple(run.settings.values()) for run in plan.runs if run.seed == 0]
    assert found == [(1, 1, 4, 0), (1, 1, 5, 1), (2, 4, 4, 0), (2, 4, 5, 1)]
    assert [len(plan.of_stage(name)) for name in ("brain", "shards", "fit", "paint")] == [1, 2, 4, 8]
    assert set(wandb_definition(plan)["parameters"]) == {"sections", "steps", "seed"}
    with pytest.raises(InputError, match="zg is in two lists"):
        plan_of(tmp_path, list=[lists[0], [{"zg": 1}]])


def test_a_recipe_that_a_command_reads_itself_is_followed_as_well(tmp_path):
    fit = {"command": "fit -c {own} {recipe} --make {here}/last.ckpt", "makes": "last.ckpt"}
    own, plans = tmp_path / "own.yaml", []
    for text in ("a: 1", "a: 1", "a: 2"):
        own.write_text(text)
        values = {"size": "small", "own": str(own)}
        plans.append(plan_of(tmp_path, values=values, stages=SWEEP["stages"] | {"fit": fit}))
    prints = [[task.fingerprint for task in plan.of_stage("fit")] for plan in plans]
    assert prints[0] == prints[1] != prints[2]
    assert plans[0].of_stage("shards")[0].fingerprint == plans[2].of_stage("shards")[0].fingerprint


def test_keys_of_the_recipe_reach_training(tmp_path):
    plan = plan_of(tmp_path, grid={"model.channel_mult": [[1, 2], [1, 4]], "steps": [4]})
    words = {task.words for task in plan.of_stage("fit")}
    assert {word for task in words for word in task if word.startswith("--model")} == {
        "--model.channel_mult=[1, 2]",
        "--model.channel_mult=[1, 4]",
    }
    assert len(plan.of_stage("shards")) == 2  # the shards do not depend on it


def test_fingerprints_follow_commands_and_not_places(tmp_path):
    (tmp_path / "moved").mkdir()
    here, there = plan_of(tmp_path), plan_of(tmp_path / "moved", "other")
    assert [task.fingerprint for task in here.tasks] == [task.fingerprint for task in there.tasks]
    (tmp_path / "recipe.yaml").write_text("trainer: {max_steps: 9}\n")
    recipe = make_plan(read_sweep(tmp_path / FILE), tmp_path / "out")
    changed = {a.stage.name for a, b in zip(here.tasks, recipe.tasks, strict=True) if a.fingerprint != b.fingerprint}
    assert changed == {"fit", "paint"}
    values = make_plan(read_sweep(tmp_path / FILE, {"size": "big"}), tmp_path / "out")
    assert not {task.fingerprint for task in recipe.tasks} & {task.fingerprint for task in values.tasks}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"name": "a b"}, "name takes letters"),
        ({"stagess": {}}, "unknown key 'stagess'"),
        ({"table": None}, "table must be"),
        ({"recipe": "lost.yaml"}, "no recipe at"),
        ({"seeds": [0, 0]}, "seeds holds one twice"),
        ({"seeds": [True]}, "whole numbers"),
        ({"grid": {"steps": []}}, "needs a list of values"),
        ({"grid": {"sections": [1]}}, "in both list and grid"),
        ({"grid": {"steps": [4, 4]}}, "come twice"),
        ({"list": [{"sections": 1}, {"zg": 4}]}, "same keys"),
        ({"overrides": {"steps": 1}}, "both an override and a setting"),
        ({"stages": {"fit": {"command": "fit {lost}", "makes": "x"}}}, "{lost} is no setting"),
        ({"stages": {"fit": {"command": "fit '", "makes": "x"}}}, "cannot be read"),
        ({"table": {"from": "paint", "setting": "lost", "metrics": ["psnr/DAPI"]}}, "one that varies"),
    ],
)
def test_a_bad_file_is_refused_with_its_key(tmp_path, changes, said):
    with pytest.raises((InputError, MissingFileError), match=said):
        read_sweep(write_sweep(tmp_path, **changes))


def test_no_yaml_and_no_file(tmp_path):
    (tmp_path / "bad.yaml").write_text("a: [")
    with pytest.raises(InputError, match="no YAML"):
        read_sweep(tmp_path / "bad.yaml")
    with pytest.raises(MissingFileError):
        read_sweep(tmp_path / "lost.yaml")


def test_failures_stop_their_own_run_and_the_next_start_goes_on(tmp_path):
    plan, fake = plan_of(tmp_path), stand_in(tmp_path)
    (tmp_path / "fail").write_text("--zg 4")  # the shards of one setting cannot be made
    first = outcomes(execute(plan.tasks, prefix=[fake]))
    assert [first[task.name] for task in plan.of_stage("shards")] == ["done", "failed"]
    for stage, each in (("fit", 2), ("paint", 4)):
        found = [first[task.name] for task in plan.of_stage(stage)]
        assert (found.count("done"), found.count("blocked")) == (each, each)
    broken = plan.of_stage("shards")[1]
    assert Marker.read(broken.folder).code == 3
    (tmp_path / "fail").unlink()
    made = len(calls(tmp_path))
    second = outcomes(execute(plan.tasks, prefix=[fake]))
    assert set(second.values()) == {"done", "skipped"}
    assert len(calls(tmp_path)) - made == 1 + 2 + 4 == sum(outcome == "done" for outcome in second.values())
    assert {state_of(task) for task in plan.tasks} == {"done"}


def test_what_another_command_made_is_kept_unless_told_otherwise(tmp_path):
    plan, fake = plan_of(tmp_path), stand_in(tmp_path)
    list(execute(plan.tasks[:1], prefix=[fake]))
    (plan.tasks[0].folder / "more").mkdir()
    other = make_plan(read_sweep(tmp_path / FILE, {"size": "big"}), tmp_path / "out")
    assert outcomes(execute(other.tasks[:1], prefix=[fake])) == {"shared/brain": "blocked"}
    assert plan.tasks[0].makes.exists()
    assert len(calls(tmp_path)) == 1
    assert outcomes(execute(other.tasks[:1], prefix=[fake], overwrite=True)) == {"shared/brain": "done"}
    assert calls(tmp_path)[1].startswith("simulate --size big")
    assert not (plan.tasks[0].folder / "more").exists()


def test_a_command_that_leaves_nothing_has_failed(tmp_path):
    plan = plan_of(tmp_path)
    result = next(iter(execute(plan.tasks[:1], prefix=["/bin/true"])))
    assert (result.outcome, state_of(plan.tasks[0])) == ("failed", "failed")
    assert "left no brain" in result.reason


def test_independent_stages_run_at_once(tmp_path):
    plan, fake = plan_of(tmp_path), stand_in(tmp_path)
    assert set(outcomes(execute(plan.tasks[:1], prefix=[fake])).values()) == {"done"}
    (tmp_path / "meet").write_text("shards")  # each waits for the other
    assert set(outcomes(execute(plan.of_stage("shards"), jobs=2, prefix=[fake])).values()) == {"done"}


def test_a_killed_sweep_leaves_no_second_command(tmp_path):
    write_sweep(tmp_path)
    fake = stand_in(tmp_path)
    (tmp_path / "slow").write_text("1.5")
    script = (
        "import sys; from pathlib import Path; from tera_mind.sweep.definition import read_sweep\n"
        "from tera_mind.sweep.plan import make_plan; from tera_mind.sweep.execute import execute\n"
        f"plan = make_plan(read_sweep(Path({str(tmp_path / FILE)!r})), Path({str(tmp_path / 'out')!r}))\n"
        f"list(execute(plan.tasks[:1], prefix=[{fake!r}]))"
    )
    process = subprocess.Popen([sys.executable, "-c", script], env=os.environ | {"PYTHONPATH": str(ROOT)})
    until = time.monotonic() + 30
    while not calls(tmp_path):
        assert time.monotonic() < until
        time.sleep(0.05)
    process.kill()
    process.wait()
    plan = make_plan(read_sweep(tmp_path / FILE), tmp_path / "out")
    assert state_of(plan.tasks[0]) == "begun"
    assert set(outcomes(execute(plan.tasks[:1], prefix=[fake])).values()) == {"skipped"}
    assert len(calls(tmp_path)) == 1
    assert Marker.read(plan.tasks[0].folder).status == "done"


def test_a_signal_is_handed_on_and_nothing_more_starts(tmp_path):
    plan, fake, workers = plan_of(tmp_path), stand_in(tmp_path), Workers()
    (tmp_path / "slow").write_text("20")
    results = execute(plan.tasks, prefix=[fake], workers=workers)
    import threading

    def stop():
        while not calls(tmp_path):
            time.sleep(0.05)
        time.sleep(0.2)
        workers.stop(signal.SIGUSR1)

    threading.Thread(target=stop, daemon=True).start()
    found = outcomes(results)
    assert set(found.values()) == {"stopped"}
    assert len(found) == len(plan.tasks)
    assert len(calls(tmp_path)) == 1
    assert Marker.read(plan.tasks[0].folder).code == 75


def test_training_that_a_signal_stopped_ends_the_sweep_with_75(tmp_path, monkeypatch):
    """SLURM warns the job step alone, and the batch file requeues on 75."""
    monkeypatch.setattr("tera_mind.cli.sweep_check.check_commands", lambda _: None)
    fake, out = stand_in(tmp_path), tmp_path / "out"
    (tmp_path / "stop").write_text("fit")
    command = [str(write_sweep(tmp_path)), "--out", str(out), "--prefix", fake]
    assert sweep_command([*command, "--task", "0"]) == 75
    assert [words.split()[0] for words in calls(tmp_path)] == ["simulate", "shards", "fit"]
    (tmp_path / "fail").write_text("--seed_everything 0")  # what failed by itself does not keep the rest from going on
    assert sweep_command(command) == 75
    assert [words.split()[0] for words in calls(tmp_path)[3:]] == ["fit", "fit"]  # one failed, one stopped, no more


def test_training_counts_as_done_when_it_says_so(tmp_path):
    plan = plan_of(tmp_path)
    fit = plan.of_stage("fit")[0]
    fit.folder.mkdir(parents=True)
    fit.makes.touch()
    assert state_of(fit) == "to do"
    Marker(fit.fingerprint, fit.words, "running").write(fit.folder)
    assert state_of(fit) == "begun"  # a checkpoint is there from early on
    (fit.folder / "run.json").write_text('{"status": "finished"}')
    assert state_of(fit) == "done"
    Marker("of another command", fit.words, "done").write(fit.folder)
    assert state_of(fit) == "changed"
    (fit.folder / "stage.json").write_text("{")
    with pytest.raises(FormatError, match="damaged"):
        state_of(fit)


def test_time_left_is_the_mean_of_each_stage(tmp_path):
    plan = plan_of(tmp_path)
    assert seconds_left(plan.tasks, {}, 1) is None
    assert seconds_left(plan.tasks, {"brain": [1.0], "shards": [2.0]}, 1) is None  # they say nothing of training
    left = seconds_left([*plan.of_stage("fit"), *plan.of_stage("paint")], {"fit": [10.0, 30.0], "paint": [2.0]}, 2)
    assert left == pytest.approx((4 * 20 + 8 * 2) / 2)


def finished(tmp_path):
    """A plan whose runs are all done but the last, with the score 10 * sections + steps + seed / 10."""
    plan = plan_of(tmp_path)
    list(execute(plan.tasks, prefix=[stand_in(tmp_path)]))
    for run in plan.runs:
        task = plan.task(run, "paint")
        score = 10 * run.settings["sections"] + run.settings["steps"] + run.seed / 10
        row = {"method": "generated", "metric": "psnr", "stain": "DAPI", "value": score, "low": score - 1}
        row |= {"high": score + 1, "unit": "dB", "better": "higher"}
        other = {"method": "generated", "metric": "frechet", "stain": "DAPI", "value": float("nan")}  # no score
        task.makes.write_text(json.dumps({"table": [row | {"method": "ridge", "value": -1.0}, row, other]}))
    plan.task(plan.runs[-1], "paint").makes.unlink()
    return plan


def test_table_and_figure(tmp_path, capsys):
    plan = finished(tmp_path)
    table = collect(plan)
    rows = list(csv.DictReader(as_csv(table).splitlines()))
    assert [row["status"] for row in rows] == ["done"] * 7 + ["to do"]
    assert [float(row["psnr/DAPI"]) for row in rows[:-1]] == [
        10 * run.settings["sections"] + run.settings["steps"] + run.seed / 10 for run in plan.runs[:-1]
    ]
    assert rows[-1]["psnr/DAPI"] == ""
    lines = as_markdown(table).splitlines()
    assert lines[2] == "| 1 | 1 | 4 | 2 of 2 | 14.05 (14 to 14.1) |  |"
    assert lines[5] == "| 2 | 4 | 5 | 1 of 2 | 25 |  |"
    assert sweep_command([str(tmp_path / FILE), "--out", str(plan.out), "--collect"]) == 0
    assert "7 of 8 runs" in capsys.readouterr().out
    text = (plan.out / "sweep.json").read_text()
    assert json.loads(text) == table
    assert "NaN" not in text
    assert (plan.out / "figure.png").read_bytes()[:4] == b"\x89PNG"
    assert (plan.out / "figure.pdf").read_bytes()[:4] == b"%PDF"


def test_every_wandb_run_is_one_of_ours(tmp_path):
    plan = plan_of(tmp_path)
    definition = wandb_definition(plan, ["size=big"])
    assert yaml.safe_load(yaml.safe_dump(definition)) == definition
    # the keys that the schema of W&B's `sweeps` 0.3.0 knows
    assert set(definition) <= {"name", "description", "program", "method", "command", "parameters"}
    assert definition["method"] == "grid"
    chosen = []
    import itertools

    names = list(definition["parameters"])
    for values in itertools.product(*(definition["parameters"][name]["values"] for name in names)):
        arguments = {name: {"value": value} for name, value in zip(names, values, strict=True)}
        filled = wandb_sweeps.create_sweep_command_args({"args": arguments})["args_no_hyphens"]
        assert definition["command"][-2:] == ["--only", "${args_no_hyphens}"]
        found = select_runs(plan, filled)
        assert len(found) == 1
        chosen += found
    assert sorted(run.number for run in chosen) == list(range(8))
    with pytest.raises(InputError, match="W&B grids have no lists"):
        wandb_definition(
            plan_of(
                tmp_path,
                list=[{"a": 1, "b": 1}, {"a": 1, "b": 2}, {"a": 2, "b": 1}],
                grid={},
                stages=ONE,
                table=ONE_TABLE,
            )
        )


ONE = {"fit": {"command": "fit {a} {b}", "makes": "x"}}
ONE_TABLE = {"from": "fit", "setting": "a", "metrics": ["psnr/DAPI"]}


def test_slurm_jobs_wait_for_what_they_need(tmp_path):
    plan = plan_of(tmp_path)
    todo = [task for task in plan.tasks if task.stage.name != "brain" and task is not plan.of_stage("fit")[1]]
    jobs = slurm_jobs(plan, todo, Path("slurm/sweep.sbatch"), ["FILE", "OUT"], 3)
    arrays = {job.stage: next((w for w in job.command if w.startswith("--array=")), None) for job in jobs}
    assert arrays == {
        "shards": "--array=0,1%3",
        "fit": "--array=0,2,3%3",
        "paint": "--array=0,1,2,3,4,5,6,7%3",
        "table": None,
    }
    fit = next(job for job in jobs if job.stage == "fit")
    assert "--gpus-per-task=1" in fit.command
    assert fit.command[-5:] == ("slurm/sweep.sbatch", "FILE", "OUT", "--stage", "fit")
    assert "--dependency=afterany:11" in with_dependencies(fit, {"shards": "11"})
    last = jobs[-1]
    assert last.command[-1] == "--collect"
    numbers = {"shards": "11", "fit": "12", "paint": "13"}
    assert "--dependency=afterany:11:12:13" in with_dependencies(last, numbers)
