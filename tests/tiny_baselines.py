"""Networks of the baselines small enough for tests, with no weight left at zero, and regions to paint with them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import tera_mind.baselines  # noqa: F401 (makes the methods known)
from tera_mind.geometry import Box
from tera_mind.model.methods import method_named

_UNET: dict[str, Any] = {
    "base_channels": 8, "channel_mult": (1, 2), "res_blocks": 1, "time_channels": 16, "pyramid_channels": (8,),
    "attention_px": 8,
}  # fmt: skip
#: 16 px patches in bins of 4 px, two levels; the plain ones have patches of 32 px
SHAPES: dict[str, dict[str, Any]] = {
    "tera-mind": _UNET,
    "patch-dm": _UNET,
    "plain-ddpm": _UNET | {"patch_px": 32, "attention_px": 16},
    "regression": _UNET | {"patch_px": 32, "attention_px": 16},
    # two blocks look 8 px far, so do genes: 4 px from the second block and the head, and two 3 x 3 convolutions
    "sinfusion": {"width": 8, "blocks": 2, "time_channels": 16, "pyramid_channels": (8,), "halo_px": 12},
}


def tiny(method: str, seed: int = 0, **changes: Any) -> Any:
    """A network of a method in evaluation mode, float32, whose zero-initialised weights are random too."""
    sizes = {"genes": 5, "stains": 2, "gene_sections": 1, "patch_px": 16, "bin_px": 4} | SHAPES[method] | changes
    made = method_named(method)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = made.network(made.config(**sizes))
        for parameter in network.parameters():
            if not parameter.any():
                nn.init.normal_(parameter, std=0.1)
    return network.eval()


def counts_of(network: Any, field: Tensor, corner_px: int) -> Any:
    """Counts of a box, cut from a field (gene, section, bin_y, bin_x) that begins `corner_px` before the origin."""

    def source(box: Box) -> Tensor:
        moved = box.shift(corner_px, corner_px)
        bins = Box(*(edge // network.bin_px for edge in (moved.y0, moved.y1, moved.x0, moved.x1)))
        return field[(..., *bins.slices())]

    return source


def random_field(network: Any, side_px: int, seed: int = 1) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    shape = (network.config.genes, network.config.gene_sections, *2 * (side_px // network.bin_px,))
    return torch.randint(0, 4, shape, generator=random).float()
