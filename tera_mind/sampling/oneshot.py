"""Painting a region without steps: one pass a block, any tiling the same where the painter is exact."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from tera_mind import noise
from tera_mind.diffusion.loss import OUTSIDE
from tera_mind.errors import InputError
from tera_mind.geometry import Box, SectionGroup
from tera_mind.model.blocks import NoisePlane, Painter
from tera_mind.sampling.domain import Domain
from tera_mind.sampling.finite import Finite
from tera_mind.sampling.plain import CountSource, OnBlock, SamplerSettings, pixel_mask

#: numbers of one layer for one window: (layer, plane) -> (y, x)
PlaneSource = Callable[[int, NoisePlane], Float[Tensor, "y x"]]


def keyed_planes(seed: int, group: SectionGroup) -> PlaneSource:
    """Noise of a section group keyed by (seed, layer, first image section, y, x), y and x on the layer's own grid.

    Planes that a painter shares between section groups are those of section 0.
    """

    def source(layer: int, plane: NoisePlane) -> Float[Tensor, "y x"]:
        section = 0 if plane.shared else group.image[0]
        return torch.from_numpy(noise.normal(seed, layer, 0, section, plane.box))

    return source


@torch.no_grad()
def paint_blocks(
    painter: Painter, counts: CountSource, planes: PlaneSource, region: Box, block: int = 8
) -> Iterator[tuple[Box, Float[Tensor, "channel y x"]]]:
    """Paint a region in blocks of `block` x `block` patches, row-major: (box in the brain's pixels, image in [-1, 1]).

    The image of a block is (stain * section, y, x), float32 or wider, on the painter's device. `region` is a whole
    number of patches a side; noise lies on the grid of the region's bins. Raises `InputError` for another region, and
    for a painter in training mode, whose tiles would differ by its dropout.
    """
    side = painter.patch_px
    if region.is_empty or region.height % side or region.width % side:
        raise InputError(f"a region must be a whole number of {side} px patches a side, got {region}")
    for patches in Box(0, region.height // side, 0, region.width // side).tiles(block, block):
        box = _pixels(patches, side).shift(region.y0, region.x0)
        yield box, paint(painter, counts, planes, box)


@torch.no_grad()
def paint(painter: Painter, counts: CountSource, planes: PlaneSource, box: Box) -> Float[Tensor, "channel y x"]:
    """One block, (stain * section, y, x) in [-1, 1]; `box` is whole patches, in the brain's pixels.

    Raises `NotFiniteError` where it holds values that are no finite numbers.
    """
    if painter.training:
        raise InputError("the network is in training mode, where dropout makes seams: call .eval() first")
    window, bin_px = box.grow(painter.halo_px), painter.bin_px
    y, x = window.y0 // bin_px, window.x0 // bin_px
    bins = Box(y, y + window.height // bin_px, x, x + window.width // bin_px)
    drawn = [planes(layer, plane)[None] for layer, plane in enumerate(painter.noise_planes(bins))]
    images, finite = painter.paint(counts(window)[None], drawn), Finite(1)
    finite.see([1], [box], images)
    finite.check()
    return images[0]


def sweep(
    painter: Painter,
    counts: CountSource,
    planes: PlaneSource,
    domain: Domain,
    settings: SamplerSettings,
    rows: tuple[int, int],
    on_block: OnBlock = lambda: None,
    columns: tuple[int, int] | None = None,
) -> Iterator[tuple[Box, Float[Tensor, "channel y x"]]]:
    """Patch rows [r0, r1) and columns (default: all) of a region, as `wavefront.sweep` yields them: from left to right.

    They come in columns of blocks. Blocks are anchored to the region and all of one shape, so that any rows and columns
    give the same bits; those without an active patch are not painted.
    """
    side, (first, last), (leftmost, end) = painter.patch_px, rows, columns or (0, domain.columns)
    size = (settings.block_rows, settings.block_columns)
    begin = first // size[0] * size[0]
    bottom = begin - (begin - last) // size[0] * size[0]
    for left in range(leftmost // size[1] * size[1], end, size[1]):
        column = Box(first, last, max(left, leftmost), min(left + size[1], end))
        shape = (painter.channels, column.height * side, column.width * side)
        piece = torch.full(shape, OUTSIDE)
        for patches in Box(begin, bottom, left, left + size[1]).tiles(*size):
            inside = patches.intersect(column)
            if not domain.mask(inside).any():
                continue
            image = paint(painter, counts, planes, domain.pixels(patches)).cpu()
            image = image[(..., *_pixels(inside.shift(-patches.y0, -patches.x0), side).slices())]
            target = (..., *_pixels(inside.shift(-column.y0, -column.x0), side).slices())
            piece[target] = torch.where(pixel_mask(domain, inside), image.to(piece), OUTSIDE)
            on_block()
        yield domain.pixels(column), piece


def _pixels(patches: Box, side: int) -> Box:
    return Box(side * patches.y0, side * patches.y1, side * patches.x0, side * patches.x1)


def paint_region(
    painter: Painter, counts: CountSource, planes: PlaneSource, region: Box, block: int = 8
) -> Float[Tensor, "channel y x"]:
    """The whole region in one array on the CPU, painted in blocks."""
    out = torch.empty(painter.channels, region.height, region.width)
    for box, image in paint_blocks(painter, counts, planes, region, block):
        out[(..., *box.shift(-region.y0, -region.x0).slices())] = image.cpu()
    return out
