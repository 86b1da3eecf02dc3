"""P values from resampled nulls, and their correction for many genes."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

#: draws within this share of a value are as large: scores are float32, and what is equal must not win by rounding
_TIE = 1e-6


def pooled_p(observed: Float[np.ndarray, " gene"], null: Float[np.ndarray, "draw gene"]) -> Float[np.ndarray, " gene"]:
    """One-sided p of each value against all draws of all genes, for a null that is the same for every gene.

    (1 + number of draws at least as large) / (1 + number of draws): never 0 (Phipson and Smyth, Stat. Appl. Genet.
    Mol. Biol. 9, 2010).
    """
    draws = np.sort(null[np.isfinite(null)])
    above = len(draws) - np.searchsorted(draws, _reached(observed), side="left")
    return np.asarray((1.0 + above) / (1.0 + len(draws)), np.float64)


def own_p(observed: Float[np.ndarray, " gene"], null: Float[np.ndarray, "draw gene"]) -> Float[np.ndarray, " gene"]:
    """One-sided p of each value against its own gene's draws, with the same correction; 1 where there are none."""
    known = np.isfinite(null)
    above = ((null >= _reached(observed)) & known).sum(axis=0)
    return np.asarray((1.0 + above) / (1.0 + known.sum(axis=0)), np.float64)


def _reached(observed: Float[np.ndarray, " gene"]) -> Float[np.ndarray, " gene"]:
    """The least value that counts as equal."""
    return np.asarray(observed - _TIE * np.abs(observed), np.float64)


def benjamini_hochberg(p: Float[np.ndarray, " gene"]) -> Float[np.ndarray, " gene"]:
    """Adjusted p values: the smallest false discovery rate at which a test is called (J. R. Stat. Soc. B 57, 1995)."""
    count = len(p)
    order = np.argsort(p)[::-1]
    scaled = p[order] * count / np.arange(count, 0, -1)
    adjusted = np.empty(count)
    adjusted[order] = np.minimum(np.minimum.accumulate(scaled), 1.0)
    return adjusted
