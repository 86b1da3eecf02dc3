"""Cells drawn as light: nuclei as projections of ellipsoids with chromatin, somata as flat discs in PolyT.

Cells of a similar size are computed together as a stack of squares ("stamps") and added one by one in an order that
depends on the cells alone, so that a pixel gets the same sum, bit by bit, in every window.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from tera_mind.geometry import Box
from tera_mind.simulate import celltypes, keys
from tera_mind.simulate.cells import MAX_SPOTS, Cells, spots

Plane = NDArray[np.float32]

_GRAIN_PX, _GRAIN_UM = 512, 0.45
_TABLE = 4096
_SOMA_EDGE_UM = 0.9
#: unevenness of PolyT in the soma, and how much darker the nucleus is
_NISSL, _DIP = 0.12, 0.26
#: distance from the focal plane up to which a cell is sharp, and over which it fades into its blurred copy
_SHARP_UM, _FADE_UM = 2.1, 3.6
#: of the light of a cell in the focal plane, the share that is sharp: the rest comes from above and below it
_FOCUSED = 0.5
_CHUNK = 1_500_000


@dataclass(frozen=True)
class Light:
    """Light of a window's cells, before the optics: DAPI and PolyT, what is in focus, and all of it; (stain, y, x).

    `labels`: which cell's nucleus lies on top at every pixel (0: none).
    """

    sharp: Plane
    total: Plane
    labels: NDArray[np.uint32]


@cache
def _profile(power: float) -> Plane:
    """(1 - r^2)^(power / 2) by r^2, 0 from r = 1 on: the projection of an ellipsoid, flattened by the power."""
    squared = (np.arange(_TABLE + 1) + 0.5) / _TABLE
    return (np.clip(1 - squared, 0, None) ** (power / 2) * (squared < 1)).astype(np.float32)


@lru_cache(maxsize=8)
def _grain(pixel_um: float) -> Plane:
    """Chromatin's grain: a square of noise of unit variance that repeats, flattened."""
    noise = np.random.default_rng([0, keys.PIXELS]).standard_normal((_GRAIN_PX, _GRAIN_PX))
    smooth = gaussian_filter(noise, max(0.3, _GRAIN_UM / pixel_um), mode="wrap")
    return np.asarray(smooth / smooth.std(), np.float32).ravel()


def draw(cells: Cells, seed: int, section: int, pixel_um: float, box: Box, focus_um: float) -> Light:
    """Light of cells (positions in um of the section) in a window of its pixels; pixel i covers [i, i + 1)."""
    shape = (box.height, box.width)
    light = Light(np.zeros((2, *shape), np.float32), np.zeros((2, *shape), np.float32), np.zeros(shape, np.uint32))
    height = np.zeros(shape, np.float32)
    off = np.abs(cells.depth_um - focus_um)
    share = (_FOCUSED * np.clip((_SHARP_UM + _FADE_UM - off) / _FADE_UM, 0.0, 1.0)).astype(np.float32)
    for group, half in _groups(1.35 * cells.soma_um + 4 * _SOMA_EDGE_UM, pixel_um):
        members = cells.take(group)
        disc = _somata(members, half, pixel_um)
        for index, top, left in _corners(members, half, pixel_um):
            _add(light, 1, disc[index], share[group[index]], top - box.y0, left - box.x0)
    for group, half in _groups(cells.major_um, pixel_um):
        members = cells.take(group)
        glow, dip, dome = _nuclei(members, seed, section, half, pixel_um)
        for index, top, left in _corners(members, half, pixel_um):
            y, x = top - box.y0, left - box.x0
            _add(light, 0, glow[index], share[group[index]], y, x)
            _add(light, 1, dip[index], share[group[index]], y, x)
            _label(light.labels, height, dome[index], int(members.cell[index]), y, x)
    return light


def _groups(reach_um: NDArray[np.float64], pixel_um: float) -> list[tuple[NDArray[np.intp], int]]:
    """Cells by the half side of their stamp in pixels, in steps of about a fifth, in chunks that fit in memory.

    The half side depends on the cell alone, and cells keep their order within a group.
    """
    wanted = np.ceil(reach_um / pixel_um).astype(np.int64) + 1
    found = []
    low, high = 0, 4
    while low < (int(wanted.max()) if len(wanted) else 0):
        members = np.nonzero((wanted > low) & (wanted <= high))[0]
        step = max(1, _CHUNK // (2 * high + 1) ** 2)
        found += [(members[first : first + step], high) for first in range(0, len(members), step)]
        low, high = high, high + max(2, high // 5)
    return found


def _corners(cells: Cells, half: int, pixel_um: float) -> list[tuple[int, int, int]]:
    row = np.floor(cells.y_um * (1.0 / pixel_um)).astype(np.int64) - half
    column = np.floor(cells.x_um * (1.0 / pixel_um)).astype(np.int64) - half
    return list(zip(range(len(cells)), row.tolist(), column.tolist(), strict=True))


def _offsets(cells: Cells, half: int, pixel_um: float) -> tuple[Plane, Plane]:
    """Distances in um of a stamp's pixel centres from the cell's centre: (cell, y, 1) and (cell, 1, x)."""
    steps = np.arange(-half, half + 1) + 0.5
    parts = []
    for centre in (cells.y_um, cells.x_um):
        first = np.floor(centre * (1.0 / pixel_um))
        parts.append(((first[:, None] + steps[None, :]) * pixel_um - centre[:, None]).astype(np.float32))
    return parts[0][:, :, None], parts[1][:, None, :]


def _each(values: NDArray[np.float64]) -> Plane:
    return values.astype(np.float32)[:, None, None]


def _somata(cells: Cells, half: int, pixel_um: float) -> Plane:
    dy, dx = _offsets(cells, half, pixel_um)
    cos, sin = _each(cells.cos), _each(cells.sin)
    # somata are a little longer than wide, and neurons' taper towards their apical dendrite
    long = np.where(celltypes.column("neuron")[cells.kind] > 0, 1.12, 1.0)
    along, across = (dx * cos + dy * sin) * _each(1.0 / long), (dy * cos - dx * sin) * _each(long)
    across = across * (1 + along * _each(0.25 * (long - 1.0) / 0.12 / cells.soma_um))
    distance = np.sqrt(along * along + across * across)
    edge = (distance - _each(cells.soma_um)) * np.float32(1 / _SOMA_EDGE_UM)
    disc = keys.fast_sigmoid(edge) * _each(0.8 * cells.polyt)
    disc *= 1 + np.float32(_NISSL) * _grain_of(cells, half, pixel_um)
    return np.asarray(disc, np.float32)


def _nuclei(cells: Cells, seed: int, section: int, half: int, pixel_um: float) -> tuple[Plane, Plane, Plane]:
    """Stacks of stamps: DAPI, what the nucleus takes away from PolyT (negative), and how high it stands."""
    dy, dx = _offsets(cells, half, pixel_um)
    cos, sin = _each(cells.cos), _each(cells.sin)
    along, across = dx * cos + dy * sin, dy * cos - dx * sin
    u, v = along * _each(1.0 / cells.major_um), across * _each(1.0 / cells.minor_um)
    u2 = u * u
    # long nuclei are bent, like the vessels they line
    bend = np.where(celltypes.column("axis_ratio")[cells.kind] < 0.5, 0.125 * cells.major_um / cells.minor_um, 0.0)
    v = v - _each(bend) * (u2 - np.float32(0.4))
    index = np.minimum((u2 + v * v) * np.float32(_TABLE), np.float32(_TABLE)).astype(np.int32)
    glow = _profile(1.25)[index] * _each(cells.dapi)
    glow *= _chromatin(cells, seed, section, half, (along, across), pixel_um)
    dip = _profile(0.6)[index] * _each(-_DIP * cells.polyt)
    return glow, dip, _profile(1.0)[index]


def _grain_of(cells: Cells, half: int, pixel_um: float) -> Plane:
    """A piece of grain for each cell, from a place that its number sets."""
    side = np.arange(2 * half + 1, dtype=np.int64)
    mixed = cells.cell * 40503
    rows = ((mixed & 511)[:, None] + side) % _GRAIN_PX * _GRAIN_PX
    columns = ((mixed >> 9 & 511)[:, None] + side) % _GRAIN_PX
    return _grain(pixel_um)[(rows[:, :, None] + columns[:, None, :]).astype(np.int32)]


def _chromatin(cells: Cells, seed: int, section: int, half: int, axes: tuple[Plane, Plane], pixel_um: float) -> Plane:
    along, across = axes
    chromatin = np.asarray(
        1 + _grain_of(cells, half, pixel_um) * _each(celltypes.column("texture")[cells.kind]), np.float32
    )
    place_u, place_v = spots(seed, section, cells.cell)
    count = celltypes.column("spots")[cells.kind]
    width = 1.0 / (2 * celltypes.column("spot_um")[cells.kind] ** 2)
    strength = celltypes.column("spot")[cells.kind]
    for spot in range(MAX_SPOTS):
        some = np.nonzero(count > spot)[0]
        if not len(some):
            break
        du = along[some] - _each(place_u[some, spot] * cells.major_um[some])
        dv = across[some] - _each(place_v[some, spot] * cells.minor_um[some])
        chromatin[some] += keys.fast_exp((du * du + dv * dv) * _each(width[some])) * _each(strength[some])
    return np.maximum(chromatin, np.float32(0.2))


def _clip(shape: tuple[int, ...], side: int, y: int, x: int) -> tuple[slice, slice, slice, slice] | None:
    y0, y1, x0, x1 = max(y, 0), min(y + side, shape[0]), max(x, 0), min(x + side, shape[1])
    if y0 >= y1 or x0 >= x1:
        return None
    return slice(y0, y1), slice(x0, x1), slice(y0 - y, y1 - y), slice(x0 - x, x1 - x)


def _add(light: Light, stain: int, stamp: Plane, share: np.float32, y: int, x: int) -> None:
    part = _clip(light.labels.shape, len(stamp), y, x)
    if part is None:
        return
    target, source = (stain, *part[:2]), stamp[part[2:]]
    light.total[target] += source
    if share > 0:
        light.sharp[target] += source * share


def _label(labels: NDArray[np.uint32], height: Plane, dome: Plane, cell: int, y: int, x: int) -> None:
    part = _clip(labels.shape, len(dome), y, x)
    if part is None:
        return
    own, top = dome[part[2:]], height[part[:2]]
    over = own > top
    labels[part[:2]][over] = cell
    np.maximum(top, own, out=top)
