"""Units of generation: which patch rows of which section group make up a volume, and what each costs.

A unit is a band of whole shards of the volume over the full width, so no shard has two writers, or a whole section
group. Bands compute some rows around them again; whole groups nothing, but they are few: a plan mixes both so that all
workers end together.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from math import lcm
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tera_mind.errors import FormatError, InputError
from tera_mind.formats.ome import CHUNK_PX, SHARD_PX
from tera_mind.geometry import Box, SectionGroup
from tera_mind.sampling.cost import BandCost
from tera_mind.sampling.domain import Domain
from tera_mind.sampling.memory import memory_bytes as memory_of
from tera_mind.sampling.plain import SamplerSettings
from tera_mind.sampling.skew import Skew

#: a plan of more units is taken only where it ends earlier by this share
_WORTH = 0.002
#: sizes of bands that are tried, in shares of the mean load of a worker
_SHARES = tuple(f / n for n in (1, 2, 3) for f in (1.0, 1.02, 1.05, 1.1, 1.15, 1.2, 1.3, 1.4, 1.6))


@dataclass(frozen=True)
class Unit:
    """One piece of work: patch rows [r0, r1) of the region of one section group (its position in `Plan.groups`).

    `blocks`: blocks of patches that pass through the network for it, all steps, recomputed ones included.
    """

    index: int
    group: int
    rows: tuple[int, int]
    blocks: int


@dataclass(frozen=True)
class Plan:
    """All units of a volume, in the order of claiming (largest first), and what they cost together."""

    region: Box
    groups: tuple[SectionGroup, ...]
    units: tuple[Unit, ...]
    settings: SamplerSettings
    patch_px: int
    halo_px: int
    #: largest side of a shard of the volume
    shard_px: int
    #: blocks if no group were split
    necessary_blocks: int
    #: states and counts of the largest unit, without the network's weights and activations
    memory_bytes: int
    #: level 0, uint8 before compression, patches outside the domains left out
    bytes_written: int
    #: of the stored transcripts
    bytes_read: int
    flop: int

    def box(self, unit: Unit) -> Box:
        """A unit's rows of the volume, in the brain's pixels."""
        region, (first, last) = self.region, unit.rows
        return Box(region.y0 + first * self.patch_px, region.y0 + last * self.patch_px, region.x0, region.x1)

    @property
    def blocks(self) -> int:
        return sum(unit.blocks for unit in self.units)

    @property
    def redundancy(self) -> float:
        """Share of the blocks that are computed again at the borders of bands."""
        return 1 - self.necessary_blocks / self.blocks if self.blocks else 0.0

    def assignment(self, workers: int) -> list[list[Unit]]:
        """Units of each worker where whoever is free takes the largest one left."""
        free = [(0, worker) for worker in range(workers)]
        out: list[list[Unit]] = [[] for _ in free]
        for unit in self.units:
            load, worker = heapq.heappop(free)
            out[worker].append(unit)
            heapq.heappush(free, (load + unit.blocks, worker))
        return out

    def makespan(self, workers: int) -> int:
        """Blocks of the worker with most: expected time over the time of a block."""
        return max(sum(unit.blocks for unit in units) for units in self.assignment(workers))

    def balance(self, workers: int) -> float:
        """Mean load of the workers over the largest; 1 where nothing is to be done."""
        longest = self.makespan(workers)
        return self.blocks / workers / longest if longest else 1.0

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {
            "region": list(_edges(self.region)),
            "groups": [[list(group.image), list(group.genes)] for group in self.groups],
            "units": [[unit.group, *unit.rows, unit.blocks] for unit in self.units],
        }

    @staticmethod
    def from_json(record: Mapping[str, Any]) -> Plan:
        """Raises `FormatError` where the record is no plan."""
        try:
            rest = {name: int(record[name]) for name in _NUMBERS}
            return Plan(
                region=Box(*record["region"]),
                groups=tuple(SectionGroup(tuple(image), tuple(genes)) for image, genes in record["groups"]),
                units=tuple(
                    Unit(index, group, (first, last), blocks)
                    for index, (group, first, last, blocks) in enumerate(record["units"])
                ),
                settings=SamplerSettings(**record["settings"]),
                **rest,
            )
        except (KeyError, TypeError, ValueError) as error:
            raise FormatError(f"expected a plan of generation, got one that cannot be read ({error!r})") from None


_NUMBERS = (
    "patch_px", "halo_px", "shard_px", "necessary_blocks", "memory_bytes", "bytes_written", "bytes_read", "flop",
)  # fmt: skip


def make_plan(
    region: Box,
    groups: Sequence[SectionGroup],
    domains: Sequence[Domain],
    settings: SamplerSettings,
    *,
    patch_px: int,
    halo_px: int,
    bin_px: int,
    channels: int,
    genes: int,
    workers: int = 1,
    memory_bytes: int | None = None,
    shard_px: int = SHARD_PX,
    block_multiply_adds: int = 0,
    gene_bytes_px: float = 0.0,
) -> Plan:
    """Units of a volume for some workers, each with `memory_bytes` for states and counts (None: as much as it takes).

    domains: one a group; channels: of a group's image; block_multiply_adds: of one block through the network;
    gene_bytes_px: stored bytes of transcripts a pixel and gene section. Raises `InputError` where even the lowest band
    does not fit in memory.
    """
    planner = Planner(
        region, groups, domains, settings, patch_px=patch_px, halo_px=halo_px, bin_px=bin_px, channels=channels,
        genes=genes, shard_px=shard_px, block_multiply_adds=block_multiply_adds, gene_bytes_px=gene_bytes_px,
    )  # fmt: skip
    return planner.plan(workers, memory_bytes)


class Planner:
    """Plans of one volume for any number of workers; arguments as in `make_plan`. Costs are counted once."""

    def __init__(
        self,
        region: Box,
        groups: Sequence[SectionGroup],
        domains: Sequence[Domain],
        settings: SamplerSettings,
        *,
        patch_px: int,
        halo_px: int,
        bin_px: int,
        channels: int,
        genes: int,
        shard_px: int = SHARD_PX,
        block_multiply_adds: int = 0,
        gene_bytes_px: float = 0.0,
    ) -> None:
        if not groups or len(groups) != len(domains):
            raise InputError(f"a plan needs section groups with a domain each, got {len(groups)} and {len(domains)}")
        if any(domain.region != region or domain.patch_px != patch_px for domain in domains):
            raise InputError(f"every domain of a plan is of its region {region} in patches of {patch_px} px")
        if shard_px < CHUNK_PX or shard_px % CHUNK_PX:
            raise InputError(f"shards are a whole number of chunks of {CHUNK_PX} px, got {shard_px} px")
        self.region, self.groups, self.settings = region, tuple(groups), settings
        self.patch_px, self.halo_px, self.shard_px = patch_px, halo_px, shard_px
        self._sizes = {
            "patch_px": patch_px, "halo_px": halo_px, "bin_px": bin_px, "channels": channels, "genes": genes,
            "gene_sections": len(groups[0].genes),
        }  # fmt: skip
        self._multiply_adds, self._gene_bytes_px = block_multiply_adds, gene_bytes_px
        self._costs = [BandCost(domain, settings, halo_px) for domain in domains]
        self._bands: dict[tuple[int, int], list[tuple[tuple[int, int], int]]] = {}

    @cached_property
    def shards(self) -> NDArray[np.int64]:
        """Patch rows at which a group may be cut: those that begin a row of shards, and the last."""
        rows = self.region.height // self.patch_px
        return np.array([*range(0, rows, lcm(self.shard_px, self.patch_px) // self.patch_px), rows])

    def memory(self, rows: tuple[int, int]) -> int:
        """Bytes of states and counts of a unit."""
        shape = (self.region.height // self.patch_px, self.region.width // self.patch_px)
        skew = Skew.of(self.settings, self.patch_px, self.halo_px, shape, rows)
        return memory_of(skew, self.settings, **self._sizes)

    def bands(self, group: int, count: int) -> list[tuple[tuple[int, int], int]]:
        """A group cut into bands: patch rows and blocks of each."""
        if (group, count) not in self._bands:
            cost = self._costs[group]
            cuts = cost.cuts(self.shards, count)
            self._bands[group, count] = [(rows, int(cost.blocks(rows).sum())) for rows in cuts]
        return self._bands[group, count]

    def plan(self, workers: int, memory_bytes: int | None = None) -> Plan:
        """The plan that ends first. Raises `InputError` where even the lowest band does not fit in memory."""
        if workers < 1:
            raise InputError(f"a plan is for at least one worker, got {workers}")
        best: tuple[float, list[int]] | None = None
        for counts in self._candidates(workers, self._fewest(memory_bytes)):
            blocks = sorted((b for group, n in enumerate(counts) for _, b in self.bands(group, n)), reverse=True)
            if best is None or max(sum(blocks) / workers, blocks[0]) < best[0] * (1 - _WORTH):
                longest = _longest(blocks, workers)
                if best is None or longest < best[0] * (1 - _WORTH):
                    best = longest, counts
        assert best is not None
        return self._build(best[1])

    def _fewest(self, memory_bytes: int | None) -> int:
        """Bands a group that memory demands at least."""
        most = len(self.shards) - 1
        if memory_bytes is None:
            return 1
        needed = 0
        for bands in range(1, most + 1):
            edges = self.shards[np.arange(bands + 1) * most // bands].tolist()
            needed = max(self.memory(rows) for rows in itertools.pairwise(edges))
            if needed <= memory_bytes:
                return bands
        raise InputError(
            f"a band of one row of shards needs {needed / 2**30:.2f} GiB for states and counts, there are "
            f"{memory_bytes / 2**30:.2f}: give more memory, fewer workers a machine, fewer steps, or smaller shards"
        )

    def _candidates(self, workers: int, fewest: int) -> Iterator[list[int]]:
        """Bands of each group, plans of few units first.

        Either most groups in few bands and the cheapest others in more, or every group in bands of about one size, some
        share of what a worker has to do.
        """
        most, groups = len(self.shards) - 1, len(self.groups)
        whole = [self.bands(group, 1)[0][1] for group in range(groups)]
        cheapest = np.argsort(whole, kind="stable").tolist()
        some = workers // groups
        bases = {min(most, max(fewest, base)) for base in (1, some, some + 1)}
        tried = {(base,) * groups for base in bases}
        for base in bases:
            for bands in range(base + 1, most + 1):
                for split in range(1, groups + 1):
                    counts = [base] * groups
                    for group in cheapest[:split]:
                        counts[group] = bands
                    tried.add(tuple(counts))
        for share in _SHARES:
            size = max(1.0, share * sum(whole) / workers)
            tried.add(tuple(int(min(most, max(fewest, -(-cost // size)))) for cost in whole))
        for one in sorted(tried, key=lambda counts: (sum(counts), counts)):
            if fewest == 1 or all(self._fits(group, n, fewest) for group, n in enumerate(one)):
                yield list(one)

    def _fits(self, group: int, bands: int, fewest: int) -> bool:
        """Whether bands cut by tissue are no higher than memory allows."""
        highest = -(-(len(self.shards) - 1) // fewest)
        first = self.shards.searchsorted([rows[0] for rows, _ in self.bands(group, bands)])
        return bool(np.diff([*first, len(self.shards) - 1]).max() <= highest)

    def _build(self, counts: list[int]) -> Plan:
        made = [(blocks, group, rows) for group, n in enumerate(counts) for rows, blocks in self.bands(group, n)]
        made.sort(key=lambda unit: (-unit[0], unit[1], unit[2]))
        units = tuple(Unit(index, group, rows, blocks) for index, (blocks, group, rows) in enumerate(made))
        area = self.settings.block_rows * self.settings.block_columns * self.patch_px**2
        first = sum(int(self._costs[unit.group].blocks(unit.rows)[0]) for unit in units)
        active = sum(int(cost.patches[-1]) for cost in self._costs)
        return Plan(
            region=self.region,
            groups=self.groups,
            units=units,
            settings=self.settings,
            patch_px=self.patch_px,
            halo_px=self.halo_px,
            shard_px=self.shard_px,
            necessary_blocks=sum(self.bands(group, 1)[0][1] for group in range(len(self.groups))),
            memory_bytes=max(self.memory(rows) for rows in {unit.rows for unit in units}),
            bytes_written=active * self.patch_px**2 * self._sizes["channels"],
            bytes_read=int(first * area * self._sizes["gene_sections"] * self._gene_bytes_px),
            flop=2 * self._multiply_adds * sum(unit.blocks for unit in units),
        )


def _longest(blocks: Sequence[int], workers: int) -> int:
    """Load of the fullest worker where whoever is free takes the largest piece left; `blocks` from large to small."""
    loads = [0] * workers
    for size in blocks:
        heapq.heapreplace(loads, loads[0] + size)
    return max(loads)


def _edges(box: Box) -> tuple[int, int, int, int]:
    return box.y0, box.y1, box.x0, box.x1
