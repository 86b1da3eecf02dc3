"""What slabs show: brain, sections and canvas pixels; tables of them, since a whole brain has millions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tera_mind.geometry import Box


@dataclass(frozen=True)
class Place:
    """What a slab shows: brain number, first image section, and the canvas pixels where its crops' corners lie."""

    brain: int
    first_section: int
    core: Box

    def window(self, crop_px: int) -> Box:
        """The pixels of the slab: every crop whose corner is in the core lies inside."""
        return Box(self.core.y0, self.core.y1 + crop_px - 1, self.core.x0, self.core.x1 + crop_px - 1)


class PlaceTable:
    """Places in their order, 24 bytes each."""

    def __init__(self, places: Iterable[Place]) -> None:
        rows = ((p.brain, p.first_section, p.core.y0, p.core.y1, p.core.x0, p.core.x1) for p in places)
        self._rows: NDArray[np.int32] = np.fromiter(rows, np.dtype((np.int32, 6)))

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, number: int) -> Place:
        brain, section, *core = self._rows[number].tolist()
        return Place(brain, section, Box(*core))

    def __iter__(self) -> Iterator[Place]:
        return (self[number] for number in range(len(self)))
