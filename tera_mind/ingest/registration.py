"""From microns to the canvas: one map moves transcripts forward and resamples images backward.

Affines are 3 x 3 and act on (x, y, 1). Pixel i covers [i, i + 1) on both sides.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tera_mind.formats.brain import Affine
from tera_mind.geometry import Box
from tera_mind.ingest.displacement import DisplacementField
from tera_mind.ingest.resampling import inverted, resample
from tera_mind.ingest.source import StainImage

Reals = NDArray[np.float64]


@dataclass(frozen=True)
class Registration:
    """Where a section lies: 3 x 3 from (x_um, y_um, 1) to canvas pixels, then an optional displacement."""

    um_to_canvas: Reals
    displacement: DisplacementField | None = None

    def positions(self, x_um: Reals, y_um: Reals) -> tuple[Reals, Reals]:
        """Positions (y, x) on the canvas, in pixels and parts of them."""
        (a, b, c), (d, e, f) = rows_of(self.um_to_canvas)
        y, x = d * x_um + e * y_um + f, a * x_um + b * y_um + c
        return (y, x) if self.displacement is None else self.displacement.forward(y, x)

    def pixels(self, x_um: Reals, y_um: Reals) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Canvas pixels (y, x) that hold the given positions."""
        y, x = self.positions(x_um, y_um)
        return np.floor(y).astype(np.int64), np.floor(x).astype(np.int64)

    def window(self, image: StainImage, box: Box) -> NDArray[np.float32]:
        """A stain on the canvas pixels of a box: float32 (y, x), 0 outside the image; see `resample`."""
        to_canvas = self.um_to_canvas @ inverted(image.um_to_px)
        return resample(image.plane, to_canvas, box, self.displacement)


def pixel_size_um(um_to_px: Reals) -> float:
    """Side of the square of a pixel's area, in microns."""
    return float(1 / np.sqrt(abs(np.linalg.det(um_to_px[:2, :2]))))


def scaled(um_to_px: Reals, factor: float) -> Reals:
    """The same map onto a canvas with `factor` times as many pixels a side."""
    return np.diag([factor, factor, 1.0]) @ um_to_px


def rows_of(affine: Reals) -> Affine:
    """The upper two rows as plain numbers."""
    (a, b, c), (d, e, f) = affine[:2].tolist()
    return (a, b, c), (d, e, f)
