"""Losses of StyleGAN2 as pure functions: non-saturating, R1, path length."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

#: share of the way that the mean path length goes with every update (Karras 2020, appendix B)
PATH_DECAY = 0.01


def discriminator_loss(real: Float[Tensor, " n"], fake: Float[Tensor, " n"]) -> Float[Tensor, ""]:
    """-log D(x) - log(1 - D(G(z))) of logits (Goodfellow et al. 2014, arXiv:1406.2661, equation 1)."""
    return F.softplus(-real).mean() + F.softplus(fake).mean()


def generator_loss(fake: Float[Tensor, " n"]) -> Float[Tensor, ""]:
    """-log D(G(z)), the non-saturating form (ibidem, section 3)."""
    return F.softplus(-fake).mean()


def r1_penalty(logits: Float[Tensor, " n"], images: Float[Tensor, "n ..."]) -> Float[Tensor, ""]:
    """Mean squared norm of the gradient of D at real images (Mescheder et al. 2018, arXiv:1801.04406, equation 9).

    `images` need gradients and lead to `logits`. To be weighted with gamma / 2.
    """
    (gradient,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
    return gradient.square().flatten(1).sum(1).mean()


def path_lengths(
    images: Float[Tensor, "n c y x"], w: Float[Tensor, "n layer style"], noise: Float[Tensor, "n c y x"]
) -> Float[Tensor, " n"]:
    """|J_w^T y| for a random image y, averaged over layers as a root mean square (Karras 2020, equation 4).

    `w` needs gradients and leads to `images`; `noise` is standard normal.
    """
    y = noise / (images.shape[-2] * images.shape[-1]) ** 0.5
    (gradient,) = torch.autograd.grad((images * y).sum(), w, create_graph=True)
    return gradient.square().sum(2).mean(1).sqrt()


def moved_mean(mean: Float[Tensor, ""], lengths: Float[Tensor, " n"]) -> Float[Tensor, ""]:
    """The moving mean a of the path lengths after a batch."""
    return mean.lerp(lengths.detach().mean(), PATH_DECAY)
