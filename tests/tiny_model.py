"""Networks small enough for tests, with no weight left at zero, and published state dicts made of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tera_mind.model.config import ModelConfig
from tera_mind.model.published import published_names
from tera_mind.model.unet import GeneMorphUNet


def tiny_config(**changes: Any) -> ModelConfig:
    """Two levels, patches of 32 px in bins of 16 px, one section; it attends at the deeper level."""
    sizes: dict[str, Any] = {
        "genes": 5,
        "stains": 2,
        "gene_sections": 1,
        "patch_px": 32,
        "bin_px": 16,
        "base_channels": 4,
        "channel_mult": (1, 2),
        "res_blocks": 1,
        "time_channels": 8,
        "pyramid_channels": (6,),
        "attention_px": 16,
    }
    return ModelConfig(**(sizes | changes))


def tiny_network(config: ModelConfig, seed: int = 0, dtype: torch.dtype = torch.float64) -> GeneMorphUNet:
    """A network in evaluation mode whose zero-initialised convolutions are random too, so that they count."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = GeneMorphUNet(config)
        for parameter in network.parameters():
            if not parameter.any():
                torch.nn.init.normal_(parameter, std=0.1)
    return network.to(dtype).eval()


def counts_for(config: ModelConfig, *shape: int, seed: int = 0) -> Tensor:
    """Counts (batch, gene, gene section, bin_y, bin_x) for shape = (batch, bin_y, bin_x)."""
    batch, bins_y, bins_x = shape
    generator = torch.Generator().manual_seed(seed)
    size = (batch, config.genes, config.gene_sections, bins_y, bins_x)
    return torch.randint(0, 5, size, generator=generator).double()


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def published_state(network: GeneMorphUNet) -> dict[str, Tensor]:
    """The network's weights as a published state dict holds them.

    Channel norms are (1, C, 1, 1) there; with one section the 3x3x3 kernels are there too, and what is in their
    outer planes must not matter, so it is noise here.
    """
    state: dict[str, Tensor] = {}
    for ours, theirs in published_names(network.config).items():
        value = network.get_parameter(ours).detach().float()
        if (
            value.ndim == 5
            and network.config.sections == 1
            and theirs.split(".")[-2] in {"2", "3"}
            and "_layers" in theirs
        ):
            outer = normal(*value.shape[:2], 2, 3, 3, seed=len(state)).float()
            value = torch.cat([outer[:, :, :1], value, outer[:, :, 1:]], dim=2)
        if ours.endswith(("norm_in.weight", "norm_out.weight")) or ours == "norm.weight":
            value = value.view(1, -1, 1, 1)
        state[theirs] = value
    return state
