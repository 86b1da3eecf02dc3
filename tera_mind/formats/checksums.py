"""Digests of a brain store's parts: lost or altered files are found, a section's SHA-256 is put together from them.

`checksums/` of a store is uint8 (section, stain, row, column, 32), the SHA-256 of every window of `shard_windows`;
zeros for a window that is zero throughout, of which nothing is stored.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tera_mind.errors import FormatError
from tera_mind.formats.ome import (
    SHARD_PX,
    holds_bytes,
    mean_pool,
    open_level,
    pyramid_levels,
    read_window,
    shard_windows,
    window_grid,
)
from tera_mind.formats.section_arrays import SectionArray
from tera_mind.geometry import Box

DIGEST_BYTES = 32


def window_digest(window: NDArray[np.uint8]) -> str:
    """SHA-256 of a window's pixels in hex; all zeros where every pixel is zero, since nothing is stored then."""
    if not window.any():
        return "0" * (2 * DIGEST_BYTES)
    return hashlib.sha256(np.ascontiguousarray(window).data).hexdigest()


def section_sha256(digests: NDArray[np.uint8], rows: str, tissue: NDArray[np.uint8]) -> str:
    """SHA-256 of a section: digests of its windows (stain, row, column, 32) and transcripts, and its tissue mask."""
    mask = hashlib.sha256(np.ascontiguousarray(tissue).data).digest()
    return hashlib.sha256(bytes.fromhex(rows) + mask + np.ascontiguousarray(digests).tobytes()).hexdigest()


class Checksums:
    """The digests of a store's images, read a section at a time."""

    def __init__(self, store: Path, shape: tuple[int, int, int, int]) -> None:
        self._images = store / "images"
        self._array = SectionArray(store / "checksums")
        expected = (shape[1], shape[0], *window_grid(shape), DIGEST_BYTES)
        if self._array.shape != expected:
            raise FormatError(f"checksums of {store} should be {expected}, are {self._array.shape}; ingest again")
        self._sections: dict[int, NDArray[np.uint8]] = {}

    def section(self, section: int) -> NDArray[np.uint8]:
        """Digests of a section: (stain, row, column, 32)."""
        if section not in self._sections:
            self._sections[section] = self._array.read(section)
        return self._sections[section]

    def require_files(self, sections: Iterable[int], box: Box) -> None:
        """Raise `FormatError` where a file of level 0 is lost, or empty, that holds a part of a box of sections.

        The box lies on the canvas.
        """
        rows = slice(box.y0 // SHARD_PX, -(-box.y1 // SHARD_PX))
        columns = slice(box.x0 // SHARD_PX, -(-box.x1 // SHARD_PX))
        for section in sections:
            for stain, row, column in np.argwhere(self.section(section)[:, rows, columns].any(axis=-1)).tolist():
                path = self._path(stain, section, row + rows.start, column + columns.start)
                if not holds_bytes(path):
                    raise FormatError(f"{path} is lost, so a part of section {section}; ingest the brain again")

    def verify(self, section: int) -> None:
        """Read all images of a section. Raises `FormatError` that names the first file that is not as written."""
        level0 = open_level(self._images)
        height, width = level0.shape[2:]
        self.require_files([section], Box(0, height, 0, width))
        digests = self.section(section)
        for stain in range(level0.shape[0]):
            for number, box in enumerate(shard_windows(level0.shape)):
                place = divmod(number, digests.shape[2])
                window = np.asarray(read_window(level0, box, [section], 0)[stain, 0])
                if bytes.fromhex(window_digest(window)) != digests[(stain, *place)].tobytes():
                    raise FormatError(f"{self._path(stain, section, *place)} is not as it was written; ingest again")
        self._verify_pyramid(section)

    def _verify_pyramid(self, section: int) -> None:
        for level in range(1, pyramid_levels(self._images)):
            fine, coarse = open_level(self._images, level - 1), open_level(self._images, level)
            height, width = fine.shape[2:]
            for box in shard_windows(coarse.shape):
                source = Box(2 * box.y0, min(2 * box.y1, height), 2 * box.x0, min(2 * box.x1, width))
                expected = mean_pool(read_window(fine, source, [section], 0))
                if not np.array_equal(read_window(coarse, box, [section], 0), expected):
                    raise FormatError(
                        f"level {level} of section {section} in {self._images} is not as it was written at {box}; "
                        "ingest the brain again"
                    )

    def _path(self, stain: int, section: int, row: int, column: int) -> Path:
        return self._images.joinpath("0", "c", *map(str, (stain, section, row, column)))
