"""Pixel by pixel: PSNR, SSIM, MS-SSIM and correlation of patches, plain and after a blur that forgives small detail.

As published: SSIM with an 11 x 11 Gaussian window of sigma 1.5 px (Wang et al., IEEE Trans. Image Process. 13, 2004),
MS-SSIM with five scales (Wang, Simoncelli and Bovik, Asilomar 2003), all on the range [0, 255].

A patch's score needs the pixels of the patch alone, or, for the blurred scores, a halo of `blur_halo` px around it that
is left out only where the test box ends: scores do not depend on the blocks in which a box is read.
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np
from jaxtyping import Float, Shaped, UInt8
from scipy import ndimage

from tera_mind.errors import InputError
from tera_mind.geometry import Box

DATA_RANGE = 255.0
#: error power of rounding to whole numbers; the least that is told apart, so PSNR ends at 58.9 dB
ROUNDING_MSE = 1 / 12
#: the SSIM window's side in pixels: no patch may be smaller
SSIM_WINDOW_PX = 11
SSIM_SIGMA_PX = 1.5
#: stabilise the ratios of SSIM: (0.01 L)^2 and (0.03 L)^2 with the range L
C1, C2 = (0.01 * DATA_RANGE) ** 2, (0.03 * DATA_RANGE) ** 2
#: exponents of MS-SSIM's scales, finest first
MS_SSIM_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
#: least side for which the window fits into the coarsest scale of MS-SSIM
MS_SSIM_LEAST_PX: int = SSIM_WINDOW_PX * 2 ** (len(MS_SSIM_WEIGHTS) - 1)
#: pixels filtered at once: what fits in a core's cache is several times faster than what does not
_BATCH_PX = 2**16

Patches = Shaped[np.ndarray, "patch y x"]
Scores = Float[np.ndarray, " patch"]
Maps = Float[np.ndarray, "patch y x"]


def large_side(whole_patch_px: int) -> int:
    """Side of the squares of MS-SSIM: the least multiple of the whole patch that is 176 px or more."""
    if whole_patch_px < 1:
        raise InputError(f"a whole patch must be at least 1 px wide, got {whole_patch_px}")
    return -(-MS_SSIM_LEAST_PX // whole_patch_px) * whole_patch_px


def blur_halo(sigma_px: float) -> int:
    """Pixels around a patch that its blurred scores depend on."""
    return math.ceil(3 * sigma_px)


def cut(image: Shaped[np.ndarray, "y x"], boxes: list[Box]) -> Shaped[np.ndarray, "patch h w"]:
    """Equal boxes of an image, in the image's own pixels."""
    return np.stack([image[box.slices()] for box in boxes])


def blur(image: Shaped[np.ndarray, "y x"], sigma_px: float) -> Float[np.ndarray, "y x"]:
    """Gaussian blur in float32, edges repeated; sees `blur_halo` px to every side."""
    return np.asarray(ndimage.gaussian_filter(np.asarray(image, np.float32), sigma_px, mode="nearest", truncate=3.0))


def psnr(image: Patches, real: Patches) -> Scores:
    """Peak signal-to-noise ratio of each patch in dB, 0 (opposite) to 58.9 (equal); higher is better."""
    error = np.zeros(len(real))
    for part in _batches(real.shape):
        error[part] = np.square(np.asarray(image[part], np.float64) - real[part]).mean(axis=(1, 2))
    return np.asarray(10 * np.log10(DATA_RANGE**2 / np.maximum(error, ROUNDING_MSE)))


def _batches(shape: tuple[int, ...]) -> list[slice]:
    """Runs of patches that stay in cache."""
    step = max(1, _BATCH_PX // max(1, shape[1] * shape[2]))
    return [slice(start, start + step) for start in range(0, shape[0], step)]


@cache
def _window(size: int) -> Float[np.ndarray, "n n"]:
    """The Gaussian window as a matrix that filters a line of `size` pixels mirrored at its ends (edge not repeated)."""
    half = SSIM_WINDOW_PX // 2
    offsets = np.arange(-half, half + 1)
    weights = np.exp(-0.5 * (offsets / SSIM_SIGMA_PX) ** 2)
    source = np.abs(np.arange(size)[:, None] + offsets)
    source = np.where(source >= size, 2 * (size - 1) - source, source)
    matrix = np.zeros((size, size))
    np.add.at(matrix, (np.arange(size)[:, None], source), weights / weights.sum())
    return matrix


def _similarity(image: Maps, real: Maps) -> tuple[Maps, Maps]:
    """Maps of SSIM and of its contrast-structure term (Wang et al. 2004, eq. 13).

    Filtering by two matrix products is ten times as fast as a convolution and mirrors edges at no cost.
    """
    stack = np.stack([image, real, image**2 + real**2, image * real])
    mean_1, mean_2, squares, product = _window(image.shape[1]) @ (stack @ _window(image.shape[2]).T)
    means, energy = mean_1 * mean_2, mean_1**2 + mean_2**2
    contrast = (2 * (product - means) + C2) / (squares - energy + C2)
    return (2 * means + C1) / (energy + C1) * contrast, contrast


def ssim(image: Patches, real: Patches) -> Scores:
    """Structural similarity of each patch, -1 to 1 (equal); higher is better. Raises for patches below 11 px."""
    if min(real.shape[1:]) < SSIM_WINDOW_PX:
        raise InputError(
            f"SSIM needs patches of at least {SSIM_WINDOW_PX} px, got {real.shape[1]} x {real.shape[2]}: "
            "use a larger --patch-px"
        )
    scores = np.zeros(len(real))
    for part in _batches(real.shape):
        similarity, _ = _similarity(np.asarray(image[part], np.float64), np.asarray(real[part], np.float64))
        scores[part] = similarity.mean(axis=(1, 2))
    return scores


def ms_ssim(image: Patches, real: Patches) -> Scores:
    """Multi-scale structural similarity of each square, 0 to 1 (equal); higher is better.

    The contrast terms of the four finer scales and the full similarity of the coarsest, each to its exponent; a
    negative mean counts as 0. Contrast is taken where the window lies inside the square, as in torchmetrics. Raises for
    squares below 176 px.
    """
    if min(real.shape[1:]) < MS_SSIM_LEAST_PX:
        raise InputError(
            f"MS-SSIM needs squares of at least {MS_SSIM_LEAST_PX} px, got {real.shape[1]} x {real.shape[2]}: "
            f"take squares of {large_side(real.shape[1])} px"
        )
    scores = np.ones(len(real))
    inside = slice(SSIM_WINDOW_PX // 2, -(SSIM_WINDOW_PX // 2))
    for part in _batches(real.shape):
        pair = [np.asarray(x[part], np.float64) for x in (image, real)]
        for scale, weight in enumerate(MS_SSIM_WEIGHTS):
            similarity, contrast = _similarity(pair[0], pair[1])
            coarsest = scale == len(MS_SSIM_WEIGHTS) - 1
            term = similarity if coarsest else contrast[:, inside, inside]
            scores[part] *= np.maximum(term.mean(axis=(1, 2)), 0) ** weight
            pair = [_halve(x) for x in pair]
    return scores


def _halve(images: Maps) -> Float[np.ndarray, "patch h w"]:
    """Means of 2 x 2 pixels; an odd last row or column is dropped."""
    count, height, width = images.shape
    even = images[:, : height // 2 * 2, : width // 2 * 2]
    return np.asarray(even.reshape(count, height // 2, 2, width // 2, 2).mean(axis=(2, 4)))


def pearson_patches(image: Patches, real: Patches) -> Scores:
    """Correlation in each patch, -1 to 1; 0 for a constant image, which explains nothing, NaN for a constant real."""
    scores = np.zeros(len(real))
    for part in _batches(real.shape):
        first, second = (np.asarray(x[part], np.float64) for x in (image, real))
        first, second = (x - x.mean((1, 2), keepdims=True) for x in (first, second))
        norms = [np.sqrt(np.einsum("pyx,pyx->p", x, x)) for x in (first, second)]
        with np.errstate(invalid="ignore", divide="ignore"):
            r = np.einsum("pyx,pyx->p", first, second) / (norms[0] * norms[1])
        # a blurred constant is constant only to rounding
        r = np.where(norms[0] > 1e-3, r, 0.0)
        scores[part] = np.where(norms[1] > 1e-3, r, np.nan)
    return scores


def patch_scores(
    image: UInt8[np.ndarray, "y x"], real: UInt8[np.ndarray, "y x"], boxes: list[Box], blur_px: float
) -> dict[str, Scores]:
    """All paired scores of one stain and section over patches, keyed by their names in the metrics table.

    `boxes` are in the pixels of the images, which hold `blur_halo(blur_px)` px around every box, less only where the
    test box ends: there both images count as repeated.
    """
    if not boxes:
        return {name: np.zeros(0) for name in ("psnr", "ssim", "psnr_blur", "ssim_blur", "pearson_blur")}
    plain = cut(image, boxes), cut(real, boxes)
    blurred = cut(blur(image, blur_px), boxes), cut(blur(real, blur_px), boxes)
    return {
        "psnr": psnr(*plain),
        "ssim": ssim(*plain),
        "psnr_blur": psnr(*blurred),
        "ssim_blur": ssim(*blurred),
        "pearson_blur": pearson_patches(*blurred),
    }


def large_scores(
    image: UInt8[np.ndarray, "y x"], real: UInt8[np.ndarray, "y x"], boxes: list[Box]
) -> dict[str, Scores]:
    """Paired scores of one stain and section over squares of `large_side` px, in the pixels of the images."""
    return {"ms_ssim": ms_ssim(cut(image, boxes), cut(real, boxes)) if boxes else np.zeros(0)}
