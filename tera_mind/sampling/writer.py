"""Whole shards of a volume: written and hashed beside, made durable, and renamed in place, so that none is ever half.

Pieces of a band come from the left to the right; only the shards that they are filling are in memory.
"""

from __future__ import annotations

import errno
import hashlib
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from tera_mind.formats.atomic import fsync_path
from tera_mind.formats.ome import PIXEL_RANGE, PixelType, ZarrArray, open_level
from tera_mind.geometry import Box
from tera_mind.sampling.plain import to_uint8

#: path of a shard inside the volume -> (bytes, BLAKE2b-128 of the file); (0, "") where all pixels are the lowest value
Files = dict[str, tuple[int, str]]

_METADATA = "zarr.json"


@dataclass
class ShardWriter:
    """Writes shards of the volume at `volume` by way of the folder `staging`, which it makes and `close` removes."""

    volume: Path
    staging: Path
    dtype: PixelType
    files: Files = field(default_factory=dict)
    _levels: dict[int, ZarrArray] = field(default_factory=dict)
    _folders: set[Path] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.staging.mkdir(parents=True, exist_ok=True)

    def write(self, level: int, stain: int, plane: int, box: Box, pixels: NDArray[Any]) -> None:
        """Put pixels (y, x) of a window that fills one shard in place; the box is in pixels of the level.

        Raises `FileNotFoundError`, and touches nothing, where `staging` was taken away: by a worker that took the task
        over, or with a volume that was replaced.
        """
        array = self._level(level)
        _, _, shard_y, shard_x = array.shards or array.chunks
        name = f"{level}/c/{stain}/{plane}/{box.y0 // shard_y}/{box.x0 // shard_x}"
        made, final = self.staging / name, self.volume / name
        array[(stain, plane, *box.slices())] = pixels
        if not (self.staging / str(level) / _METADATA).exists():
            raise FileNotFoundError(errno.ENOENT, "another worker has taken over what was being written here", made)
        if (pixels == array.fill_value).all():  # stored nowhere; a shard that is merely gone is no proof of it
            final.unlink(missing_ok=True)
            self.files[name] = (0, "")
            return
        self.files[name] = digest(made)
        fsync_path(made)
        final.parent.mkdir(parents=True, exist_ok=True)
        made.replace(final)
        for folder in final.parents:
            if folder == self.volume:
                break
            self._folders.add(folder)

    def seal(self) -> Files:
        """Make the folders' entries durable; what was written, for the ledger."""
        for folder in sorted(self._folders, reverse=True):
            fsync_path(folder)
        return self.files

    def close(self) -> None:
        shutil.rmtree(self.staging, ignore_errors=True)

    def _level(self, level: int) -> ZarrArray:
        if level not in self._levels:
            folder = self.staging / str(level)
            folder.mkdir()
            shutil.copyfile(self.volume / str(level) / _METADATA, folder / _METADATA)
            self._levels[level] = open_level(self.staging, level, "r+", self.dtype)
        return self._levels[level]


def digest(path: Path) -> tuple[int, str]:
    """Size and BLAKE2b-128 of a file."""
    with path.open("rb") as file:
        found = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16))
    return path.stat().st_size, found.hexdigest()


def differing(volume: Path, files: Files, *, read: bool) -> list[str]:
    """Shards that are not as the ledger says: lost, of another size, or (`read`) of other content."""
    wrong = []
    for name, (size, known) in files.items():
        path = volume / name
        try:
            there = path.stat().st_size
        except FileNotFoundError:
            there = 0
        if there != size or (read and size and digest(path)[1] != known):
            wrong.append(name)
    return wrong


@dataclass
class BandWriter:
    """Gathers the pieces of one band of a section group and hands every full shard to a `ShardWriter`.

    on_column: called with the right edge, in pixels, of every column of shards that is in place, from left to right;
    band: in the volume's pixels, whole shards high; planes: position in the volume of each of the group's sections, or
    None for one that is not asked for.
    """

    shards: ShardWriter
    band: Box
    stains: int
    planes: tuple[int | None, ...]
    shard_px: tuple[int, int]
    on_column: Callable[[int], None] = lambda _: None
    _open: dict[int, tuple[NDArray[Any], int]] = field(default_factory=dict)

    def add(self, box: Box, piece: Float[Tensor, "channel y x"]) -> None:
        """Take a finished piece in [-1, 1] whose box, in the volume's pixels, lies in the band."""
        width = self.shard_px[1]
        for column in range(box.x0 // width, -(-box.x1 // width)):
            window = Box(self.band.y0, self.band.y1, column * width, min((column + 1) * width, self.band.x1))
            part = box.intersect(window)
            buffer, filled = self._open.pop(column, (None, 0))
            if buffer is None:
                buffer = np.empty((len(piece), window.height, window.width), self.shards.dtype)
            inner, source = part.shift(-window.y0, -window.x0).slices(), part.shift(-box.y0, -box.x0).slices()
            for plane, values in zip(buffer, piece, strict=True):  # one by one: rounding takes copies
                plane[inner] = encode(values[None, *source], self.shards.dtype)[0]
            filled += part.height * part.width
            if filled == window.height * window.width:
                self._flush(window, buffer)
            else:
                self._open[column] = buffer, filled

    def finish(self) -> None:
        """Raises `RuntimeError` where pieces are missing."""
        if self._open:
            raise RuntimeError(f"band {self.band} lacks pieces in shard columns {sorted(self._open)}")

    def _flush(self, window: Box, buffer: NDArray[Any]) -> None:
        image = buffer.reshape(self.stains, len(self.planes), *buffer.shape[1:])
        for box in window.tiles(self.shard_px[0], window.width):
            inner = box.shift(-window.y0, -window.x0).slices()
            for stain in range(self.stains):
                for index, plane in enumerate(self.planes):
                    if plane is not None:
                        self.shards.write(0, stain, plane, box, image[(stain, index, *inner)])
        self.on_column(window.x1)


def encode(piece: Float[Tensor, "channel y x"], dtype: PixelType) -> NDArray[Any]:
    """Pixels as a volume stores them: (channel, y, x)."""
    if dtype == "uint8":
        return to_uint8(piece).cpu().numpy()
    low, high = PIXEL_RANGE[dtype]
    return piece.clamp(low, high).to(torch.float16).cpu().numpy()
