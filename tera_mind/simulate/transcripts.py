"""Transcripts of cells and of the space between them.

Counts are negative binomial by cell and gene, looked up in the distribution's cumulative probabilities with one uniform
number keyed by (section, cell, gene); each copy has its own key for its place. So a transcript depends on its cell and
its number alone, and a panel of any size costs (cells x genes) with nothing kept.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from tera_mind.simulate import celltypes, keys
from tera_mind.simulate.anatomy import Anatomy
from tera_mind.simulate.cells import Cells
from tera_mind.simulate.panel import BLANKS, expression, nuclear_share
from tera_mind.simulate.perturb import Perturbation
from tera_mind.simulate.regions import VENTRICLE

Reals = NDArray[np.float64]

#: share of transcripts that lie in no cell's reach
FLOOR_SHARE = 0.15
MISIDENTIFIED = 0.015
#: of a cell's transcripts, the share outside nucleus and soma
NEUROPIL = {True: 0.40, False: 0.15}
#: glia hold more in the nucleus: odds of the nucleus against the soma, relative to neurons
GLIA_ODDS = 1.85
#: of a gene in a cell of given library size; over cells of a type, whose libraries differ, it comes to about 2
DISPERSION = 3.0
NEUROPIL_UM, LARGEST_NEUROPIL_UM = 4.0, 32.0
FLOOR_BIN_UM = 8.0
#: where a transcript is: `place`
PLACES = ("nucleus", "soma", "neuropil", "between cells")
_CHUNK = 1_500_000
_NUMBER_BITS = 24


@dataclass(frozen=True)
class TranscriptRows:
    """Transcripts as columns: position in the section's um, gene (position in the panel; blanks follow), and the truth:
    their cell (0: none) and `place`, an index into `PLACES`.
    """

    y_um: Reals
    x_um: Reals
    gene: NDArray[np.int32]
    cell: NDArray[np.int64]
    place: NDArray[np.int8]

    def __len__(self) -> int:
        return len(self.gene)

    def take(self, chosen: NDArray[np.bool_]) -> TranscriptRows:
        """Some of the transcripts."""
        return TranscriptRows(**{field.name: getattr(self, field.name)[chosen] for field in fields(self)})

    @staticmethod
    def join(parts: list[TranscriptRows]) -> TranscriptRows:
        """All parts, one after another."""
        return TranscriptRows(
            **{f.name: np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(TranscriptRows)}
        )


@dataclass(frozen=True)
class Transcriptome:
    """What fixes the transcripts of a brain: seed, genes by number with names, factor on mean counts, floor per um2."""

    seed: int
    numbers: tuple[int, ...]
    names: tuple[str, ...]
    factor: float
    floor_um2: float
    perturbation: Perturbation | None = None

    @cached_property
    def _means(self) -> Reals:
        return np.ascontiguousarray(expression(self.numbers).T) * self.factor  # (type, gene)

    @cached_property
    def _floor_genes(self) -> Reals:
        """Cumulative shares of the genes between cells: their mean over types."""
        total = np.cumsum(expression(self.numbers).mean(axis=1))
        return np.asarray(total / total[-1])

    def of_cells(self, cells: Cells, section: int) -> TranscriptRows:
        """Transcripts of the cells, ordered by cell, gene and copy."""
        genes = len(self.numbers)
        step = max(1, _CHUNK // genes)
        parts = [
            self._chunk(cells.take(np.arange(first, min(first + step, len(cells)))), section)
            for first in range(0, max(1, len(cells)), step)
        ]
        return TranscriptRows.join(parts)

    def counts(self, cells: Cells, section: int) -> NDArray[np.int64]:
        """Counts (cell, gene) before misidentification; as large as that, so for few cells at a time."""
        numbers = np.array(self.numbers, np.int64)
        blocks, block = np.unique(numbers // 4, return_inverse=True)
        a, b = np.broadcast_arrays(cells.cell[:, None], blocks[None, :])
        drawn = np.stack(keys.words(self.seed, keys.COUNTS, section, a, b), axis=-1)
        chance = keys.uniform(drawn[:, block, numbers % 4])
        means = self._means[cells.kind] * cells.library[:, None]
        if self.perturbation is not None:
            means = means * self.perturbation.gene_factors(self.names, cells.kind, cells.region)
        return negative_binomial(chance, means)

    def _chunk(self, cells: Cells, section: int) -> TranscriptRows:
        counts = self.counts(cells, section)
        cell, gene = np.nonzero(counts)
        many = counts[cell, gene]
        first = np.cumsum(many) - many
        copy = np.arange(int(many.sum())) - np.repeat(first, many)
        cell, gene = np.repeat(cell, many), np.repeat(gene, many)
        number = np.array(self.numbers, np.int64)[gene]
        key = number + (copy << 16)
        w0, w1, w2, w3 = keys.words(self.seed, keys.COPIES, section, cells.cell[cell], key)
        y_um, x_um, place = self._positions(cells, cell, gene, (w0, w1, w2))
        return TranscriptRows(y_um, x_um, self._read(gene, w3), cells.cell[cell], place)

    def _read(self, gene: NDArray[np.intp], word: NDArray[np.uint64]) -> NDArray[np.int32]:
        """The gene that the instrument reads: now and then another one, or a blank."""
        chance, other = keys.halves(word)
        wrong = (other * (len(self.numbers) + BLANKS)) >> 16
        return np.where(chance < MISIDENTIFIED * keys.LEVELS, wrong, gene).astype(np.int32)

    def _positions(
        self, cells: Cells, cell: NDArray[np.intp], gene: NDArray[np.intp], drawn: tuple[NDArray[np.uint64], ...]
    ) -> tuple[Reals, Reals, NDArray[np.int8]]:
        where, split = keys.halves(drawn[0])
        turn, far = keys.halves(drawn[1])
        tail, _ = keys.halves(drawn[2])
        neuron = np.array([kind.neuron for kind in celltypes.TYPES])[cells.kind[cell]]
        outside = np.where(neuron, NEUROPIL[True], NEUROPIL[False])
        share = nuclear_share(self.numbers)[gene]
        share = np.where(neuron, share, GLIA_ODDS * share / (1.0 + (GLIA_ODDS - 1.0) * share))
        place = np.where(where < outside * keys.LEVELS, 2, np.where(split < share * keys.LEVELS, 0, 1)).astype(np.int8)
        cos, sin = keys.quantiles("cosine")[turn], keys.quantiles("sine")[turn]
        spread = (far + 0.5) / keys.LEVELS
        major, minor, soma = cells.major_um[cell], cells.minor_um[cell], cells.soma_um[cell]
        along, across = cos * major, sin * minor
        edge = np.sqrt(along * along + across * across)
        ring = np.sqrt(edge * edge + spread * np.maximum(soma * soma - edge * edge, 2.0 * edge))
        beyond = np.maximum(soma, edge) + keys.quantiles("exponential", NEUROPIL_UM, LARGEST_NEUROPIL_UM)[tail]
        radius = np.where(place == 0, edge * np.sqrt(spread), np.where(place == 1, ring, beyond))
        u, v = along / edge * radius, across / edge * radius
        y_um = cells.y_um[cell] + u * cells.sin[cell] + v * cells.cos[cell]
        x_um = cells.x_um[cell] + u * cells.cos[cell] - v * cells.sin[cell]
        return y_um, x_um, place

    def floor(
        self, anatomy: Anatomy, section: int, z_um: float, window_um: tuple[float, float, float, float]
    ) -> TranscriptRows:
        """Transcripts in no cell's reach, evenly over the tissue of a window (y0, y1, x0, x1) of the atlas; positions
        are the atlas' and bins are whole, so some lie a little outside the window.
        """
        y0, y1, x0, x1 = (int(np.floor(edge / FLOOR_BIN_UM)) for edge in window_um)
        row, column = (
            part.ravel() for part in np.meshgrid(np.arange(y0, y1 + 1), np.arange(x0, x1 + 1), indexing="ij")
        )
        middle = [np.asarray((part + 0.5) * FLOOR_BIN_UM, np.float64) for part in (row, column)]
        region = anatomy.region(middle[0], middle[1], z_um)
        inside = region > VENTRICLE
        row, column, region = row[inside], column[inside], region[inside]
        table = keys.poisson_table(self.floor_um2 * FLOOR_BIN_UM**2)
        many = table[keys.halves(keys.words(self.seed, keys.FLOOR, section, row, column)[0])[0]]
        row, column, region = np.repeat(row, many), np.repeat(column, many), np.repeat(region, many)
        copy = np.arange(len(row)) - np.repeat(np.cumsum(many) - many, many)
        bin_key = ((row + 2**12) << 13) + (column + 2**12)
        w0, w1, w2, _ = keys.words(self.seed, keys.FLOOR, section, bin_key, copy, 1)
        gene = np.searchsorted(self._floor_genes, keys.uniform(w0))
        repeat = self._floor_copies(region, gene, keys.uniform(w2))
        if repeat is not None:
            row, column, bin_key, gene = (np.repeat(part, repeat) for part in (row, column, bin_key, gene))
            again = np.arange(len(row)) - np.repeat(np.cumsum(repeat) - repeat, repeat)
            copy = np.repeat(copy, repeat) + (again << 16)
        _, w1, _, w3 = keys.words(self.seed, keys.FLOOR, section, bin_key, copy, 1)
        down, across = keys.halves(w1)
        y_um = (row + (down + 0.5) / keys.LEVELS) * FLOOR_BIN_UM
        x_um = (column + (across + 0.5) / keys.LEVELS) * FLOOR_BIN_UM
        count = len(row)
        return TranscriptRows(y_um, x_um, self._read(gene, w3), np.zeros(count, np.int64), np.full(count, 3, np.int8))

    def _floor_copies(
        self, region: NDArray[np.int8], gene: NDArray[np.intp], chance: Reals
    ) -> NDArray[np.int64] | None:
        """How often each transcript between cells is kept: once, unless a perturbation scales its gene there."""
        if self.perturbation is None:
            return None
        factors = self.perturbation.floor_factors(self.names, region, gene)
        return np.floor(factors + chance).astype(np.int64)


def negative_binomial(chance: Reals, means: Reals) -> NDArray[np.int64]:
    """Counts with the given means and `DISPERSION`, by inversion of uniform numbers: equal shapes, any size."""
    over = 1.0 + means * (1.0 / DISPERSION)
    zero = 1.0 / (over * over * over)  # (r / (r + m))^r for r = 3
    counts = np.zeros(means.shape, np.int64)
    left = np.nonzero(chance > zero)
    u, p = chance[left], zero[left]
    ratio = means[left] / (means[left] + DISPERSION)
    total, k = p.copy(), 0
    flat = np.zeros(len(u), np.int64)
    open_ = np.arange(len(u))
    while len(open_) and k < 2000:
        k += 1
        p = p * ratio * ((k - 1 + DISPERSION) / k)
        total = total + p
        flat[open_] = k
        more = u > total
        open_, u, p, ratio, total = open_[more], u[more], p[more], ratio[more], total[more]
    counts[left] = flat
    return counts
