"""The gene-morph UNet and its two paths (Tera-MIND, arXiv 2503.01220; symbols of `ModelConfig`)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Integer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tera_mind.model import collage
from tera_mind.model.config import ModelConfig
from tera_mind.model.genes import Counts, GenePyramid
from tera_mind.model.layers import GeneAttentionBlock, ResBlock, RMSNorm, SectionConv, TimeEmbedding

Planes = Float[Tensor, "b c y x"]


@dataclass
class Encoding:
    """What the encoder leaves of each patch: bottleneck, skips in order of making, gene pyramid coarsest first."""

    bottleneck: Float[Tensor, "b _ z _ _"]
    skips: list[Float[Tensor, "b _ z _ _"]]
    genes: list[Float[Tensor, "b _ z _ _"]]

    def beside(self, other: Encoding) -> Encoding:
        """The patches of both, of one size, so that one pass decodes them."""
        return Encoding(
            torch.cat([self.bottleneck, other.bottleneck]),
            [torch.cat(pair) for pair in zip(self.skips, other.skips, strict=True)],
            [torch.cat(pair) for pair in zip(self.genes, other.genes, strict=True)],
        )


class Stage(nn.Module):
    """One block of encoder or decoder: a residual block, attention to genes where asked, a resampling block after.

    The parts that enter and the gene features are concatenated here, so that recomputation need not keep the result.
    """

    def __init__(
        self, block: ResBlock, attention: GeneAttentionBlock | None = None, after: ResBlock | None = None
    ) -> None:
        super().__init__()
        self.block, self.attention, self.after = block, attention, after

    def forward(
        self,
        parts: list[Float[Tensor, "b _ z y x"]],
        embedding: Float[Tensor, "b t"],
        genes: Float[Tensor, "b g z y x"],
    ) -> Float[Tensor, "b c2 z y2 x2"]:
        h: Tensor = self.block(torch.cat([*parts, genes], dim=1), embedding)
        if self.attention is not None:
            h = self.attention(h, genes)
        return h if self.after is None else self.after(h, embedding)


class GeneMorphUNet(nn.Module):
    """Encodes every small patch by itself; decodes it in place (patch path) or half a patch later (boundary path)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        #: on the way back compute each block again instead of keeping what it made (activation checkpointing)
        self.recompute = False
        widths = [config.base_channels * m for m in config.channel_mult]
        gene_widths = config.gene_channels[::-1]  # finest first, as the UNet's levels
        z, time = config.sections, config.time_channels

        def block(inputs: int, outputs: int, scale: str = "same") -> ResBlock:
            return ResBlock(inputs, outputs, time, z, config.dropout, scale)

        def attention(level: int, channels: int, *, always: bool = False) -> GeneAttentionBlock | None:
            side = config.patch_px // 2**level
            if not always and side != config.attention_px:
                return None
            return GeneAttentionBlock(channels, gene_widths[level], window_px=side // 2)

        self.time = TimeEmbedding(config.base_channels, time)
        self.pyramid = GenePyramid(config)
        self.stem = SectionConv(config.stains, widths[0], 1, 3)
        channels, skip_widths = widths[0], [widths[0]]
        self.downs, self.encoder = nn.ModuleList(), nn.ModuleList()
        for level, width in enumerate(widths):
            if level:
                self.downs.append(block(channels, channels, "down"))
                skip_widths.append(channels)
            for _ in range(config.res_blocks):
                self.encoder.append(Stage(block(channels + gene_widths[level], width), attention(level, width)))
                channels = width
                skip_widths.append(width)
        deepest = len(widths) - 1
        middle = attention(deepest, channels, always=True)
        self.middle = Stage(block(channels + gene_widths[deepest], channels), middle, block(channels, channels))
        self.decoder = nn.ModuleList()
        for level in reversed(range(len(widths))):
            for i in range(config.res_blocks + 1):
                inputs = channels + skip_widths.pop() + gene_widths[level]
                channels = widths[level]
                up = block(channels, channels, "up") if level and i == config.res_blocks else None
                self.decoder.append(Stage(block(inputs, channels), attention(level, channels), up))
        self.norm = RMSNorm(channels, axis=1)
        self.head = SectionConv(channels, config.stains, 1, 3)

    @staticmethod
    def parameter_shapes(config: ModelConfig) -> dict[str, torch.Size]:
        """Name and shape of every weight, without allocating any."""
        with torch.device("meta"):
            return {name: value.shape for name, value in GeneMorphUNet(config).named_parameters()}

    def _run(self, stage: nn.Module, parts: list[Tensor], embedding: Tensor, genes: Tensor) -> Tensor:
        h: Tensor
        if self.recompute and torch.is_grad_enabled():
            h = checkpoint(stage, parts, embedding, genes, use_reentrant=False)
        else:
            h = stage(parts, embedding, genes)
        return h

    def encode(self, x: Planes, embedding: Float[Tensor, "b t"], counts: Counts) -> Encoding:
        """Encode patches (b, S*Z, P, P) with their counts (b, G, Zg, n, n); no patch sees another."""
        genes = self.pyramid(counts)
        h = self.stem(x.unflatten(1, (self.config.stains, self.config.sections)))
        skips = [h]
        for i, stage in enumerate(self.encoder):
            level, first = divmod(i, self.config.res_blocks)
            if level and not first:
                h = self.downs[level - 1](h, embedding)
                skips.append(h)
            features = genes[-1 - level]
            h = self._run(stage, [h], embedding, features)
            skips.append(h)
        h = self._run(self.middle, [h], embedding, genes[0])
        return Encoding(h, skips, genes)

    def decode(self, encoding: Encoding, embedding: Float[Tensor, "b t"]) -> Planes:
        """Decode features of any patch grid into planes (b, S*Z, side, side)."""
        h, skips = encoding.bottleneck, list(encoding.skips)
        for i, stage in enumerate(self.decoder):
            features = encoding.genes[i // (self.config.res_blocks + 1)]
            h = self._run(stage, [h, skips.pop()], embedding, features)
        out: Tensor = self.head(F.silu(self.norm(h)))
        return out.flatten(1, 2)

    def reassemble(self, encoding: Encoding, rows: int, columns: int) -> Encoding:
        """Features of the half-shifted encoder grid, cut into rows x columns patches with the configured margin."""

        def shifted(features: Float[Tensor, "b c z y x"]) -> Float[Tensor, "b2 c z y2 x2"]:
            margin = self.config.margin_px * features.shape[-1] // self.config.patch_px
            return collage.reassemble(features, rows, columns, margin)

        return Encoding(
            shifted(encoding.bottleneck), [shifted(s) for s in encoding.skips], [shifted(g) for g in encoding.genes]
        )

    def boundary_with_margin(
        self, x: Planes, t: Integer[Tensor, " g"], counts: Counts, rows: int, columns: int
    ) -> Float[Tensor, "out c side side"]:
        """The boundary-aware path alone, its decoded margin kept: (g*R*K, S*Z, P + 2 margin, P + 2 margin).

        x: (g*(R+1)*(K+1), S*Z, P, P) encoder patches of g regions, order (region, row, column); t: (g,) one timestep
        a region; counts: (g*(R+1)*(K+1), G, Zg, n, n).
        """
        embedding = self.time(t)
        encoding = self.encode(x, embedding.repeat_interleave((rows + 1) * (columns + 1), 0), counts)
        return self.decode(self.reassemble(encoding, rows, columns), embedding.repeat_interleave(rows * columns, 0))

    def boundary(
        self, x: Planes, t: Integer[Tensor, " g"], counts: Counts, rows: int, columns: int
    ) -> Float[Tensor, "out c p p"]:
        """The boundary-aware path as generation uses it: (g*R*K, S*Z, P, P), the margin cropped away."""
        out = self.boundary_with_margin(x, t, counts, rows, columns)
        margin = self.config.margin_px
        return out[..., margin : out.shape[-2] - margin, margin : out.shape[-1] - margin]

    @property
    def patch_px(self) -> int:
        return self.config.patch_px

    @property
    def bin_px(self) -> int:
        return self.config.bin_px

    @property
    def halo_px(self) -> int:
        return self.config.halo_px

    @property
    def channels(self) -> int:
        return self.config.image_channels

    def predict(
        self,
        window: Float[Tensor, "n channel y x"],
        t: Integer[Tensor, " n"],
        counts: Float[Tensor, "n gene section bin_y bin_x"],
    ) -> Float[Tensor, "n channel y2 x2"]:
        """Boundary-aware path on n blocks of R x K patches with half a patch around them (see `BlockNetwork`)."""
        rows, columns = window.shape[-2] // self.patch_px - 1, window.shape[-1] // self.patch_px - 1
        weight = self.head.weight
        patches = self.boundary(
            collage.to_patches(window, self.patch_px).to(weight),
            t.to(weight.device),
            collage.counts_to_patches(counts, self.config.bins).to(weight),
            rows,
            columns,
        )
        out = collage.from_patches(patches, rows, columns)
        return out.to(torch.promote_types(out.dtype, torch.float32))

    def forward(
        self,
        x: Float[Tensor, "b4 c p p"],
        t: Integer[Tensor, " b"],
        counts: Float[Tensor, "b4 gene section bin_y bin_x"],
        *,
        patch_path: bool = True,
    ) -> tuple[Float[Tensor, "b4 c p p"] | None, Float[Tensor, "b c side side"]]:
        """Both paths on groups of 2 x 2 patches, as training uses them; without `patch_path` its prediction is None.

        x: (4b, S*Z, P, P), order (sample, row, column); t: (b,); counts: (4b, G, Zg, n, n). Returns the patch path's
        prediction (4b, S*Z, P, P) and the boundary path's (b, S*Z, P + 2 margin, P + 2 margin), centred.
        """
        embedding = self.time(t)
        each = embedding.repeat_interleave(4, 0)
        encoding = self.encode(x, each, counts)
        shifted = self.reassemble(encoding, 1, 1)
        if not patch_path:
            return None, self.decode(shifted, embedding)
        if self.config.margin_px:  # patches of another size
            return self.decode(encoding, each), self.decode(shifted, embedding)
        both = self.decode(encoding.beside(shifted), torch.cat([each, embedding]))
        return both[: len(x)], both[len(x) :]
