"""Whether a section's source is what it was: a digest of everything its reader holds, and of the files it will read.

An object is taken apart as `pickle` would, so a new reader needs to say nothing: numbers, arrays and settings count by
value, paths by what lies there (size and time of change). Unlike a pickle's bytes the digest does not depend on which
equal objects happen to be one.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any

import numpy as np

from tera_mind.errors import InputError

_PLAIN = (str, int, float, bool, bytes, complex, type(None), np.generic)


def digest(thing: Any, stamps: dict[Path, str] | None = None) -> str:
    """16 hex digits of an object and of the files it names. Raises `InputError` where it cannot be taken apart.

    `stamps` is filled with what was found of the files, for other objects that name the same ones.
    """
    sha = hashlib.sha256()
    stamps = {} if stamps is None else stamps
    for leaf in _leaves(thing, ()):
        if isinstance(leaf, Path) and leaf not in stamps:
            stamps[leaf] = _stamp(leaf)
        token = f"path:{leaf}:{stamps[leaf]}".encode() if isinstance(leaf, Path) else leaf
        sha.update(token + b"\0")
    return sha.hexdigest()[:16]


def files_of(thing: Any) -> list[Path]:
    """The files and folders that an object names and that exist, in the order in which they come, each once."""
    paths = dict.fromkeys(leaf for leaf in _leaves(thing, ()) if isinstance(leaf, Path))
    return [path for path in paths if path.exists()]


def _leaves(thing: Any, above: tuple[int, ...]) -> Iterator[Path | bytes]:
    """Paths as they are, all else as bytes; `above` are the objects that this one is a part of."""
    if isinstance(thing, Path):
        yield thing
    elif isinstance(thing, _PLAIN):
        yield f"{type(thing).__name__}:{thing!r}".encode()
    elif isinstance(thing, np.ndarray):
        content = hashlib.sha256(np.ascontiguousarray(thing).tobytes()).hexdigest()
        yield f"array:{thing.dtype}:{thing.shape}:{content}".encode()
    elif isinstance(thing, (type, FunctionType, BuiltinFunctionType)):
        yield f"name:{thing.__module__}.{thing.__qualname__}".encode()
    elif id(thing) in above:
        yield f"above:{len(above) - above.index(id(thing))}".encode()
    else:
        parts = _parts(thing)
        yield f"{type(thing).__name__}:{len(parts)}".encode()
        for part in parts:
            yield from _leaves(part, (*above, id(thing)))


def _parts(thing: Any) -> list[Any]:
    if isinstance(thing, (tuple, list)):
        return list(thing)
    if isinstance(thing, Mapping):
        return [part for item in sorted(thing.items(), key=lambda item: repr(item[0])) for part in item]
    if isinstance(thing, (set, frozenset)):
        return sorted(thing, key=repr)
    if isinstance(thing, MethodType):
        return [thing.__func__.__qualname__, thing.__self__]
    return _reduced(thing)


def _reduced(thing: Any) -> list[Any]:
    """What `pickle` would keep of an object."""
    try:
        reduced = thing.__reduce_ex__(4)
    except TypeError as error:
        raise InputError(f"a section's source cannot travel to another process: {error}") from None
    if isinstance(reduced, str):
        return [reduced]
    function, arguments, *state = reduced
    state = [list(part) if isinstance(part, Iterator) else part for part in state]
    return [getattr(function, "__qualname__", repr(function)), arguments, *state]


def _stamp(path: Path) -> str:
    """Size and time of change of a file; of a folder, those of all files below it."""
    try:
        status = path.stat()
    except OSError:
        return "absent"
    if not path.is_dir():
        return f"{status.st_size}:{status.st_mtime_ns}"
    files = size = newest = 0
    for folder, _, names in os.walk(path):
        for name in names:
            with suppress(FileNotFoundError):  # a broken link; whoever needs the file says so
                status = (Path(folder) / name).stat()
                files, size, newest = files + 1, size + status.st_size, max(newest, status.st_mtime_ns)
    return f"{files}:{size}:{newest}"
