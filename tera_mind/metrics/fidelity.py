"""Pixel by pixel: PSNR, SSIM and correlation of patches, plain and after a blur that forgives sub-nuclear detail.

As published: SSIM with an 11 x 11 Gaussian window of sigma 1.5 px, both scores on the range [0, 255].
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Shaped, UInt8
from scipy import ndimage
from torchmetrics.functional.image import structural_similarity_index_measure

from tera_mind.errors import InputError
from tera_mind.geometry import Box

DATA_RANGE = 255.0
#: error power of rounding to whole numbers; the least that is told apart, so PSNR ends at 58.9 dB
ROUNDING_MSE = 1 / 12
#: the SSIM window's side in pixels: no patch may be smaller
SSIM_WINDOW_PX = 11

Patches = Shaped[np.ndarray, "patch y x"]
Scores = Float[np.ndarray, " patch"]


def cut(image: Shaped[np.ndarray, "y x"], boxes: list[Box]) -> Shaped[np.ndarray, "patch h w"]:
    """Equal boxes of an image, in the image's own pixels."""
    return np.stack([image[box.slices()] for box in boxes])


def blur(image: Shaped[np.ndarray, "y x"], sigma_px: float) -> Float[np.ndarray, "y x"]:
    """Gaussian blur in float32, edges repeated."""
    return np.asarray(ndimage.gaussian_filter(np.asarray(image, np.float32), sigma_px, mode="nearest", truncate=3.0))


def psnr(image: Patches, real: Patches) -> Scores:
    """Peak signal-to-noise ratio of each patch in dB, 0 (opposite) to 58.9 (equal); higher is better."""
    error = np.square(np.asarray(image, np.float64) - np.asarray(real, np.float64)).mean(axis=(1, 2))
    return np.asarray(10 * np.log10(DATA_RANGE**2 / np.maximum(error, ROUNDING_MSE)))


def ssim(image: Patches, real: Patches, batch: int = 64) -> Scores:
    """Structural similarity of each patch, -1 to 1 (equal); higher is better. Raises for patches below 11 px."""
    if min(real.shape[1:]) < SSIM_WINDOW_PX:
        raise InputError(
            f"SSIM needs patches of at least {SSIM_WINDOW_PX} px, got {real.shape[1]} x {real.shape[2]}: "
            "use a larger --patch-px"
        )
    scores = []
    for start in range(0, len(real), batch):
        pair = [torch.from_numpy(np.asarray(x[start : start + batch], np.float32))[:, None] for x in (image, real)]
        # "none" keeps one score a patch; the reduced form would hide which patches fail
        score = structural_similarity_index_measure(
            pair[0], pair[1], gaussian_kernel=True, sigma=1.5, data_range=DATA_RANGE, reduction="none"
        )
        scores.append(np.atleast_1d(score.numpy()))
    return np.concatenate(scores).astype(np.float64) if scores else np.zeros(0)


def pearson_patches(image: Patches, real: Patches) -> Scores:
    """Correlation in each patch, -1 to 1; 0 for a constant image, which explains nothing, NaN for a constant real."""
    first, second = (
        np.asarray(x, np.float64) - np.asarray(x, np.float64).mean((1, 2), keepdims=True) for x in (image, real)
    )
    norms = [np.sqrt(np.square(x).sum((1, 2))) for x in (first, second)]
    with np.errstate(invalid="ignore", divide="ignore"):
        r = (first * second).sum((1, 2)) / (norms[0] * norms[1])
    # a blurred constant is constant only to rounding
    r = np.where(norms[0] > 1e-3, r, 0.0)
    return np.where(norms[1] > 1e-3, r, np.nan)


def patch_scores(
    image: UInt8[np.ndarray, "y x"], real: UInt8[np.ndarray, "y x"], boxes: list[Box], blur_px: float
) -> dict[str, Scores]:
    """All paired scores of one stain and section over patches, keyed by their names in the metrics table."""
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
