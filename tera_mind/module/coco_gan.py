"""The LightningModule of COCO-GAN: wiring of settings and networks, Wasserstein losses, coordinates."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tera_mind.baselines.coco_gan import (
    COCO_GAN,
    GRID,
    CocoGan,
    CocoGanConfig,
    CocoGanDiscriminator,
    Judgement,
    gradient_penalty,
    pooled,
)
from tera_mind.diffusion.keyed import keyed_noise
from tera_mind.diffusion.loss import Loss
from tera_mind.model.inputs import Inputs
from tera_mind.module.adversarial import FREE, AdversarialModule
from tera_mind.module.base import Batch

#: what random numbers are for: the place between a real and a generated image
_BETWEEN = FREE


class CocoGanModule(AdversarialModule):
    """Trains COCO-GAN on batches of `PairsDataModule`: a crop is a macro patch, half of its side a micro patch.

    Both networks step once a batch, with Adam (0, 0.999) and rates of their own. The discriminator lowers
    D(G(z)) - D(x) + 10 (|dD| - 1)^2 and the head's squared error on real and generated images, the generator
    -D(G(z)) and the same error on its own (equations 2 to 5 of the paper).

    Args:
        latent_channels: width of the latent z.
        channels: widths of the generator, from 2 px features to a sample a pixel.
        discriminator_channels: widths of the discriminator, from a sample a pixel on.
        spade_channels: width of the gene map that modulates, and of each modulation's hidden layer.
        head_channels: hidden width of the coordinate head.
        learning_rate: rate of the generator.
        discriminator_rate: rate of the discriminator.
        penalty_weight: weight of the gradient penalty.
        coordinate_weight: weight of the coordinate head's squared error.
    """

    METHOD = COCO_GAN

    def __init__(
        self,
        inputs: Inputs,
        latent_channels: int = 128,
        channels: list[int] = [1024, 512, 256, 128, 64],  # noqa: B006 (never changed; prints well in YAML)
        discriminator_channels: list[int] = [64, 128, 256, 512, 512],  # noqa: B006
        spade_channels: int = 128,
        head_channels: int = 128,
        learning_rate: float = 1e-4,
        discriminator_rate: float = 4e-4,
        penalty_weight: float = 10.0,
        coordinate_weight: float = 100.0,
        **training: Any,
    ) -> None:
        config = CocoGanConfig(
            **replace(inputs, patch_px=GRID * inputs.patch_px).sizes,
            latent_channels=latent_channels,
            channels=tuple(channels),
            discriminator_channels=tuple(discriminator_channels),
            spade_channels=spade_channels,
            head_channels=head_channels,
        )
        super().__init__(inputs, config, CocoGan(config), CocoGanDiscriminator(config), learning_rate, **training)
        self.penalty_weight, self.coordinate_weight = penalty_weight, coordinate_weight
        own = {
            "discriminator_rate": discriminator_rate,
            "penalty_weight": penalty_weight,
            "coordinate_weight": coordinate_weight,
        }
        self.save_hyperparameters(own)

    def adams(self) -> tuple[dict[str, Any], dict[str, Any]]:
        both = {"betas": (0.0, 0.999), "eps": 1e-8}
        return both | {"lr": self.hparams["learning_rate"]}, both | {"lr": self.hparams["discriminator_rate"]}

    def judge(self, real: Judgement, fake: Judgement, own: Tensor) -> Loss:
        away = {"coordinate_real": self._away(real, own), "coordinate_fake": self._away(fake, own)}
        distance = self.scores(fake).mean() - self.scores(real).mean()
        return Loss(distance + self.coordinate_weight * (away["coordinate_real"] + away["coordinate_fake"]), away)

    def learn(self, fake: Judgement, own: Tensor) -> Loss:
        return Loss(self.coordinate_weight * self._away(fake, own) - self.scores(fake).mean())

    def scores(self, judged: Judgement) -> Float[Tensor, " n"]:
        return judged.score.float()

    def accuracies(self, real: Float[Tensor, " n"], fake: Float[Tensor, " n"]) -> dict[str, Tensor]:
        """Scores have no zero: share of real images above the mean generated one, and of generated below the real."""
        return {
            "accuracy_real": (real > fake.mean()).float().mean(),
            "accuracy_fake": (fake < real.mean()).float().mean(),
        }

    def penalties(
        self, real: Float[Tensor, "n channel y x"], fake: Float[Tensor, "n channel y x"], own: Tensor, batch: Batch
    ) -> dict[str, Tensor]:
        """The gradient penalty, in float32, at uniform places on the lines between real and generated images."""
        key = (self.hparams["seed"], _BETWEEN)
        share = torch.special.ndtr(keyed_noise(key, batch["number"], (1, 1, 1), real.device))
        with torch.autocast(real.device.type, enabled=False):
            between = torch.lerp(fake.float(), real.float(), share).requires_grad_()
            penalty = gradient_penalty(self.scores(self.discriminator(between, own)), between)
        return {"gradient_penalty": self.penalty_weight * penalty}

    @staticmethod
    def _away(judged: Judgement, own: Tensor) -> Float[Tensor, ""]:
        """Mean squared error of the coordinate that the head tells."""
        return (judged.coordinate.float() - pooled(own).float()).square().mean()
