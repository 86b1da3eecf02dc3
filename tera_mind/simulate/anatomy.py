"""Which region a place belongs to: level sets in three dimensions, bent by smooth noise keyed by the brain's seed.

Everything is a function of (seed, scale, x, y, z): boundaries are smooth and go on from section to section, and a
window costs its own points only. `scale` shrinks the brain (cells keep their size), so that small canvases hold whole
structures.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from tera_mind.simulate.fields import Field, Weave
from tera_mind.simulate.regions import INDEX
from tera_mind.simulate.shapes import (
    BODIES,
    BULB,
    CEREBELLUM,
    CORTEX_MM,
    HIPPOCAMPUS,
    LAYERS,
    WHITE_MM,
    Body,
    base,
    ellipse,
    hemisphere,
    slice_of,
    smooth_max,
)

Reals = NDArray[np.float64]
Regions = NDArray[np.int8]

#: depth of the midline's fissure, mm, below the top of the hemispheres
_FISSURE_MM = 0.95
_FOLIUM_MM = 0.66
#: the plan is drawn this much too flat
_STRETCH_Y = 1.18
#: thinnest that sheets of one or two cells get in shrunken brains, um: half widths
_THINNEST_UM = {"CA": 16.0, "dentate gyrus": 20.0, "Purkinje layer": 7.0}
PIA_UM = 13.0


@dataclass(frozen=True)
class Anatomy:
    """Regions of a brain as a pure function of (x, y, z) in um of the atlas (x from the midline, y down, z back)."""

    seed: int
    scale: float = 1.0
    #: whether the olfactory bulb was kept
    bulb: bool = True

    @cached_property
    def _bends(self) -> tuple[tuple[Field, float], ...]:
        """Noise that moves boundaries, y then x: large and slow, small and faster; spacing scales with the brain."""
        bends = []
        for number, (spacing, amplitude) in enumerate(((1600.0, 190.0), (1600.0, 190.0), (420.0, 45.0), (420.0, 45.0))):
            field = Field(self.seed, number, spacing * self.scale, max(1200.0, 0.8 * spacing) * self.scale)
            bends.append((field, amplitude / 1000))
        return tuple(bends)

    def _plan_mm(self, y_um: Reals, x_um: Reals, z_um: float) -> tuple[Reals, Reals, float]:
        """Bent coordinates in mm of the unscaled plan; x stays signed."""
        to_mm = 1.0 / (1000.0 * self.scale)
        y, x = y_um * (to_mm / _STRETCH_Y), x_um * to_mm
        for index, (field, amplitude) in enumerate(self._bends):
            bend = amplitude * field.at(y_um, x_um, z_um)
            if index % 2:
                x = x + bend
            else:
                y = y + bend
        return y, x, z_um * to_mm

    def region(self, y_um: Reals, x_um: Reals, z_um: float) -> Regions:
        """Index into `regions.REGIONS` at every position."""
        return self.locate(y_um, x_um, z_um)[0]

    def locate(self, y_um: Reals, x_um: Reals, z_um: float) -> tuple[Regions, Reals]:
        """(region, depth below the surface in um) at every position of a section."""
        y_um, x_um = np.broadcast_arrays(np.asarray(y_um, np.float64), np.asarray(x_um, np.float64))
        y, signed, z = self._plan_mm(y_um, x_um, z_um)
        x = np.abs(signed)
        out = np.zeros(y.shape, np.int8)
        surface = self._forebrain(out, y, x, z)
        if self.bulb:
            surface = np.maximum(surface, self._bulb(out, y, x, z))
        surface = self._cerebellum(out, y, x, z, surface)
        to_um = 1000.0 * self.scale
        depth_um = surface * to_um
        out[(depth_um < PIA_UM) & (out > 0)] = INDEX["pia"]
        return out, depth_um

    def _half(self, name: str, usual_mm: float) -> float:
        """Half width of a sheet in plan mm, kept wide enough for its cells in shrunken brains."""
        return max(usual_mm, _THINNEST_UM[name] / (1000.0 * self.scale))

    def _forebrain(self, out: Regions, y: Reals, x: Reals, z: float) -> Reals:
        """Cortex, white matter, bodies and what is between them; the depth below the surface, mm."""
        cx, ax, cy, ay = hemisphere(z)
        hemi, _ = ellipse(x, y, cx, cy, ax, ay)
        bx, by, bh = base(z)
        trunk, _ = ellipse(x, y, 0.0, by, bx, bh)
        top = cy - ay  # the fissure parts the hemispheres down to here and a little more
        cleft = x - 0.03 + np.maximum(y - top - _FISSURE_MM, 0.0) * 1.6
        surface = trunk if ax < 0.01 else np.minimum(smooth_max(hemi, trunk, 0.35), cleft)
        inside = surface > 0
        out[inside] = INDEX["hypothalamus"]
        out[inside & (z - 7.3 + 0.45 * (y - 4.3) > 0)] = INDEX["hindbrain"]
        if ax < 0.01:
            self._bodies(out, y, x, z, inside)
            return surface
        # the cortex thins out towards the base of the brain
        fade = np.clip((cy + 0.95 * ay - y) / (0.5 * ay + 1e-9), 0.0, 1.0)
        limit = min(1.0, 0.55 * ay)
        medial = np.clip(x / 0.9, 0.0, 1.0)
        thick = (CORTEX_MM * limit) * fade * (0.55 + 0.45 * medial * medial * (3.0 - 2.0 * medial))
        white = thick + (WHITE_MM * limit) * fade
        self._bodies(out, y, x, z, inside & (surface > white))
        self._hippocampus(out, y, x, z, inside & (surface > white))
        start = np.zeros_like(thick)
        for name, share in LAYERS:
            end = thick * share
            out[inside & (surface >= start) & (surface < end)] = INDEX[name]
            start = end
        out[inside & (surface >= thick) & (surface < white)] = INDEX["fibre tract"]
        return surface

    def _bodies(self, out: Regions, y: Reals, x: Reals, z: float, allowed: NDArray[np.bool_]) -> None:
        for body in BODIES:
            ax, ay = slice_of(body, z)
            if ax < 0.02 or ay < 0.02:
                continue
            deep, _ = ellipse(x, y - body.slope * (x - body.centre[0]), body.centre[0], body.centre[1], ax, ay)
            out[allowed & (deep > 0)] = INDEX[body.region]
            if body.region == "striatum":
                self._bundles(out, y, x, z, allowed & (deep > 0.1))

    def _bundles(self, out: Regions, y: Reals, x: Reals, z: float, inside: NDArray[np.bool_]) -> None:
        """Fibre bundles that run through the striatum from front to back."""
        field = Weave(self.seed, 20, 0.16, 1.5)  # in plan mm, so that they shrink with the brain
        where = np.nonzero(inside)
        value = field.at(y[where], x[where], z)
        chosen = tuple(axis[value > 0.33] for axis in where)
        out[chosen] = INDEX["fibre tract"]

    def _hippocampus(self, out: Regions, y: Reals, x: Reals, z: float, allowed: NDArray[np.bool_]) -> None:
        sheet, blade = self._half("CA", 0.035), self._half("dentate gyrus", 0.045)
        for body in HIPPOCAMPUS:
            ax, ay = slice_of(body, z)
            if ax < 0.12 or ay < 0.12:
                continue
            level = y - body.slope * (x - body.centre[0])
            deep, _ = ellipse(x, level, body.centre[0], body.centre[1], ax, ay)
            here = allowed & (deep > 0)
            out[here] = INDEX["hippocampal molecular"]
            u, v = (x - body.centre[0]) / ax, (level - body.centre[1]) / ay
            arch, _ = ellipse(x, level, body.centre[0], body.centre[1], 0.68 * ax, 0.62 * ay)
            tall = ay > ax
            arched = (u > -0.2) | (v < -0.1) if tall else (v < 0.05) | (u > 0.45)
            out[here & arched & (np.abs(arch) < sheet)] = INDEX["CA"]
            ring, _ = ellipse(x, level, body.centre[0] - 0.22 * ax, body.centre[1] + 0.26 * ay, 0.46 * ax, 0.30 * ay)
            opened = u < 0.06 if not tall else v < 0.35
            out[here & opened & (np.abs(ring) < blade)] = INDEX["dentate gyrus"]

    def _bulb(self, out: Regions, y: Reals, x: Reals, z: float) -> Reals:
        ax, ay = slice_of(BULB, z)
        deep, _ = ellipse(x, y, BULB.centre[0], BULB.centre[1], ax, ay)
        free = (deep > 0) & (out == 0)
        start = 0.0
        for name, end in (("OB glomerular", 0.15), ("OB plexiform", 0.30), ("OB granule", 0.62), ("fibre tract", 9.0)):
            out[free & (deep >= start) & (deep < end)] = INDEX[name]
            start = end
        return np.where(free, deep, -9.0)

    def _cerebellum(self, out: Regions, y: Reals, x: Reals, z: float, surface: Reals) -> Reals:
        """Folded sheets: the depth is that below the outer surface or below the next fissure, whichever is less."""
        body: Body = CEREBELLUM
        ax, ay = slice_of(body, z)
        deep, _ = ellipse(x, y, body.centre[0], body.centre[1], ax, ay)
        own = (deep > 0) & ((out == 0) | (deep > surface))
        if not own.any():
            return surface
        bend = Field(self.seed, 22, 1.1, 1.4).at(y, x, z)
        run = (y + 0.10 * (x - 1.2) * (x - 1.2) + 0.42 * bend) / _FOLIUM_MM
        fissure = (0.5 - np.abs(run - np.floor(run) - 0.5)) * _FOLIUM_MM
        fold = np.minimum(deep, fissure + 0.45 * np.maximum(deep - 1.05, 0.0))
        line = self._half("Purkinje layer", 0.008)
        start = -9.0
        for name, end in (
            ("CB molecular", 0.135 - line),
            ("Purkinje layer", 0.135 + line),
            ("CB granule", 0.27),
            ("fibre tract", 9.0),
        ):
            out[own & (fold >= start) & (fold < end)] = INDEX[name]
            start = end
        return np.where(own, fold, surface)
