"""The LightningModule: wiring of network, loss, optimiser and what a checkpoint must hold."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import lightning
import numpy as np
import torch
from jaxtyping import Bool, Float, Integer
from lightning.pytorch.callbacks import Timer
from torch import Tensor

from tera_mind.diffusion.keyed import keyed_noise, keyed_timesteps
from tera_mind.diffusion.loss import DualLoss, dual_path_loss
from tera_mind.diffusion.schedule import alpha_bars
from tera_mind.errors import InputError
from tera_mind.model.checkpoint import CheckpointInfo, load_checkpoint
from tera_mind.model.config import CountTransform, ModelConfig, Prediction
from tera_mind.model.unet import GeneMorphUNet

Batch = Mapping[str, Tensor]
Decay = Literal["constant", "cosine"]
#: what random numbers are for, the second number of their key
TRAINING, VALIDATION, DROPOUT = 0, 1, 2
#: validation samples in a row whose timesteps are stratified
VALIDATION_GROUP = 64


class GeneMorphModule(lightning.LightningModule):
    """Trains a `GeneMorphUNet` on batches of `PairsDataModule`.

    Noise and timestep of a sample are functions of (seed, number of the sample), dropout of (seed, step, process): a
    resumed run, another number of workers or (without dropout) of processes trains on the same numbers.

    Args:
        genes: panel, linked from the data.
        stains: stains, linked from the data.
        pixel_um: pixel size in micrometres, linked from the data.
        intensity_range: raw value of 0 and 255 for each stain, linked from the data.
        gene_sections: gene sections in a window, linked from the data.
        patch_px: side of a small patch; a crop is two of them.
        bin_px: side of a gene bin.
        base_channels: channels at the finest level.
        channel_mult: multiplier a level, finest first.
        res_blocks: residual blocks a level.
        time_channels: width of the time embedding.
        pyramid_channels: widths of the gene pyramid, from the second coarsest level to the finest.
        attention_px: resolution at which encoder and decoder attend.
        dropout: dropout inside residual blocks.
        count_transform: `counts` (published) or `log1p`.
        gene_rank: width of a low-rank first pyramid convolution; null is the dense, published one.
        gene_residual: residual around the gene-gene block (published: none).
        margin_px: rim the boundary path decodes and crops away (published: 0).
        prediction: `epsilon` (published), `v` or `x0`.
        patch_weight: weight of the patch path's loss (published: 1); 0 leaves the patch path out.
        learning_rate: peak learning rate of AdamW (published: Adam 2e-5).
        weight_decay: decoupled weight decay; 0 makes AdamW the published Adam.
        warmup_steps: optimiser steps of linear warm-up.
        decay: `constant` (published) or `cosine`: to a hundredth over the last `decay_share` of the budget.
        decay_share: share of the budget (steps or `max_time`, whichever ends first) over which the rate falls.
        init_from: checkpoint whose weights training starts from; its panel must be this one.
        seed: seed of noise, timesteps and dropout.
        compile: compile the network with `torch.compile`; checkpoints stay the same.
        activation_checkpointing: keep only the input of each UNet block and compute the rest again on the way back:
            less memory for a third to a half more time, the same gradients.
    """

    #: name of the method in records of runs
    METHOD = "tera-mind"

    def __init__(
        self,
        genes: list[str],
        stains: list[str],
        pixel_um: float,
        intensity_range: dict[str, list[float]],
        gene_sections: int = 4,
        patch_px: int = 64,
        bin_px: int = 16,
        base_channels: int = 64,
        channel_mult: list[int] = [1, 2, 4, 8],  # noqa: B006 (never changed; a plain list prints well in YAML)
        res_blocks: int = 2,
        time_channels: int = 512,
        pyramid_channels: list[int] = [128, 64, 32],  # noqa: B006
        attention_px: int = 16,
        dropout: float = 0.1,
        count_transform: CountTransform = "counts",
        gene_rank: int | None = None,
        gene_residual: bool = False,
        margin_px: int = 0,
        prediction: Prediction = "epsilon",
        patch_weight: float = 1.0,
        learning_rate: float = 2e-5,  # noqa: ARG002 (read from hparams)
        weight_decay: float = 0.0,  # noqa: ARG002 (read from hparams)
        warmup_steps: int = 0,  # noqa: ARG002 (read from hparams)
        decay: Decay = "constant",  # noqa: ARG002 (read from hparams)
        decay_share: float = 0.5,
        init_from: str | None = None,
        seed: int = 0,  # noqa: ARG002 (read from hparams)
        compile: bool = False,  # noqa: A002, ARG002 (the key's name in YAML; read from hparams)
        activation_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        config = ModelConfig(
            genes=len(genes),
            stains=len(stains),
            gene_sections=gene_sections,
            patch_px=patch_px,
            bin_px=bin_px,
            base_channels=base_channels,
            channel_mult=tuple(channel_mult),
            res_blocks=res_blocks,
            time_channels=time_channels,
            pyramid_channels=tuple(pyramid_channels),
            attention_px=attention_px,
            dropout=dropout,
            count_transform=count_transform,
            gene_rank=gene_rank,
            gene_residual=gene_residual,
            margin_px=margin_px,
        )
        self.info = CheckpointInfo(
            model=config,
            prediction=prediction,
            genes=tuple(genes),
            stains=tuple(stains),
            pixel_um=pixel_um,
            intensity_range={stain: (float(low), float(high)) for stain, (low, high) in intensity_range.items()},
        )
        if patch_weight < 0 or not 0 < decay_share <= 1:
            raise InputError(
                f"patch_weight must be at least 0 and decay_share in (0, 1], got {patch_weight} and {decay_share}"
            )
        self.network = GeneMorphUNet(config)
        self.network.recompute = activation_checkpointing
        if init_from is not None:
            start = load_checkpoint(init_from)
            start.info.require_same_inputs(self.info)
            self.network.load_state_dict(start.network.state_dict())
        self.register_buffer("alpha_bar", torch.from_numpy(alpha_bars()).float(), persistent=False)

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

    def loss(self, batch: Batch, t: Integer[Tensor, " b"], purpose: int = TRAINING) -> DualLoss:
        """Loss of a batch at given timesteps, with the noise of its samples' numbers."""
        image: Float[Tensor, "b stain section y x"] = batch["image"]
        inside: Bool[Tensor, "b section y x"] = batch["inside"]
        noise = keyed_noise((self.hparams["seed"], purpose), batch["number"], image.shape[1:], image.device)
        assert isinstance(self.alpha_bar, Tensor)
        return dual_path_loss(
            self.network,
            image,
            batch["genes"],
            inside,
            t.to(image.device, non_blocking=True),
            noise,
            self.alpha_bar,
            self.info.prediction,
            self.hparams["patch_weight"],
        )

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        # keyed by batches seen, not by call order, so that a resumed run drops what the uninterrupted one would
        accumulated = self.trainer.accumulate_grad_batches
        index = self.global_step * accumulated + batch_idx % accumulated
        key = np.random.SeedSequence([self.hparams["seed"], DROPOUT, index, self.global_rank]).generate_state(1)
        torch.manual_seed(int(key[0]))
        loss = self.loss(batch, self.training_timesteps(batch["number"]))
        size = batch["image"].shape[0]
        self.log("train/loss", loss.total, prog_bar=True, batch_size=size)
        self.log("train/loss_boundary", loss.boundary, batch_size=size)
        if self.hparams["patch_weight"] > 0:
            self.log("train/loss_patch", loss.patch, batch_size=size)
        self.log("train/learning_rate", self.trainer.optimizers[0].param_groups[0]["lr"], batch_size=size)
        return loss.total

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        del batch_idx
        t = keyed_timesteps((self.hparams["seed"], VALIDATION), batch["number"], VALIDATION_GROUP)
        loss = self.loss(batch, t, VALIDATION)
        self.log("val/loss", loss.total, prog_bar=True, batch_size=batch["image"].shape[0], sync_dist=True)
        self.log("val/loss_boundary", loss.boundary, batch_size=batch["image"].shape[0], sync_dist=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(
            self.network.parameters(),
            lr=self.hparams["learning_rate"],
            **self._adam(),
        )

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
