"""Moving average of the weights: what validation, generation and the checkpoint's `state_dict` use."""

from __future__ import annotations

from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor


class WarmupEMA(WeightAveraging):
    """Exponential moving average whose decay grows as (1 + n) / (10 + n) up to `decay`, so short runs are not lagged.

    Lightning's `WeightAveraging` does the rest: swaps for validation, saves and restores both sets of weights.
    """

    def __init__(self, decay: float = 0.999) -> None:
        def average(old: Tensor, new: Tensor, updates: Tensor | int) -> Tensor:
            n = int(updates)
            return old.lerp(new, 1 - min(decay, (1 + n) / (10 + n)))

        super().__init__(avg_fn=average)
