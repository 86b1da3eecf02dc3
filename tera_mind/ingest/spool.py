"""Transcripts of a section on disk, to be sorted there: sorted runs, read back by bands of tiles that fit in memory.

An external sort: keys (see `tera_mind.formats.transcripts`) are sorted a run at a time and appended to one file of 8
bytes each. Since every run is sorted and the number of keys a tile is known, the edges of the bands are chosen
afterwards, so that each band has the wanted number of keys however unevenly they lie, and is one slice of each run.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tera_mind.formats.tissue import CELL_PX
from tera_mind.formats.transcripts import TILE_PX, key_tile_counts

#: keys sorted at once while they arrive, and in a band of tiles when they are read back: 8 and 32 MB
RUN_KEYS = 2**20
BAND_KEYS = 2**22


class SpoolWriter:
    """Appends keys in any order to a file of sorted runs; `close` makes it durable.

    `grid`: rows and columns of tiles of the canvas. `runs` is the length of each run, `cells` the number of keys in
    each 64 px cell of the tiles, (row, column).
    """

    def __init__(self, path: Path, grid: tuple[int, int], run_keys: int = RUN_KEYS) -> None:
        self.runs: list[int] = []
        self.cells = np.zeros([size * TILE_PX // CELL_PX for size in grid], np.int64)
        self._grid = grid
        self._file = path.open("wb")
        self._buffers = (np.empty(run_keys, np.uint64), np.empty(run_keys, np.uint64))
        self._used = 0
        # sorting leaves Python's lock alone: the next run is gathered meanwhile
        self._helper = ThreadPoolExecutor(1)
        self._writing: Future[None] | None = None

    def append(self, keys: NDArray[np.uint64]) -> None:
        """Take keys in; a full run is sorted and written."""
        while len(keys):
            buffer = self._buffers[0]
            taken = min(len(buffer) - self._used, len(keys))
            buffer[self._used : self._used + taken] = keys[:taken]
            self._used += taken
            keys = keys[taken:]
            if self._used == len(buffer):
                self._start_run()

    def _start_run(self) -> None:
        self._end_run()
        self._writing = self._helper.submit(self._write_run, self._buffers[0][: self._used])
        self._buffers, self._used = (self._buffers[1], self._buffers[0]), 0

    def _end_run(self) -> None:
        if self._writing is not None:
            self._writing.result()

    def _write_run(self, run: NDArray[np.uint64]) -> None:
        run.sort()
        self._file.write(run.data)
        self.runs.append(len(run))
        self.cells += key_tile_counts(run, self._grid, CELL_PX)

    def close(self) -> None:
        """Write what is left and make the file durable."""
        try:
            if self._used:
                self._start_run()
            self._end_run()
            self._file.flush()
            os.fsync(self._file.fileno())
        finally:
            self._helper.shutdown()
            self._file.close()


@dataclass(frozen=True)
class Spool:
    """A finished file: `runs` and `cells` as `SpoolWriter` counted them."""

    path: Path
    runs: NDArray[np.int64]
    cells: NDArray[np.int64]

    @property
    def per_tile(self) -> NDArray[np.int64]:
        """Keys in every tile, row-major."""
        side = TILE_PX // CELL_PX
        rows, columns = (size // side for size in self.cells.shape)
        return np.asarray(self.cells.reshape(rows, side, columns, side).sum(axis=(1, 3)).ravel(), np.int64)

    def edges(self, band_keys: int = BAND_KEYS) -> NDArray[np.int64]:
        """Tiles at which bands begin, and the number of tiles: a band holds at most `band_keys` keys or one tile."""
        before = np.concatenate([[0], np.cumsum(self.per_tile)])
        edges = [0]
        while edges[-1] < len(before) - 1:
            last = int(np.searchsorted(before, before[edges[-1]] + band_keys, side="right")) - 1
            edges.append(max(last, edges[-1] + 1))
        return np.array(edges, np.int64)

    def bands(self, band_keys: int = BAND_KEYS) -> Iterator[NDArray[np.uint64]]:
        """Keys band by band, ascending from band to band; within one they are in no order. No tile is split."""
        first_keys = self.edges(band_keys).astype(np.uint64) << np.uint64(32)
        starts = np.concatenate([[0], np.cumsum(self.runs)])
        if starts[-1] == 0:
            return
        whole = np.memmap(self.path, np.uint64, mode="r", shape=(int(starts[-1]),))
        cuts = [start + np.searchsorted(whole[start:stop], first_keys) for start, stop in pairwise(starts)]
        del whole  # pages that stay mapped would count as this process' memory
        with self.path.open("rb") as file:
            for band in range(len(first_keys) - 1):
                parts = []
                for cut in cuts:
                    file.seek(8 * int(cut[band]))
                    parts.append(np.fromfile(file, np.uint64, int(cut[band + 1] - cut[band])))
                keys = np.concatenate(parts)
                if len(keys):
                    yield keys
