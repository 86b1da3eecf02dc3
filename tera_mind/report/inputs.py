"""What a report is made from: an evaluation's two files and a training log, read and checked."""

from __future__ import annotations

import csv
import json
import math
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tera_mind.errors import FormatError, MissingFileError

#: version of `metrics.json` that this report can read
METRICS_VERSION = 1
KEYS = ("settings", "methods", "table", "paired", "acceptance", "excluded")
NUMBERS = frozenset({"value", "low", "high", "difference"})


@dataclass(frozen=True)
class Evaluation:
    """`metrics.json` as read (see `tera_mind.metrics.evaluate` for the schema) and the arrays beside it."""

    path: Path
    settings: dict[str, Any]
    methods: list[str]
    table: list[dict[str, Any]]
    paired: list[dict[str, Any]]
    acceptance: list[dict[str, Any]]
    excluded: dict[str, Any]
    arrays: dict[str, NDArray[Any]]

    @classmethod
    def read(cls, folder: Path) -> Evaluation:
        """Read `metrics.json` and `arrays.npz`.

        Raises `MissingFileError` when one is absent, `FormatError` when one cannot be read, is of another version or
        lacks a part.
        """
        metrics, arrays = folder / "metrics.json", folder / "arrays.npz"
        for path in (metrics, arrays):
            if not path.is_file():
                raise MissingFileError(f"no {path.name} in {folder}: run `tera-mind evaluate --out {folder}` first")
        try:
            content = json.loads(metrics.read_text(encoding="utf-8"))
        except ValueError as error:
            raise FormatError(f"{metrics} is no readable JSON ({error}): run `tera-mind evaluate` again") from None
        found = (content.get("format"), content.get("version")) if isinstance(content, dict) else None
        if found != ("metrics", METRICS_VERSION):
            raise FormatError(
                f"{metrics}: expected format 'metrics' version {METRICS_VERSION}, got {found}: "
                f"evaluate again with this version of tera-mind"
            )
        if missing := [key for key in KEYS if key not in content]:
            raise FormatError(f"{metrics} lacks {', '.join(missing)}: run `tera-mind evaluate` again")
        for row in (*content["table"], *content["paired"], *content["acceptance"]):
            row |= {key: _finite(row[key]) for key in NUMBERS & row.keys()}
        try:
            with np.load(arrays, allow_pickle=False) as file:
                loaded = {name: file[name] for name in file.files}
        except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
            raise FormatError(f"{arrays} cannot be read ({error}): run `tera-mind evaluate` again") from None
        return cls(folder, **{key: content[key] for key in KEYS}, arrays=loaded)

    def per_method(self, prefix: str) -> dict[str, NDArray[Any]]:
        """Arrays named `<prefix>/<method>`, by method."""
        start = f"{prefix}/"
        return {name[len(start) :]: array for name, array in self.arrays.items() if name.startswith(start)}


def _finite(value: Any) -> Any:
    """Numbers as float, those that are not finite as None; anything else as it is."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value) if math.isfinite(value) else None
    return value


def read_losses(path: Path) -> dict[str, tuple[list[int], list[float]]]:
    """Loss curves of a training log: column name -> (steps, values), from the CSV that Lightning's CSVLogger writes.

    Every column that starts with `train/` or `val/` and names a loss. Where a loss is logged both per step and per
    epoch, the one per step is taken. Raises `MissingFileError`, or `FormatError` when no loss is found.
    """
    if not path.is_file():
        raise MissingFileError(
            f"no training log {path}: give the metrics.csv that `tera-mind fit` wrote, or leave --log"
        )
    curves: dict[str, tuple[list[int], list[float]]] = {}
    try:
        with path.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                for name, text in row.items():
                    if not (text and str(name).startswith(("train/", "val/")) and "loss" in name):
                        continue
                    steps, values = curves.setdefault(name, ([], []))
                    value = float(text)
                    if math.isfinite(value):
                        steps.append(int(float(row["step"])))
                        values.append(value)
    except (ValueError, KeyError, UnicodeDecodeError, csv.Error) as error:
        raise FormatError(f"training log {path} cannot be read ({error}): expected columns step, train/loss") from None
    for name in [name for name in curves if name.endswith("_epoch")]:
        if name.removesuffix("_epoch") in curves or f"{name.removesuffix('_epoch')}_step" in curves:
            del curves[name]
    curves = {name: curve for name, curve in curves.items() if curve[0]}
    if not curves:
        raise FormatError(f"training log {path} holds no loss: expected a column train/loss or val/loss")
    return curves
