"""Gene branch: gene-gene attention, then a pyramid of gene features, one level a resolution of the UNet.

It depends on neither the noise nor the timestep.
"""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from tera_mind.model.config import ModelConfig
from tera_mind.model.layers import MLP, RMSNorm, SectionConv, attend

Counts = Float[Tensor, "b gene section bin_y bin_x"]


class GeneGeneBlock(nn.Module):
    """Genes are tokens, a gene's counts in a patch are its features; queries and keys share one projection.

    Shared projections make the scores symmetric. The published block has no residual, so its RMSNorm makes an
    absent gene as loud as an abundant one; `residual` adds the input again.
    """

    def __init__(self, features: int, *, residual: bool) -> None:
        super().__init__()
        self.residual = residual
        self.query = nn.Linear(features, features)
        self.value = nn.Linear(features, features)
        self.norm_query = RMSNorm(features, axis=-1)
        self.out = nn.Linear(features, features)
        self.norm_mlp = RMSNorm(features, axis=-1)
        self.mlp = MLP(features)

    def attention(self, x: Float[Tensor, "b gene d"]) -> Float[Tensor, "b 1 gene gene"]:
        """Softmaxed gene-gene attention of each patch; rows sum to one."""
        query = self.norm_query(self.query(x))
        return torch.softmax(query @ query.transpose(1, 2) / x.shape[-1], dim=-1)[:, None]

    def forward(self, x: Float[Tensor, "b gene d"]) -> Float[Tensor, "b gene d"]:
        query = self.norm_query(self.query(x))
        mixed = attend(query, query, self.value(x))
        out: Tensor = self.mlp(self.norm_mlp(self.out(mixed)))
        return x + out if self.residual else out


class LowRankConv(nn.Module):
    """Genes to `rank` channels, then the convolution over (z, y, x) among those: linear, not quadratic, in G."""

    def __init__(self, genes: int, rank: int, kernel_z: int) -> None:
        super().__init__()
        self.reduce = SectionConv(genes, rank, 1, 1)
        self.conv = SectionConv(rank, rank, kernel_z, 3, pad_z=False)

    def forward(self, x: Counts) -> Float[Tensor, "b rank z bin_y bin_x"]:
        out: Tensor = self.conv(self.reduce(x))
        return out


def upsample(x: Float[Tensor, "b c z y x"], factor: int) -> Float[Tensor, "b c z y2 x2"]:
    """Nearest upsampling in y, x."""
    if factor == 1:
        return x
    return x.repeat_interleave(factor, dim=-2).repeat_interleave(factor, dim=-1)


class GenePyramid(nn.Module):
    """Counts of a patch -> gene features at every resolution of the UNet, coarsest first."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        features = config.gene_sections * config.bins**2
        self.count_transform = config.count_transform
        self.first_factor = config.deepest_px // config.bins
        self.gene_gene = GeneGeneBlock(features, residual=config.gene_residual)
        kernel_z = config.gene_sections // 2 + 1 if config.gene_sections > 1 else 1
        if config.gene_rank is None:
            self.first: nn.Module = SectionConv(config.genes, config.genes, kernel_z, 3, pad_z=False)
        else:
            self.first = LowRankConv(config.genes, config.gene_rank, kernel_z)
        widths = config.gene_channels
        self.levels = nn.ModuleList(SectionConv(a, b, 1, 3) for a, b in itertools.pairwise(widths))

    def tokens(self, counts: Counts) -> Float[Tensor, "b gene d"]:
        """A patch's counts as one token a gene, features in the order (section, bin_y, bin_x)."""
        if self.count_transform == "log1p":
            counts = counts.log1p()
        return rearrange(counts, "b gene section y x -> b gene (section y x)")

    def attention(self, counts: Counts) -> Float[Tensor, "b 1 gene gene"]:
        """Gene-gene attention of each patch, for reading interactions."""
        return self.gene_gene.attention(self.tokens(counts))

    def forward(self, counts: Counts) -> list[Float[Tensor, "b c z y x"]]:
        mixed = self.gene_gene(self.tokens(counts)).view(counts.shape)
        levels = [upsample(self.first(mixed), self.first_factor)]
        for conv in self.levels:
            levels.append(upsample(conv(F.silu(levels[-1])), 2))
        return levels
