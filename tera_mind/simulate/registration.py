"""Known misregistration of sections: the map from the atlas to where the section lies, and its true inverse.

Forward, (y, x) um of the atlas to um of the section: rotation, scale and shift about the brain's middle, and then a
smooth displacement. Cells are made in the atlas and moved: a misregistered brain has the cells of the registered one.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from tera_mind.simulate import keys
from tera_mind.simulate.fields import Field

Reals = NDArray[np.float64]

_NUMBER = 60
_ROTATION_DEGREES, _SCALE, _SHIFT_UM, _BEND_UM, _SPACING_UM = 2.5, 0.01, 140.0, 40.0, 1800.0
_ITERATIONS = 12


@dataclass(frozen=True)
class SectionMap:
    """Misregistration of a section: `strength` 0 is none, 1 the usual (degrees, percents, tens of um)."""

    seed: int
    section: int
    strength: float = 0.0
    #: size of the brain relative to a real one, which shift and displacement follow
    brain_scale: float = 1.0
    #: point of the atlas (y, x) in um about which the section turns
    centre_um: tuple[float, float] = (0.0, 0.0)

    @cached_property
    def affine(self) -> NDArray[np.float64]:
        """3 x 3, acting on (x, y, 1) in um: atlas to section, without the displacement."""
        draw = 2.0 * keys.section_numbers(self.seed, keys.SECTION, self.section, 5) - 1.0
        turn = self.strength * np.deg2rad(_ROTATION_DEGREES) * draw[0]
        across, down = (1.0 + self.strength * _SCALE * value for value in draw[1:3])
        shift = self.strength * _SHIFT_UM * self.brain_scale * draw[3:5]
        cy, cx = self.centre_um
        linear = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]) @ np.diag([across, down])
        moved = np.array([cx, cy]) + shift - linear @ np.array([cx, cy])
        return np.array([[*linear[0], moved[0]], [*linear[1], moved[1]], [0.0, 0.0, 1.0]])

    @property
    def direction(self) -> tuple[float, float]:
        """(cosine, sine) of the section's rotation."""
        a, b = self.affine[0, 0], self.affine[1, 0]
        length = float(np.hypot(a, b))
        return float(a) / length, float(b) / length

    @property
    def margin_um(self) -> float:
        """No displacement is larger."""
        return self.strength * _BEND_UM * self.brain_scale

    def displacement(self, y_um: Reals, x_um: Reals) -> tuple[Reals, Reals]:
        """(dy, dx) in um that is added after the affine, at positions of the atlas."""
        y_um, x_um = np.broadcast_arrays(np.asarray(y_um, np.float64), np.asarray(x_um, np.float64))
        if self.strength == 0:
            return np.zeros(y_um.shape), np.zeros(y_um.shape)
        z = float(self.section)  # every section bends on its own
        fields = [Field(self.seed, _NUMBER + axis, _SPACING_UM * self.brain_scale, 1.0) for axis in range(2)]
        down, across = (self.margin_um * field.at(y_um, x_um, z) for field in fields)
        return down, across

    def to_section(self, y_um: Reals, x_um: Reals) -> tuple[Reals, Reals]:
        """Where places of the atlas lie on the section."""
        if self.strength == 0:
            return y_um, x_um
        (a, b, c), (d, e, f) = self.affine[:2].tolist()
        down, across = self.displacement(y_um, x_um)
        return d * x_um + e * y_um + f + down, a * x_um + b * y_um + c + across

    def to_atlas(self, y_um: Reals, x_um: Reals) -> tuple[Reals, Reals]:
        """The inverse, by fixed-point iteration (the displacement changes far slower than place): good to 1e-6 um."""
        if self.strength == 0:
            return y_um, x_um
        (a, b, c), (d, e, f) = np.linalg.inv(self.affine)[:2].tolist()

        def back(y: Reals, x: Reals) -> tuple[Reals, Reals]:
            return d * x + e * y + f, a * x + b * y + c

        y, x = back(y_um, x_um)
        for _ in range(_ITERATIONS):
            down, across = self.displacement(y, x)
            y, x = back(y_um - down, x_um - across)
        return y, x

    def atlas_window(self, y0: float, y1: float, x0: float, x1: float) -> tuple[float, float, float, float]:
        """A window of the atlas that holds everything that can lie in a window of the section."""
        if self.strength == 0:
            return y0, y1, x0, x1
        (a, b, c), (d, e, f) = np.linalg.inv(self.affine)[:2].tolist()
        margin = 1.1 * self.margin_um + 1.0
        corners = [(y, x) for y in (y0 - margin, y1 + margin) for x in (x0 - margin, x1 + margin)]
        down, across = [d * x + e * y + f for y, x in corners], [a * x + b * y + c for y, x in corners]
        return min(down), max(down), min(across), max(across)
