"""Kernel distance of two sets of tiles: unbiased MMD^2 with the cubic polynomial kernel of the KID.

    k(a, b) = (a . b / features + 1)^3
    MMD^2 = mean of k over pairs of different tiles of the first set + the same of the second - 2 mean of k between

Its expectation does not depend on the number of tiles, unlike the Frechet distance's; it may fall below 0. Binkowski,
Sutherland, Arbel and Gretton, ICLR 2018 (arXiv:1801.01401), equation 4; there it is often shown times 1000, and as a
mean over subsets of 100 or 1000: here the one subset is all tiles.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from tera_mind.metrics.tiles.jackknife import Groups, Jackknife, jackknife

#: rows of the kernel matrix at once: bounds its memory to this many times the number of tiles
_ROWS = 1024


def kernel_distance(first: Float[np.ndarray, "tile feature"], second: Float[np.ndarray, "other feature"]) -> float:
    """Unbiased MMD^2, about 0 for two sets of one kind and up; lower is better. Both sets need at least two tiles."""
    groups, other = np.zeros(len(first), np.int64), np.zeros(len(second), np.int64)
    return _Sums(first, second, groups, other).distance(np.ones(1), np.ones(1))


def kernel_jackknife(
    first: Float[np.ndarray, "tile feature"],
    second: Float[np.ndarray, "other feature"],
    groups: Groups,
    other: Int[np.ndarray, " other"] | None = None,
) -> Jackknife:
    """`kernel_distance` with its values without each spatial group; without `other`, the sets are paired.

    The kernel is summed once, a pair of groups at a time, so leaving one out costs nothing.
    """
    second_groups = groups if other is None else other
    # the place of each group's first tile tells whether the group is kept
    _, starts, index = np.unique(groups, return_index=True, return_inverse=True)
    _, other_starts, other_index = np.unique(second_groups, return_index=True, return_inverse=True)
    sums = _Sums(first, second, index, other_index)

    def statistic(keep: Bool[np.ndarray, " tile"], other_keep: Bool[np.ndarray, " other"]) -> float:
        return sums.distance(keep[starts].astype(float), other_keep[other_starts].astype(float))

    return jackknife(statistic, groups, other)


class _Sums:
    """Sums of the kernel over all pairs of groups: inside each set (without a tile and itself), and between."""

    def __init__(
        self,
        first: Float[np.ndarray, "tile feature"],
        second: Float[np.ndarray, "other feature"],
        groups: Int[np.ndarray, " tile"],
        other: Int[np.ndarray, " other"],
    ) -> None:
        self.sizes = np.bincount(groups).astype(float), np.bincount(other).astype(float)
        self.inside = (
            _group_sums(first, first, groups, groups, without_self=True),
            _group_sums(second, second, other, other, without_self=True),
        )
        self.between = _group_sums(first, second, groups, other, without_self=False)

    def distance(self, first: Float[np.ndarray, " group"], second: Float[np.ndarray, " other_group"]) -> float:
        """MMD^2 of the groups with weight 1, without those with weight 0."""
        total = 0.0
        for weights, sizes, sums in zip((first, second), self.sizes, self.inside, strict=True):
            n = weights @ sizes
            total += float(weights @ sums @ weights / (n * (n - 1))) if n > 1 else float("nan")
        return total - 2 * float(first @ self.between @ second / ((first @ self.sizes[0]) * (second @ self.sizes[1])))


def _group_sums(
    first: Float[np.ndarray, "tile feature"],
    second: Float[np.ndarray, "other feature"],
    groups: Int[np.ndarray, " tile"],
    other: Int[np.ndarray, " other"],
    *,
    without_self: bool,
) -> Float[np.ndarray, "group other_group"]:
    columns = second.astype(np.float64).T
    members = _one_hot(other)
    rows_of = _one_hot(groups)
    sums = np.zeros((rows_of.shape[1], members.shape[1]))
    for start in range(0, len(first), _ROWS):
        rows = slice(start, start + _ROWS)
        kernel = (first[rows].astype(np.float64) @ columns / first.shape[1] + 1) ** 3
        if without_self:
            at = np.arange(len(kernel))
            kernel[at, at + start] = 0
        sums += rows_of[rows].T @ (kernel @ members)
    return sums


def _one_hot(groups: Shaped[np.ndarray, " tile"]) -> Float[np.ndarray, "tile group"]:
    return np.asarray(groups[:, None] == np.arange(groups.max(initial=0) + 1), np.float64)
