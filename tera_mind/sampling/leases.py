"""Who works on what: a lease is a file that only one process can create, kept young by its holder.

Assumed of a shared file system: exclusive creation and renaming are atomic (POSIX, NFS 3 and later, Lustre, BeeGFS),
and all machines see a file's time as its server sets it, within `EXPIRY_S`. Time is only ever read from files that were
just written there, so clocks of machines need not agree. Nothing worse than double work follows where that fails:
tasks are idempotent and whole shards are renamed in place.
"""

from __future__ import annotations

import json
import os
import platform
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tera_mind.formats.atomic import is_alive

#: seconds between two signs of life, and without one until a lease may be taken over
HEARTBEAT_S, EXPIRY_S = 10.0, 120.0


def worker_name(number: int) -> str:
    """A name that no other worker has: machine, process, number."""
    return f"{machine()}-{os.getpid()}-{number}"


def machine() -> str:
    """The machine's name, fit for a file's name."""
    return "".join(c if c.isalnum() else "_" for c in platform.node()) or "machine"


@dataclass(frozen=True)
class Lease:
    """Who holds a task, since when (POSIX seconds of the holder's clock), and seconds since the last sign of life."""

    name: str
    worker: str
    machine: str
    pid: int
    since: float
    age_s: float

    @property
    def expired(self) -> bool:
        """Silent for too long, or of a process of this machine that is no more."""
        return self.age_s > EXPIRY_S or (self.machine == machine() and not is_alive(self.pid))


class Leases:
    """The leases of a folder, for one worker."""

    def __init__(self, folder: Path, worker: str) -> None:
        self.folder = folder
        self.worker = worker

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.json"

    def _now(self) -> float:
        """The file system's time."""
        clock = self.folder / f".clock-{self.worker}"
        try:
            clock.write_bytes(b"")
            return clock.stat().st_mtime
        finally:
            clock.unlink(missing_ok=True)

    def held(self) -> dict[str, Lease]:
        """All leases, expired ones too."""
        found: dict[str, Lease] = {}
        paths = list(self.folder.glob("[!.]*.json"))
        now = self._now() if paths else 0.0
        for path in paths:
            try:
                age = now - path.stat().st_mtime
                values = json.loads(path.read_text(encoding="utf-8") or "{}")
            except (OSError, ValueError):  # given back meanwhile, or being written
                continue
            # an empty one is being written, or its writer died: only its age tells
            found[path.stem] = Lease(
                path.stem,
                str(values.get("worker", "unknown")),
                str(values.get("machine", "")),
                int(values.get("pid", 0)),
                float(values.get("since", now - age)),
                age,
            )
        return found

    def claim(self, name: str, since: float) -> bool:
        """Take a task that no one holds, or whose holder is dead; false where another was faster."""
        path = self._path(name)
        content = {"worker": self.worker, "machine": machine(), "pid": os.getpid(), "since": since}
        try:
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        except FileExistsError:
            lease = self.held().get(name)
            if lease is None or not lease.expired or not self._bury(name, lease):
                return False
            return self.claim(name, since)
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(json.dumps(content))
        return True

    def _bury(self, name: str, lease: Lease) -> bool:
        """Put an expired lease aside; of several who try, one succeeds."""
        grave = self.folder / f".{name}-{lease.worker}-{self.worker}"
        try:
            self._path(name).rename(grave)
        except FileNotFoundError:
            return False
        grave.unlink(missing_ok=True)
        return True

    def holds(self, name: str) -> bool:
        """Whether a task is still this worker's."""
        try:
            return bool(json.loads(self._path(name).read_text(encoding="utf-8"))["worker"] == self.worker)
        except (OSError, ValueError, KeyError, TypeError):
            return False

    def release(self, name: str) -> None:
        """Give a task back, if it is still this worker's."""
        if self.holds(name):
            self._path(name).unlink(missing_ok=True)


@contextmanager
def heartbeat(leases: Leases, name: str) -> Iterator[None]:
    """Keep a lease young from a thread of its own, while the worker computes."""
    path, over = leases.folder / f"{name}.json", threading.Event()

    def beat() -> None:
        while not over.wait(HEARTBEAT_S):
            try:
                os.utime(path)
            except OSError:  # the lease was taken over; the work goes on and does no harm
                return

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
