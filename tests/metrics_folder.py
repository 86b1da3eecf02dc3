"""Evaluations out of nothing: folders with metrics.json version 2 and arrays.npz whose figures belong together."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

#: method -> how far it is from the model that is evaluated, 0 is as good
FAULTS = {"generated": 0.0, "shuffled": 1.5, "zeroed": 2.0, "mean_image": 1.0, "ridge": 0.4}
PATCH_METRICS = {"psnr": (18.0, 1.2, "dB"), "ssim": (0.55, 0.05, ""), "pearson_blur": (0.7, 0.06, "")}
QUANTITIES = {"area": (60.0, "um^2"), "eccentricity": (0.6, ""), "intensity": (120.0, "grey levels")}
WHOLE_PX, WINDOW_PX, REGION_PX = 128, 128, 256


def boxes(sections: Sequence[int], test_box: Sequence[int], side: int) -> np.ndarray:
    """(n, 5): section, y0, y1, x0, x1 of all squares in the box."""
    y0, y1, x0, x1 = test_box
    return np.array(
        [
            (section, y, y + side, x, x + side)
            for section in sections
            for y in range(y0, y1 - side + 1, side)
            for x in range(x0, x1 - side + 1, side)
        ],
        np.int64,
    ).reshape(-1, 5)


def place_noise(places: np.ndarray, key: int) -> np.ndarray:
    """Standard normal numbers that belong to places, so that folders that share places share them."""
    return np.array([np.random.default_rng([key, *map(int, place)]).normal() for place in places])


def write_metrics_folder(
    folder: Path,
    *,
    quality: float = 0.0,
    seed: int = 0,
    sections: Sequence[int] = (0, 1, 2),
    stains: Sequence[str] = ("DAPI", "PolyT"),
    test_box: Sequence[int] = (0, 512, 1024, 1792),
    faults: dict[str, float] | None = None,
    settings: dict[str, Any] | None = None,
    steps: int = 15,
    change: dict[str, Any] | None = None,
) -> Path:
    """Write an evaluation; `quality` lifts every score, `seed` is that of the volume's noise.

    `settings` and `change` (whole parts of the file) replace what is written.
    """
    faults = FAULTS if faults is None else faults
    rows = _Rows(sections)
    arrays: dict[str, np.ndarray] = {
        "patch_boxes": boxes(sections, test_box, WHOLE_PX),
        "window_boxes": boxes(sections, test_box, WINDOW_PX),
        "region_boxes": boxes(sections, test_box, REGION_PX),
    }
    patches = arrays["patch_boxes"]
    for method, fault in faults.items():
        own = np.random.default_rng([seed, len(method), 1])
        for metric, (middle, spread, unit) in PATCH_METRICS.items():
            for number, stain in enumerate(stains):
                easy = place_noise(patches, 100 + number)
                gain = quality - fault - 0.3 * number + 0.15 * patches[:, 0] + own.normal(0, 0.25, len(patches))
                values = (middle + spread * (1.5 * easy + gain)).astype(np.float32)
                arrays[f"{metric}/{method}/{stain}"] = values
                rows.places(method, metric, stain, values, patches, unit, "higher")
        for stain in stains:
            rows.value(method, "frechet", stain, 60 + 40 * (fault - quality) + float(own.normal(0, 2)), "", "lower")
            rows.value(method, "seam_index", stain, 1 + 0.02 * fault + float(own.normal(0, 0.004)), "", "one")
    for stain in stains:
        rows.value("real_vs_real", "frechet", stain, 22.0, "", "lower")
    _nuclei(rows, arrays, stains[0], faults, quality, seed)
    content = {
        "format": "metrics",
        "version": 2,
        "settings": {
            "brain": "brain.zarr",
            "brain_fingerprint": "94f538bf00f3a5d0",
            "pixel_um": 0.425,
            "stains": list(stains),
            "sections": list(sections),
            "test_box": list(test_box),
            "patch_px": WHOLE_PX // 2,
            "whole_patch_px": WHOLE_PX,
            "window_px": WINDOW_PX,
            "region_px": REGION_PX,
            "blur_um": 2.0,
            "bootstrap": 1000,
            "seed": 0,
            "nucleus_stain": stains[0],
            "nuclei": {"diameter_um": 8.0},
            "volume_seed": seed,
            "steps": steps,
            "generation": {"stepper": "ddim", "block": 8 + seed, "model": {"patch_px": 64, "gene_sections": 8}},
        }
        | (settings or {}),
        "methods": ["real", *faults, "real_vs_real"],
        "table": rows.table,
        "paired": [],
        "strata": rows.strata,
        "ensemble": None,
        "acceptance": [],
        "excluded": {"patches": len(patches)},
    }
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / "arrays.npz", **arrays)
    (folder / "metrics.json").write_text(json.dumps(content | (change or {})))
    return folder


class _Rows:
    def __init__(self, sections: Sequence[int]) -> None:
        self.sections = sections
        self.table: list[dict[str, Any]] = []
        self.strata: list[dict[str, Any]] = []

    def value(
        self,
        method: str,
        metric: str,
        stain: str,
        value: float | None,
        unit: str,
        better: str,
        half: float | None = None,
    ) -> None:
        low, high = (None, None) if half is None or value is None else (value - half, value + half)
        self.table.append(
            {"method": method, "metric": metric, "stain": stain, "value": value, "low": low, "high": high, "n": 100}
            | {"unit": unit, "better": better, "reason": None if value is not None else "nothing to measure"}
        )

    def places(
        self, method: str, metric: str, stain: str, values: np.ndarray, places: np.ndarray, unit: str, better: str
    ) -> None:
        """Rows of a mean over places, of all and of each section."""
        mean = float(values.astype(np.float64).mean())
        self.value(method, metric, stain, mean, unit, better, 1.96 * float(values.std()) / len(values) ** 0.5)
        for section in self.sections:
            here = values[places[:, 0] == section].astype(np.float64)
            half = 1.96 * here.std() / max(len(here), 1) ** 0.5
            self.strata.append(
                {"stratum": "section", "group": str(section), "method": method, "metric": metric, "stain": stain}
                | {"value": here.mean(), "low": here.mean() - half, "high": here.mean() + half, "n": len(here)}
            )


def _nuclei(
    rows: _Rows, arrays: dict[str, np.ndarray], stain: str, faults: dict[str, float], quality: float, seed: int
) -> None:
    """Counts and medians a window and a region, and pooled nuclei, of real tissue and of every method."""
    for name, key in (("window", 7), ("region", 8)):
        places = arrays[f"{name}_boxes"]
        size = 1 if name == "window" else 4
        dense = 12 * size * np.exp(0.4 * place_noise(places, key) + 0.1 * places[:, 0])
        arrays[f"{name}_counts/real"] = np.rint(dense).astype(np.int64)
        for method, fault in faults.items():
            noise = np.random.default_rng([seed, len(method), key]).normal(0, 1, len(places))
            off = max(0.1, 0.5 + fault - 0.3 * quality)
            arrays[f"{name}_counts/{method}"] = np.maximum(np.rint(dense + 4 * size**0.5 * off * noise), 0).astype(int)
        for quantity, (middle, _) in QUANTITIES.items():
            truth = place_noise(places, key + 10 + len(quantity))
            arrays[f"{name}_{quantity}/real"] = middle * (1 + 0.08 * truth)
            for method, fault in faults.items():
                noise = np.random.default_rng([seed, len(method), key, len(quantity)]).normal(0, 1, len(places))
                off = max(0.1, 0.6 + fault - 0.3 * quality)
                arrays[f"{name}_{quantity}/{method}"] = middle * (1.02 + 0.08 * (truth + off * noise))
    real = arrays["window_counts/real"]
    for method, fault in [("real", 0.0), *faults.items()]:
        own = np.random.default_rng([seed, len(method), 9])
        total = int(arrays[f"window_counts/{method}"].sum())
        rows.value(method, "nuclei_count", stain, float(total), "nuclei", "none")
        for quantity, (middle, unit) in QUANTITIES.items():
            shape = own.gamma(8, 1 / 8, total) if quantity != "eccentricity" else own.beta(6, 4, total) / 0.6
            nuclei = middle * (1 + 0.06 * fault) * shape
            arrays[f"nucleus_{quantity}/{method}"] = nuclei
            rows.value(method, f"nucleus_{quantity}_median", stain, float(np.median(nuclei)), unit, "none", 0.5)
            if method != "real":
                pair = np.corrcoef(arrays[f"window_{quantity}/{method}"], arrays[f"window_{quantity}/real"])
                rows.value(method, f"nucleus_{quantity}_r", stain, float(pair[0, 1]), "", "higher", 0.05)
                pair = np.corrcoef(arrays[f"region_{quantity}/{method}"], arrays[f"region_{quantity}/real"])
                rows.value(method, f"region_{quantity}_r", stain, float(pair[0, 1]), "", "higher", 0.08)
        if method != "real":
            regions = np.corrcoef(arrays[f"region_counts/{method}"], arrays["region_counts/real"])
            rows.value(method, "region_count_r", stain, float(regions[0, 1]), "", "higher", 0.06)
            counts = arrays[f"window_counts/{method}"]
            rows.value(method, "nuclei_count_r", stain, float(np.corrcoef(counts, real)[0, 1]), "", "higher", 0.04)
            error = np.abs(counts - real).astype(np.float64)
            rows.places(method, "nuclei_count_error", stain, error, arrays["window_boxes"], "nuclei a window", "lower")


def write_runs(root: Path) -> Path:
    """Runs `ours`, `rival` (clearly worse), `twin` (as good), and seeds of two numbers of steps."""
    for name, quality, seed in (("ours", 0.0, 0), ("rival", -1.5, 3), ("twin", 0.0, 5)):
        write_metrics_folder(root / name / "evaluation", quality=quality, seed=seed)
    for steps, quality in ((5, -0.5), (15, 0.0)):
        for seed in range(3):
            write_metrics_folder(root / f"steps{steps}_{seed}", quality=quality, seed=10 + seed, steps=steps)
    return root
