"""What is done already: a marker in each task's folder, and a lock that lives as long as the work.

`stage.json`: {"format": "stage", "version": 1, "fingerprint", "command": [...], "status": "running" | "done" | "failed"
| "stopped", "code": exit code or null, "seconds": working time so far, all starts together, "tera_mind": version}
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from tera_mind import __version__
from tera_mind.errors import FormatError
from tera_mind.formats.atomic import atomic_file
from tera_mind.formats.volume import is_unfinished
from tera_mind.sweep.plan import Task

State = Literal["to do", "begun", "done", "failed", "changed"]
MARKER, LOG, LOCK = "stage.json", "log.txt", ".lock"


@dataclass(frozen=True)
class Marker:
    """What a task's folder says of itself."""

    fingerprint: str
    command: tuple[str, ...]
    status: str
    code: int | None = None
    seconds: float = 0.0

    def write(self, folder: Path) -> None:
        record = {
            "format": "stage",
            "version": 1,
            "fingerprint": self.fingerprint,
            "command": list(self.command),
            "status": self.status,
            "code": self.code,
            "seconds": round(self.seconds, 1),
            "tera_mind": __version__,
        }
        with atomic_file(folder / MARKER) as partial:
            partial.write_text(json.dumps(record, indent=1))

    @staticmethod
    def read(folder: Path) -> Marker | None:
        """None where there is none; `FormatError` where it is no marker of this version."""
        path = folder / MARKER
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
            if raw["format"] != "stage" or raw["version"] != 1:
                raise FormatError(f"{path} is of another version: remove {folder} to do the stage again")
            return Marker(raw["fingerprint"], tuple(raw["command"]), raw["status"], raw["code"], float(raw["seconds"]))
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError) as error:
            if isinstance(error, FormatError):
                raise
            raise FormatError(f"{path} is damaged: remove {folder} to do the stage again") from error


def state_of(task: Task) -> State:
    """Whether a task is done, from its marker, from what it made, and for training from its own run.json."""
    marker = Marker.read(task.folder)
    if marker is None:
        return "to do"
    if marker.fingerprint != task.fingerprint:
        return "changed"
    if marker.status == "done":
        return "done" if is_made(task.makes) else "to do"
    # killed between the end of the command and its marker: outputs appear whole or say that they are not; checkpoints
    # grow
    if task.words[0] == "fit":
        made = task.makes.exists() and _training_finished(task.folder / "run.json")
    else:
        made = is_made(task.makes)
    if made:
        return "done"
    return "failed" if marker.status == "failed" else "begun"


def is_made(path: Path) -> bool:
    """Whether an output is there and whole."""
    return path.exists() and not is_unfinished(path)


def _training_finished(path: Path) -> bool:
    try:
        return bool(json.loads(path.read_text(encoding="utf-8")).get("status") == "finished")
    except (OSError, ValueError, AttributeError):
        return False


@contextmanager
def locked(task: Task, stopping: Callable[[], bool]) -> Iterator[int | None]:
    """Hold the task's folder; yields the lock's descriptor, for the command to inherit, or None once `stopping()`.

    The lock ends with the last process that has the descriptor, so a command that outlives a killed sweep keeps it, and
    another sweep, or another task of an array, waits for it instead of starting a second.
    """
    task.folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(task.folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        yield descriptor if _lock(descriptor, stopping) else None
    finally:
        os.close(descriptor)


def _lock(descriptor: int, stopping: Callable[[], bool]) -> bool:
    while not stopping():
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.2)
        else:
            return True
    return False


def begin(task: Task) -> Marker:
    """Say that the task is being worked on; time that earlier starts took is kept."""
    before = Marker.read(task.folder)
    spent = 0.0 if before is None else before.seconds
    marker = Marker(task.fingerprint, task.words, "running", None, spent)
    marker.write(task.folder)
    return marker


def end(task: Task, marker: Marker, status: str, code: int, seconds: float) -> None:
    replace(marker, status=status, code=code, seconds=marker.seconds + seconds).write(task.folder)


def clear(task: Task) -> None:
    """Empty the folder of a task that another command made; the lock, which is held, stays."""
    for child in task.folder.iterdir():
        if child.is_dir() and not child.is_symlink():
            shutil.rmtree(child)
        elif child.name != LOCK:
            child.unlink()
