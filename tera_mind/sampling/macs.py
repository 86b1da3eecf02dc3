"""Multiply-adds of a block, for every method."""

from __future__ import annotations

import torch
from torch.utils.flop_counter import FlopCounterMode

from tera_mind.geometry import Box
from tera_mind.model.blocks import BlockNetwork, Painter
from tera_mind.model.config import BlockConfig, ModelConfig
from tera_mind.model.macs import count_macs
from tera_mind.model.methods import method_named


@torch.no_grad()
def block_macs(model: BlockConfig, method: str, rows: int, columns: int) -> int:
    """Multiply-adds of one pass over a block of rows x columns patches, halo included.

    Counted by formula for Tera-MIND, and for other methods by running their network without numbers (torch's meta
    device).
    """
    if isinstance(model, ModelConfig):
        return count_macs(model).block(rows, columns)
    with torch.device("meta"):
        network = method_named(method).network(model).eval().requires_grad_(requires_grad=False)
        bins = [n * model.bins + 2 * model.halo_px // model.bin_px for n in (rows, columns)]
        counts = torch.empty(1, model.genes, model.gene_sections, *bins)
        size = [n * model.bin_px for n in bins]
        with FlopCounterMode(display=False) as counter:
            if isinstance(network, BlockNetwork):
                network.predict(torch.empty(1, model.image_channels, *size), torch.zeros(1, dtype=torch.int64), counts)
            elif isinstance(network, Painter):
                planes = network.noise_planes(Box(0, bins[0], 0, bins[1]))
                network.paint(counts, [torch.empty(1, plane.box.height, plane.box.width) for plane in planes])
    return int(counter.get_total_flops()) // 2
