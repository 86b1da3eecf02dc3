"""Which slab is drawn when: a keyed order that is a function of numbers, never of who asks.

Training is an endless row of draws, cut into passes. A pass visits every slab once (or the brains in given shares), in
an order keyed by (seed, pass); a visit is `crops_per_slab` draws in a row, so that a slab is read once for several
crops. A step takes batch * ranks draws; the last of a pass wraps to the pass' beginning, so every step is full. Ranks
take their part of every step, workers every w-th step: all ranks have equal steps (DDP never waits for a rank that
ended), and the samples of a step do not depend on how they are split.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray

from tera_mind.errors import InputError
from tera_mind.formats.manifest import Manifest

#: what random numbers are for, the second number of their key
ORDER, CROP, VALIDATION, SLABS = 1, 2, 3, 4
#: rounds of the Feistel network; four make a pseudorandom permutation (Luby and Rackoff 1988), more serve small sizes
_ROUNDS = 6
#: places of a pass whose slabs are computed together
_CHUNK = 4096
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


def keyed_permutation(places: NDArray[np.int64], size: int, key: Sequence[int]) -> NDArray[np.int64]:
    """Elements of a permutation of 0 .. size - 1 that depends on a key, without making all of it.

    A Feistel network permutes a power of four; what falls outside is permuted again until it falls inside (Black and
    Rogaway 2002). A whole brain has millions of slabs, and every loading process asks for a few.
    """
    bits = max(3, ((size - 1).bit_length() + 1) // 2)
    half, mask = np.uint64(bits), np.uint64((1 << bits) - 1)
    round_keys = np.random.SeedSequence(list(key)).generate_state(_ROUNDS, np.uint64)
    found = places.astype(np.uint64)
    outside = np.arange(len(found))
    while len(outside):
        left, right = found[outside] >> half, found[outside] & mask
        for round_key in round_keys:
            mixed = (right ^ round_key) * _MULTIPLIER
            mixed = (mixed ^ (mixed >> np.uint64(29))) * _MULTIPLIER
            left, right = right, left ^ ((mixed >> np.uint64(40)) & mask)
        found[outside] = (left << half) | right
        outside = outside[found[outside] >= size]
    return found.astype(np.int64)


def brain_visits(slabs: Sequence[int], weights: Sequence[float] | None) -> list[int]:
    """Visits of every brain's slabs in a pass: all slabs once, or the same number of visits shared out by weight.

    Shares are met to one visit (largest remainders). Raises `InputError` for weights that cannot be met.
    """
    if weights is None:
        return list(slabs)
    if not all(math.isfinite(weight) and weight >= 0 for weight in weights) or not sum(weights) > 0:
        raise InputError(f"brain_weights should be at least 0 and not all 0, got {list(weights)}")
    if any(weight > 0 and not count for weight, count in zip(weights, slabs, strict=True)):
        raise InputError(f"brain_weights {list(weights)} ask for a brain without slabs; slabs of every brain: {slabs}")
    shares = [sum(slabs) * weight / sum(weights) for weight in weights]
    visits = [math.floor(share) for share in shares]
    by_rest = sorted(range(len(shares)), key=lambda brain: visits[brain] - shares[brain])
    for brain in by_rest[: sum(slabs) - sum(visits)]:
        visits[brain] += 1
    return visits


def named_weights(names: Sequence[str], weights: Mapping[str, float] | Sequence[float] | None) -> list[float] | None:
    """Weights in the order of the brains `names`; a mapping names all of them."""
    if weights is None:
        return None
    if isinstance(weights, Mapping):
        if set(weights) != set(names):
            raise InputError(f"brain_weights should name {', '.join(names)}; got {', '.join(weights) or 'none'}")
        return [float(weights[name]) for name in names]
    if len(weights) != len(names):
        raise InputError(f"brain_weights should have {len(names)} entries ({', '.join(names)}), got {len(weights)}")
    return [float(weight) for weight in weights]


@dataclass(frozen=True)
class SlabOrder:
    """The visits of every pass: `slabs` of each brain (numbered brain after brain), `visits` of each a pass."""

    slabs: tuple[int, ...]
    visits: tuple[int, ...]
    seed: int

    def __len__(self) -> int:
        """Visits in a pass."""
        return sum(self.visits)

    def __call__(self, number: int, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """Slabs visited at some places of pass `number`.

        Visits of a brain go through all its slabs before any comes again, from pass to pass.
        """
        slabs = np.empty_like(places)
        chunks = places // _CHUNK
        for chunk in set(chunks.tolist()):
            here = chunks == chunk
            slabs[here] = _chunk_of(self, number, chunk)[places[here] % _CHUNK]
        return slabs

    def visited(self, number: int, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """The same, computed one by one."""
        entries = keyed_permutation(places, len(self), (self.seed, ORDER, number))
        ends, firsts = np.cumsum(self.visits), np.cumsum((0, *self.slabs))
        brains = np.searchsorted(ends, entries, side="right")
        slabs = np.empty_like(entries)
        for brain in np.unique(brains).tolist():
            here = brains == brain
            row = number * self.visits[brain] + entries[here] - (ends[brain] - self.visits[brain])
            rounds, offsets = np.divmod(row, self.slabs[brain])
            drawn = np.empty_like(row)
            for turn in np.unique(rounds).tolist():
                key = (self.seed, SLABS, brain, turn)
                drawn[rounds == turn] = keyed_permutation(offsets[rounds == turn], self.slabs[brain], key)
            slabs[here] = firsts[brain] + drawn
        return slabs


@lru_cache(maxsize=4)
def _chunk_of(order: SlabOrder, number: int, chunk: int) -> NDArray[np.int64]:
    """Slabs of consecutive places of a pass, made together since a few cost as much as thousands."""
    return order.visited(number, np.arange(chunk * _CHUNK, min((chunk + 1) * _CHUNK, len(order))))


@dataclass(frozen=True)
class Draw:
    """One crop to be cut: its number (the key of its random numbers), its slab, its corner if that is not random."""

    number: int
    slab: int
    corner: tuple[int, int] | None = None


@dataclass
class TrainingBatches:
    """Lists of draws, one a step, of one rank.

    `steps_per_epoch` None makes an epoch a pass; else epoch e goes on where epoch e - 1 ended. The position (epoch,
    step) lies in shared memory: workers that live on see it change.
    """

    order: SlabOrder
    batch_size: int
    crops_per_slab: int
    steps_per_epoch: int | None = None
    rank: int = 0
    ranks: int = 1
    _position: torch.Tensor = field(default_factory=lambda: torch.zeros(2, dtype=torch.int64).share_memory_())

    @property
    def global_batch(self) -> int:
        """Draws of a step, over all ranks."""
        return self.batch_size * self.ranks

    @property
    def pass_draws(self) -> int:
        """Draws of a pass before it wraps."""
        return len(self.order) * self.crops_per_slab

    @property
    def pass_steps(self) -> int:
        return math.ceil(self.pass_draws / self.global_batch)

    @property
    def repeated(self) -> int:
        """Draws of a pass beyond its last visit: fewer than a global batch."""
        return self.pass_steps * self.global_batch - self.pass_draws

    def __len__(self) -> int:
        return self.steps_per_epoch or self.pass_steps

    def start_at(self, epoch: int, step: int) -> None:
        """The next iteration begins with this step of this epoch."""
        self._position[0], self._position[1] = epoch, step

    def __call__(self) -> Iterator[list[Draw]]:
        epoch, start = self._position.tolist()
        for step in range(start, len(self)):
            yield self._draws(epoch * len(self) + step)

    def _draws(self, step: int) -> list[Draw]:
        first = self.rank * self.batch_size
        numbers = step * self.global_batch + np.arange(first, first + self.batch_size)
        slabs = self.order(step // self.pass_steps, self._places(numbers))
        return [Draw(number, slab) for number, slab in zip(numbers.tolist(), slabs.tolist(), strict=True)]

    def _places(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """The place in its pass of every draw's visit."""
        drawn = numbers % (self.pass_steps * self.global_batch)  # counted from the beginning of the pass
        return drawn % self.pass_draws // self.crops_per_slab

    def instead(self, draw: Draw, attempt: int) -> Draw:
        """What is drawn where a slab cannot be read: the next visit's slab in the same order, and so on.

        A function of the draw's number alone, the same on every rank and worker; the crop's random numbers stay.
        """
        number = np.array([draw.number])
        places = (self._places(number) + attempt) % len(self.order)
        turn = draw.number // (self.pass_steps * self.global_batch)
        return replace(draw, slab=int(self.order(turn, places)[0]))

    @property
    def choices(self) -> int:
        """How many draws `instead` can offer before it comes round."""
        return len(self.order)


@dataclass
class FixedBatches:
    """Lists of given draws, one a step, of one rank: the same in every epoch.

    `draws` is the table of `validation_draws`, a draw's number its row. They are wrapped to a multiple of the ranks (at
    most `ranks - 1` repeated), so that all ranks have equal steps and equal batches; the last batch may be shorter.
    """

    draws: NDArray[np.int64]
    batch_size: int
    rank: int = 0
    ranks: int = 1

    def __len__(self) -> int:
        return math.ceil(len(self.draws) / (self.batch_size * self.ranks))

    def start_at(self, epoch: int, step: int) -> None:
        """Validation is the same in every epoch."""

    def __call__(self) -> Iterator[list[Draw]]:
        total, step = len(self.draws) + -len(self.draws) % self.ranks, self.batch_size * self.ranks
        for start in range(0, total, step):
            numbers = range(start + self.rank, min(start + step, total), self.ranks)
            yield [self._draw(number % len(self.draws)) for number in numbers]

    def _draw(self, number: int) -> Draw:
        slab, y, x = self.draws[number].tolist()
        return Draw(number, slab, (y, x))

    def instead(self, draw: Draw, attempt: int) -> Draw:
        """What is drawn where a slab cannot be read: the next crop of the list, under the same number."""
        return replace(self._draw((draw.number + attempt) % len(self.draws)), number=draw.number)

    @property
    def choices(self) -> int:
        return len(self.draws)


def validation_draws(manifest: Manifest, split: str, crop_px: int) -> NDArray[np.int64]:
    """Crops side by side on a grid over every region of a split; slabs in a fixed shuffled order.

    A row a draw: slab, y and x of the crop's corner. A table, since a whole brain has millions of them. The order lets
    the first few batches show all of a region, for those who limit validation to them.
    """
    counts = manifest.split(split).slabs
    areas = [manifest.corner_area(split, brain, crop_px) if count else None for brain, count in enumerate(counts)]
    origins = np.repeat([(0, 0) if area is None else (area.y0, area.x0) for area in areas], counts, axis=0)
    shuffled = np.random.default_rng([VALIDATION]).permutation(sum(counts))
    y0, y1, x0, x1 = manifest.all_corners(split, crop_px)[shuffled].astype(np.int64).T
    first_y, first_x = y0 + (origins[shuffled, 0] - y0) % crop_px, x0 + (origins[shuffled, 1] - x0) % crop_px
    # points of origin, origin + crop_px, ... in [y0, y1) and [x0, x1)
    rows, columns = (np.maximum(0, -((first - end) // crop_px)) for first, end in ((first_y, y1), (first_x, x1)))
    crops = rows * columns
    of = np.repeat(np.arange(len(shuffled)), crops)
    row, column = np.divmod(np.arange(len(of)) - (np.cumsum(crops) - crops)[of], columns[of])
    return np.stack([shuffled[of], first_y[of] + row * crop_px, first_x[of] + column * crop_px], axis=1)
