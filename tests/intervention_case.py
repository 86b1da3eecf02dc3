"""Counts, populations and windows small enough to edit in every test."""

from __future__ import annotations

import numpy as np
import torch

from tera_mind.analysis.interventions.intervention import Intervention, Part
from tera_mind.analysis.interventions.population import Basis
from tera_mind.geometry import Box
from tera_mind.sums import Sums

PANEL = ("Aqp4", "Gad2", "Mog", "Slc17a7", "Vip", "Th")
PATCH_PX, BIN_PX, PIXEL_UM = 16, 4, 0.5
SECTIONS = (-1, 0, 1, 2)


def whole_counts(seed: int = 0, side: int = 160) -> np.ndarray:
    """Correlated counts over a canvas (gene, section, bin, bin), some patches without any transcript."""
    random = np.random.default_rng([seed])
    bins = side // BIN_PX
    common = random.gamma(2.0, 1.0, (1, len(SECTIONS), bins // 4, bins // 4)).repeat(4, 2).repeat(4, 3)
    level = np.linspace(0.2, 1.5, len(PANEL))[:, None, None, None]
    counts = random.poisson(common * level).astype(np.float32)
    counts[:, :, 8:16, 12:20] = 0
    return counts


def source_of(counts: np.ndarray, origin: int = -64):
    """A source over an array whose first bin lies at `origin` px in both axes."""

    def source(box: Box) -> torch.Tensor:
        moved = box.shift(-origin, -origin)
        assert min(moved.y0, moved.x0) >= 0
        return torch.from_numpy(
            counts[(..., *Box(*(e // BIN_PX for e in (moved.y0, moved.y1, moved.x0, moved.x1))).slices())]
        )

    return source


def basis(seed: int, *, tilt: float = 0.0, genes=PANEL, name: str = "made") -> Basis:
    """A population of made-up rows; `tilt` raises some genes and lowers others."""
    random = np.random.default_rng([seed])
    level = np.exp(tilt * np.linspace(-1, 1, len(genes))) * np.linspace(3, 9, len(genes))
    rows = random.poisson(random.gamma(3.0, 0.5, (400, 1)) * level)
    return Basis(tuple(genes), Sums.of(rows), PATCH_PX * PIXEL_UM, {"name": name})


def intervention(*parts: Part, strength: float = 1.0) -> Intervention:
    return Intervention("test", parts, PANEL, PATCH_PX, BIN_PX, PIXEL_UM, strength)
