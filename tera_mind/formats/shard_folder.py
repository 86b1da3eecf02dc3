"""Files of a folder of shards, local or where fsspec reaches (`https://`, `s3://`, ...), read by byte ranges."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from tera_mind.errors import FormatError, InputError, MissingFileError

_T = TypeVar("_T")
#: tries of a remote read, and the pause before the second; it doubles every time
TRIES, PAUSE_S = 4, 0.5
_NOT_THERE = (FileNotFoundError, IsADirectoryError, NotADirectoryError)


class ShardFolder:
    """A local folder or the URL of a remote one; cheap to pickle, opened by every process for itself."""

    def __init__(self, location: str | Path) -> None:
        text = str(location)
        self.is_local = "://" not in text or text.startswith("file://")
        self._base = text.removeprefix("file://") if self.is_local else text.rstrip("/")
        self._opened: tuple[int, Any, str] | None = None

    def __str__(self) -> str:
        return self._base

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_opened": None}

    def where(self, name: str) -> str:
        """A file's path or URL, for messages and for local reading."""
        return str(Path(self._base) / name) if self.is_local else f"{self._base}/{name}"

    def size(self, name: str) -> int | None:
        """Bytes of a local file; None where it is not there. Remote files are not asked: one request a shard."""
        path = Path(self._base) / name
        return path.stat().st_size if path.is_file() else None

    def read(self, name: str) -> bytes:
        """A whole file. Raises `MissingFileError` where it is not there, `FormatError` where it cannot be read."""
        try:
            if self.is_local:
                return (Path(self._base) / name).read_bytes()
            system, root = self._remote()
            return bytes(_retry(lambda: system.cat_file(f"{root}/{name}")))
        except _NOT_THERE:
            raise MissingFileError(f"{self.where(name)} is not there; check the location of the shards") from None
        except _failures() as error:
            raise FormatError(
                f"{self.where(name)} cannot be read ({_words(error)}); is its server reachable?"
            ) from None

    def read_ranges(self, ranges: Sequence[tuple[str, int, int]]) -> list[bytes | FormatError]:
        """Byte ranges (file, offset, length), remote ones at the same time; an error stands where one failed."""
        if self.is_local or len(ranges) <= 1:
            return [self._range(*one) for one in ranges]
        system, root = self._remote()
        names, starts, sizes = zip(*ranges, strict=True)
        ends = [start + size for start, size in zip(starts, sizes, strict=True)]
        try:
            found = system.cat_ranges([f"{root}/{name}" for name in names], list(starts), ends, on_error="return")
        except _failures():
            found = [None] * len(ranges)
        return [  # what failed is asked for again by itself, with retries
            self._checked(data, *one) if isinstance(data, bytes) else self._range(*one)
            for data, one in zip(found, ranges, strict=True)
        ]

    def _range(self, name: str, offset: int, size: int) -> bytes | FormatError:
        try:
            if self.is_local:
                handle = os.open(Path(self._base) / name, os.O_RDONLY)
                try:
                    data = os.pread(handle, size, offset)
                finally:
                    os.close(handle)
            else:
                system, root = self._remote()
                data = _retry(lambda: system.cat_file(f"{root}/{name}", start=offset, end=offset + size))
        except _failures() as error:
            return FormatError(
                f"shard {self.where(name)} at byte {offset} cannot be read ({_words(error)}); "
                "restore it or write the shards again"
            )
        return self._checked(data, name, offset, size)

    def _checked(self, data: bytes, name: str, offset: int, size: int) -> bytes | FormatError:
        if len(data) == size:
            return data
        where = f"shard {self.where(name)} at byte {offset}"
        if len(data) > size:
            return FormatError(
                f"{where}: {size} bytes were asked for, {len(data)} came: the server ignores range requests; "
                "use one that knows them (nginx, S3), or copy the shards to a local folder"
            )
        return FormatError(f"{where} is truncated: {len(data)} of {size} bytes are there; restore or write again")

    def _remote(self) -> tuple[Any, str]:
        """File system and root of a URL; made anew after a fork, since its connections belong to one process."""
        if self._opened is None or self._opened[0] != os.getpid():
            from fsspec.core import url_to_fs

            try:
                system, root = url_to_fs(self._base)
            except (ImportError, ValueError) as error:
                raise InputError(f"shards at {self._base} cannot be opened ({error})") from None
            self._opened = (os.getpid(), system, root)
        return self._opened[1], self._opened[2]


def _failures() -> tuple[type[BaseException], ...]:
    """What reading can raise; HTTP clients have errors of their own, known once their library is loaded."""
    aiohttp = sys.modules.get("aiohttp")
    return (OSError, TimeoutError, *((aiohttp.ClientError,) if aiohttp is not None else ()))


def _words(error: BaseException) -> str:
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(str(text).split())


def _retry(read: Callable[[], _T]) -> _T:
    for attempt in range(TRIES - 1):
        try:
            return read()
        except _NOT_THERE:
            raise
        except _failures():
            time.sleep(PAUSE_S * 2**attempt)
    return read()
