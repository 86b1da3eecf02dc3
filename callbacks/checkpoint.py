"""The newest state of a run, always under the same name, and the best ones; never a torn file."""

# ruff: noqa: SLF001 (where a step ends, and what follows it, only Lightning's loops know)

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import lightning
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.fabric.utilities.apply_func import convert_tensors_to_scalars
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint

from callbacks.log import MetricsLog
from tera_mind.errors import InputError
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

    A checkpoint is written where a resumed run does exactly what the uninterrupted one does: after an optimiser step,
    the validation that belongs to it and what other callbacks keep of that, and after the last step of an epoch when
    the epoch is over. On resume the rows that a `MetricsLog` holds beyond the checkpoint are dropped, since they will
    be written again, and the row of the checkpoint's own step, which is logged after it, is added if a killed process
    did not come to write it.
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
        self._accumulated = 1
        self._row: dict[str, Any] = {}
        self._before: dict[str, Any] = {}

    def path(self, trainer: lightning.Trainer) -> Path:
        """The file, whether it is there or not."""
        return Path(self.dirpath or trainer.default_root_dir) / "last.ckpt"

    def request(self) -> None:
        """Ask for a checkpoint as soon as one can be written; to be asked on all processes alike."""
        self._due = True

    def setup(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        del pl_module, stage
        trainer.strategy.checkpoint_io = AtomicCheckpointIO()
        callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
        # last of all: `BestCheckpoints` has to have seen the validation; a new list, the old one is being walked
        trainer.callbacks = [*(one for one in callbacks if one is not self), self]  # type: ignore[attr-defined]

    def state_dict(self) -> dict[str, Any]:
        return {"accumulate_grad_batches": self._accumulated, "row": self._row}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._before = state_dict

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Raises `InputError` where a run is to go on in the midst of an epoch with other accumulation."""
        del pl_module
        self._saved_step, self._accumulated = trainer.global_step, trainer.accumulate_grad_batches
        before, self._before = self._before, {}
        fit = trainer.fit_loop
        ended = fit.restarted_on_epoch_end or fit.resumed_on_epoch_end
        if ended and fit.epoch_loop._num_ready_batches_reached():
            _begin_next_epoch(trainer)
        elif (accumulated := before.get("accumulate_grad_batches", self._accumulated)) != self._accumulated:
            raise InputError(
                f"the checkpoint lies inside an epoch of a run with trainer.accumulate_grad_batches {accumulated}, "
                f"this one has {self._accumulated}; give the same, or start from a checkpoint at the end of an epoch"
            )
        for logger in trainer.loggers:
            if isinstance(logger, MetricsLog):
                logger.rewind(trainer.global_step, before.get("row"))

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
            connector = trainer._logger_connector
            if self._due and connector.should_update_logs:  # the row that Lightning is about to log
                row: Any = convert_tensors_to_scalars(connector.metrics["log"])
                self._row = {**row, "epoch": trainer.current_epoch, "step": loop._batches_that_stepped}
            self._save_if_due(trainer)
            self._row = {}

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        del pl_module
        if not trainer.sanity_checking:
            self._save_if_due(trainer)

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        del pl_module
        epochs = trainer.fit_loop.epoch_progress.current.processed  # type: ignore[attr-defined]
        over = trainer.should_stop or trainer.global_step == trainer.max_steps or epochs == trainer.max_epochs
        if trainer.global_step != self._saved_step and (over or self._due):
            self._save(trainer)

    def _save_if_due(self, trainer: lightning.Trainer) -> None:
        if self._due and not trainer.fit_loop.epoch_loop._num_ready_batches_reached():
            self._save(trainer)

    def _save(self, trainer: lightning.Trainer) -> None:
        self._due, self._saved_step = False, trainer.global_step
        trainer.save_checkpoint(self.path(trainer), weights_only=False)


def _begin_next_epoch(trainer: lightning.Trainer) -> None:
    """Resumed from the end of an epoch: the next one is to begin as in the uninterrupted run.

    Lightning would go back into the epoch that is over: train a batch too many where no validation ended it, and leave
    out a step number in the log where one did.
    """
    fit = trainer.fit_loop
    for progress in (fit.epoch_progress.current, fit.epoch_progress.total):
        progress.completed = progress.processed  # type: ignore[attr-defined]
    fit._restarting = fit.epoch_loop.restarting = False  # the property of the outer loop stays true with `max_steps`
    fit.reset_restart_stage()
    fit.epoch_loop.reset_restart_stage()


class BestCheckpoints(ModelCheckpoint):
    """Keeps the `top_k` checkpoints with the best value of a validation metric, `best/step=N.ckpt` in the run's folder.

    They are whole checkpoints: to generate with, or to continue from with `--ckpt_path`. A run that starts or resumes
    removes those of steps it has yet to take, which a killed process left.
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

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        if trainer.is_global_zero:
            for path in Path(str(self.dirpath)).glob("step=*.ckpt"):
                step = path.stem.removeprefix("step=")
                if step.isdigit() and int(step) > trainer.global_step and str(path) not in self.best_k_models:
                    path.unlink()
