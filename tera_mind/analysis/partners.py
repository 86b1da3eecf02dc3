"""Which genes a gene attends to over a region, and whether that is more than chance.

The statistic of partner j of gene g is T_j = sum_p w_p A_gj(p) / sum_p w_p over patches p, w_p the gene's own
expression there: where a gene is absent its attention says nothing about it. Two nulls, both one-sided:

    genes permuted   within every patch the attention that g pays to the other genes is dealt out anew among them. The
                     same null for every partner, so all draws are pooled. It asks whether g prefers j to other genes.
    spatial shift    the partner's patches are shifted on a torus within a block, against all else, and the softmax is
                     done again with the shifted partner in it. A null of its own for each partner: it asks whether
                     attention needs the two at the same place, given both patterns (autocorrelation stays as it is).

Patches are independent in the first and not in tissue, so it calls many genes over a large region; the second is the
stricter. A shift that leads to a patch without transcripts is left out of that draw.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor

from tera_mind.analysis.significance import benjamini_hochberg, own_p, pooled_p
from tera_mind.errors import InputError

_LABELS, _SHIFTS = 1, 2  # purposes of the random keys
#: draws of the pooled null over all genes together, at least
POOLED_DRAWS = 20_000
#: elements of the table of scores that are in memory at once
_CHUNK = 8_000_000


@dataclass(frozen=True)
class PartnerSettings:
    """gene: whose partners; permutations: draws of the spatial null; seed: of all draws."""

    gene: str
    permutations: int = 999
    seed: int = 0

    def __post_init__(self) -> None:
        if self.permutations < 1 or self.seed < 0:
            raise InputError(
                f"permutations must be at least 1 and the seed 0 or more, got {self.permutations} and {self.seed}"
            )

    def label_draws(self, genes: int) -> int:
        """Draws of the pooled null a gene."""
        return -(-POOLED_DRAWS // max(1, genes - 1))


class PartnerSums:
    """Sums over patches; those of several bands add up."""

    def __init__(self, settings: PartnerSettings, panel: Sequence[str]) -> None:
        self.settings, genes = settings, len(panel)
        self.gene = list(panel).index(settings.gene)
        self._others = np.flatnonzero(np.arange(genes) != self.gene)
        self._total = {name: np.zeros(genes) for name in ("row", "x", "xx", "xg_x")}
        self._patches = 0.0
        self._labels = np.zeros((settings.label_draws(genes), genes - 1))
        self._shifts = np.zeros((settings.permutations, genes))
        self._shift_weights = np.zeros(settings.permutations)
        self._blocks: list[NDArray[np.float64]] = []
        self._weights: list[float] = []

    def add(
        self,
        grid: tuple[int, int],
        known: Bool[Tensor, " patch"],
        queries: Float[Tensor, "known gene d"],
        expression: Float[Tensor, "patch gene"],
        key: tuple[int, ...],
    ) -> None:
        """A block of (rows, columns) patches, row by row; queries of the patches that are known; key of its draws."""
        scores = torch.einsum("pd,pjd->pj", queries[:, self.gene], queries).double() / queries.shape[-1]
        rows = torch.softmax(scores, dim=1).numpy()
        x = expression[known].double().numpy()
        weight = x[:, self.gene]
        self._patches += len(x)
        self._total["row"] += rows.sum(0)
        self._total["x"] += x.sum(0)
        self._total["xx"] += (x**2).sum(0)
        self._total["xg_x"] += weight @ x
        self._blocks.append(weight @ rows)
        self._weights.append(float(weight.sum()))
        used = np.flatnonzero(weight)
        if not len(used):
            return
        settings = self.settings
        random = np.random.default_rng([settings.seed, _LABELS, *key])
        row = rows[np.ix_(used, self._others)]
        for number in range(len(self._labels)):
            self._labels[number] += weight[used] @ random.permuted(row, axis=1)
        if grid[0] * grid[1] < 2:
            return
        sums, weights = shifted_sums(grid, known.numpy(), queries, scores, weight, self.gene)
        random = np.random.default_rng([settings.seed, _SHIFTS, *key])
        chosen = random.integers(1, len(sums), settings.permutations)  # shift 0 is none
        self._shifts += sums[chosen]
        self._shift_weights += weights[chosen]

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Sums by name, `sum:` before those that add up; "block_row" and "block_weight" have a row a block."""
        genes = len(self._total["row"])
        return {
            "sum:patches": np.array([self._patches]),
            **{f"sum:{name}": total for name, total in self._total.items()},
            "sum:labels": self._labels,
            "sum:shifts": self._shifts,
            "sum:shift_weights": self._shift_weights,
            "block_row": np.stack(self._blocks) if self._blocks else np.zeros((0, genes)),
            "block_weight": np.array(self._weights),
        }


def shifted_sums(
    grid: tuple[int, int],
    known: NDArray[np.bool_],
    queries: Float[Tensor, "known gene d"],
    scores: Float[Tensor, "known gene"],
    weight: NDArray[np.float64],
    gene: int,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """sum_p w_p A'_gj(p) and sum_p w_p of every shift (dy, dx) on the torus, row-major: (shift, gene), (shift,).

    A' is the attention with gene j's query of patch p + shift in place of p's own; pairs whose other patch is not
    known are left out. All pairs of patches are scored once, so the number of draws costs nothing.
    """
    rows, columns = grid
    y, x = np.divmod(np.flatnonzero(known), columns)
    # shift that leads from patch p to patch q
    shift = torch.from_numpy(((y[None] - y[:, None]) % rows) * columns + (x[None] - x[:, None]) % columns)
    used = torch.from_numpy(np.flatnonzero(weight))
    w, shift = torch.from_numpy(weight)[used], shift[used]
    own = scores[used]
    top = own.max(dim=1, keepdim=True).values
    parts = (own - top).exp()
    rest = parts.sum(dim=1, keepdim=True) - parts  # of the softmax's denominator, without gene j
    patches, genes, size = queries.shape
    sums = torch.zeros((rows * columns, genes), dtype=torch.float64)
    step = max(1, _CHUNK // (len(used) * patches))
    for first in range(0, genes, step):
        last = min(first + step, genes)
        keys = queries[:, first:last].reshape(-1, size)
        moved = (queries[used, gene] @ keys.T).view(len(used), patches, last - first).double() / size
        moved = (moved - top[:, :, None]).exp()
        attention = moved / (rest[:, None, first:last] + moved) * w[:, None, None]
        sums[:, first:last].index_add_(0, shift.flatten(), attention.flatten(0, 1))
    weights = torch.zeros(rows * columns, dtype=torch.float64)
    weights.index_add_(0, shift.flatten(), w[:, None].expand(-1, patches).flatten())
    return sums.numpy(), weights.numpy()


@dataclass(frozen=True)
class Partner:
    """A gene that another attends to.

    attention: T_j; ratio: that over uniform attention (times G); plain: mean of A_gj over all patches that hold
    transcripts; p_genes, q_genes: genes permuted, q after Benjamini and Hochberg; p_shift, q_shift: spatial shift;
    expression: transcripts a patch; product: mean of x_g x_j; correlation: Pearson of x_g and x_j over patches, None
    where one does not vary.
    """

    gene: str
    attention: float
    ratio: float
    plain: float
    p_genes: float
    q_genes: float
    p_shift: float
    q_shift: float
    expression: float
    product: float
    correlation: float | None


def partner_table(settings: PartnerSettings, panel: Sequence[str], sums: Mapping[str, NDArray[Any]]) -> list[Partner]:
    """Partners by falling attention, from the added-up arrays of `PartnerSums`.

    Raises `InputError` where the gene has no transcript in the region.
    """
    gene = list(panel).index(settings.gene)
    others = [number for number in range(len(panel)) if number != gene]
    weight, patches = sums["block_weight"].sum(), sums["sum:patches"][0]
    if not weight:
        raise InputError(f"{settings.gene} has no transcript in the region, so it has no partners there")
    observed = (sums["block_row"].sum(0) / weight)[others]
    p_genes = pooled_p(observed, sums["sum:labels"] / weight)
    with np.errstate(invalid="ignore", divide="ignore"):
        p_shift = own_p(observed, sums["sum:shifts"][:, others] / sums["sum:shift_weights"][:, None])
        mean, product = sums["sum:x"] / patches, sums["sum:xg_x"] / patches
        spread = np.sqrt(np.maximum(sums["sum:xx"] / patches - mean**2, 0))
        correlation = (product - mean[gene] * mean) / (spread[gene] * spread)
    q_genes, q_shift = benjamini_hochberg(p_genes), benjamini_hochberg(p_shift)
    table = [
        Partner(
            gene=panel[number],
            attention=float(observed[k]),
            ratio=float(observed[k] * len(panel)),
            plain=float(sums["sum:row"][number] / patches),
            p_genes=float(p_genes[k]),
            q_genes=float(q_genes[k]),
            p_shift=float(p_shift[k]),
            q_shift=float(q_shift[k]),
            expression=float(mean[number]),
            product=float(product[number]),
            correlation=float(correlation[number]) if np.isfinite(correlation[number]) else None,
        )
        for k, number in enumerate(others)
    ]
    return sorted(table, key=lambda partner: (-partner.attention, partner.gene))
