"""Moments of rows from sums in float64, gathered part by part."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Sums:
    """Sums over rows: number, sum, sum of outer products.

    Parts merge to the whole in any order, up to rounding; of whole numbers, such as counts, to the last bit.
    """

    n: int
    total: Float64[np.ndarray, " feature"]
    outer: Float64[np.ndarray, "feature feature"]

    @staticmethod
    def of(rows: NDArray[Any]) -> Sums:
        """Sums of rows (row, feature)."""
        wide = np.asarray(rows, np.float64)
        return Sums(len(wide), wide.sum(axis=0), wide.T @ wide)

    def merge(self, other: Sums) -> Sums:
        return Sums(self.n + other.n, self.total + other.total, self.outer + other.outer)

    @property
    def mean(self) -> Float64[np.ndarray, " feature"]:
        return self.total / self.n

    @property
    def second_moment(self) -> Float64[np.ndarray, "feature feature"]:
        """X^T X / N, uncentred."""
        return self.outer / self.n

    @property
    def covariance(self) -> Float64[np.ndarray, "feature feature"]:
        """X^T X / N - mean mean^T."""
        return self.second_moment - np.outer(self.mean, self.mean)

    @property
    def eigenvalues(self) -> Float64[np.ndarray, " feature"]:
        """Of the uncentred second moment, falling."""
        return np.maximum(np.linalg.eigvalsh(self.second_moment)[::-1], 0.0)
