"""A small piece of simulated cortex: regions with smooth boundaries, continuous from section to section.

From the pia down: layer 1, layer 2/3, layers 5/6, a fibre tract, and a molecular zone with a dense granule sheet.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_BOUNDARY = 1  # purpose of the random key

REGIONS = ("outside", "layer 1", "layer 2/3", "layer 5/6", "fibre tract", "molecular", "granule sheet")
#: nuclei per mm2; cell densities of the Zhuang MERFISH atlas, 1.4 times as many nuclei in DAPI as cells that pass QC
DENSITY_MM2 = dict(zip(REGIONS, 1.4 * np.array([0, 900, 1880, 1750, 1650, 900, 6850]), strict=True))
#: distance that neighbouring nuclei keep, um
CORE_UM = dict(zip(REGIONS, (7.0, 7.0, 7.0, 7.0, 6.0, 7.0, 4.2), strict=True))
#: depth below the pia, as a share of the tissue's height, at which each region ends; the sheet lies in the last
_ENDS = (0.0, 0.14, 0.38, 0.70, 0.80)
_SHEET = (0.87, 0.045)  # centre and half width of the granule sheet


@dataclass(frozen=True)
class Anatomy:
    """Regions of a tissue of the given size as a pure function of (seed, x, y, z)."""

    height_um: float
    width_um: float
    seed: int

    def _wave(self, number: int, x_um: NDArray[np.float64], z_um: float) -> NDArray[np.float64]:
        """Smooth undulation of one boundary, about -1 to 1; wavelengths of 300-900 um in x and 1-3 mm in z."""
        random = np.random.default_rng([self.seed, _BOUNDARY, number])
        total = np.zeros_like(x_um)
        for _ in range(3):
            along, across, phase = random.uniform(300, 900), random.uniform(1000, 3000), random.uniform(0, 2 * np.pi)
            total += np.sin(2 * np.pi * (x_um / along + z_um / across) + phase) / 3
        return total

    def region(self, y_um: NDArray[np.float64], x_um: NDArray[np.float64], z_um: float) -> NDArray[np.int8]:
        """Index into `REGIONS` at every position of a section; y runs from the pia into the tissue."""
        pia = self.height_um * (0.06 + 0.03 * self._wave(0, x_um, z_um))
        depth = (y_um - pia) / (0.94 * self.height_um)
        out = np.zeros(np.broadcast(depth, x_um).shape, dtype=np.int8)
        for number, end in enumerate(_ENDS):
            edge = end + (0.02 * self._wave(number, x_um, z_um) if number else 0.0)
            out[depth >= edge] = number + 1
        centre, half = _SHEET
        sheet = np.abs(depth - centre - 0.04 * self._wave(9, x_um, z_um)) < half
        out[sheet & (out == REGIONS.index("molecular"))] = REGIONS.index("granule sheet")
        return out
