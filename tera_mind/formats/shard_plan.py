"""Which slabs make up a set of shards: regions of training and validation, cores, sections; nothing is written here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise, product

import numpy as np
from numpy.typing import NDArray

from tera_mind.errors import InputError, PanelMismatchError
from tera_mind.formats.brain import Brain
from tera_mind.formats.places import Place, PlaceTable
from tera_mind.formats.slab import corner_box
from tera_mind.formats.tissue import CELL_PX
from tera_mind.geometry import Box, image_sections, section_window

#: corners inside a slab's window are uint16
_LARGEST_WINDOW_PX = 2**16
#: two pixel sizes are the same when they differ by less than this part
_PIXEL_TOLERANCE = 1e-3


@dataclass(frozen=True)
class SplitPlan:
    """Region text as given, the region in every brain, and the slabs in raster order."""

    box: str
    regions: tuple[Box | None, ...]
    places: PlaceTable


@dataclass(frozen=True)
class ShardPlan:
    """Everything that decides what `write_shards` writes."""

    genes: tuple[str, ...]
    gene_sections: int
    crop_px: int
    core_px: int
    gap_px: int
    splits: dict[str, SplitPlan]

    def image_bytes(self, stains: int) -> int:
        """Bytes that the images of all slabs take; transcripts come on top (9 bytes a row)."""
        windows = (place.window(self.crop_px) for split in self.splits.values() for place in split.places)
        return stains * image_sections(self.gene_sections) * sum(box.height * box.width for box in windows)


def plan_shards(
    brains: Sequence[Brain],
    *,
    train: str | None = None,
    val: str | None = None,
    gap_px: int = 0,
    core_px: int = 256,
    crop_px: int = 128,
    gene_sections: int = 1,
    skip_empty: bool = False,
    common_genes: bool = False,
) -> ShardPlan:
    """Plan the slabs of the regions `train` and `val` (text of `Box.parse`) of every brain; neither: train on all.

    Every crop lies inside its region, which no other region touches; it overhangs by a quarter only where the region
    ends at the canvas' own edge. `gap_px` is kept free between the regions, at training's cost. `common_genes` keeps
    the genes that all brains have, in the first brain's order. `skip_empty` leaves out slabs without tissue. Raises
    `InputError` for regions that overlap or are too small and for settings that do not fit, `PanelMismatchError` for
    brains of different genes.
    """
    image_sections(gene_sections)
    _check_sizes(core_px, crop_px, gap_px)
    genes = _shared_genes(brains, common_genes)
    _check_alike(brains)
    texts = {"train": train if train or val else ":,:", "val": val}
    chosen = {name: text for name, text in texts.items() if text}
    regions = [split_regions(brain.canvas, chosen, gap_px) for brain in brains]
    sizes = {"core_px": core_px, "crop_px": crop_px, "gene_sections": gene_sections}
    splits = {}
    for name, text in chosen.items():
        places = PlaceTable(
            place
            for number, brain in enumerate(brains)
            for place in _places(brain, number, regions[number][name], **sizes)
            if not skip_empty or has_tissue(brain, place, crop_px, gene_sections)
        )
        if not len(places):
            raise InputError(
                f"region --{name} {text} holds no tissue in any brain; choose another, or keep empty slabs"
            )
        splits[name] = SplitPlan(text, tuple(boxes[name] for boxes in regions), places)
    return ShardPlan(genes, gene_sections, crop_px, core_px, gap_px, splits)


def split_regions(canvas: Box, texts: dict[str, str], gap_px: int = 0) -> dict[str, Box]:
    """The regions of a canvas, `train` cut back so that `gap_px` stays free to `val`. Overlap is an `InputError`."""
    boxes = {name: Box.parse(text, canvas) for name, text in texts.items()}
    if len(boxes) < 2:
        return boxes
    train, val = boxes["train"], boxes["val"]
    if not train.intersect(val).is_empty:
        raise InputError(
            f"training region {train} and validation region {val} overlap in {train.intersect(val)}; "
            "choose regions without a common pixel"
        )
    # the sides of train that face val, with their distance; the farthest is cut, since that costs least
    facing = {
        "y1": val.y0 - train.y1,
        "y0": train.y0 - val.y1,
        "x1": val.x0 - train.x1,
        "x0": train.x0 - val.x1,
    }
    side = max(facing, key=lambda name: facing[name])
    cut = max(0, gap_px - facing[side])
    bounds = {"y0": train.y0, "y1": train.y1, "x0": train.x0, "x1": train.x1}
    bounds[side] += cut if side.endswith("0") else -cut
    if bounds["y1"] <= bounds["y0"] or bounds["x1"] <= bounds["x0"]:
        raise InputError(f"a gap of {gap_px} px leaves nothing of the training region {train}; take a smaller --gap-px")
    return {"train": Box(**bounds), "val": val}


def gene_maps(brains: Sequence[Brain], genes: Sequence[str]) -> list[NDArray[np.int64] | None]:
    """For every brain: its gene's index in `genes` (-1: not there), or None where the panels are the same."""
    index = {gene: number for number, gene in enumerate(genes)}
    return [
        None if brain.genes == tuple(genes) else np.array([index.get(gene, -1) for gene in brain.genes], np.int64)
        for brain in brains
    ]


def has_tissue(brain: Brain, place: Place, crop_px: int, gene_sections: int) -> bool:
    """Whether a slab's window touches tissue in any of its image sections."""
    box = place.window(crop_px).intersect(brain.canvas)
    cells = (slice(box.y0 // CELL_PX, -(-box.y1 // CELL_PX)), slice(box.x0 // CELL_PX, -(-box.x1 // CELL_PX)))
    sections = [s for s in section_window(place.first_section, gene_sections).image if 0 <= s < len(brain.sections)]
    return any(bool(_tissue(brain, section)[cells].any()) for section in sections)


@lru_cache(maxsize=8)
def _tissue(brain: Brain, section: int) -> NDArray[np.bool_]:
    """The mask of a section, read once for all of its slabs."""
    return brain.tissue(section)


def _places(
    brain: Brain, number: int, region: Box, *, core_px: int, crop_px: int, gene_sections: int
) -> Iterator[Place]:
    """All slabs of a brain's region: windows start at any section that leaves all image sections in the brain."""
    corners = corner_box(region, brain.canvas, crop_px)
    rows, columns = _cut(corners.y0, corners.y1, core_px), _cut(corners.x0, corners.x1, core_px)
    first_sections = range(max(1, len(brain.sections) - image_sections(gene_sections) + 1))
    return (Place(number, first, Box(*row, *column)) for first, row, column in product(first_sections, rows, columns))


def _cut(start: int, stop: int, size: int) -> list[tuple[int, int]]:
    """Equal parts of at most `size`, so that no slab is a sliver whose few crops would be drawn too often."""
    parts = -(-(stop - start) // size)
    edges = [start + (stop - start) * part // parts for part in range(parts + 1)]
    return list(pairwise(edges))


def _check_sizes(core_px: int, crop_px: int, gap_px: int) -> None:
    if crop_px < 8 or crop_px % 8:
        raise InputError(f"crops should have a multiple of 8 px, got --crop-px {crop_px}")
    if not crop_px <= core_px <= _LARGEST_WINDOW_PX - crop_px:
        raise InputError(
            f"the core of a slab should have {crop_px} (its crop) to {_LARGEST_WINDOW_PX - crop_px} px, "
            f"got --core-px {core_px}"
        )
    if gap_px < 0:
        raise InputError(f"the gap between training and validation cannot be negative, got --gap-px {gap_px}")


def _shared_genes(brains: Sequence[Brain], common_genes: bool) -> tuple[str, ...]:
    if not brains:
        raise InputError("shards need at least one brain store, got none")
    panels = [set(brain.genes) for brain in brains]
    genes = brains[0].genes
    if common_genes:
        genes = tuple(gene for gene in genes if all(gene in panel for panel in panels))
        if not genes:
            raise PanelMismatchError(f"the {len(brains)} brains have no gene in common; their shards would be empty")
        return genes
    for brain, panel in zip(brains, panels, strict=True):
        if panel != set(genes):
            differing = sorted(panel ^ set(genes))
            raise PanelMismatchError(
                f"{brain.path} has other genes than {brains[0].path}: {len(differing)} are in one panel only "
                f"({', '.join(differing[:5])}{', ...' if len(differing) > 5 else ''}); "
                "add --common-genes to keep those that all brains have"
            )
    return genes


def _check_alike(brains: Sequence[Brain]) -> None:
    first = brains[0]
    for brain in brains[1:]:
        if brain.stains != first.stains:
            raise InputError(
                f"{brain.path} has stains {', '.join(brain.stains)}, {first.path} has {', '.join(first.stains)}; "
                "ingest them with the same stains in the same order"
            )
        if abs(brain.pixel_um / first.pixel_um - 1) > _PIXEL_TOLERANCE:
            raise InputError(
                f"{brain.path} has pixels of {brain.pixel_um:g} um, {first.path} of {first.pixel_um:g} um; "
                "ingest them again with the same --pixel-um"
            )
