"""What the training of every method shares: keyed random numbers, optimiser, learning rate, checkpoints, names."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import lightning
import numpy as np
import torch
from jaxtyping import Float, Integer
from lightning.pytorch.callbacks import Timer
from torch import Tensor, nn

from tera_mind.diffusion.keyed import keyed_noise, keyed_timesteps
from tera_mind.diffusion.loss import Crops, Loss
from tera_mind.diffusion.schedule import alpha_bars
from tera_mind.errors import InputError
from tera_mind.model.checkpoint import CheckpointInfo, load_checkpoint
from tera_mind.model.config import BlockConfig, Prediction
from tera_mind.model.inputs import Inputs

Batch = Mapping[str, Tensor]
Decay = Literal["constant", "cosine"]
#: what random numbers are for, the second number of their key
TRAINING, VALIDATION, DROPOUT = 0, 1, 2
#: validation samples in a row whose timesteps are stratified
VALIDATION_GROUP = 64


class MethodModule(lightning.LightningModule, ABC):
    """Trains the network of a method on batches of `PairsDataModule`.

    Noise and timestep of a sample are functions of (seed, number of the sample), dropout of (seed, step, process): a
    resumed run, another number of workers or (without dropout) of processes trains on the same numbers.

    Args:
        inputs: what the data say of the network's inputs, linked from the data.
        model: sizes of the network.
        network: the network.
        prediction: what its output means.
        learning_rate: peak learning rate of AdamW (published: Adam 2e-5).
        weight_decay: decoupled weight decay; 0 makes AdamW the published Adam.
        warmup_steps: optimiser steps of linear warm-up.
        decay: `constant` (published) or `cosine`: to a hundredth over the last `decay_share` of the budget.
        decay_share: share of the budget (steps or `max_time`, whichever ends first) over which the rate falls.
        init_from: checkpoint whose weights training starts from; its panel must be this one.
        seed: seed of noise, timesteps and dropout.
        compile: compile the network with `torch.compile`; checkpoints stay the same.
    """

    #: name of the method in records of runs, and of `--method`
    METHOD: ClassVar[str]

    def __init__(
        self,
        inputs: Inputs,
        model: BlockConfig,
        network: nn.Module,
        prediction: Prediction,
        learning_rate: float = 2e-5,
        weight_decay: float = 0.0,
        warmup_steps: int = 0,
        decay: Decay = "constant",
        decay_share: float = 0.5,
        init_from: str | None = None,
        seed: int = 0,
        compile: bool = False,  # noqa: A002 (the key's name in YAML)
    ) -> None:
        super().__init__()
        self.save_hyperparameters(
            {
                "learning_rate": learning_rate,
                "weight_decay": weight_decay,
                "warmup_steps": warmup_steps,
                "decay": decay,
                "decay_share": decay_share,
                "init_from": init_from,
                "seed": seed,
                "compile": compile,
                "prediction": prediction,
                **model.to_dict(),
            }
        )
        if not 0 < decay_share <= 1:
            raise InputError(f"decay_share must be in (0, 1], got {decay_share}")
        self.network = network
        self.info = CheckpointInfo(
            method=self.METHOD,
            model=model,
            prediction=prediction,
            genes=inputs.genes,
            stains=inputs.stains,
            pixel_um=inputs.pixel_um,
            intensity_range=dict(inputs.intensity_range),
        )
        if init_from is not None:
            start = load_checkpoint(init_from)
            start.info.require_same_inputs(self.info)
            network.load_state_dict(start.network.state_dict())
        self.register_buffer("alpha_bar", torch.from_numpy(alpha_bars()).float(), persistent=False)

    @abstractmethod
    def objective(self, network: nn.Module, crops: Crops) -> Loss:
        """Loss of a network of this method, on the device of the crops."""

    def setup(self, stage: str) -> None:
        del stage
        if self.hparams["compile"]:
            self.network.compile()  # in place: names of weights, and so checkpoints, stay as they are

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """All but `number`, which stays on the CPU: to read keys off a GPU is to wait for it every step."""
        moved = super().transfer_batch_to_device({**batch, "number": None}, device, dataloader_idx)
        return {**moved, "number": batch["number"]}

    def training_timesteps(self, numbers: Integer[Tensor, " b"]) -> Integer[Tensor, " b"]:
        """Timesteps of training samples, stratified over what one optimiser step sees on all processes together."""
        group = len(numbers) * self.trainer.world_size * self.trainer.accumulate_grad_batches
        return keyed_timesteps((self.hparams["seed"], TRAINING), numbers, group)

    def loss(self, batch: Batch, t: Integer[Tensor, " b"], purpose: int = TRAINING) -> Loss:
        """Loss of a batch at given timesteps, with the noise of its samples' numbers."""
        image: Float[Tensor, "b stain section y x"] = batch["image"]
        noise = keyed_noise((self.hparams["seed"], purpose), batch["number"], image.shape[1:], image.device)
        assert isinstance(self.alpha_bar, Tensor)
        t = t.to(image.device, non_blocking=True)
        crops = Crops(image, batch["genes"], batch["inside"], t, noise, self.alpha_bar)
        return self.objective(self.network, crops)

    def seed_dropout(self, batch_idx: int) -> None:
        """Key what torch draws in a step by batches seen, not by call order, so that a resumed run draws the same."""
        accumulated = self.trainer.accumulate_grad_batches
        index = self.global_step * accumulated + batch_idx % accumulated
        key = np.random.SeedSequence([self.hparams["seed"], DROPOUT, index, self.global_rank]).generate_state(1)
        torch.manual_seed(int(key[0]))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        self.seed_dropout(batch_idx)
        loss = self.loss(batch, self.training_timesteps(batch["number"]))
        size = batch["image"].shape[0]
        self.log("train/loss", loss.total, prog_bar=True, batch_size=size)
        for name, part in loss.parts.items():
            self.log(f"train/loss_{name}", part, batch_size=size)
        self.log("train/learning_rate", self.trainer.optimizers[0].param_groups[0]["lr"], batch_size=size)
        return loss.total

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        del batch_idx
        t = keyed_timesteps((self.hparams["seed"], VALIDATION), batch["number"], VALIDATION_GROUP)
        loss = self.loss(batch, t, VALIDATION)
        size = batch["image"].shape[0]
        self.log("val/loss", loss.total, prog_bar=True, batch_size=size, sync_dist=True)
        for name, part in loss.parts.items():
            self.log(f"val/loss_{name}", part, batch_size=size, sync_dist=True)

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.network.parameters(), lr=self.hparams["learning_rate"], **self._adam())

    def _adam(self) -> dict[str, Any]:
        betas = (0.9, 0.99) if self.hparams["decay"] == "cosine" else (0.9, 0.999)
        return {"betas": betas, "weight_decay": self.hparams["weight_decay"]}

    def on_train_start(self) -> None:
        """A checkpoint brings the settings of its optimiser; those of this run count."""
        for optimizer in self.trainer.optimizers:
            for group in optimizer.param_groups:
                group.update(self._adam())

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        del batch, batch_idx
        used = self.budget_used()
        timed = any(isinstance(callback, Timer) for callback in self.trainer.callbacks)  # type: ignore[attr-defined]
        if (
            timed and self.trainer.world_size > 1
        ):  # clocks differ; another rate on each rank would let their weights drift apart
            used = self.trainer.strategy.broadcast(used)
        rate = self.hparams["learning_rate"] * self.rate_factor(self.global_step, used)
        for optimizer in self.trainer.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate

    def rate_factor(self, step: int, used: float) -> float:
        """Learning rate over its peak at an optimiser step, when a share `used` of the budget is gone."""
        factor: float = min(1.0, (step + 1) / max(1, self.hparams["warmup_steps"]))
        if self.hparams["decay"] == "cosine":
            share: float = self.hparams["decay_share"]
            late = min(1.0, max(0.0, (used - (1 - share)) / share))
            factor *= 0.01 + 0.99 * (1 + math.cos(math.pi * late)) / 2
        return factor

    def budget_used(self) -> float:
        """Share of the training budget gone: of `max_steps` or of `max_time`, whichever is further."""
        used = 0.0
        if self.trainer.max_steps > 0:
            used = self.global_step / self.trainer.max_steps
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, Timer) and (left := callback.time_remaining()) is not None:
                elapsed = callback.time_elapsed()
                used = max(used, elapsed / max(1e-9, elapsed + left))
        return min(1.0, used)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["tera_mind"] = self.info.to_dict()
