"""The cells of a window of the atlas: where they are, of which type, how big, how bright, how much RNA they hold."""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cache

import numpy as np
from numpy.typing import NDArray

from tera_mind.errors import InputError
from tera_mind.simulate import celltypes, keys, regions
from tera_mind.simulate.anatomy import Anatomy
from tera_mind.simulate.placing import BIN_UM, DEPENDENCE_UM, SOFTNESS, offered_um2, survivors
from tera_mind.simulate.vessels import CAPILLARY_SHARE, Vessels, vessels

Reals = NDArray[np.float64]

#: bins either way of the atlas' origin: 24 bits number a bin, and so a cell
_HALF_BINS = 2048
#: thickness of a section; a cell's centre lies somewhere in it
SECTION_UM = 10.0
#: no nucleus or soma reaches further from its centre
LARGEST_CELL_UM = 26.0
_ON_CAPILLARY = 0.55  # share of endothelial cells among those that lie on one
MAX_SPOTS = 5


@dataclass(frozen=True)
class Brainwork:
    """What fixes the cells of a brain besides its anatomy: density, spread of brightness, library size and noise."""

    seed: int
    density: float = 1.0
    library_sigma: float = 0.35
    dapi_sigma: float = 0.26
    polyt_sigma: float = 0.15


@dataclass(frozen=True)
class Cells:
    """Cells as columns of one length, ordered by `cell` (their number, which depends on section and place only)."""

    cell: NDArray[np.int64]
    y_um: Reals
    x_um: Reals
    region: NDArray[np.int8]
    kind: NDArray[np.int8]
    #: relative RNA content; it makes nucleus and soma larger and PolyT brighter
    library: Reals
    major_um: Reals
    minor_um: Reals
    #: direction of the long axis
    cos: Reals
    sin: Reals
    soma_um: Reals
    dapi: Reals
    polyt: Reals
    #: position of the centre in the section's thickness, 0 to 10 um
    depth_um: Reals
    #: whether the cell would pass quality control: atlases count these alone
    passes_qc: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.cell)

    def take(self, chosen: NDArray[np.bool_] | NDArray[np.intp]) -> Cells:
        """Some of the cells."""
        return Cells(**{field.name: getattr(self, field.name)[chosen] for field in fields(self)})


def cell_numbers(row: NDArray[np.int64], column: NDArray[np.int64]) -> NDArray[np.int64]:
    """Number of a cell from its bin, 1 to 2^24."""
    if len(row) and max(np.abs(row).max(), np.abs(column).max()) >= _HALF_BINS:
        raise InputError(
            f"a brain reaches at most {_HALF_BINS * BIN_UM / 1000:.1f} mm from its middle; choose a smaller window"
        )
    return ((row + _HALF_BINS) << 12) + (column + _HALF_BINS) + 1


def _bins(number: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    return ((number - 1) >> 12) - _HALF_BINS, ((number - 1) & 4095) - _HALF_BINS


@cache
def _tables(density: float) -> tuple[Reals, Reals, Reals, Reals]:
    """Of every region: probability that a bin offers a candidate, core in um, and cumulative shares of types on and
    off capillaries (region, type).
    """
    core = regions.column("core_um")
    offered = np.minimum(offered_um2(density * regions.nuclei_um2(), core) * BIN_UM**2, 1.0)
    share = celltypes.shares()
    wanted = share[:, celltypes.ENDOTHELIAL]
    rest = share.copy()
    rest[:, celltypes.ENDOTHELIAL] = 0
    total = rest.sum(axis=1)
    rest /= np.where(total > 0, total, 1.0)[:, None]
    mixed = []
    on = np.where(wanted > 0, np.minimum(_ON_CAPILLARY, wanted / CAPILLARY_SHARE), 0.0)
    for endothelial in (on, (wanted - CAPILLARY_SHARE * on) / (1 - CAPILLARY_SHARE)):
        part = rest * (1 - endothelial)[:, None]
        part[:, celltypes.ENDOTHELIAL] = endothelial
        mixed.append(np.cumsum(part, axis=1))
    return offered, core, mixed[0], mixed[1]


def make_cells(
    work: Brainwork,
    anatomy: Anatomy,
    section: int,
    z_um: float,
    window_um: tuple[float, float, float, float],
) -> Cells:
    """Cells whose centres lie in a window (y0, y1, x0, x1) of the atlas, in um."""
    y0, y1, x0, x1 = window_um
    edges = [
        int(np.floor(edge / BIN_UM))
        for edge in (y0 - DEPENDENCE_UM, y1 + DEPENDENCE_UM, x0 - DEPENDENCE_UM, x1 + DEPENDENCE_UM)
    ]
    lattice = np.meshgrid(np.arange(edges[0], edges[1] + 1), np.arange(edges[2], edges[3] + 1), indexing="ij")
    row, column = (part.ravel() for part in lattice)
    offered, core, _, _ = _tables(work.density)
    first, second, third, _ = keys.words(work.seed, keys.PLACE, section, row, column)
    chance = keys.uniform(first)
    possible = chance < offered.max()
    row, column, chance, second, third = (part[possible] for part in (row, column, chance, second, third))
    down, across = keys.halves(second)
    y_um = (row + (down + 0.5) / keys.LEVELS) * BIN_UM
    x_um = (column + (across + 0.5) / keys.LEVELS) * BIN_UM
    region, depth_um = anatomy.locate(y_um, x_um, z_um)
    chosen = chance < offered[region] * _rows(region, depth_um)
    row, column, y_um, x_um, region, third = (part[chosen] for part in (row, column, y_um, x_um, region, third))
    ducts = vessels(work.seed, y_um, x_um, z_um)
    soft, mark = keys.halves(third)
    reach = core[region] * (SOFTNESS[0] + (SOFTNESS[1] - SOFTNESS[0]) * ((soft + 0.5) / keys.LEVELS))
    number = cell_numbers(row, column)
    # equal marks are told apart by the number; the single layer of Purkinje cells comes first
    order = mark.astype(np.float64) + number * 2.0**-26 - np.where(region == regions.INDEX["Purkinje layer"], 1e6, 0.0)
    order += np.where(ducts.lumen, 1e6, 0.0)
    alive = survivors(y_um, x_um, reach, order) & ~ducts.lumen
    alive &= (y_um >= y0) & (y_um < y1) & (x_um >= x0) & (x_um < x1)
    index = np.nonzero(alive)[0]
    index = index[np.argsort(number[index], kind="stable")]
    ducts = Vessels(
        ducts.capillary[index], ducts.lumen[index], ducts.wall[index], (ducts.along[0][index], ducts.along[1][index])
    )
    return _shape(work, section, number[index], y_um[index], x_um[index], region[index], ducts)


def _rows(region: NDArray[np.int8], depth_um: Reals) -> Reals:
    """In fibre tracts cells stand in rows along the fibres: twice as many on half of the depths, none between."""
    position = depth_um * (1.0 / 15.0)
    in_row = np.abs(position - np.floor(position) - 0.5) < 0.3
    return np.where(region == regions.FIBRES, np.where(in_row, 1.45, 0.3), 1.0)


def _shape(
    work: Brainwork,
    section: int,
    number: NDArray[np.int64],
    y_um: Reals,
    x_um: Reals,
    region: NDArray[np.int8],
    ducts: Vessels,
) -> Cells:
    """Types and shapes of placed cells; every draw is keyed by the cell's bin."""
    row, column = _bins(number)
    w0, w1, w2, w3 = (keys.halves(word) for word in keys.words(work.seed, keys.SHAPE, section, row, column))
    v0, _, _, _ = keys.words(work.seed, keys.SHAPE, section, row, column, 1)
    _, _, on, off = _tables(work.density)
    pick = keys.uniform(v0)[:, None]
    below = np.where(ducts.capillary[:, None], on[region], off[region])
    kind = np.minimum((pick > below).sum(axis=1), len(celltypes.TYPES) - 1)
    kind = np.where(ducts.wall, np.where(pick[:, 0] < 0.7, celltypes.ENDOTHELIAL, celltypes.VLMC), kind)

    def of(name: str) -> Reals:
        return celltypes.column(name)[kind]

    sigma = work.library_sigma
    library = keys.quantiles("lognormal", -0.5 * sigma**2, sigma)[w0[0]]
    size = (
        keys.quantiles("lognormal", -0.1 * sigma**2, 0.2 * sigma)[w0[0]] * keys.quantiles("lognormal", 0.0, 0.06)[w0[1]]
    )
    ratio = np.clip(of("axis_ratio") + keys.quantiles("normal", 0.0, 0.05)[w1[0]], 0.3, 1.0)
    cos, sin = keys.quantiles("cosine")[w1[1]], keys.quantiles("sine")[w1[1]]
    vessel = kind == celltypes.ENDOTHELIAL
    cos, sin = np.where(vessel, ducts.along[0], cos), np.where(vessel, ducts.along[1], sin)
    radius = of("nucleus_um") * size
    root = np.sqrt(ratio)
    bright = keys.quantiles("lognormal", -0.5 * sigma**2 * 0.25, 0.5 * sigma)[w0[0]]
    return Cells(
        cell=number,
        y_um=y_um,
        x_um=x_um,
        region=region,
        kind=kind.astype(np.int8),
        library=library,
        major_um=radius / root,
        minor_um=radius * root,
        cos=cos,
        sin=sin,
        soma_um=np.maximum(of("soma_um") * size, radius * 1.1),
        dapi=of("dapi") * keys.quantiles("lognormal", 0.0, work.dapi_sigma)[w2[0]],
        polyt=of("polyt") * bright * keys.quantiles("lognormal", 0.0, work.polyt_sigma)[w2[1]],
        depth_um=np.asarray((w3[0] + 0.5) * (SECTION_UM / keys.LEVELS), np.float64),
        passes_qc=w3[1] < keys.LEVELS / regions.NUCLEI_A_CELL,
    )


def spots(seed: int, section: int, number: NDArray[np.int64]) -> tuple[Reals, Reals]:
    """Places of up to `MAX_SPOTS` chromocentres in nuclei of half axes 1: (cell, spot) along and across."""
    row, column = _bins(number)
    drawn = [
        *keys.words(seed, keys.SHAPE, section, row, column, 2),
        keys.words(seed, keys.SHAPE, section, row, column, 3)[0],
    ]
    along, across = [], []
    for word in drawn[:MAX_SPOTS]:
        far, turn = keys.halves(word)
        radius = 0.68 * np.sqrt((far + 0.5) / keys.LEVELS)
        along.append(radius * keys.quantiles("cosine")[turn])
        across.append(radius * keys.quantiles("sine")[turn])
    return np.stack(along, axis=1), np.stack(across, axis=1)
