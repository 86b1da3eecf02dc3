"""Regions of the brain: how many cells each holds, how far apart they keep, how bright what lies between them is."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

#: nuclei seen in DAPI for each cell that passes quality control (estimate)
NUCLEI_A_CELL = 1.4


@dataclass(frozen=True)
class Region:
    """`cells_mm2`: cells that pass quality control; `core_um`: usual distance that nuclei keep (0: no cells).

    `dapi` and `polyt`: brightness of the tissue between cells, relative to cortex.
    """

    name: str
    cells_mm2: float
    core_um: float
    dapi: float = 1.0
    polyt: float = 1.0


REGIONS = (
    Region("outside", 0.0, 0.0, 0.0, 0.0),
    Region("ventricle", 0.0, 0.0, 0.05, 0.05),
    Region("pia", 1800.0, 7.0, 0.9, 0.6),
    Region("layer 1", 900.0, 11.0, 0.9, 0.9),
    Region("layer 2/3", 1880.0, 10.0),
    Region("layer 4", 2490.0, 9.2),
    Region("layer 5", 1570.0, 10.5),
    Region("layer 6", 2110.0, 9.6),
    Region("fibre tract", 1650.0, 8.4, 0.85, 0.45),
    Region("striatum", 1850.0, 9.8, 1.0, 0.9),
    Region("thalamus", 1290.0, 11.0, 1.0, 0.95),
    Region("hypothalamus", 1500.0, 10.0, 1.0, 0.95),
    Region("midbrain", 1200.0, 10.5, 0.95, 0.8),
    Region("hindbrain", 1050.0, 11.0, 0.95, 0.7),
    Region("SN/VTA", 1500.0, 10.5, 0.95, 0.9),
    Region("hippocampal molecular", 900.0, 11.0, 0.9, 0.9),
    Region("CA", 3390.0, 7.2, 1.05, 1.2),
    Region("dentate gyrus", 6850.0, 5.4, 1.1, 1.1),
    Region("OB glomerular", 2600.0, 6.6, 1.0, 0.9),
    Region("OB plexiform", 900.0, 11.0, 0.9, 0.9),
    Region("OB granule", 4200.0, 5.8, 1.0, 0.9),
    Region("CB molecular", 900.0, 11.0, 0.9, 0.9),
    Region("Purkinje layer", 2500.0, 8.0, 1.0, 1.0),
    Region("CB granule", 10200.0, 4.5, 1.1, 0.8),
)
INDEX = {region.name: number for number, region in enumerate(REGIONS)}
OUTSIDE, VENTRICLE, FIBRES = INDEX["outside"], INDEX["ventricle"], INDEX["fibre tract"]


def nuclei_um2() -> NDArray[np.float64]:
    """Wanted nuclei per um2 of every region."""
    return np.array([NUCLEI_A_CELL * region.cells_mm2 * 1e-6 for region in REGIONS])


def column(field: str) -> NDArray[np.float64]:
    """One property of all regions, in the order of `REGIONS`."""
    return np.array([getattr(region, field) for region in REGIONS], dtype=np.float64)
