"""kill -9 at random times: what is done stays, what was begun is done again, and the volume is the same to the bit."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path

import pytest
import torch
from generate_case import TALL, generate, pixels, save_checkpoint, words
from tiny_brain import make_brain

from tera_mind.formats.brain import Brain
from tera_mind.formats.volume import Volume
from tera_mind.geometry import Box
from tera_mind.model.checkpoint import load_checkpoint
from tera_mind.sampling import launch as launching
from tera_mind.sampling.job import Generation
from tera_mind.sampling.ledger import FOLDER, Ledger
from tera_mind.sampling.worker import Worker

CPU = torch.device("cpu")
#: two bands of one shard each in three sections
LAUNCH = launching.Launch(share=6, shard_px=256, threads=1)
WORDS = [
    *("--region", "0:512,0:64", "--shard-px", "256", "--mask", "none", "--block", "2x1", "--threads", "1"),
    "--workers",
    "2",
]


@pytest.fixture(scope="module")
def brain(tmp_path_factory):
    return make_brain(tmp_path_factory.mktemp("brain") / "tall.zarr", shape=(2, 3, 512, 64), rows=2500)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny.ckpt", **TALL)


@pytest.fixture(scope="module")
def job(brain, checkpoint):
    return Generation(
        load_checkpoint(checkpoint), Brain.open(brain.path), Box(0, 512, 0, 64), (0, 1, 2), steps=2, masked=False,
        block_rows=2, block_columns=1,
    )  # fmt: skip


@pytest.fixture(scope="module")
def undisturbed(job, tmp_path_factory):
    """The volume's files, and how long it took."""
    out = tmp_path_factory.mktemp("volume") / "v.zarr"
    begun = time.monotonic()
    launching.generate(job, out, LAUNCH)
    return pixels(out), time.monotonic() - begun


def forked_worker(job: Generation, volume: Path, number: int) -> int:
    """A worker in a process of its own, without a second start of Python; its process id."""
    child = os.fork()
    if child == 0:
        try:
            torch.set_num_threads(1)
            Worker(job, Ledger.open(volume), CPU, number).run()
        except BaseException:  # noqa: BLE001 (the child must not run the parent's tests)
            traceback.print_exc()
            os._exit(70)
        os._exit(0)
    return child


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def left_over(out: Path) -> list[str]:
    """What does not belong into a finished volume, or beside it."""
    inside = [path for path in out.rglob("*") if path.name.startswith(".") or "partial" in path.name]
    working = [path for path in (out / FOLDER).iterdir() if path.name != "zarr.json"]
    beside = [path for path in out.parent.iterdir() if path != out]
    return [str(path) for path in (*inside, *working, *beside)]


@pytest.mark.parametrize("seed", [*range(4), *(pytest.param(n, marks=pytest.mark.slow) for n in range(4, 20))])
def test_a_killed_worker_costs_nothing_but_time(seed, job, undisturbed, tmp_path):
    """Odd runs lose the other worker too, and go on with a new command; in even ones it does the rest."""
    files, seconds = undisturbed
    moment = random.Random(seed)
    out = tmp_path / "v.zarr"
    launching.prepare(job, out, LAUNCH)
    workers = [forked_worker(job, out, number) for number in range(2)]
    time.sleep(moment.uniform(0, seconds))
    killed = moment.randrange(2)
    kill(workers[killed])
    if seed % 2:
        time.sleep(moment.uniform(0, seconds / 4))
        kill(workers[1 - killed])
    else:
        assert os.waitpid(workers[1 - killed], 0)[1] == 0
        assert len(Ledger.open(out).rows()) == 6 + 6
    assert launching.generate(job, out, LAUNCH) is not None
    assert pixels(out) == files
    assert left_over(out) == []
    assert Volume.open(out).shape == (2, 3, 512, 64)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_killed_workers_of_the_command(brain, checkpoint, tmp_path):
    """`--workers 2`, one of them killed between its start and the end, then the same command again."""
    whole = tmp_path / "whole" / "v.zarr"
    assert generate(brain, checkpoint, whole, *WORDS[:-2]) == 0
    files, outcomes, moment = pixels(whole), [], random.Random(0)
    for number in range(6):
        out = tmp_path / str(number) / "v.zarr"
        command = [sys.executable, "-m", "tera_mind.cli.main", *words(brain.path, checkpoint, out, *WORDS)]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        workers = wait_for_workers(out, process)
        time.sleep(moment.uniform(0, 2.0))
        if workers and process.poll() is None:
            try:
                os.kill(moment.choice(workers), signal.SIGKILL)
            except ProcessLookupError:
                workers = []
        _, said = process.communicate(timeout=600)
        outcomes.append("killed" if "others did its work" in said else "too late")
        assert process.returncode == 0, said
        assert generate(brain, checkpoint, out, *WORDS) == 0
        assert pixels(out) == files
        assert left_over(out) == []
    print(outcomes)
    assert outcomes.count("killed") >= 2


def wait_for_workers(out: Path, process: subprocess.Popen[str]) -> list[int]:
    """Process ids of the workers that hold a lease."""
    until = time.monotonic() + 300
    while time.monotonic() < until and process.poll() is None:
        names = [path.stem for path in (out / FOLDER / "workers").glob("[!.]*.json")]
        if names:
            return [int(name.split("-")[-2]) for name in names]
        time.sleep(0.02)
    return []
