"""The LightningModule of the rivals made of StyleGAN2: its losses and its lazy regularisers."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float, Integer
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor, nn

from tera_mind.baselines.stylegan2.losses import (
    discriminator_loss,
    generator_loss,
    moved_mean,
    path_lengths,
    r1_penalty,
)
from tera_mind.diffusion.keyed import keyed_noise
from tera_mind.diffusion.loss import Loss
from tera_mind.errors import InputError
from tera_mind.model.config import BlockConfig
from tera_mind.model.inputs import Inputs
from tera_mind.module.adversarial import FREE, AdversarialModule
from tera_mind.module.base import Batch

#: steps between two regularisations of discriminator and generator (Karras 2020, appendix B)
R1_EVERY, PATH_EVERY = 16, 4
#: the path length is measured on one sample in so many of a batch
PATH_SHRINK = 2
#: momenta of Adam
_BETAS = (0.0, 0.99)
#: what random numbers are for
_PATHS, _PATH_IMAGE = FREE, FREE + 1


class GanModule(AdversarialModule):
    """Trains a StyleGAN2 generator against a discriminator that gives logits; losses of Karras et al. 2020.

    Non-saturating loss, R1 every 16 steps and path length every 4, both as steps of their own and in float32 whatever
    the precision.

    Args:
        learning_rate: rate of both Adams.
        r1_gamma: weight of the gradient penalty on real images; 0 leaves it out.
        path_weight: weight of the path length; 0 leaves it out.
    """

    #: moving mean of the path lengths, and the gradient penalty last measured
    path_mean: Tensor
    last_r1: Tensor

    def __init__(
        self,
        inputs: Inputs,
        model: BlockConfig,
        network: nn.Module,
        discriminator: nn.Module,
        learning_rate: float = 2e-3,
        r1_gamma: float = 10.0,
        path_weight: float = 2.0,
        **training: Any,
    ) -> None:
        super().__init__(inputs, model, network, discriminator, learning_rate, **training)
        self.save_hyperparameters({"r1_gamma": r1_gamma, "path_weight": path_weight})
        self.r1_gamma, self.path_weight = r1_gamma, path_weight
        self.register_buffer("path_mean", torch.zeros(()))
        self.register_buffer("last_r1", torch.zeros(()))

    def adams(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Corrected for the additional steps of the regularisers."""
        rate = self.hparams["learning_rate"]
        return (
            _lazy_adam(rate, PATH_EVERY if self.path_weight else 0),
            _lazy_adam(rate, R1_EVERY if self.r1_gamma else 0),
        )

    def judge(self, real: Any, fake: Any, own: Tensor) -> Loss:
        del own
        return Loss(discriminator_loss(self.scores(real), self.scores(fake)))

    def learn(self, fake: Any, own: Tensor) -> Loss:
        del own
        return Loss(generator_loss(self.scores(fake)))

    def regularise_discriminator(self, optimizer: LightningOptimizer, real: Tensor, own: Tensor) -> dict[str, Tensor]:
        if not self.r1_gamma:
            return {}
        if self.global_step % R1_EVERY == 0:
            with torch.autocast(real.device.type, enabled=False):
                images = real.detach().float().requires_grad_()
                penalty = r1_penalty(self.discriminator(images, own), images)
            self.update(optimizer, penalty * (self.r1_gamma / 2 * R1_EVERY), self.discriminator)
            self.last_r1 = torch.where(penalty.isfinite(), penalty.detach(), self.last_r1)
        return {"r1": self.last_r1}

    def regularise_generator(self, optimizer: LightningOptimizer, counts: Tensor, batch: Batch) -> dict[str, Tensor]:
        if not self.path_weight:
            return {}
        if self.global_step % PATH_EVERY == 0:
            penalty = self._path_penalty(counts, batch["number"])
            self.update(optimizer, penalty * (self.path_weight * PATH_EVERY), self.network)
        return {"path_length": self.path_mean}

    def _path_penalty(self, counts: Tensor, numbers: Integer[Tensor, " n"]) -> Float[Tensor, ""]:
        """Mean of (|J_w^T y| - a)^2 on a part of the batch; moves the mean a first, on all processes alike."""
        some = max(1, len(counts) // PATH_SHRINK)
        with torch.autocast(counts.device.type, enabled=False):
            z, noise = self.noise(counts[:some], numbers[:some], _PATHS)
            w = self.generator.styles(z).contiguous()
            images = self.generator.synthesise(counts[:some], w, noise)
            key = (self.hparams["seed"], _PATH_IMAGE)
            lengths = path_lengths(images, w, keyed_noise(key, numbers[:some], images.shape[1:], images.device))
            mean = self.everywhere(moved_mean(self.path_mean, lengths))
            self.path_mean = torch.where(mean.isfinite(), mean, self.path_mean)  # a bad step must not outlive itself
            return (lengths - self.path_mean).square().mean()


def without_halo(inputs: Inputs, method: str, halo_bins: int) -> Inputs:
    """The inputs of a method whose images are crops without a rim of bins; `InputError` where nothing is left."""
    halo_px = halo_bins * inputs.bin_px
    if inputs.patch_px <= halo_px:
        raise InputError(
            f"{method} needs {halo_bins} bins of genes around an image: data.patch_px must be more than {halo_px} "
            f"with bins of {inputs.bin_px} px, got {inputs.patch_px}; take a larger patch_px or smaller bins"
        )
    return replace(inputs, patch_px=inputs.patch_px - halo_px)


def _lazy_adam(rate: float, every: int) -> dict[str, Any]:
    """Adam that takes an additional step in `every` as it would without: rate and momenta to the power c (ibidem)."""
    share = every / (every + 1) if every else 1.0
    return {"lr": rate * share, "betas": tuple(math.pow(beta, share) for beta in _BETAS), "eps": 1e-8}
