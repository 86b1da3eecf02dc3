"""Transcripts of a section, grouped by tiles of 256 px: the table in memory, and writing it.

On disk (`tera_mind.formats.sections` reads it): `indptr` int64 (tiles + 1, row-major tiles) says where a tile's rows
start; `rows` (see `tera_mind.formats.columns`) holds one row a distinct (pixel, gene), sorted by tile, y, x and gene.
Its columns are the position in the tile, y * 256 + x, the gene and the count.
While a section is being sorted, a row is one uint64 key: tile, y, x and gene from the high bits to the low.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import ZstdCodec

from tera_mind.errors import InputError
from tera_mind.formats.atomic import fsync_tree
from tera_mind.formats.columns import ColumnsWriter

TILE_PX = 256
MAX_GENES = 2**16
#: of `rows`
COLUMNS = ("position", "gene", "count")
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
    counts = empty_bins(genes, 1, shape_px, bin_px)
    add_bins(counts, 0, transcripts, bin_px)
    return counts[:, 0]


def empty_bins(genes: int, sections: int, shape_px: tuple[int, int], bin_px: int) -> NDArray[np.float32]:
    """Zeros for the counts of a window (height, width): float32 (gene, section, bins down, bins across)."""
    height, width = shape_px
    if bin_px < 1 or height % bin_px or width % bin_px:
        raise InputError(f"a window of {height} x {width} px is no whole number of bins of {bin_px} px")
    return np.zeros((genes, sections, height // bin_px, width // bin_px), np.float32)


def add_bins(
    counts: NDArray[np.float32],
    section: int,
    transcripts: Transcripts,
    bin_px: int,
    new_gene: NDArray[np.int64] | None = None,
) -> None:
    """Add transcripts to the counts (gene, section, bins down, bins across) of a section, in place.

    Gene g becomes `new_gene[g]`, or is left out where that is negative.
    """
    gene = transcripts.gene.astype(np.int64) if new_gene is None else new_gene[transcripts.gene]
    kept = np.flatnonzero(gene >= 0)
    _, sections, rows, columns = counts.shape
    row, column = transcripts.y[kept] // bin_px, transcripts.x[kept] // bin_px
    # one flat index: numpy adds that way twenty times faster than by an index an axis
    flat = ((gene[kept] * sections + section) * rows + row) * columns + column
    np.add.at(counts.reshape(-1), flat, transcripts.count[kept].astype(np.float32))


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
        keys = np.sort(keys, kind="stable")  # merges stretches that are sorted already, as those of a spool are
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


class RowsDigest:
    """SHA-256 of a section's keys and counts, however they are cut into pieces."""

    def __init__(self) -> None:
        self._keys, self._counts = hashlib.sha256(), hashlib.sha256()

    def update(self, keys: NDArray[np.uint64], counts: NDArray[np.uint16]) -> None:
        self._keys.update(np.ascontiguousarray(keys, "<u8").data)
        self._counts.update(np.ascontiguousarray(counts, "<u2").data)

    def hexdigest(self) -> str:
        return hashlib.sha256(self._keys.digest() + self._counts.digest()).hexdigest()


class SectionWriter:
    """Writes one section's rows in order of tiles; memory stays that of a shard of rows, whatever the section holds."""

    def __init__(self, folder: Path, tiles: int) -> None:
        self._folder, self._tiles = folder, tiles
        self._group = zarr.create_group(folder, zarr_format=3)
        self._columns = ColumnsWriter(folder / "rows", len(COLUMNS))
        self._per_tile = np.zeros(tiles, np.int64)
        self._last_tile = -1
        self._digest = RowsDigest()

    def append(self, keys: NDArray[np.uint64], counts: NDArray[np.uint16]) -> None:
        """Add sorted, distinct keys (from `merge_keys`) of tiles that all lie behind those of the calls before.

        A tile comes whole, in one call. Raises `ValueError` where that is not kept.
        """
        if not len(keys):
            return
        tile = (keys >> np.uint64(32)).astype(np.int64)
        if tile[0] <= self._last_tile or tile[-1] >= self._tiles or not (keys[1:] > keys[:-1]).all():
            raise ValueError(f"keys of tiles {tile[0]}..{tile[-1]} do not follow tile {self._last_tile}, sorted")
        self._last_tile = int(tile[-1])
        self._per_tile[tile[0] : tile[-1] + 1] += np.bincount(tile - tile[0])
        self._digest.update(keys, counts)
        position = ((keys >> np.uint64(16)) & np.uint64(0xFFFF)).astype(np.uint16)
        self._columns.append(np.stack([position, (keys & _GENE_MASK).astype(np.uint16), counts]))

    def finish(self) -> str:
        """Write the tiles' starts, durably; SHA-256 of the rows in hex."""
        indptr = np.concatenate([[0], np.cumsum(self._per_tile)])
        self._columns.finish()
        array = zarr.create_array(
            self._folder / "indptr",
            shape=indptr.shape,
            dtype="int64",
            chunks=indptr.shape,
            compressors=ZstdCodec(level=5, checksum=True),
            fill_value=0,
            config={"write_empty_chunks": True},
        )
        array[:] = indptr
        digest = self._digest.hexdigest()
        self._group.attrs["sha256"] = digest
        fsync_tree(self._folder)
        return digest


def write_section(folder: Path, keys: NDArray[np.uint64], counts: NDArray[np.uint16], tiles: int) -> str:
    """Write the sorted, distinct keys of a section at once; SHA-256 of its rows in hex."""
    writer = SectionWriter(folder, tiles)
    writer.append(keys, counts)
    return writer.finish()
