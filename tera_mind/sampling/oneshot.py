"""Painting a region without steps: one pass a block, any tiling the same where the painter is exact."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from tera_mind import noise
from tera_mind.errors import InputError
from tera_mind.geometry import Box, SectionGroup
from tera_mind.model.blocks import NoisePlane, Painter
from tera_mind.sampling.plain import CountSource, blocks

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
    side, halo, bin_px = painter.patch_px, painter.halo_px, painter.bin_px
    if region.is_empty or region.height % side or region.width % side:
        raise InputError(f"a region must be a whole number of {side} px patches a side, got {region}")
    if painter.training:
        raise InputError("the network is in training mode, where dropout makes seams: call .eval() first")
    for patches in blocks(region.height // side, region.width // side, block):
        box = Box(*(side * edge for edge in (patches.y0, patches.y1, patches.x0, patches.x1)))
        box = box.shift(region.y0, region.x0)
        window = box.grow(halo)
        y, x = window.y0 // bin_px, window.x0 // bin_px
        bins = Box(y, y + window.height // bin_px, x, x + window.width // bin_px)
        drawn = [planes(layer, plane)[None] for layer, plane in enumerate(painter.noise_planes(bins))]
        yield box, painter.paint(counts(window)[None], drawn)[0]


def paint_region(
    painter: Painter, counts: CountSource, planes: PlaneSource, region: Box, block: int = 8
) -> Float[Tensor, "channel y x"]:
    """The whole region in one array on the CPU, painted in blocks."""
    out = torch.empty(painter.channels, region.height, region.width)
    for box, image in paint_blocks(painter, counts, planes, region, block):
        out[(..., *box.shift(-region.y0, -region.x0).slices())] = image.cpu()
    return out
