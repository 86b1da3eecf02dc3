"""A field of displacements over the canvas, added after a section's affine; forward for points, inverse for images.

A file is float32 (2, H / s, W / s): (dy, dx) at the centres of cells of s pixels, spread evenly over the canvas of
H x W pixels, in the table's canvas unit. It is bilinear between the centres, goes on linearly to the canvas' edge and
is constant beyond it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
import zarr
from numpy.typing import NDArray

from tera_mind.errors import FormatError, InputError, MissingFileError
from tera_mind.formats.ome import DAMAGE

Reals = NDArray[np.float64]
#: values of a field; tissue bends smoothly, so that cells of tens of pixels are enough on the largest canvas
_MOST_VALUES = 2**27
#: the inverse is found by iteration, which needs a displacement that changes less than place does
_STEEPEST = 0.9
_TOLERANCE_PX, _ITERATIONS = 1e-3, 100


@dataclass(frozen=True)
class DisplacementField:
    """The field in `path`, times `scale` in pixels of a canvas of `shape`. Cheap to pickle: read when first used."""

    path: Path
    shape: tuple[int, int]
    scale: float = 1.0

    def at(self, y: Reals, x: Reals) -> tuple[Reals, Reals]:
        """(dy, dx) in canvas pixels at canvas positions."""
        field = _load(self.path)
        (i, j, down), (k, m, across) = (
            _cells(values, pixels, count)
            for values, pixels, count in zip((y, x), self.shape, field.shape[1:], strict=True)
        )
        moves = []
        for part in field:
            above = part[i, k] * (1 - across) + part[i, m] * across
            below = part[j, k] * (1 - across) + part[j, m] * across
            moves.append(self.scale * (above * (1 - down) + below * down))
        return moves[0], moves[1]

    def forward(self, y: Reals, x: Reals) -> tuple[Reals, Reals]:
        """Where positions after the affine come to lie."""
        dy, dx = self.at(y, x)
        return y + dy, x + dx

    def inverse(self, y: Reals, x: Reals) -> tuple[Reals, Reals]:
        """The positions that `forward` moves to the given ones, to a thousandth of a pixel (fixed-point iteration)."""
        at_y, at_x = y, x
        for _ in range(_ITERATIONS):
            dy, dx = self.at(at_y, at_x)
            next_y, next_x = y - dy, x - dx
            step = max(np.abs(next_y - at_y).max(initial=0), np.abs(next_x - at_x).max(initial=0))
            at_y, at_x = next_y, next_x
            if step < _TOLERANCE_PX * (1 - _STEEPEST):
                return at_y, at_x
        raise InputError(f"displacement {self.path} cannot be undone: it changes too fast; smooth it")

    @property
    def cell_px(self) -> float:
        """Side of the field's cells in canvas pixels (the smaller one)."""
        return float(min(pixels / count for pixels, count in zip(self.shape, _load(self.path).shape[1:], strict=True)))

    def check(self) -> None:
        """Raise `MissingFileError`, `FormatError` or `InputError` for a field that cannot be used, with the place."""
        field = _load(self.path)
        rows, columns = field.shape[1:]
        height, width = self.shape
        if abs((height / rows) / (width / columns) - 1) > 1 / rows + 1 / columns:
            raise InputError(
                f"displacement {self.path} is {field.shape}, expected (2, {height} / s, {width} / s) for a canvas of "
                f"{height} x {width} px: is --canvas-um (or --canvas-px) the canvas it was made for?"
            )
        bad = np.argwhere(~np.isfinite(field))
        if len(bad):
            raise InputError(
                f"displacement {self.path} has {len(bad)} values that are no numbers, the first at "
                f"{tuple(bad[0].tolist())}; fill them in"
            )
        fold, steepness = _bends(np.asarray(field, np.float64) * self.scale, (height / rows, width / columns))
        worst = np.unravel_index(np.argmin(fold), fold.shape)
        place = f"around y {worst[0] / rows * height:.0f}, x {worst[1] / columns * width:.0f} px of the canvas"
        if fold[worst] <= 0:
            raise InputError(
                f"displacement {self.path} folds the section onto itself {place} "
                f"(determinant {fold[worst]:.2g}, in {int((fold <= 0).sum())} cells): no image can be made; smooth it"
            )
        worst = np.unravel_index(np.argmax(steepness), steepness.shape)
        if steepness[worst] > _STEEPEST:
            place = f"around y {worst[0] / rows * height:.0f}, x {worst[1] / columns * width:.0f} px of the canvas"
            raise InputError(
                f"displacement {self.path} changes by {steepness[worst]:.2g} px a pixel {place}, at most {_STEEPEST} "
                "may be: is its unit the canvas unit, are its axes (dy, dx)?"
            )


def _cells(values: Reals, pixels: int, count: int) -> tuple[NDArray[np.intp], NDArray[np.intp], Reals]:
    """Cell centres before and after a position along an axis, and the share of the latter.

    At the canvas' edges the share is below 0 or over 1: linear continuation.
    """
    at = np.clip(values * (count / pixels) - 0.5, -0.5, count - 0.5)
    first = np.clip(np.floor(at), 0, max(0, count - 2)).astype(np.intp)
    return first, np.minimum(first + 1, count - 1), at - first


def _bends(field: Reals, cell_px: tuple[float, float]) -> tuple[Reals, Reals]:
    """Smallest Jacobian determinant and largest gradient (spectral norm) of every cell between neighbouring centres.

    Both are taken at the cell's corners: over a bilinear cell the determinant is linear and the norm convex.
    """
    whole = _continued(field)
    rows, columns = (_spacings(count) * px for count, px in zip(field.shape[1:], cell_px, strict=True))
    down = np.diff(whole, axis=1) / rows[:, None]
    across = np.diff(whole, axis=2) / columns
    fold = np.full((len(rows), len(columns)), np.inf)
    steepest = np.zeros_like(fold)
    for left in (slice(None, -1), slice(1, None)):
        for top in (slice(None, -1), slice(1, None)):
            (yy, xy), (yx, xx) = down[:, :, left], across[:, top]  # xy: change of dx along y
            fold = np.minimum(fold, (1 + yy) * (1 + xx) - yx * xy)
            squares, area = yy**2 + xx**2 + xy**2 + yx**2, yy * xx - yx * xy
            largest = (squares + np.sqrt(np.maximum(squares**2 - 4 * area**2, 0))) / 2
            steepest = np.maximum(steepest, np.sqrt(largest))
    return fold, steepest


def _continued(field: Reals) -> Reals:
    """The field with a row and column more on each side: its values at the canvas' edges."""
    for axis in (1, 2):
        first, last = np.take(field, [0], axis), np.take(field, [-1], axis)
        if field.shape[axis] > 1:
            first = 1.5 * first - 0.5 * np.take(field, [1], axis)
            last = 1.5 * last - 0.5 * np.take(field, [-2], axis)
        field = np.concatenate([first, field, last], axis)
    return field


def _spacings(count: int) -> Reals:
    """Distances of edge, centres and edge along an axis, in cells."""
    return np.array([0.5, *([1.0] * (count - 1)), 0.5])


def _load(path: Path) -> NDArray[Any]:
    """The field of a .npy (mapped), .zarr or .tif file."""
    if not path.exists():
        raise MissingFileError(f"expected a displacement field at {path}, nothing is there")
    if path.suffix not in _READERS:
        raise FormatError(f"displacement {path} should be one of {', '.join(_READERS)}")
    return _read(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=64)
def _read(path: Path, modified_ns: int) -> NDArray[Any]:
    del modified_ns  # part of the key: a rewritten file is read again
    try:
        field = _READERS[path.suffix](path)
    except (*DAMAGE, EOFError, tifffile.TiffFileError, IndexError) as error:
        raise FormatError(f"displacement {path} cannot be read ({error}); write it again") from None
    if field.ndim != 3 or field.shape[0] != 2 or min(field.shape) < 1 or field.dtype != np.float32:
        raise FormatError(
            f"displacement {path} should be float32 (2, rows, columns) = (dy, dx), got {field.shape} {field.dtype}"
        )
    if field.size > _MOST_VALUES:
        raise InputError(
            f"displacement {path} has {field.size:,} values, at most {_MOST_VALUES:,} are read: larger cells are "
            "enough for what tissue does"
        )
    return np.asarray(field[:])


def _read_npy(path: Path) -> Any:
    return np.load(path, mmap_mode="r", allow_pickle=False)


def _read_zarr(path: Path) -> Any:
    return zarr.open_array(path, mode="r")


_READERS: dict[str, Callable[[Path], Any]] = {".npy": _read_npy, ".zarr": _read_zarr, ".tif": tifffile.imread}
