"""A step that is not finite is written down and left out; a run of them ends the training."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from tera_mind.errors import TeraMindError
from tera_mind.formats.atomic import atomic_file


class NonFiniteGuard(Callback):
    """Leaves out optimiser steps whose gradients are not finite, on all processes alike, and says on which samples.

    Gradients are judged after they were averaged over processes: if one process had a loss that is not finite, all see
    it and nobody waits. With a gradient scaler (16-mixed) infinite gradients are its business, it skips the step and
    lowers its scale; only a loss that is not finite counts here. A step left out changes neither weights nor the
    optimiser's state; it counts as a step. `bad_steps/step=N-rank=R.json` in the run's folder holds the samples of such
    a step: number, brain, section, y, x, t, and the loss of their batch.

    A training step with several optimisers, or several steps of one, is bad if any of them is, and is counted once: a
    good step of a generator says nothing of its discriminator. The samples then come once for each bad one, with the
    number of its optimiser.
    """

    def __init__(self, max_bad_steps: int = 10) -> None:
        """How patient.

        Args:
            max_bad_steps: steps in a row that may be left out; one more ends the run with exit code 2.
        """
        self.max_bad_steps = max_bad_steps
        self._in_a_row = 0
        self._total = 0
        #: number of the training step that is judged, the row before it, and what is bad in it so far
        self._step = -1
        self._before = 0
        self._bad: list[dict[str, Any]] = []
        #: batches since the last optimiser step: number, position, loss
        self._batches: list[tuple[Tensor, Tensor, Tensor]] = []
        self._samples: tuple[Tensor, Tensor] | None = None

    def state_dict(self) -> dict[str, Any]:
        return {"in_a_row": self._in_a_row, "total": self._total}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._in_a_row, self._total = state_dict["in_a_row"], state_dict["total"]

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        del trainer, pl_module, batch_idx
        self._samples = batch["number"], batch["position"]

    def on_before_backward(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, loss: Tensor
    ) -> None:
        del pl_module
        assert self._samples is not None
        self._batches.append((*self._samples, loss.detach() * trainer.accumulate_grad_batches))

    def on_before_optimizer_step(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        batches, self._batches = self._batches, []
        if getattr(trainer.precision_plugin, "scaler", None) is not None:
            finite = all(math.isfinite(float(loss)) for *_, loss in batches)
            bad = trainer.strategy.reduce_boolean_decision(not finite, all=False)
        else:
            gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
            bad = not math.isfinite(float(torch.nn.utils.get_total_norm(gradients)))
        if trainer.global_step != self._step:
            self._step, self._before, self._bad = trainer.global_step, self._in_a_row, []
        self._total += bad and not self._bad
        if bad:
            number = next(i for i, one in enumerate(trainer.optimizers) if one is optimizer)
            self._bad.append({"optimizer": number, "samples": self._samples_of(trainer, pl_module, batches)})
        self._in_a_row = self._before + 1 if self._bad else 0
        pl_module.log("train/bad_steps", float(self._total))
        if not bad:
            return
        optimizer.zero_grad(set_to_none=True)  # without gradients the optimiser leaves weights and state as they are
        file = (
            Path(trainer.default_root_dir) / "bad_steps" / f"step={trainer.global_step}-rank={trainer.global_rank}.json"
        )
        self._write(file, trainer)
        if self._in_a_row > self.max_bad_steps:
            raise TeraMindError(
                f"loss or gradients were not finite in {self._in_a_row} steps in a row, up to step "
                f"{trainer.global_step}; the samples of the last are in {file}: look at them, lower "
                "model.learning_rate or set trainer.gradient_clip_val"
            )

    def _write(self, file: Path, trainer: lightning.Trainer) -> None:
        several = len(trainer.optimizers) > 1
        samples = [
            ({"optimizer": bad["optimizer"]} if several else {}) | sample
            for bad in self._bad
            for sample in bad["samples"]
        ]
        with atomic_file(file) as partial:
            record = {"step": trainer.global_step, "rank": trainer.global_rank, "samples": samples}
            partial.write_text(json.dumps(record, indent=1))

    @staticmethod
    def _samples_of(
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        batches: list[tuple[Tensor, Tensor, Tensor]],
    ) -> list[dict[str, Any]]:
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        scale = 1.0 if scaler is None else scaler.get_scale()
        samples: list[dict[str, Any]] = []
        for numbers, positions, loss in batches:
            timesteps = pl_module.training_timesteps(numbers).tolist()  # type: ignore[operator]
            for number, (brain, section, y, x), t in zip(numbers.tolist(), positions.tolist(), timesteps, strict=True):
                place = {"brain": brain, "section": section, "y": y, "x": x}
                samples.append({"number": number, **place, "t": t, "loss": str(float(loss) / scale)})
        return samples
