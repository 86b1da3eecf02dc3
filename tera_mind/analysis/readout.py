"""What is read off the gene-gene attention of a patch, and what it is compared with.

With S a set of genes, A the attention of a patch (rows are queries and sum to one over ALL G genes of the panel) and
x_j the transcripts of gene j in the patch, in the section that is looked at:

    attention             sum over i, j in S of A_ij x_j       the published read-out (arXiv 2503.01220), i = j included
    attention, unweighted mean of A_ij over i != j in S        knows nothing of x beyond what the softmax saw
    product               mean of x_i x_j over i < j in S      co-expression: the null that needs no network
    expression            x_j of each gene

The published maps show the first for every 16 px bin; here it is summed over a patch, which is the same number because
A belongs to the patch. Were attention uniform (A_ij = 1 / G), it would be |S| / G times the summed expression: a map of
it that looks like the expression maps says nothing more than they do, so all are written side by side.

Rows are softmaxed over all genes but only those of S are needed: O(|S| G d) a patch beside the projection of all genes
(O(G d^2)); the matrix of all pairs is never made.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tera_mind.model.genes import GenePyramid

Counts = Float[Tensor, "b gene section bin_y bin_x"]


def queries(pyramid: GenePyramid, counts: Counts) -> Float[Tensor, "b gene d"]:
    """Normalised queries of all genes, which are the keys as well (counts are transformed as the network does)."""
    block = pyramid.gene_gene
    found: Tensor = block.norm_query(block.query(pyramid.tokens(counts)))
    return found


def attention_rows(found: Float[Tensor, "b gene d"], genes: Int[Tensor, " query"]) -> Float[Tensor, "b query gene"]:
    """Rows `genes` of `GenePyramid.attention`: softmax over all genes, only for these queries."""
    return torch.softmax(found[:, genes] @ found.transpose(1, 2) / found.shape[-1], dim=-1)


def set_attention(found: Float[Tensor, "b gene d"], genes: Int[Tensor, " query"]) -> Float[Tensor, "b query query"]:
    """The attention matrix restricted to a set of genes; its rows sum to less than one."""
    return attention_rows(found, genes)[:, :, genes]


def masked(counts: Counts, keep: tuple[int, ...]) -> Counts:
    """Counts with all sections but `keep` (positions in the window) set to zero: what a pair of sections says alone."""
    out = torch.zeros_like(counts)
    out[:, :, list(keep)] = counts[:, :, list(keep)]
    return out


def weighted(attention: Float[Tensor, "b query query"], expression: Float[Tensor, "b query"]) -> Float[Tensor, " b"]:
    """Sum over i, j of A_ij x_j."""
    return torch.einsum("bij,bj->b", attention, expression)


def unweighted(attention: Float[Tensor, "b query query"]) -> Float[Tensor, " b"]:
    """Mean of A_ij over i != j: both directions of every pair, so the symmetrised attention."""
    size = attention.shape[1]
    across = attention.sum((1, 2)) - attention.diagonal(dim1=1, dim2=2).sum(1)
    return across / (size * (size - 1))


def product(expression: Float[Tensor, "b query"]) -> Float[Tensor, " b"]:
    """Mean of x_i x_j over i < j."""
    size = expression.shape[1]
    return (expression.sum(1) ** 2 - (expression**2).sum(1)) / (size * (size - 1))
