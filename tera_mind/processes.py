"""Worker processes: they end with the process that started them, and give back memory that they no longer need."""

from __future__ import annotations

import ctypes
import multiprocessing
import multiprocessing.process
import os
import signal
import threading
from functools import cache


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
