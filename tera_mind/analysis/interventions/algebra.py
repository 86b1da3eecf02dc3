"""Second moments of gene counts, their eigenvectors, and the linear maps that edit counts with them.

Rows are squares of tissue, columns genes. Everything is float64. An eigenvector's sign means nothing, so no map here
depends on it: flipping any column of any basis gives the same map, bit by bit.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64
from numpy.typing import NDArray

from tera_mind.errors import InputError

#: two unit vectors with a smaller product than this share no direction, and say nothing of each other's sign
_ORTHOGONAL = 1e-9
#: share of the largest eigenvalue below which a direction holds nothing
_NOTHING = 1e-12

Matrix = Float64[np.ndarray, "gene gene"]


@dataclass(frozen=True, eq=False)
class Spectrum:
    """Eigenvalues, falling and never negative (component,), and eigenvectors as columns (gene, component)."""

    values: Float64[np.ndarray, " gene"]
    vectors: Matrix


def spectrum(matrix: Matrix) -> Spectrum:
    """Eigen-decomposition of a symmetric matrix."""
    values, vectors = np.linalg.eigh(matrix)
    return Spectrum(np.maximum(values[::-1], 0.0).copy(), vectors[:, ::-1].copy())


def aligned(source: Matrix, target: Matrix) -> tuple[Matrix, Matrix]:
    """Both bases with signs that fit: column by column the product of the two is 0 or more.

    Where two columns are orthogonal, each is turned so that its largest entry is positive instead, lest the pair
    depend on the signs that the decomposition happened to return.
    """
    products = np.einsum("gc,gc->c", source, target)
    tied = np.abs(products) < _ORTHOGONAL
    first = np.where(tied, _own_sign(source), 1.0)
    second = np.where(tied, _own_sign(target), np.where(products < 0, -1.0, 1.0))
    return source * first, target * second


def _own_sign(vectors: Matrix) -> NDArray[np.float64]:
    largest = np.abs(vectors).argmax(axis=0)
    return np.where(vectors[largest, np.arange(vectors.shape[1])] < 0, -1.0, 1.0)


def leading(components: int | None, genes: int) -> int:
    """How many components are meant: None is all of them. Raises `InputError` for less than one."""
    if components is not None and components < 1:
        raise InputError(f"components must be at least 1, or 'all', got {components}")
    return genes if components is None else min(components, genes)


def matching_map(population: Spectrum, target: Spectrum, components: int | None) -> Matrix:
    """A of X' = X A = X U_P diag(w) U_R^T, which gives rows of the population the target's leading eigenvalues.

    w_i = sqrt(target_i / population_i) for the leading components (None: all of them), 1 for the others and for
    directions in which the population has nothing. SST-editing; signs as in `aligned`.
    """
    k = leading(components, len(population.values))
    has = population.values > _NOTHING * max(float(population.values[0]), np.finfo(np.float64).tiny)
    has[k:] = False
    weights = np.ones(len(population.values))
    weights[has] = np.sqrt(target.values[has] / population.values[has])
    first, second = aligned(population.vectors, target.vectors)
    return np.asarray((first * weights) @ second.T)


def scaling_map(population: Spectrum, components: int | None, factor: float) -> Matrix:
    """A of X' = X A = X U diag(sqrt(factor) on the leading components, 1 else) U^T. IST-editing."""
    if not 0 <= factor < np.inf:
        raise InputError(f"a factor of eigenvalues is 0 or more, got {factor:g}")
    k = leading(components, len(population.values))
    own = population.vectors[:, :k]
    return np.asarray(np.eye(len(population.values)) + (np.sqrt(factor) - 1.0) * (own @ own.T))


def mapped_rows(
    rows: Float64[np.ndarray, "row gene"],
    matrix: Matrix,
    before: Float64[np.ndarray, " gene"],
    after: Float64[np.ndarray, " gene"],
) -> Float64[np.ndarray, "row gene"]:
    """(X - before) A + after, one row at a time: a row's bits do not depend on how many rows are mapped together."""
    if not len(rows):
        return rows
    return np.stack([np.ascontiguousarray(row - before) @ matrix + after for row in rows])
