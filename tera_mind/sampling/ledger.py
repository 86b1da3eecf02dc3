"""What of a volume is done: its plan and a row a task, in the folder `generation` of the volume itself.

`plan.json` says what is made (facts), how it is cut (plan) and with how many threads; it never changes. A task's row
`rows/NAME.json` is written after its shards are durable. While work goes on there are also `leases/` (see `leases`),
`workers/` (how far each is), `begun/` (what is durable of units in work), `failed/` and `partial/` (shards that are
being written). When all is done the folder is made a zarr group whose attributes hold plan and rows, so that a finished
volume is a valid zarr hierarchy throughout.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from tera_mind.errors import FormatError, InputError
from tera_mind.formats.atomic import atomic_file, fsync_path, fsync_tree, put_in_place, scratch_directory, sweep
from tera_mind.formats.volume import VolumeAttributes, create_volume, is_unfinished, mark_complete
from tera_mind.geometry import SectionGroup
from tera_mind.sampling.job import fingerprint
from tera_mind.sampling.plan import Plan, Unit
from tera_mind.sampling.writer import Files, differing

FOLDER = "generation"
_PLAN, _SEALED = "plan.json", "zarr.json"
_WORKING = ("leases", "rows", "workers", "begun", "failed", "partial")
_VERSION = 1


@dataclass(frozen=True)
class Task:
    """A piece of work that one worker does alone: a unit of the plan, or the pyramid of one plane."""

    name: str
    unit: Unit | None
    #: (stain, position of the section in the volume)
    plane: tuple[int, int] | None = None
    needs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Row:
    """A task that is done: who did it, when it began (POSIX seconds), how long it took, and what it wrote."""

    name: str
    worker: str
    began: float
    seconds: float
    files: Files = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        """Bytes on the disk."""
        return sum(size for size, _ in self.files.values())


class Ledger:
    """The record of a volume's generation; every process has its own and reads what the others wrote."""

    def __init__(self, volume: Path, record: Mapping[str, Any]) -> None:
        self.volume = volume
        self.folder = volume / FOLDER
        self.facts: dict[str, Any] = record["facts"]
        self.plan = Plan.from_json(record["plan"])
        self.threads = int(record["threads"])
        self.shape: tuple[int, int] = tuple(record["planes"])
        self.fingerprint = fingerprint({"facts": self.facts, "plan": record["plan"]})
        self._plan_file: tuple[int, ...] | None = None
        self._rows: dict[str, Row] = {name: _row(name, values) for name, values in record.get("rows", {}).items()}

    @staticmethod
    def create(
        path: Path,
        attributes: VolumeAttributes,
        facts: Mapping[str, Any],
        plan: Plan,
        threads: int,
        *,
        overwrite: bool = False,
    ) -> None:
        """Make an empty volume with its plan at `path`: in place of what is there, or unless something is.

        Where several commands do so at once, one of them succeeds; `open` then says whose plan it is.
        """
        record = {
            "format": "generation",
            "version": _VERSION,
            "facts": facts,
            "plan": plan.to_json(),
            "threads": threads,
            "planes": [len(attributes.stains), len(attributes.sections)],
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep(path)
        with scratch_directory(path) as folder:
            create_volume(folder, attributes, path.stem, plan.shard_px)
            for name in _WORKING:
                (folder / FOLDER / name).mkdir(parents=True)
            (folder / FOLDER / _PLAN).write_text(json.dumps(record), encoding="utf-8")
            fsync_tree(folder)
            if overwrite:
                put_in_place(folder, path)
                return
            try:
                folder.rename(path)
            except OSError as error:
                if error.errno not in {errno.ENOTEMPTY, errno.EEXIST}:
                    raise
            fsync_path(path.parent)

    @classmethod
    def open(cls, volume: Path) -> Ledger:
        """Raises `FormatError` where the volume has no ledger, or a damaged one."""
        folder = volume / FOLDER
        try:
            known = _identity(folder / _PLAN)
            if known is not None:
                record = json.loads((folder / _PLAN).read_text(encoding="utf-8"))
            else:
                content = json.loads((folder / _SEALED).read_text(encoding="utf-8"))
                record = content["attributes"]["tera_mind"]
            if record["format"] != "generation" or record["version"] != _VERSION:
                raise FormatError(f"{folder} is of another version; generate the volume again")
            ledger = cls(volume, record)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            if isinstance(error, FormatError):
                raise
            raise FormatError(
                f"{volume} has no readable record of its generation ({type(error).__name__} at {folder}); "
                "generate it again with --overwrite"
            ) from None
        ledger._plan_file = known
        return ledger

    @property
    def finished(self) -> bool:
        return not is_unfinished(self.volume)

    @property
    def current(self) -> bool:
        """Whether the volume there is still the one that this ledger is of; reads the disk."""
        if self._plan_file is not None and _identity(self.folder / _PLAN) == self._plan_file:
            return True  # the same file: not read again
        try:
            return Ledger.open(self.volume).fingerprint == self.fingerprint
        except FormatError:
            return False

    @cached_property
    def tasks(self) -> tuple[Task, ...]:
        """All tasks: units in the plan's order, then the pyramids."""
        units = [Task(f"unit-{unit.index:06d}", unit) for unit in self.plan.units]
        pyramids = []
        for plane, section in enumerate(self.facts["sections"]):
            needs = tuple(
                task.name for task in units if task.unit is not None and section in self.group(task.unit).image
            )
            pyramids += [
                Task(f"pyramid-{stain}-{plane:04d}", None, (stain, plane), needs) for stain in range(self.shape[0])
            ]
        return (*units, *pyramids)

    def group(self, unit: Unit) -> SectionGroup:
        return self.plan.groups[unit.group]

    def rows(self) -> dict[str, Row]:
        """Rows of the tasks that are done; torn ones, and those of another plan, do not count."""
        known = {task.name for task in self.tasks}
        for name in _names(self.folder / "rows"):
            if name in known and name not in self._rows:
                row = self._read(name)
                if row is not None:
                    self._rows[name] = row
        return self._rows

    def done(self, name: str) -> bool:
        """Whether a task is done; reads its row alone, unless that is known already."""
        if name not in self._rows:
            row = self._read(name)
            if row is None:
                return False
            self._rows[name] = row
        return True

    def _read(self, name: str) -> Row | None:
        try:
            values = json.loads((self.folder / "rows" / f"{name}.json").read_text(encoding="utf-8"))
            return _row(name, values) if values["fingerprint"] == self.fingerprint else None
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None

    def write(self, row: Row) -> None:
        """Say that a task is done, whose files must be durable."""
        _write(self.folder / "rows" / f"{row.name}.json", {"fingerprint": self.fingerprint, **_values(row)})
        self._rows[row.name] = row
        (self.folder / "begun" / f"{row.name}.json").unlink(missing_ok=True)
        (self.folder / "failed" / f"{row.name}.json").unlink(missing_ok=True)

    def begin(self, name: str, right_px: int, files: Files) -> None:
        """Note that a unit is durable up to a right edge, in the volume's pixels: who takes it over goes on there."""
        content = {"fingerprint": self.fingerprint, "right_px": right_px, "files": files}
        (self.folder / "begun").mkdir(exist_ok=True)
        _write(self.folder / "begun" / f"{name}.json", content)

    def begun(self, name: str) -> tuple[int, Files]:
        """Right edge and shards of what is durable of a unit, by `begin`; (0, {}) where nothing is, or it was lost."""
        try:
            values = json.loads((self.folder / "begun" / f"{name}.json").read_text(encoding="utf-8"))
            files = _files(values["files"])
            if values["fingerprint"] == self.fingerprint and not differing(self.volume, files, read=False):
                return int(values["right_px"]), files
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            pass
        return 0, {}

    def fail(self, name: str, worker: str, reason: str) -> None:
        """Say that a task failed for good, so that no one of this start tries it again."""
        _write(self.folder / "failed" / f"{name}.json", {"worker": worker, "reason": reason})

    def failed(self) -> dict[str, str]:
        """Task -> one line why it failed."""
        found = {}
        for name in _names(self.folder / "failed"):
            try:
                values = json.loads((self.folder / "failed" / f"{name}.json").read_text(encoding="utf-8"))
                found[name] = str(values["reason"])
            except (OSError, ValueError, KeyError, TypeError):
                continue
        return found

    def has_failed(self, name: str) -> bool:
        """Whether a task failed for good; looks for its file alone."""
        return (self.folder / "failed" / f"{name}.json").exists()

    def forget_failures(self) -> None:
        """Let failed tasks be tried again."""
        for name in self.failed():
            (self.folder / "failed" / f"{name}.json").unlink(missing_ok=True)

    def lost(self, *, read: bool = False) -> Iterator[tuple[str, list[str]]]:
        """Tasks that are done whose shards are lost or changed, and which; `read` reads all of them."""
        for name, row in list(self.rows().items()):
            wrong = differing(self.volume, row.files, read=read)
            if wrong:
                yield name, wrong

    def reopen(self, name: str) -> None:
        """Let a task that was done be done again, and the pyramids made from it."""
        for task in self.tasks:
            if task.name == name or name in task.needs:
                (self.folder / "rows" / f"{task.name}.json").unlink(missing_ok=True)
                self._rows.pop(task.name, None)

    def partial(self, name: str, worker: str) -> Path:
        """Folder for what a worker is writing of a task; what others left of that task is removed."""
        for left in (self.folder / "partial").glob(f"{name}-by-*"):
            shutil.rmtree(left, ignore_errors=True)
        return self.folder / "partial" / f"{name}-by-{worker}"

    def seal(self) -> None:
        """Mark the volume complete when every task is done, and remove what only the work needed; may be repeated."""
        rows = self.rows()
        missing = [task.name for task in self.tasks if task.name not in rows]
        if missing:
            raise InputError(f"{self.volume} lacks {len(missing)} tasks, among them {missing[0]}")
        if (self.folder / _PLAN).is_file():
            record = json.loads((self.folder / _PLAN).read_text(encoding="utf-8"))
            record["rows"] = {name: _values(rows[name]) for name in sorted(rows)}
            content = {"zarr_format": 3, "node_type": "group", "attributes": {"tera_mind": record}}
            _write(self.folder / _SEALED, content)
        mark_complete(self.volume)
        self.clean()

    def clean(self) -> None:
        """Remove the files of the work from a finished volume."""
        (self.folder / _PLAN).unlink(missing_ok=True)
        for name in _WORKING:
            shutil.rmtree(self.folder / name, ignore_errors=True)
        fsync_path(self.folder)


def differences(made: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """In words, how a volume's facts differ from those of a command; empty where they do not."""
    words = []
    for key in wanted:
        old, new = made.get(key), wanted[key]
        if old != new:
            words.append(f"{key} {_short(old)}, not {_short(new)}")
    return "; ".join(words)


def _short(value: Any) -> str:
    text = json.dumps(value) if isinstance(value, list | dict) else str(value)
    return text if len(text) <= 40 else text[:12] + "..."


def _names(folder: Path) -> list[str]:
    try:
        return [path.stem for path in folder.glob("[!.]*.json")]
    except FileNotFoundError:
        return []


def _values(row: Row) -> dict[str, Any]:
    return {key: value for key, value in asdict(row).items() if key != "name"}


def _row(name: str, values: Mapping[str, Any]) -> Row:
    files = _files(values["files"])
    return Row(name, str(values["worker"]), float(values["began"]), float(values["seconds"]), files)


def _files(values: Mapping[str, Any]) -> Files:
    return {path: (int(size), str(known)) for path, (size, known) in values.items()}


def _identity(path: Path) -> tuple[int, ...] | None:
    """What tells a file from another that was put in its place; None where there is none.

    It is opened, as file systems of several machines say only then what the others did.
    """
    try:
        handle = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        found = os.fstat(handle)
    finally:
        os.close(handle)
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _write(path: Path, content: Mapping[str, Any]) -> None:
    # not tidied: that would list the rows of all tasks for every one; `clean` removes what is left
    with atomic_file(path, tidy=False) as partial:
        partial.write_text(json.dumps(content), encoding="utf-8")
