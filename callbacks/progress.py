"""A training bar that counts down the whole budget (steps or time), not an epoch."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import ProgressBar
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class BudgetProgress(ProgressBar):
    """Shows the share of `max_steps` or `max_time` that is gone, steps, losses, and the time that is left."""

    def __init__(self) -> None:
        super().__init__()
        self._progress: Progress | None = None
        self._task = TaskID(0)
        self._enabled = True

    def disable(self) -> None:
        self._enabled = False

    def enable(self) -> None:
        self._enabled = True

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        if not self._enabled or not trainer.is_global_zero:
            return
        columns = (
            TextColumn("training"),
            BarColumn(),
            TextColumn("{task.description}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        self._progress = Progress(*columns, console=Console(file=sys.stderr), refresh_per_second=2)
        self._progress.start()
        self._task = self._progress.add_task("", total=1.0)
        self._progress.update(self._task, completed=self._used(pl_module))

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: torch.Tensor | Mapping[str, Any] | None,
        batch: Any,
        batch_idx: int,
    ) -> None:
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if self._progress is None or batch_idx % 10:
            return
        metrics = self.get_metrics(trainer, pl_module)
        shown = "  ".join(f"{name} {value:.4f}" for name, value in metrics.items() if isinstance(value, float))
        words = f"step {trainer.global_step}  {shown}"
        self._progress.update(self._task, completed=self._used(pl_module), description=words)

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        super().on_train_end(trainer, pl_module)
        self._stop(completed=True)

    def on_exception(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, exception: BaseException
    ) -> None:
        super().on_exception(trainer, pl_module, exception)
        self._stop(completed=False)

    def _stop(self, *, completed: bool) -> None:
        if self._progress is not None:
            if completed:
                self._progress.update(self._task, completed=1.0)
            self._progress.stop()
            self._progress = None

    @staticmethod
    def _used(pl_module: lightning.LightningModule) -> float:
        budget = getattr(pl_module, "budget_used", None)
        return float(budget()) if callable(budget) else 0.0
