"""Cell types, and the cells of a section: where they are, how big, how bright, how much RNA."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from tera_mind.simulate.anatomy import CORE_UM, DENSITY_MM2, REGIONS, Anatomy

_PLACE, _SHAPE = 2, 3  # purposes of random keys


@dataclass(frozen=True)
class CellType:
    """Nucleus, soma and chromatin of a type; sizes in um, brightness relative to a pale neuron."""

    name: str
    nucleus_um: float
    axis_ratio: float
    dapi: float
    #: contrast of chromatin texture, and number of bright chromocentres
    texture: float
    chromocentres: int
    soma_um: float
    polyt: float
    neuron: bool


TYPES = (
    CellType("L23 exc", 4.8, 0.90, 0.80, 0.12, 5, 7.5, 1.0, neuron=True),
    CellType("L56 exc", 5.4, 0.88, 0.75, 0.12, 5, 9.0, 1.1, neuron=True),
    CellType("DG gran", 3.6, 0.90, 1.25, 0.20, 4, 4.5, 0.6, neuron=True),
    CellType("Interneuron", 4.9, 0.90, 0.80, 0.15, 3, 7.5, 1.0, neuron=True),
    CellType("Astrocyte", 4.2, 0.80, 0.85, 0.06, 2, 5.0, 0.35, neuron=False),
    CellType("Oligodendrocyte", 3.2, 0.93, 1.30, 0.10, 1, 4.0, 0.40, neuron=False),
    CellType("Microglia", 3.0, 0.55, 1.20, 0.25, 2, 3.8, 0.30, neuron=False),
    CellType("Endothelial", 2.9, 0.38, 1.25, 0.08, 0, 3.5, 0.25, neuron=False),
)
NAMES = tuple(kind.name for kind in TYPES)

#: share of every type in every region, in the order of `TYPES`
MAKE_UP = {
    "layer 1": (0.02, 0.0, 0.0, 0.12, 0.40, 0.15, 0.12, 0.19),
    "layer 2/3": (0.62, 0.0, 0.0, 0.09, 0.10, 0.05, 0.05, 0.09),
    "layer 5/6": (0.02, 0.56, 0.0, 0.09, 0.09, 0.10, 0.05, 0.09),
    "fibre tract": (0.0, 0.0, 0.0, 0.01, 0.12, 0.72, 0.06, 0.09),
    "molecular": (0.0, 0.03, 0.05, 0.12, 0.40, 0.15, 0.10, 0.15),
    "granule sheet": (0.0, 0.0, 0.87, 0.04, 0.04, 0.02, 0.01, 0.02),
}


def place(anatomy: Anatomy, section: int, z_um: float) -> tuple[NDArray[np.float64], NDArray[np.int8]]:
    """Positions (n, 2) = (y, x) in um with their regions: a Matern hard-core process of type II.

    Of points closer than the core distance only the one with the lowest mark stays; the intensity before thinning is
    chosen so that the wanted density remains.
    """
    random = np.random.default_rng([anatomy.seed, _PLACE, section])
    core = np.array([CORE_UM[name] for name in REGIONS])
    wanted = np.array([DENSITY_MM2[name] for name in REGIONS]) * 1e-6
    disc = np.pi * core**2
    before = -np.log(1 - np.minimum(wanted * disc, 0.95)) / disc
    highest = before.max()
    count = random.poisson(highest * anatomy.height_um * anatomy.width_um)
    points = random.uniform((0, 0), (anatomy.height_um, anatomy.width_um), (count, 2))
    region = anatomy.region(points[:, 0], points[:, 1], z_um)
    kept = random.random(count) < before[region] / highest
    points, region = points[kept], region[kept]
    mark = random.random(len(points))
    pairs = cKDTree(points).query_pairs(core.max(), output_type="ndarray")
    near = np.linalg.norm(points[pairs[:, 0]] - points[pairs[:, 1]], axis=1)
    close = pairs[near < np.minimum(core[region[pairs[:, 0]]], core[region[pairs[:, 1]]])]
    losers = np.where(mark[close[:, 0]] > mark[close[:, 1]], close[:, 0], close[:, 1])
    alive = np.ones(len(points), bool)
    alive[losers] = False
    return points[alive], region[alive]


def make_cells(anatomy: Anatomy, section: int, z_um: float) -> pd.DataFrame:
    """Cells of a section, the truth: position, type, region, nucleus, soma, brightness and library size.

    The library size (relative RNA content, lognormal) makes nucleus and soma larger and PolyT brighter, so that genes
    tell about morphology beyond the type.
    """
    points, region = place(anatomy, section, z_um)
    random = np.random.default_rng([anatomy.seed, _SHAPE, section])
    n = len(points)
    share = np.array([MAKE_UP.get(name, (1.0,) + (0.0,) * (len(TYPES) - 1)) for name in REGIONS])
    share /= share.sum(axis=1, keepdims=True)
    kind = (random.random((n, 1)) > share.cumsum(axis=1)[region]).sum(axis=1).clip(max=len(TYPES) - 1)
    library = random.lognormal(0.0, 0.35, n)
    size = library**0.2 * random.lognormal(0.0, 0.06, n)

    def of(field: str) -> NDArray[np.float64]:
        values: NDArray[np.float64] = np.array([getattr(t, field) for t in TYPES], dtype=float)[kind]
        return values

    ratio = np.clip(of("axis_ratio") + random.normal(0, 0.05, n), 0.3, 1.0)
    mean_radius = of("nucleus_um") * size
    return pd.DataFrame(
        {
            "cell": np.arange(1, n + 1),
            "y_um": points[:, 0],
            "x_um": points[:, 1],
            "type": np.array(NAMES)[kind],
            "kind": kind,
            "region": np.array(REGIONS)[region],
            "major_um": mean_radius / np.sqrt(ratio),
            "minor_um": mean_radius * np.sqrt(ratio),
            "angle": random.uniform(0, np.pi, n),
            "soma_um": np.maximum(of("soma_um") * size, mean_radius * 1.1),
            "dapi": of("dapi") * random.lognormal(0.0, 0.25, n),
            "polyt": of("polyt") * library**0.5 * random.lognormal(0.0, 0.15, n),
            "library": library,
            "focus": random.random(n),
        }
    )
