"""Partial results of an evaluation: one file a unit, written whole, so that an interrupted evaluation goes on.

Keys of a unit that start with `sum:` are added over the units, all others are put one after the other, both in the
order of the plan: the outcome does not depend on who measured what, or when.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tera_mind.formats.atomic import atomic_file

Arrays = Mapping[str, NDArray[Any]]
#: what an evaluation is, beside its units
_RECORD = "plan.json"


class PartialStore:
    """Unit files in a folder of `work` that is named after `facts`, which tell one evaluation from another.

    A straggler of another evaluation writes into a folder of its own: its numbers never get into this one.
    """

    def __init__(self, work: Path, facts: Mapping[str, Any]) -> None:
        self.facts = json.dumps(facts, sort_keys=True, indent=1)
        self.work = work
        self.folder = work / hashlib.sha256(self.facts.encode()).hexdigest()[:16]

    def prepare(self) -> None:
        """Keep what this very evaluation left behind, remove what others did, and nothing else."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for other in self.work.iterdir():
            if other != self.folder and (other / _RECORD).is_file():
                shutil.rmtree(other, ignore_errors=True)
        with atomic_file(self.folder / _RECORD) as path:
            path.write_text(self.facts, encoding="utf-8")

    def path(self, name: str) -> Path:
        return self.folder / f"{name}.npz"

    def has(self, name: str) -> bool:
        """Whether a unit is done; a file that is torn or damaged is not."""
        try:
            with zipfile.ZipFile(self.path(name)) as archive:
                return bool(archive.namelist()) and archive.testzip() is None
        except (OSError, ValueError, EOFError, zlib.error, zipfile.BadZipFile):
            return False

    def write(self, name: str, arrays: Arrays) -> None:
        with atomic_file(self.path(name)) as path, path.open("wb") as stream:
            np.savez(stream, allow_pickle=False, **arrays)


class Results:
    """What the units of one role measured, key by key: only the array that is asked for is in memory."""

    def __init__(self, store: PartialStore, names: Sequence[str]) -> None:
        self._files = [store.path(name) for name in names]
        with np.load(self._files[0], allow_pickle=False) as file:
            self._keys = frozenset(file.files)

    def _parts(self, key: str) -> Iterator[NDArray[Any]]:
        for path in self._files:
            with np.load(path, allow_pickle=False) as file:
                yield file[key]

    def optional(self, key: str) -> Iterator[NDArray[Any]]:
        """One key of those units that have it."""
        for path in self._files:
            with np.load(path, allow_pickle=False) as file:
                if key in file:
                    yield file[key]

    def __contains__(self, key: str) -> bool:
        return key in self._keys

    def array(self, key: str) -> NDArray[Any]:
        """One key of all units, one after the other along the first axis."""
        return np.concatenate(list(self._parts(key)))

    def total(self, key: str) -> NDArray[Any]:
        """One key that starts with `sum:`, added in the order of the units."""
        parts = self._parts(key)
        total = next(parts)
        for part in parts:
            total += part
        return total
