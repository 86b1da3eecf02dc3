"""A callback for the tests of SLURM: steps slow enough to be interrupted in the middle."""

from __future__ import annotations

import time

from lightning.pytorch.callbacks import Callback


class SlowSteps(Callback):
    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def on_train_batch_end(self, *_):
        time.sleep(self.seconds)
