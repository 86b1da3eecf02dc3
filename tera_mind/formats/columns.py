"""Rows of numbers as a zarr v3 array (column, row) uint16, written front to back and read by short stretches of rows.

The first column rises more often than not, so it is kept as steps: a value less that of the row before, modulo 2^16,
and the value itself in the first row of a chunk. All else is plain zarr: sharding with its index at the end, and chunks
of all columns of 2048 rows, packed by blosc (bits shuffled, then lz4hc) with a crc32c behind. This module writes and
reads those files itself, because a window needs a few kilobytes of many sections, and zarr's own way costs about a
millisecond a read. zstd makes files of about the same size here and takes three times longer to unpack.
Sources: zarr v3 core specification, its sharding, blosc and crc32c codecs.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import google_crc32c
import numpy as np
import zarr
from numcodecs import blosc
from numpy.typing import NDArray
from zarr.codecs import BloscCodec, Crc32cCodec

from tera_mind.errors import FormatError

CHUNK_ROWS = 2**11
SHARD_ROWS = 2**20
_CODEC: Literal["lz4hc"] = "lz4hc"
_LEVEL = 5
#: offset and length in the index of a chunk that is not stored: all zero
_ABSENT = 2**64 - 1
_CRC_BYTES = 4
#: largest shard that is believed, so that a damaged number asks for no absurd memory
_MOST_ROWS = 2**26
#: open shards a process keeps, each with its index
_OPEN_SHARDS = 64


class ColumnsWriter:
    """Appends rows to an array of a fixed number of columns; holds at most a shard of them in memory."""

    def __init__(self, folder: Path, columns: int) -> None:
        self._folder = folder
        self._columns = columns
        self._waiting: list[NDArray[np.uint16]] = []
        self._waiting_rows = 0
        self._shards = 0
        self.rows = 0
        (folder / "c" / "0").mkdir(parents=True)

    def append(self, rows: NDArray[np.uint16]) -> None:
        """Add rows, (column, row)."""
        self.rows += rows.shape[1]
        while rows.shape[1]:
            room = SHARD_ROWS - self._waiting_rows
            self._waiting.append(rows[:, :room])
            self._waiting_rows += self._waiting[-1].shape[1]
            rows = rows[:, room:]
            if self._waiting_rows == SHARD_ROWS:
                self._write_shard(SHARD_ROWS)

    def finish(self) -> None:
        """Write what is left and the array's metadata."""
        shard_rows = min(SHARD_ROWS, max(1, -(-self.rows // CHUNK_ROWS)) * CHUNK_ROWS)  # few rows, a short index
        if self._waiting_rows:
            self._write_shard(shard_rows)
        zarr.create_array(
            self._folder,
            shape=(self._columns, self.rows),
            dtype="uint16",
            chunks=(self._columns, CHUNK_ROWS),
            shards=(self._columns, shard_rows),
            compressors=(BloscCodec(typesize=2, cname=_CODEC, clevel=_LEVEL, shuffle="bitshuffle"), Crc32cCodec()),
            fill_value=0,
            dimension_names=("column", "row"),
        )

    def _write_shard(self, shard_rows: int) -> None:
        rows = np.concatenate(self._waiting, axis=1) if len(self._waiting) > 1 else self._waiting[0]
        self._waiting, self._waiting_rows = [], 0
        index = np.full((shard_rows // CHUNK_ROWS, 2), _ABSENT, "<u8")
        path = self._folder / "c" / "0" / str(self._shards)
        with path.open("wb") as file:
            for chunk, start in enumerate(range(0, rows.shape[1], CHUNK_ROWS)):
                part = rows[:, start : start + CHUNK_ROWS]
                full = np.zeros((self._columns, CHUNK_ROWS), "<u2")  # zarr's chunks are of one size
                full[:, : part.shape[1]] = part
                full[0, 1 : part.shape[1]] -= part[0, :-1]  # modulo 2^16, as uint16 is
                packed = blosc.compress(full, _CODEC.encode(), _LEVEL, blosc.BITSHUFFLE)
                index[chunk] = file.tell(), len(packed) + _CRC_BYTES
                file.write(packed + _crc(packed))
            table = index.tobytes()
            file.write(table + _crc(table))
        self._shards += 1


class ColumnsReader:
    """Reads stretches of rows. Raises `FormatError` where the array is damaged or not as `ColumnsWriter` makes it."""

    def __init__(self, folder: Path, columns: int) -> None:
        self._folder, self.columns = folder, columns
        try:
            self._read_metadata(json.loads((folder / "zarr.json").read_bytes()))
        except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
            raise FormatError(f"{folder} is no readable array of columns ({error!r}); ingest the brain again") from None

    def _read_metadata(self, facts: dict[str, Any]) -> None:
        found, self.rows = (int(size) for size in facts["shape"])
        shard = facts["chunk_grid"]["configuration"]["chunk_shape"]
        (codec,) = facts["codecs"]
        inner = codec["configuration"]
        self._shard_rows, self._chunk_rows = int(shard[1]), int(inner["chunk_shape"][1])
        expected = {
            "zarr_format": (facts["zarr_format"], 3),
            "data type": (facts["data_type"], "uint16"),
            "fill value": (facts["fill_value"], 0),
            "chunk keys": (facts["chunk_key_encoding"]["name"], "default"),
            "codec": (codec["name"], "sharding_indexed"),
            "codecs of a chunk": ([part["name"] for part in inner["codecs"]], ["bytes", "blosc", "crc32c"]),
            "order of bytes": (inner["codecs"][0]["configuration"]["endian"], "little"),
            "codecs of the index": ([part["name"] for part in inner["index_codecs"]], ["bytes", "crc32c"]),
            "place of the index": (inner.get("index_location", "end"), "end"),
            "columns": (found, self.columns),
            "columns of a shard": (shard[0], self.columns),
            "columns of a chunk": (inner["chunk_shape"][0], self.columns),
        }
        for what, (found, wanted) in expected.items():
            if found != wanted:
                raise ValueError(f"{what} should be {wanted!r}, is {found!r}")
        if not 0 < self._chunk_rows <= self._shard_rows <= _MOST_ROWS or self._shard_rows % self._chunk_rows:
            raise ValueError(f"chunks of {self._chunk_rows} rows in shards of {self._shard_rows}")
        self._per_shard = self._shard_rows // self._chunk_rows

    @property
    def shards(self) -> list[Path]:
        """The files that hold the rows."""
        return [self.shard_path(number) for number in range(-(-self.rows // self._shard_rows))]

    def shard_path(self, number: int) -> Path:
        return self._folder / "c" / "0" / str(number)

    def read(self, spans: Sequence[tuple[int, int]]) -> NDArray[np.uint16]:
        """Rows of stretches [start, stop), one after the other: (column, row)."""
        out = np.empty((self.columns, sum(stop - start for start, stop in spans)), np.uint16)
        buffer = np.empty((self.columns, self._chunk_rows), "<u2")
        done, size = 0, self._chunk_rows
        for start, stop in spans:
            for chunk in range(start // size, -(-stop // size)):
                number, within = divmod(chunk, self._per_shard)
                _open_shard(self, number, self._per_shard).unpack(within, buffer)
                first, last = max(0, start - chunk * size), min(size, stop - chunk * size)
                to = slice(done, done + last - first)
                out[0, to] = np.add.accumulate(buffer[0, :last])[first:]  # modulo 2^16, as uint16 is
                out[1:, to] = buffer[1:, first:last]
                done = to.stop
        return out


class _Shard:
    """An open shard file and its index; reading moves no file offset, so that forked processes may share it."""

    def __init__(self, path: Path, chunks: int) -> None:
        self._path, self._handle = path, -1
        try:
            self._handle = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise FormatError(f"{path} cannot be read: {error.strerror}; ingest the brain again") from None
        length = 16 * chunks + _CRC_BYTES
        tail = os.pread(self._handle, length, max(0, os.fstat(self._handle).st_size - length))
        if len(tail) != length or _crc(tail[:-_CRC_BYTES]) != tail[-_CRC_BYTES:]:
            raise FormatError(f"{path} is damaged: its index has a wrong checksum; ingest the brain again")
        self._index: NDArray[np.uint64] = np.frombuffer(tail[:-_CRC_BYTES], "<u8").reshape(chunks, 2)

    def unpack(self, chunk: int, out: NDArray[np.uint16]) -> None:
        """Fill an array with a chunk as it is stored; one that is not stored is zero."""
        offset, size = self._index[chunk].tolist()
        if offset == _ABSENT:
            out[:] = 0
            return
        data = os.pread(self._handle, size, offset)
        packed = data[:-_CRC_BYTES]
        if len(data) != size or _crc(packed) != data[-_CRC_BYTES:]:
            raise FormatError(f"{self._path} is damaged: a chunk has a wrong checksum; ingest the brain again")
        blosc.decompress(packed, out)

    def __del__(self) -> None:
        if self._handle >= 0:
            os.close(self._handle)


@lru_cache(maxsize=_OPEN_SHARDS)
def _open_shard(reader: ColumnsReader, number: int, chunks: int) -> _Shard:
    """A shard of a reader, open as long as it is among those used last; a reader equals itself alone."""
    return _Shard(reader.shard_path(number), chunks)


def _crc(data: bytes) -> bytes:
    return int(google_crc32c.value(data)).to_bytes(_CRC_BYTES, "little")
