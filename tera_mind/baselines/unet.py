"""The UNet that the baselines share: residual blocks, plain spatial self-attention, genes by concatenation."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from tera_mind.baselines.genes import check_pyramid
from tera_mind.errors import InputError
from tera_mind.model.config import UNetShape
from tera_mind.model.layers import ResBlock, RMSNorm, SectionConv, TimeEmbedding

Features = Float[Tensor, "b _ z _ _"]


@dataclass(frozen=True)
class UNetConfig(UNetShape):
    """Sizes of a baseline's UNet on patches of `patch_px`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        levels = len(self.channel_mult)
        if min(self.base_channels, self.res_blocks, *self.channel_mult, *self.pyramid_channels) < 1:
            raise InputError("base_channels, channel_mult, res_blocks and pyramid_channels must all be at least 1")
        if len(self.pyramid_channels) != levels - 1 or self.patch_px % 2**levels:
            raise InputError(
                f"channel_mult has {levels} levels: pyramid_channels must have {levels - 1} widths and the network's "
                f"patch be a multiple of {2**levels} px, got {len(self.pyramid_channels)} and {self.patch_px}"
            )
        check_pyramid(self, self.pyramid_channels)


class SpatialAttention(nn.Module):
    """Every position of a plane attends to all of it; sections by themselves; residual, starts as the identity."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = RMSNorm(channels, axis=-1)
        self.query_key_value = nn.Linear(channels, 3 * channels)
        self.out = nn.Linear(channels, channels)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Float[Tensor, "b c z y x"]) -> Float[Tensor, "b c z y x"]:
        b, c, z, height, width = x.shape
        tokens = x.permute(0, 2, 3, 4, 1).reshape(b * z, height * width, c)
        query, key, value = self.query_key_value(self.norm(tokens)).chunk(3, dim=-1)
        attended: Tensor = self.out(F.scaled_dot_product_attention(query, key, value))
        return x + attended.view(b, z, height, width, c).permute(0, 4, 1, 2, 3)


class Stage(nn.Module):
    """A residual block on what is concatenated, attention where asked."""

    def __init__(self, block: ResBlock, attention: SpatialAttention | None) -> None:
        super().__init__()
        self.block, self.attention = block, attention

    def forward(self, parts: list[Features], embedding: Float[Tensor, "b t"]) -> Features:
        h: Tensor = self.block(torch.cat(parts, dim=1), embedding)
        return h if self.attention is None else self.attention(h)


class ConditionalUNet(nn.Module):
    """Encoder and decoder over (b, c, z, y, x); gene features enter the decoder, and the encoder where asked.

    inputs: channels that enter; `flat`: convolutions do not see neighbouring sections (a 2-D network, a section at a
    time). Predicts `config.stains` channels a section.
    """

    def __init__(self, config: UNetConfig, inputs: int, *, encoder_genes: bool, flat: bool) -> None:
        super().__init__()
        self.res_blocks, self.encoder_genes = config.res_blocks, encoder_genes
        widths = [config.base_channels * m for m in config.channel_mult]
        gene_widths = (config.genes, *config.pyramid_channels)[::-1]  # finest first, as the UNet's levels
        sections = 1 if flat else config.sections

        def block(before: int, after: int, scale: str = "same") -> ResBlock:
            return ResBlock(before, after, config.time_channels, sections, config.dropout, scale)

        def attention(level: int, channels: int) -> SpatialAttention | None:
            return SpatialAttention(channels) if config.patch_px >> level == config.attention_px else None

        self.time = TimeEmbedding(config.base_channels, config.time_channels)
        self.stem = SectionConv(inputs, widths[0], 1, 3)
        channels, skips = widths[0], [widths[0]]
        self.downs, self.encoder = nn.ModuleList(), nn.ModuleList()
        for level, width in enumerate(widths):
            if level:
                self.downs.append(block(channels, channels, "down"))
                skips.append(channels)
            for _ in range(config.res_blocks):
                entering = channels + (gene_widths[level] if encoder_genes else 0)
                self.encoder.append(Stage(block(entering, width), attention(level, width)))
                channels = width
                skips.append(width)
        self.middle = nn.ModuleList(
            [Stage(block(channels, channels), SpatialAttention(channels)), Stage(block(channels, channels), None)]
        )
        self.decoder, self.ups = nn.ModuleList(), nn.ModuleList()
        for level in reversed(range(len(widths))):
            for _ in range(config.res_blocks + 1):
                entering = channels + skips.pop() + gene_widths[level]
                channels = widths[level]
                self.decoder.append(Stage(block(entering, channels), attention(level, channels)))
            if level:
                self.ups.append(block(channels, channels, "up"))
        self.norm = RMSNorm(channels, axis=1)
        self.head = SectionConv(channels, config.stains, 1, 3)

    def encode(
        self, x: Features, embedding: Float[Tensor, "b t"], genes: list[Features]
    ) -> tuple[Features, list[Features]]:
        """Bottleneck and skips in order of making; `genes` coarsest first."""
        h = self.stem(x)
        skips = [h]
        for i, stage in enumerate(self.encoder):
            level, within = divmod(i, self.res_blocks)
            if level and not within:
                h = self.downs[level - 1](h, embedding)
                skips.append(h)
            h = stage([h, genes[-1 - level]] if self.encoder_genes else [h], embedding)
            skips.append(h)
        for stage in self.middle:
            h = stage([h], embedding)
        return h, skips

    def decode(
        self, h: Features, skips: list[Features], embedding: Float[Tensor, "b t"], genes: list[Features]
    ) -> Float[Tensor, "b c y x"]:
        """Planes (b, S*Z, y, x); channel = stain * sections + section."""
        skips, blocks = list(skips), self.res_blocks + 1
        for i, stage in enumerate(self.decoder):
            level = i // blocks
            if level and not i % blocks:
                h = self.ups[level - 1](h, embedding)
            h = stage([h, skips.pop(), genes[level]], embedding)
        out: Tensor = self.head(F.silu(self.norm(h)))
        return out.flatten(1, 2)
