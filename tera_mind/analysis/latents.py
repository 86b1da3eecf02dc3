"""Populations in the network's own features: latent eigenvalue scores, Frechet's sums, and how strange genes are.

Features of a patch are pooled over its sections and places: of the gene pyramid every level's channels, which need no
image and no noise; of the bottleneck, what the encoder makes of a noise-free image (t = 0) with its genes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float, Float64
from numpy.typing import NDArray
from torch import Tensor

from tera_mind.errors import InputError
from tera_mind.model.genes import GenePyramid
from tera_mind.model.unet import GeneMorphUNet
from tera_mind.sums import Sums

#: leading eigenvalues that the published score is given for (GILEA)
COMPONENTS = (1, 2, 3, 4, 5, 10)
#: share of the variance that the directions of a spread hold; the rest is too little to measure a distance in
_KEPT_VARIANCE = 0.999
#: patches within this quantile of the reference's distances are usual
USUAL = 0.995


@torch.no_grad()
def pyramid_features(
    pyramid: GenePyramid, counts: Float[Tensor, "b gene section bin_y bin_x"]
) -> Float[np.ndarray, "b feature"]:
    """Gene pyramid of patches, every level averaged over section and place, coarsest first: float32."""
    weight = pyramid.gene_gene.query.weight
    return torch.cat([level.mean((2, 3, 4)) for level in pyramid(counts.to(weight))], dim=1).float().cpu().numpy()


@torch.no_grad()
def bottleneck_features(
    network: GeneMorphUNet,
    images: Float[Tensor, "b channel y x"],
    counts: Float[Tensor, "b gene section bin_y bin_x"],
) -> Float[np.ndarray, "b feature"]:
    """Bottleneck of the encoder for noise-free patches in [-1, 1] (channel = stain * sections + section): float32."""
    weight = network.head.weight
    embedding = network.time(torch.zeros(len(images), dtype=torch.int64, device=weight.device))
    encoding = network.encode(images.to(weight), embedding, counts.to(weight))
    return encoding.bottleneck.mean((2, 3, 4)).float().cpu().numpy()


def eigenvalue_score(
    own: Float64[np.ndarray, " feature"],
    reference: Float64[np.ndarray, " feature"],
    components: Sequence[int] = COMPONENTS,
) -> dict[int, float | None]:
    """GILEA's d = sum over k <= K of ((sqrt own_k - sqrt ref_k) / sqrt ref_k)^2, for each K; 0 is alike.

    None for a K beyond the directions that the reference fills.
    """
    filled = int((reference > 1e-12 * max(float(reference[0]), np.finfo(np.float64).tiny)).sum())
    roots = np.sqrt(own[:filled]), np.sqrt(reference[:filled])
    each = np.square((roots[0] - roots[1]) / roots[1])
    return {k: float(each[:k].sum()) if k <= filled else None for k in components}


@dataclass(frozen=True, eq=False)
class Spread:
    """How widely a brain's own patches lie in feature space: a Mahalanobis distance in its leading directions.

    sums: of the reference's patches; usual: the distance that `USUAL` of them stay within, from a second pass.
    """

    sums: Sums
    usual: float = float("nan")

    def __post_init__(self) -> None:
        if self.sums.n < 2:
            raise InputError(f"a spread of features needs at least 2 patches with transcripts, got {self.sums.n}")

    @cached_property
    def _axes(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        mean = self.sums.mean
        values, vectors = np.linalg.eigh(self.sums.covariance)
        values, vectors = np.maximum(values[::-1], 0.0), vectors[:, ::-1]
        share = values.cumsum() / max(float(values.sum()), np.finfo(np.float64).tiny)
        kept = min(int((share < _KEPT_VARIANCE).sum()) + 1, self.sums.n - 1)
        kept = max(1, min(kept, int((values > 1e-12 * values[0]).sum())))
        return mean, vectors[:, :kept] / np.sqrt(np.maximum(values[:kept], np.finfo(np.float64).tiny))

    def distances(self, rows: Float[np.ndarray, "row feature"]) -> Float64[np.ndarray, " row"]:
        """Root mean square of the standardised coordinates: about 1 for a usual patch, whatever the dimension."""
        mean, axes = self._axes
        return np.asarray(np.sqrt(np.square((rows.astype(np.float64) - mean) @ axes).mean(axis=1)))
