"""Do the tasks of a sweep as processes of their own: several at once, on after failures, and on where it was."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from tera_mind.sweep.plan import Task
from tera_mind.sweep.state import LOG, Marker, begin, clear, end, is_made, locked, state_of

#: what `tera-mind fit` returns after a signal, its checkpoint written (EX_TEMPFAIL): the same command goes on
STOPPED = 75

Outcome = Literal["done", "skipped", "failed", "stopped", "blocked"]


@dataclass(frozen=True)
class Result:
    """How a task ended; `reason` says why it is not done."""

    task: Task
    outcome: Outcome
    seconds: float = 0.0
    reason: str = ""


@dataclass
class Workers:
    """Processes that are running, so that a signal can be handed on to them."""

    stopping: bool = False
    _running: set[subprocess.Popen[bytes]] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def stop(self, signum: int = signal.SIGTERM) -> None:
        """Start nothing more, and tell what runs to end in order."""
        self.stopping = True
        for process in list(self._running):
            if process.poll() is None:
                process.send_signal(signum)

    def call(self, command: Sequence[str], log: Path, environment: Mapping[str, str], descriptor: int) -> int:
        """Run a command to its end, its words appended to `log`; its exit code, negative for a signal."""
        with log.open("ab") as file:
            with self._lock:
                process = subprocess.Popen(  # noqa: S603 (tera-mind, words of the file)
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    env={**os.environ, **environment},
                    pass_fds=(descriptor,),
                )
                self._running.add(process)
            if self.stopping:  # the signal came between the decision and the start
                process.send_signal(signal.SIGTERM)
            code = process.wait()
            with self._lock:
                self._running.discard(process)
            return code


def execute(
    tasks: Sequence[Task],
    *,
    jobs: int = 1,
    prefix: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
    workers: Workers | None = None,
    overwrite: bool = False,
) -> Iterator[Result]:
    """Do the tasks, at most `jobs` at once, each after those it needs; yields a result a task as they end.

    What is done is skipped, what needs a failed task is blocked, everything else goes on. Once a command ends with
    `STOPPED` nothing more is started: what runs goes to its end, the rest is `stopped`. A task that is needed and not
    among `tasks` must be done already. `prefix` are words before each command (`srun`); `environment` is added to the
    processes' own. What another command made in a task's folder is replaced with `overwrite`, else it blocks the task.
    """
    workers = workers or Workers()
    waiting, ended = list(tasks), dict[str, Result]()
    running: dict[Future[Result], Task] = {}
    with ThreadPoolExecutor(jobs) as pool:
        try:
            while waiting or running:
                for task in list(waiting):
                    coming = {other.name for other in (*waiting, *running.values())}
                    never = "the sweep was stopped" if workers.stopping else _obstacle(task, coming, ended)
                    if never:
                        waiting.remove(task)
                        ended[task.name] = Result(task, "stopped" if workers.stopping else "blocked", reason=never)
                        yield ended[task.name]
                    elif len(running) < jobs and not any(need.name in coming for need in task.needs):
                        waiting.remove(task)
                        started = Start(tuple(prefix), dict(environment or {}), overwrite)
                        future = pool.submit(_perform, task, workers, started)
                        running[future] = task
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    result = future.result()
                    ended[running.pop(future).name] = result
                    # SLURM warns job steps, not the batch file: a command it stopped says that time is up for all
                    workers.stopping |= result.outcome == "stopped"
                    yield result
        except BaseException:
            workers.stop()
            raise


def _obstacle(task: Task, coming: set[str], ended: Mapping[str, Result]) -> str:
    """Why the task will never start: something that it needs is not done and not on its way; else empty."""
    for need in task.needs:
        result = ended.get(need.name)
        done = state_of(need) == "done" if result is None else result.outcome in {"done", "skipped"}
        if need.name not in coming and not done:
            return f"{need.name} is not done"
    return ""


@dataclass(frozen=True)
class Start:
    """How commands are started."""

    prefix: tuple[str, ...]
    environment: Mapping[str, str]
    overwrite: bool


def _perform(task: Task, workers: Workers, start: Start) -> Result:
    """One task from its lock to its marker."""
    with locked(task, lambda: workers.stopping) as descriptor:
        if descriptor is None:
            return Result(task, "stopped", reason="the sweep was stopped")
        state = state_of(task)
        if state == "done":
            marker = Marker.read(task.folder)
            if marker is not None and marker.status != "done":
                end(task, marker, "done", 0, 0.0)
            return Result(task, "skipped")
        if state == "changed":
            if not start.overwrite:
                return Result(task, "blocked", reason=f"{task.folder} was made by another command")
            clear(task)
        marker = begin(task)
        command = [*start.prefix, sys.executable, "-m", "tera_mind.cli.main", *task.words]
        environment = {**start.environment, "WANDB_NAME": task.name}
        begun = time.monotonic()
        code = workers.call(command, task.folder / LOG, environment, descriptor)
        seconds = time.monotonic() - begun
        if code == 0 and not is_made(task.makes):
            code, reason = 1, f"the command ended well but left no {task.stage.makes}"
        else:
            reason = "" if code == 0 else f"exit code {code}: {last_line(task.folder / LOG)}"
        outcome: Outcome = "done" if code == 0 else "stopped" if code == STOPPED or workers.stopping else "failed"
        end(task, marker, outcome, code, seconds)
        return Result(task, outcome, seconds, reason)


def last_line(log: Path) -> str:
    """The last line of a log that says something, shortened."""
    try:
        lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines()]
    except OSError:
        return f"no log at {log}"
    said = [line for line in lines if line and not line.startswith("srun:")]  # which only repeats the exit code
    return said[-1][:200] if said else "it said nothing"


def seconds_left(todo: Sequence[Task], known: Mapping[str, Sequence[float]], jobs: int) -> float | None:
    """Time for the tasks at the mean that their stage took so far (`known`: stage -> seconds).

    None where one of the stages has not been done yet: training says nothing of sampling, nor shards of training.
    """
    total = 0.0
    for task in todo:
        own = known.get(task.stage.name)
        if not own:
            return None
        total += sum(own) / len(own)
    return total / max(1, min(jobs, len(todo)))
