"""Cell types: nucleus, chromatin and soma of each, and how many of each a region holds.

Sizes, densities and make-up follow the Zhuang MERFISH atlas of the mouse brain (cells that passed its quality
control) and estimates where it has none; pericytes count as endothelial cells.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tera_mind.simulate.regions import REGIONS


@dataclass(frozen=True)
class CellType:
    """Nucleus, soma and chromatin of a type; sizes in um, brightness relative to a pale neuron."""

    name: str
    nucleus_um: float
    axis_ratio: float
    dapi: float
    #: contrast of the chromatin's grain
    texture: float
    #: bright spots (chromocentres), their size in um and strength; a negative strength is a dark nucleolus
    spots: int
    spot_um: float
    spot: float
    soma_um: float
    polyt: float
    neuron: bool


TYPES = (
    CellType("L23 exc", 4.8, 0.90, 0.80, 0.11, 5, 0.45, 0.9, 7.5, 1.00, neuron=True),
    CellType("L56 exc", 5.4, 0.88, 0.75, 0.11, 5, 0.45, 0.9, 9.0, 1.10, neuron=True),
    CellType("DG gran", 3.6, 0.90, 1.25, 0.20, 4, 0.45, 0.9, 4.5, 0.60, neuron=True),
    CellType("Interneuron", 4.9, 0.90, 0.80, 0.13, 3, 0.65, 1.0, 7.5, 1.00, neuron=True),
    CellType("Astrocyte", 4.2, 0.80, 0.85, 0.06, 2, 0.45, 0.9, 5.0, 0.35, neuron=False),
    CellType("Oligodendrocyte", 3.2, 0.93, 1.30, 0.09, 1, 0.45, 0.6, 4.0, 0.40, neuron=False),
    CellType("Microglia", 3.0, 0.55, 1.20, 0.25, 2, 0.50, 1.0, 3.8, 0.30, neuron=False),
    CellType("Endothelial", 2.9, 0.38, 1.25, 0.08, 0, 0.45, 0.0, 3.5, 0.25, neuron=False),
    CellType("CA pyr", 5.0, 0.88, 0.80, 0.12, 5, 0.50, 0.9, 8.0, 1.00, neuron=True),
    CellType("Thal exc", 5.2, 0.90, 0.75, 0.11, 4, 0.45, 0.9, 8.5, 1.10, neuron=True),
    CellType("MSN", 4.3, 0.92, 0.95, 0.13, 4, 0.45, 0.9, 6.5, 0.80, neuron=True),
    CellType("Dopaminergic", 5.8, 0.85, 0.70, 0.10, 1, 1.10, -0.5, 10.0, 1.30, neuron=True),
    CellType("CB granule", 2.8, 0.93, 1.25, 0.32, 3, 0.40, 0.5, 3.3, 0.40, neuron=True),
    CellType("Purkinje", 5.8, 0.92, 0.55, 0.08, 1, 1.20, -0.4, 11.0, 1.50, neuron=True),
    CellType("OPC", 3.9, 0.78, 0.95, 0.13, 3, 0.45, 0.6, 4.8, 0.35, neuron=False),
    CellType("VLMC", 3.2, 0.45, 1.20, 0.09, 1, 0.45, 0.4, 4.0, 0.30, neuron=False),
)
NAMES = tuple(kind.name for kind in TYPES)
INDEX = {name: number for number, name in enumerate(NAMES)}
ENDOTHELIAL, VLMC = INDEX["Endothelial"], INDEX["VLMC"]

#: share of every type in every region, in percent; what is missing to 100 is spread over the named ones
_MAKE_UP: dict[str, dict[str, float]] = {
    "pia": {
        "VLMC": 52.0, "Endothelial": 18.0, "Astrocyte": 18.0, "Microglia": 12.0,
    },
    "layer 1": {
        "Astrocyte": 30.0, "Oligodendrocyte": 13.0, "Endothelial": 15.0, "Microglia": 9.0, "Interneuron": 15.0,
        "OPC": 8.0, "L23 exc": 5.0, "VLMC": 5.0,
    },
    "layer 2/3": {
        "L23 exc": 62.0, "Interneuron": 9.0, "Astrocyte": 8.0, "Endothelial": 9.0, "Oligodendrocyte": 4.0,
        "Microglia": 5.0, "OPC": 3.0,
    },
    "layer 4": {
        "L23 exc": 67.0, "Interneuron": 8.0, "Astrocyte": 7.0, "Endothelial": 8.0, "Oligodendrocyte": 3.0,
        "Microglia": 4.0, "OPC": 3.0,
    },
    "layer 5": {
        "L56 exc": 52.0, "Interneuron": 10.0, "Astrocyte": 11.0, "Endothelial": 11.0, "Oligodendrocyte": 6.0,
        "Microglia": 6.0, "OPC": 3.0, "L23 exc": 1.0,
    },
    "layer 6": {
        "L56 exc": 61.0, "Interneuron": 8.0, "Astrocyte": 7.0, "Endothelial": 7.0, "Oligodendrocyte": 11.0,
        "Microglia": 4.0, "OPC": 2.0,
    },
    "fibre tract": {
        "Oligodendrocyte": 69.0, "Astrocyte": 11.0, "Endothelial": 9.0, "Microglia": 6.0, "OPC": 4.0,
        "Interneuron": 1.0,
    },
    "striatum": {
        "MSN": 55.0, "Astrocyte": 11.0, "Oligodendrocyte": 10.0, "Interneuron": 6.0, "Endothelial": 10.0,
        "Microglia": 5.0, "OPC": 3.0,
    },
    "thalamus": {
        "Thal exc": 48.0, "Oligodendrocyte": 18.0, "Astrocyte": 12.0, "Interneuron": 6.0, "Endothelial": 9.0,
        "Microglia": 4.0, "OPC": 3.0,
    },
    "hypothalamus": {
        "Thal exc": 30.0, "Interneuron": 28.0, "Astrocyte": 13.0, "Oligodendrocyte": 11.0, "Endothelial": 10.0,
        "Microglia": 5.0, "OPC": 3.0,
    },
    "midbrain": {
        "Thal exc": 30.0, "Interneuron": 17.0, "Oligodendrocyte": 22.0, "Astrocyte": 14.0, "Endothelial": 9.0,
        "Microglia": 5.0, "OPC": 3.0,
    },
    "hindbrain": {
        "Thal exc": 28.0, "Interneuron": 15.0, "Oligodendrocyte": 28.0, "Astrocyte": 13.0, "Endothelial": 9.0,
        "Microglia": 4.0, "OPC": 3.0,
    },
    "SN/VTA": {
        "Dopaminergic": 32.0, "Interneuron": 14.0, "Oligodendrocyte": 22.0, "Astrocyte": 13.0, "Endothelial": 10.0,
        "Microglia": 6.0, "OPC": 3.0,
    },
    "hippocampal molecular": {
        "Astrocyte": 30.0, "Oligodendrocyte": 13.0, "Endothelial": 15.0, "Microglia": 9.0, "Interneuron": 18.0,
        "OPC": 8.0, "CA pyr": 7.0,
    },
    "CA": {
        "CA pyr": 80.0, "Interneuron": 6.0, "Astrocyte": 5.0, "Endothelial": 5.0, "Microglia": 2.0,
        "Oligodendrocyte": 2.0,
    },
    "dentate gyrus": {
        "DG gran": 85.0, "Interneuron": 4.0, "Astrocyte": 4.0, "Endothelial": 4.0, "Microglia": 2.0, "OPC": 1.0,
    },
    "OB glomerular": {
        "Interneuron": 42.0, "Dopaminergic": 9.0, "Astrocyte": 20.0, "Endothelial": 14.0, "Microglia": 6.0,
        "Oligodendrocyte": 5.0, "OPC": 4.0,
    },
    "OB plexiform": {
        "Astrocyte": 28.0, "Interneuron": 26.0, "L23 exc": 12.0, "Endothelial": 15.0, "Microglia": 9.0,
        "OPC": 10.0,
    },
    "OB granule": {
        "Interneuron": 78.0, "Astrocyte": 8.0, "Oligodendrocyte": 6.0, "Endothelial": 5.0, "Microglia": 3.0,
    },
    "CB molecular": {
        "Interneuron": 40.0, "Astrocyte": 22.0, "Endothelial": 18.0, "Microglia": 9.0, "OPC": 6.0,
        "Oligodendrocyte": 5.0,
    },
    "Purkinje layer": {
        "Purkinje": 70.0, "Astrocyte": 25.0, "Interneuron": 5.0,
    },
    "CB granule": {
        "CB granule": 93.0, "Interneuron": 2.0, "Astrocyte": 2.0, "Endothelial": 2.0, "Oligodendrocyte": 1.0,
    },
}  # fmt: skip


def shares() -> NDArray[np.float64]:
    """(region, type), rows add to 1; regions without cells are 0."""
    table = np.zeros((len(REGIONS), len(TYPES)))
    for row, region in enumerate(REGIONS):
        for name, percent in _MAKE_UP.get(region.name, {}).items():
            table[row, INDEX[name]] = percent
    total = table.sum(axis=1, keepdims=True)
    return table / np.where(total > 0, total, 1.0)


def column(field: str) -> NDArray[np.float64]:
    """One property of all types, in the order of `TYPES`."""
    return np.array([getattr(kind, field) for kind in TYPES], dtype=np.float64)
