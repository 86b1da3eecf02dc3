"""Distances between sets of tiles and gene recovery, from the merged features of all units."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray
from scipy import sparse

from tera_mind.errors import InputError
from tera_mind.metrics.bootstrap import Difference, Interval
from tera_mind.metrics.plan import CEILING, GENERATED, REAL
from tera_mind.metrics.scores import Measured
from tera_mind.metrics.table import Paired, Row, paired_row
from tera_mind.metrics.tiles import frechet
from tera_mind.metrics.tiles.features import FeatureExtractor
from tera_mind.metrics.tiles.jackknife import Jackknife, difference, spatial_groups
from tera_mind.metrics.tiles.kernel import kernel_jackknife
from tera_mind.metrics.tiles.probe import MIN_R, MIN_TILES, Counts, Probe, fit_probe
from tera_mind.metrics.tiles.recovery import GeneSums, gene_recovery, gene_sums

Features = Float[np.ndarray, "tile feature"]


def tile_groups(found: Measured, method: str, extractor: str) -> Int[np.ndarray, " tile"]:
    """Spatial groups of a method's tiles: the units of the jackknife."""
    return spatial_groups(found.of(method).array(f"tiles/{extractor}")[:, 1:])


def distance_rows(
    found: Measured, extractors: Sequence[FeatureExtractor], controls: Sequence[str]
) -> tuple[list[Row], list[Paired]]:
    """Every method's tiles, and the real tiles of the reference tissue, against the real tiles of the test box.

    Of the reference tissue as many tiles are taken as the test box has: the distances depend on their number. Generated
    is held against the controls on the same tiles.
    """
    rows, pairs = [], []
    for number, extractor in enumerate(extractors):
        groups = tile_groups(found, REAL, extractor.name)
        reference = tile_groups(found, CEILING, extractor.name)
        chosen = np.linspace(0, len(reference) - 1, min(len(reference), len(groups))).round().astype(int)
        for stain in found.plan.stains:
            key = f"features/{extractor.name}/{{}}/{stain}"
            real = found.test.array(key.format(REAL))
            ceiling = found.reference.array(key.format(CEILING))[chosen] if len(reference) else real[:0]
            measure = _Distances(real, ceiling, groups, reference[chosen], None if number == 0 else extractor.name)
            why = (
                f"needs at least {frechet.MIN_TILES} tiles of tissue on each side, has {len(ceiling)} in the reference "
                f"tissue and {len(real)} in the test region"
            )
            values: dict[tuple[str, str], Jackknife] = {}
            for method in found.plan.methods:
                if method == REAL:
                    continue
                own = None if method == CEILING else found.test.array(key.format(method))
                measured = measure(own)
                for metric in measure.metrics:
                    value = measured.get(metric)
                    lowest = -np.inf if metric == "kernel" else 0.0
                    none = Interval(None, None, None, min(len(real), len(ceiling)))
                    rows.append(Row.of(method, metric, stain, value.interval(lowest) if value else none, why))
                values |= {(metric, method): value for metric, value in measured.items()}
            for metric, control in ((m, c) for m in measure.metrics for c in controls):
                absent = Difference(None, None, None, None, len(real))
                made, other = values.get((metric, GENERATED)), values.get((metric, control))
                pairs.append(
                    paired_row(metric, stain, control, difference(other, made) if made and other else absent, why)
                )
    return rows, pairs


class _Distances:
    """Distances of one stain's tiles to the real ones: shrunk Frechet and kernel of the built-in network's features,
    or the plain Frechet distance of those of another, `name`.
    """

    def __init__(
        self,
        real: Float[np.ndarray, "other feature"],
        ceiling: Features,
        groups: Int[np.ndarray, " other"],
        apart: Int[np.ndarray, " tile"],
        name: str | None,
    ) -> None:
        self.real, self.ceiling, self.groups, self.apart, self.name = real, ceiling, groups, apart, name
        self.metrics = ("frechet", "kernel") if name is None else (name,)
        self.enough = min(len(real), len(ceiling)) >= frechet.MIN_TILES
        self.space = None
        if self.enough and name is None:
            both = np.concatenate([real, ceiling]).astype(np.float64)
            self.space = frechet.feature_space(both, frechet.components_for(len(ceiling)))

    def __call__(self, own: Features | None) -> dict[str, Jackknife]:
        """Of a method's tiles at the real tiles' places; None: of the reference tissue's."""
        if not self.enough:
            return {}
        one, two = (self.groups, None) if own is not None else (self.apart, self.groups)
        tiles = self.ceiling if own is None else own
        if self.name is not None:
            return {self.name: frechet.plain_jackknife(tiles, self.real, one, two)}
        assert self.space is not None
        wide = tiles.astype(np.float64), self.real.astype(np.float64)
        shrunk = frechet.shrunk_jackknife(wide[0], wide[1], self.space, one, two)
        return {"frechet": shrunk, "kernel": kernel_jackknife(tiles, self.real, one, two)}


def recovery_rows(
    found: Measured, extractor: FeatureExtractor, controls: Sequence[str]
) -> tuple[list[Row], list[Paired], dict[str, NDArray[Any]], dict[str, Any]]:
    """Gene recovery: rows, generated against the controls, r by gene, and what the settings say of the probe."""
    methods = [method for method in found.plan.images if method != REAL]
    training = found.reference.array(f"tiles/{extractor.name}")
    tested = len(found.test.array(f"tiles/{extractor.name}"))
    why = None
    if len(training) < MIN_TILES or tested < frechet.MIN_TILES:
        why = (
            f"the gene probe needs {MIN_TILES} tiles to learn from and {frechet.MIN_TILES} to be tested on, "
            f"got {len(training)} and {tested}"
        )
    probe, sums = None, {}
    if why is None:
        try:
            probe = _probe(found, extractor, training)
        except InputError as error:  # tiles that cannot be held apart, or that all look alike
            why = str(error)
    if probe is None:
        none = Interval(None, None, None, 0)
        metrics = ("gene_r", "gene_r_median", "gene_recovery")
        return [Row.of(m, metric, "", none, why or "") for m in (REAL, *methods) for metric in metrics], [], {}, {}
    groups, counts = tile_groups(found, REAL, extractor.name), _counts(found, REAL)
    for method in (REAL, *methods):
        sums[method] = gene_sums(probe, _all_stains(found, extractor, method), counts, groups)
    return _conclude(found, sums, probe, controls)


def _probe(found: Measured, extractor: FeatureExtractor, training: Int[np.ndarray, "tile 5"]) -> Probe:
    return fit_probe(_all_stains(found, extractor, CEILING), _counts(found, CEILING), training[:, 1:])


def _conclude(
    found: Measured, sums: dict[str, GeneSums], probe: Probe, controls: Sequence[str]
) -> tuple[list[Row], list[Paired], dict[str, NDArray[Any]], dict[str, Any]]:
    recovery = gene_recovery(sums, found.draw.resamples, found.draw.seed, REAL)
    why = f"no gene's real tiles are predicted with r of {MIN_R:g} or more"
    rows = [Row.of(method, metric, "", interval, why) for (metric, method), interval in recovery.figures.items()]
    pairs = []
    if recovery.kept.any():
        for control in controls:
            apart = recovery.difference("gene_recovery", GENERATED, control)
            pairs.append(paired_row("gene_recovery", "", control, apart, why))
    arrays = {f"gene_r/{method}": values for method, values in recovery.r.items()}
    return rows, pairs, arrays, probe.facts() | {"genes_kept": int(recovery.kept.sum())}


def _all_stains(found: Measured, extractor: FeatureExtractor, method: str) -> Features:
    own = found.of(method)
    return np.concatenate(
        [own.array(f"features/{extractor.name}/{method}/{stain}") for stain in found.plan.stains], axis=1
    )


def _counts(found: Measured, method: str) -> Counts:
    """The sparse table of transcripts by tile and gene, put together from the units' parts."""
    own, genes = found.of(method), found.genes
    data, gene, length = (own.array(f"tile_counts/{part}") for part in ("data", "gene", "length"))
    ends = np.concatenate([[0], np.cumsum(length)])
    return sparse.csr_array((data, gene, ends), shape=(len(length), genes))
