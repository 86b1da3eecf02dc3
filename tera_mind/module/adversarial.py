"""The LightningModule of all rivals that are GANs: two optimisers by hand, keyed randomness, health in the log."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Integer
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor, nn

from tera_mind.diffusion.keyed import keyed_noise
from tera_mind.diffusion.loss import Crops, Loss
from tera_mind.errors import InputError
from tera_mind.geometry import Box
from tera_mind.model.blocks import Painter
from tera_mind.model.config import BlockConfig
from tera_mind.model.inputs import Inputs
from tera_mind.module.base import VALIDATION, Batch, MethodModule

#: what random numbers are for; the numbers below 3 are taken by `tera_mind.module.base`
JITTER, JUDGED, LEARNT = 3, 4, 5
#: the first number that modules of single losses may take
FREE = 6


@runtime_checkable
class Generator(Painter, Protocol):
    """What a generator offers its training beside painting; the first plane of its noise is z."""

    @property
    def jittered(self) -> bool:
        """Whether counts get a jitter of U(0, 1) in training, and its mean in validation and generation."""

    def styles(self, z: Tensor) -> Tensor:
        """(n, layer, style) of (n, style)."""

    def synthesise(self, counts: Tensor, w: Tensor, noise: Sequence[Tensor]) -> Tensor:
        """Images (n, channel, y, x) without the halo."""


class AdversarialModule(MethodModule):
    """Trains a generator (`network`) against a discriminator, one optimiser each.

    A step is the generator's: the discriminator's own, and those of regularisers that are separate as published, count
    neither for `max_steps` nor for callbacks. Every number that is drawn is a function of (seed, purpose, number of the
    sample). A training image is the middle of a crop: all of it that has `halo_px` of genes around it.

    Gradients are averaged over processes here, once an optimiser step, since each step touches one of the two networks
    only; so the ordinary `ddp` strategy is enough.

    Args:
        discriminator: judges the images of the generator.
        learning_rate: rate of both Adams.
        init_from: checkpoint whose generator training starts from; its panel must be this one.
        seed: seed of all that is drawn.
    """

    def __init__(
        self,
        inputs: Inputs,
        model: BlockConfig,
        network: nn.Module,
        discriminator: nn.Module,
        learning_rate: float,
        init_from: str | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(inputs, model, network, "x0", learning_rate=learning_rate, init_from=init_from, seed=seed)
        self.automatic_optimization = False
        self.discriminator = discriminator

    @abstractmethod
    def adams(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Settings of Adam, for the generator and for the discriminator."""

    @abstractmethod
    def judge(self, real: Any, fake: Any, own: Tensor) -> Loss:
        """The discriminator's loss, from what it says of real and generated images; `own`: their counts."""

    @abstractmethod
    def learn(self, fake: Any, own: Tensor) -> Loss:
        """The generator's loss, from what the discriminator says of its images."""

    def scores(self, judged: Any) -> Float[Tensor, " n"]:
        """The score of each image in what the discriminator says."""
        scores: Tensor = judged.float()
        return scores

    def accuracies(self, real: Float[Tensor, " n"], fake: Float[Tensor, " n"]) -> dict[str, Tensor]:
        """Share of real and of generated images that the discriminator takes for what they are."""
        return {"accuracy_real": (real > 0).float().mean(), "accuracy_fake": (fake < 0).float().mean()}

    def penalties(
        self, real: Float[Tensor, "n channel y x"], fake: Float[Tensor, "n channel y x"], own: Tensor, batch: Batch
    ) -> dict[str, Tensor]:
        """What is added to the discriminator's loss in training alone, weighted, by the names in the log."""
        del real, fake, own, batch
        return {}

    def terms(self, counts: Tensor, batch: Batch) -> dict[str, Tensor]:
        """What is added to the generator's loss in training alone, weighted, by the names in the log."""
        del counts, batch
        return {}

    def regularise_discriminator(self, optimizer: LightningOptimizer, real: Tensor, own: Tensor) -> dict[str, Tensor]:
        """Additional steps of the discriminator after its own, with `update`; what to log of them."""
        del optimizer, real, own
        return {}

    def regularise_generator(self, optimizer: LightningOptimizer, counts: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Additional steps of the generator before its own, with `update`; what to log of them."""
        del optimizer, counts, batch
        return {}

    @property
    def generator(self) -> Generator:
        assert isinstance(self.network, Generator)
        return self.network

    def objective(self, network: nn.Module, crops: Crops) -> Loss:
        """Both adversarial losses at z and noise of zero: the work of a step, its regularisers left out."""
        assert isinstance(network, Generator)
        counts, device = crops.counts, crops.image.device
        discriminator = copy.deepcopy(self.discriminator).to(device)
        real, own = self._middle(crops.image.flatten(1, 2), network.halo_px), self._middle(counts, self._rim)
        z, *planes = (
            torch.zeros(len(counts), plane.box.height, plane.box.width, device=device)
            for plane in network.noise_planes(Box(0, counts.shape[-2], 0, counts.shape[-1]))
        )
        fake = network.synthesise(counts, network.styles(z[:, 0]), planes)
        learnt = self.learn(discriminator(fake, own), own)
        judged = self.judge(discriminator(real, own), discriminator(fake.detach(), own), own)
        return Loss(learnt.total + judged.total, {"generator": learnt.total, "discriminator": judged.total})

    def configure_callbacks(self) -> list[Any]:
        """None of its own; the first hook of a run refuses what optimisers that step by hand do not take."""
        trainer = self.trainer
        if trainer.gradient_clip_val or trainer.accumulate_grad_batches != 1:
            raise InputError(
                f"{self.METHOD} steps its two optimisers by hand: trainer.gradient_clip_val must be null and "
                f"trainer.accumulate_grad_batches 1, got {trainer.gradient_clip_val} and "
                f"{trainer.accumulate_grad_batches}; take a lower model.learning_rate or a larger data.batch_size"
            )
        return []

    def configure_optimizers(self) -> Any:
        """Adam of the generator, then of the discriminator."""
        networks = self.network, self.discriminator
        return [
            torch.optim.Adam(network.parameters(), **adam) for network, adam in zip(networks, self.adams(), strict=True)
        ]

    def on_train_start(self) -> None:
        """A checkpoint brings the settings of its optimisers; those of this run count."""
        for optimizer, adam in zip(self.trainer.optimizers, self.adams(), strict=True):
            for group in optimizer.param_groups:
                group.update(adam)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """The rate stays."""

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:  # type: ignore[override]
        del batch_idx
        numbers = batch["number"]
        real, counts, own = self._pairs(batch, self._jitter(batch))
        optimizers: Any = self.optimizers()
        generator, discriminator = optimizers
        figures: dict[str, Tensor] = {}

        with discriminator.toggle_model(sync_grad=False):
            with torch.no_grad():
                fake = self.images(counts, numbers, JUDGED)
            said = self.discriminator(real, own), self.discriminator(fake, own)
            judged = self.judge(*said, own)
            penalties = self.penalties(real, fake, own, batch)
            loss = _sum([judged.total, *penalties.values()])
            figures["gradient_norm_discriminator"] = self.update(discriminator, loss, self.discriminator)
            figures |= penalties | self.regularise_discriminator(discriminator, real, own)

        with generator.toggle_model(sync_grad=False):
            figures |= self.regularise_generator(generator, counts, batch)
            learnt = self.learn(self.discriminator(self.images(counts, numbers, LEARNT), own), own)
            terms = self.terms(counts, batch)
            loss = _sum([learnt.total, *terms.values()])
            figures["gradient_norm_generator"] = self.update(generator, loss, self.network, is_step=True)

        # all at the end: Lightning forgets what was logged in the first step of an epoch before a callback logs in it
        self._log("train", figures | terms | self._figures(learnt, judged, *said), len(real))
        return {"loss": learnt.total.detach()}

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        del batch_idx
        mean = 0.5 if self.generator.jittered else 0.0
        real, counts, own = self._pairs(batch, torch.full_like(batch["genes"], mean))
        fake = self.discriminator(self.images(counts, batch["number"], VALIDATION), own)
        true = self.discriminator(real, own)
        self._log("val", self._figures(self.learn(fake, own), self.judge(true, fake, own), true, fake), len(real))

    def images(
        self, counts: Float[Tensor, "n gene section bin_y bin_x"], numbers: Integer[Tensor, " n"], purpose: int
    ) -> Float[Tensor, "n channel y x"]:
        """Generated images of windows of counts, with the z and noise of (purpose, number of the sample)."""
        z, noise = self.noise(counts, numbers, purpose)
        made: Tensor = self.generator.synthesise(counts, self.generator.styles(z), noise)
        return made

    def noise(
        self, counts: Float[Tensor, "n gene section bin_y bin_x"], numbers: Integer[Tensor, " n"], purpose: int
    ) -> tuple[Float[Tensor, "n style"], list[Tensor]]:
        """Z and planes of noise for windows of counts, functions of (purpose, number of the sample)."""
        boxes = [plane.box for plane in self.generator.noise_planes(Box(0, counts.shape[-2], 0, counts.shape[-1]))]
        sizes = [box.height * box.width for box in boxes]
        drawn = keyed_noise((self.hparams["seed"], purpose), numbers, (sum(sizes),), counts.device)
        z, *planes = (
            part.view(len(part), box.height, box.width) for part, box in zip(drawn.split(sizes, 1), boxes, strict=True)
        )
        return z[:, 0], planes

    def _jitter(self, batch: Batch) -> Float[Tensor, "n gene section bin_y bin_x"]:
        """U(0, 1), which makes counts continuous (Wu 2024), or zero."""
        genes = batch["genes"]
        if not self.generator.jittered:
            return torch.zeros_like(genes)
        drawn = keyed_noise((self.hparams["seed"], JITTER), batch["number"], genes.shape[1:], genes.device)
        uniform: Tensor = torch.special.ndtr(drawn)
        return uniform

    def _pairs(
        self, batch: Batch, jitter: Float[Tensor, "n gene section bin_y bin_x"]
    ) -> tuple[Float[Tensor, "n channel y x"], Tensor, Tensor]:
        """Real images, counts of their windows, and counts of their own bins, both with jitter."""
        counts = batch["genes"] + jitter
        real = self._middle(batch["image"].flatten(1, 2), self.generator.halo_px)
        return real, counts, self._middle(counts, self._rim)

    @property
    def _rim(self) -> int:
        """The halo in bins."""
        return self.generator.halo_px // self.generator.bin_px

    @staticmethod
    def _middle(x: Float[Tensor, ...], rim: int) -> Float[Tensor, ...]:
        return x[..., rim : x.shape[-2] - rim, rim : x.shape[-1] - rim]

    def update(
        self,
        optimizer: LightningOptimizer,
        loss: Float[Tensor, ""],
        network: nn.Module,
        *,
        is_step: bool = False,
    ) -> Float[Tensor, ""]:
        """One step of an optimiser, which `global_step` counts where `is_step` says so; the norm of the gradients."""
        optimizer.zero_grad()
        self.manual_backward(loss)
        gradients = [weight.grad for weight in network.parameters() if weight.grad is not None]
        if self.trainer.world_size > 1:
            flat = self.everywhere(torch.cat([gradient.flatten() for gradient in gradients]))
            for gradient, mean in zip(gradients, flat.split([one.numel() for one in gradients]), strict=True):
                gradient.copy_(mean.view_as(gradient))
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)  # 16-mixed: these are its multiples
        norm: Tensor = torch.nn.utils.get_total_norm(gradients) / (scaler.get_scale() if scaler else 1.0)
        counting = optimizer._on_before_step, optimizer._on_after_step  # noqa: SLF001 (Lightning counts all steps of all
        if not is_step:  # optimisers, and has no other way to leave some out)
            optimizer._on_before_step = optimizer._on_after_step = lambda: None  # noqa: SLF001
        optimizer.step()
        optimizer._on_before_step, optimizer._on_after_step = counting  # noqa: SLF001
        return norm

    def everywhere(self, value: Float[Tensor, ...]) -> Float[Tensor, ...]:
        """Mean over processes."""
        if self.trainer.world_size == 1:
            return value
        mean = value.detach().clone()
        torch.distributed.all_reduce(mean)
        return mean / self.trainer.world_size

    def _figures(self, learnt: Loss, judged: Loss, real: Any, fake: Any) -> dict[str, Tensor]:
        """What is logged of both splits."""
        totals = {"loss_generator": learnt.total, "loss_discriminator": judged.total}
        return totals | learnt.parts | judged.parts | self.accuracies(self.scores(real), self.scores(fake))

    def _log(self, split: str, figures: Mapping[str, Tensor], size: int) -> None:
        """`loss` is the generator's."""
        every: dict[str, Any] = {"batch_size": size, "sync_dist": split == "val"}
        self.log(f"{split}/loss", figures["loss_generator"].detach(), prog_bar=True, **every)
        self.log_dict({f"{split}/{name}": value.detach() for name, value in figures.items()}, **every)


def _sum(parts: Iterable[Float[Tensor, ""]]) -> Float[Tensor, ""]:
    return torch.stack(list(parts)).sum()
