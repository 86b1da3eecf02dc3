"""Images onto the canvas, by the inverse of the map that moves points, reading only the source windows it needs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, cast, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, sparse

from tera_mind.geometry import Box
from tera_mind.ingest.displacement import DisplacementField
from tera_mind.ingest.source import Plane

_SAME = 1e-6
#: source pixels that are read at a time; a canvas box that needs more is cut in two
_SOURCE_PIXELS = 2**24
_SMALLEST_PX = 8
#: samples may be this part of a source pixel farther apart than source pixels, so that a stretch of a percent is free
_SLACK = 0.1
#: the inverse displacement is computed at knots, at most so many pixels and this part of a field's cell apart
_KNOT_PX, _KNOTS_A_CELL = 8, 8

Reals = NDArray[np.float64]


def resample(
    plane: Plane, to_canvas: Reals, box: Box, displacement: DisplacementField | None = None
) -> NDArray[np.float32]:
    """Canvas pixels of a box: float32 (y, x), 0 outside the image.

    `to_canvas` maps image pixels to canvas pixels, 3 x 3 on (x, y, 1); the displacement comes after it. A scale and
    shift along the axes is exact (every canvas pixel is the mean over its area); any other map averages bilinear
    samples, about one a source pixel or more. A pixel that the image covers in part is the mean of that part.
    """
    canvas = np.zeros((box.height, box.width), np.float32)
    if box.is_empty:
        return canvas
    way: _Way
    if displacement is not None:
        way = _Sampled(inverted(to_canvas), plane.shape, _Knots.of(displacement, box))
    elif _along_axes(to_canvas):
        way = _Straight(to_canvas)
    else:
        way = _Sampled(inverted(to_canvas), plane.shape)
    _fill(canvas, plane, way, box, box)
    return canvas


@runtime_checkable
class _Way(Protocol):
    """How canvas pixels come out of source pixels."""

    def source(self, box: Box) -> Box:
        """Source pixels that a canvas box can need; may leave the image."""

    def render(self, window: NDArray[Any], source: Box, box: Box) -> NDArray[np.float32]:
        """The canvas box from the window of the image that `source` names."""


def _fill(canvas: NDArray[np.float32], plane: Plane, way: _Way, whole: Box, box: Box) -> None:
    source = way.source(box).intersect(Box(0, plane.shape[0], 0, plane.shape[1]))
    if source.is_empty:
        return
    if source.height * source.width > _SOURCE_PIXELS and max(box.height, box.width) > _SMALLEST_PX:
        # strips, which any TIFF gives cheaply, where rows remain rows; squares where they are turned
        down = isinstance(way, _Straight) or box.height >= box.width
        for half in _halves(box, down=down and box.height > 1):
            _fill(canvas, plane, way, whole, half)
        return
    canvas[box.shift(-whole.y0, -whole.x0).slices()] = way.render(plane.read(source), source, box)


def _halves(box: Box, *, down: bool) -> tuple[Box, Box]:
    if down:
        middle = box.y0 + box.height // 2
        return Box(box.y0, middle, box.x0, box.x1), Box(middle, box.y1, box.x0, box.x1)
    middle = box.x0 + box.width // 2
    return Box(box.y0, box.y1, box.x0, middle), Box(box.y0, box.y1, middle, box.x1)


def inverted(affine: Reals) -> Reals:
    """The affine that leads back, 3 x 3."""
    return np.asarray(np.linalg.inv(affine), np.float64)


def _along_axes(to_canvas: Reals) -> bool:
    (a, b, _), (d, e, _) = to_canvas[:2]
    return bool(abs(b) < _SAME and abs(d) < _SAME and a > 0 and e > 0)


@dataclass(frozen=True)
class _Straight:
    """A scale and shift along the axes: every canvas pixel is the mean over its area, exactly."""

    to_canvas: Reals

    @property
    def same(self) -> bool:
        return bool(np.abs(self.to_canvas - np.eye(3)).max() < _SAME)

    def source(self, box: Box) -> Box:
        return box if self.same else _around(*_affine(inverted(self.to_canvas), *_corners(box)))

    def render(self, window: NDArray[Any], source: Box, box: Box) -> NDArray[np.float32]:
        if self.same:
            rendered = np.zeros((box.height, box.width), np.float32)
            rendered[source.shift(-box.y0, -box.x0).slices()] = window
            return rendered
        (a, _, c), (_, e, f) = self.to_canvas[:2]
        down = _area_weights(e, f, (box.y0, box.y1), (source.y0, source.y1))
        across = _area_weights(a, c, (box.x0, box.x1), (source.x0, source.x1))
        return np.ascontiguousarray((across @ (down @ window.astype(np.float32)).T).T, dtype=np.float32)


def _area_weights(scale: float, shift: float, canvas: tuple[int, int], source: tuple[int, int]) -> Any:
    """Sparse (canvas pixels, source pixels): the share that each source pixel has in a canvas pixel's area."""
    edges = (np.arange(canvas[0], canvas[1] + 1) - shift) / scale
    low, high = edges[:-1], edges[1:]
    first = np.floor(low).astype(np.int64)
    spans = int(np.ceil(1 / scale)) + 1
    index = first[:, None] + np.arange(spans + 1)[None]
    overlap = np.clip(np.minimum(index + 1, high[:, None]) - np.maximum(index, low[:, None]), 0, None)
    overlap[(index < source[0]) | (index >= source[1])] = 0
    total = overlap.sum(axis=1, keepdims=True)
    # a sliver of rounding at the image's edge is no pixel
    weights = np.divide(overlap, total, out=np.zeros_like(overlap), where=total > _SAME)
    row, column = np.nonzero(weights)
    shape = (canvas[1] - canvas[0], source[1] - source[0])
    entries = (weights[row, column].astype(np.float32), (row, index[row, column] - source[0]))
    return sparse.csr_matrix(entries, shape=shape)


@dataclass(frozen=True)
class _Knots:
    """Canvas positions without the displacement, at knots `step` px apart on the canvas' own grid; linear between.

    The grid does not depend on the box that is asked for, so that neighbouring windows fit together.
    """

    step: int
    first: tuple[int, int]
    y: Reals
    x: Reals

    @staticmethod
    def of(displacement: DisplacementField, box: Box) -> _Knots:
        step = max(1, min(_KNOT_PX, int(displacement.cell_px / _KNOTS_A_CELL)))
        first = box.y0 // step, box.x0 // step
        counts = -(-box.y1 // step) + 1 - first[0], -(-box.x1 // step) + 1 - first[1]
        y, x = (step * (start + np.arange(count, dtype=np.float64)) for start, count in zip(first, counts, strict=True))
        return _Knots(step, first, *displacement.inverse(*np.meshgrid(y, x, indexing="ij")))

    def around(self, box: Box) -> tuple[Reals, Reals]:
        """(y, x) of the knots that enclose a box."""
        (i, k), step = self.first, self.step
        rows = slice(box.y0 // step - i, -(-box.y1 // step) + 1 - i)
        columns = slice(box.x0 // step - k, -(-box.x1 // step) + 1 - k)
        return self.y[rows, columns], self.x[rows, columns]

    def at(self, y: Reals, x: Reals) -> tuple[Reals, Reals]:
        """(y, x) on the grid of the given rows and columns."""
        down, across = (
            _linear_weights(values / self.step - first, count)
            for values, first, count in zip((y, x), self.first, self.y.shape, strict=True)
        )
        return down @ (across @ self.y.T).T, down @ (across @ self.x.T).T


def _linear_weights(at: Reals, count: int) -> Any:
    """Sparse (positions, knots): linear interpolation."""
    before = np.clip(np.floor(at).astype(np.int64), 0, count - 2)
    share = at - before
    rows = np.arange(len(at))
    entries = np.concatenate([1 - share, share]), (np.tile(rows, 2), np.concatenate([before, before + 1]))
    return sparse.csr_matrix(entries, shape=(len(at), count))


@dataclass(frozen=True)
class _Sampled:
    """Any affine (given from canvas to source), with or without a displacement: the mean of bilinear samples."""

    to_source: Reals
    image: tuple[int, int]
    knots: _Knots | None = None

    @cached_property
    def samples(self) -> tuple[int, int]:
        """Samples of a canvas pixel along y and x."""
        (a, b, _), (d, e, _) = self.to_source[:2]
        down, across = (max(1, int(np.ceil(np.hypot(*step) - _SLACK))) for step in ((b, e), (a, d)))
        return down, across

    def source(self, box: Box) -> Box:
        return _around(*_affine(self.to_source, *(_corners(box) if self.knots is None else self.knots.around(box))))

    def render(self, window: NDArray[Any], source: Box, box: Box) -> NDArray[np.float32]:
        down, across = self.samples
        total = np.zeros((box.height, box.width), np.float32)
        covered = np.zeros(total.shape, np.float32)
        wanted = self.source(box)
        enclosed = wanted == source  # nothing of it was cut off at the image's edge
        for dy in (np.arange(down) + 0.5) / down:
            for dx in (np.arange(across) + 0.5) / across:
                y, x = self._back(np.arange(box.y0, box.y1) + dy, np.arange(box.x0, box.x1) + dx)
                at = np.stack([y - (source.y0 + 0.5), x - (source.x0 + 0.5)])
                values = cast(
                    "NDArray[np.float32]",
                    ndimage.map_coordinates(window, at, np.float32, order=1, mode="nearest", prefilter=False),
                )
                if not enclosed:
                    inside = (y >= 0) & (y < self.image[0]) & (x >= 0) & (x < self.image[1])
                    values = np.where(inside, values, np.float32(0))
                    covered += inside
                total += values
        return total / (np.float32(down * across) if enclosed else np.maximum(covered, 1))

    def _back(self, rows: Reals, columns: Reals) -> tuple[Reals, Reals]:
        """Source (y, x) of the grid of canvas rows and columns."""
        if self.knots is None:
            return _affine(self.to_source, rows[:, None], columns[None])
        return _affine(self.to_source, *self.knots.at(rows, columns))


def _affine(matrix: Reals, y: Reals, x: Reals) -> tuple[Reals, Reals]:
    (a, b, c), (d, e, f) = matrix[:2].tolist()
    return d * x + e * y + f, a * x + b * y + c


def _corners(box: Box) -> tuple[Reals, Reals]:
    y, x = np.meshgrid([float(box.y0), float(box.y1)], [float(box.x0), float(box.x1)])
    return y, x


def _around(y: Reals, x: Reals) -> Box:
    """The pixels around positions, with a margin for interpolation."""
    low_y, low_x, high_y, high_x = y.min(), x.min(), y.max(), x.max()
    return Box(int(np.floor(low_y)) - 1, int(np.ceil(high_y)) + 1, int(np.floor(low_x)) - 1, int(np.ceil(high_x)) + 1)
