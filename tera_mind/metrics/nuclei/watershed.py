"""Nuclei by watershed: background removed, one threshold, basins of a height map, basins of one nucleus joined again.

Touching nuclei are told from the halves of one nucleus by what a pair of basins looks like: how long their common
border is, how much darker it is than they are, how far they differ in brightness, how large they would be together
(region merging as in Salembier and Garrido, IEEE Trans. Image Process. 9 (2000), with a logistic rule fitted to
annotated nuclei by `benchmarks/nuclei.py`). All lengths are in multiples of the typical diameter, so the same settings
serve pixels of 0.1 to 0.9 um.

Every step looks at a bounded neighbourhood and breaks ties by raster order, so a pixel's nucleus depends on what lies
within `halo_px` of it, and on nothing else but for rare chains of touching nuclei (see `halo_px`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from scipy import ndimage
from skimage.filters import threshold_otsu

from tera_mind.errors import InputError
from tera_mind.metrics.nuclei.basins import basins, join_shallow
from tera_mind.metrics.nuclei.join import Rule, bright_part, join_parts, whole

Image = UInt8[np.ndarray, "y x"]
Plane = Float[np.ndarray, "y x"]
Labels = Int[np.ndarray, "y x"]

#: brightness is counted in 1/64 grey level: box filters of whole numbers are exact wherever an image is cut
_STEPS = 64
#: bins of the square root of brightness, over 0 .. 16
_BINS = 1024


@dataclass(frozen=True)
class NucleusSettings:
    """What a nucleus looks like; widths as multiples of its diameter, chosen on annotated images of nuclei."""

    #: typical nucleus diameter
    diameter_um: float = 8.0
    #: Gaussian that removes noise before thresholding
    smooth: float = 0.05
    #: width of the neighbourhood whose darkest part is background
    background: float = 3.0
    #: Gaussian of the blob filter (Laplacian of Gaussian) that separates touching nuclei
    blob: float = 0.2
    #: weight of the blob filter beside the distance to the background
    blob_weight: float = 4.0
    #: least depth of the saddle between two basins
    seed_height: float = 0.015
    #: a nucleus ends where it is darker than this share of its own bright part
    edge: float = 0.45
    #: least area of a nucleus, in areas of a disc of the typical diameter
    min_area: float = 0.15

    def __post_init__(self) -> None:
        if not 0 < self.diameter_um < np.inf:
            raise InputError(f"the nucleus diameter must be above 0 um and finite, got {self.diameter_um:g}")


#: which neighbouring basins are one nucleus: logistic regression on the annotated images of `benchmarks/nuclei.py`
JOIN = Rule(bias=-12.6, neck=2.1, valley=13.8, contrast=-22.8, together=-4.0)
#: the share of a region's pixels that are dimmer than its "bright part"
_BRIGHT = 0.8
#: the distance to the background counts up to this many radii
_DISTANCE_CAP = 1.5


class Scale(NamedTuple):
    """Brightness that a segmenter measured on the real image, in grey levels; what `low` and `high` are is its own."""

    low: float
    high: float


def above_background(image: Image, pixel_um: float, settings: NucleusSettings) -> Plane:
    """The smoothed image less its local background, grey levels: a smoothed minimum over a few nuclei's width."""
    diameter_px = settings.diameter_um / pixel_um
    smooth = ndimage.gaussian_filter(image.astype(np.float32), settings.smooth * diameter_px)
    lifted = np.rint(smooth * _STEPS).astype(np.int32)
    darkest, size = lifted, background_px(pixel_um, settings)
    for axis in (0, 1):
        darkest = ndimage.minimum_filter1d(darkest, size, axis=axis)
    for axis in (0, 1, 0, 1):
        darkest = ndimage.uniform_filter1d(darkest, size, axis=axis)
    return (lifted - darkest).astype(np.float32) / np.float32(_STEPS)


def background_px(pixel_um: float, settings: NucleusSettings) -> int:
    return max(3, round(settings.background * settings.diameter_um / pixel_um))


def halo_px(pixel_um: float, settings: NucleusSettings) -> int:
    """How far from a pixel the image can change the nucleus it belongs to: the filters' reach plus three diameters.

    Three diameters hold the nucleus itself and its neighbours, whose borders and brightness decide what is joined.
    """
    diameter_px = settings.diameter_um / pixel_um
    filters = 4 * settings.smooth * diameter_px + 1.5 * background_px(pixel_um, settings)
    shape = max(4 * settings.blob, _DISTANCE_CAP / 2 + 0.12) * diameter_px
    return int(np.ceil(filters + shape + 3 * diameter_px)) + 4


def calibrate(images: Iterable[Image], pixel_um: float, settings: NucleusSettings) -> Scale:
    """Brightness above background at which foreground starts (`low`) and that of a typical nucleus (`high`).

    Otsu's threshold of the square root of brightness, over the pooled histogram of all windows; the root keeps dim
    nuclei above a threshold that a few bright ones would otherwise set. In windows without contrast no threshold is
    ever passed: no nuclei.
    """
    counts = np.zeros(_BINS, np.int64)
    for image in images:
        root = np.sqrt(np.maximum(above_background(image, pixel_um, settings), 0))
        counts += np.bincount((root * (_BINS / 16)).astype(np.int64).ravel(), minlength=_BINS)
    centres = (np.arange(_BINS) + 0.5) * (16 / _BINS)
    seen = np.flatnonzero(counts)
    if len(seen) < 2:
        return Scale(float("inf"), 1.0)
    threshold = threshold_otsu(hist=(counts[seen[0] : seen[-1] + 1], centres[seen[0] : seen[-1] + 1]))
    foreground = np.where(centres > threshold, counts, 0).cumsum()
    median = centres[np.searchsorted(foreground, foreground[-1] / 2)]
    return Scale(float(threshold) ** 2, float(median) ** 2)


def segment(image: Image, pixel_um: float, scale: Scale, settings: NucleusSettings, rule: Rule = JOIN) -> Labels:
    """Nuclei 1, 2, ... of one image (0: none), with the scale of the real image it is compared with."""
    diameter_px = settings.diameter_um / pixel_um
    typical_px = np.pi * diameter_px**2 / 4
    least_px = settings.min_area * typical_px
    parts, lifted = segment_parts(image, pixel_um, scale, settings)
    joined = join_parts(parts, np.sqrt(np.maximum(lifted, 0)), typical_px, rule)
    return whole(joined, least_px)


def segment_parts(image: Image, pixel_um: float, scale: Scale, settings: NucleusSettings) -> tuple[Labels, Plane]:
    """Basins before those of one nucleus are joined, and the brightness above background."""
    diameter_px = settings.diameter_um / pixel_um
    lifted = above_background(image, pixel_um, settings)
    foreground = _fill_holes(lifted > scale.low, settings.min_area * np.pi * diameter_px**2 / 4)
    if not foreground.any():
        return np.zeros(image.shape, np.int32), lifted
    height = _height(lifted, foreground, diameter_px, scale, settings)
    found, peaks = basins(height, foreground)
    found = join_shallow(found, height, peaks, settings.seed_height)
    edge = settings.edge * bright_part(lifted, found, _BRIGHT)[found]
    found[(lifted < edge) | (lifted <= 0)] = 0
    return found, lifted


def _fill_holes(foreground: Bool[np.ndarray, "y x"], most_px: float) -> Bool[np.ndarray, "y x"]:
    """The foreground with the holes in it of at most `most_px` pixels."""
    holes, _ = ndimage.label(~foreground)
    small = np.bincount(holes.ravel()) <= most_px
    small[0] = False
    return np.asarray(foreground | small[holes])


def _height(
    lifted: Plane, foreground: Bool[np.ndarray, "y x"], diameter_px: float, scale: Scale, settings: NucleusSettings
) -> Plane:
    """A map with a peak in every nucleus: distance to the background in radii plus the blob filter's answer."""
    distance = ndimage.distance_transform_edt(foreground).astype(np.float32) / np.float32(diameter_px / 2)
    smooth = ndimage.gaussian_filter(np.minimum(distance, _DISTANCE_CAP), 0.03 * diameter_px)
    width_px = settings.blob * diameter_px
    root = np.sqrt(np.maximum(lifted, 0) / np.float32(scale.high))
    blobs = ndimage.laplace(ndimage.gaussian_filter(root, width_px)) * np.float32(width_px**2)
    return np.asarray(smooth - np.float32(settings.blob_weight) * blobs)


def grey_histogram(images: Iterable[Image]) -> Int[np.ndarray, " level"]:
    """Pixels of each grey level over all windows."""
    return sum((np.bincount(image.ravel(), minlength=256) for image in images), np.zeros(256, np.int64))
