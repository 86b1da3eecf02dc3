"""The folder beside an unfinished store: what is done, so that a rerun goes on, and who may write.

It is hidden, named after the output, and lies on the same file system. Results of a section are found by the digest of
its sources, those of the store by the digest of all that determines its bytes: a result can never be taken for one of
other sources or settings. A result counts when its mark is there; a mark is written after the data is durable.

    .OUT.work/facts.json               for people: sections, their digests, versions
    .OUT.work/lock, run                one writer at a time; a straggler of a killed run sees another number and stops
    .OUT.work/sections/<digest>/       source.pickle, transcripts.bin (sorted runs), marks (*.npz)
    .OUT.work/stores/<digest>/         facts.json, brain.zarr (unfinished), marks/
"""

from __future__ import annotations

import fcntl
import json
import pickle
import secrets
import shutil
import socket
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from tera_mind import __version__
from tera_mind.errors import FormatError, InputError, MissingFileError, TeraMindError
from tera_mind.formats.atomic import atomic_file, fsync_path, fsync_tree
from tera_mind.ingest.fingerprint import digest
from tera_mind.ingest.placing import Canvas, Placed

#: changes with the meaning of what lies in the folder
FORMAT = 2
_RECORD = "record"
#: what numpy and zipfile raise on a torn file
_TORN = (OSError, ValueError, EOFError, KeyError, zlib.error, zipfile.BadZipFile)

#: takes a line that the user should read
Say = Callable[[str], None]


@dataclass(frozen=True)
class Mark:
    """A finished result: plain facts and arrays."""

    record: dict[str, Any]
    arrays: dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Work:
    """The work folder of one run; travels to worker processes."""

    folder: Path
    run: str

    def check(self) -> None:
        """Raise `TeraMindError` unless this run is the one that may write."""
        current = self._current()
        if current is None:
            raise MissingFileError(
                f"worker on {socket.gethostname()} does not see {self.folder}: every worker needs the file system "
                "of the output and of the sources under the same path"
            )
        if current != self.run:
            raise TeraMindError(f"{self.folder.parent} is being written by a later run; this one stops")

    @property
    def is_ours(self) -> bool:
        """Whether no later run has taken the folder."""
        return self._current() == self.run

    def _current(self) -> str | None:
        """Number of the run that may write; None where the folder is not to be seen."""
        try:
            return (self.folder / "run").read_text(encoding="utf-8")
        except OSError:
            return None

    def section(self, key: str) -> Path:
        """Folder of what was read of a section."""
        return self.folder / "sections" / key

    def store(self, key: str) -> Path:
        """Folder of an unfinished store and its marks."""
        return self.folder / "stores" / key

    def placed(self, key: str) -> Placed:
        """The section itself, as the starting process had it."""
        return _load(self.section(key) / "source.pickle")

    def keep(self, sections: Mapping[str, Placed]) -> None:
        """Put sections where workers find them."""
        for key, placed in sections.items():
            self.section(key).mkdir(parents=True, exist_ok=True)
            with atomic_file(self.section(key) / "source.pickle") as path:
                path.write_bytes(pickle.dumps(placed))


@lru_cache(maxsize=4)
def _load(path: Path) -> Placed:
    placed = pickle.loads(path.read_bytes())  # noqa: S301 - this run's first process wrote it
    assert isinstance(placed, Placed)
    return placed


def write_mark(path: Path, record: Mapping[str, Any], data: Path | None = None, **arrays: NDArray[Any]) -> None:
    """Make `data` (a file or folder of the result) durable, then write the mark that says so."""
    if data is not None and data.exists():
        make_durable(data, path.parents[1])
    facts = {**record, "data": None if data is None else extent(data)}
    text = np.frombuffer(json.dumps(facts).encode(), np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as partial, partial.open("wb") as stream:
        np.savez_compressed(stream, allow_pickle=False, **{_RECORD: text}, **arrays)


def read_mark(path: Path, data: Path | None = None) -> Mark | None:
    """A mark, or None where it is absent or torn, or `data` is not of the size that it had."""
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        record = json.loads(arrays.pop(_RECORD).tobytes())
    except _TORN:
        return None
    if data is not None and record["data"] != extent(data):
        return None
    return Mark(record, arrays)


def make_durable(data: Path, root: Path) -> None:
    """A file or folder, and the folders between it and `root`."""
    if data.is_dir():
        fsync_tree(data)
    else:
        fsync_path(data)
    for folder in data.parents:
        if folder == root.parent:
            break
        fsync_path(folder)


def extent(path: Path) -> list[int]:
    """Number and bytes of the files of a result; nothing at all counts as none."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return [len(files), sum(file.stat().st_size for file in files)]


def work_folder(out: Path) -> Path:
    """Where the unfinished store of `out` lies."""
    return out.with_name(f".{out.name}.work")


def section_keys(canvas: Canvas) -> list[str]:
    """Digest of all that determines what is read of each section: files, settings, place, canvas, the version."""
    stamps: dict[Path, str] = {}
    return [digest((FORMAT, __version__, canvas.shape, placed), stamps) for placed in canvas.sections]


@contextmanager
def open_work(out: Path, sections: Mapping[str, str], say: Say) -> Iterator[Work]:
    """The work folder of an output, for this process alone; `sections`: name -> key.

    Results of sections that are no longer asked for, or whose sources changed, are removed, which is said. Raises
    `InputError` when another process is at it.
    """
    folder = work_folder(out)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("a") as lock:
        _lock(lock, out)
        before = _recorded(folder)
        changed = [name for name, key in sections.items() if name in before and before[name] != key]
        if changed:
            say(f"{_some(changed)} changed since the interrupted run (or its settings did): read again")
        _remove_others(folder / "sections", sections.values())
        work = Work(folder, secrets.token_hex(8))
        (folder / "run").write_text(work.run, encoding="utf-8")
        facts = {"format": FORMAT, "tera_mind": __version__, "out": out.name, "sections": dict(sections)}
        with atomic_file(folder / "facts.json") as path:
            path.write_text(json.dumps(facts, indent=1), encoding="utf-8")
        try:
            yield work
        except TeraMindError as error:
            # the user will change what is wrong with the input, in a brain of one section: with what has been read
            useless = len(sections) == 1 and isinstance(error, (InputError, FormatError))
            if (useless or not any(folder.glob("sections/*/*.npz"))) and work.is_ours:
                shutil.rmtree(folder, ignore_errors=True)
            raise


def keep_store(work: Work, facts: Mapping[str, Any]) -> str:
    """Key of the store that `facts` determine; unfinished stores of other facts are removed."""
    key = digest(dict(facts))
    _remove_others(work.folder / "stores", [key])
    work.store(key).mkdir(parents=True, exist_ok=True)
    with atomic_file(work.store(key) / "facts.json") as path:
        path.write_text(json.dumps(facts), encoding="utf-8")
    return key


def _lock(file: IO[str], out: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise InputError(f"another tera-mind ingest is writing {out}; wait for it, or choose another --out") from None
    except OSError:
        return  # a file system without locks: two runs at once are the user's care, the number in `run` stops the first


def _recorded(folder: Path) -> dict[str, str]:
    try:
        return dict(json.loads((folder / "facts.json").read_text(encoding="utf-8"))["sections"])
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _remove_others(folder: Path, kept: Iterable[str]) -> None:
    kept = set(kept)
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.name not in kept:
            shutil.rmtree(path, ignore_errors=True)


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
    return f"section{'s' if len(names) > 1 else ''} {shown}"
