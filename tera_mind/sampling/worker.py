"""A worker claims a task, does it, writes its row, until nothing is left. Workers know of each other by files alone."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

import torch

from tera_mind.errors import InputError, TeraMindError
from tera_mind.formats.ome import open_level
from tera_mind.model.blocks import BlockNetwork, Painter
from tera_mind.sampling.finite import NotFiniteError
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
    begun: tuple[int, Files] = (0, {}),
    on_column: Callable[[int, Files], None] = lambda *_: None,
) -> Files:
    """Generate one unit into its volume, shard by shard, durable on return. Twice gives the same bytes.

    `network` is `job.network(device)`; `staging` is a folder of the volume's file system for what is being written.
    `on_column` is told of every column of shards that is durable: its right edge, and all shards so far. `begun` is
    what it was told last of this unit: that is not made again.
    """
    group, region = plan.groups[unit.group], plan.region
    level = open_level(volume, dtype=job.dtype)
    _, _, shard_y, shard_x = level.shards or level.chunks
    start, done = begun
    side = plan.patch_px
    if start % side or start >= region.width:  # no edge of patches to go on from
        start, done = 0, {}
    shards = ShardWriter(volume, staging, job.dtype, dict(done))
    planes = tuple(job.sections.index(z) if z in job.sections else None for z in group.image)
    band = plan.box(unit).shift(-region.y0, -region.x0)
    stains = job.checkpoint.info.model.stains
    writer = BandWriter(shards, band, stains, planes, (shard_y, shard_x), lambda right: on_column(right, shards.seal()))
    columns = (start // side, region.width // side)
    try:
        for box, piece in job.pieces(network, group, unit.rows, device, on_block, columns):
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
        """Work until nothing is left.

        Raises `ExhaustedError` where memory or disk does not suffice, and `NotFiniteError` where the network's values
        are no numbers. Every task is looked at in turn, by its own files alone: a life over n tasks takes some n
        operations on files, and again as many for those that others hold each time they are looked at again.
        """
        left: Sequence[Task] = self.ledger.tasks
        try:
            while left:
                left, worked = self._pass(left)
                if left and not worked:
                    if not self.wait or self.ledger.finished:
                        return
                    time.sleep(WAIT_S)
                    self.on_progress()
        except FileNotFoundError:
            if not self.ledger.finished:  # else another sealed the volume and cleared the leases
                raise
        finally:
            self._file.remove()

    def _pass(self, tasks: Sequence[Task]) -> tuple[list[Task], bool]:
        """Do what is free of some tasks: those that others hold, or that need others, and whether any was done."""
        waiting, worked = [], False
        for task in tasks:
            need = next((name for name in task.needs if not self.ledger.done(name)), None)
            if self.ledger.done(task.name) or (need is not None and self.ledger.has_failed(need)):
                continue
            if need is not None or not self._leases.claim(task.name, time.time()):
                waiting.append(task)
                continue
            current = self.ledger.current  # from here on the lease keeps others from replacing the volume
            finished = current and self.ledger.finished
            if current and not finished and not self.ledger.done(task.name) and not self.ledger.has_failed(task.name):
                self._perform(task)
                worked = True
                if not self.ledger.done(task.name) and not self.ledger.has_failed(task.name):
                    waiting.append(task)  # taken over
                continue
            self._leases.release(task.name)
            if not current:
                raise replaced(self.ledger.volume)
            if finished:
                return [], worked
        return waiting, worked

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
                            if isinstance(known, NotFiniteError):
                                raise NotFiniteError(f"{task_words(self.ledger, task.name)}: {known}") from error
                            return
                    else:
                        return
        finally:
            with suppress(FileNotFoundError):
                self._leases.release(task.name)

    def _attempt(self, task: Task) -> None:
        began, clock = time.time(), time.monotonic()
        begun = self.ledger.begun(task.name)
        done = 0 if task.unit is None else task.unit.blocks * begun[0] // self.ledger.plan.region.width
        last = -REPORT_S

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
                begun=begun,
                on_column=partial(self._begin, task.name),
            )
        else:
            assert task.plane is not None
            files = run_pyramid(self.ledger.volume, staging, self.job.dtype, *task.plane)
        self.ledger.write(Row(task.name, self.name, began, time.monotonic() - clock, files))
        self.on_progress()

    def _begin(self, name: str, right_px: int, files: Files) -> None:
        if right_px < self.ledger.plan.region.width:
            self.ledger.begin(name, right_px, files)


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


def task_words(ledger: Ledger, name: str) -> str:
    """A task as a user would say it."""
    unit = next((task.unit for task in ledger.tasks if task.name == name), None)
    if unit is None:
        return name
    plan, box = ledger.plan, ledger.plan.box(unit)
    return f"{name} (sections {', '.join(map(str, plan.groups[unit.group].image))}, rows {box.y0} to {box.y1})"
