"""Two real processes on one machine train together (gloo, loopback)."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import pytest
import torch
from tiny_training import (
    ROOT,
    differences,
    exit_code,
    fit_arguments,
    log_column,
    tiny_recipe,
    tiny_shards,
    with_callback,
)

from tera_mind.model.checkpoint import load_checkpoint

#: what makes one process and two train on the same global batches, whose order is the same
TWO = {"trainer__devices": 2, "trainer__strategy": "ddp", "data__batch_size": 2}
ONE = {"trainer__devices": 1, "data__batch_size": 4}


def run_in_own_group(command, cwd, **environment):
    """Run to the end or 120 s, and leave no process behind either way."""
    process = subprocess.Popen(
        command,
        cwd=cwd,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        return process.communicate(timeout=120)[0], process.returncode
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def fit_twofold(arguments, folder):
    """`tera-mind fit` with the two processes that Lightning starts; what it said, and its exit code."""
    return run_in_own_group(
        [sys.executable, "-m", "tera_mind.cli.main", "fit", *arguments],
        cwd=folder,
        PYTHONPATH=os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
        MASTER_ADDR="127.0.0.1",
        GLOO_SOCKET_IFNAME="lo",
        OMP_NUM_THREADS="1",
    )


def records(folder, ranks):
    return [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in range(ranks)]


def test_two_processes_do_what_one_does(tmp_path):
    """The same global batches, noise and timesteps: 20 losses equal to 1e-5, and the same weights on both processes."""
    shards, losses = tiny_shards(tmp_path), {}
    settings = {"trainer__max_steps": 20, "data__steps_per_epoch": 20, "trainer__limit_val_batches": 0}
    for ranks, more in ((2, TWO), (1, ONE)):
        out = tmp_path / f"run-{ranks}"
        out.mkdir()
        arguments = [*fit_arguments(shards, out, **settings, **more), with_callback("StepRecorder", folder=str(out))]
        said, code = fit_twofold(arguments, tmp_path) if ranks == 2 else ("", exit_code(["fit", *arguments]))
        assert code == 0, said
        made = records(out, ranks)
        assert [record["world"] for record in made] == [ranks] * ranks
        losses[ranks] = torch.tensor([record["losses"] for record in made], dtype=torch.float64).mean(0)
        if ranks == 2:
            assert made[0]["weights"] == made[1]["weights"]
            seen = [{tuple(position) for position in record["positions"]} for record in made]
            assert [len(record["positions"]) for record in made] == [40, 40]
            assert not seen[0] & seen[1]  # no crop is drawn by both
    assert len(losses[1]) == 20
    torch.testing.assert_close(losses[2], losses[1], rtol=1e-5, atol=0)


def pair_arguments(folder, name):
    """8 steps in two epochs; the third has a bad batch on one of the two processes."""
    shards = folder / "shards" if (folder / "shards").exists() else tiny_shards(folder)
    settings = {"trainer__max_steps": 8, "trainer__val_check_interval": 4, "data__steps_per_epoch": 5}
    recipe = tiny_recipe(folder, LastCheckpoint={"every_n_train_steps": 3})
    arguments = fit_arguments(shards, folder / name, recipe, **settings, **TWO, model__dropout=0.2)
    return [*arguments, with_callback("BadBatch", steps=[2], rank=1)]


@pytest.fixture(scope="module")
def whole_pair(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pair")
    said, code = fit_twofold(pair_arguments(folder, "whole"), folder)
    assert code == 0, said
    return folder


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("name", "number", "rank", "expected"), [("killed", 9, 0, -9), ("stopped", 15, 1, 75)])
def test_an_interrupted_pair_ends_as_the_uninterrupted_one(name, number, rank, expected, whole_pair):
    """One process alone is killed, told to stop, or has a bad batch, and both do the same; bit-equal ends."""
    arguments = pair_arguments(whole_pair, name)
    signalled = with_callback("SignalAt", step=5, number=number, rank=rank)
    said, code = fit_twofold([*arguments, signalled], whole_pair)
    assert code == expected, said
    said, code = fit_twofold(arguments, whole_pair)
    assert code == 0, said
    ends = []
    for out in (whole_pair / "whole", whole_pair / name):
        ends.append(torch.load(out / "last.ckpt", weights_only=True))
        del ends[-1]["callbacks"]["Timer"]  # a clock
        assert ends[-1]["optimizer_states"][0]["state"][0]["step"] == 7  # of 8: one was left out by both
        assert {path.name for path in (out / "bad_steps").iterdir()} == {"step=2-rank=0.json", "step=2-rank=1.json"}
    assert not differences(*ends)
    logs = [(whole_pair / out / "log" / "metrics.csv").read_text() for out in ("whole", name)]
    assert logs[0] == logs[1]


@pytest.mark.slow
def test_two_processes_follow_one_clock(tmp_path):
    shards, out = tiny_shards(tmp_path), tmp_path / "run"
    arguments = fit_arguments(
        shards,
        out,
        trainer__devices=2,
        trainer__strategy="ddp",
        trainer__max_steps=-1,
        trainer__max_epochs=2,
        trainer__max_time="00:00:10:00",
        model__decay_share=1.0,  # the rate follows the clock from the first step on
    )
    said, code = fit_twofold([*arguments, with_callback("StepRecorder", folder=str(tmp_path))], tmp_path)
    assert code == 0, said
    ranks = records(tmp_path, 2)
    assert [rank["steps"] for rank in ranks] == [4, 4]
    assert ranks[0]["weights"] == ranks[1]["weights"]
    assert ranks[0]["rates"] == ranks[1]["rates"]
    content = torch.load(out / "last.ckpt", weights_only=True)
    assert content["global_step"] == 4
    assert load_checkpoint(out / "last.ckpt").info.model.patch_px == 16
    assert len(log_column(out, "train/loss")) == 4
