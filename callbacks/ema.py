"""Moving average of the weights: what validation, generation and the checkpoint's `state_dict` use."""

from __future__ import annotations

from collections.abc import Sequence

import lightning
import torch
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor


class WarmupEMA(WeightAveraging):
    """Exponential moving average whose decay grows as (1 + n) / (10 + n) up to `decay`, so short runs are not lagged.

    Lightning's `WeightAveraging` does the rest: swaps for validation, saves and restores both sets of weights. The
    number of updates n is kept on the CPU and all weights move in one call, so that no step waits for a GPU.
    """

    def __init__(self, decay: float = 0.999) -> None:
        """How slow.

        Args:
            decay: share of the old average that an update keeps, once warmed up.
        """

        def average(old: Sequence[Tensor], new: Sequence[Tensor], updates: Tensor | int) -> None:
            del updates  # the same number, but on the weights' device: to read it there is to wait for it
            assert self._average_model is not None
            n = int(self._average_model.n_averaged)
            torch._foreach_lerp_(list(old), list(new), 1 - min(decay, (1 + n) / (10 + n)))

        super().__init__(multi_avg_fn=average)

    def setup(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if self._average_model is not None:
            self._average_model.n_averaged = self._average_model.n_averaged.cpu()
