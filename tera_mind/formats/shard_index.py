"""Where every slab of a split lies: a NumPy table beside the manifest, memory-mapped, one row a slab."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tera_mind.errors import FormatError, TeraMindError
from tera_mind.formats.places import Place
from tera_mind.formats.shard_folder import ShardFolder
from tera_mind.geometry import Box

#: one row: shard number, byte range and checksum of the sample; its brain, first image section and core
INDEX = np.dtype(
    [
        *(("offset", "<u8"), ("bytes", "<u4"), ("crc32", "<u4"), ("shard", "<u4")),
        *(("brain", "<u2"), ("section", "<i2"), ("y", "<i4"), ("x", "<i4"), ("height", "<u2"), ("width", "<u2")),
    ]
)


@dataclass(frozen=True)
class SampleRef:
    """Where a slab lies in its shard, and what it shows: brain, first image section, corners of its crops."""

    key: str
    shard: str
    offset: int
    size: int
    crc32: int
    place: Place


@dataclass(frozen=True)
class SlabIndex:
    """The samples of a split. A whole brain has millions: rows are read from the mapped file when asked for."""

    folder: ShardFolder
    file: str
    split: str
    shards: tuple[str, ...]
    slabs: int
    sha256: str

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "table"}

    @cached_property
    def table(self) -> NDArray[Any]:
        """All rows, dtype `INDEX`; every process checks the file's SHA-256 once, since crops are cut by what it says.

        Raises `FormatError` where the file is not the one the manifest was written with, or no table of `slabs` rows.
        """
        where = self.folder.where(self.file)
        try:
            if self.folder.is_local:
                with Path(where).open("rb") as file:
                    self._check(hashlib.file_digest(file, "sha256").hexdigest())
                table = np.load(Path(where), mmap_mode="r", allow_pickle=False)
            else:
                data = self.folder.read(self.file)
                self._check(hashlib.sha256(data).hexdigest())
                table = np.load(BytesIO(data), allow_pickle=False)
        except TeraMindError:
            raise
        except (OSError, ValueError, EOFError, SyntaxError) as error:
            raise FormatError(f"index {where} cannot be read ({error}); restore it or write the shards again") from None
        if not isinstance(table, np.ndarray) or table.dtype != INDEX or table.shape != (self.slabs,):
            raise FormatError(f"index {where} is no table of {self.slabs} slabs; restore it or write the shards again")
        return table

    def _check(self, sha256: str) -> None:
        if sha256 != self.sha256:
            raise FormatError(
                f"index {self.folder.where(self.file)} is damaged: its SHA-256 is not the manifest's; restore it or "
                "write the shards again"
            )

    def __len__(self) -> int:
        return self.slabs

    def __getitem__(self, number: int) -> SampleRef:
        number = range(self.slabs)[number]
        offset, size, crc32, shard, brain, section, y, x, height, width = self.table[number].item()
        if shard >= len(self.shards):
            raise FormatError(f"index {self.folder.where(self.file)} is damaged at row {number}: no shard {shard}")
        place = Place(brain, section, Box(y, y + height, x, x + width))
        return SampleRef(sample_key(self.split, number), self.shards[shard], offset, size, crc32, place)

    def __iter__(self) -> Iterator[SampleRef]:
        return (self[number] for number in range(self.slabs))


def sample_key(split: str, number: int) -> str:
    """WebDataset key of a split's slab."""
    return f"{split}-{number:07d}"
