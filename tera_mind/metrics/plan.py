"""What an evaluation will measure, decided before any pixel is read: boxes, blocks, cells, tiles and methods.

The test box of every section is cut into fixed blocks, aligned to the grid of patches. A unit is one block of one
section; it needs only its block and a halo, so units are measured in any order, by any number of workers, with memory
that does not grow with the region. Everything that must not depend on the blocks (which tiles enter the Frechet
distance, which patches share a bootstrap cell) is decided here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Int
from numpy.typing import NDArray

from tera_mind.errors import InputError
from tera_mind.formats.brain import Brain
from tera_mind.formats.volume import Volume
from tera_mind.geometry import Box
from tera_mind.metrics.controls import tissue_pixels
from tera_mind.metrics.fidelity import SSIM_WINDOW_PX, large_side
from tera_mind.metrics.seam_sums import SeamGrid, seam_cell_px

REAL = "real"
GENERATED = "generated"
NEIGHBOUR = "real_neighbour"
CEILING = "real_vs_real"
ENSEMBLE = "ensemble_mean"
#: methods that come as volumes, in the order of tables; "generated" must be there
VOLUME_METHODS = (GENERATED, "shuffled", "zeroed")
BLUR_UM = 2.0
#: most pixels along a side of the preview
PREVIEW_PX = 1024
#: bootstrap cells grow until only this many are left: neighbouring patches are not independent
CELLS = 100
#: most blocks of real tissue that the ceiling is measured on
REFERENCE_BLOCKS = 16
#: the gene probe learns from this many times the tiles that are compared
REFERENCE_TILES = 2
#: least share of tissue in a tile of the feature distances
MIN_TISSUE = 0.5

Boxes = Int[np.ndarray, "_ 4"]


class Unit(NamedTuple):
    """One block of one section: of the test box, or of the reference tissue."""

    role: Literal["test", "reference"]
    section: int
    block: Box

    @property
    def name(self) -> str:
        return f"{self.role}-{self.section}-{self.block.y0}-{self.block.x0}"


@dataclass(frozen=True)
class Reference:
    """Real tissue of the training region: where controls and the gene probe are fitted, and the ceiling's other side.

    box: in that brain's pixels; sections: its section numbers; genes, own_genes: the shared genes' places in the
    reference brain and in the evaluated one (the same order).
    """

    brain: Brain
    box: Box
    sections: tuple[int, ...]
    genes: NDArray[np.int64]
    own_genes: NDArray[np.int64]


@dataclass(frozen=True)
class Plan:
    """All places of an evaluation; boxes are in canvas pixels of the evaluated brain unless said otherwise."""

    stains: tuple[str, ...]
    pixel_um: float
    sections: tuple[int, ...]
    methods: tuple[str, ...]
    test: Box
    #: the reference tissue, in the reference brain's pixels
    ceiling: Box
    preview: Box
    patch_px: int
    large_px: int
    window_px: int
    region_px: int
    #: side of the sampler's tiles, at whose borders seams are sought as well; None: none
    tile_px: int | None
    block_px: int
    #: a corner of the volume's patch grid, y and x
    origin: tuple[int, int]
    #: whole patches along the side of a bootstrap cell
    cell_patches: int
    #: index of the stain in which nuclei are sought; None where there is none
    nucleus_stain: int | None
    #: tiles of the feature distances: (side in px, name of the unit) -> (tile, 4) y0, y1, x0, x1
    tiles: Mapping[tuple[int, str], Boxes]
    units: tuple[Unit, ...]
    #: whether the units hold all of the reference tissue, not a sample of its blocks
    reference_whole: bool

    @property
    def whole_px(self) -> int:
        return 2 * self.patch_px

    @property
    def blur_px(self) -> float:
        return BLUR_UM / self.pixel_um

    @property
    def images(self) -> tuple[str, ...]:
        """Methods that have an image of the test box, the real one first."""
        return tuple(method for method in self.methods if method != CEILING)

    @property
    def paired(self) -> tuple[str, ...]:
        """Methods that are compared with the real image patch by patch."""
        return tuple(method for method in self.images if method != REAL)

    def following(self, section: int) -> int | None:
        """The next section of the volume, to which continuity along z is measured."""
        at = self.sections.index(section) + 1
        return self.sections[at] if at < len(self.sections) else None

    @property
    def seam_grids(self) -> dict[str, SeamGrid]:
        """Grids at whose lines seams are sought, by their names in the results."""
        sides = {"seams": self.patch_px} | ({} if self.tile_px is None else {"tile_seams": self.tile_px})
        return {
            name: SeamGrid(self.test, side, self.origin, self.patch_px, seam_cell_px(self.test, side))
            for name, side in sides.items()
        }

    def cells(self, boxes: Int[np.ndarray, "box 5"], within: Box | None = None) -> Int[np.ndarray, " box"]:
        """Bootstrap cell of boxes (section, y0, y1, x0, x1) by their corners, counted in `within` (the test box).

        Sections share their cells: one place of neighbouring sections is alike too.
        """
        side = self.cell_patches * self.whole_px
        within = self.test if within is None else within
        y, x = (boxes[:, 1] - within.y0) // side, (boxes[:, 3] - within.x0) // side
        return np.asarray(y * -(-within.width // side) + x, np.int64)


def make_plan(
    brain: Brain,
    generated: Volume,
    reference: Reference,
    methods: Sequence[str],
    *,
    patch_px: int | None,
    tile_px: int | None,
    window_px: int,
    region_px: int,
    block_px: int,
    tiles: int,
    tile_sides: Sequence[int],
) -> Plan:
    """Lay out an evaluation. Raises `InputError` where the common box holds no whole patch."""
    patch = patch_px or generated.attributes.patch_px
    if tile_px is not None and tile_px % patch:
        raise InputError(f"the sampler's tiles should be whole patches of {patch} px, got tiles of {tile_px} px")
    test = _test_box(brain, generated, patch)
    sections = generated.attributes.sections
    large = large_side(2 * patch)
    block = -(-block_px // large) * large
    names = [stain.casefold() for stain in brain.stains]
    units = [Unit("test", s, box) for s in sections for box in test.tiles(block, block)]
    blocks = [Unit("reference", s, box) for s in reference.sections for box in reference.box.tiles(block, block)]
    every = len(blocks)
    kept = sorted({round(i) for i in np.linspace(0, len(blocks) - 1, min(len(blocks), REFERENCE_BLOCKS)).tolist()})
    blocks = [blocks[index] for index in kept]
    chosen: dict[tuple[int, str], Boxes] = {}
    for side in tile_sides:
        for section in sections:
            found = tissue_tiles(brain, section, test, side, side // 4, max(1, tiles // len(sections)))
            chosen |= {(side, u.name): owned(found, u.block) for u in units if u.section == section}
        # where blocks are left out, their share of the tiles falls away with them
        most = REFERENCE_TILES * tiles * every // (len(blocks) * len(reference.sections))
        for section in reference.sections:
            found = tissue_tiles(reference.brain, section, reference.box, side, side // 8, max(1, most))
            chosen |= {(side, u.name): owned(found, u.block) for u in blocks if u.section == section}
    return Plan(
        stains=brain.stains,
        pixel_um=brain.pixel_um,
        sections=sections,
        methods=tuple(methods),
        test=test,
        ceiling=reference.box,
        preview=centred(test, min(PREVIEW_PX, test.height), min(PREVIEW_PX, test.width)),
        patch_px=patch,
        large_px=large,
        window_px=window_px,
        region_px=region_px,
        tile_px=tile_px,
        block_px=block,
        origin=(generated.attributes.box.y0, generated.attributes.box.x0),
        cell_patches=cell_side(test, 2 * patch),
        nucleus_stain=names.index("dapi") if "dapi" in names else None,
        tiles=chosen,
        units=(*units, *blocks),
        reference_whole=len(blocks) == every,
    )


def _test_box(brain: Brain, generated: Volume, patch_px: int) -> Box:
    """The part of the volume inside the canvas, from a corner of the patch grid on."""
    origin = generated.attributes.box
    test = origin.intersect(brain.canvas)
    y0, x0 = (test.y0 + (origin.y0 - test.y0) % patch_px, test.x0 + (origin.x0 - test.x0) % patch_px)
    if min(test.y1 - y0, test.x1 - x0) < 2 * patch_px or 2 * patch_px < SSIM_WINDOW_PX:
        raise InputError(
            f"the common box {test} must hold a whole patch of {2 * patch_px} px, and that at least {SSIM_WINDOW_PX} px"
        )
    return Box(y0, test.y1, x0, test.x1)


def centred(box: Box, height: int, width: int) -> Box:
    """A box of the given size in the middle of another."""
    y0, x0 = box.y0 + (box.height - height) // 2, box.x0 + (box.width - width) // 2
    return Box(y0, y0 + height, x0, x0 + width)


def cell_side(box: Box, whole_px: int) -> int:
    """Whole patches along a bootstrap cell: the largest power of two that leaves at least `CELLS` cells, or 1."""
    rows, columns = box.height // whole_px, box.width // whole_px
    side = 1
    while (rows // (2 * side)) * (columns // (2 * side)) >= CELLS:
        side *= 2
    return side


def tissue_tiles(brain: Brain, section: int, box: Box, side_px: int, stride: int, limit: int) -> Boxes:
    """At most `limit` tiles of a box that are at least half tissue, evenly spread, row-major."""
    tissue = brain.tissue(section)
    # on a large box most overlapping tiles would be thinned away again
    while (box.height // stride) * (box.width // stride) > 16 * limit and stride < side_px:
        stride *= 2
    side = min(side_px, box.height, box.width)
    kept = [
        (y, y + side, x, x + side)
        for y in range(box.y0, box.y1 - side + 1, stride)
        for x in range(box.x0, box.x1 - side + 1, stride)
        if tissue_pixels(tissue, Box(y, y + side, x, x + side), 8).mean() >= MIN_TISSUE
    ]
    thinned = kept if len(kept) <= limit else [kept[round(i)] for i in np.linspace(0, len(kept) - 1, limit).tolist()]
    return np.array(thinned, np.int64).reshape(-1, 4)


def owned(boxes: Boxes, block: Box) -> Boxes:
    """The boxes whose corner lies in a block: every box has one owner."""
    inside = (boxes[:, 0] >= block.y0) & (boxes[:, 0] < block.y1)
    return boxes[inside & (boxes[:, 2] >= block.x0) & (boxes[:, 2] < block.x1)]


def covering_windows(within: Box, side_px: int, block: Box | None = None) -> list[Box]:
    """Whole windows, row-major and evenly spaced, that cover a box; neighbours overlap where they must.

    Tissue at the far edges counts like all other, and every window has the same area. None where the box is smaller
    than a window. Of a `block` only the windows whose corner it holds.
    """
    if min(within.height, within.width) < side_px:
        return []
    block = within if block is None else block
    starts = []
    for low, high, first, last in (
        (within.y0, within.y1, block.y0, block.y1),
        (within.x0, within.x1, block.x0, block.x1),
    ):
        places = np.linspace(low, high - side_px, -(-(high - low) // side_px)).round().astype(int)
        starts.append(places[(places >= first) & (places < last)].tolist())
    return [Box(y, y + side_px, x, x + side_px) for y in starts[0] for x in starts[1]]


def shared_genes(own: Brain, other: Brain) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Places of the genes that two brains share, in `own` and in `other`, in the order of `own`."""
    place = {gene: index for index, gene in enumerate(other.genes)}
    both = [(index, place[gene]) for index, gene in enumerate(own.genes) if gene in place]
    if not both:
        raise InputError(f"{own.path} and {other.path} share no gene: controls and the gene probe need shared genes")
    first, second = np.array(both, np.int64).T
    return first, second
