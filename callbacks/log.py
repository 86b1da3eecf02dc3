"""The log of a run as a table, `log/metrics.csv`, that survives interruption."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter

from tera_mind.formats.atomic import atomic_file

Row = dict[str, str]


class MetricsLog(CSVLogger):
    """Lightning's CSV log, continued where Lightning's own starts the file again, and written row by row.

    `rewind` drops the rows that a resumed run will write again; `callbacks.checkpoint.LastCheckpoint` calls it.
    """

    def __init__(self, save_dir: str) -> None:
        """Where it lies.

        Args:
            save_dir: the run's folder; the table is `log/metrics.csv` in it.
        """
        super().__init__(save_dir, name="log", version="", flush_logs_every_n_steps=1)

    @property
    def experiment(self) -> ExperimentWriter:
        if self._experiment is None:
            self._experiment = _Table(self.log_dir)
        assert isinstance(self._experiment, ExperimentWriter)
        return self._experiment

    def rewind(self, step: int, row: Mapping[str, Any] | None = None) -> None:
        """Drop the rows of optimiser steps from `step` (counted from 0) on, and a last row that was cut short.

        `row` is one of a step before, `step` its key for that; it is added where the table lacks it.
        """
        if isinstance(self._experiment, _Table):
            self._experiment.rewind(step)
            if row and not self._experiment.holds(row):
                values = dict(row)
                self.log_metrics(values, values.pop("step"))
                self.save()


class _Table(ExperimentWriter):
    """Writes `metrics.csv`: rows are appended; where a column is new the file is replaced as a whole."""

    def __init__(self, log_dir: str) -> None:
        super().__init__(log_dir)
        self.metrics_keys = list(self._read()[0])

    def rewind(self, step: int) -> None:
        columns, rows = self._read()
        if columns:
            self._replace(columns, [row for row in rows if (row["step"] or "").isdigit() and int(row["step"]) < step])

    def holds(self, row: Mapping[str, Any]) -> bool:
        """Whether a row of that step has those columns."""
        rows = self._read()[1]
        return any(other["step"] == str(row["step"]) and all(other.get(key) for key in row) for other in rows)

    def _check_log_dir_exists(self) -> None:
        """Lightning's removes the file of an earlier start here."""

    def _rewrite_with_new_header(self, fieldnames: list[str]) -> None:
        self._replace(fieldnames, self._read()[1])

    def _replace(self, columns: list[str], rows: list[Row]) -> None:
        with atomic_file(Path(self.metrics_file_path)) as partial, partial.open("w", newline="") as file:
            writer = csv.DictWriter(file, columns, restval="")
            writer.writeheader()
            writer.writerows(rows)

    def _read(self) -> tuple[list[str], list[Row]]:
        """Columns and whole rows; nothing where there is no file."""
        path = Path(self.metrics_file_path)
        if not path.is_file():
            return [], []
        text = path.read_text()
        whole = text[: text.rfind("\n") + 1]  # a killed process may have left half a row
        reader = csv.DictReader(whole.splitlines())
        rows = list(reader)
        return list(reader.fieldnames or []), rows
