"""Blood vessels: capillaries as the zero lines of one smooth field, larger vessels where two of them cross."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tera_mind.simulate.fields import Weave

Reals = NDArray[np.float64]

CAPILLARY_HALF_UM = 3.2
#: share of the tissue that lies on a capillary, measured
CAPILLARY_SHARE = 0.126
LUMEN_UM, WALL_UM = 7.0, 6.0
_FIRST_NUMBER = 30


@dataclass(frozen=True)
class Vessels:
    """Vessels of a section: what lies at every position, and which way it runs."""

    capillary: NDArray[np.bool_]
    lumen: NDArray[np.bool_]
    wall: NDArray[np.bool_]
    #: direction (cosine, sine) of the vessel at the position
    along: tuple[Reals, Reals]


def vessels(seed: int, y_um: Reals, x_um: Reals, z_um: float) -> Vessels:
    """Vessels at positions of the section at `z_um`; their spacing is in true um, whatever the brain's scale."""
    value, dy, dx = Weave(seed, _FIRST_NUMBER, 46.0, 40.0).gradient(y_um, x_um, z_um)
    steep = np.sqrt(dy * dy + dx * dx) + 1e-9
    capillary = np.abs(value) < CAPILLARY_HALF_UM * steep
    large, lumen_um = [], np.zeros(y_um.shape)
    for number in (1, 2):
        other, oy, ox = Weave(seed, _FIRST_NUMBER + number, 210.0, 260.0).gradient(y_um, x_um, z_um)
        large.append(other * other / (oy * oy + ox * ox + 1e-9))
    lumen_um = np.sqrt(large[0] + large[1])
    lumen = lumen_um < LUMEN_UM
    wall = ~lumen & (lumen_um < LUMEN_UM + WALL_UM)
    return Vessels(capillary & ~lumen, lumen, wall, (-dy / steep, dx / steep))
