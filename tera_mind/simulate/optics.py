"""What a microscope sees of the cells: DAPI and PolyT, 16 bit, by projection, blur, halo, shading and noise."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from tera_mind.simulate.anatomy import Anatomy
from tera_mind.simulate.cells import TYPES

_TEXTURE, _NOISE = 7, 8  # purposes of random keys
PSF_UM, HALO_UM, HALO_SHARE, DEFOCUS_UM = 0.25, 2.5, 0.25, 1.0
#: grey levels of a nucleus of brightness 1 and of the background, 16 bit
NUCLEUS_LEVEL, TISSUE_LEVEL, CAMERA_LEVEL = 6000.0, 900.0, 500.0
Plane = NDArray[np.float64]


@dataclass(frozen=True)
class Rendered:
    """Images uint16 (y, x) of both stains, and which cell's nucleus each pixel belongs to (0: none)."""

    dapi: NDArray[np.uint16]
    polyt: NDArray[np.uint16]
    labels: NDArray[np.int32]


def _pixels(anatomy: Anatomy, pixel_um: float) -> tuple[int, int]:
    return round(anatomy.height_um / pixel_um), round(anatomy.width_um / pixel_um)


def render(cells: pd.DataFrame, anatomy: Anatomy, section: int, z_um: float, pixel_um: float) -> Rendered:
    """Images of a section at `pixel_um`; pixel (0, 0) covers [0, pixel_um) um."""
    height, width = _pixels(anatomy, pixel_um)
    random = np.random.default_rng([anatomy.seed, _TEXTURE, section])
    largest_um = max(cells["soma_um"].max() * 1.3, cells["major_um"].max()) if len(cells) else 0.0
    side = max(512, 2 * int(np.ceil(largest_um / pixel_um)) + 4)  # every cell's window must fit
    grain = gaussian_filter(random.standard_normal((side, side)), max(0.3, 0.45 / pixel_um), mode="wrap")
    grain /= grain.std()
    sharp, soft = np.zeros((2, height, width)), np.zeros((2, height, width))
    labels, depth = np.zeros((height, width), np.int32), np.zeros((height, width))
    for cell in cells.to_dict("records"):
        _draw(cell, sharp if cell["focus"] > 0.2 else soft, labels, depth, grain, pixel_um, random)
    tissue = _tissue(anatomy, z_um, pixel_um, height, width)
    cloud = gaussian_filter(random.standard_normal((height, width)), 1.5 / pixel_um)
    neuropil = 1 + 0.10 * cloud / cloud.std()
    stains = sharp + gaussian_filter(soft, (0, DEFOCUS_UM / pixel_um, DEFOCUS_UM / pixel_um))
    images = []
    for stain, share in ((stains[0], 1.0), (stains[1], 2.2)):
        plane = gaussian_filter(stain, PSF_UM / pixel_um) + HALO_SHARE * gaussian_filter(stain, HALO_UM / pixel_um)
        light = NUCLEUS_LEVEL * plane + TISSUE_LEVEL * share * tissue * neuropil
        images.append(_expose(light, random, anatomy.seed, section))
    return Rendered(images[0], images[1], labels)


def _tissue(anatomy: Anatomy, z_um: float, pixel_um: float, height: int, width: int) -> Plane:
    y = (np.arange(height, dtype=np.float64) + 0.5) * pixel_um
    x = (np.arange(width, dtype=np.float64) + 0.5) * pixel_um
    inside = anatomy.region(y[:, None], x[None, :], z_um) > 0
    return gaussian_filter(inside.astype(float), 1.0 / pixel_um)


def _draw(
    cell: dict[Hashable, Any],
    stains: NDArray[np.float64],
    labels: NDArray[np.int32],
    depth: Plane,
    grain: Plane,
    pixel_um: float,
    random: np.random.Generator,
) -> None:
    """Add one cell: nucleus as the projection (dome) of an ellipsoid with chromatin, soma as a wider, flatter dome."""
    kind, turn = TYPES[cell["kind"]], cell["angle"]
    y_um, x_um, major, minor, soma = (cell[name] for name in ("y_um", "x_um", "major_um", "minor_um", "soma_um"))
    reach = int(np.ceil(max(soma * 1.3, major) / pixel_um)) + 1
    row, column = int(y_um / pixel_um), int(x_um / pixel_um)
    height, width = labels.shape
    y0, y1 = max(row - reach, 0), min(row + reach + 1, height)
    x0, x1 = max(column - reach, 0), min(column + reach + 1, width)
    if y0 >= y1 or x0 >= x1:
        return
    dy = (np.arange(y0, y1) + 0.5)[:, None] * pixel_um - y_um
    dx = (np.arange(x0, x1) + 0.5)[None, :] * pixel_um - x_um
    u, v = (dx * np.cos(turn) + dy * np.sin(turn)) / major, (-dx * np.sin(turn) + dy * np.cos(turn)) / minor
    bend = 0.25 if kind.axis_ratio < 0.5 else 0.0
    radius2 = u**2 + (v - bend * (u**2 - 0.4) * major / minor * 0.5) ** 2
    dome = np.sqrt(np.clip(1 - radius2, 0, None))
    top, left = random.integers(0, len(grain) - (y1 - y0)), random.integers(0, len(grain) - (x1 - x0))
    chromatin = 1 + kind.texture * grain[top : top + y1 - y0, left : left + x1 - x0]
    for _ in range(kind.chromocentres):
        place, at = 0.65 * np.sqrt(random.random()), random.uniform(0, 2 * np.pi)
        spot = ((u - place * np.cos(at)) * major) ** 2 + ((v - place * np.sin(at)) * minor) ** 2
        chromatin = chromatin + 0.7 * np.exp(-spot / (2 * 0.45**2))
    window = (slice(y0, y1), slice(x0, x1))
    stains[0][window] += cell["dapi"] * dome**0.7 * np.clip(chromatin, 0.2, None)
    flat = 1 / (1 + np.exp(((dx**2 + dy**2) ** 0.5 - soma) / 0.5))
    stains[1][window] += 0.8 * cell["polyt"] * flat * (1 - 0.45 * (dome > 0) * dome**0.3)
    over = (radius2 < 1) & (dome > depth[window])
    labels[window][over] = cell["cell"]
    depth[window] = np.maximum(depth[window], dome)


def _expose(light: Plane, random: np.random.Generator, seed: int, section: int) -> NDArray[np.uint16]:
    """Uneven illumination (5 %), camera offset, shot noise and read noise: sd about 120 dark, 400 bright."""
    height, width = light.shape
    shade = np.random.default_rng([seed, _NOISE, section]).uniform(0, 2 * np.pi, 2)
    y, x = np.arange(height)[:, None] / height, np.arange(width)[None, :] / width
    light = light * (1 + 0.05 * np.sin(2 * np.pi * y + shade[0]) * np.sin(2 * np.pi * x + shade[1])) + CAMERA_LEVEL
    noise = random.standard_normal(light.shape) * np.sqrt(80.0**2 + 20.0 * light)
    noisy: NDArray[np.uint16] = np.clip(light + noise, 0, 65535).astype(np.uint16)
    return noisy
