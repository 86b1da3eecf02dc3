"""Multiply-adds of the network, counted from its shape alone.

Counted are convolutions, linear maps and attention; of a convolution over sections only the taps that meet a section,
unless `padded`: with two sections a third of every 3x3x3 convolution multiplies zeros. One multiply-add is two FLOP.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from tera_mind.model.config import ModelConfig

#: floating-point operations of a multiply-add
FLOP_A_MAC = 2


@dataclass(frozen=True)
class Macs:
    """Multiply-adds by part: of one encoder patch, of one decoded patch, and of a timestep's embedding."""

    genes: int
    #: encoder and middle
    encoder: int
    #: boundary-aware path, its margin included
    decoder: int
    #: patch path, which has no margin
    patch_decoder: int
    time: int

    @property
    def patch(self) -> int:
        """What one generated patch needs: encoded once, decoded once."""
        return self.genes + self.encoder + self.decoder

    def block(self, rows: int, columns: int) -> int:
        """One pass over a block of patches, with the rim of encoder patches that its own patches share."""
        encoded = (rows + 1) * (columns + 1)
        return encoded * (self.genes + self.encoder) + rows * columns * self.decoder + self.time

    def training_pair(self, *, patch_path: bool) -> int:
        """Forward and backward of one pair of 2 x 2 patches; backward costs twice the forward."""
        return 3 * (self.block(1, 1) + (4 * self.patch_decoder if patch_path else 0))


@dataclass(frozen=True)
class _Count:
    """Costs of single layers of one network."""

    config: ModelConfig
    padded: bool

    @property
    def _taps_z(self) -> int:
        """Pairs of a section and a section one kernel tap away, over the sections of a patch."""
        sections = self.config.sections
        return sections if sections == 1 else 3 * sections if self.padded else 3 * sections - 2

    def plane(self, inputs: int, outputs: int, side: int, kernel: int = 3) -> int:
        """Convolution within each section, (1, kernel, kernel)."""
        return inputs * outputs * self.config.sections * kernel**2 * side**2

    def res_block(self, inputs: int, outputs: int, side: int) -> int:
        """Residual block whose output planes are `side` wide."""
        cubes = 9 * self._taps_z * side**2 * outputs * (inputs + outputs)
        skip = 0 if inputs == outputs else self.plane(inputs, outputs, side, 1)
        return cubes + skip + self.config.time_channels * 2 * outputs

    def attention(self, channels: int, genes: int, side: int, window: int) -> int:
        """Gene attention: modulation, four projections, scores and values, and the MLP."""
        tokens = self.config.sections * side**2
        a_token = 7 * channels * genes + 4 * channels**2 + 8 * channels**2
        return tokens * (a_token + 2 * self.config.sections * window**2 * channels)

    def stage(self, level: int, inputs: int, width: int, margin: int, *, always: bool = False) -> int:
        """A residual block of a level at its resolution, with attention where there is some."""
        config = self.config
        own = config.patch_px >> level
        side = (config.patch_px + 2 * margin) >> level
        genes = config.gene_channels[::-1][level]
        cost = self.res_block(inputs, width, side)
        if always or own == config.attention_px:
            cost += self.attention(width, genes, side, own // 2)
        return cost


def count_macs(config: ModelConfig, *, padded: bool = False) -> Macs:
    """Multiply-adds of every part of a network; `padded` counts the taps on z padding as well."""
    count = _Count(config, padded)
    widths = [config.base_channels * m for m in config.channel_mult]
    genes = config.gene_channels[::-1]
    deepest = len(widths) - 1
    encoder = count.plane(config.stains, widths[0], config.patch_px)
    channels, skips = widths[0], [widths[0]]
    for level, width in enumerate(widths):
        if level:
            encoder += count.res_block(channels, channels, config.patch_px >> level)
            skips.append(channels)
        for _ in range(config.res_blocks):
            encoder += count.stage(level, channels + genes[level], width, 0)
            channels = width
            skips.append(width)
    encoder += count.stage(deepest, channels + genes[deepest], channels, 0, always=True)
    encoder += count.res_block(channels, channels, config.deepest_px)
    return Macs(
        genes=_gene_macs(count),
        encoder=encoder,
        decoder=_decoder_macs(count, channels, skips, config.margin_px),
        patch_decoder=_decoder_macs(count, channels, skips, 0),
        time=config.base_channels * config.time_channels + config.time_channels**2,
    )


def _decoder_macs(count: _Count, channels: int, skips: list[int], margin: int) -> int:
    config, waiting = count.config, list(skips)
    total = 0
    for level in reversed(range(len(config.channel_mult))):
        width = config.base_channels * config.channel_mult[level]
        for i in range(config.res_blocks + 1):
            total += count.stage(level, channels + waiting.pop() + config.gene_channels[::-1][level], width, margin)
            channels = width
            if level and i == config.res_blocks:
                total += count.res_block(width, width, (config.patch_px + 2 * margin) >> (level - 1))
    return total + count.plane(channels, config.stains, config.patch_px + 2 * margin)


def _gene_macs(count: _Count) -> int:
    """Gene-gene block and pyramid of one patch."""
    config = count.config
    features = config.gene_sections * config.bins**2
    total = config.genes * 11 * features**2 + 2 * config.genes**2 * features
    kernel_z = config.gene_sections // 2 + 1 if config.gene_sections > 1 else 1
    bins = config.bins**2
    width = config.genes
    if config.gene_rank is not None:
        width = config.gene_rank
        total += config.genes * width * config.gene_sections * bins
    total += width**2 * 9 * kernel_z * config.sections * bins
    for i, (inputs, outputs) in enumerate(itertools.pairwise(config.gene_channels)):
        total += count.plane(inputs, outputs, config.deepest_px << i)
    return total
