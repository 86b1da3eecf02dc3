"""How many blocks any band of a section group takes, in a few look-ups: what a plan is made of."""

from __future__ import annotations

import itertools
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from tera_mind.geometry import Box
from tera_mind.sampling.domain import Domain
from tera_mind.sampling.plain import SamplerSettings
from tera_mind.sampling.skew import Skew


class BandCost:
    """Blocks of bands (patch rows over the whole width) of one domain: those that `Skew.computed` counts, but fast."""

    def __init__(self, domain: Domain, settings: SamplerSettings, halo_px: int) -> None:
        self.domain, self.settings, self.halo_px = domain, settings, halo_px
        self.whole = Skew.of(settings, domain.patch_px, halo_px, (domain.rows, domain.columns))
        every: dict[int, tuple[NDArray[np.int64], ...]] = {}
        for step in range(1, settings.steps + 1):
            moved = self.whole.shift(step) % settings.block_columns
            if moved not in every:
                every[moved] = _row_sums(domain.active, settings.block_rows, settings.block_columns, moved)
        moves = [self.whole.shift(step) % settings.block_columns for step in range(1, settings.steps + 1)]
        self._below, self._above, self._total = (np.stack([every[m][k] for m in moves]) for k in range(3))

    @cached_property
    def patches(self) -> NDArray[np.int64]:
        """Active patches above each patch row, and in all: int64 (rows + 1,)."""
        return np.concatenate([[0], self.domain.active.sum(1).cumsum()])

    def blocks(self, rows: tuple[int, int]) -> NDArray[np.int64]:
        """Blocks of each step for patch rows [r0, r1): int64 (steps,)."""
        size, steps = self.settings.block_rows, np.arange(self.settings.steps)
        margin = self.whole.reach * (self.settings.steps - 1 - steps)
        first, last = np.maximum(0, rows[0] - margin), np.minimum(self.domain.rows, rows[1] + margin)
        row, end = first // size, last // size
        # the first block row counts only from `first` on, the last one only up to `last`
        inner = self._total[steps, end] - self._total[steps, np.minimum(row + 1, self._total.shape[1] - 1)]
        out = self._below[steps, first] + inner + self._above[steps, last]
        for step in np.flatnonzero(row == end):  # within one block row
            cut = Skew.of(self.settings, self.domain.patch_px, self.halo_px, self.whole.shape, rows)
            out[step] = cut.computed(self.domain, int(step) + 1).sum()
        return np.asarray(out)

    def cuts(self, shards: NDArray[np.int64], bands: int) -> list[tuple[int, int]]:
        """Patch rows of `bands` bands of about equal active patches, cut at the given rows (0, ..., rows)."""
        done = self.patches[shards]
        if done[-1] == 0:
            return _even(shards, bands)
        wanted = done[-1] * np.arange(1, bands) / bands
        at = np.abs(done[None] - wanted[:, None]).argmin(1)
        for k in range(bands - 1):  # every band at least one shard high
            at[k] = np.clip(at[k], (at[k - 1] if k else 0) + 1, len(shards) - bands + k)
        edges = shards[[0, *at.tolist(), -1]].tolist()
        return list(itertools.pairwise(edges))


def _even(shards: NDArray[np.int64], bands: int) -> list[tuple[int, int]]:
    """Bands of about equal height."""
    edges = shards[np.arange(bands + 1) * (len(shards) - 1) // bands].tolist()
    return list(itertools.pairwise(edges))


def _row_sums(
    active: NDArray[np.bool_], block_rows: int, block_columns: int, moved: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Blocks, of columns moved left by `moved` patches, with an active patch, of three kinds.

    From a patch row to the end of its block row (rows + 1,); from the start of its block row to before it (rows + 1,);
    in all block rows above (block rows + 1,).
    """
    rows, columns = active.shape
    box = Box(0, -(-rows // block_rows) * block_rows, 0, -(-(columns + moved) // block_columns) * block_columns)
    padded = np.zeros((box.height, box.width), bool)
    padded[:rows, moved : moved + columns] = active
    wide = padded.reshape(box.height, -1, block_columns).any(2).reshape(-1, block_rows, box.width // block_columns)
    above = np.logical_or.accumulate(wide, axis=1).sum(2)
    below = np.logical_or.accumulate(wide[:, ::-1], axis=1)[:, ::-1].sum(2)
    before = np.concatenate([np.zeros((len(above), 1), np.int64), above[:, :-1]], axis=1)  # nothing above a first row
    pad = np.zeros(1, np.int64)
    total = np.concatenate([pad, above[:, -1].cumsum()])
    return (
        np.concatenate([below.reshape(-1), pad])[: rows + 1],
        np.concatenate([before.reshape(-1), pad])[: rows + 1],
        total,
    )
