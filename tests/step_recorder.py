"""What each process of a distributed training did, for the test that compares them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from lightning.pytorch.callbacks import Callback


class StepRecorder(Callback):
    """Writes `rank-N.json`: steps, positions of all crops, learning rates, hash of the weights after training."""

    def __init__(self, folder: str) -> None:
        self.folder, self.positions, self.rates = Path(folder), [], []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.positions += batch["position"].tolist()
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    def on_train_end(self, trainer, pl_module):
        digest = hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in pl_module.parameters())).hexdigest()
        record = {
            "steps": trainer.global_step,
            "world": trainer.world_size,
            "positions": self.positions,
            "rates": self.rates,
            "weights": digest,
        }
        (self.folder / f"rank-{trainer.global_rank}.json").write_text(json.dumps(record))
