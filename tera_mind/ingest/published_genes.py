"""Genes of published tiles: sparse npz read with numpy alone, a stream a section, or sorted by section once.

A tile holds all sections, so a section's stream has to decode every tile. `Split` decodes each once and keeps the
cores' counts by section, 16 bytes each.
"""

from __future__ import annotations

import fcntl
import json
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tera_mind.errors import FormatError, InputError
from tera_mind.formats.atomic import atomic_directory
from tera_mind.formats.ome import DAMAGE
from tera_mind.ingest.faults import Fault
from tera_mind.ingest.published_tiles import Tiles
from tera_mind.ingest.records import read_record
from tera_mind.ingest.selection import Selection
from tera_mind.ingest.source import TranscriptBatch

#: what zarr, zip and numpy raise on damaged tiles
TILE_DAMAGE = (*DAMAGE, zipfile.BadZipFile, zlib.error, EOFError, IndexError, NotImplementedError)
_MOST = 2**16 - 1
_ROW = np.dtype([("y", "<i4"), ("x", "<i4"), ("gene", "<i4"), ("count", "<f4")])
_ROWS = 2**18
#: what is said of a folder whose record is damaged
_STRANGE = "does not say which tiles it was made of; remove its folder or name another --split"
#: rows of all sections that are held before they are written
_HELD_BYTES = 2**27


def count_sections(tiles: Tiles, genes: int) -> int:
    """Sections of the first tile. Raises `FormatError`."""
    rows, columns, channels = _load(tiles.path(0), ("shape",))["shape"].tolist()
    if (rows, columns) != tiles.shape(0) or channels < 1 or channels % genes:
        raise FormatError(
            f"{tiles.path(0)} has shape ({rows}, {columns}, {channels}), expected {tiles.shape(0)} by its name and a "
            f"multiple of {genes} channels, one a gene and section; is the list of genes right?"
        )
    return int(channels // genes)


def _load(path: Path, keys: Sequence[str]) -> dict[str, NDArray[Any]]:
    """Arrays of an npz. Raises `FormatError` where they are missing, damaged, or no COO array of counts."""
    try:
        with zipfile.ZipFile(path):
            pass  # numpy takes what is no zip for a pickle, and says so
        with np.load(path, allow_pickle=False) as file:
            found = {key: np.asarray(file[key]) for key in ("shape", *keys)}
            empty = float(file["fill_value"]) if "fill_value" in file else 0.0
    except TILE_DAMAGE as error:
        raise FormatError(f"gene tile {path} cannot be read as a sparse COO array ({error!r}); copy it again") from None
    shape = found["shape"]
    if shape.shape != (3,) or shape.dtype.kind not in "iu" or empty != 0 or shape.min() < 0 or shape.max() > 2**31:
        raise FormatError(f"gene tile {path} should have a shape of 3 numbers and fill value 0, got {shape}, {empty:g}")
    return found


@dataclass(frozen=True, eq=False)
class TileCounts:
    """The counts of all sections of a brain, in tiles of `sections` x `genes` channels."""

    tiles: Tiles
    sections: int
    genes: int

    def core(self, index: int) -> tuple[NDArray[np.int64], NDArray[Any]]:
        """Sections, and rows (y, x on the canvas, gene, count) of a tile's core. Raises `FormatError`."""
        path = self.tiles.path(index)
        found = _load(path, ("coords", "data"))
        coords, data, shape = found["coords"], found["data"], found["shape"]
        wanted = (*self.tiles.shape(index), self.sections * self.genes)
        good = coords.ndim == 2 and coords.shape == (3, *data.shape) and coords.dtype.kind in "iu"
        if not good or data.dtype.kind not in "iuf" or tuple(shape.tolist()) != wanted:
            raise FormatError(
                f"gene tile {path} has {coords.shape} coordinates of {data.shape} values for shape "
                f"{tuple(shape.tolist())}, expected (3, n) of n for {wanted}"
            )
        if coords.size and ((coords < 0).any() or (coords >= shape[:, None]).any()):
            raise FormatError(f"gene tile {path} has coordinates outside its shape {wanted}; copy it again")
        core, whole = self.tiles.core_in_tile(index), self.tiles.wholes[index]
        y, x, channel = coords
        inside = (y >= core.y0) & (y < core.y1) & (x >= core.x0) & (x < core.x1)
        sections, genes = np.divmod(channel[inside].astype(np.int64), self.genes)
        rows = np.empty(len(genes), _ROW)
        rows["y"], rows["x"] = y[inside].astype(np.int64) + whole[0], x[inside].astype(np.int64) + whole[2]
        rows["gene"], rows["count"] = genes, data[inside]
        return sections, rows


@dataclass(frozen=True)
class Split:
    """A folder of the user's where the counts lie by section; made whole by the first who needs it."""

    folder_path: str  # a text, since what lies there is no part of the input
    counts: TileCounts

    @property
    def folder(self) -> Path:
        """Where the rows lie."""
        return Path(self.folder_path)

    def rows(self, section: int) -> Iterator[NDArray[Any]]:
        """Rows of a section, some at a time. Raises `InputError` where the folder is of other tiles."""
        self._make()
        with (self.folder / f"{section}.rows").open("rb") as file:
            while len(rows := np.fromfile(file, _ROW, _ROWS)):
                yield rows

    def _make(self) -> None:
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        with self.folder.with_name(f"{self.folder.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # the sections' processes wait for the one that makes it
            record = self.folder / "tiles.json"
            if not self.folder.exists():
                with atomic_directory(self.folder) as partial:
                    self._fill(partial)
            elif not record.is_file() or read_record(record, _STRANGE) != self._record():
                raise InputError(f"{self.folder} was not made of these tiles; remove it or name another --split")

    def _record(self) -> dict[str, Any]:
        counts = self.counts
        return {
            "sections": counts.sections,
            "genes": counts.genes,
            "tiles": len(counts.tiles),
            "of": counts.tiles.stamp,
        }

    def _fill(self, folder: Path) -> None:
        parts: list[list[NDArray[Any]]] = [[] for _ in range(self.counts.sections)]
        waiting = 0
        for index in range(len(self.counts.tiles)):
            sections, rows = self.counts.core(index)
            order = np.argsort(sections, kind="stable")
            ends = np.cumsum(np.bincount(sections, minlength=self.counts.sections))
            for part, own in zip(parts, np.split(rows[order], ends[:-1]), strict=True):
                part.append(own.copy())
            waiting += rows.nbytes
            if waiting > _HELD_BYTES or index + 1 == len(self.counts.tiles):
                waiting = 0
                for section, part in enumerate(parts):
                    with (folder / f"{section}.rows").open("ab") as file:
                        np.concatenate(part).tofile(file)
                    part.clear()
        (folder / "tiles.json").write_text(json.dumps(self._record()))


@dataclass(frozen=True, eq=False)
class TileBatches:
    """The stream of a section's counts; positions are the middles of pixels."""

    counts: TileCounts
    split: Split | None
    section: int
    names: tuple[str, ...]
    corner: tuple[int, int]
    pixel_um: float

    def __call__(self) -> Iterator[TranscriptBatch]:
        """Positions in microns from the canvas' corner."""
        if self.split is not None:
            for rows in self.split.rows(self.section):
                yield self._batch(rows)
            return
        for index in range(len(self.counts.tiles)):
            sections, rows = self.counts.core(index)
            yield self._batch(rows[sections == self.section])

    def faults(self) -> Iterator[Fault]:
        """Every tile that cannot be read."""
        for index in range(len(self.counts.tiles)):
            try:
                self.counts.core(index)
            except FormatError as error:
                yield Fault(self.counts.tiles.path(index), "", str(error))

    def _batch(self, rows: NDArray[Any]) -> TranscriptBatch:
        gene, counts = rows["gene"].astype(np.int32), rows["count"].astype(np.float64)
        y_um, x_um = (
            (rows[axis] - corner + 0.5) * self.pixel_um for axis, corner in zip("yx", self.corner, strict=True)
        )
        chosen = Selection(len(gene), 1, counts)
        chosen.drop(~(counts > 0) | (counts != np.rint(counts)), "no count")
        chosen.drop(counts > _MOST, f"count above {_MOST}")
        chosen.drop_no_genes(gene, self.names)
        kept = chosen.batch(x_um, y_um, gene, self.names)
        whole = counts[chosen.kept].astype(np.int64)
        return TranscriptBatch(kept.x_um, kept.y_um, kept.gene, kept.names, kept.dropped, {}, whole)
