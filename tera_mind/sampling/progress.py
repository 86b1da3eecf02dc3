"""How far a volume is: what the ledger, the leases and the workers' own files say at one moment."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tera_mind.sampling.leases import Lease, Leases
from tera_mind.sampling.ledger import Ledger, Task

#: what a plane's pyramid counts for, beside units that count their blocks
PYRAMID_BLOCKS = 1


def weight(task: Task) -> int:
    """Blocks of a task: what it counts for in bars and estimates."""
    return PYRAMID_BLOCKS if task.unit is None else max(1, task.unit.blocks)


@dataclass(frozen=True)
class Running:
    """A task in work: who is at it, where it stands in blocks, and whether it still gives signs of life."""

    task: Task
    lease: Lease
    done: int

    @property
    def share(self) -> float:
        return self.done / weight(self.task)


@dataclass(frozen=True)
class Snapshot:
    """The state of a volume's generation at one moment; counts are blocks."""

    total: int
    done: int
    finished: frozenset[str]
    running: tuple[Running, ...]
    failed: dict[str, str]
    remaining_s: float | None
    bytes: int

    @property
    def complete(self) -> bool:
        return self.done == self.total


class WorkerFile:
    """What a worker says of itself, for others to show; lost without harm."""

    def __init__(self, ledger: Ledger, worker: str) -> None:
        self._path = ledger.folder / "workers" / f"{worker}.json"

    def write(self, **facts: Any) -> None:
        beside = self._path.with_name(f".{self._path.name}")
        try:
            beside.write_text(json.dumps(facts), encoding="utf-8")
            beside.replace(self._path)
        except FileNotFoundError:  # another has finished the volume
            return

    @staticmethod
    def read(folder: Path, worker: str) -> dict[str, Any]:
        try:
            found = json.loads((folder / "workers" / f"{worker}.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def remove(self) -> None:
        self._path.unlink(missing_ok=True)


def snapshot(ledger: Ledger) -> Snapshot:
    """Read the state of a volume, finished or not; changes nothing but for a clock file that is gone at once."""
    rows, tasks = ledger.rows(), {task.name: task for task in ledger.tasks}
    held = {} if ledger.finished else Leases(ledger.folder / "leases", f"status-{os.getpid()}").held()
    running = []
    for name, lease in sorted(held.items()):
        if name in tasks and name not in rows:
            said = WorkerFile.read(ledger.folder, lease.worker)
            done = int(said.get("done", 0)) if said.get("task") == name else 0
            running.append(Running(tasks[name], lease, min(done, weight(tasks[name]))))
    total = sum(map(weight, tasks.values()))
    done = sum(weight(task) for name, task in tasks.items() if name in rows)
    live = [each for each in running if not each.lease.expired]
    partly = sum(each.done for each in live)
    return Snapshot(
        total,
        done + partly,
        frozenset(rows),
        tuple(running),
        ledger.failed() if not ledger.finished else {},
        _remaining_s(ledger, tasks, total - done - partly, len(live)),
        sum(row.bytes for row in rows.values()),
    )


def _remaining_s(ledger: Ledger, tasks: dict[str, Task], blocks: int, workers: int) -> float | None:
    """Time for the rest at the pace of the units that are done, with the workers that are there; None: no idea."""
    if not blocks:
        return 0.0
    rows = [row for name, row in ledger.rows().items() if tasks[name].unit is not None]
    spent, made = sum(row.seconds for row in rows), sum(weight(tasks[row.name]) for row in rows)
    return blocks * spent / made / workers if made and workers else None
