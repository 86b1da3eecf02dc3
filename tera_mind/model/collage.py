"""Half-patch grids: images to patches, and the reassembly of encoder features half a patch later.

Encoder patches of a region of R x K patches lie on a grid shifted by half a patch, so there are (R + 1) x (K + 1).
"""

from __future__ import annotations

from einops import rearrange
from jaxtyping import Float
from torch import Tensor


def to_patches(x: Float[Tensor, "b c y x"], side: int) -> Float[Tensor, "b2 c side side"]:
    """Cut planes into squares of `side`; order (sample, row, column)."""
    return rearrange(x, "b c (r h) (k w) -> (b r k) c h w", h=side, w=side)


def from_patches(patches: Float[Tensor, "b2 c side side"], rows: int, columns: int) -> Float[Tensor, "b c y x"]:
    """Inverse of `to_patches` for planes of rows x columns patches."""
    return rearrange(patches, "(b r k) c h w -> b c (r h) (k w)", r=rows, k=columns)


def counts_to_patches(
    counts: Float[Tensor, "b gene section y x"], bins: int
) -> Float[Tensor, "b2 gene section bins bins"]:
    """Cut binned counts into patches of bins x bins; order (sample, row, column)."""
    return rearrange(counts, "b g z (r h) (k w) -> (b r k) g z h w", h=bins, w=bins)


def reassemble(
    features: Float[Tensor, "grid c z h h"], rows: int, columns: int, margin: int
) -> Float[Tensor, "patches c z h2 h2"]:
    """Features of (rows + 1) x (columns + 1) encoder patches -> those of rows x columns patches half a patch later.

    `margin` (at most half a patch, in positions of this level) keeps a rim around every patch; neighbouring patches
    then overlap. Order of both: (sample, row, column).
    """
    side = features.shape[-1]
    plane = rearrange(features, "(b r k) c z h w -> b c z (r h) (k w)", r=rows + 1, k=columns + 1)
    crop = side // 2 - margin
    plane = plane[..., crop : plane.shape[-2] - crop, crop : plane.shape[-1] - crop]
    if rows == columns == 1:
        return plane
    windows = plane.unfold(-2, side + 2 * margin, side).unfold(-2, side + 2 * margin, side)
    return rearrange(windows, "b c z r k h w -> (b r k) c z h w")
