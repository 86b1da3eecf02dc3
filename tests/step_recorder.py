"""What each process of a distributed training did, for the test that compares them."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import torch
from lightning.pytorch.callbacks import Callback


class StepRecorder(Callback):
    """Writes `rank-N.json`: steps, positions of all crops, rates, losses, hash of the weights after training."""

    def __init__(self, folder: str) -> None:
        self.folder, self.positions, self.rates, self.losses = Path(folder), [], [], []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.positions += batch["position"].tolist()
        self.losses.append(outputs["loss"].item())
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    def on_train_end(self, trainer, pl_module):
        digest = hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in pl_module.parameters())).hexdigest()
        record = {
            "steps": trainer.global_step,
            "world": trainer.world_size,
            "positions": self.positions,
            "rates": self.rates,
            "losses": self.losses,
            "weights": digest,
        }
        (self.folder / f"rank-{trainer.global_rank}.json").write_text(json.dumps(record))


class SignalAt(Callback):
    """Sends this process a signal at the start of a batch of a step, or within or after a save; 9 is the end of it."""

    def __init__(self, step: int, number: int, rank: int = 0, where: str = "batch") -> None:
        self.step, self.number, self.rank, self.where = step, number, rank, where

    def _send(self, trainer, where):
        if (trainer.global_step, trainer.global_rank, where) == (self.step, self.rank, self.where):
            self.step = -1
            os.kill(os.getpid(), self.number)

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self._send(trainer, "batch")

    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
        self._send(trainer, "validation")

    def setup(self, trainer, pl_module, stage):
        if self.where == "save":
            save = torch.save

            def torn(content, path):
                save(content, path)
                with Path(path).open("r+b") as file:
                    file.truncate(1000)
                self._send(trainer, "save")
                save(content, path)

            torch.save = torn
        if self.where == "saved":
            write = trainer.save_checkpoint

            def then_send(*arguments, **more):
                write(*arguments, **more)
                self._send(trainer, "saved")

            trainer.save_checkpoint = then_send


class BadBatch(Callback):
    """Makes the image of some steps not a number on one rank."""

    def __init__(self, steps: list[int], rank: int = 0) -> None:
        self.steps, self.rank = steps, rank

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step in self.steps and trainer.global_rank == self.rank:
            batch["image"][0, 0, 0, 3, 5] = float("nan")
