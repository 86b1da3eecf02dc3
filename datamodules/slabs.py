"""The stream of slabs: which draws make up which batch, on which rank and worker; reading with a cache.

Order and split are functions of numbers, never of who asks. Training is an endless row of draws; draw n belongs to
step n // (batch * ranks) and shows slab `permutation(seed, pass)[...]`. Ranks take their part of every step, workers
every w-th step, so all ranks have equal steps (DDP never waits for a rank that ended), each sample is read once, and
any number of shards, slabs, ranks and workers fits together. Samples are fetched from the shards by the manifest's
byte offsets: a full permutation instead of the shuffle buffer that streaming whole tars would need.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import webdataset as wds
from numpy.typing import NDArray

from tera_mind.errors import TeraMindError
from tera_mind.formats.shards import Manifest, Slab

#: decoded slabs kept by every loading process; a split smaller than this is read from disk once
CACHE_MB = 256
#: what random numbers are for, the second number of their key
ORDER, CROP, VALIDATION = 1, 2, 3


@dataclass(frozen=True)
class Draw:
    """One crop to be cut: its number (the key of its random numbers), its slab, its corner if that is not random."""

    number: int
    slab: int
    corner: tuple[int, int] | None = None


class SlabReader:
    """Slabs of a split by number, the last `cache_mb` of them kept in memory."""

    def __init__(self, manifest: Manifest, split: str, cache_mb: float = CACHE_MB) -> None:
        self._manifest, self._split, self._room = manifest, split, cache_mb * 1e6
        self._slabs: OrderedDict[int, Slab] = OrderedDict()

    def __call__(self, number: int) -> Slab:
        slab = self._slabs.pop(number, None)
        if slab is None:
            slab = self._manifest.read(self._split, number)
            self._room -= slab.nbytes
        self._slabs[number] = slab
        while self._room < 0 and len(self._slabs) > 1:
            self._room += self._slabs.popitem(last=False)[1].nbytes
        return slab


@lru_cache(maxsize=2)
def _permutation(seed: int, turn: int, slabs: int) -> NDArray[np.int64]:
    return np.random.default_rng([seed, ORDER, turn]).permutation(slabs)


@dataclass
class TrainingBatches:
    """Lists of draws, one a step, of one rank; each slab is visited once a pass, `crops_per_slab` draws a visit.

    Epoch e continues where epoch e - 1 ended, so that every slab is seen equally often whatever `steps_per_epoch` is.
    The epoch lies in shared memory: workers that live on see it change.
    """

    slabs: int
    batch_size: int
    steps_per_epoch: int
    crops_per_slab: int
    seed: int
    rank: int = 0
    ranks: int = 1
    _epoch: torch.Tensor = field(default_factory=lambda: torch.zeros(1, dtype=torch.int64).share_memory_())

    def __len__(self) -> int:
        return self.steps_per_epoch

    def set_epoch(self, epoch: int) -> None:
        self._epoch[0] = epoch

    def __call__(self) -> Iterator[list[Draw]]:
        first = int(self._epoch[0]) * self.steps_per_epoch
        for step in range(first, first + self.steps_per_epoch):
            start = (step * self.ranks + self.rank) * self.batch_size
            yield [self._draw(number) for number in range(start, start + self.batch_size)]

    def _draw(self, number: int) -> Draw:
        turn, place = divmod(number // self.crops_per_slab, self.slabs)
        return Draw(number, int(_permutation(self.seed, turn, self.slabs)[place]))


@dataclass
class FixedBatches:
    """Lists of given draws, one a step, of one rank: the same in every epoch.

    The draws are wrapped to a multiple of the ranks (at most `ranks - 1` repeated), so that all ranks have equal steps
    and equal batches; the last batch may be shorter.
    """

    draws: Sequence[Draw]
    batch_size: int
    rank: int = 0
    ranks: int = 1

    def __len__(self) -> int:
        return math.ceil(len(self.draws) / (self.batch_size * self.ranks))

    def set_epoch(self, epoch: int) -> None:
        """Validation is the same in every epoch."""

    def __call__(self) -> Iterator[list[Draw]]:
        surplus = -len(self.draws) % self.ranks
        draws = [*self.draws, *[self.draws[0]] * surplus]
        for start in range(0, len(draws), self.batch_size * self.ranks):
            yield draws[start : start + self.batch_size * self.ranks][self.rank :: self.ranks]


def validation_draws(manifest: Manifest, split: str, crop_px: int) -> list[Draw]:
    """Crops side by side on a grid over every region of a split; slabs in a fixed shuffled order.

    The order lets the first few batches show all of a region, for those who limit validation to them.
    """
    draws: list[Draw] = []
    for slab in np.random.default_rng([VALIDATION]).permutation(len(manifest.split(split).samples)).tolist():
        place = manifest.split(split).samples[slab].place
        corners = manifest.corners(split, slab, crop_px)
        area = manifest.corner_area(split, place.brain, crop_px)
        rows = _grid(corners.y0, corners.y1, area.y0, crop_px)
        columns = _grid(corners.x0, corners.x1, area.x0, crop_px)
        for y in rows:
            for x in columns:
                draws.append(Draw(len(draws), slab, (y, x)))
    return draws


def _grid(start: int, stop: int, origin: int, stride: int) -> range:
    """Points of origin, origin + stride, ... in [start, stop)."""
    return range(start + (origin - start) % stride, stop, stride)


#: turns the draws of a batch and their slabs into the batch
BatchMaker = Callable[[list[tuple[Draw, Slab]]], object]


def slab_stream(batches: TrainingBatches | FixedBatches, reader: SlabReader, make_batch: BatchMaker) -> Any:
    """A WebDataset pipeline: draws of every step -> split over workers -> slabs read and made into a batch.

    A shard that cannot be read ends the stream with the `FormatError` as its last item: raised in a worker process it
    would arrive with that process's traceback in its message (`datamodules.pairs.PairLoader` raises it).
    """
    return wds.DataPipeline(batches, wds.split_by_worker, _MakeBatches(reader, make_batch))


class _MakeBatches:
    """The last stage; a class, because stages travel to worker processes."""

    def __init__(self, reader: SlabReader, make_batch: BatchMaker) -> None:
        self._reader, self._make_batch = reader, make_batch

    def __call__(self, source: Iterable[list[Draw]]) -> Iterator[object]:
        try:
            for draws in source:
                yield self._make_batch([(draw, self._reader(draw.slab)) for draw in draws])
        except TeraMindError as error:
            yield error
