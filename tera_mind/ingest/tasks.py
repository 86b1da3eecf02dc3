"""A graph of tasks, worked off in this process or by Dask workers: the same functions in either.

Tasks hand nothing to one another but files, so that only their order matters here.
"""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from tera_mind.errors import InputError, TeraMindError

#: seconds within which a scheduler has to answer
_PATIENCE_S = 20


@dataclass(frozen=True)
class Task:
    """A function of the picklable arguments, to be run after the tasks named in `after`.

    The function is a generator that yields now and then; `steps` is how often it is expected to, for progress only.
    """

    name: str
    function: Callable[..., Iterator[None]]
    arguments: tuple[Any, ...]
    after: tuple[str, ...] = ()
    steps: int = 1


@runtime_checkable
class Runner(Protocol):
    """Runs tasks in an order that `after` allows; a task that is not among them counts as done."""

    def run(self, tasks: Sequence[Task]) -> Iterator[str]:
        """Yield the name of every task when it has finished, and "" before, so often that it makes `steps` in all.

        Raises what the first task that failed raised.
        """


class InProcess:
    """One task after the other, in this process."""

    def run(self, tasks: Sequence[Task]) -> Iterator[str]:
        for task in tasks:
            left = task.steps - 1
            for _ in task.function(*task.arguments):
                if left > 0:
                    left -= 1
                    yield ""
            yield from [""] * left
            yield task.name


class OnCluster:
    """All tasks at once to a Dask scheduler."""

    def __init__(self, client: Any) -> None:
        self._client = client

    def run(self, tasks: Sequence[Task]) -> Iterator[str]:
        from distributed import as_completed
        from distributed.scheduler import KilledWorker

        futures: dict[str, Any] = {}
        for task in tasks:
            before = [futures[name] for name in task.after if name in futures]
            futures[task.name] = self._client.submit(_attempt, task, *before, pure=False, retries=0)
        of_key = {futures[task.name].key: task for task in tasks}
        try:
            for future in as_completed(futures.values()):
                failure = future.result()
                if failure is not None:
                    raise failure
                task = of_key[future.key]
                yield from [""] * (task.steps - 1)
                yield task.name
        except KilledWorker:
            raise TeraMindError(
                "a worker process was killed; if it was for want of memory, run the same command again with fewer "
                "--workers: what is finished is kept"
            ) from None
        finally:
            self._client.cancel(list(futures.values()))


def _attempt(task: Task, *before: Exception | None) -> Exception | None:
    """Run a task on a worker. What a user's data can cause travels as a result: Dask would log a traceback."""
    failed = next((failure for failure in before if failure is not None), None)
    if failed is not None:
        return failed
    try:
        for _ in task.function(*task.arguments):
            pass
    except (TeraMindError, OSError) as error:
        return error.with_traceback(None)
    return None


@contextmanager
def runner(workers: int = 1, scheduler: str | None = None) -> Iterator[Runner]:
    """In this process for up to one worker, else on a cluster of this machine; or on the scheduler at an address.

    Raises `InputError` when nothing answers there. The workers of this machine end with this process.
    """
    if scheduler is None and workers <= 1:
        yield InProcess()
        return
    from distributed import Client, LocalCluster

    with _quiet():
        if scheduler is not None:
            try:
                client = Client(scheduler, timeout=_PATIENCE_S)
            except (OSError, TimeoutError, ValueError) as error:
                raise InputError(
                    f"no Dask scheduler answers at {scheduler} ({error}); start one with `dask scheduler`, or leave "
                    "--scheduler out"
                ) from None
            with client:
                yield OnCluster(client)
            return
        with (
            LocalCluster(
                n_workers=workers, threads_per_worker=1, processes=True, dashboard_address=":0",
                scheduler_kwargs={"dashboard": False}, memory_limit=0, silence_logs=logging.CRITICAL + 1,
            ) as cluster,
            Client(cluster) as client,
        ):  # fmt: skip
            client.run(_leave_interrupts_to_parent)
            yield OnCluster(client)


def _leave_interrupts_to_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextmanager
def _quiet() -> Iterator[None]:
    """Nothing from Dask on standard error: an error that matters arrives as an exception."""
    import dask

    logger = logging.getLogger("distributed")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        with dask.config.set({"distributed.scheduler.allowed-failures": 0, "distributed.logging.distributed": 60}):
            yield
    finally:
        logger.setLevel(level)


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
