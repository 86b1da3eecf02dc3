"""Who works on what: a lease is a file that only one process can create, kept young by its holder.

Assumed of a shared file system: exclusive creation and renaming are atomic (POSIX, NFS 3 and later, Lustre, BeeGFS),
and all machines see a file's time as its server sets it, within `EXPIRY_S`. Time is only ever read from files that were
just written there, so clocks of machines need not agree. Nothing worse than double work follows where that fails:
tasks are idempotent and whole shards are renamed in place.
"""

from __future__ import annotations

import errno
import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from tera_mind.processes import Process, machine

#: seconds between two signs of life, and without one until a lease may be taken over
HEARTBEAT_S, EXPIRY_S = 10.0, 120.0


def worker_name(number: int) -> str:
    """A name that no other worker has: machine, process, number."""
    return f"{machine()}-{os.getpid()}-{number}"


@dataclass(frozen=True)
class Lease:
    """Who holds a task, since when (POSIX seconds of the holder's clock), and seconds since the last sign of life."""

    name: str
    worker: str
    process: Process
    since: float
    age_s: float

    @property
    def expired(self) -> bool:
        """Silent for too long, or of a process that is known to be no more."""
        return self.age_s > EXPIRY_S or self.process.ended


class Leases:
    """The leases of a folder, for one worker."""

    def __init__(self, folder: Path, worker: str) -> None:
        self.folder = folder
        self.worker = worker

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.json"

    def _now(self) -> float:
        """The file system's time; this machine's for one who may only look on."""
        clock = self.folder / f".clock-{self.worker}"
        try:
            clock.write_bytes(b"")
            return clock.stat().st_mtime
        except OSError as error:
            if error.errno not in {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT}:
                raise
            return time.time()
        finally:
            with suppress(OSError):
                clock.unlink(missing_ok=True)

    def held(self) -> dict[str, Lease]:
        """All leases, expired ones too."""
        paths = list(self.folder.glob("[!.]*.json"))
        now = self._now() if paths else 0.0
        every = (self._read(path, now) for path in paths)
        return {lease.name: lease for lease in every if lease is not None}

    def lease(self, name: str) -> Lease | None:
        """The lease of one task, expired or not."""
        path = self._path(name)
        return self._read(path, self._now()) if path.exists() else None

    def _read(self, path: Path, now: float) -> Lease | None:
        try:
            age = now - path.stat().st_mtime
            content = path.read_text(encoding="utf-8", errors="replace")
        except OSError:  # given back meanwhile
            return None
        try:
            values = json.loads(content)
            process = Process(str(values["machine"]), int(values["pid"]), str(values["began"]))
            return Lease(path.stem, str(values["worker"]), process, float(values["since"]), age)
        except (ValueError, KeyError, TypeError):  # it is being written, or its writer died: only its age tells
            return Lease(path.stem, "unknown", Process("", 0, ""), now - age, age)

    def claim(self, name: str, since: float) -> bool:
        """Take a task that no one holds, or whose holder is dead; false where another was faster."""
        path = self._path(name)
        content = {"worker": self.worker, **asdict(Process.own()), "since": since}
        try:
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        except FileExistsError:
            lease = self.lease(name)
            if lease is None or not lease.expired or not self._bury(name, lease):
                return False
            return self.claim(name, since)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(json.dumps(content))
        except OSError:  # a full disk: an empty lease would keep everyone waiting until it expires
            path.unlink(missing_ok=True)
            raise
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
            with suppress(OSError):  # a file system that stumbles once must not cost the lease
                if leases.holds(name):  # one that was taken over is the other's to keep young
                    os.utime(path)

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
