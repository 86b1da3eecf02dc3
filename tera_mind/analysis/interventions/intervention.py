"""Edits in order, each in its place, applied lazily: any window of counts is edited by itself, and windows agree."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from tera_mind.analysis.interventions.edits import Edit, Window
from tera_mind.analysis.interventions.masks import EVERYWHERE, Mask
from tera_mind.errors import InputError
from tera_mind.geometry import Box

#: counts of a box of the brain's pixels, whole bins: what samplers read
CountSource = Callable[[Box], Float[Tensor, "gene section bin_y bin_x"]]


@dataclass(frozen=True)
class Part:
    """An edit, the bins it applies to, and its strength: x + strength (x' - x)."""

    edit: Edit
    mask: Mask = EVERYWHERE
    strength: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.strength <= 1:
            raise InputError(f"the strength of an edit is 0 to 1, got {self.strength:g}")


@dataclass(frozen=True)
class Intervention:
    """What is done to the genes before generation.

    parts: in order, each sees what the ones before it made; genes: the network's panel; patch_px, bin_px: of the
    network; strength: s of the trajectory x(s) = (1 - s) x + s x' over all parts together, 0 is factual. Raises
    `TeraMindError` where an edit does not fit the panel.
    """

    name: str
    parts: tuple[Part, ...]
    genes: tuple[str, ...]
    patch_px: int
    bin_px: int
    pixel_um: float
    strength: float = 1.0

    def __post_init__(self) -> None:
        if not self.parts:
            raise InputError("an intervention needs at least one edit")
        if not 0 <= self.strength <= 1:
            raise InputError(f"the strength of an intervention is 0 to 1, got {self.strength:g}")
        for part in self.parts:
            part.edit.check(self.window((), Box(0, 0, 0, 0)))

    def at(self, strength: float) -> Intervention:
        """The same intervention at another strength."""
        return replace(self, strength=strength)

    def window(self, sections: Sequence[int], box: Box) -> Window:
        return Window(self.genes, tuple(sections), box, self.bin_px, self.patch_px, self.pixel_um)

    @property
    def masks(self) -> tuple[Mask, ...]:
        return tuple(part.mask for part in self.parts)

    @property
    def targets(self) -> tuple[str, ...]:
        """Genes that any part changes, in the panel's order."""
        named = {gene for part in self.parts for gene in (part.edit.targets or self.genes)}
        return tuple(gene for gene in self.genes if gene in named)

    def facts(self) -> dict[str, Any]:
        """Everything that the edited counts depend on beside the counts, plain JSON."""
        return {**self._facts, "strength": self.strength}

    @cached_property
    def _facts(self) -> dict[str, Any]:
        parts = [
            {"edit": part.edit.facts(), "where": part.mask.facts(), "strength": part.strength} for part in self.parts
        ]
        return {"name": self.name, "parts": parts}

    @property
    def digest(self) -> str:
        """16 hex digits of the facts."""
        return hashlib.sha256(json.dumps(self.facts(), sort_keys=True).encode()).hexdigest()[:16]

    def edited(self, source: CountSource, sections: Sequence[int], region: Box) -> CountSource:
        """Counts of a section group as the intervention makes them; patches are counted from the region's corner.

        Boxes start at whole bins from that corner. Windows that no mask touches are passed on as they are.
        """
        return _Edited(self, source, tuple(sections), (region.y0, region.x0))

    def touches(self, sections: Sequence[int]) -> bool:
        """Whether a group of these gene sections can hold an edited bin at all."""
        return any(part.mask.sections is None or set(part.mask.sections) & set(sections) for part in self.parts)


@dataclass(frozen=True)
class _Edited:
    intervention: Intervention
    source: CountSource
    sections: tuple[int, ...]
    corner: tuple[int, int]

    def __call__(self, box: Box) -> Float[Tensor, "gene section bin_y bin_x"]:
        own = self.intervention
        if own.strength == 0 or not any(self._mask(part.mask, box).any() for part in own.parts):
            return self.source(box)
        whole = self._whole_patches(box) if any(part.edit.rows for part in own.parts) else box
        measured = self.source(whole).numpy()
        counts, window = measured, own.window(self.sections, whole)
        for part in own.parts:
            mask = self._mask(part.mask, whole)
            if mask.any() and part.strength > 0:
                counts = np.where(mask, between(counts, part.edit.apply(counts, window), part.strength), counts)
        cut = box.shift(-whole.y0, -whole.x0)
        bins = Box(*(edge // own.bin_px for edge in (cut.y0, cut.y1, cut.x0, cut.x1))).slices()
        out = between(measured, counts, own.strength)[(..., *bins)]
        return torch.from_numpy(np.ascontiguousarray(out))

    def _mask(self, mask: Mask, box: Box) -> NDArray[np.bool_]:
        """(section, bin_y, bin_x)."""
        return np.stack([mask.at(section, box, self.intervention.bin_px) for section in self.sections])

    def _whole_patches(self, box: Box) -> Box:
        side, (y, x) = self.intervention.patch_px, self.corner
        return Box(
            y + (box.y0 - y) // side * side,
            y - (y - box.y1) // side * side,
            x + (box.x0 - x) // side * side,
            x - (x - box.x1) // side * side,
        )


def between(x: NDArray[np.float32], edited: NDArray[np.float32], strength: float) -> NDArray[np.float32]:
    """(1 - s) x + s x', which is x' itself at s = 1."""
    if strength == 1:
        return edited
    return np.asarray(np.float32(1 - strength) * x + np.float32(strength) * edited, np.float32)
