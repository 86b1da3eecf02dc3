"""The gene probe: ridge regression from the image features of a tile to log1p counts of every gene in the tile.

Features of all stains stand side by side, are standardised and reduced to principal components. The probe is fitted on
real tiles of the training region; `tera_mind.metrics.tiles.recovery` shows it real and generated tiles of the test
region.
Counts stay sparse, and no table of genes by genes is formed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.linalg
from jaxtyping import Float, Float64, Int
from scipy import sparse

from tera_mind.errors import InputError
from tera_mind.formats.brain import Transcripts
from tera_mind.metrics.controls import solve_ridge
from tera_mind.metrics.tiles.jackknife import spatial_groups

#: most principal components of the features
MAX_COMPONENTS = 256
#: fewest training tiles for a probe
MIN_TILES = 64
#: relative to the mean variance of a component, see `controls.solve_ridge`
PENALTIES = tuple(10.0**power for power in range(-3, 4))
#: parts of the training region that are held out in turn
PARTS = 5
#: r from which on an image tells something about a gene
MIN_R = 0.1
#: genes at once: bounds dense tables to this many times the number of tiles
_GENES = 512

Features = Float[np.ndarray, "tile feature"]
#: counts a tile and gene: scipy sparse (tile, gene)
Counts = sparse.csr_array


def tile_counts(rows: Transcripts, boxes: Int[np.ndarray, "tile 4"], genes: int) -> Counts:
    """Transcripts a gene in tiles (y0, y1, x0, x1, in pixels of the transcripts' window): float32 (tile, gene)."""
    order = np.argsort(rows.y, kind="stable")
    y, x, gene, count = rows.y[order], rows.x[order], rows.gene[order], rows.count[order]
    found, total, ends = [], [], [0]
    for y0, y1, x0, x1 in boxes.tolist():
        band = slice(*np.searchsorted(y, [y0, y1]).tolist())
        inside = (x[band] >= x0) & (x[band] < x1)
        sums = np.bincount(gene[band][inside], count[band][inside], genes)
        present = np.flatnonzero(sums)
        found.append(present)
        total.append(sums[present].astype(np.float32))
        ends.append(ends[-1] + len(present))
    values = np.concatenate(total) if total else np.zeros(0, np.float32)
    columns = np.concatenate(found) if found else np.zeros(0, np.int64)
    return sparse.csr_array((values, columns, np.array(ends)), shape=(len(boxes), genes))


@dataclass(frozen=True)
class Probe:
    """A fitted probe: features are standardised, projected on `axes`, and weighted; the last weight is constant."""

    mean: Float[np.ndarray, " feature"]
    scale: Float[np.ndarray, " feature"]
    axes: Float[np.ndarray, "feature component"]
    weights: Float[np.ndarray, "weight gene"]
    #: chosen penalty, relative to the mean variance of a component
    penalty: float
    #: r of each gene on held-out blocks of the training region; 0 where it never varies
    held_out_r: Float[np.ndarray, " gene"]
    tiles: int

    def components(self, features: Features) -> Float64[np.ndarray, "tile weight"]:
        """Components of tiles, and a column of ones."""
        return _with_ones((features - self.mean) / self.scale @ self.axes)

    def facts(self) -> dict[str, Any]:
        """What the settings of an evaluation say about the probe."""
        kept = self.held_out_r[self.held_out_r >= MIN_R]
        return {
            "tiles": self.tiles,
            "components": int(self.axes.shape[1]),
            "penalty": self.penalty,
            "genes": len(self.held_out_r),
            "held_out_r_mean": float(self.held_out_r.mean()),
            "held_out_genes": len(kept),
            "held_out_genes_r_mean": float(kept.mean()) if len(kept) else None,
        }


def fit_probe(features: Features, counts: Counts, boxes: Int[np.ndarray, "tile 4"]) -> Probe:
    """Fit on real tiles at `boxes` (y0, y1, x0, x1; of all sections).

    One penalty for all genes, judged by the mean r inside each held-out fifth of the plane: the probe has to do on
    tissue that it has not seen, so tiles that overlap a held-out one are not fitted on either. Of penalties that the
    fifths cannot tell apart (within one standard error of the best) the strongest is taken, since the test region will
    differ more (Breiman, Friedman, Olshen and Stone, Classification and Regression Trees, 1984, section 3.4.3). Raises
    `InputError` when the region is too small for that, holds fewer than `MIN_TILES` tiles, or looks alike throughout.
    """
    folds = list(_folds(boxes))
    if len(features) < MIN_TILES or len(folds) < 2:
        raise InputError(
            f"a gene probe needs at least {MIN_TILES} tiles of the training region, some of them clear of the others; "
            f"got {len(features)} tiles, {len(folds)} of {PARTS} parts usable: choose a larger training region"
        )
    mean, scale, axes = _leading(features)
    design = _with_ones((features - mean) / scale @ axes)
    log_counts = sparse.csc_array(counts).log1p()
    # held-out tiles times the solver's matrix: the same for all genes
    solved = [
        [solve_ridge(design[fit].T @ design[fit], design[own].T, penalty).T for own, fit in folds]
        for penalty in PENALTIES
    ]
    seen = np.concatenate([own for own, _ in folds])
    part_of = np.repeat(np.arange(len(folds)), [len(own) for own, _ in folds])
    sizes = np.bincount(part_of)[:, None].astype(np.float64)
    scores = np.zeros((len(PENALTIES), len(folds), counts.shape[1]))
    moment = np.zeros((design.shape[1], counts.shape[1]))
    for genes, levels in in_chunks(log_counts):
        moment[:, genes] = design.T @ levels
        parts = [design[fit].T @ levels[fit] for _, fit in folds]
        for row, matrices in enumerate(solved):
            predicted = np.concatenate([matrix @ part for matrix, part in zip(matrices, parts, strict=True)])
            scores[row, :, genes] = correlation(sizes, correlation_sums(predicted, levels[seen], part_of))
    best = _strongest_good(scores.mean(axis=2))
    weights = solve_ridge(design.T @ design, moment, PENALTIES[best])
    return Probe(mean, scale, axes, weights, PENALTIES[best], scores[best].mean(axis=0), len(features))


def _strongest_good(scores: Float[np.ndarray, "penalty part"]) -> int:
    """Row of the strongest penalty within one standard error of the best."""
    mean = scores.mean(axis=1)
    best = int(mean.argmax())
    error = float(scores[best].std(ddof=1)) / float(np.sqrt(scores.shape[1]))
    return int(np.flatnonzero(mean >= mean[best] - error).max())


def _folds(
    boxes: Int[np.ndarray, "tile 4"],
) -> Iterator[tuple[Int[np.ndarray, " held_out"], Int[np.ndarray, " fitted"]]]:
    """Held-out tiles, one part of the plane, and the tiles that overlap none of them; parts that leave few go."""
    parts = spatial_groups(boxes, PARTS)
    y0, y1, x0, x1 = boxes.T
    for part in range(PARTS):
        own = np.flatnonzero(parts == part)
        apart = np.ones(len(boxes), bool)
        # tile by tile of the held-out part: no table of all pairs
        for tile in own.tolist():
            apart &= (y1 <= y0[tile]) | (y0 >= y1[tile]) | (x1 <= x0[tile]) | (x0 >= x1[tile])
        if len(own) and apart.sum() * PARTS >= len(boxes):
            yield own, np.flatnonzero(apart)


def _with_ones(components: Float[np.ndarray, "tile component"]) -> Float64[np.ndarray, "tile weight"]:
    return np.concatenate([components, np.ones((len(components), 1))], axis=1)


def _leading(
    features: Features,
) -> tuple[Float[np.ndarray, " feature"], Float[np.ndarray, " feature"], Float[np.ndarray, "feature component"]]:
    """Mean and scale of each feature, and the leading principal components of what they standardise."""
    mean = features.mean(axis=0, dtype=np.float64)
    scale = features.std(axis=0, dtype=np.float64)
    varies = scale > 1e-6 * max(float(scale.max()), 1e-12)
    if not varies.any():
        raise InputError("a gene probe needs tiles that differ, all tiles of the training region look alike")
    scale = np.where(varies, scale, 1.0)
    rows = np.where(varies, (features - mean) / scale, 0.0)
    components = min(MAX_COMPONENTS, int(varies.sum()), max(1, len(features) // 4))
    last = len(mean) - 1
    _, vectors = scipy.linalg.eigh(rows.T @ rows, subset_by_index=(last + 1 - components, last))
    return mean, scale, np.where(varies[:, None], vectors[:, ::-1], 0.0)


def in_chunks(counts: sparse.csc_array) -> Iterator[tuple[slice, Float64[np.ndarray, "tile gene"]]]:
    """Dense columns of a sparse table, some genes at a time: a whole panel of thousands never is in memory."""
    for start in range(0, counts.shape[1], _GENES):
        genes = slice(start, min(start + _GENES, counts.shape[1]))
        yield genes, counts[:, genes].toarray().astype(np.float64)


def correlation_sums(
    predicted: Float64[np.ndarray, "tile gene"],
    measured: Float64[np.ndarray, "tile gene"],
    groups: Int[np.ndarray, " tile"],
) -> Float64[np.ndarray, "group 5 gene"]:
    """Sums over the tiles of each group (numbered from 0): predicted, measured, their squares, their product."""
    member = (np.arange(groups.max(initial=0) + 1)[:, None] == groups).astype(np.float64)
    parts = (predicted, measured, predicted**2, measured**2, predicted * measured)
    return np.stack([member @ part for part in parts], axis=1)


def correlation(
    n: int | Float[np.ndarray, "draw 1"], sums: Float64[np.ndarray, "*draw 5 gene"]
) -> Float64[np.ndarray, "*draw gene"]:
    """Pearson r of each gene from `correlation_sums` over `n` tiles; 0 where one side is constant."""
    predicted, measured, predicted2, measured2, product = np.moveaxis(sums, -2, 0)
    spread = predicted2 - predicted**2 / n, measured2 - measured**2 / n
    # what rounding leaves of a constant is no variance
    varies = (spread[0] > 1e-9 * predicted2) & (spread[1] > 1e-9 * measured2)
    both = np.sqrt(np.where(varies, spread[0] * spread[1], 1.0))
    return np.where(varies, (product - predicted * measured / n) / both, 0.0)
