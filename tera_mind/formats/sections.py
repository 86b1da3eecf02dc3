"""Reading the transcripts of one section: a window costs what its tiles hold, not what the section holds."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import zarr
from numpy.typing import NDArray

from tera_mind.errors import FormatError
from tera_mind.formats.columns import ColumnsReader
from tera_mind.formats.ome import DAMAGE, ZarrArray
from tera_mind.formats.transcripts import COLUMNS, TILE_PX, RowsDigest, Transcripts, tile_grid
from tera_mind.geometry import Box

#: arrays of a section, by the version of the brain store
ARRAYS = {1: ("indptr", "y", "x", "gene", "count"), 2: ("indptr", "rows")}
#: rows of tiles that are read at a time when everything is read
_BAND_ROWS = 2**20


class _Rows(Protocol):
    """Rows of a section, read by stretches [start, stop): position in the tile (y * 256 + x), gene and count."""

    rows: int

    def read(self, spans: Sequence[tuple[int, int]]) -> NDArray[np.uint16]: ...


class _PlainRows:
    """Version 1: an array a column, read through zarr."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        try:
            self._arrays: dict[str, ZarrArray] = {
                name: zarr.open_array(folder / name, mode="r") for name in ARRAYS[1][1:]
            }
        except DAMAGE as error:
            raise FormatError(f"transcripts in {folder} cannot be read: {error}; ingest the brain again") from None
        rows = {array.shape[0] for array in self._arrays.values()}
        if len(rows) > 1:
            raise FormatError(f"transcripts in {folder} are torn: columns of {rows} rows; ingest the brain again")
        (self.rows,) = rows

    def read(self, spans: Sequence[tuple[int, int]]) -> NDArray[np.uint16]:
        try:
            y, x, gene, count = (
                np.concatenate([cast("NDArray[Any]", array[start:stop]).astype(np.uint16) for start, stop in spans])
                for array in self._arrays.values()
            )
        except DAMAGE as error:
            raise FormatError(f"transcripts in {self._folder} are damaged: {error}; ingest the brain again") from None
        return np.stack([y << 8 | x, gene, count])


class SectionTranscripts:
    """Reader of one section's tiles; files are opened when first needed."""

    def __init__(self, folder: Path, canvas: Box, transcripts: int, version: int) -> None:
        self._folder = folder
        self._canvas = canvas
        self._transcripts = transcripts
        self._grid = tile_grid(canvas.height, canvas.width)
        try:
            self._indptr = np.asarray(zarr.open_array(folder / "indptr", mode="r")[:], np.int64)
        except DAMAGE as error:
            raise FormatError(f"transcripts in {folder} cannot be read: {error}; ingest the brain again") from None
        self._rows: _Rows = _PlainRows(folder) if version == 1 else ColumnsReader(folder / "rows", len(COLUMNS))
        starts, rows = self._indptr, self._rows.rows
        tiles = self._grid[0] * self._grid[1]
        if len(starts) != tiles + 1 or starts[0] != 0 or starts[-1] != rows or (np.diff(starts) < 0).any():
            raise FormatError(
                f"transcripts in {folder} are torn: tile pointers and rows disagree; ingest the brain again"
            )
        if not rows and transcripts:
            raise FormatError(f"transcripts in {folder} are empty, the attributes promise {transcripts}")

    def window(self, box: Box) -> Transcripts:
        """Transcripts of a box that may leave the canvas, positions relative to its corner."""
        inside = box.intersect(self._canvas)
        if inside.is_empty:
            return Transcripts.empty()
        # plain lists: a window is a handful of tiles
        columns = self._grid[1]
        left, right = inside.x0 // TILE_PX, -(-inside.x1 // TILE_PX)
        top, bottom = inside.y0 // TILE_PX, -(-inside.y1 // TILE_PX)
        starts = [self._indptr[row * columns + left : row * columns + right + 1].tolist() for row in range(top, bottom)]
        rows = self._rows.read(_joined(starts))
        lengths = [stop - start for row in starts for start, stop in pairwise(row)]
        corner_y = [row * TILE_PX - box.y0 for row in range(top, bottom) for _ in range(left, right)]
        corner_x = [column * TILE_PX - box.x0 for column in range(left, right)] * (bottom - top)
        yx = np.repeat(np.array([corner_y, corner_x], np.int32), lengths, axis=1)
        yx[0] += rows[0] >> 8
        yx[1] += rows[0] & 255
        # one comparison for two bounds: what lies before the corner is a very large unsigned number
        y, x = yx.view(np.uint32)
        kept = np.flatnonzero((y < box.height) & (x < box.width))
        return Transcripts(*yx.take(kept, axis=1), *rows[1:].take(kept, axis=1).astype(np.int32))

    def verify(self, genes: int) -> str:
        """Read all rows: their SHA-256.

        Raises `FormatError` where it is not the one they were written with, a gene is not among the brain's `genes`, or
        the rows hold another number of transcripts than the attributes promise.
        """
        digest = RowsDigest()
        starts, tiles = self._indptr, len(self._indptr) - 1
        first, transcripts, last_gene = 0, 0, 0
        while first < tiles:
            last = max(first + 1, int(np.searchsorted(starts, starts[first] + _BAND_ROWS, "right")) - 1)
            position, gene, count = self._rows.read([(int(starts[first]), int(starts[last]))])
            tile = np.repeat(np.arange(first, last, dtype=np.uint64), np.diff(starts[first : last + 1]))
            digest.update(tile << np.uint64(32) | position.astype(np.uint64) << np.uint64(16) | gene, count)
            transcripts += int(count.sum(dtype=np.int64))
            last_gene = max(last_gene, int(gene.max(initial=0)))
            first = last
        try:
            expected = zarr.open_group(self._folder, mode="r").attrs["sha256"]
        except DAMAGE as error:
            raise FormatError(f"{self._folder} has no readable checksum ({error}); ingest the brain again") from None
        if digest.hexdigest() != expected:
            raise FormatError(f"transcripts in {self._folder} are not as they were written; ingest the brain again")
        if transcripts != self._transcripts:
            raise FormatError(
                f"{self._folder} holds {transcripts} transcripts, the attributes promise {self._transcripts}"
            )
        if last_gene >= genes:
            raise FormatError(f"{self._folder} has gene {last_gene}, the attributes name {genes} genes; ingest again")
        return digest.hexdigest()


def _joined(starts: list[list[int]]) -> list[tuple[int, int]]:
    """Stretches of rows [start, stop) of rows of tiles; those that follow each other become one."""
    spans: list[tuple[int, int]] = []
    for row in starts:
        if spans and spans[-1][1] == row[0]:
            spans[-1] = spans[-1][0], row[-1]
        else:
            spans.append((row[0], row[-1]))
    return spans
