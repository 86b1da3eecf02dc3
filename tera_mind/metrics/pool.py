"""Measuring units in this process or in several; either way with one thread each, so that results are bit-equal."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

import torch
from threadpoolctl import threadpool_limits

from tera_mind.errors import TeraMindError
from tera_mind.metrics.partial import PartialStore
from tera_mind.processes import end_with_parent

Work = TypeVar("Work")
#: what a worker process measures, set once when it starts
_measure: Callable[[Any], dict[str, Any]] | None = None
_store: PartialStore | None = None


def run_units(
    units: Sequence[tuple[str, Work]],
    measure: Callable[[Work], dict[str, Any]],
    store: PartialStore,
    workers: int,
) -> Iterator[str]:
    """Measure each (name, unit), write its arrays to `store`, and yield its name when that is done.

    `measure` must be picklable when there are several workers. Ends the workers when it is closed or interrupted.
    """
    if workers <= 1:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            with threadpool_limits(1):
                for name, unit in units:
                    store.write(name, measure(unit))
                    yield name
        finally:
            torch.set_num_threads(threads)
        return
    # "spawn": a forked child would inherit torch's locked thread pools
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(
        min(workers, max(1, len(units))), mp_context=context, initializer=_start, initargs=(measure, store)
    )
    try:
        jobs = [pool.submit(_work, name, unit) for name, unit in units]
        for job in as_completed(jobs):
            yield job.result()
    except BrokenProcessPool:
        raise TeraMindError(
            f"one of {workers} worker processes was killed or could not start; if it was for want of memory, run the "
            "same command again with fewer --workers: what is finished is kept"
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _start(measure: Callable[[Any], dict[str, Any]], store: PartialStore) -> None:
    global _measure, _store
    end_with_parent()
    torch.set_num_threads(1)
    threadpool_limits(1)
    _measure, _store = measure, store


def _work(name: str, unit: object) -> str:
    assert _measure is not None
    assert _store is not None
    _store.write(name, _measure(unit))
    return name
