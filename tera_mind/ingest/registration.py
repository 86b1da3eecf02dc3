"""From microns to the canvas: one affine moves transcripts forward and resamples images backward.

Affines are 3 x 3 and act on (x, y, 1). Pixel i covers [i, i + 1) on both sides.
"""

from __future__ import annotations

from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, sparse

from tera_mind.formats.brain import Affine
from tera_mind.geometry import Box
from tera_mind.ingest.source import Plane

_SAME = 1e-6


def pixel_size_um(um_to_px: NDArray[np.float64]) -> float:
    """Side of the square of a pixel's area, in microns."""
    return float(1 / np.sqrt(abs(np.linalg.det(um_to_px[:2, :2]))))


def scaled(um_to_px: NDArray[np.float64], factor: float) -> NDArray[np.float64]:
    """The same map onto a canvas with `factor` times as many pixels a side."""
    return np.diag([factor, factor, 1.0]) @ um_to_px


def rows_of(affine: NDArray[np.float64]) -> Affine:
    """The upper two rows as plain numbers."""
    (a, b, c), (d, e, f) = affine[:2].tolist()
    return (a, b, c), (d, e, f)


def to_pixels(
    um_to_px: NDArray[np.float64], x_um: NDArray[np.float64], y_um: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pixels (y, x) that hold the given positions."""
    x, y, _ = um_to_px @ np.stack([x_um, y_um, np.ones_like(x_um)])
    return np.floor(y).astype(np.int64), np.floor(x).astype(np.int64)


def resample(plane: Plane, to_canvas: NDArray[np.float64], box: Box) -> NDArray[np.float32]:
    """Canvas pixels of a box: float32 (y, x), 0 outside the image; `to_canvas` maps image pixels to canvas pixels.

    A scale and shift along the axes is exact (every canvas pixel is the mean over its area); any other affine
    averages bilinear samples, at least one a source pixel.
    """
    canvas = np.zeros((box.height, box.width), np.float32)
    source = _source_box(plane, to_canvas, box)
    if source.is_empty or box.is_empty:
        return canvas
    if np.abs(to_canvas - np.eye(3)).max() < _SAME:
        canvas[source.shift(-box.y0, -box.x0).slices()] = plane.read(source)
        return canvas
    window = plane.read(source).astype(np.float32)
    linear = to_canvas[:2, :2]
    if abs(linear[0, 1]) < _SAME and abs(linear[1, 0]) < _SAME and linear[0, 0] > 0 and linear[1, 1] > 0:
        down = _area_weights(linear[1, 1], to_canvas[1, 2], (box.y0, box.y1), (source.y0, source.y1))
        across = _area_weights(linear[0, 0], to_canvas[0, 2], (box.x0, box.x1), (source.x0, source.x1))
        return np.ascontiguousarray((across @ (down @ window).T).T, dtype=np.float32)
    return _sampled(window, source, to_canvas, box)


def _source_box(plane: Plane, to_canvas: NDArray[np.float64], box: Box) -> Box:
    """Image pixels that a canvas box can need; the whole box where the map is the identity."""
    height, width = plane.shape
    image = Box(0, height, 0, width)
    if np.abs(to_canvas - np.eye(3)).max() < _SAME:
        return box.intersect(image)
    corners = np.array([[x, y, 1.0] for y in (box.y0, box.y1) for x in (box.x0, box.x1)]).T
    x, y, _ = np.linalg.inv(to_canvas) @ corners
    return Box(
        int(np.floor(y.min())) - 1, int(np.ceil(y.max())) + 1, int(np.floor(x.min())) - 1, int(np.ceil(x.max())) + 1
    ).intersect(image)


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


def _sampled(window: NDArray[np.float32], source: Box, to_canvas: NDArray[np.float64], box: Box) -> NDArray[np.float32]:
    inverse = np.linalg.inv(to_canvas)
    samples = max(1, int(np.ceil(np.sqrt(abs(np.linalg.det(inverse[:2, :2]))) - _SAME)))
    offsets = (np.arange(samples) + 0.5) / samples
    total = np.zeros((box.height, box.width), np.float32)
    for dy in offsets:
        for dx in offsets:
            x, y = np.meshgrid(np.arange(box.x0, box.x1) + dx, np.arange(box.y0, box.y1) + dy)
            at_x = inverse[0, 0] * x + inverse[0, 1] * y + inverse[0, 2] - source.x0 - 0.5
            at_y = inverse[1, 0] * x + inverse[1, 1] * y + inverse[1, 2] - source.y0 - 0.5
            total += cast("NDArray[np.float32]", ndimage.map_coordinates(window, [at_y, at_x], order=1, cval=0.0))
    return total / np.float32(samples**2)
