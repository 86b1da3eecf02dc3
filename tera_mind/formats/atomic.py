"""Files and folders that appear whole or not at all: written beside, made durable, renamed.

What a killed process left beside its output is swept when the same output is written again: at once where it is known
to have ended, else (of another machine, on a file system that they share) when it is old.
"""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tera_mind.processes import Process

#: seconds until what a process left that cannot be judged counts as left; until a folder that it put aside comes back
#: where there is no other: between its two renames lies next to no time
OLD_S, ASIDE_S = 7 * 86400.0, 600.0


def fsync_path(path: Path) -> None:
    """Make a file's data, or a folder's entries, durable."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def fsync_tree(folder: Path) -> None:
    """Make all files below a folder, and the folders' entries, durable."""
    for inner, _, files in os.walk(folder, topdown=False):
        for name in files:
            fsync_path(Path(inner) / name)
        fsync_path(Path(inner))


@contextmanager
def atomic_file(path: Path, *, tidy: bool = True) -> Iterator[Path]:
    """Yield a path beside `path` to write to; on success it replaces `path`, on failure it is removed.

    `tidy` makes the folder and sweeps what dead processes left of the file, for which the whole folder is listed.
    """
    if tidy:
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep(path)
    partial = _beside(path, "partial")
    try:
        yield partial
        fsync_path(partial)
        partial.replace(path)
        fsync_path(path.parent)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def atomic_directory(path: Path) -> Iterator[Path]:
    """Yield an empty folder beside `path` to fill; on success it replaces `path`, on failure it is removed.

    A folder cannot be renamed over another, so the old one is first put aside; it comes back where the second
    rename fails, and at the next writing where the process died between the two.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    sweep(path)
    partial = _beside(path, "partial")
    partial.mkdir()
    try:
        yield partial
        fsync_tree(partial)
        put_in_place(partial, path)
    finally:
        _remove(partial)


@contextmanager
def scratch_directory(path: Path) -> Iterator[Path]:
    """Yield an empty folder beside `path` that is removed in the end; within `atomic_file`, which sweeps old ones."""
    folder = _beside(path, "scratch")
    folder.mkdir()
    try:
        yield folder
    finally:
        _remove(folder)


def put_in_place(folder: Path, path: Path) -> None:
    """Rename a durable folder of the same file system to `path`; what is there is put aside first, then removed."""
    old = _beside(path, "old")
    try:
        if path.exists():
            path.replace(old)
        try:
            folder.replace(path)
        except BaseException:
            if old.exists():
                old.replace(path)
            raise
        fsync_path(path.parent)
    finally:
        if path.exists():
            _remove(old)


def _beside(path: Path, kind: str) -> Path:
    return path.with_name(f".{path.name}.{kind}-{Process.own().word}")


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def sweep(path: Path) -> None:
    """Remove what dead processes left of writing `path`, and give back an old folder that one had put aside."""
    pattern = re.compile(re.escape(f".{path.name}.") + r"(partial|old|scratch)-(\w+-\d+-\w+|\d+)")
    own = Process.own()
    for left in sorted(path.parent.iterdir()):
        match = pattern.fullmatch(left.name)
        if match is None:
            continue
        process, wanted = Process.of(match[2]), match[1] == "old" and not path.exists()
        if process is None or (process != own and not process.ended):
            try:
                found = left.lstat()
            except FileNotFoundError:  # put in place meanwhile
                continue
            changed = found.st_ctime if wanted else found.st_mtime  # a renaming changes the former
            if time.time() - changed < (ASIDE_S if wanted else OLD_S):
                continue
        if wanted:
            left.replace(path)
        else:
            _remove(left)
