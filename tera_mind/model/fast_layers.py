"""Blocks of the gene-morph UNet in evaluation mode on section halves (`planes`), made once from a network's weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from tera_mind.model.layers import GeneAttentionBlock, ResBlock, SectionConv
from tera_mind.model.planes import Halves, PlaneConv, SectionProducts
from tera_mind.model.unet import Stage

#: scaled weight and shift of a block's second norm at one timestep
Modulation = tuple[Float[Tensor, " _"], Float[Tensor, " _"]]


def rms_norm(
    parts: Sequence[Float[Tensor, "*positions _"]],
    weight: Float[Tensor, "... c"],
    shift: Float[Tensor, "... c"] | None = None,
) -> Float[Tensor, "*positions c"]:
    """RMSNorm over the channels of all parts together, times weight, plus shift; written where they lie side by side.

    The mean of squares is taken in float32 or wider.
    """
    channels = sum(part.shape[-1] for part in parts)
    wide = torch.promote_types(parts[0].dtype, torch.float32)
    squares = [torch.linalg.vector_norm(part, dim=-1, keepdim=True, dtype=wide).square_() for part in parts]
    total = squares[0] if len(squares) == 1 else torch.stack(squares).sum(0)
    r = torch.rsqrt(total.div_(channels).add_(1e-6)).to(parts[0].dtype)
    out = parts[0].new_empty((*parts[0].shape[:-1], channels))
    at = 0
    for part in parts:
        torch.mul(part, r, out=out[..., at : at + part.shape[-1]])
        at += part.shape[-1]
    return out.mul_(weight) if shift is None else torch.addcmul(shift, out, weight, out=out)


def rms_norm_silu(
    parts: Sequence[Float[Tensor, "*positions _"]],
    weight: Float[Tensor, " c"],
    shift: Float[Tensor, " c"] | None = None,
) -> Float[Tensor, "*positions c"]:
    """SiLU of `rms_norm`."""
    return F.silu(rms_norm(parts, weight, shift), inplace=True)


def resample(half: Float[Tensor, "n y x c"], scale: str) -> Float[Tensor, "n y2 x2 c"]:
    """Nearest x2 (`up`) or 2 x 2 mean pool (`down`); anything else leaves it as it is."""
    n, y, x, c = half.shape
    if scale == "up":
        return half[:, :, None, :, None].expand(n, y, 2, x, 2, c).reshape(n, 2 * y, 2 * x, c)
    if scale == "down":
        return F.avg_pool2d(half.permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1)
    return half


class FastResBlock:
    """`ResBlock` on parts that the plain one gets concatenated."""

    def __init__(
        self, block: ResBlock, parts: Sequence[int], dtype: torch.dtype, sections: int, shape: tuple[int, int]
    ) -> None:
        """parts: channels of what enters; shape: patches at once and the side of what leaves."""
        self.scale, self.source = block.scale, block
        #: where its modulation lies in the network's list
        self.number = 0
        self.weight_in = block.norm_in.weight.to(dtype)
        self.conv_in = SectionProducts(block.conv_in.weight, block.conv_in.bias, dtype, sections, shape)
        self.conv_out = SectionProducts(block.conv_out.weight, block.conv_out.bias, dtype, sections, shape)
        self.skips: list[PlaneConv] = []
        if isinstance(block.skip, SectionConv):
            assert block.skip.bias is not None
            weight, bias = block.skip.weight[:, :, 0].to(dtype), block.skip.bias.to(dtype)
            planes = (shape[0] * max(1, sections // 2), shape[1])
            for i, piece in enumerate(weight.split(list(parts), dim=1)):
                self.skips.append(PlaneConv(piece, None if i else bias, planes))

    def modulation(self, embedding: Float[Tensor, " t"]) -> Modulation:
        """What the second norm does at the timestep of an embedding."""
        scale, shift = self.source.time(F.silu(embedding)).chunk(2)
        dtype = self.weight_in.dtype
        return (self.source.norm_out.weight * (1 + scale)).to(dtype), shift.to(dtype)

    def __call__(self, parts: Sequence[Halves], modulation: Modulation) -> Halves:
        sides = [list(side) for side in zip(*parts, strict=True)]
        h = self.conv_in([resample(rms_norm_silu(side, self.weight_in), self.scale) for side in sides])
        h = self.conv_out([rms_norm_silu([half], *modulation) for half in h])
        for i, side in enumerate(sides):
            if self.skips:
                for conv, part in zip(self.skips, side, strict=True):
                    h[i] = conv(part, plus=h[i])
                continue
            for target, part in zip(h[i].split([part.shape[-1] for part in side], dim=-1), side, strict=True):
                target.add_(resample(part, self.scale))
        return h


def to_tokens(halves: Halves, patches: int, side: int) -> Float[Tensor, "w tokens c"]:
    """Squares of `side` of every patch; a window's tokens are its positions in all sections."""
    tokens = []
    for half in halves:
        k, (_, height, width, c) = len(half) // patches, half.shape
        cut = half.view(k, patches, height // side, side, width // side, side, c)
        tokens.append(cut.permute(1, 2, 4, 0, 3, 5, 6).reshape(-1, k * side * side, c))
    return tokens[0] if len(tokens) == 1 else torch.cat(tokens, dim=1)


def from_tokens(tokens: Float[Tensor, "w tokens c"], like: Halves, patches: int, side: int) -> Halves:
    """Inverse of `to_tokens` for halves shaped as `like`."""
    out = []
    for half, part in zip(like, tokens.chunk(len(like), dim=1), strict=True):
        k, (_, height, width, _) = len(half) // patches, half.shape
        cut = part.reshape(patches, height // side, width // side, k, side, side, -1)
        out.append(cut.permute(3, 0, 1, 4, 2, 5, 6).reshape(len(half), height, width, -1))
    return out


class FastAttention:
    """`GeneAttentionBlock` on halves."""

    def __init__(self, block: GeneAttentionBlock, dtype: torch.dtype) -> None:
        self.block = block.to(dtype)

    def __call__(self, x: Halves, genes: Halves, patches: int) -> Halves:
        block, side = self.block, self.block.window_px
        tokens = to_tokens(x, patches, side)
        modulation = block.modulation(to_tokens([F.silu(half) for half in genes], patches, side))
        shift1, scale1, gate1, e, shift2, scale2, gate2 = modulation.chunk(7, dim=-1)
        h = rms_norm([tokens], block.norm_attention.weight * (1 + scale1), shift1)
        query = rms_norm([block.query(h)], block.norm_query.weight)
        key = rms_norm([block.key(e)], block.norm_key.weight)
        attended = F.scaled_dot_product_attention(query, key, block.value(e), scale=1.0 / tokens.shape[-1])
        tokens = torch.addcmul(tokens, gate1, block.out(attended))
        h = rms_norm([tokens], block.norm_mlp.weight * (1 + scale2), shift2)
        tokens = tokens.addcmul_(gate2, block.mlp(h))
        return from_tokens(tokens, x, patches, side)


class FastStage:
    """`Stage`: a residual block, attention to genes where there is one, a resampling block after."""

    def __init__(
        self, stage: Stage, parts: Sequence[int], dtype: torch.dtype, sections: int, shape: tuple[int, int]
    ) -> None:
        self.block = FastResBlock(stage.block, parts, dtype, sections, shape)
        self.attention = None if stage.attention is None else FastAttention(stage.attention, dtype)
        self.after = None
        if stage.after is not None:
            side = 2 * shape[1] if stage.after.scale == "up" else shape[1]
            channels = stage.block.conv_out.weight.shape[0]
            self.after = FastResBlock(stage.after, [channels], dtype, sections, (shape[0], side))

    @property
    def blocks(self) -> list[FastResBlock]:
        return [self.block] if self.after is None else [self.block, self.after]

    def __call__(
        self, parts: Sequence[Halves], genes: Halves, modulations: Sequence[Modulation], patches: int
    ) -> Halves:
        h = self.block([*parts, genes], modulations[0])
        if self.attention is not None:
            h = self.attention(h, genes, patches)
        return h if self.after is None else self.after([h], modulations[1])
