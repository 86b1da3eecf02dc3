"""What an ingest would do and need, before it does anything: sections, sizes, what is done already, disk space."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tera_mind.errors import InputError
from tera_mind.ingest.fingerprint import files_of
from tera_mind.ingest.placing import Canvas, Placed
from tera_mind.ingest.work import extent, read_mark, section_keys, work_folder

#: bytes a row of a transcript table, where the file does not say how many it holds; compressed ones hold more
_ROW_BYTES = {"": 45, ".gz": 12, ".zip": 12}
#: bytes a transcript: sorted run, and row of the store (upper bounds, measured: 8 and 2 to 3)
_SPOOLED, _STORED = 8, 4
#: bytes a pixel and stain: 8 bits that hardly compress, and the pyramid's third
_PIXEL_BYTES = 4 / 3


@dataclass(frozen=True)
class SectionPlan:
    """A section as it will be ingested; `pixels` are those of one stain on the canvas.

    transcripts: exact where the table says so, else estimated from its size; those of files that several sections
    share are divided evenly; read: whether a run before this one has
    read it already.
    """

    name: str
    z_um: float
    transcripts: int
    pixels: int
    read: bool
    missing: bool


@dataclass(frozen=True)
class IngestPlan:
    """All sections, and bytes on the output's file system: needed at most from now on, and free."""

    sections: tuple[SectionPlan, ...]
    stains: tuple[str, ...]
    bytes_needed: int
    bytes_free: int

    @property
    def transcripts(self) -> int:
        """Transcripts of all sections."""
        return sum(section.transcripts for section in self.sections)

    def check(self, out: Path) -> None:
        """Raise `InputError` when the store and its spool may not fit."""
        if self.bytes_needed > self.bytes_free:
            raise InputError(
                f"{out} and its work folder need up to {_size(self.bytes_needed)}, its file system has "
                f"{_size(self.bytes_free)} free; make room, or choose another --out"
            )


def plan_ingest(canvas: Canvas, out: Path) -> IngestPlan:
    """Plan an ingest to `out`; only sizes and what an interrupted run left are looked at, nothing is written."""
    work = work_folder(out)
    sections = []
    for placed, key, estimate in zip(canvas.sections, section_keys(canvas), _transcripts(canvas.sections), strict=True):
        done = work / "sections" / key
        mark = read_mark(done / "transcripts.npz", done / "transcripts.bin")
        count = estimate if mark is None else int(mark.arrays["counts"].sum())
        rows, columns = (min(own, whole) for own, whole in zip(placed.shape, canvas.shape, strict=True))
        pixels = 0 if placed.missing else rows * columns
        source = placed.source
        sections.append(SectionPlan(source.name, source.z_um, count, pixels, mark is not None, placed.missing))
    stains = tuple(image.name for image in canvas.sections[0].source.stains) if canvas.sections else ()
    transcripts = sum(section.transcripts for section in sections) * (_SPOOLED + _STORED)
    images = sum(section.pixels for section in sections) * len(stains) * _PIXEL_BYTES
    written = extent(work)[1] if work.is_dir() else 0
    there = next(folder for folder in [out, *out.absolute().parents] if folder.exists())
    needed = max(0, int(transcripts + images) - written)
    return IngestPlan(tuple(sections), stains, needed, shutil.disk_usage(there).free)


def _transcripts(sections: Sequence[Placed]) -> list[int]:
    """Rows of the files that each section's stream reads, images not counted; shared files are looked at once."""
    present = [placed for placed in sections if not placed.missing]
    images = {path for placed in present for path in files_of(placed.source.stains)}
    tables = [[] if placed.missing else files_of(placed.source.batches) for placed in sections]
    readers = Counter(path for paths in tables for path in paths if path not in images)
    share = {path: _rows(path, images) / count for path, count in readers.items()}
    return [int(np.ceil(sum(share.get(path, 0.0) for path in paths))) for paths in tables]


def _rows(path: Path, images: set[Path]) -> int:
    if path.is_dir():
        inside = [file for file in path.rglob("*") if not images.intersection((file, *file.parents))]
        return sum(_rows(file, images) for file in inside if file.is_file())
    if path.suffix == ".parquet":
        try:
            return int(pq.read_metadata(path).num_rows)
        except (OSError, pa.ArrowException):
            return 0  # reading it will say what is wrong
    return int(np.ceil(path.stat().st_size / _ROW_BYTES.get(path.suffix, _ROW_BYTES[""])))


def _size(count: int) -> str:
    units = ("bytes", "kB", "MB", "GB", "TB")
    power = min(len(units) - 1, (len(str(count)) - 1) // 3)
    return f"{count / 1000**power:.3g} {units[power]}"
