"""The newest state of a run, always under the same name."""

from __future__ import annotations

from pathlib import Path

import lightning
from lightning.pytorch.callbacks import ModelCheckpoint


class LastCheckpoint(ModelCheckpoint):
    """Keeps `last.ckpt` in the run's folder: every so many optimiser steps, and whenever training stops in order."""

    def __init__(self, dirpath: str | None = None, every_n_train_steps: int = 250) -> None:
        """dirpath: folder, default `trainer.default_root_dir`; every_n_train_steps: optimiser steps between saves."""
        super().__init__(
            dirpath=dirpath,
            filename="last",
            every_n_train_steps=every_n_train_steps,
            save_on_train_epoch_end=False,
            save_top_k=1,
            enable_version_counter=False,
        )

    def setup(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        if self.dirpath is None:
            self.dirpath = trainer.default_root_dir
        super().setup(trainer, pl_module, stage)

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        del pl_module
        if trainer.global_step > 0:
            assert self.dirpath is not None
            trainer.save_checkpoint(Path(self.dirpath) / "last.ckpt", weights_only=False)
