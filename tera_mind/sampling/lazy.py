"""Images that are made where and when they are read: NumPy's basic indexing over chunks, and lazily pooled levels."""

from __future__ import annotations

import operator
from abc import ABC, abstractmethod
from collections.abc import Iterator
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from tera_mind.formats.ome import mean_pool

if TYPE_CHECKING:
    import dask.array as da

#: (section chunk, row, column) in units of chunks; a chunk holds every stain
Place = tuple[int, int, int]

_AXES = ("stain", "section", "y", "x")


class LazyImage(ABC):
    """An array (stain, section, y, x) of uint8 of which only what is read is made; read-only.

    Indexing is NumPy's basic indexing: numbers, slices with steps, negative ones, `...`; each gives a NumPy array (or
    number). Chunks of the far edges are smaller.
    """

    dtype: np.dtype[np.uint8] = np.dtype(np.uint8)
    ndim = 4

    def __init__(self, shape: tuple[int, int, int, int], chunks: tuple[int, int, int, int]) -> None:
        self.shape = shape
        self.chunks = chunks

    @abstractmethod
    def read_chunks(self, places: list[Place]) -> Iterator[tuple[Place, NDArray[np.uint8]]]:
        """The chunks asked for, in any order: (stain, section, y, x) uint8."""

    @property
    def size(self) -> int:
        """Number of voxels."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes that the whole array would take."""
        return self.size

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: Any) -> Any:
        """Make a window: an array, or a number, of uint8.

        Raises `IndexError` for an index that is out of range or not a basic one.
        """
        items = _expand(key)
        chosen = [_positions(item, size, axis) for item, size, axis in zip(items, self.shape, _AXES, strict=True)]
        stains, *places = chosen
        out = np.empty(tuple(len(positions) for positions in chosen), np.uint8)
        if out.size:
            parts = [
                {int(chunk): np.flatnonzero(at // side == chunk) for chunk in np.unique(at // side)}
                for at, side in zip(places, self.chunks[1:], strict=True)
            ]
            wanted = [(z, row, column) for z in parts[0] for row in parts[1] for column in parts[2]]
            for place, chunk in self.read_chunks(wanted):
                to = [part[number] for part, number in zip(parts, place, strict=True)]
                local = [at[t] - n * c for at, t, n, c in zip(places, to, place, self.chunks[1:], strict=True)]
                out[np.ix_(np.arange(len(stains)), *to)] = chunk[np.ix_(stains, *local)]
        return out[tuple(slice(None) if isinstance(item, slice) else 0 for item in items)]

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray[Any]:
        """The whole array, all of it made; `ValueError` where it is asked for without a copy."""
        if copy is False:
            raise ValueError("this array is made when it is read and cannot be given without a copy")
        whole: NDArray[np.uint8] = self[...]
        return whole if dtype is None else whole.astype(dtype, copy=False)

    def to_dask(self) -> da.Array:
        """As a Dask array with this array's chunks; a chunk is made when Dask computes it."""
        import dask.array as da

        return da.from_array(self, chunks=self.chunks, asarray=False, name=False)  # type: ignore[no-any-return]


class PooledLevel(LazyImage):
    """Level `level` of a finer lazy image's pyramid: 2 x 2 means in y and x, taken `level` times, as volumes hold it.

    A pixel costs its 4^level fine pixels.
    """

    def __init__(self, fine: LazyImage, level: int) -> None:
        stains, sections, height, width = fine.shape
        for _ in range(level):
            height, width = -(-height // 2), -(-width // 2)
        chunk_stains, chunk_sections, chunk_height, chunk_width = fine.chunks
        side = 2**level
        super().__init__(
            (stains, sections, height, width),
            (chunk_stains, chunk_sections, -(-chunk_height // side), -(-chunk_width // side)),
        )
        self.fine = fine
        self.level = level

    def read_chunks(self, places: list[Place]) -> Iterator[tuple[Place, NDArray[np.uint8]]]:
        _, sections, height, width = self.chunks
        side = 2**self.level
        for place in places:
            z, row, column = place
            y, x = row * height * side, column * width * side
            window = self.fine[
                :, z * sections : (z + 1) * sections, y : y + height * side, x : x + width * side
            ]  # the array's edges cut it
            for _ in range(self.level):
                window = mean_pool(window)
            yield place, window


def _expand(key: Any) -> tuple[Any, ...]:
    """One item an axis, not checked yet."""
    items = list(key) if isinstance(key, tuple) else [key]
    dots = [index for index, item in enumerate(items) if item is Ellipsis]
    if len(dots) > 1:
        raise IndexError("an index has at most one ellipsis (...)")
    at = dots[0] if dots else len(items)
    missing = len(_AXES) - (len(items) - len(dots))
    if missing < 0:
        raise IndexError(f"an index has at most {len(_AXES)} parts ({', '.join(_AXES)}), got {len(items) - len(dots)}")
    items[at : at + len(dots)] = [slice(None)] * missing
    return tuple(items)


def _positions(item: Any, size: int, axis: str) -> NDArray[np.int64]:
    """Positions along an axis that an item names."""
    if isinstance(item, slice):
        return np.arange(size, dtype=np.int64)[item]
    try:
        number = operator.index(item)
    except TypeError:
        raise IndexError(f"axis {axis} takes numbers and slices, got {item!r}; read a window, then pick") from None
    if isinstance(item, bool | np.bool_) or not -size <= number < size:
        raise IndexError(f"axis {axis} has positions 0 to {size - 1}, got {item!r}")
    return np.array([number % size], dtype=np.int64)
