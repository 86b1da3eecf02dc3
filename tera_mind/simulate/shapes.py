"""The plan of the brain in millimetres: outlines along the front-to-back axis, and the bodies inside them.

A coarse plan of an adult mouse brain in coronal sections: x from the midline, y downwards from above the cortex, z from
the olfactory bulb (0) to the end of the cerebellum (about 10). It is drawn by hand after the textbooks' atlases, so the
order and the sizes of things are right while no outline is a copy of any atlas.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import PchipInterpolator

Reals = NDArray[np.float64]

#: z, then of the hemisphere's ellipse: centre from the midline, half width, centre depth, half height
_HEMISPHERE = (
    (1.30, 0.85, 0.00, 3.10, 0.00),
    (1.60, 0.95, 0.70, 3.10, 0.85),
    (2.20, 1.20, 1.25, 3.05, 1.60),
    (3.00, 1.55, 1.90, 3.05, 2.15),
    (4.00, 1.90, 2.50, 3.05, 2.50),
    (5.00, 2.10, 2.85, 3.05, 2.65),
    (6.00, 2.30, 3.05, 3.05, 2.70),
    (7.00, 2.50, 3.05, 2.95, 2.60),
    (8.00, 2.60, 2.85, 2.80, 2.35),
    (8.80, 2.70, 2.20, 2.60, 1.80),
    (9.30, 2.75, 1.20, 2.40, 1.00),
    (9.55, 2.75, 0.00, 2.40, 0.00),
)
#: z, then of the ellipse of the brain's base on the midline: half width, centre depth, half height
_BASE = (
    (2.40, 0.00, 4.10, 0.00),
    (3.00, 0.80, 4.15, 1.00),
    (4.00, 1.70, 4.20, 1.65),
    (5.00, 2.20, 4.30, 1.95),
    (6.00, 2.50, 4.50, 1.95),
    (7.00, 2.70, 4.50, 1.95),
    (8.00, 2.80, 4.52, 1.95),
    (9.00, 2.90, 4.60, 1.85),
    (10.00, 2.70, 4.65, 1.75),
    (10.60, 2.30, 4.65, 1.45),
)


@dataclass(frozen=True)
class Body:
    """An ellipsoid of a region, mirrored at the midline: centre, half axes (x, y, z) in mm, slope dy/dx of its axis."""

    region: str
    centre: tuple[float, float, float]
    half: tuple[float, float, float]
    slope: float = 0.0


#: bodies inside the cortex, later ones over earlier ones
BODIES = (
    Body("midbrain", (0.0, 3.55, 8.0), (2.5, 1.75, 1.45)),
    Body("striatum", (2.15, 3.35, 4.0), (1.35, 1.55, 2.0)),
    Body("thalamus", (0.95, 3.75, 6.05), (1.50, 1.15, 1.55)),
    Body("fibre tract", (2.35, 4.05, 6.4), (0.24, 0.95, 1.5), -0.15),  # internal capsule
    Body("fibre tract", (1.75, 5.35, 8.0), (0.60, 0.16, 1.4), -0.30),  # cerebral peduncle
    Body("fibre tract", (0.95, 4.35, 3.9), (0.30, 0.15, 1.1)),  # anterior commissure
    Body("SN/VTA", (1.35, 5.00, 7.9), (0.75, 0.20, 0.8), -0.25),
    Body("SN/VTA", (0.30, 4.95, 7.9), (0.36, 0.30, 0.7)),
    Body("hindbrain", (1.00, 2.45, 9.6), (1.10, 0.35, 0.7)),  # nuclei inside the cerebellum
    Body("ventricle", (0.95, 2.65, 4.6), (0.15, 0.75, 1.3), 0.0),
    Body("ventricle", (0.0, 4.70, 5.7), (0.07, 0.80, 1.2)),
    Body("ventricle", (0.0, 3.30, 8.4), (0.12, 0.22, 1.3)),
)
#: the hippocampus is drawn apart: dorsal and ventral part, each with its CA arch and its dentate gyrus
HIPPOCAMPUS = (
    Body("hippocampal molecular", (1.75, 2.25, 6.4), (1.75, 0.80, 1.35), 0.10),
    Body("hippocampal molecular", (3.35, 3.35, 7.4), (0.95, 1.45, 1.05)),
)
BULB = Body("OB granule", (0.80, 2.90, 1.0), (0.78, 1.20, 1.05))
CEREBELLUM = Body("CB granule", (0.0, 2.30, 9.75), (4.0, 1.95, 1.50))

#: thickness of the cortex, mm, and where its layers end as shares of it
CORTEX_MM = 1.0
LAYERS = (("layer 1", 0.115), ("layer 2/3", 0.33), ("layer 4", 0.45), ("layer 5", 0.67), ("layer 6", 1.0))
#: corpus callosum and external capsule below the cortex, mm
WHITE_MM = 0.20


@lru_cache(maxsize=256)
def hemisphere(z_mm: float) -> tuple[float, ...]:
    """(centre from the midline, half width, centre depth, half height) of a hemisphere, mm; zeros where none is."""
    return _outline(_HEMISPHERE, z_mm)


@lru_cache(maxsize=256)
def base(z_mm: float) -> tuple[float, ...]:
    """(half width, centre depth, half height) of the brain's base on the midline, mm; zeros where there is none."""
    return _outline(_BASE, z_mm)


def _outline(table: tuple[tuple[float, ...], ...], z_mm: float) -> tuple[float, ...]:
    rows = np.array(table)
    if not rows[0, 0] < z_mm < rows[-1, 0]:
        return (0.0,) * (len(table[0]) - 1)
    values: list[float] = PchipInterpolator(rows[:, 0], rows[:, 1:])(z_mm).tolist()
    return tuple(values)


def slice_of(body: Body, z_mm: float) -> tuple[float, float]:
    """Half axes (x, y) in mm of a body's cut at z; 0 where it is not there."""
    share = 1.0 - ((z_mm - body.centre[2]) / body.half[2]) ** 2
    if share <= 0:
        return 0.0, 0.0
    root = float(np.sqrt(share))
    return body.half[0] * root, body.half[1] * root


def ellipse(x: Reals, y: Reals, cx: float, cy: float, ax: float, ay: float) -> tuple[Reals, Reals]:
    """(depth below the edge in mm, to first order; relative radius) of points; depth is -9 for an empty ellipse."""
    if ax < 0.01 or ay < 0.01:
        return np.full(x.shape, -9.0), np.full(x.shape, 9.0)
    u, v = (x - cx) / ax, (y - cy) / ay
    radius = np.sqrt(u * u + v * v) + 1e-9
    slope = np.sqrt((u / ax) * (u / ax) + (v / ay) * (v / ay)) / radius + 1e-9
    return (1.0 - radius) / slope, radius


def smooth_max(a: Reals, b: Reals, width: float) -> Reals:
    """The larger of both, rounded where they meet."""
    gap = np.maximum(width - np.abs(a - b), 0.0) / width
    return np.maximum(a, b) + gap * gap * (0.25 * width)
