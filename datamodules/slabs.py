"""The stream: slabs fetched for the draws of every step and made into batches, in worker processes or in this one.

Samples are fetched by the manifest's byte offsets: a full permutation instead of the shuffle buffer that streaming
whole tars would need.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import webdataset as wds

from datamodules.order import Draw, FixedBatches, TrainingBatches
from tera_mind.errors import FormatError, TeraMindError
from tera_mind.formats.manifest import Manifest
from tera_mind.formats.slab import Slab

#: slabs kept by every loading process; a split smaller than this is read from disk once
CACHE_MB = 256
#: slabs that one draw may find unreadable, one after the other, before the stream gives up
MOST_LOST = 100

OnBadShard = Literal["stop", "skip"]


class SlabReader:
    """Slabs of a split by number; those that cannot be read as errors.

    A split that fits into `cache_mb` stays in memory. Of a larger one only the slabs of the last batch are kept: every
    slab comes once a pass, and memory that is used again at once costs no page faults.
    """

    def __init__(self, manifest: Manifest, split: str, cache_mb: float = CACHE_MB) -> None:
        self._manifest, self._split = manifest, split
        self._keeps_all = manifest.split(split).bytes <= cache_mb * 1e6
        self._slabs: dict[int, Slab] = {}

    def __call__(self, numbers: Sequence[int]) -> dict[int, Slab | FormatError]:
        """The slabs asked for; what is not in memory is fetched together."""
        found: dict[int, Slab | FormatError] = {one: self._slabs[one] for one in numbers if one in self._slabs}
        if not self._keeps_all:
            self._slabs = {}
        missing = [number for number in dict.fromkeys(numbers) if number not in found]
        if missing:
            found |= zip(missing, self._manifest.read_many(self._split, missing), strict=True)
        self._slabs |= {number: slab for number, slab in found.items() if isinstance(slab, Slab)}
        return found


@dataclass(frozen=True)
class Step:
    """What a loading process hands over: a batch, and the slabs that it found lost on the way (number, why)."""

    batch: object
    lost: tuple[tuple[int, str], ...] = ()

    def pin_memory(self) -> Step:
        """Called by torch's pinning thread."""
        from torch.utils.data._utils.pin_memory import pin_memory

        return Step(pin_memory(self.batch), self.lost)


#: turns the draws of a batch and their slabs into the batch
BatchMaker = Callable[[list[tuple[Draw, Slab]]], object]


def slab_stream(
    batches: TrainingBatches | FixedBatches, reader: SlabReader, make_batch: BatchMaker, on_bad_shard: OnBadShard
) -> Any:
    """A WebDataset pipeline of `Step`: draws of every step -> split over workers -> slabs read, made into a batch.

    What ends the stream is its last item, the `FormatError`: raised in a worker process it would arrive with that
    process's traceback in its message (`datamodules.loader.PairLoader` raises it).
    """
    return wds.DataPipeline(batches, wds.split_by_worker, _MakeBatches(batches, reader, make_batch, on_bad_shard))


class _MakeBatches:
    """The last stage; a class, because stages travel to worker processes."""

    def __init__(
        self,
        batches: TrainingBatches | FixedBatches,
        reader: SlabReader,
        make_batch: BatchMaker,
        on_bad_shard: OnBadShard,
    ) -> None:
        self._batches, self._reader, self._make_batch = batches, reader, make_batch
        self._skip = on_bad_shard == "skip"
        self._lost: dict[int, str] = {}

    def __call__(self, source: Iterable[list[Draw]]) -> Iterator[Step | TeraMindError]:
        try:
            for draws in source:
                known = len(self._lost)
                read = self._reader([draw.slab for draw in draws if draw.slab not in self._lost])
                batch = self._make_batch([self._readable(draw, read) for draw in draws])
                yield Step(batch, tuple(list(self._lost.items())[known:]))
        except TeraMindError as error:
            yield error

    def _readable(self, draw: Draw, read: dict[int, Slab | FormatError]) -> tuple[Draw, Slab]:
        """The draw and its slab; where that is lost, what the order says to draw instead."""
        tried = 0
        for attempt in range(self._batches.choices):
            chosen = draw if attempt == 0 else self._batches.instead(draw, attempt)
            if chosen.slab in self._lost:
                continue
            if chosen.slab not in read:
                read |= self._reader([chosen.slab])
            slab = read[chosen.slab]
            if isinstance(slab, Slab):
                return chosen, slab
            tried += 1
            if not self._skip:
                raise slab
            self._lost[chosen.slab] = str(slab)
            if tried == MOST_LOST:
                break
        raise FormatError(f"{tried or self._batches.choices} slabs in a row cannot be read; the last: {self._last()}")

    def _last(self) -> str:
        return next(reversed(self._lost.values()))
