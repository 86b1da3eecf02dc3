"""What a report is made from: an evaluation's two files and a training log, read and checked."""

from __future__ import annotations

import csv
import json
import math
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.npyio import NpzFile
from numpy.typing import NDArray

from tera_mind.errors import FormatError, MissingFileError

#: version of `metrics.json` that this report can read
METRICS_VERSION = 2
KEYS = ("settings", "methods", "table", "paired", "strata", "ensemble", "acceptance", "excluded")
#: what each row of a part must hold
ROW_KEYS = {
    "table": frozenset({"method", "metric", "value"}),
    "paired": frozenset({"metric", "control", "difference"}),
    "strata": frozenset({"stratum", "group", "method", "metric", "value"}),
    "acceptance": frozenset({"name", "value", "target", "passed"}),
    "calibration": frozenset({"stain", "spread", "error"}),
}
NUMBERS = frozenset({"value", "low", "high", "difference", "p", "spread", "error"})


class Arrays(Mapping[str, NDArray[Any]]):
    """The arrays of an `arrays.npz` by name, each read when it is asked for: those of a whole brain fill a machine.

    Raises `FormatError` where the file, or the array asked for, cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        with self._open() as file:
            self._names = tuple(file.files)

    def __getitem__(self, name: str) -> NDArray[Any]:
        if name not in self._names:
            raise KeyError(name)
        with self._open() as file:
            try:
                return np.asarray(file[name])
            except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
                raise self._unreadable(error) from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def _open(self) -> NpzFile:
        try:
            file = np.load(self._path, allow_pickle=False)
        except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
            raise self._unreadable(error) from None
        if not isinstance(file, NpzFile):
            raise self._unreadable(ValueError("one array instead of an archive"))
        return file

    def _unreadable(self, error: Exception) -> FormatError:
        return FormatError(f"{self._path} cannot be read ({error}): run `tera-mind evaluate` again")


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
    arrays: Mapping[str, NDArray[Any]]
    strata: list[dict[str, Any]] = field(default_factory=list)
    ensemble: dict[str, Any] | None = None

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
        for part in ("table", "paired", "strata", "acceptance"):
            _check_rows(metrics, part, content[part])
        for part in ("table", "calibration"):
            _check_rows(metrics, part, (content["ensemble"] or {}).get(part, []))
        return cls(folder, **{key: content[key] for key in KEYS}, arrays=Arrays(arrays))

    def per_method(self, prefix: str) -> dict[str, NDArray[Any]]:
        """Arrays named `<prefix>/<method>`, by method."""
        start = f"{prefix}/"
        return {name[len(start) :]: self.arrays[name] for name in self.arrays if name.startswith(start)}


def _check_rows(path: Path, part: str, rows: list[dict[str, Any]]) -> None:
    """Make the rows' numbers float or None, in place; raise `FormatError` for a row that lacks what it must hold."""
    for number, row in enumerate(rows):
        if lacking := sorted(ROW_KEYS[part] - (row.keys() if isinstance(row, dict) else set())):
            raise FormatError(
                f"{path}: row {number} of {part} lacks {', '.join(lacking)}: run `tera-mind evaluate` again"
            )
        row |= {key: _finite(row[key]) for key in NUMBERS & row.keys()}


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
