"""A worker claims a task, does it, writes its row, until nothing is left. Workers know of each other by files alone."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch

from tera_mind.errors import InputError, TeraMindError
from tera_mind.formats.ome import open_level
from tera_mind.geometry import Box
from tera_mind.model.blocks import BlockNetwork, Painter
from tera_mind.sampling.job import Generation
from tera_mind.sampling.leases import Leases, heartbeat, worker_name
from tera_mind.sampling.ledger import Ledger, Row, Task
from tera_mind.sampling.plain import OnBlock
from tera_mind.sampling.plan import Plan, Unit
from tera_mind.sampling.progress import WorkerFile, weight
from tera_mind.sampling.pyramid import run_pyramid
from tera_mind.sampling.writer import BandWriter, Files, ShardWriter

#: seconds between looking again where all that is left is in other hands, and between two lines on progress
WAIT_S, REPORT_S = 0.5, 0.5
#: a task is tried so often before it counts as failed
ATTEMPTS = 2


class ExhaustedError(TeraMindError):
    """Memory or disk is used up: the same worker would fail again at once."""


def run_unit(
    job: Generation,
    plan: Plan,
    unit: Unit,
    volume: Path,
    *,
    network: BlockNetwork | Painter,
    device: torch.device,
    staging: Path,
    on_block: OnBlock = lambda: None,
) -> Files:
    """Generate one unit into its volume, shard by shard, durable on return. Twice gives the same bytes.

    `network` is `job.network(device)`; `staging` is a folder of the volume's file system for what is being written.
    """
    group, region = plan.groups[unit.group], plan.region
    level = open_level(volume, dtype=job.dtype)
    _, _, shard_y, shard_x = level.shards or level.chunks
    shards = ShardWriter(volume, staging, job.dtype)
    planes = tuple(job.sections.index(z) if z in job.sections else None for z in group.image)
    band = plan.box(unit).shift(-region.y0, -region.x0)
    writer = BandWriter(shards, band, job.checkpoint.info.model.stains, planes, (shard_y, shard_x))
    try:
        for box, piece in job.pieces(network, group, unit.rows, device, on_block):
            writer.add(box.shift(-region.y0, -region.x0), piece)
        writer.finish()
        return shards.seal()
    finally:
        shards.close()


class Worker:
    """One process' part in a volume. `wait`: stay while others hold what is left, to take over what they drop.

    `on_progress` is called now and then, with the worker's thread.
    """

    def __init__(
        self,
        job: Generation,
        ledger: Ledger,
        device: torch.device,
        number: int = 0,
        *,
        wait: bool = True,
        on_progress: Callable[[], None] = lambda: None,
    ) -> None:
        self.job = job
        self.ledger = ledger
        self.device = device
        self.name = worker_name(number)
        self.wait = wait
        self.on_progress = on_progress
        self._leases = Leases(ledger.folder / "leases", self.name)
        self._file = WorkerFile(ledger, self.name)
        self._network: BlockNetwork | Painter | None = None

    def run(self) -> None:
        """Work until nothing is left. Raises `ExhaustedError` where memory or disk does not suffice."""
        try:
            while True:
                try:
                    task = self._claim()
                    if task is not None:
                        self._perform(task)
                    elif not self.wait or self.ledger.finished or not self._left():
                        return
                    else:
                        time.sleep(WAIT_S)
                        self.on_progress()
                except FileNotFoundError:
                    if self.ledger.finished:  # another sealed the volume and cleared the leases
                        return
                    raise
        finally:
            self._file.remove()

    def _left(self) -> list[Task]:
        """Tasks that can still be done by someone."""
        rows, failed = self.ledger.rows(), self.ledger.failed()
        return [
            task
            for task in self.ledger.tasks
            if task.name not in rows and task.name not in failed and not any(need in failed for need in task.needs)
        ]

    def _claim(self) -> Task | None:
        rows, held = self.ledger.rows(), None
        for task in self._left():
            if not all(need in rows for need in task.needs):
                continue
            held = self._leases.held() if held is None else held
            lease = held.get(task.name)
            if lease is not None and not lease.expired:
                continue
            if self._leases.claim(task.name, time.time()):
                current = self.ledger.current  # from here on the lease keeps others from replacing the volume
                if current and not self.ledger.finished and not self.ledger.done(task.name):
                    return task
                self._leases.release(task.name)
                if not current:
                    raise replaced(self.ledger.volume)
        return None

    def _perform(self, task: Task) -> None:
        try:
            with heartbeat(self._leases, task.name):
                for attempt in range(1, ATTEMPTS + 1):
                    try:
                        self._attempt(task)
                    except Exception as error:
                        if self.ledger.done(task.name) or not self._leases.holds(task.name):
                            return  # another took the task over, and cleared what this one was writing
                        known = explained(error, self.job, self.ledger.volume)
                        if attempt == ATTEMPTS or isinstance(known, TeraMindError):
                            self.ledger.fail(task.name, self.name, " ".join(str(known).split()))
                            if isinstance(known, ExhaustedError):
                                raise known from error
                            return
                    else:
                        return
        finally:
            with suppress(FileNotFoundError):
                self._leases.release(task.name)

    def _attempt(self, task: Task) -> None:
        began, clock = time.time(), time.monotonic()
        done, last = 0, -REPORT_S

        def on_block() -> None:
            nonlocal done, last
            done += 1
            if time.monotonic() - last >= REPORT_S:
                last = time.monotonic()
                self._file.write(task=task.name, done=done, total=weight(task), device=str(self.device), began=began)
                self.on_progress()

        staging = self.ledger.partial(task.name, self.name)
        if task.unit is not None:
            if self._network is None:
                self._network = self.job.network(self.device)
            files = run_unit(
                self.job,
                self.ledger.plan,
                task.unit,
                self.ledger.volume,
                network=self._network,
                device=self.device,
                staging=staging,
                on_block=on_block,
            )
        else:
            assert task.plane is not None
            files = run_pyramid(self.ledger.volume, staging, self.job.dtype, *task.plane)
        self.ledger.write(Row(task.name, self.name, began, time.monotonic() - clock, files))
        self.on_progress()


def replaced(volume: Path) -> InputError:
    """Why a worker must not go on."""
    return InputError(f"{volume} was replaced or removed while it was generated: nothing more is written to it")


def explained(error: Exception, job: Generation, volume: Path) -> Exception:
    """The error in words a user can act on, where it is a known one."""
    if is_out_of_memory(error):
        smaller = max(1, job.micro_batch // 2)
        advice = (
            f"give --micro-batch {smaller}" if job.micro_batch > 1 else "give a smaller --block, or fewer --workers"
        )
        return ExhaustedError(
            f"out of memory with --micro-batch {job.micro_batch}: {advice}, with --overwrite, since it belongs to what "
            "the volume was begun with"
        )
    if isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return ExhaustedError(
            f"no space left for {volume}: make room and give the same command again; what is done is kept"
        )
    return error if str(error) else type(error)(repr(error))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a GPU or main memory did not suffice."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def unit_words(plan: Plan, unit: Unit) -> str:
    """A unit as a user would say it."""
    box: Box = plan.box(unit)
    return f"sections {', '.join(map(str, plan.groups[unit.group].image))}, rows {box.y0} to {box.y1}"
