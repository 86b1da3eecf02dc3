"""Transcripts of a section, grouped by tiles of 256 px, so that a window costs what the window holds.

On disk: `indptr` int64 (tiles + 1, row-major tiles), and one entry a distinct (pixel, gene) in `y`, `x` uint8 (inside
the tile), `gene` uint16 and `count` uint16. In memory, while a section is being sorted, an entry is one uint64 key:
tile, y, x and gene from the high bits to the low.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import ZstdCodec

from tera_mind.errors import FormatError, InputError
from tera_mind.formats.ome import DAMAGE, ZarrArray
from tera_mind.geometry import Box

TILE_PX = 256
MAX_GENES = 2**16
COLUMNS = {"y": np.uint8, "x": np.uint8, "gene": np.uint16, "count": np.uint16}
_CHUNK_ROWS = 2**14
_SHARD_ROWS = 2**20
_GENE_MASK = np.uint64(MAX_GENES - 1)


@dataclass(frozen=True)
class Transcripts:
    """Rows of a window: pixel (`y`, `x`) relative to the window's corner, gene index, number of transcripts."""

    y: NDArray[np.int32]
    x: NDArray[np.int32]
    gene: NDArray[np.int32]
    count: NDArray[np.int32]

    def __post_init__(self) -> None:
        if not len(self.y) == len(self.x) == len(self.gene) == len(self.count):
            raise InputError("transcripts need y, x, gene and count of one length")

    def __len__(self) -> int:
        return len(self.y)

    @staticmethod
    def empty() -> Transcripts:
        none = np.zeros(0, np.int32)
        return Transcripts(none, none, none, none)


def bin_transcripts(
    transcripts: Transcripts, shape_px: tuple[int, int], bin_px: int, genes: int
) -> NDArray[np.float32]:
    """Count transcripts in bins of `bin_px`: float32 (gene, height / bin_px, width / bin_px).

    Raises `InputError` when the window (height, width) is not a whole number of bins.
    """
    height, width = shape_px
    if bin_px < 1 or height % bin_px or width % bin_px:
        raise InputError(f"a window of {height} x {width} px is no whole number of bins of {bin_px} px")
    counts = np.zeros((genes, height // bin_px, width // bin_px), np.float32)
    index = (transcripts.gene, transcripts.y // bin_px, transcripts.x // bin_px)
    np.add.at(counts, index, transcripts.count.astype(np.float32))
    return counts


def tile_grid(height_px: int, width_px: int) -> tuple[int, int]:
    """Rows and columns of 256 px tiles that cover a canvas."""
    return -(-height_px // TILE_PX), -(-width_px // TILE_PX)


def pack_keys(
    y: NDArray[np.int64], x: NDArray[np.int64], gene: NDArray[np.integer[Any]], tile_columns: int
) -> NDArray[np.uint64]:
    """One sortable uint64 an entry; `y`, `x` are canvas pixels, `gene` is below 65,536."""
    tile = (y // TILE_PX) * tile_columns + x // TILE_PX
    key = (tile << 32) | ((y % TILE_PX) << 24) | ((x % TILE_PX) << 16) | gene.astype(np.int64)
    return key.astype(np.uint64)


def key_genes(keys: NDArray[np.uint64]) -> NDArray[np.int64]:
    """The gene of every key."""
    return (keys & _GENE_MASK).astype(np.int64)


def replace_genes(keys: NDArray[np.uint64], new: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Keys with gene g replaced by `new[g]`; entries whose new gene is negative are left out."""
    genes = new[key_genes(keys)]
    kept = genes >= 0
    return (keys[kept] & ~_GENE_MASK) | genes[kept].astype(np.uint64)


def key_tile_counts(keys: NDArray[np.uint64], grid: tuple[int, int], cell_px: int) -> NDArray[np.int64]:
    """Number of keys in cells of `cell_px` (a divisor of 256): int64 (256 / cell_px * rows, the same of columns)."""
    per_tile = TILE_PX // cell_px
    tile = (keys >> np.uint64(32)).astype(np.int64)
    row = tile // grid[1] * per_tile + ((keys >> np.uint64(24)) & np.uint64(255)).astype(np.int64) // cell_px
    column = tile % grid[1] * per_tile + ((keys >> np.uint64(16)) & np.uint64(255)).astype(np.int64) // cell_px
    shape = (grid[0] * per_tile, grid[1] * per_tile)
    return np.bincount(row * shape[1] + column, minlength=shape[0] * shape[1]).reshape(shape)


def merge_keys(
    keys: NDArray[np.uint64], counts: NDArray[np.int64] | None = None
) -> tuple[NDArray[np.uint64], NDArray[np.uint16]]:
    """Sort keys and add up equal ones: the distinct keys and how many transcripts each stands for.

    Raises `InputError` when one pixel holds more than 65,535 transcripts of a gene.
    """
    if counts is None:
        keys = np.sort(keys)
    else:
        order = np.argsort(keys, kind="stable")
        keys, counts = keys[order], counts[order]
    first = np.flatnonzero(np.concatenate([np.ones(min(1, len(keys)), bool), keys[1:] != keys[:-1]]))
    if counts is None:
        totals = np.diff(first, append=len(keys))
    else:
        totals = np.add.reduceat(counts, first) if len(first) else counts
    if len(totals) and totals.max() > np.iinfo(np.uint16).max:
        raise InputError(
            f"one pixel holds {totals.max()} transcripts of one gene, expected at most 65535: wrong units?"
        )
    return keys[first], totals.astype(np.uint16)


def write_section(folder: Path, keys: NDArray[np.uint64], counts: NDArray[np.uint16], tiles: int) -> None:
    """Write the sorted, distinct keys of one section as `indptr`, `y`, `x`, `gene`, `count`."""
    group = zarr.create_group(folder, zarr_format=3)
    edges = np.arange(tiles + 1, dtype=np.uint64) << np.uint64(32)
    columns: dict[str, NDArray[Any]] = {
        "indptr": np.searchsorted(keys, edges).astype(np.int64),
        "y": ((keys >> np.uint64(24)) & np.uint64(255)).astype(np.uint8),
        "x": ((keys >> np.uint64(16)) & np.uint64(255)).astype(np.uint8),
        "gene": (keys & _GENE_MASK).astype(np.uint16),
        "count": counts,
    }
    for name, column in columns.items():
        group.create_array(
            name,
            shape=column.shape,
            dtype=column.dtype,
            chunks=(_CHUNK_ROWS,),
            shards=(_SHARD_ROWS,),
            compressors=ZstdCodec(level=5),
            fill_value=0,
        )[:] = column


class SectionTranscripts:
    """Reader of one section's tiles; arrays are opened once, rows are read span by span."""

    def __init__(self, folder: Path, canvas: Box, transcripts: int) -> None:
        self._folder = folder
        self._canvas = canvas
        self._grid = tile_grid(canvas.height, canvas.width)
        try:
            self._indptr = np.asarray(zarr.open_array(folder / "indptr", mode="r")[:])
            self._columns: dict[str, ZarrArray] = {name: zarr.open_array(folder / name, mode="r") for name in COLUMNS}
        except DAMAGE as error:
            raise FormatError(f"transcripts in {folder} cannot be read: {error}; ingest the brain again") from None
        rows = {array.shape[0] for array in self._columns.values()}
        if len(self._indptr) != self._grid[0] * self._grid[1] + 1 or rows != {int(self._indptr[-1])}:
            raise FormatError(
                f"transcripts in {folder} are torn: tile pointers and rows disagree; ingest the brain again"
            )
        if rows == {0} and transcripts:
            raise FormatError(f"transcripts in {folder} are empty, the attributes promise {transcripts}")

    def window(self, box: Box) -> Transcripts:
        """Transcripts of a box that may leave the canvas, positions relative to its corner."""
        inside = box.intersect(self._canvas)
        if inside.is_empty:
            return Transcripts.empty()
        parts = [self._span(first, last) for first, last in self._spans(inside)]
        y, x, gene, count = (np.concatenate(column) for column in zip(*parts, strict=True))
        kept = (y >= inside.y0) & (y < inside.y1) & (x >= inside.x0) & (x < inside.x1)
        return Transcripts(y[kept] - np.int32(box.y0), x[kept] - np.int32(box.x0), gene[kept], count[kept])

    def _spans(self, inside: Box) -> list[tuple[int, int]]:
        """Stretches of consecutive tiles that cover the box; full-width rows join into one."""
        columns = self._grid[1]
        left, right = inside.x0 // TILE_PX, -(-inside.x1 // TILE_PX)
        top, bottom = inside.y0 // TILE_PX, -(-inside.y1 // TILE_PX)
        if right - left == columns:
            return [(top * columns, bottom * columns)]
        return [(row * columns + left, row * columns + right) for row in range(top, bottom)]

    def _span(self, first: int, last: int) -> tuple[NDArray[np.int32], ...]:
        start, stop = int(self._indptr[first]), int(self._indptr[last])
        if start == stop:
            none = np.zeros(0, np.int32)
            return none, none, none, none
        try:
            rows = {
                name: cast("NDArray[Any]", array[start:stop]).astype(np.int32) for name, array in self._columns.items()
            }
        except DAMAGE as error:
            raise FormatError(f"transcripts in {self._folder} are damaged: {error}; ingest the brain again") from None
        tile = np.repeat(np.arange(first, last, dtype=np.int32), np.diff(self._indptr[first : last + 1]))
        y = rows["y"] + tile // np.int32(self._grid[1]) * np.int32(TILE_PX)
        x = rows["x"] + tile % np.int32(self._grid[1]) * np.int32(TILE_PX)
        return y, x, rows["gene"], rows["count"]
