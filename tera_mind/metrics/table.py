"""The result of an evaluation: rows, paired differences, acceptance lines and arrays, and how they are written.

The schema is stated in `tera_mind.metrics.evaluate`.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tera_mind.formats.atomic import atomic_file
from tera_mind.metrics.bootstrap import Interval

VERSION = 1

#: paired metrics of whole patches
PATCH_METRICS = ("psnr", "ssim", "psnr_blur", "ssim_blur", "pearson_blur")

#: metric -> (unit, which way is better)
METRICS = {
    "psnr": ("dB", "higher"),
    "ssim": ("", "higher"),
    "psnr_blur": ("dB", "higher"),
    "ssim_blur": ("", "higher"),
    "pearson_blur": ("", "higher"),
    "nuclei_count": ("nuclei", "none"),
    "nuclei_count_r": ("", "higher"),
    "nuclei_count_ratio": ("", "one"),
    "nuclei_count_error": ("nuclei a window", "lower"),
    "nuclei_count_wasserstein": ("nuclei a window", "lower"),
    "nucleus_area_median_um2": ("um^2", "none"),
    "nucleus_area_ratio": ("", "one"),
    "nucleus_area_r": ("", "higher"),
    "nucleus_area_wasserstein": ("um^2", "lower"),
    "frechet": ("", "lower"),
    "seam_index": ("", "one"),
    "seam_null": ("", "none"),
}


@dataclass(frozen=True)
class Row:
    method: str
    metric: str
    stain: str
    value: float | None
    low: float | None
    high: float | None
    n: int
    unit: str
    better: str
    reason: str | None = None

    @staticmethod
    def of(method: str, metric: str, stain: str, interval: Interval, reason: str) -> Row:
        """A row from an interval; `reason` says why it would have no value."""
        value, low, high, n = interval
        return Row(method, metric, stain, value, low, high, n, *METRICS[metric], reason if value is None else None)


@dataclass(frozen=True)
class Paired:
    metric: str
    stain: str
    control: str
    difference: float | None
    low: float | None
    high: float | None
    n: int
    reason: str | None = None


@dataclass(frozen=True)
class Criterion:
    name: str
    value: float | None
    target: str
    passed: bool


@dataclass(frozen=True)
class Evaluation:
    """All figures of one evaluation; the schema is in `tera_mind.metrics.evaluate`."""

    settings: dict[str, Any]
    methods: list[str]
    table: list[Row]
    paired: list[Paired]
    acceptance: list[Criterion]
    excluded: dict[str, int]
    arrays: dict[str, NDArray[Any]] = field(default_factory=dict)

    def row(self, method: str, metric: str, stain: str) -> Row | None:
        """The row of a method, metric and stain; None where the table has none."""
        return find_row(self.table, method, metric, stain)

    def to_json(self) -> dict[str, Any]:
        return {
            "format": "metrics",
            "version": VERSION,
            "settings": self.settings,
            "methods": self.methods,
            "table": [asdict(row) for row in self.table],
            "paired": [asdict(row) for row in self.paired],
            "acceptance": [asdict(row) for row in self.acceptance],
            "excluded": self.excluded,
        }

    def write(self, folder: str | Path) -> Path:
        """Write `arrays.npz`, then `metrics.json`, each whole or not at all; returns the path of the latter."""
        folder = Path(folder)
        with atomic_file(folder / "arrays.npz") as path, path.open("wb") as stream:
            np.savez_compressed(stream, allow_pickle=False, **self.arrays)
        target = folder / "metrics.json"
        with atomic_file(target) as path:
            path.write_text(json.dumps(self.to_json(), indent=1, allow_nan=False) + "\n", encoding="utf-8")
        return target


def find_row(table: list[Row], method: str, metric: str, stain: str) -> Row | None:
    """The row of a method, metric and stain; None where the table has none."""
    return next((r for r in table if (r.method, r.metric, r.stain) == (method, metric, stain)), None)
