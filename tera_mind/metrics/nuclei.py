"""Nuclei by watershed: background removed, one threshold, seeds from distance and brightness (scikit-image).

The threshold and the brightness scale are measured once on the REAL image of a section (`calibrate`) and applied to
every image compared with it. Otsu's threshold splits any image in two: chosen on a generated image of its own it would
find as many "nuclei" in noise or in a faint, blurred picture as in tissue. All lengths are in microns and follow
`diameter_um`, so the same settings serve pixels of 0.1 to 0.9 um.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped
from scipy import ndimage
from skimage.filters import threshold_otsu
from skimage.morphology import h_maxima, remove_small_holes
from skimage.segmentation import watershed

Image = Shaped[np.ndarray, "y x"]


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
    blob: float = 0.3
    #: weight of the blob filter beside the distance to the background
    blob_weight: float = 4.0
    #: least height of a seed above the saddle to the next
    seed_height: float = 0.04
    #: a nucleus ends where it is darker than this share of its own bright part
    edge: float = 0.5
    #: least area of a nucleus, in areas of a disc of the typical diameter
    min_area: float = 0.15

    @property
    def min_area_um2(self) -> float:
        return self.min_area * np.pi * self.diameter_um**2 / 4


class Scale(NamedTuple):
    """Brightness above background at which foreground starts, and that of a typical nucleus, in image units."""

    threshold: float
    foreground: float


class Nuclei(NamedTuple):
    """One entry a nucleus: area, centroid in px of the image."""

    labels: Int[np.ndarray, "y x"]
    area_um2: Float[np.ndarray, " nucleus"]
    y: Float[np.ndarray, " nucleus"]
    x: Float[np.ndarray, " nucleus"]


def above_background(image: Image, pixel_um: float, settings: NucleusSettings) -> Float[np.ndarray, "y x"]:
    """The smoothed image less its local background: a smoothed minimum over a few nuclei's width."""
    diameter_px = settings.diameter_um / pixel_um
    smooth = ndimage.gaussian_filter(np.asarray(image, np.float32), settings.smooth * diameter_px)
    size = max(3, round(settings.background * diameter_px))
    darkest = ndimage.minimum_filter(smooth, size=size)
    return smooth - ndimage.gaussian_filter(darkest, size / 2)


def calibrate(image: Image, pixel_um: float, settings: NucleusSettings) -> Scale:
    """Threshold and scale of a real image; in one without contrast no threshold is ever passed: no nuclei."""
    lifted = above_background(image, pixel_um, settings)
    # the square root keeps dim nuclei above a threshold that a few bright ones would otherwise set
    root = np.sqrt(np.maximum(lifted, 0))
    if float(np.ptp(root)) == 0:
        return Scale(float("inf"), 1.0)
    threshold = float(threshold_otsu(root)) ** 2
    return Scale(threshold, float(np.median(lifted[lifted > threshold])))


def segment(image: Image, pixel_um: float, scale: Scale, settings: NucleusSettings) -> Nuclei:
    """Nuclei of one image with the scale of the real image it is compared with."""
    diameter_px = settings.diameter_um / pixel_um
    min_area_px = settings.min_area_um2 / pixel_um**2
    lifted = above_background(image, pixel_um, settings)
    foreground = remove_small_holes(lifted > scale.threshold, max_size=max(1, int(min_area_px)))
    labels = _split(_height(lifted, foreground, diameter_px, scale, settings), foreground, settings.seed_height)
    labels[lifted < settings.edge * _bright_part(lifted, labels)] = 0
    return measure(_drop_small(labels, min_area_px), pixel_um)


def _height(
    lifted: Float[np.ndarray, "y x"],
    foreground: Bool[np.ndarray, "y x"],
    diameter_px: float,
    scale: Scale,
    settings: NucleusSettings,
) -> Float[np.ndarray, "y x"]:
    """A map with one peak a nucleus: distance to the background in radii plus the blob filter's answer."""
    distance = np.minimum(ndimage.distance_transform_edt(foreground) / (diameter_px / 2), 1.5)
    width_px = settings.blob * diameter_px
    root = np.sqrt(np.maximum(lifted, 0) / scale.foreground)
    blobs = -ndimage.gaussian_laplace(root, width_px) * width_px**2
    return ndimage.gaussian_filter(distance, 0.03 * diameter_px) + settings.blob_weight * blobs


def _split(
    height: Float[np.ndarray, "y x"], foreground: Bool[np.ndarray, "y x"], seed_height: float
) -> Int[np.ndarray, "y x"]:
    if not foreground.any():
        return np.zeros(height.shape, np.int32)
    peaks = h_maxima(np.where(foreground, height, height.min()), seed_height)
    seeds, _ = ndimage.label((peaks > 0) & foreground, np.ones((3, 3)))
    return np.asarray(watershed(-height, seeds, mask=foreground), np.int32)


def _bright_part(lifted: Float[np.ndarray, "y x"], labels: Int[np.ndarray, "y x"]) -> Float[np.ndarray, "y x"]:
    """80th percentile of each label's brightness, at each of its pixels; 0 on the background."""
    rows = np.flatnonzero(labels)
    rows = rows[np.lexsort((lifted.flat[rows], labels.flat[rows]))]
    size = np.bincount(labels.flat[rows], minlength=int(labels.max()) + 1)
    top = np.zeros(len(size))
    filled = size > 0
    at = np.cumsum(size)[filled] - size[filled] + (0.8 * (size[filled] - 1)).astype(np.int64)
    top[filled] = lifted.flat[rows[at]]
    return np.asarray(top[labels])


def _drop_small(labels: Int[np.ndarray, "y x"], min_area_px: float) -> Int[np.ndarray, "y x"]:
    """Remove labels below the least area and number the others 1, 2, ... in the same order."""
    area = np.bincount(labels.ravel())
    kept = area >= min_area_px
    kept[0] = False
    number = np.where(kept, np.cumsum(kept), 0).astype(np.int32)
    return np.asarray(number[labels])


def measure(labels: Int[np.ndarray, "y x"], pixel_um: float) -> Nuclei:
    """Area and centroid of labels 1 .. n (0 is background)."""
    flat = labels.ravel()
    area = np.bincount(flat)
    rows, columns = np.indices(labels.shape, dtype=np.int32)
    with np.errstate(invalid="ignore"):
        y = np.bincount(flat, rows.ravel()) / area
        x = np.bincount(flat, columns.ravel()) / area
    return Nuclei(np.asarray(labels, np.int32), area[1:] * pixel_um**2, y[1:], x[1:])


def match_f1(truth: Int[np.ndarray, "y x"], found: Int[np.ndarray, "y x"], iou: float = 0.5) -> float:
    """F1 of nuclei matched at an intersection over union above `iou` (at 0.5 and above a match is unique)."""
    n_truth, n_found = (np.unique(image[image > 0]).size for image in (truth, found))
    if n_truth + n_found == 0:
        return 1.0
    width = int(found.max()) + 1
    joint = np.bincount(
        truth.ravel().astype(np.int64) * width + found.ravel(), minlength=(int(truth.max()) + 1) * width
    )
    table = joint.reshape(-1, width)
    union = table.sum(1, keepdims=True) + table.sum(0, keepdims=True) - table
    overlap = np.divide(table, union, out=np.zeros(table.shape), where=union > 0)[1:, 1:]
    return 2 * int((overlap > iou).sum()) / (n_truth + n_found)
