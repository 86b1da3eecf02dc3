"""Batch norm whose scale and shift come from a vector, and from a map at every place."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

#: share of a batch's statistics in their moving averages, as in COCO-GAN
_MOMENTUM = 0.01
_EPS = 1e-5


class ConditionalNorm(nn.Module):
    """Conditional batch norm (Dumoulin et al. 2017, arXiv:1610.07629) plus SPADE (Park et al. 2019, equations 1, 2).

    x -> (x - mean) / sd * (1 + gamma) + beta, mean and variance over samples and places. gamma and beta are the sums of
    linear functions of a condition and of two 3 x 3 convolutions of a map, brought to the features' grid by nearest
    neighbours, with a ReLU between. In evaluation the moving averages of mean and variance are used; statistics that
    are not finite leave them as they were, so that one bad batch does not outlive itself.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, condition: int, map_channels: int) -> None:
        super().__init__()
        self.linear = nn.Linear(condition, 2 * channels)
        self.shared = nn.Conv2d(map_channels, map_channels, 3, padding=1)
        self.place = nn.Conv2d(map_channels, 2 * channels, 3, padding=1)
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(
        self,
        x: Float[Tensor, "n c y x"],
        condition: Float[Tensor, "n condition"],
        genes: Float[Tensor, "n map bin_y bin_x"],
    ) -> Float[Tensor, "n c y x"]:
        if self.training:
            self._follow(x.detach().float())
            h = F.batch_norm(x, None, None, training=True, eps=_EPS)
        else:
            h = F.batch_norm(x, self.running_mean, self.running_var, eps=_EPS)
        genes = F.interpolate(genes, x.shape[-2:])
        modulation = self.linear(condition)[:, :, None, None] + self.place(F.relu(self.shared(genes)))
        gamma, beta = modulation.chunk(2, 1)
        out: Tensor = h * (1 + gamma) + beta
        return out

    @torch.no_grad()
    def _follow(self, x: Float[Tensor, "n c y x"]) -> None:
        mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)
        for average, value in ((self.running_mean, mean), (self.running_var, var)):
            average.copy_(torch.where(value.isfinite(), average.lerp(value.to(average), _MOMENTUM), average))
