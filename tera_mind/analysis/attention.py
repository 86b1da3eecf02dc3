"""Attention of a gene set over a brain or a region, band by band: what is to be done, and one band of it.

A unit of work is a section group and a band of patch rows; it walks blocks of patches from left to right, so that only
the counts and queries of a block are in memory. Units know nothing of each other: they may run in any order, in any
process, and again.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tera_mind.analysis import readout
from tera_mind.analysis.partners import PartnerSettings, PartnerSums
from tera_mind.analysis.pathways import gene_positions, panel_positions
from tera_mind.errors import InputError
from tera_mind.formats.attention_map import ATTENTION, NEXT, PREVIOUS, PRODUCT, UNWEIGHTED
from tera_mind.formats.brain import Brain, gene_bins
from tera_mind.geometry import Box, SectionGroup, section_groups
from tera_mind.model.checkpoint import Checkpoint
from tera_mind.model.collage import counts_to_patches
from tera_mind.model.genes import GenePyramid

#: patches a side of a block at most; less where a large panel's counts would fill more than this
BLOCK_PATCHES, BLOCK_BYTES = 16, 64 * 2**20


@dataclass(frozen=True)
class Unit:
    """A section group and patch rows `first` to `last` (not included), counted from the region's top."""

    group: SectionGroup
    first: int
    last: int

    @property
    def name(self) -> str:
        return f"group{self.group.image[0]:04d}-row{self.first:05d}"


@dataclass(frozen=True)
class AttentionJob:
    """What to read out where; `job(unit)` does a unit and can be sent to other processes.

    pyramid: gene branch of the network; gene_sections, patch_px, bin_px: of its model; panel: its genes, in order;
    index: their positions in the brain, -1 for genes taken as zero; genes: the set; region: whole patches; sections:
    the brain's section numbers to map; partners: gene whose partners are sought, None for none.
    """

    pyramid: GenePyramid
    gene_sections: int
    patch_px: int
    bin_px: int
    panel: tuple[str, ...]
    brain: Brain
    index: NDArray[np.int64]
    genes: tuple[str, ...]
    region: Box
    sections: tuple[int, ...]
    pairwise: bool = False
    partners: PartnerSettings | None = None

    @staticmethod
    def of(
        checkpoint: Checkpoint,
        brain: Brain,
        genes: Sequence[str],
        *,
        region: Box | None = None,
        sections: Sequence[int] | None = None,
        pairwise: bool = False,
        partners: PartnerSettings | None = None,
        allow_missing: bool = False,
    ) -> AttentionJob:
        """Check that everything fits together; the region (default: the canvas) is cut to whole patches.

        Raises `PanelMismatchError` for genes that are missing, `InputError` for a set of less than two genes, another
        pixel size, sections that do not exist, a region smaller than a patch, and pairs of sections asked of a network
        that sees a single one.
        """
        info = checkpoint.info
        asked = (*genes, *(() if partners is None else (partners.gene,)))
        if len(genes) < 2:
            raise InputError(f"attention needs a set of at least two genes, got {', '.join(genes) or 'none'}")
        gene_positions(list(genes), info.genes)
        gene_positions(asked[len(genes) :], info.genes)
        if abs(info.pixel_um / brain.pixel_um - 1) > 0.01:
            raise InputError(
                f"the checkpoint was trained at {info.pixel_um:g} um a pixel, the brain has {brain.pixel_um:g}: "
                f"ingest it again with --pixel-um {info.pixel_um:g}"
            )
        if pairwise and info.model.gene_sections == 1:
            raise InputError(
                "this checkpoint sees one section at a time, so there are no pairs of sections to read out"
            )
        wanted = tuple(range(len(brain.sections))) if sections is None else tuple(sections)
        unknown = [z for z in wanted if not 0 <= z < len(brain.sections)]
        if unknown or not wanted or len(set(wanted)) != len(wanted):
            raise InputError(f"the brain has sections 0 to {len(brain.sections) - 1}, asked for {list(wanted)}")
        return AttentionJob(
            pyramid=checkpoint.gene_morph.pyramid,
            gene_sections=info.model.gene_sections,
            patch_px=info.model.patch_px,
            bin_px=info.model.bin_px,
            panel=info.genes,
            brain=brain,
            index=panel_positions(brain.genes, info.genes, asked, allow_missing=allow_missing),
            genes=tuple(genes),
            region=_whole_patches(brain.canvas if region is None else region, info.model.patch_px),
            sections=wanted,
            pairwise=pairwise,
            partners=partners,
        )

    @property
    def channels(self) -> tuple[str, ...]:
        """Channels of the map, in order."""
        pairs = (PREVIOUS, NEXT) if self.pairwise else ()
        return (ATTENTION, UNWEIGHTED, *pairs, *self.genes, PRODUCT)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return self.region.height // self.patch_px, self.region.width // self.patch_px

    @cached_property
    def set_index(self) -> Tensor:
        """Positions of the set in the panel."""
        return torch.from_numpy(gene_positions(self.genes, self.panel))

    @property
    def block_patches(self) -> int:
        """Patches a side of a block at most: bounds the memory of counts and queries."""
        bins = (self.patch_px // self.bin_px) ** 2
        return max(1, min(BLOCK_PATCHES, math.isqrt(BLOCK_BYTES // (4 * len(self.panel) * self.gene_sections * bins))))

    @cached_property
    def units(self) -> tuple[Unit, ...]:
        """Bands of all section groups that hold sections asked for."""
        groups = section_groups(len(self.brain.sections), self.gene_sections)
        kept = [group for group in groups if set(group.image) & set(self.sections)]
        return tuple(Unit(group, *band) for group in kept for band in _even(self.grid[0], self.block_patches))

    def own_sections(self, group: SectionGroup) -> tuple[int, ...]:
        """The sections of a group that were asked for."""
        return tuple(section for section in group.image if section in self.sections)

    def facts(self) -> dict[str, Any]:
        """What the result depends on, plain JSON."""
        partners = None if self.partners is None else vars(self.partners)
        return {
            "brain": self.brain.path.name,
            "brain_fingerprint": self.brain.fingerprint,
            "genes": list(self.genes),
            "panel": len(self.panel),
            "genes_missing": [gene for gene, at in zip(self.panel, self.index, strict=True) if at < 0],
            "region": [self.region.y0, self.region.y1, self.region.x0, self.region.x1],
            "sections": list(self.sections),
            "gene_sections": self.gene_sections,
            "patch_px": self.patch_px,
            "pairwise": self.pairwise,
            "partners": partners,
            "block_patches": self.block_patches,
            "torch": torch.__version__,
        }

    def __call__(self, unit: Unit) -> dict[str, NDArray[Any]]:
        """One unit.

        "planes": float32 (channel, section asked for, row, column), NaN where no transcript of the panel is in the
        patch's window; "high": (channel,) what 99.5 % of the finite values stay below; with partners, their sums.
        """
        own = self.own_sections(unit.group)
        planes = np.full((len(self.channels), len(own), unit.last - unit.first, self.grid[1]), np.nan, np.float32)
        sums = None if self.partners is None else PartnerSums(self.partners, self.panel)
        for first, last in _even(self.grid[1], self.block_patches):
            rows, columns = unit.last - unit.first, last - first
            counts = self._counts(unit, first, last).to(self.pyramid.gene_gene.query.weight.device)
            known = counts.sum((1, 2, 3, 4)) > 0
            if not known.any():
                continue
            found = np.full((len(self.channels), len(own), rows * columns), np.nan, np.float32)
            with torch.no_grad():
                queries = readout.queries(self.pyramid, counts[known])
                found[..., known.cpu().numpy()] = self._planes(unit.group, own, counts[known], queries)
            planes[..., first:last] = found.reshape(*found.shape[:2], rows, columns)
            if sums is not None:
                key = (unit.group.image[0], unit.first, first)
                sums.add((rows, columns), known.cpu(), queries.cpu(), self._expression(unit.group, counts).cpu(), key)
        high = [_high(channel) for channel in planes]
        more = {} if sums is None else sums.arrays()
        return {"planes": planes, "high": np.array(high, np.float32), **more}

    def _counts(self, unit: Unit, first: int, last: int) -> Tensor:
        """Counts of a block, (patch, gene, section of the window, bin_y, bin_x), patches row by row."""
        side = self.patch_px
        box = Box(unit.first * side, unit.last * side, first * side, last * side)
        bins = gene_bins(
            self.brain, unit.group.genes, box.shift(self.region.y0, self.region.x0), self.bin_px, self.index
        )
        return counts_to_patches(torch.from_numpy(bins)[None], side // self.bin_px)

    def _expression(self, group: SectionGroup, counts: Tensor) -> Tensor:
        """Mean transcripts a patch over the sections of the window that exist, (patch, gene)."""
        there = sum(0 <= section < len(self.brain.sections) for section in group.genes)
        return counts.sum((2, 3, 4)) / there

    def _planes(
        self, group: SectionGroup, own: tuple[int, ...], counts: Tensor, queries: Tensor
    ) -> NDArray[np.float32]:
        """(channel, section, patch) of patches that hold transcripts."""
        which = self.set_index.to(counts.device)
        attention = readout.set_attention(queries, which)
        expression = counts[:, which].sum((3, 4))  # (patch, gene of the set, section)
        pairs = self._pairs(group, own, counts) if self.pairwise else {}
        out = []
        for section in own:
            place = group.genes.index(section)
            here = expression[:, :, place]
            channels = [readout.weighted(attention, here), readout.unweighted(attention)]
            for first in (place - 1, place) if self.pairwise else ():
                pair = pairs.get(first)
                channels.append(torch.full_like(channels[0], np.nan) if pair is None else readout.weighted(pair, here))
            out.append(torch.stack([*channels, *here.T, readout.product(here)]))
        return torch.stack(out, dim=1).cpu().numpy()

    def _pairs(self, group: SectionGroup, own: tuple[int, ...], counts: Tensor) -> dict[int, Tensor]:
        """Attention of two neighbouring sections alone, by the place of the first in the window; both must exist."""
        places = sorted({group.genes.index(section) + step for section in own for step in (-1, 0)})
        found = {}
        for place in places:
            if group.genes[place] >= 0 and group.genes[place + 1] < len(self.brain.sections):
                alone = readout.masked(counts, (place, place + 1))
                found[place] = readout.set_attention(
                    readout.queries(self.pyramid, alone), self.set_index.to(counts.device)
                )
        return found


def _whole_patches(box: Box, patch_px: int) -> Box:
    height, width = box.height // patch_px * patch_px, box.width // patch_px * patch_px
    if not height or not width:
        raise InputError(f"region {box} is smaller than one patch of {patch_px} px")
    return Box(box.y0, box.y0 + height, box.x0, box.x0 + width)


def _even(size: int, most: int) -> list[tuple[int, int]]:
    """[first, last) of the fewest stretches of at most `most`, as equal as they get."""
    count = -(-size // most)
    edges = [size * k // count for k in range(count + 1)]
    return list(itertools.pairwise(edges))


def _high(values: NDArray[np.float32]) -> float:
    known = values[np.isfinite(values)]
    return float(np.percentile(known, 99.5)) if len(known) else 0.0
