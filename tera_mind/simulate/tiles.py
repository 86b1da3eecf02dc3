"""A brain computed tile by tile in several processes, each tile kept in a file of its own until it is put together.

A tile's file appears whole or not at all. A run that was cut off, at whatever moment, goes on with the tiles that are
missing.
"""

from __future__ import annotations

import json
import multiprocessing
import shutil
import zipfile
import zlib
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tera_mind.errors import FormatError, InputError
from tera_mind.formats.atomic import atomic_file
from tera_mind.formats.ome import SHARD_PX
from tera_mind.geometry import Box
from tera_mind.processes import end_with_parent
from tera_mind.simulate.brains import Settings
from tera_mind.simulate.cells import Cells
from tera_mind.simulate.transcripts import TranscriptRows
from tera_mind.simulate.windows import VirtualBrain, Window

_SETTINGS = "settings.json"


@dataclass(frozen=True)
class Tiles:
    """Tiles of a brain in a folder, `SHARD_PX` a side; with `labels` they hold which nucleus each pixel belongs to."""

    settings: Settings
    folder: Path
    labels: bool = True

    def boxes(self) -> list[Box]:
        """Tiles of a section, row by row."""
        height, width = self.settings.pixels
        return list(Box(0, height, 0, width).tiles(SHARD_PX, SHARD_PX))

    def path(self, section: int, box: Box) -> Path:
        return self.folder / f"section_{section:03d}" / f"tile_{box.y0}_{box.x0}.npz"

    def missing(self, sections: list[int]) -> list[tuple[int, Box]]:
        """Tiles of sections that are not there yet."""
        return [(z, box) for z in sections for box in self.boxes() if not self.path(z, box).is_file()]

    def claim(self, *, overwrite: bool = False) -> None:
        """Take the folder for these settings; tiles of others go where they may, else `InputError` is raised."""
        record, own = self.folder / _SETTINGS, {**self.settings.record(), "labels": self.labels}
        own = json.loads(json.dumps(own))
        if overwrite and record.is_file() and read_json(record) != own:
            self.drop()
        if record.is_file() and read_json(record) != own:
            raise InputError(f"{self.folder} holds tiles of other settings: give --overwrite, or another --out")
        self.folder.mkdir(parents=True, exist_ok=True)
        if not record.is_file():
            with atomic_file(record) as partial:
                partial.write_text(json.dumps(own))

    def compute(self, section: int, box: Box) -> None:
        """Compute a tile and write its file."""
        self.write(section, VirtualBrain(self.settings).window(section, box))

    def write(self, section: int, window: Window) -> None:
        """Write the file of a tile."""
        columns = {f"t_{f.name}": getattr(window.transcripts, f.name) for f in fields(TranscriptRows)}
        columns |= {f"c_{f.name}": getattr(window.cells, f.name) for f in fields(Cells)}
        if self.labels:
            columns["labels"] = window.labels
        with atomic_file(self.path(section, window.box)) as partial, partial.open("wb") as file:
            np.savez(file, allow_pickle=False, images=window.images, **columns)

    def run(self, sections: list[int], workers: int) -> Iterator[tuple[int, Box]]:
        """Compute what is missing of sections, yielding each tile when it is done."""
        todo = self.missing(sections)
        if workers <= 1 or len(todo) <= 1:
            for section, box in todo:
                self.compute(section, box)
                yield section, box
            return
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(min(workers, len(todo)), mp_context=context, initializer=end_with_parent) as pool:
            waiting = {pool.submit(self.compute, *tile): tile for tile in todo}
            try:
                for future in as_completed(waiting):
                    future.result()
                    yield waiting[future]
            finally:
                pool.shutdown(wait=True, cancel_futures=True)

    def read(self, section: int, box: Box, names: tuple[str, ...]) -> dict[str, NDArray[Any]]:
        """Some arrays of a tile. Raises `FormatError` where its file is damaged."""
        path = self.path(section, box)
        try:
            with np.load(path, allow_pickle=False) as file:
                return {name: file[name] for name in names}
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            path.unlink(missing_ok=True)
            raise FormatError(f"tile {path} was damaged ({error}) and is removed: give the command again") from None

    def transcripts(self, section: int, box: Box) -> TranscriptRows:
        names = [field.name for field in fields(TranscriptRows)]
        read = self.read(section, box, tuple(f"t_{name}" for name in names))
        return TranscriptRows(**{name: read[f"t_{name}"] for name in names})

    def cells(self, section: int, box: Box) -> Cells:
        names = [field.name for field in fields(Cells)]
        read = self.read(section, box, tuple(f"c_{name}" for name in names))
        return Cells(**{name: read[f"c_{name}"] for name in names})

    def drop(self, section: int | None = None) -> None:
        """Remove the tiles of a section, or all with the folder."""
        shutil.rmtree(self.folder if section is None else self.folder / f"section_{section:03d}", ignore_errors=True)


def read_json(path: Path) -> Any:
    """A file's content; None where it is no JSON, which equals no settings."""
    try:
        return json.loads(path.read_text())
    except ValueError:
        return None


def record_of(settings: Settings) -> dict[str, Any]:
    """What is written beside a brain about how it was made."""
    return json.loads(json.dumps({**asdict(settings), "z_um": settings.z_um()}))  # type: ignore[no-any-return]
