"""The result of an evaluation: rows, paired differences, acceptance lines and arrays, and how they are written.

The schema is stated in `tera_mind.metrics.evaluate`.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tera_mind.formats.atomic import atomic_file
from tera_mind.metrics.bootstrap import Difference, Interval
from tera_mind.metrics.strata import StratumRow

VERSION = 2

#: paired metrics of whole patches, and of larger squares
PATCH_METRICS = ("psnr", "ssim", "psnr_blur", "ssim_blur", "pearson_blur")
LARGE_METRICS = ("ms_ssim",)
#: what is measured of a nucleus -> its unit
NUCLEUS_UNITS = {"area": "um^2", "eccentricity": "", "intensity": "grey levels", "distance": "um", "transcripts": ""}


def _nucleus_metrics() -> dict[str, tuple[str, str]]:
    """Figures of every quantity: median, ratio, distance of its distribution, whether it follows the real one."""
    metrics: dict[str, tuple[str, str]] = {}
    for quantity, unit in NUCLEUS_UNITS.items():
        metrics |= {
            f"nucleus_{quantity}_median": (unit, "none"),
            f"nucleus_{quantity}_ratio": ("", "one"),
            f"nucleus_{quantity}_wasserstein": (unit, "lower"),
            f"nucleus_{quantity}_ks": ("", "lower"),
            f"nucleus_{quantity}_r": ("", "higher"),
            f"region_{quantity}_r": ("", "higher"),
        }
    return metrics


#: metric -> (unit, which way is better)
METRICS: dict[str, tuple[str, str]] = {
    "psnr": ("dB", "higher"),
    "ssim": ("", "higher"),
    "psnr_blur": ("dB", "higher"),
    "ssim_blur": ("", "higher"),
    "pearson_blur": ("", "higher"),
    "ms_ssim": ("", "higher"),
    "nuclei_count": ("nuclei", "none"),
    "nuclei_count_r": ("", "higher"),
    "nuclei_count_ratio": ("", "one"),
    "nuclei_count_error": ("nuclei a window", "lower"),
    "nuclei_count_wasserstein": ("nuclei a window", "lower"),
    "nuclei_count_ks": ("", "lower"),
    "region_count_r": ("", "higher"),
    "nuclei_f1": ("", "higher"),
    **_nucleus_metrics(),
    "nucleus_size_transcripts_r": ("", "none"),
    "gene_r": ("", "higher"),
    "gene_r_median": ("", "higher"),
    "gene_recovery": ("", "higher"),
    "frechet": ("", "lower"),
    "kernel": ("", "lower"),
    "fid": ("", "lower"),
    "sfid": ("", "lower"),
    "spectrum_distance": ("dB", "lower"),
    "histogram_wasserstein": ("grey levels", "lower"),
    "seam_index": ("", "one"),
    "seam_step": ("", "one"),
    "seam_spectrum": ("", "one"),
    "seam_null": ("", "none"),
    "seam_step_null": ("", "none"),
    "seam_spectrum_null": ("", "none"),
    "tile_seam_index": ("", "one"),
    "tile_seam_step": ("", "one"),
    "tile_seam_spectrum": ("", "one"),
    "tile_seam_null": ("", "none"),
    "tile_seam_step_null": ("", "none"),
    "tile_seam_spectrum_null": ("", "none"),
    "z_correlation": ("", "none"),
    "z_correlation_gap": ("", "lower"),
    "spread_skill": ("", "higher"),
    "spread_skill_rank": ("", "higher"),
    "spread_error_ratio": ("", "one"),
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
    """Generated against a control on the same places; `difference` above 0: generated is better."""

    metric: str
    stain: str
    control: str
    difference: float | None
    low: float | None
    high: float | None
    #: two-sided, from the same resamples; for distances of tiles, from the jackknife's Student t
    p: float | None
    n: int
    reason: str | None = None


def paired_row(metric: str, stain: str, control: str, found: Difference, why: str) -> Paired:
    """A row from a difference; `why` says why it would have no value."""
    value, low, high, p, n = found
    return Paired(metric, stain, control, value, low, high, p, n, why if value is None else None)


@dataclass(frozen=True)
class Criterion:
    name: str
    value: float | None
    target: str
    passed: bool


class Arrays(Mapping[str, NDArray[Any]]):
    """Arrays by name, made when they are asked for and not kept: together they may not fit in memory.

    `keeps` is held alive as long as the arrays are, such as the temporary folder they are read from.
    """

    def __init__(self, makers: Mapping[str, Callable[[], NDArray[Any]]], keeps: object = None) -> None:
        self._makers = dict(makers)
        self._keeps = keeps

    def __getitem__(self, name: str) -> NDArray[Any]:
        return self._makers[name]()

    def __iter__(self) -> Iterator[str]:
        return iter(self._makers)

    def __len__(self) -> int:
        return len(self._makers)

    def write(self, path: Path) -> None:
        """Write a compressed .npz, one array in memory at a time."""
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=4) as archive:
            for name, array in self.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as stream:
                    np.lib.format.write_array(stream, np.asanyarray(array), allow_pickle=False)


@dataclass(frozen=True)
class Evaluation:
    """All figures of one evaluation; the schema is in `tera_mind.metrics.evaluate`."""

    settings: dict[str, Any]
    methods: list[str]
    table: list[Row]
    paired: list[Paired]
    strata: list[StratumRow]
    ensemble: dict[str, Any] | None
    acceptance: list[Criterion]
    excluded: dict[str, int]
    arrays: Arrays

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
            "strata": [asdict(row) for row in self.strata],
            "ensemble": self.ensemble,
            "acceptance": [asdict(row) for row in self.acceptance],
            "excluded": self.excluded,
        }

    def write(self, folder: str | Path) -> Path:
        """Write `arrays.npz`, then `metrics.json`, each whole or not at all; returns the path of the latter."""
        folder = Path(folder)
        with atomic_file(folder / "arrays.npz") as path:
            self.arrays.write(path)
        target = folder / "metrics.json"
        with atomic_file(target) as path:
            path.write_text(json.dumps(self.to_json(), indent=1, allow_nan=False) + "\n", encoding="utf-8")
        return target


def find_row(table: list[Row], method: str, metric: str, stain: str) -> Row | None:
    """The row of a method, metric and stain; None where the table has none."""
    return next((r for r in table if (r.method, r.metric, r.stain) == (method, metric, stain)), None)
