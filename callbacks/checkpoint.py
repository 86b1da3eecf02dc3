"""The newest state of a run, always under the same name, and the best ones; never a torn file."""

# ruff: noqa: SLF001 (where a step ends, and what follows it, only Lightning's loops know)

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import lightning
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint

from callbacks.log import MetricsLog
from tera_mind.formats.atomic import atomic_file


class AtomicCheckpointIO(TorchCheckpointIO):
    """Checkpoints written beside, made durable, renamed: a process that dies in the middle leaves the old file."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        if storage_options is not None:
            raise TypeError(f"checkpoints are plain files and take no storage options, got {storage_options!r}")
        with atomic_file(Path(path)) as partial:
            torch.save(checkpoint, partial)


class LastCheckpoint(Checkpoint):
    """Keeps `last.ckpt` in the run's folder: every so many optimiser steps, when asked to, and when training stops.

    A checkpoint is written where a resumed run does exactly what the uninterrupted one does: after an optimiser step
    and the validation that belongs to it; not at the end of an epoch but a step later, since Lightning, resumed from an
    end without validation, trains a batch too many. On resume the rows that a `MetricsLog` holds beyond the checkpoint
    are dropped, since they will be written again.
    """

    def __init__(self, dirpath: str | None = None, every_n_train_steps: int = 250) -> None:
        """Where and how often.

        Args:
            dirpath: folder; default `trainer.default_root_dir`.
            every_n_train_steps: optimiser steps between checkpoints.
        """
        self.dirpath, self.every_n_train_steps = dirpath, every_n_train_steps
        self._due = False
        self._saved_step = 0

    def path(self, trainer: lightning.Trainer) -> Path:
        """The file, whether it is there or not."""
        return Path(self.dirpath or trainer.default_root_dir) / "last.ckpt"

    def request(self) -> None:
        """Ask for a checkpoint as soon as one can be written; to be asked on all processes alike."""
        self._due = True

    def setup(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        del pl_module, stage
        trainer.strategy.checkpoint_io = AtomicCheckpointIO()

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        del pl_module
        self._saved_step = trainer.global_step
        for logger in trainer.loggers:
            if isinstance(logger, MetricsLog):
                logger.rewind(trainer.global_step)

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        del pl_module, outputs, batch, batch_idx
        loop = trainer.fit_loop.epoch_loop
        if loop._should_accumulate() or trainer.global_step == self._saved_step:
            return
        over = trainer.should_stop or trainer.global_step == trainer.max_steps
        self._due |= over or trainer.global_step % self.every_n_train_steps == 0
        assert trainer.fit_loop._data_fetcher is not None
        if not loop._should_check_val_fx(trainer.fit_loop._data_fetcher):
            self._save_if_due(trainer)

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        del pl_module
        if not trainer.sanity_checking:
            self._save_if_due(trainer)

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Where training is over with the epoch, and where an epoch is one step."""
        del pl_module
        epochs = trainer.fit_loop.epoch_progress.current.processed  # type: ignore[attr-defined]
        over = trainer.should_stop or trainer.global_step == trainer.max_steps or epochs == trainer.max_epochs
        single = trainer.num_training_batches <= trainer.accumulate_grad_batches
        if trainer.global_step != self._saved_step and (over or (single and self._due)):
            self._save(trainer)

    def _save_if_due(self, trainer: lightning.Trainer) -> None:
        if self._due and not trainer.fit_loop.epoch_loop._num_ready_batches_reached():
            self._save(trainer)

    def _save(self, trainer: lightning.Trainer) -> None:
        self._due, self._saved_step = False, trainer.global_step
        trainer.save_checkpoint(self.path(trainer), weights_only=False)


class BestCheckpoints(ModelCheckpoint):
    """Keeps the `top_k` checkpoints with the best value of a validation metric, `best/step=N.ckpt` in the run's folder.

    They are whole checkpoints: to generate with, or to continue from with `--ckpt_path`.
    """

    def __init__(self, monitor: str = "val/loss", mode: Literal["min", "max"] = "min", top_k: int = 1) -> None:
        """What is best.

        Args:
            monitor: metric, as it is named in the log.
            mode: whether less (`min`) or more (`max`) is better.
            top_k: how many are kept.
        """
        super().__init__(
            filename="{step}", monitor=monitor, mode=mode, save_top_k=top_k, enable_version_counter=False,
            save_on_train_epoch_end=False,
        )  # fmt: skip

    def setup(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        self.dirpath = str(Path(trainer.default_root_dir) / "best")
        super().setup(trainer, pl_module, stage)
