"""Multiply-adds counted from the shape alone, against PyTorch's own counter and the figures of the design."""

from __future__ import annotations

import pytest
import torch
from tiny_model import tiny_config
from torch.utils.flop_counter import FlopCounterMode

from tera_mind.model.config import ModelConfig
from tera_mind.model.layers import SectionConv
from tera_mind.model.macs import FLOP_A_MAC, count_macs
from tera_mind.model.unet import GeneMorphUNet

CONFIGS = {
    "tiny": tiny_config(),
    "margin and rank": tiny_config(gene_rank=3, margin_px=8, gene_residual=True),
    "two sections": tiny_config(gene_sections=4, res_blocks=2),
    "published": ModelConfig(genes=50, gene_sections=8),
}


@pytest.fixture(autouse=True)
def plain_convolutions(monkeypatch):
    """Every convolution as the published code runs it, whatever ours makes of it."""

    def forward(self, x):
        return torch.nn.functional.conv3d(x, self.weight, self.bias, padding=self.padding)

    monkeypatch.setattr(SectionConv, "forward", forward)


def counted(network: GeneMorphUNet, rows: int, columns: int) -> int:
    """FLOP of one pass over a block that PyTorch's operations report, on no memory at all."""
    config = network.config
    height, width = ((n + 1) * config.patch_px for n in (rows, columns))
    bins = (config.genes, config.gene_sections, height // config.bin_px, width // config.bin_px)
    with torch.device("meta"):
        window, t = torch.empty(1, config.image_channels, height, width), torch.zeros(1, dtype=torch.long)
        counts = torch.empty(1, *bins)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network.predict(window, t, counts)
    return counter.get_total_flops()


@pytest.mark.parametrize("name", CONFIGS)
def test_a_block_costs_what_pytorch_counts(name):
    """PyTorch counts the taps on z padding too."""
    config = CONFIGS[name]
    with torch.device("meta"):
        network = GeneMorphUNet(config).eval()
    macs = count_macs(config, padded=True)
    for rows, columns in ((1, 1), (2, 3)):
        assert counted(network, rows, columns) == FLOP_A_MAC * macs.block(rows, columns)


def test_only_padding_is_left_out():
    """With one section nothing is; with two a third of the taps of every cube."""
    assert count_macs(CONFIGS["tiny"]) == count_macs(CONFIGS["tiny"], padded=True)
    config = CONFIGS["two sections"]
    with torch.device("meta"):
        network = GeneMorphUNet(config)
    side = config.patch_px
    first = network.encoder[0].block.conv_in.weight  # (out, in, 3, 3, 3) on planes of `side`
    spared = count_macs(config, padded=True).encoder - count_macs(config).encoder
    assert spared > first.numel() * side**2 * config.sections // 3


def test_a_training_pair_costs_what_pytorch_counts():
    """Forward and backward of both paths; the first layer needs no gradient of its input, so a little less."""
    config = CONFIGS["tiny"]
    with torch.device("meta"):
        network = GeneMorphUNet(config)
        x = torch.empty(4, config.image_channels, config.patch_px, config.patch_px)
        counts = torch.empty(4, config.genes, config.gene_sections, config.bins, config.bins)
        t = torch.zeros(1, dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        patch, boundary = network(x, t, counts)
        (patch.sum() + boundary.sum()).backward()
    wanted = FLOP_A_MAC * count_macs(config).training_pair(patch_path=True)
    assert 0.9 * wanted < counter.get_total_flops() <= wanted
    without = count_macs(config).training_pair(patch_path=False)
    assert without == 3 * count_macs(config).block(1, 1)


def test_the_published_network_costs_what_the_design_says():
    """Giga-multiply-adds a patch: genes 0.4, encoder and middle 25.6, decoder 65.1; a training pair 1,288."""
    macs = count_macs(ModelConfig(genes=500), padded=True)
    assert macs.genes / 1e9 == pytest.approx(0.4, rel=0.06)
    assert macs.encoder / 1e9 == pytest.approx(25.6, rel=0.01)
    assert macs.decoder / 1e9 == pytest.approx(65.1, rel=0.01)
    assert macs.training_pair(patch_path=True) / 1e9 == pytest.approx(1288, rel=0.01)
