"""The batch files on a real SLURM of one node (cluster.sh); TERA_MIND_TRANSCRIPT=FILE keeps what was typed and said."""

from __future__ import annotations

import csv
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny_training import RECIPE, ROOT, SHAPE, fit_arguments, tiny_shards

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
NEEDED = ("munged", "slurmctld", "slurmd", "sbatch")
HERE = Path(__file__).resolve().parent


class Cluster:
    """Commands against the cluster, with a transcript."""

    def __init__(self, folder: Path, work: Path) -> None:
        self.work, self.transcript = work, []
        tera_mind = work / "tera-mind"
        tera_mind.write_text(f'#!/bin/sh\nexec {sys.executable} -m tera_mind.cli.main "$@"\n')
        tera_mind.chmod(0o755)
        self.environment = {
            "TERA_MIND": str(tera_mind),
            **os.environ,
            "SLURM_CONF": str(folder / "slurm.conf"),
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(HERE)]),
            "MASTER_ADDR": "127.0.0.1",
            "GLOO_SOCKET_IFNAME": "lo",
            "WANDB_MODE": "offline",
        }

    def __call__(self, *command: str | Path, told: bool = True, sure: bool = True) -> str:
        words = [str(word) for word in command]
        done = subprocess.run(
            words, cwd=self.work, env=self.environment, capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0 or not sure, done.stdout + done.stderr
        if told:
            self.say("$ " + shlex.join(words))
            self.say(done.stdout.rstrip())
        return done.stdout

    def say(self, text: str) -> None:
        for place, name in ((str(self.work), "."), (f"{ROOT}/", ""), (sys.executable, "python")):
            text = text.replace(place, name)
        if text:
            self.transcript.append(text)

    def job(self, number: str) -> dict[str, str]:
        return dict(re.findall(r"(\w+)=(\S+)", self("scontrol", "show", "job", number, told=False)))

    def wait(self, number: str, *states: str, start_now: bool = False) -> dict[str, str]:
        """Until the job is in one of the states; a requeued one is told not to wait for its two minutes."""
        until = time.monotonic() + 900
        while (found := self.job(number))["JobState"] not in states:
            assert time.monotonic() < until, found
            assert found["JobState"] not in {"FAILED", "TIMEOUT", "NODE_FAIL", "CANCELLED"}, (found, self.log(number))
            if start_now and found["JobState"] == "PENDING":
                self(
                    "scontrol", "update", f"JobId={number}", "StartTime=now", told=False, sure=False
                )  # it may have begun
            time.sleep(0.5)
        return found

    def running(self, number: str) -> bool:
        """Whether the job runs; fails with its log where it has ended."""
        assert (state := self.job(number)["JobState"]) == "RUNNING", f"{state}: {self.log(number)}"
        return True

    def log(self, number: str) -> str:
        return "\n".join(file.read_text() for file in sorted(self.work.glob(f"*-{number}*.log")))


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    lost = [name for name in NEEDED if shutil.which(name) is None]
    if lost:
        pytest.skip(f"no {', '.join(lost)} here: apt-get install slurm-wlm munge")
    if os.geteuid() != 0:
        pytest.skip("a SLURM of its own needs root")
    folder, work = tmp_path_factory.mktemp("cluster"), tmp_path_factory.mktemp("work")
    tiny_shards(work, shape=(2, 1, 256, 320), rows=12000)  # tissue enough for the controls of `evaluate`
    try:
        subprocess.run([HERE / "cluster.sh", "start", folder], check=True, timeout=120)
        made = Cluster(folder, work)
        yield made
    finally:
        subprocess.run([HERE / "cluster.sh", "stop", folder], check=True, timeout=120)
    pids = [int((folder / f"{name}.pid").read_text()) for name in ("munged",) if (folder / f"{name}.pid").exists()]
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
    if path := os.environ.get("TERA_MIND_TRANSCRIPT"):
        Path(path).write_text("\n".join(made.transcript) + "\n")


def train_words(cluster: Cluster, run: str, **more: object) -> list[str]:
    """What follows `sbatch slurm/train.sbatch`, as the test of `fit` has it."""
    _, recipe, *options = fit_arguments(Path("shards"), Path(run), **more)
    return [str(ROOT / "slurm/train.sbatch"), run, recipe, *(o for o in options if "default_root_dir" not in o)]


def submit(cluster: Cluster, *words: str) -> str:
    return cluster("sbatch", "--parsable", "--cpus-per-task=1", "--time=30", *words).strip()


def steps_logged(run: Path) -> list[int]:
    if not (run / "log" / "metrics.csv").exists():
        return []
    with (run / "log" / "metrics.csv").open() as file:
        return [int(row["step"]) for row in csv.DictReader(file) if row["train/loss"]]


def test_two_tasks_train_together(cluster):
    cluster.say("# two tasks train together")
    words = train_words(cluster, "two", trainer__strategy="ddp")
    number = submit(cluster, "--ntasks-per-node=2", *words)
    cluster.wait(number, "COMPLETED")
    record = json.loads((cluster.work / "two" / "run.json").read_text())
    assert (record["status"], record["global_step"], record["processes"]) == ("finished", 4, 2)
    assert "MEMBER: 2/2" in cluster.log(number)
    cluster("grep", "-E", "MEMBER|max_steps|ended", f"tera-mind-train-{number}.log")
    cluster("cat", "two/run.json")


def test_a_job_cut_short_goes_on(cluster):
    cluster.say("\n# the warning before the time limit (SIGUSR1), then a requeue from outside; both times it goes on")
    slow = {"class_path": "slow_steps.SlowSteps", "init_args": {"seconds": 0.4}}
    words = train_words(cluster, "cut", trainer__max_steps=40, trainer__val_check_interval=40, data__steps_per_epoch=40)
    number = submit(
        cluster, "--ntasks-per-node=2", *words, "--trainer.strategy=ddp", f"--trainer.callbacks+={json.dumps(slow)}"
    )
    run = cluster.work / "cut"
    stopped_at = []
    for start, interrupt in enumerate((["scancel", "--signal=USR1"], ["scontrol", "requeue"])):
        cluster.wait(number, "RUNNING", start_now=True)
        goal = 5 + (stopped_at[-1] if stopped_at else 0)
        wait_for(lambda goal=goal: cluster.running(number) and max(steps_logged(run), default=0) > goal)
        cluster(*interrupt, number)
        wait_for(lambda start=start: int(cluster.job(number)["Restarts"]) > start)
        wait_for(lambda: json.loads((run / "run.json").read_text())["status"] == "stopped")
        stopped_at.append(json.loads((run / "run.json").read_text())["global_step"])
        cluster.say(f"{cluster('squeue', '--noheader', '--format=%i %T %r', told=False).strip()}")
        cluster.wait(number, "PENDING")
        cluster("scontrol", "update", f"JobId={number}", "StartTime=now", sure=False)
    cluster.wait(number, "COMPLETED", start_now=True)
    record = json.loads((run / "run.json").read_text())
    assert 0 < stopped_at[0] < stopped_at[1] < 40
    assert (record["status"], record["global_step"]) == ("finished", 40)
    assert steps_logged(run) == list(range(40))  # every step once, none lost, none twice
    cluster("grep", "-E", "^20|stopped by|max_steps", f"tera-mind-train-{number}.log")
    cluster.say(f"stopped after {stopped_at[0]} and {stopped_at[1]} steps, ended after {record['global_step']}")


def test_a_sweep_as_job_arrays(cluster):
    cluster.say("\n# a sweep, one job array a stage")
    small = "[--cpus-per-task=1, --time=30]"
    shape = "\n".join(f"  model.{key}: {json.dumps(value)}" for key, value in SHAPE.items())
    (cluster.work / "sweep.yaml").write_text(
        f"""
name: steps
recipe: {RECIPE}
overrides:
  trainer.accelerator: cpu
  trainer.max_time: null
  trainer.max_steps: 2
  trainer.val_check_interval: 2
  data.patch_px: 16
  data.bin_px: 4
  data.batch_size: 2
  data.steps_per_epoch: 2
{shape}
grid: {{steps: [4, 5]}}
stages:
  fit:
    command: fit {{recipe}} --data.shards shards --trainer.default_root_dir {{here}} --seed_everything {{seed}}
    makes: last.ckpt
    sbatch: {small}
  generate:
    command: >-
      generate --checkpoint {{fit}} --brain brain.zarr --region :,60%:90% --steps {{steps}} --device cpu --precision 32
      --out {{here}}/volume.zarr
    makes: volume.zarr
    sbatch: {small}
  evaluate:
    command: >-
      evaluate --brain brain.zarr --generated {{generate}} --tiles 8 --bootstrap 10 --workers 1 --window-px 32
      --region-px 32 --out {{here}}/evaluation
    makes: evaluation/metrics.json
    sbatch: {small}
table: {{from: evaluate, setting: steps, metrics: [psnr/DAPI]}}
"""
    )
    said = cluster(cluster.environment["TERA_MIND"], "sweep", "sweep.yaml", "--out", "out", "--launcher", "slurm")
    jobs = dict(re.findall(r"job (\d+): (\w+)", said))
    assert list(jobs.values()) == ["fit", "generate", "evaluate", "table"]
    for number in jobs:
        wait_for(lambda number=number: cluster.job(number)["JobState"] not in {"PENDING", "RUNNING"}, 900)
    cluster("squeue", "--states=all", "--noheader", "--array", "--sort=i", "--format=%i %j %T")
    table = json.loads((cluster.work / "out" / "sweep.json").read_text())
    assert [run["status"] for run in table["runs"]] == ["done", "done"], "\n".join(map(cluster.log, jobs))
    assert all(value["value"] is not None for run in table["runs"] for value in run["values"])
    assert (cluster.work / "out" / "figure.png").stat().st_size > 1000
    cluster("cat", "out/sweep.md")


def wait_for(holds, seconds=600):
    until = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.3)
