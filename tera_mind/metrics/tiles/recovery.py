"""Gene recovery: how much of what a real image tells about the genes, a generated one tells as well.

A probe, ridge regression from a tile's image features (all stains side by side) to log1p counts of every gene in the
tile, is fitted on real tiles of the training region. It is then shown real tiles of the test region (the ceiling) and
each method's tiles of the same places. With r a gene's Pearson correlation over tiles, predicted against measured,

    gene_r = mean of r over the genes whose ceiling r is at least 0.1
    gene_recovery = sum of r(method) / sum of r(real), over the same genes: 1 = all that a real image tells

so genes that no image shows do not count. A method whose tiles all look alike has r = 0. The genes are chosen on the
ceiling's own tiles, whose noise lifts it a little and recovery down; but generated tissue, drawn from the genes without
the accidents of real tissue, can be easier to read than real, and lift recovery, above 1 at the most. It depends on the
probe: compare it at one probe only, and read it beside gene_r. Intervals resample spatial groups of tiles, the same for
all methods.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Float, Float64, Int
from scipy import sparse

from tera_mind.metrics.bootstrap import Difference, Interval, draws, limits, two_sided_p
from tera_mind.metrics.tiles.probe import MIN_R, Counts, Probe, correlation, correlation_sums, in_chunks

METRICS = ("gene_r", "gene_r_median", "gene_recovery")
#: resampled sums at once
_DRAWN_AT_ONCE = 4_000_000

Features = Float[np.ndarray, "tile feature"]


@dataclass(frozen=True)
class GeneSums:
    """Sums a spatial group that give every gene's correlation: (group, 5, gene) and tiles (group,).

    The five: predicted, measured, predicted^2, measured^2, product; both taken from the training region's mean.
    """

    tiles: Int[np.ndarray, " group"]
    sums: Float64[np.ndarray, "group 5 gene"]

    def r(self) -> Float[np.ndarray, " gene"]:
        """Pearson r of each gene over all tiles; 0 where one side is constant."""
        return correlation(int(self.tiles.sum()), self.sums.sum(axis=0))


def gene_sums(probe: Probe, features: Features, counts: Counts, groups: Int[np.ndarray, " tile"]) -> GeneSums:
    """Show tiles to the probe and compare its prediction with the measured counts of the same places.

    Groups are numbered from 0; give every method the same tiles, counts and groups.
    """
    design = probe.components(features)
    log_counts = sparse.csc_array(counts).log1p()
    sizes = np.bincount(groups)
    sums = np.zeros((len(sizes), 5, counts.shape[1]))
    for genes, levels in in_chunks(log_counts):
        weights = probe.weights[:, genes]
        # the constant is near the mean of the training tiles: taking it from both sides keeps the sums exact
        predicted = design[:, :-1] @ weights[:-1]
        sums[:, :, genes] = correlation_sums(predicted, levels - weights[-1], groups)
    return GeneSums(sizes, sums)


@dataclass(frozen=True)
class Recovery:
    """r of every gene and method, and the figures over the genes that count (`kept`: ceiling r at least 0.1).

    gene_r is the mean of r, gene_r_median its median; `n` of an interval is the number of genes. drawn: the resamples
    of a (metric, method), the same groups for all methods.
    """

    r: Mapping[str, Float[np.ndarray, " gene"]]
    kept: Bool[np.ndarray, " gene"]
    figures: Mapping[tuple[str, str], Interval]
    drawn: Mapping[tuple[str, str], Float[np.ndarray, " draw"]] = field(repr=False)

    def difference(self, metric: str, first: str, second: str) -> Difference:
        """`first` minus `second`, from the same resamples; p is two-sided."""
        values = [self.figures[metric, method].value for method in (first, second)]
        apart = self.drawn[metric, first] - self.drawn[metric, second]
        n = self.figures[metric, first].n
        if values[0] is None or values[1] is None:
            return Difference(None, None, None, None, n)
        return Difference(values[0] - values[1], *limits(apart), two_sided_p(apart), n)


def gene_recovery(sums: Mapping[str, GeneSums], resamples: int, seed: int, ceiling: str = "real") -> Recovery:
    """Figures gene_r, gene_r_median and gene_recovery of every method, `ceiling` (real tiles) among them.

    With fewer than two groups there are no intervals; without a gene that counts, no values.
    """
    r = {method: found.r() for method, found in sums.items()}
    kept = r[ceiling] >= MIN_R
    tiles = sums[ceiling].tiles
    index = np.concatenate([*draws(len(tiles), resamples, seed), np.zeros((0, len(tiles)), np.int64)])
    times = (index[:, :, None] == np.arange(len(tiles))).sum(axis=1) if len(tiles) > 1 else np.zeros((0, len(tiles)))
    whole = {method: _figures(r[method][None, kept], r[ceiling][None, kept]) for method in r}
    parts: dict[tuple[str, str], list[Float[np.ndarray, " draw"]]] = {}
    size = max(1, _DRAWN_AT_ONCE // max(5 * int(kept.sum()), 1))
    for start in range(0, len(times), size):
        weights = times[start : start + size].astype(np.float64)
        real = _resampled(sums[ceiling], kept, weights)
        for method, found in sums.items():
            for metric, drawn in _figures(_resampled(found, kept, weights), real).items():
                parts.setdefault((metric, method), []).append(drawn)
    figures, drawn_all = {}, {}
    for method in sums:
        for metric, value in whole[method].items():
            drawn = np.concatenate(parts.get((metric, method), [np.zeros(0)]))
            known = bool(kept.any())
            bounds = limits(drawn) if known else (None, None)
            figures[metric, method] = Interval(float(value[0]) if known else None, *bounds, int(kept.sum()))
            drawn_all[metric, method] = drawn
    return Recovery(r, kept, figures, drawn_all)


def _resampled(
    sums: GeneSums, kept: Bool[np.ndarray, " gene"], weights: Float64[np.ndarray, "draw group"]
) -> Float64[np.ndarray, "draw kept"]:
    chosen = sums.sums[:, :, kept]
    drawn = (weights @ chosen.reshape(len(chosen), -1)).reshape(len(weights), *chosen.shape[1:])
    return correlation((weights @ sums.tiles)[:, None], drawn)


def _figures(
    r: Float64[np.ndarray, "draw gene"], ceiling: Float64[np.ndarray, "draw gene"]
) -> dict[str, Float[np.ndarray, " draw"]]:
    if not r.shape[1]:
        nothing = np.full(len(r), np.nan)
        return {"gene_r": nothing, "gene_r_median": nothing, "gene_recovery": nothing}
    total = ceiling.sum(axis=1)
    share = np.divide(r.sum(axis=1), total, out=np.full(len(r), np.nan), where=total > 0)
    return {"gene_r": r.mean(axis=1), "gene_r_median": np.median(r, axis=1), "gene_recovery": share}
