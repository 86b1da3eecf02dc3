"""Signals that end a run in order: a checkpoint first, then a way out that says so."""

from __future__ import annotations

import os
import signal
from types import FrameType
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback

from callbacks.checkpoint import LastCheckpoint

#: what ends a run in order: a batch system's warnings, and Ctrl-C
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class StoppedBySignal(BaseException):
    """A run that a signal ended, its checkpoint written."""

    def __init__(self, number: int, step: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name} after step {step}")
        self.number = number


class StopOnSignal(Callback):
    """On SIGTERM, SIGUSR1 or Ctrl-C writes `last.ckpt` after the optimiser step at hand and ends the run.

    One process that was told is enough: after every step the processes agree, so all stop at the same one. Where a
    validation is under way, or belongs to the step, it is finished first, so that a resumed run does as the
    uninterrupted one. A second Ctrl-C ends at once, without a checkpoint. Lightning's own handlers are left out: they
    save and communicate in the midst of whatever a process is doing, and requeue SLURM jobs by themselves; here the
    batch file does it when `tera-mind fit` ends with exit code 75.
    """

    def __init__(self) -> None:
        self._received = 0
        self._agreed = 0
        self._before: dict[int, Any] = {}
        self._owner = os.getpid()

    def setup(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        del pl_module, stage
        connector = trainer._signal_connector  # noqa: SLF001 (there is no other way to keep its handlers out)
        connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
        self._owner = os.getpid()
        for number in SIGNALS:
            self._before[number] = signal.signal(number, self._handle)

    def teardown(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        del trainer, pl_module, stage
        self._restore()

    def on_exception(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, exception: BaseException
    ) -> None:
        del trainer, pl_module, exception
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        del frame
        again = self._received == number
        self._received = number
        if os.getpid() != self._owner:  # a loading process, forked since: its parent ends it in time
            if again and number == signal.SIGTERM:
                os._exit(128 + number)
        elif again and number == signal.SIGINT:
            raise KeyboardInterrupt

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        del pl_module, batch, batch_idx
        if self._agreed:  # the step it was agreed at is logged, validated and saved by now
            raise StoppedBySignal(self._agreed, trainer.global_step)

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        del pl_module, outputs, batch, batch_idx
        if trainer.fit_loop._should_accumulate():  # noqa: SLF001
            return
        if trainer.world_size > 1:
            told = torch.tensor(self._received, device=trainer.strategy.root_device)
            self._agreed = int(trainer.strategy.reduce(told, reduce_op="max"))
        else:
            self._agreed = self._received
        if self._agreed:
            for callback in trainer.checkpoint_callbacks:
                if isinstance(callback, LastCheckpoint):
                    callback.request()
