"""Worker processes that end with the process that started them, however that ends."""

from __future__ import annotations

import multiprocessing
import multiprocessing.process
import os
import signal
import threading


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
