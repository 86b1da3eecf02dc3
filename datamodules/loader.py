"""Batches of one rank, their position, and the way back to it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from torch.utils.data import DataLoader

from datamodules.crops import Batch
from datamodules.order import FixedBatches, TrainingBatches
from datamodules.slabs import Step
from tera_mind.errors import InputError, TeraMindError

log = logging.getLogger(__name__)


@dataclass
class PairLoader:
    """Batches of one rank, in an order that does not depend on the number of workers; its length is the same on all.

    Every iteration is an epoch: the first begins where `start_at` or `load_state_dict` said, each later one is the
    next epoch from its first step. Not a torch `DataLoader` itself: Lightning would put its own sampler into one.

    Args:
        batches: what every step draws.
        loader: makes the batches, in worker processes or here.
        finish: what is done to a batch before it is handed out.
        settings: what must be the same when a run goes on in the middle of an epoch.
        trained_on: how many batches of this epoch were trained on, and how many end it, where someone knows better than
            this loader, which counts what it handed out.
        lost: slabs that were skipped, and why.
    """

    batches: TrainingBatches | FixedBatches
    loader: DataLoader[Any]
    finish: Callable[[Batch], Batch] = field(default=lambda batch: batch)
    settings: dict[str, Any] = field(default_factory=dict)
    trained_on: Callable[[], tuple[int, float] | None] = field(default=lambda: None)
    lost: dict[int, str] = field(default_factory=dict)
    _epoch: int = 0
    _step: int = 0
    _begun: bool = False

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Batch]:
        self.start_at(*self.upcoming)
        self.batches.start_at(self._epoch, self._step)
        return self._hand_out(iter(self.loader))

    @property
    def upcoming(self) -> tuple[int, int]:
        """Epoch and step with which the next iteration begins."""
        over = self._begun or self._step >= len(self)
        return (self._epoch + 1, 0) if over else (self._epoch, self._step)

    def start_at(self, epoch: int, step: int) -> None:
        """The next iteration begins with this step of this epoch."""
        self._epoch, self._step, self._begun = epoch, step, False

    def state_dict(self) -> dict[str, Any]:
        """Epoch, steps of it that were consumed (what was loaded ahead is not), and the settings they depend on."""
        done, steps = self.trained_on() or (self._step, len(self))
        position = {"epoch": self._epoch, "step": done} if done < steps else {"epoch": self._epoch + 1, "step": 0}
        return position | self.settings

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where a run was. Inside an epoch its settings must be the same, else `InputError`."""
        epoch, step = int(state["epoch"]), int(state["step"])
        differing = [name for name, value in self.settings.items() if state.get(name) != value]
        if differing and 0 < step < len(self):
            was, now = ({name: of.get(name) for name in differing} for of in (state, self.settings))
            raise InputError(
                f"the checkpoint lies inside epoch {epoch} (step {step}) of a run with {_words(was)}, this one has "
                f"{_words(now)}; give the same, or start from a checkpoint at the end of an epoch"
            )
        self.start_at(epoch, step)

    def _hand_out(self, items: Iterator[Any]) -> Iterator[Batch]:
        for item in items:
            if isinstance(item, TeraMindError):
                try:
                    raise item
                finally:
                    # else error and frame hold each other, and workers that the cycle collector frees end by time-out
                    del item, items
            assert isinstance(item, Step)
            self._note(item.lost)
            self._begun = True
            self._step += 1
            yield self.finish(item.batch)  # type: ignore[arg-type]

    def _note(self, lost: tuple[tuple[int, str], ...]) -> None:
        """Count and log slabs that were skipped; several workers may find the same one."""
        for slab, why in lost:
            if slab not in self.lost:
                self.lost[slab] = why
                log.warning("slab %d is lost, %d so far; the next of the order is drawn: %s", slab, len(self.lost), why)


def _words(settings: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in settings.items())
