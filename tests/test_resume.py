"""A run that was killed, stopped by a signal or cut short while it saved ends as the uninterrupted one does."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
import yaml
from tiny_training import (
    RECIPE,
    differences,
    exit_code,
    fit_arguments,
    in_child,
    log_column,
    tiny_recipe,
    tiny_shards,
    with_callback,
)

from callbacks.checkpoint import AtomicCheckpointIO
from callbacks.log import MetricsLog

#: epochs of 5 batches: 5 steps, or 3 of 2, 2 and 1 accumulated batches; validation in the midst of each
STEPS = 8
SETTINGS = {
    "trainer__max_steps": STEPS,
    "trainer__val_check_interval": 4,
    "data__steps_per_epoch": 5,
    "model__dropout": 0.2,
}


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return tiny_shards(tmp_path_factory.mktemp("shards"))


@pytest.fixture(scope="module")
def arguments(shards, tmp_path_factory):
    recipe = tiny_recipe(tmp_path_factory.mktemp("recipe"), LastCheckpoint={"every_n_train_steps": 3})
    return lambda out, **more: ["fit", *fit_arguments(shards, out, recipe, **(SETTINGS | more))]


@pytest.fixture(scope="module")
def whole(arguments, tmp_path_factory):
    """Uninterrupted runs, by the number of accumulated batches."""
    made: dict[int, Path] = {}

    def run(accumulated):
        if accumulated not in made:
            made[accumulated] = tmp_path_factory.mktemp("whole")
            assert exit_code(arguments(made[accumulated], trainer__accumulate_grad_batches=accumulated)) == 0
        return made[accumulated]

    return run


def assert_same_end(one, other, steps=STEPS):
    first, second = (torch.load(folder / "last.ckpt", weights_only=True) for folder in (one, other))
    assert first["global_step"] == steps
    for content in (first, second):
        del content["callbacks"]["Timer"]  # a clock
    assert not differences(first, second)
    assert (one / "log" / "metrics.csv").read_text() == (other / "log" / "metrics.csv").read_text()
    assert json.loads((other / "run.json").read_text())["status"] == "finished"


slow = pytest.mark.slow


@pytest.mark.parametrize(
    ("accumulated", "step", "where"),
    [
        (2, 5, "batch"),
        pytest.param(1, 3, "save", marks=slow),  # nothing was saved before
        pytest.param(1, 6, "save", marks=slow),
        pytest.param(1, 4, "validation", marks=slow),
        pytest.param(1, 5, "batch", marks=slow),  # between two epochs
        pytest.param(1, 7, "batch", marks=slow),
        pytest.param(2, 2, "validation", marks=slow),
        pytest.param(2, 3, "batch", marks=slow),
        pytest.param(2, 7, "batch", marks=slow),
    ],
)
def test_killed_and_resumed_is_bit_equal(accumulated, step, where, whole, arguments, tmp_path):
    given = arguments(tmp_path, trainer__accumulate_grad_batches=accumulated)
    assert (
        in_child([*given, with_callback("SignalAt", step=step, number=signal.SIGKILL, where=where)]) == -signal.SIGKILL
    )
    assert json.loads((tmp_path / "run.json").read_text())["status"] == "running"
    assert in_child(given) == 0
    assert_same_end(whole(accumulated), tmp_path)


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (signal.SIGTERM, 75),
        pytest.param(signal.SIGUSR1, 75, marks=slow),
        pytest.param(signal.SIGINT, 130, marks=slow),
    ],
)
def test_stopped_and_resumed_is_bit_equal(number, code, whole, arguments, tmp_path):
    """The signal comes at the start of a step whose end is followed by accumulated batches, validation and all."""
    given = arguments(tmp_path, trainer__accumulate_grad_batches=2)
    assert in_child([*given, with_callback("SignalAt", step=4, number=number)]) == code
    record = json.loads((tmp_path / "run.json").read_text())
    assert (record["status"], record["global_step"]) == ("stopped", 5)
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 5
    assert in_child(given) == 0
    assert_same_end(whole(2), tmp_path)
    assert json.loads((tmp_path / "run.json").read_text())["started"] == record["started"]


@pytest.mark.parametrize("every", [pytest.param(3, marks=slow), 250])
def test_a_stop_in_the_last_step_of_an_epoch_saves_that_step(every, whole, shards, tmp_path):
    recipe = tiny_recipe(tmp_path, LastCheckpoint={"every_n_train_steps": every})
    out = tmp_path / "run"
    given = ["fit", *fit_arguments(shards, out, recipe, **SETTINGS)]
    assert in_child([*given, with_callback("SignalAt", step=4, number=signal.SIGTERM)]) == 75
    record = json.loads((out / "run.json").read_text())
    assert (record["status"], record["global_step"]) == ("stopped", 5)
    assert torch.load(out / "last.ckpt", weights_only=True)["global_step"] == 5
    assert in_child(given) == 0
    assert_same_end(whole(1), out)


@pytest.mark.parametrize("interval", [4, pytest.param(5, marks=slow)])
def test_more_steps_after_the_end_of_an_epoch_are_those_of_a_longer_run(interval, arguments, tmp_path):
    more = {"model__decay": "constant", "trainer__val_check_interval": interval}
    assert in_child(arguments(tmp_path / "long", **more)) == 0
    assert in_child(arguments(tmp_path / "two", **(more | {"trainer__max_steps": 5}))) == 0
    assert in_child(arguments(tmp_path / "two", **more)) == 0
    assert_same_end(tmp_path / "long", tmp_path / "two")


@pytest.mark.slow
@pytest.mark.parametrize("interval", [4, 5])
def test_killed_after_a_checkpoint_at_the_end_of_an_epoch_of_a_run_without_max_steps(interval, shards, tmp_path):
    recipe = tiny_recipe(tmp_path, LastCheckpoint={"every_n_train_steps": 5})
    more = SETTINGS | {"trainer__max_steps": -1, "trainer__max_epochs": 2, "trainer__val_check_interval": interval}
    whole, killed = (["fit", *fit_arguments(shards, tmp_path / name, recipe, **more)] for name in ("whole", "killed"))
    assert in_child(whole) == 0
    assert in_child([*killed, with_callback("SignalAt", step=7, number=signal.SIGKILL)]) == -signal.SIGKILL
    assert torch.load(tmp_path / "killed" / "last.ckpt", weights_only=True)["global_step"] == 5
    assert in_child(killed) == 0
    assert_same_end(tmp_path / "whole", tmp_path / "killed", 10)


def test_killed_between_checkpoint_and_log_row_loses_no_row(whole, arguments, tmp_path):
    given = arguments(tmp_path)
    assert (
        in_child([*given, with_callback("SignalAt", step=3, number=signal.SIGKILL, where="saved")]) == -signal.SIGKILL
    )
    assert ",2," not in (tmp_path / "log" / "metrics.csv").read_text()
    assert in_child(given) == 0
    assert_same_end(whole(1), tmp_path)


def test_last_checkpoint_knows_the_best_of_the_same_validation(shards, tmp_path):
    settings = yaml.safe_load(RECIPE.read_text())
    settings["trainer"]["callbacks"].append({"class_path": "callbacks.checkpoint.BestCheckpoints"})
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(settings))
    out = tmp_path / "run"
    given = [
        "fit",
        *fit_arguments(shards, out, tmp_path / "recipe.yaml", trainer__max_steps=4, data__steps_per_epoch=5),
    ]
    (out / "best").mkdir(parents=True)
    (out / "best" / "step=77.ckpt").write_bytes(b"of a killed run")
    (out / "best" / "mine.ckpt").write_bytes(b"")
    assert exit_code(given) == 0
    callbacks = torch.load(out / "last.ckpt", weights_only=True)["callbacks"]
    (best,) = (state for name, state in callbacks.items() if name.startswith("BestCheckpoints"))
    kept = {str(path) for path in (out / "best").glob("step=*")}
    assert kept == set(best["best_k_models"])
    assert best["best_model_score"] == min(log_column(out, "val/loss"))
    assert (out / "best" / "mine.ckpt").exists()


@pytest.fixture(scope="module")
def stopped(arguments, tmp_path_factory):
    """A run that was stopped after step 3, in the midst of an epoch."""
    out = tmp_path_factory.mktemp("stopped")
    assert in_child([*arguments(out), with_callback("SignalAt", step=2, number=signal.SIGTERM)]) == 75
    return out


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"model__prediction": "epsilon"}, "prediction v there, epsilon now"),
        ({"trainer__accumulate_grad_batches": 2}, "trainer.accumulate_grad_batches 1, this one has 2"),
    ],
)
def test_what_would_be_another_run_is_refused(changed, words, stopped, arguments, tmp_path, capsys):
    out = shutil.copytree(stopped, tmp_path / "run")
    assert exit_code(arguments(out, **changed)) == 2
    assert words in capsys.readouterr().err
    if "model__prediction" in changed:
        (out / "run.json").unlink()
        assert exit_code(arguments(out, **changed)) == 2
        assert "predicts v, the settings ask for epsilon" in capsys.readouterr().err


def test_settings_of_the_optimiser_are_those_of_the_resumed_run(stopped, arguments, tmp_path):
    out = shutil.copytree(stopped, tmp_path / "run")
    assert exit_code(arguments(out, model__weight_decay=0.5, model__decay="constant", trainer__max_steps=4)) == 0
    (group,) = torch.load(out / "last.ckpt", weights_only=True)["optimizer_states"][0]["param_groups"]
    assert (group["weight_decay"], tuple(group["betas"])) == (0.5, (0.9, 0.999))


def test_a_finished_run_is_left_as_it_is_and_another_one_refused(whole, arguments, capsys):
    folder = whole(2)
    before = {path: path.read_bytes() for path in (folder / "last.ckpt", folder / "log" / "metrics.csv")}
    assert exit_code(arguments(folder, trainer__accumulate_grad_batches=2)) == 0
    assert {path: path.read_bytes() for path in before} == before
    capsys.readouterr()
    assert exit_code(arguments(folder, model__seed=5)) == 2
    assert "seed 0 there, 5 now" in capsys.readouterr().err


def test_a_process_that_dies_while_it_saves_leaves_the_old_checkpoint(tmp_path):
    file, content = tmp_path / "last.ckpt", {"weights": torch.arange(5000)}
    AtomicCheckpointIO().save_checkpoint(content, file)

    def die(content, path):
        Path(path).write_bytes(b"half of a")
        os.kill(os.getpid(), signal.SIGKILL)

    child = os.fork()
    if child == 0:
        torch.save = die
        AtomicCheckpointIO().save_checkpoint({"weights": torch.zeros(9)}, file)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert len(list(tmp_path.iterdir())) == 2
    assert torch.equal(torch.load(file, weights_only=True)["weights"], content["weights"])
    AtomicCheckpointIO().save_checkpoint(content, file)
    assert list(tmp_path.iterdir()) == [file]


def test_log_goes_on_where_the_checkpoint_was(tmp_path):
    log = MetricsLog(str(tmp_path))
    for step in range(4):
        log.log_metrics({"train/loss": step / 2}, step)
    log.log_metrics({"val/loss": 7.0}, 3)
    file = tmp_path / "log" / "metrics.csv"
    with file.open("a") as table:
        table.write("4,0.")  # killed in the midst of a row
    resumed = MetricsLog(str(tmp_path))
    assert resumed.experiment is not None
    resumed.rewind(3)
    resumed.log_metrics({"train/loss": 9.0}, 3)
    resumed.log_metrics({"new": 1.0}, 3)
    resumed.log_metrics({"new": 2.0}, 4)
    assert file.read_text().split() == [
        "new,step,train/loss,val/loss", ",0,0.0,", ",1,0.5,", ",2,1.0,", ",3,9.0,", "1.0,3,,", "2.0,4,,",
    ]  # fmt: skip
    fresh = MetricsLog(str(tmp_path))
    assert fresh.experiment is not None
    fresh.rewind(0)
    fresh.log_metrics({"new": 3.0}, 0)
    assert file.read_text().split() == ["new,step,train/loss,val/loss", "3.0,0,,"]


def test_another_run_s_checkpoint_is_continued_with_the_settings_of_this_run(whole, arguments, tmp_path):
    """As older releases wrote it: what came from the data lay among the settings."""
    content = torch.load(whole(1) / "last.ckpt", weights_only=True)
    content["hyper_parameters"] |= {"genes": 5, "stains": 2, "gene_sections": 1, "patch_px": 16, "bin_px": 4}
    torch.save(content, tmp_path / "other.ckpt")
    given = {"ckpt_path": tmp_path / "other.ckpt", "trainer__max_steps": STEPS + 1, "trainer__limit_val_batches": 0}
    out = tmp_path / "run"
    assert exit_code(arguments(out, **given, model__decay="constant", model__learning_rate=0.25)) == 0
    assert torch.load(out / "last.ckpt", weights_only=True)["global_step"] == STEPS + 1
    kept, own = log_column(out, "train/learning_rate")  # the checkpoint brings the row of its own last step
    assert kept < own == 0.25
