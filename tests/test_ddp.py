"""Two real processes on one machine train together (gloo, loopback)."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import torch
from tiny_training import ROOT, fit_arguments, log_column, tiny_shards

from tera_mind.model.checkpoint import load_checkpoint


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


def test_two_processes_train_together(tmp_path):
    shards, out = tiny_shards(tmp_path), tmp_path / "run"
    recorder = {"class_path": "step_recorder.StepRecorder", "init_args": {"folder": str(tmp_path)}}
    arguments = fit_arguments(
        shards,
        out,
        trainer__devices=2,
        trainer__strategy="ddp",
        trainer__max_steps=-1,
        trainer__max_epochs=2,
        trainer__max_time="00:00:10:00",
        model__decay_share=1.0,  # the rate follows the clock from the first step on; both must follow one clock
    )
    said, code = run_in_own_group(
        [sys.executable, "-m", "tera_mind.cli.main", "fit", *arguments, f"--trainer.callbacks+={json.dumps(recorder)}"],
        cwd=tmp_path,
        PYTHONPATH=os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
        MASTER_ADDR="127.0.0.1",
        GLOO_SOCKET_IFNAME="lo",
        OMP_NUM_THREADS="1",
    )
    assert code == 0, said
    ranks = [json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in range(2)]
    assert [rank["steps"] for rank in ranks] == [4, 4]
    assert [rank["world"] for rank in ranks] == [2, 2]
    assert ranks[0]["weights"] == ranks[1]["weights"]
    assert ranks[0]["rates"] == ranks[1]["rates"]
    assert [len(rank["positions"]) for rank in ranks] == [8, 8]
    seen = [{tuple(position) for position in rank["positions"]} for rank in ranks]
    assert not seen[0] & seen[1]  # no crop is drawn by both
    content = torch.load(out / "last.ckpt", weights_only=True)
    assert content["global_step"] == 4
    assert load_checkpoint(out / "last.ckpt").info.model.patch_px == 16
    assert len(log_column(out, "train/loss")) == 4
