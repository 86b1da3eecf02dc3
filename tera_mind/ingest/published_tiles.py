"""Files of published tiles: where on the brain's canvas each lies, by its name."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tera_mind.errors import FormatError, MissingFileError
from tera_mind.geometry import Box

_NAME = re.compile("_".join([r"(-?\d{1,7})"] * 8) + r"\.(npz|zip|zarr\.zip)")


@dataclass(frozen=True, eq=False)
class Tiles:
    """Files of tiles; `cores` and `wholes`: (tile, 4) rows and columns `y0, y1, x0, x1` on the brain's canvas.

    `stamp` stands for the files' sizes and times: a hundred thousand paths are too many to ask again and again.
    """

    folder: Path
    names: tuple[str, ...]
    cores: NDArray[np.int64]
    wholes: NDArray[np.int64]
    stamp: str

    def __len__(self) -> int:
        return len(self.names)

    def path(self, index: int) -> Path:
        """A tile's file."""
        return self.folder / self.names[index]

    def core_in_tile(self, index: int) -> Box:
        """The core's pixels, counted from the tile's corner."""
        y, _, x, _ = self.wholes[index].tolist()
        return Box(*self.cores[index].tolist()).shift(-y, -x)

    def shape(self, index: int) -> tuple[int, int]:
        """Rows and columns of the whole tile."""
        y0, y1, x0, x1 = self.wholes[index].tolist()
        return y1 - y0, x1 - x0


def list_tiles(folder: Path, kind: str) -> Tiles:
    """The tiles of a folder in the order of their cores, which may not overlap."""
    if not folder.is_dir():
        raise MissingFileError(f"expected a folder of tiles at {folder}, nothing is there")
    found: list[tuple[tuple[int, ...], tuple[int, ...], str]] = []
    for path in folder.iterdir():
        match = _NAME.fullmatch(path.name)
        if match is None or not match[9].endswith(kind):
            continue
        numbers = tuple(int(text) for text in match.groups()[:8])
        core, whole = sorted((numbers[:4], numbers[4:]), key=lambda edges: (edges[1] - edges[0], edges[3] - edges[2]))
        inside = whole[0] <= core[0] < core[1] <= whole[1] and whole[2] <= core[2] < core[3] <= whole[3]
        if not inside:
            raise FormatError(f"{path} should be called by rows and columns of a core and of the tile around it")
        found.append((core, whole, path.name))
    if not found:
        raise MissingFileError(f"expected tiles called r0_r1_c0_c1_R0_R1_C0_C1.{kind} in {folder}, found none")
    found.sort()
    cores = np.array([core for core, _, _ in found], np.int64)
    names = tuple(name for _, _, name in found)
    _check_apart(cores, folder, names)
    try:
        files = [(folder / name).stat() for name in names]
    except OSError as error:
        raise MissingFileError(f"a tile of {folder} cannot be reached ({error}); copy it again") from None
    stamp = hashlib.sha256(json.dumps([(file.st_size, file.st_mtime_ns) for file in files]).encode()).hexdigest()
    return Tiles(folder, names, cores, np.array([whole for _, whole, _ in found], np.int64), stamp)


def _check_apart(cores: NDArray[np.int64], folder: Path, names: Sequence[str]) -> None:
    """Cores that touch one row of tiles are compared with their neighbours by their left edge."""
    size = (cores[:, [1, 3]] - cores[:, [0, 2]]).max(axis=0)
    cells: dict[tuple[int, int], list[int]] = {}
    for index, (y0, y1, x0, x1) in enumerate(cores.tolist()):
        for row in range(y0 // int(size[0]), (y1 - 1) // int(size[0]) + 1):
            for column in range(x0 // int(size[1]), (x1 - 1) // int(size[1]) + 1):
                for other in cells.setdefault((row, column), []):
                    a, b, c, d = cores[other].tolist()
                    if a < y1 and y0 < b and c < x1 and x0 < d:
                        raise FormatError(
                            f"the cores of {names[other]} and {folder / names[index]} overlap; leave one out"
                        )
                cells[row, column].append(index)
