"""The batch files on a real SLURM of one node (cluster.sh); TERA_MIND_TRANSCRIPT=FILE keeps what was typed and said."""

from __future__ import annotations

import contextlib
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
from tiny_brain import make_brain
from tiny_training import RECIPE, ROOT, SHAPE, fit_arguments, tiny_shards

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]
NEEDED = ("munged", "slurmctld", "slurmd", "sbatch", "srun")
HERE = Path(__file__).resolve().parent
TERA_MIND = Path(sys.executable).with_name("tera-mind")
#: what a wait may take on a machine that does other things as well
PATIENCE_S = 1200


#: every array task by itself, those that ended as well
ALL = ("--states=all", "--noheader", "--array", "--sort=i", "--format=%i %j %T")
#: states that a job does not leave by itself
ENDED = {"COMPLETED", "FAILED", "TIMEOUT", "NODE_FAIL", "CANCELLED", "BOOT_FAIL", "OUT_OF_MEMORY"}


class Cluster:
    """Commands against the cluster, with a transcript."""

    def __init__(self, folder: Path, work: Path) -> None:
        self.work, self.transcript = work, []
        outside = ("SLURM_", "SBATCH_", "SRUN_", "SQUEUE_")  # of a job that the tests themselves may run in
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(outside)},
            "TERA_MIND": str(TERA_MIND),
            "SLURM_CONF": str(folder / "slurm.conf"),
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(HERE)]),
            "MASTER_ADDR": "127.0.0.1",
            "GLOO_SOCKET_IFNAME": "lo",
            "WANDB_MODE": "offline",
        }

    def __call__(self, *command: str | Path, told: bool = True, sure: bool = True) -> str:
        words = [str(word) for word in command]
        done = subprocess.run(
            words, cwd=self.work, env=self.environment, capture_output=True, text=True, timeout=PATIENCE_S, check=False
        )
        assert done.returncode == 0 or not sure, done.stdout + done.stderr
        if told:
            self.say("$ " + shlex.join(words))
            self.say(done.stdout.rstrip())
        return done.stdout

    def say(self, text: str) -> None:
        for place, name in ((str(self.work), "."), (f"{ROOT}/", ""), (str(TERA_MIND), "tera-mind")):
            text = text.replace(place, name)
        if text:
            self.transcript.append(text)

    def tasks(self, number: str) -> list[dict[str, str]]:
        """What SLURM knows of the job: one entry, or one an array task."""
        told = self("scontrol", "--oneliner", "show", "job", number, told=False)
        return [dict(re.findall(r"(\w+)=(\S+)", line)) for line in told.splitlines()]

    def job(self, number: str) -> dict[str, str]:
        return self.tasks(number)[0]

    def wait(self, number: str, state: str) -> None:
        """Until the job, or all tasks of the array, are in the state; fails with the log where that cannot come."""
        until = time.monotonic() + PATIENCE_S
        while (found := {task["JobState"] for task in self.tasks(number)}) != {state}:
            assert time.monotonic() < until, (self.tasks(number), self.log(number))
            assert not found & ENDED - {state}, (self.tasks(number), self.log(number))
            time.sleep(0.5)

    def start_again(self, number: str) -> None:
        """Until a requeued job runs again, without the two minutes that SLURM lets it wait.

        It must have left its node, and not start within the second of the requeue: the node may refuse that start, and
        the job fails ("Job credential revoked"). Asked again where that was lost.
        """
        until, asked = time.monotonic() + PATIENCE_S, None
        while (found := self.job(number))["JobState"] != "RUNNING":
            assert time.monotonic() < until, found
            assert found["JobState"] not in ENDED, (found, self.log(number))
            if found["JobState"] == "PENDING" and (asked is None or time.monotonic() > asked + 30):
                words = ("scontrol", "update", f"JobId={number}", "StartTime=now+5")
                self(*words, told=asked is None, sure=False)  # not sure: it may have begun since
                asked = time.monotonic()
            time.sleep(0.5)

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
    if not TERA_MIND.exists():
        pytest.skip(f"no {TERA_MIND}: install the package, for example with `make setup`")
    folder, work = tmp_path_factory.mktemp("cluster"), tmp_path_factory.mktemp("work")
    tiny_shards(work, shape=(2, 1, 256, 320), rows=12000)  # tissue enough for the controls of `evaluate`
    try:
        subprocess.run([HERE / "cluster.sh", "start", folder], check=True, timeout=300)
        made = Cluster(folder, work)
        yield made
    finally:
        subprocess.run([HERE / "cluster.sh", "stop", folder], check=True, timeout=600)
    wait_for(lambda: not users_of(folder, work), 60)
    if path := os.environ.get("TERA_MIND_TRANSCRIPT"):
        Path(path).write_text("\n".join(made.transcript) + "\n")


def users_of(*folders: Path) -> list[str]:
    """Processes that have a file in one of the folders open: every daemon and job of the cluster has its log."""
    users = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it ended meanwhile
            files = [file.readlink() for file in (process / "fd").iterdir()]
            if int(process.name) != os.getpid() and any(f.is_relative_to(d) for f in files for d in folders):
                users.append(f"{process.name} {(process / 'comm').read_text().strip()}")
    return users


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
        # `get`: the last line may be half written
        return [int(row["step"]) for row in csv.DictReader(file) if row.get("train/loss") and row.get("step")]


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
    cluster.wait(number, "RUNNING")
    stopped_at = []
    for start, interrupt in enumerate((["scancel", "--signal=USR1"], ["scontrol", "requeue"])):
        goal = 5 + (stopped_at[-1] if stopped_at else 0)
        wait_for(lambda goal=goal: cluster.running(number) and max(steps_logged(run), default=0) > goal)
        cluster(*interrupt, number)
        wait_for(lambda start=start: int(cluster.job(number)["Restarts"]) > start)
        cluster.wait(number, "PENDING")
        record = json.loads((run / "run.json").read_text())
        assert record["status"] == "stopped", (record, cluster.log(number))
        stopped_at.append(record["global_step"])
        cluster("squeue", "--noheader", "--format=%i %T %r")
        cluster.start_again(number)
    cluster.wait(number, "COMPLETED")
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
        cluster.wait(number, "COMPLETED")
    cluster("squeue", *ALL, f"--jobs={','.join(jobs)}")
    table = json.loads((cluster.work / "out" / "sweep.json").read_text())
    assert [run["status"] for run in table["runs"]] == ["done", "done"], "\n".join(map(cluster.log, jobs))
    assert all(value["value"] is not None for run in table["runs"] for value in run["values"])
    assert (cluster.work / "out" / "figure.png").stat().st_size > 1000
    cluster("cat", "out/sweep.md")


def test_section_groups_as_job_arrays(cluster):
    cluster.say(
        "\n# a brain of two section groups generated and evaluated, one array task a group; then the same again"
    )
    make_brain(cluster.work / "pair.zarr", shape=(2, 2, 256, 320), rows=12000)
    cluster(TERA_MIND, "fit", *fit_arguments(Path("shards"), Path("one")), told=False)
    generate = ["one/last.ckpt", "pair.zarr", "volumes", "--region=:,60%:90%", "--steps=4", "--device=cpu"]
    evaluate = ["pair.zarr", "volumes", "evaluations", "--shuffled=volumes/group_{group}.zarr", "--tiles=8"]
    evaluate += ["--bootstrap=10", "--window-px=32", "--region-px=32"]

    def both() -> list[str]:
        made = submit(cluster, "--array=0-1", str(ROOT / "slurm/generate.sbatch"), *generate)
        after = f"--dependency=aftercorr:{made}"
        read = submit(cluster, "--array=0-1", after, str(ROOT / "slurm/evaluate.sbatch"), *evaluate)
        for number in (made, read):
            cluster.wait(number, "COMPLETED")
        cluster("squeue", *ALL, f"--jobs={made},{read}")
        return [cluster.log(number) for number in (made, read)]

    both()
    found = [cluster.work / f"evaluations/group_{group}/metrics.json" for group in (0, 1)]
    assert len({file.read_bytes() for file in found}) == 2  # each its own group
    written = [file.stat().st_mtime_ns for file in found]
    made, read = both()
    assert made.count("is there already") == read.count("is evaluated already") == 2
    assert [file.stat().st_mtime_ns for file in found] == written


def test_an_array_shares_one_volume(cluster):
    cluster.say("\n# three array tasks share one volume; then the same again")
    make_brain(cluster.work / "tall.zarr", shape=(2, 2, 512, 64), rows=5000)
    cluster(TERA_MIND, "fit", *fit_arguments(Path("shards"), Path("shared")), told=False)
    generate = ["shared/last.ckpt", "tall.zarr", "shared.zarr", "--shard-px=256", "--steps=4", "--device=cpu"]

    def array() -> str:
        made = submit(cluster, "--array=0-2", str(ROOT / "slurm/generate.sbatch"), *generate)
        cluster.wait(made, "COMPLETED")
        cluster("squeue", *ALL, f"--jobs={made}")
        return cluster.log(made)

    array()
    said = cluster(TERA_MIND, "status", "shared.zarr", "--verify")
    assert "shared.zarr: complete" in said
    assert "shards are as they were written" in said
    assert array().count("is there already") == 3


def wait_for(holds, seconds=PATIENCE_S):
    until = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.3)
