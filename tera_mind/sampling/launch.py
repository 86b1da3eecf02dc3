"""Begin, join or go on with a volume, with workers in this process or in several of this machine."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import torch

from tera_mind.errors import InputError, TeraMindError
from tera_mind.formats.volume import Volume, is_unfinished
from tera_mind.processes import end_with_parent
from tera_mind.sampling.estimate import rehearse
from tera_mind.sampling.finite import check_weights
from tera_mind.sampling.job import Generation, reopened
from tera_mind.sampling.leases import Leases
from tera_mind.sampling.ledger import FOLDER, Ledger, differences
from tera_mind.sampling.macs import block_macs
from tera_mind.sampling.plan import Plan, make_plan
from tera_mind.sampling.progress import Snapshot, snapshot
from tera_mind.sampling.worker import Worker, explained, replaced, task_words

if TYPE_CHECKING:
    from multiprocessing.process import BaseProcess
    from multiprocessing.queues import SimpleQueue

#: threads of a worker; more are a slip of the keyboard that no library survives
MOST_THREADS = 1024
#: share of the free memory that the plan may use
MEMORY_SHARE = 0.6
#: a pyramid adds a third to its finest level
PYRAMID_SHARE = 4 / 3
#: seconds between two looks at the workers, and that they have to end in order
WATCH_S, GRACE_S = 0.5, 20.0
#: times what a look took, until the next: of ten thousand units it takes a while
WATCH_PAUSE = 30

#: called now and then with the state of the volume
Watch = Callable[[Snapshot], None]


@dataclass(frozen=True)
class Launch:
    """How a volume is generated: none of it but `threads` changes a pixel.

    devices: one a worker, in turn; workers: processes of this command; share: commands that do the volume together (an
    array of a batch system), which do not wait for each other; memory_bytes: main memory that a worker may use
    (default: its part of what is free); shard_px: largest side of the volume's shards (default: the plan's);
    threads: of a worker on the CPU (default: all cores, whatever the workers), on which sums and so last bits depend.
    """

    devices: tuple[torch.device, ...] = (torch.device("cpu"),)
    workers: int = 1
    share: int = 1
    overwrite: bool = False
    memory_bytes: int | None = None
    shard_px: int | None = None
    threads: int | None = None

    def __post_init__(self) -> None:
        if self.workers < 1 or self.share < 1:
            raise InputError(f"--workers and --join must be at least 1, got {self.workers} and {self.share}")
        if self.threads is not None and not 1 <= self.threads <= MOST_THREADS:
            raise InputError(f"--threads must be 1 to {MOST_THREADS}, got {self.threads}")
        if self.overwrite and self.share > 1:
            raise InputError("--overwrite and --join together would let each command remove what the others made")

    @property
    def cpu_threads(self) -> int:
        """Threads of a worker."""
        return torch.get_num_threads() if self.threads is None else self.threads

    @property
    def memory(self) -> int:
        """Bytes of main memory a worker."""
        if self.memory_bytes is not None:
            return self.memory_bytes
        return int(MEMORY_SHARE * psutil.virtual_memory().available / self.workers)


def plan_of(job: Generation, launch: Launch) -> Plan:
    """How a job is cut into units for these workers."""
    model = job.checkpoint.info.model
    more: dict[str, Any] = {} if launch.shard_px is None else {"shard_px": launch.shard_px}
    return make_plan(
        job.region,
        job.groups,
        [job.domain(group) for group in job.groups],
        job.settings,
        patch_px=model.patch_px,
        halo_px=model.halo_px,
        bin_px=model.bin_px,
        channels=model.image_channels,
        genes=model.genes,
        workers=launch.workers * launch.share,
        memory_bytes=launch.memory,
        block_multiply_adds=block_macs(
            job.checkpoint.info.model, job.checkpoint.info.method, job.block_rows, job.block_columns
        ),
        gene_bytes_px=_gene_bytes_px(job),
        pixel_bytes=1 if job.dtype == "uint8" else 2,
        **more,
    )


def found(job: Generation, out: Path, launch: Launch) -> Ledger | None:
    """The ledger of an earlier or concurrent command for the same volume, None where one is to be made.

    Raises `InputError` where something else is there that may not be replaced, naming what differs. Changes nothing.
    """
    for device in launch.devices:
        job.check_device(device)
    check_weights(job.checkpoint.network, str(job.checkpoint.path))
    facts = _facts(job, launch)
    if out.exists() and any(out.iterdir()):
        unfinished = is_unfinished(out)
        ledger = Ledger.open(out) if (out / FOLDER).is_dir() or unfinished else None
        differs = "something else" if ledger is None else differences(ledger.facts, facts)
        if ledger is not None and not differs and (unfinished or not launch.overwrite):
            return ledger
        if not launch.overwrite:
            began = "was begun with" if unfinished else "exists, made with"
            told = f"{out} {began} {differs}" if ledger is not None else f"{out} exists"
            raise InputError(f"{told}: give --overwrite to replace it, or another --out")
        if ledger is not None and unfinished:
            _refuse_workers(ledger)
    return None


def _facts(job: Generation, launch: Launch) -> dict[str, Any]:
    facts = job.facts(launch.devices[0])
    if launch.devices[0].type == "cpu":
        facts["threads"] = launch.cpu_threads
    return facts


def prepare(job: Generation, out: Path, launch: Launch) -> Ledger:
    """The ledger of the volume: `found`, or a new one.

    Raises as it does, and spoils nothing: what is there is replaced last, when a block has been computed.
    """
    known = found(job, out, launch)
    if known is not None:
        return known
    facts, plan = _facts(job, launch), plan_of(job, launch)
    check_space(job, plan, out)
    if out.exists() and any(out.iterdir()):
        _rehearse(job, out, launch.devices[0])
    Ledger.create(out, job.attributes(launch.devices[0]), facts, plan, launch.cpu_threads, overwrite=launch.overwrite)
    ledger = Ledger.open(out)
    differs = differences(ledger.facts, facts)
    if differs:
        raise InputError(f"another command has just begun {out} with {differs}: give another --out")
    return ledger


def _rehearse(job: Generation, out: Path, device: torch.device) -> None:
    """Raise a `TeraMindError` where genes cannot be read or the first block not be computed."""
    try:
        rehearse(job, device)
    except Exception as error:
        known = explained(error, job, out)
        if known is error:
            raise
        raise known from error


def _refuse_workers(ledger: Ledger) -> None:
    alive = [
        lease for lease in Leases(ledger.folder / "leases", f"check-{os.getpid()}").held().values() if not lease.expired
    ]
    if alive:
        raise InputError(f"{alive[0].worker} is at work on {ledger.volume}: stop it first, or give another --out")


def needed_bytes(job: Generation, plan: Plan) -> int:
    """Most that the volume can take on the disk: what is computed, uncompressed, with its pyramid."""
    side = plan.patch_px
    patches = sum(
        int(job.domain(group).active.sum()) * len(set(group.image) & set(job.sections)) for group in plan.groups
    )
    size = 1 if job.dtype == "uint8" else 2
    return int(PYRAMID_SHARE * patches * side * side * job.checkpoint.info.model.stains * size)


def check_space(job: Generation, plan: Plan, out: Path, volumes: int = 1) -> None:
    """Raises `InputError` where the disk may not hold the volume, or several like it."""
    there = next(folder for folder in (out.absolute(), *out.absolute().parents) if folder.is_dir())
    free, needed = shutil.disk_usage(there).free, volumes * needed_bytes(job, plan)
    if free < needed:
        raise InputError(
            f"{out} may need {needed / 2**30:.2f} GiB, its disk has {free / 2**30:.2f} GiB left: make room, or give a "
            "smaller --region, fewer --sections or another --out"
        )


def _gene_bytes_px(job: Generation) -> float:
    """Bytes of transcripts on the disk, a pixel of a section."""
    folder = job.brain.path / "transcripts"
    total = sum((Path(inner) / name).stat().st_size for inner, _, names in os.walk(folder) for name in names)
    return total / (job.brain.shape[1] * job.brain.canvas.height * job.brain.canvas.width)


def generate(job: Generation, out: Path, launch: Launch, watch: Watch = lambda _: None) -> Volume | None:
    """Work on a volume until it is complete, or with `share` until nothing is left that no one holds; then None.

    Raises `TeraMindError` in one line where tasks failed; what is done is kept, and the same call goes on.
    """
    ledger = prepare(job, out, launch)
    if not ledger.finished:
        for name, _ in list(ledger.lost()):
            ledger.reopen(name)
        ledger.forget_failures()
        with _interruptible():
            if launch.workers == 1:
                _work_here(job, ledger, launch, watch)
            else:
                _work_in_processes(job, ledger, launch, watch)
    if not ledger.current:
        raise replaced(out)
    if not ledger.finished:
        failed = ledger.failed()
        if failed:
            raise TeraMindError(_told(ledger, failed))
        if len(ledger.rows()) < len(ledger.tasks):
            return None
        watch(snapshot(ledger))
        try:
            ledger.seal()
        except FileNotFoundError:
            if not ledger.finished:  # another command sealed it at the same moment
                raise
    ledger.clean()
    return Volume.open(out)


def _told(ledger: Ledger, failed: dict[str, str]) -> str:
    name, reason = min(failed.items())
    more = "" if len(failed) == 1 else f"; {len(failed) - 1} more failed"
    return (
        f"{task_words(ledger, name)} failed: {reason}{more}; {len(ledger.rows())} of {len(ledger.tasks)} tasks are "
        "done and kept, the same command goes on"
    )


def _look(ledger: Ledger, watch: Watch) -> float:
    """Show how far the volume is; seconds until it is worth looking again."""
    begun = time.monotonic()
    watch(snapshot(ledger))
    return max(WATCH_S, WATCH_PAUSE * (time.monotonic() - begun))


def _work_here(job: Generation, ledger: Ledger, launch: Launch, watch: Watch) -> None:
    due = 0.0

    def look() -> None:
        nonlocal due
        if time.monotonic() >= due:
            due = time.monotonic() + _look(ledger, watch)

    threads = torch.get_num_threads()
    torch.set_num_threads(ledger.threads)
    try:
        Worker(job, ledger, launch.devices[0], wait=launch.share == 1, on_progress=look).run()
    finally:
        torch.set_num_threads(threads)


def _work_in_processes(job: Generation, ledger: Ledger, launch: Launch, watch: Watch) -> None:
    # "spawn": a forked child would inherit torch's locked thread pools
    context = multiprocessing.get_context("spawn")
    errors = context.SimpleQueue()
    processes: list[BaseProcess] = []
    try:
        for number in range(launch.workers):
            device = str(launch.devices[number % len(launch.devices)])
            process: BaseProcess = context.Process(
                target=_worker_main,
                args=(
                    job.__reduce__()[1],
                    ledger.volume,
                    ledger.fingerprint,
                    device,
                    number,
                    launch.share == 1,
                    errors,
                ),
            )
            process.start()
            processes.append(process)
        while any(process.is_alive() for process in processes):
            pause = _look(ledger, watch)
            multiprocessing.connection.wait([process.sentinel for process in processes if process.is_alive()], pause)
    finally:
        _end(processes)
    killed = [process for process in processes if process.exitcode]
    if ledger.failed():  # the caller says what failed
        return
    if len(killed) == len(processes):
        said = "" if errors.empty() else errors.get()
        raise TeraMindError(
            said
            or f"all {len(processes)} worker processes were killed; if it was for want of memory, give fewer "
            "--workers: what is done is kept, the same command goes on"
        )
    for process in killed:
        print(f"a worker process ended with {process.exitcode}; others did its work", file=sys.stderr)


def _end(processes: Sequence[BaseProcess]) -> None:
    """Let workers give back what they hold, then end those that do not."""
    for process in processes:
        if process.is_alive():
            process.terminate()
    until = time.monotonic() + GRACE_S
    for process in processes:
        process.join(max(0.1, until - time.monotonic()))
        if process.is_alive():
            process.kill()
            process.join()


def _worker_main(
    parts: tuple[Any, ...],
    volume: Path,
    known: str,
    device: str,
    number: int,
    wait: bool,
    errors: SimpleQueue[str],
) -> None:
    end_with_parent()
    signal.signal(signal.SIGTERM, _leave)
    try:
        job, ledger = reopened(*parts), Ledger.open(volume)
        if ledger.fingerprint != known:
            raise replaced(volume)
        torch.set_num_threads(ledger.threads)
        Worker(job, ledger, torch.device(device), number, wait=wait).run()
    except (TeraMindError, OSError) as error:
        errors.put(" ".join(str(error).split()))
        raise SystemExit(1) from None


def _leave(*_: object) -> None:
    raise SystemExit(128 + signal.SIGTERM)


@contextmanager
def _interruptible() -> Iterator[None]:
    """SIGTERM, as batch systems send it, ends the work as an interrupt does: leases are given back."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
