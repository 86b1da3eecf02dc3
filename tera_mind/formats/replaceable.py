"""What --overwrite may replace: only what the command itself writes, and never an input or what holds one."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from pathlib import Path

from tera_mind.errors import InputError

#: where a folder says what it is: a zarr store in its attributes, a folder of shards in its manifest
_ATTRIBUTES, _MANIFEST = "zarr.json", "manifest.json"


def check_replaceable(path: Path, kinds: Collection[str], inputs: Iterable[Path]) -> None:
    """Raise `InputError` unless a folder may be written at `path`, in place of what is there.

    There may be nothing, an empty folder, or a folder of one of the formats `kinds` ("brain", "volume", "shards",
    "export", ...) that tera-mind wrote. See `check_apart` for `inputs`.
    """
    check_apart(path, inputs)
    if not (path.exists() or path.is_symlink()):
        return
    wanted = " or ".join(kinds)
    if path.is_dir() and not any(path.iterdir()):
        return
    found = kind_of(path)
    if found not in kinds:
        what = "no store" if found is None else f"a store of format {found}"
        raise InputError(f"{path} is {what} of tera-mind, expected {wanted}; it is not replaced, remove it yourself")


def check_apart(path: Path, inputs: Iterable[Path]) -> None:
    """Raise `InputError` where an output is an input, holds one or lies inside one; links are followed.

    The folder that the process runs in, and those above, are no output either.
    """
    own = path.resolve()
    if Path.cwd().resolve().is_relative_to(own):
        raise InputError(f"{path} is the folder that the command runs in, or above it; name an output of its own")
    for source in inputs:
        other = source.resolve()
        if own == other:
            raise InputError(f"{path} is an input; name another output")
        if other.is_relative_to(own):
            raise InputError(f"{path} holds the input {source}, which would be lost; name another output")
        if own.is_relative_to(other):
            raise InputError(f"{path} lies inside the input {source}; name an output outside")


def check_folder(path: Path, files: Iterable[str]) -> None:
    """Raise `InputError` where a folder of files cannot be at `path`, or a folder is where one of them goes."""
    if not path.is_dir() or kind_of(path) is not None:
        raise InputError(f"{path} is a file or a store, --out names a folder for several files; choose another")
    for name in files:
        if (path / name).is_dir():
            raise InputError(f"{path / name} is a folder where a file is written; choose another --out")


def check_summary(path: Path, kind: str) -> None:
    """Raise `InputError` where another command's summary, or no summary at all, lies at `path`."""
    if (path.exists() or path.is_symlink()) and _read(path).get("format") != kind:
        raise InputError(f"{path} is no summary of this command and would be lost; choose another --out")


def kind_of(path: Path) -> str | None:
    """Format that a folder of tera-mind says it has; None for everything else."""
    attributes = _read(path / _ATTRIBUTES).get("attributes")
    record = attributes.get("tera_mind") if isinstance(attributes, dict) else None
    found = record.get("format") if isinstance(record, dict) else _read(path / _MANIFEST).get("format")
    return found if isinstance(found, str) else None


def _read(path: Path) -> dict[str, object]:
    """A JSON object; empty where there is none."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}
