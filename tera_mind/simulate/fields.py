"""Smooth random fields in 3-D (value noise with quintic blending), evaluated anywhere on a section.

A field is fixed by (seed, number, spacing): random values at the nodes of a cubic lattice, blended so that value,
slope and curvature are continuous. Only +, - and * act on positions, so the same place has the same bits in any window.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from tera_mind.simulate.keys import FIELD, uniform, words

Reals = NDArray[np.float64]

_SECOND = 100  # added to a weave's number for its second field


def _blend(t: Reals | float) -> Reals | float:
    return t * t * t * (t * (t * 6.0 - 15.0) + 10.0)


def _slope(t: Reals) -> Reals:
    return 30.0 * t * t * (t * (t - 2.0) + 1.0)


@dataclass(frozen=True)
class Field:
    """Value noise in [-1, 1] (standard deviation near 0.4) with nodes `spacing_um` apart (x, y) and `z_um` (z)."""

    seed: int
    number: int
    spacing_um: float
    z_um: float

    def at(self, y_um: Reals, x_um: Reals, z_um: float) -> Reals:
        """Values at positions of the section at `z_um`."""
        return self._evaluate(y_um, x_um, z_um)[0]

    def gradient(self, y_um: Reals, x_um: Reals, z_um: float) -> tuple[Reals, Reals, Reals]:
        """(value, d/dy, d/dx) per um."""
        value, corners, ty, tx, by, bx = self._evaluate(y_um, x_um, z_um)
        v00, v01, v10, v11 = corners
        dy = _slope(ty) * ((v10 - v00) * (1.0 - bx) + (v11 - v01) * bx) / self.spacing_um
        dx = _slope(tx) * ((v01 - v00) * (1.0 - by) + (v11 - v10) * by) / self.spacing_um
        return value, dy, dx

    def _evaluate(
        self, y_um: Reals, x_um: Reals, z_um: float
    ) -> tuple[Reals, tuple[Reals, Reals, Reals, Reals], Reals, Reals, Reals, Reals]:
        y, x = np.broadcast_arrays(y_um * (1.0 / self.spacing_um), x_um * (1.0 / self.spacing_um))
        if y.size == 0:
            none = np.zeros(y.shape)
            return none, (none, none, none, none), none, none, none, none
        iy, ix = np.floor(y).astype(np.int64), np.floor(x).astype(np.int64)
        y0, x0 = int(iy.min()), int(ix.min())
        nodes = _nodes(self, y0, int(iy.max()) + 2, x0, int(ix.max()) + 2, z_um)
        columns = nodes.shape[1]
        flat = nodes.ravel()
        first = (iy - y0) * columns + (ix - x0)
        v00, v01, v10, v11 = flat[first], flat[first + 1], flat[first + columns], flat[first + columns + 1]
        ty, tx = y - iy, x - ix
        by, bx = np.asarray(_blend(ty)), np.asarray(_blend(tx))
        top, bottom = v00 + bx * (v01 - v00), v10 + bx * (v11 - v10)
        return top + by * (bottom - top), (v00, v01, v10, v11), ty, tx, by, bx


@dataclass(frozen=True)
class Weave:
    """Mean of two fields whose lattices are turned and shifted against each other, so that no direction stands out.

    A single lattice is flat at its nodes; lines where it is zero tend to follow its axes.
    """

    seed: int
    number: int
    spacing_um: float
    z_um: float

    def gradient(self, y_um: Reals, x_um: Reals, z_um: float) -> tuple[Reals, Reals, Reals]:
        """(value, d/dy, d/dx) per um."""
        first = Field(self.seed, self.number, self.spacing_um, self.z_um)
        second = Field(self.seed, self.number + _SECOND, self.spacing_um, self.z_um)
        shift = 0.37 * self.spacing_um
        value, dy, dx = first.gradient(y_um, x_um, z_um)
        # turned by the angle of a 3-4-5 triangle
        turned = second.gradient(0.8 * y_um - 0.6 * x_um + shift, 0.6 * y_um + 0.8 * x_um + shift, z_um)
        return (
            0.5 * (value + turned[0]),
            0.5 * (dy + 0.8 * turned[1] + 0.6 * turned[2]),
            0.5 * (dx - 0.6 * turned[1] + 0.8 * turned[2]),
        )

    def at(self, y_um: Reals, x_um: Reals, z_um: float) -> Reals:
        """Values at positions of the section at `z_um`."""
        return self.gradient(y_um, x_um, z_um)[0]


@lru_cache(maxsize=64)
def _nodes(field: Field, y0: int, y1: int, x0: int, x1: int, z_um: float) -> Reals:
    """Node values of a section, blended in z from the two lattice planes around it."""
    y, x = np.meshgrid(np.arange(y0, y1), np.arange(x0, x1), indexing="ij")
    below = int(np.floor(z_um / field.z_um))
    share = float(_blend(z_um / field.z_um - below))
    low, high = (
        2.0 * uniform(words(field.seed, FIELD, plane, y, x, field.number)[0]) - 1.0 for plane in (below, below + 1)
    )
    return low + share * (high - low)
