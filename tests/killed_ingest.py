"""A brain of three small sections to ingest, and a script that kills such an ingest again and again.

    python killed_ingest.py FOLDER OUT LOG 3,17,40 [workers]

forks a process for each number, which dies by SIGKILL at its so-and-so-manyth fsync, and a last one that finishes.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tifffile

from tera_mind.ingest.pipeline import ingest
from tera_mind.ingest.placing import Canvas, place
from tera_mind.ingest.source import SectionSource, StainImage, TranscriptBatch
from tera_mind.ingest.tiff import TiffPlane

#: sections of two windows, one above the other
SECTIONS, HEIGHT, WIDTH = 3, 2100, 120


@dataclass(frozen=True)
class Rows:
    """Random transcripts in five batches, each after some seconds; every reading is noted in a log.

    The log is no `Path`: as a file of the source it would have to stay as it is.
    """

    seed: int
    log: str = ""
    seconds: float = 0.0

    def __call__(self) -> Iterator[TranscriptBatch]:
        if self.log:
            with Path(self.log).open("a") as file:
                file.write(f"{self.seed}\n")
        rng = np.random.default_rng(self.seed)
        for _ in range(5):
            time.sleep(self.seconds)
            x_um, y_um = rng.uniform(0, WIDTH, 400), rng.uniform(0, HEIGHT, 400)
            yield TranscriptBatch(x_um, y_um, rng.integers(0, 4, 400).astype(np.int32), ["D", "A", "C", "B"], {"x": 1})


def write_images(folder: Path) -> None:
    """One image a section."""
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(SECTIONS):
        rng = np.random.default_rng([index, 1])
        image = rng.integers(50, 900, (HEIGHT // 20, WIDTH // 20)).astype(np.uint16).repeat(20, 0).repeat(20, 1)
        tifffile.imwrite(folder / f"{index}.tif", image, compression="zlib", rowsperstrip=64)


def canvas(folder: Path, log: str = "", seconds: float = 0.0) -> Canvas:
    """The sections on their canvas."""
    sources = [
        SectionSource(
            f"s{index}", 10.0 * index, (StainImage("DAPI", TiffPlane(folder / f"{index}.tif"), np.eye(3)),),
            Rows(index, log, seconds),
        )
        for index in range(SECTIONS)
    ]  # fmt: skip
    return place(sources)


def _die_at(count: int) -> None:
    fsync, left = os.fsync, [count]

    def counted(handle: int) -> None:
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        fsync(handle)

    os.fsync = counted


def main(folder: Path, out: Path, log: Path, deaths: list[int]) -> None:
    for death in [*deaths, 0]:
        child = os.fork()
        if child == 0:
            if death:
                _die_at(death)
            ingest(canvas(folder, str(log)), out, say=lambda line: print(line, flush=True))
            os._exit(0)
        _, status = os.waitpid(child, 0)
        print("killed" if os.WIFSIGNALED(status) else f"ended {os.waitstatus_to_exitcode(status)}", flush=True)


if __name__ == "__main__":
    main(*(Path(part) for part in sys.argv[1:4]), [int(part) for part in sys.argv[4].split(",")])
