"""What the microscope makes of light: point spread, halo, out-of-focus blur, illumination, shot noise, 8 or 16 bit.

Filters are finite sums in a fixed order and coarse grids are aligned to the section's pixels, so a pixel has the same
value in every window that holds it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from tera_mind.geometry import Box
from tera_mind.simulate import keys
from tera_mind.simulate.stamps import Light, Plane

PSF_UM, HALO_UM, HALO_SHARE, DEFOCUS_UM = 0.25, 2.5, 0.25, 1.4
#: 16-bit grey levels of a nucleus of brightness 1, of the tissue between cells, and of the camera without light
NUCLEUS_LEVEL, TISSUE_LEVEL, CAMERA_LEVEL = 6000.0, (820.0, 1900.0), 500.0
#: shot noise: grey levels an electron; read noise in grey levels
GAIN, READ_NOISE = 14.0, 40.0
#: one field of view of the microscope, and how much its middle is brighter and its rim darker
FIELD_UM, SHADE = 200.0, 0.05
#: 8-bit images: the camera's level, and grey levels for one of 16 bit, by stain
BYTE_FLOOR, BYTE_SCALE = 8.0, (0.0168, 0.0148)
_CLOUD_PX, _CLOUD_UM = (509, 383), 1.5
_CLOUD = (0.10, 0.12)


@dataclass(frozen=True)
class Staining:
    """How a brain took its stains, relative to the usual: light of cells and of the tissue between, and noise."""

    dapi: float = 1.0
    polyt: float = 1.0
    tissue: float = 1.0
    noise: float = 1.0


def coarse_step(pixel_um: float) -> int:
    """Pixels a side of the grid on which wide blurs are computed: a power of two, at most 0.5 um."""
    step = 1
    while 2 * step * pixel_um <= 0.5 and step < 16:
        step *= 2
    return step


def reach_px(pixel_um: float) -> int:
    """How far outside a window light is needed."""
    step = coarse_step(pixel_um)
    wide = step * (_radius(HALO_UM / (step * pixel_um)) + 3)
    return max(wide, _radius(PSF_UM / pixel_um))


def padded(box: Box, pixel_um: float) -> Box:
    """The window with what its blurs need around it, its edges on the coarse grid."""
    step, wide = coarse_step(pixel_um), box.grow(reach_px(pixel_um))
    return Box(wide.y0 // step * step, -(-wide.y1 // step) * step, wide.x0 // step * step, -(-wide.x1 // step) * step)


def photograph(
    light: Light,
    box: Box,
    tissue: tuple[Plane, Plane],
    *,
    pixel_um: float,
    staining: Staining,
    key: tuple[int, int, int],
    bits: int,
) -> NDArray[np.uint8] | NDArray[np.uint16]:
    """Images (stain, y, x) of a window from light on `padded(box)` and the tissue's brightness on the window.

    `key`: seed, section and plane, which the noise depends on besides the place. `bits`: 8 or 16.
    """
    outer = padded(box, pixel_um)
    inner = box.shift(-outer.y0, -outer.x0).slices()
    shade = _illumination(box, pixel_um)
    images: list[NDArray[Any]] = []
    for stain, (gain, between) in enumerate(zip((staining.dapi, staining.polyt), tissue, strict=True)):
        plane = _optics(light.sharp[stain], light.total[stain], pixel_um)[inner]
        plane *= np.float32(NUCLEUS_LEVEL * gain)
        cloud = _cloud(stain, box, pixel_um)
        cloud *= np.float32(_CLOUD[stain])
        cloud += np.float32(1)
        cloud *= between
        cloud *= np.float32(TISSUE_LEVEL[stain] * staining.tissue)
        plane += cloud
        plane *= shade
        images.append(_expose(plane, box, stain, staining.noise, key, bits))
    return np.asarray(np.stack(images))


def _optics(sharp: Plane, total: Plane, pixel_um: float) -> Plane:
    """Point spread of what is in focus, plus the blurred copy of what is not, plus the halo of both."""
    step = coarse_step(pixel_um)
    near, whole = _coarsen(sharp, step), _coarsen(total, step)
    wide = _blur(whole - near, DEFOCUS_UM / (step * pixel_um))
    wide += np.float32(HALO_SHARE) * _blur(whole, HALO_UM / (step * pixel_um))
    plane = _blur(sharp, PSF_UM / pixel_um)
    plane += _refine(wide, step)
    return plane


def _radius(sigma_px: float) -> int:
    return max(1, int(np.ceil(3.0 * sigma_px)))


@cache
def _weights(sigma_px: float) -> tuple[float, ...]:
    weights = np.exp(-0.5 * (np.arange(_radius(sigma_px) + 1) / sigma_px) ** 2)
    return tuple((weights / (weights[0] + 2 * weights[1:].sum())).tolist())


def _blur(plane: Plane, sigma_px: float) -> Plane:
    """Gaussian blur cut at 3 sigma; pixels nearer to the edge than that lack what lies outside."""
    weights = _weights(sigma_px)
    for axis in (0, 1):
        out = plane * np.float32(weights[0])
        for distance, weight in enumerate(weights[1:], start=1):
            if distance >= plane.shape[axis]:
                break
            low = (slice(None, -distance), slice(None))[:: 1 - 2 * axis]
            high = (slice(distance, None), slice(None))[:: 1 - 2 * axis]
            scaled = plane * np.float32(weight)
            out[low] += scaled[high]
            out[high] += scaled[low]
        plane = out
    return plane


def _coarsen(plane: Plane, step: int) -> Plane:
    while step > 1:
        plane = plane[::2] + plane[1::2]
        plane = (plane[:, ::2] + plane[:, 1::2]) * np.float32(0.25)
        step //= 2
    return plane


def _refine(plane: Plane, step: int) -> Plane:
    """Back to full size by bilinear interpolation between the centres of coarse pixels."""
    if step == 1:
        return plane
    for axis in (0, 1):
        position = (np.arange(plane.shape[axis] * step) + 0.5) / step - 0.5
        plane = _between(plane, position, axis)
    return plane


def _between(plane: Plane, position: NDArray[np.floating[Any]], axis: int) -> Plane:
    """Linear interpolation along an axis at positions in units of its pixels, clamped at the ends."""
    first = np.floor(position)
    share = (position - first).astype(np.float32)
    low = np.clip(first.astype(np.int64), 0, plane.shape[axis] - 1)
    high = np.clip(low + 1, 0, plane.shape[axis] - 1)
    a = plane.take(low, axis=axis)
    out: Plane = plane.take(high, axis=axis)
    out -= a
    out *= share[:, None] if axis == 0 else share[None, :]
    out += a
    return out


def spread_grid(grid: Plane, first: tuple[int, int], step_um: float, box: Box, pixel_um: float) -> Plane:
    """A coarse grid of the section (cell k is centred on (k + 0.5) step_um; `first`: the first k) on a window."""
    for axis, (start, stop) in enumerate(((box.y0, box.y1), (box.x0, box.x1))):
        position = (np.arange(start, stop) + 0.5) * (pixel_um / step_um) - 0.5 - first[axis]
        grid = _between(grid, position, axis)
    return grid


@lru_cache(maxsize=16)
def _cloud_tile(stain: int, size: int, pixel_um: float) -> Plane:
    noise = np.random.default_rng([1, stain, size]).standard_normal((size, size))
    smooth = gaussian_filter(noise, max(0.3, _CLOUD_UM / pixel_um), mode="wrap")
    return np.asarray(smooth / smooth.std() / np.sqrt(len(_CLOUD_PX)), np.float32)


def _cloud(stain: int, box: Box, pixel_um: float) -> Plane:
    """Unevenness of the tissue between cells, unit variance: repeating squares whose sizes have no common period."""
    total = np.zeros((box.height, box.width), np.float32)
    for size in _CLOUD_PX:
        rows, columns = np.arange(box.y0, box.y1) % size, np.arange(box.x0, box.x1) % size
        total += _cloud_tile(stain, size, pixel_um).take(rows, axis=0).take(columns, axis=1)
    return total


def _illumination(box: Box, pixel_um: float) -> Plane:
    """Every field of view is a little brighter in its middle."""
    curves = []
    for start, stop in ((box.y0, box.y1), (box.x0, box.x1)):
        place = (np.arange(start, stop) + 0.5) * (pixel_um / FIELD_UM)
        place = 2.0 * (place - np.floor(place)) - 1.0
        curves.append((1.0 - place * place).astype(np.float32))
    out: Plane = curves[0][:, None] * curves[1][None, :]
    out *= np.float32(2 * SHADE)
    out += np.float32(1 - SHADE)
    return out


def _expose(
    light: Plane, box: Box, stain: int, noise: float, key: tuple[int, int, int], bits: int
) -> NDArray[np.uint8] | NDArray[np.uint16]:
    """Shot noise (Poisson: two terms of its Cornish-Fisher expansion), read noise, the camera's level, rounding."""
    seed, section, plane = key
    draw = keys.pixel_normals(seed, section, 2 * plane + stain, box)
    deviation = light * np.float32(GAIN * noise * noise)
    deviation += np.float32((READ_NOISE * noise) ** 2)
    np.sqrt(deviation, out=deviation)
    deviation *= draw
    light += deviation
    draw *= draw
    draw -= np.float32(1)
    draw *= np.float32(GAIN * noise * noise / 6)
    light += draw
    if bits == 8:
        light *= np.float32(BYTE_SCALE[stain])
        light += np.float32(BYTE_FLOOR + 0.5)
        return np.clip(light, 0, 255).astype(np.uint8)
    light += np.float32(CAMERA_LEVEL + 0.5)
    return np.clip(light, 0, 65535).astype(np.uint16)
