"""What callbacks that paint have in common: when they run, and on which regions."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import lightning
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerFn

from callbacks.regions import Region, validation_regions
from tera_mind.errors import InputError
from tera_mind.module import MethodModule


class PaintingCallback(Callback, ABC):
    """Runs `look` in every `every_n_validations`-th validation of a training, once the averaged weights are in place.

    What there is to look at is settled before the first step; `InputError` where it is nothing (`validation_regions`).

    Averaged weights (`callbacks.ema.WarmupEMA`) are swapped in when a validation begins, whatever the order of the
    callbacks; so the looking is done at its first batch.
    """

    def __init__(self, regions: int, every_n_validations: int) -> None:
        if regions < 1 or every_n_validations < 1:
            raise InputError(
                f"regions and every_n_validations should be at least 1, got {regions} and {every_n_validations}"
            )
        self.count, self.every_n_validations = regions, every_n_validations
        self._validations = 0
        self._regions: list[Region] = []

    def state_dict(self) -> dict[str, Any]:
        return {"validations": self._validations}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._validations = state_dict["validations"]

    def on_fit_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        assert isinstance(pl_module, MethodModule)
        self._regions = validation_regions(trainer, pl_module, self.count)

    def on_validation_batch_start(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        del batch
        if batch_idx or dataloader_idx or trainer.sanity_checking or trainer.state.fn != TrainerFn.FITTING:
            return
        self._validations += 1
        if (self._validations - 1) % self.every_n_validations:
            return
        assert isinstance(pl_module, MethodModule)
        self.look(trainer, pl_module, self._regions)

    @abstractmethod
    def look(self, trainer: lightning.Trainer, module: MethodModule, regions: list[Region]) -> None:
        """What is done with the regions; on all processes alike."""
