"""Processes: how files name them and tell which have ended; workers end with the process that started them."""

from __future__ import annotations

import ctypes
import hashlib
import multiprocessing
import multiprocessing.process
import os
import platform
import signal
import threading
from dataclasses import dataclass
from functools import cache
from pathlib import Path

_PROC = Path("/proc")


def machine() -> str:
    """The machine's name, fit for a file's name."""
    return "".join(c if c.isalnum() else "_" for c in platform.node()) or "machine"


@dataclass(frozen=True)
class Process:
    """A process as files name it, on whatever machine they are read.

    began: when it began, as the system counts, and which start of which system (a container is one of its own) that
    was: a number that another process was given since is not taken for it.
    """

    machine: str
    pid: int
    began: str

    @staticmethod
    def own() -> Process:
        """This process."""
        pid = os.getpid()
        return Process(machine(), pid, f"{_system()}_{_began(pid) or 0}")

    @staticmethod
    def of(word: str) -> Process | None:
        """The process that a `word` is of; None where it is none."""
        parts = word.split("-")
        return Process(parts[0], int(parts[1]), parts[2]) if len(parts) == 3 and parts[1].isdigit() else None

    @property
    def word(self) -> str:
        """It in letters, digits, "_" and "-", for the name of a file."""
        return f"{self.machine}-{self.pid}-{self.began}"

    @property
    def ended(self) -> bool:
        """Whether it is known to be no more; of another machine, container or start of the system nothing is known."""
        system, _, began = self.began.partition("_")
        if self.machine != machine() or system != _system() or self.pid < 1:
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except (PermissionError, OverflowError):
            pass
        now = _began(self.pid)
        return now is not None and str(now) != began


@cache
def _system() -> str:
    """6 hex digits of this start of the system and its table of processes; zeros where it does not say."""
    try:
        boot = (_PROC / "sys/kernel/random/boot_id").read_text(encoding="ascii")
        return hashlib.sha256(f"{boot}{(_PROC / 'self/ns/pid').readlink()}".encode()).hexdigest()[:6]
    except OSError:
        return "0" * 6


def _began(pid: int) -> int | None:
    """Clock ticks from the start of the system to that of a process; 0 for one that ended, None: it does not say."""
    try:
        said = (_PROC / str(pid) / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return 0 if said[0] in "ZX" else int(said[19])


def end_with_parent() -> None:
    """Called first in a worker: an interrupt goes to the parent alone, and a killed parent takes its workers along.

    Without it a worker whose parent was killed works off what it has been given, then waits for ever.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_wait, args=(parent,), daemon=True).start()


def _wait(parent: multiprocessing.process.BaseProcess) -> None:
    parent.join()
    os._exit(1)


def give_memory_back() -> None:
    """Let the C library return freed memory to the system, where it is one that would keep it (glibc).

    It keeps what lies between pieces still in use, and so a process of many sizes of arrays grows for hours.
    """
    trim = _malloc_trim()
    if trim is not None:
        trim(0)


@cache
def _malloc_trim() -> ctypes._NamedFuncPointer | None:
    try:
        return ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # another C library
        return None
