"""Which blocks of patches each step computes in a sweep: the geometry of the wavefront, without any image.

Blocks are anchored to the region: down on multiples of `block_rows`, across on multiples of `block_columns` moved left
by `reach` patches a step. A patch of state s + 1 looks at most `reach` patches around it in state s, so block j of
step s + 1 needs nothing to the right of block j of step s, and only a strip of each state has to be kept. Where the
result is wanted in some rows or columns only, a step s of S computes `reach` (S - s) patches more on every side.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool

from tera_mind.geometry import Box
from tera_mind.sampling.domain import Domain
from tera_mind.sampling.plain import SamplerSettings


@dataclass(frozen=True)
class Skew:
    """Blocks of a sweep of `steps` steps over patch rows and columns of a region of `shape` patches.

    State 0 is noise, state s what step s leaves. Boxes and positions are in patches of the region.
    """

    steps: int
    reach: int
    block_rows: int
    block_columns: int
    micro_batch: int
    shape: tuple[int, int]
    rows: tuple[int, int]
    columns: tuple[int, int]

    @staticmethod
    def of(
        settings: SamplerSettings,
        patch_px: int,
        halo_px: int,
        shape: tuple[int, int],
        rows: tuple[int, int] | None = None,
        columns: tuple[int, int] | None = None,
    ) -> Skew:
        reach = -(-halo_px // patch_px)
        rows, columns = rows or (0, shape[0]), columns or (0, shape[1])
        size = (settings.block_rows, settings.block_columns, settings.micro_batch)
        return Skew(settings.steps, reach, *size, shape, rows, columns)

    @property
    def lag(self) -> int:
        """Block columns by which a step follows the one before: 0, or 1 where a column alone would not fill passes.

        At 1 the blocks of all steps go through the network together, at the price of longer strips of every state.
        """
        return int(self.micro_batch > 1 and len(self.down(self.steps)) < 4 * self.micro_batch)

    def needed(self, state: int) -> Box:
        """Patches of a state that the result depends on."""
        wide = Box(*self.rows, *self.columns).grow(self.reach * (self.steps - state))
        return wide.intersect(Box(0, self.shape[0], 0, self.shape[1]))

    def shift(self, state: int) -> int:
        """Patches by which the blocks of a state lie left of the region's grid (state 0: right of it)."""
        return self.reach * (state - 1)

    def down(self, step: int) -> range:
        """Block rows that step 1..S computes."""
        need = self.needed(step)
        return range(need.y0 // self.block_rows, -(-need.y1 // self.block_rows))

    def across(self, state: int) -> range:
        """Block columns of a state that hold something needed."""
        need, shift = self.needed(state), self.shift(state)
        return range((need.x0 + shift) // self.block_columns, -(-(need.x1 + shift) // self.block_columns))

    def held(self, state: int) -> tuple[int, int]:
        """Patch rows of a state that are kept: whole block rows, and for the noise what the first step reads."""
        down = self.down(max(1, state))
        first, last = down.start * self.block_rows, down.stop * self.block_rows
        if state == 0:
            first, last = first - self.reach, last + self.reach
        return max(0, first), min(self.shape[0], last)

    def column(self, state: int, j: int) -> tuple[int, int]:
        """Patch columns of block column j of a state; they may lie beyond the region."""
        first = j * self.block_columns - self.shift(state)
        return first, first + self.block_columns

    def block(self, step: int, i: int, j: int) -> Box:
        """Patches of block (i, j) of step 1..S; they may lie beyond the region."""
        return Box(i * self.block_rows, (i + 1) * self.block_rows, *self.column(step, j))

    def computed(self, domain: Domain, step: int) -> Bool[np.ndarray, "down across"]:
        """Which blocks (of `down` and `across`) of a step hold an active patch that the result depends on."""
        down, across = self.down(step), self.across(step)
        span = Box(down.start, down.stop, across.start, across.stop)
        left, right = self.column(step, span.x0)[0], self.column(step, span.x1)[0]
        patches = Box(span.y0 * self.block_rows, span.y1 * self.block_rows, left, right)
        active = np.zeros((patches.height, patches.width), bool)
        need = self.needed(step)
        active[need.shift(-patches.y0, -patches.x0).slices()] = domain.active[need.slices()]
        cut = active.reshape(span.height, self.block_rows, span.width, self.block_columns)
        return np.asarray(cut.any(axis=(1, 3)))
