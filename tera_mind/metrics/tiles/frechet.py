"""Frechet distance of two sets of tiles in a feature space.

    d^2 = |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)) + (s1 - s2)^2

of the Gaussians with their means and covariances (Dowson and Landau, J. Multivariate Anal. 12, 1982; with Inception
features the FID of Heusel et al., NeurIPS 2017). Plain: C is the full covariance, and s = 0. Shrunk: a few hundred
tiles cannot fill a 1280 x 1280 covariance, whose distance to itself on other tiles would be mostly sampling error. So
it is modelled: full in the few directions in which real tiles (of both regions, so that neither side is favoured) vary
most, and of equal variance in all others, s^2 being their total. Both values depend on the number of tiles: compare
only at equal numbers, and with the distance between two real regions.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import scipy.linalg
from jaxtyping import Bool, Float, Int

from tera_mind.metrics.tiles.jackknife import Groups, Jackknife, jackknife
from tera_mind.sums import Sums

#: fewest tiles for which the distance is given
MIN_TILES = 16

Features = Float[np.ndarray, "tile feature"]


class FeatureSpace(NamedTuple):
    """Leading directions of real tiles: origin (feature,), axes (feature, component), orthonormal."""

    origin: Float[np.ndarray, " feature"]
    axes: Float[np.ndarray, "feature component"]


class Gaussian(NamedTuple):
    """Mean (feature,), covariance (component, component), and the total variance `rest` outside the components."""

    mean: Float[np.ndarray, " feature"]
    covariance: Float[np.ndarray, "component component"]
    rest: float


def gaussian(sums: Sums, space: FeatureSpace | None = None) -> Gaussian:
    """Mean and unbiased covariance of the tiles in the sums, at least two: full, or shrunk to a feature space."""
    mean = sums.mean
    covariance = (sums.outer - sums.n * np.outer(mean, mean)) / (sums.n - 1)
    if space is None:
        return Gaussian(mean, covariance, 0.0)
    leading = space.axes.T @ covariance @ space.axes
    return Gaussian(mean, leading, max(0.0, float(np.trace(covariance) - np.trace(leading))))


def leading_space(sums: Sums, components: int) -> FeatureSpace:
    """The directions in which the tiles in the sums vary most."""
    mean, covariance, _ = gaussian(sums)
    last = len(mean) - 1
    _, vectors = scipy.linalg.eigh(covariance, subset_by_index=(max(0, last + 1 - components), last))
    return FeatureSpace(mean, vectors[:, ::-1])


def gaussian_of(features: Features, space: FeatureSpace) -> Gaussian:
    """The shrunk Gaussian of feature rows, without ever forming the full covariance."""
    mean = features.mean(axis=0, dtype=np.float64)
    centred = features - mean
    leading = centred @ space.axes
    covariance = leading.T @ leading / (len(features) - 1)
    total = float(np.square(centred).sum()) / (len(features) - 1)
    return Gaussian(mean, covariance, max(0.0, total - float(np.trace(covariance))))


def distance(first: Gaussian, second: Gaussian) -> float:
    """Squared Frechet distance, 0 (alike) and up; lower is better. Both from the same space, or both full."""
    # tr (C1 C2)^(1/2) is the sum of the singular values of C1^(1/2) C2^(1/2): safe where C1 C2 is singular
    roots = [_root(gaussian.covariance) for gaussian in (first, second)]
    cross = float(scipy.linalg.svdvals(roots[0] @ roots[1]).sum())
    spread = float(np.trace(first.covariance) + np.trace(second.covariance)) - 2 * cross
    shift = float(np.square(first.mean - second.mean).sum())
    return shift + max(0.0, spread) + float(np.sqrt(first.rest) - np.sqrt(second.rest)) ** 2


def _root(covariance: Float[np.ndarray, "n n"]) -> Float[np.ndarray, "n n"]:
    values, vectors = scipy.linalg.eigh(covariance)
    return np.asarray((vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T)


def shrunk_jackknife(
    first: Features,
    second: Float[np.ndarray, "other feature"],
    space: FeatureSpace,
    groups: Groups,
    other: Int[np.ndarray, " other"] | None = None,
) -> Jackknife:
    """The shrunk distance with its values without each spatial group; without `other`, the sets are paired.

    The space stays that of all real tiles.
    """

    def statistic(keep: Bool[np.ndarray, " tile"], other_keep: Bool[np.ndarray, " other"]) -> float:
        return distance(gaussian_of(first[keep], space), gaussian_of(second[other_keep], space))

    return jackknife(statistic, groups, other)


def plain_jackknife(
    first: Features,
    second: Float[np.ndarray, "other feature"],
    groups: Groups,
    other: Int[np.ndarray, " other"] | None = None,
) -> Jackknife:
    """The plain distance with its values without each spatial group; without `other`, the sets are paired.

    With X the centred rows, tr (C1 C2)^(1/2) is the sum of the singular values of X1 X2^T / ((n1 - 1)(n2 - 1))^(1/2):
    tiles by tiles instead of features by features, so it is meant for a bounded number of tiles.
    """
    rows = first.astype(np.float64), second.astype(np.float64)
    products = rows[0] @ rows[1].T

    def statistic(keep: Bool[np.ndarray, " tile"], other_keep: Bool[np.ndarray, " other"]) -> float:
        kept = rows[0][keep], rows[1][other_keep]
        means = [part.mean(axis=0) for part in kept]
        # the centred rows' products are the products, centred both ways
        inner = products[np.ix_(keep, other_keep)]
        inner = inner - inner.mean(axis=0) - inner.mean(axis=1, keepdims=True) + inner.mean()
        free = [len(part) - 1 for part in kept]
        traces = [float(np.square(part - mean).sum()) / n for part, mean, n in zip(kept, means, free, strict=True)]
        cross = float(scipy.linalg.svdvals(inner).sum()) / float(np.sqrt(free[0] * free[1]))
        return float(np.square(means[0] - means[1]).sum()) + max(0.0, sum(traces) - 2 * cross)

    return jackknife(statistic, groups, other)


def components_for(tiles: int) -> int:
    """Leading directions that so many tiles can support: an eighth of their number, 4 to 32."""
    return int(np.clip(tiles // 8, 4, 32))


def feature_space(real: Features, components: int) -> FeatureSpace:
    """The `components` directions in which real tiles vary most."""
    origin = real.mean(axis=0, dtype=np.float64)
    # about their mean, so that the covariance keeps its digits; its few leading vectors cost less than all of the SVD's
    return leading_space(Sums.of(real - origin), components)._replace(origin=origin)


def frechet_distance(first: Features, second: Float[np.ndarray, "other feature"], space: FeatureSpace) -> float:
    """Squared shrunk Frechet distance of feature rows."""
    return distance(gaussian_of(first, space), gaussian_of(second, space))
