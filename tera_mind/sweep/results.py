"""The table of a sweep: one line a run, read from its metrics.json; CSV, JSON and Markdown.

`sweep.json`: {"format": "sweep", "version": 1, "name", "setting", "settings": [...], "metrics": [{"metric", "stain",
"unit", "better"}], "runs": [{"run", "settings": {...}, "seed", "status", "values": [{"metric", "stain", "value", "low",
"high"}]}]}; a value that is not there is null. `low` and `high` are the evaluation's own 95 % interval over places.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tera_mind.errors import FormatError
from tera_mind.formats.atomic import atomic_file
from tera_mind.sweep.definition import written
from tera_mind.sweep.plan import Plan
from tera_mind.sweep.state import state_of

METHOD = "generated"
#: a score and its interval
ENDS = ("value", "low", "high")


def collect(plan: Plan) -> dict[str, Any]:
    """The table as plain data; `FormatError` where a metrics.json that should be whole is not."""
    table = plan.sweep.table
    runs, units = [], dict[tuple[str, str], tuple[str, str]]()
    for run in plan.runs:
        task = plan.task(run, table.stage)
        state = state_of(task)
        rows = read_rows(task.makes) if state == "done" else {}
        values = []
        for key in table.metrics:
            row = rows.get((METHOD, *key), {})
            if row:
                units[key] = (row.get("unit") or "", row.get("better") or "none")
            values.append({"metric": key[0], "stain": key[1], **{end: row.get(end) for end in ENDS}})
        record = {"run": run.name, "settings": dict(run.settings), "seed": run.seed, "status": state, "values": values}
        runs.append(record)
    metrics = [
        {"metric": key[0], "stain": key[1], **dict(zip(("unit", "better"), units.get(key, ("", "none")), strict=True))}
        for key in table.metrics
    ]
    return {
        "format": "sweep",
        "version": 1,
        "name": plan.sweep.name,
        "setting": table.setting,
        "settings": list(plan.sweep.settings),
        "metrics": metrics,
        "runs": runs,
    }


def read_rows(path: Path) -> dict[tuple[str, str, str], dict[str, Any]]:
    """(method, metric, stain) -> row of a metrics.json, or of that in a folder; value, low and high finite or None."""
    file = path / "metrics.json" if path.is_dir() else path
    try:
        table = json.loads(file.read_text(encoding="utf-8"))["table"]
        return {
            (row["method"], row["metric"], row.get("stain") or ""): row | {end: _finite(row.get(end)) for end in ENDS}
            for row in table
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FormatError(f"{file} is no metrics.json of `tera-mind evaluate`: {error}") from error


def _finite(value: Any) -> float | None:
    """A number, or None for what is none: NaN and infinity are no JSON and no score."""
    return value if isinstance(value, int | float) and math.isfinite(value) else None


def write_tables(table: Mapping[str, Any], out: Path) -> list[Path]:
    """Write sweep.csv, sweep.md and, last, sweep.json; their paths."""
    texts = {"sweep.csv": as_csv(table), "sweep.md": as_markdown(table), "sweep.json": json.dumps(table, indent=1)}
    for name, text in texts.items():
        with atomic_file(out / name) as partial:
            partial.write_text(text, encoding="utf-8")
    return [out / name for name in texts]


def lines_csv(columns: Sequence[str], lines: Sequence[Mapping[str, Any]]) -> str:
    """A header and a line each; None is empty."""
    file = io.StringIO()
    writer = csv.DictWriter(file, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return file.getvalue()


def as_csv(table: Mapping[str, Any]) -> str:
    """A line a run: settings, seed, status, then value, low and high of each metric."""
    names = [column(metric) for metric in table["metrics"]]
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    heads = [name if end == "value" else f"{name}/{end}" for name in names for end in ENDS]
    writer.writerow(["run", *table["settings"], "seed", "status", *heads])
    for run in table["runs"]:
        settings = [written(run["settings"][name]) for name in table["settings"]]
        found = ["" if value[end] is None else value[end] for value in run["values"] for end in ENDS]
        writer.writerow([run["run"], *settings, run["seed"], run["status"], *found])
    return file.getvalue()


def as_markdown(table: Mapping[str, Any]) -> str:
    """A line a setting: mean over its seeds, with lowest and highest where there are several."""
    names = [column(metric) for metric in table["metrics"]]
    heads = [*table["settings"], "seeds", *names]
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    for settings, runs in by_point(table):
        done = [run for run in runs if run["status"] == "done"]
        cells = [*(written(settings[name]) for name in table["settings"]), f"{len(done)} of {len(runs)}"]
        cells += [_cell([run["values"][index]["value"] for run in done]) for index in range(len(names))]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def _cell(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return ""
    mean = f"{np.mean(known):.4g}"
    return mean if len(known) == 1 else f"{mean} ({min(known):.4g} to {max(known):.4g})"


def by_point(table: Mapping[str, Any]) -> list[tuple[dict[str, Any], list[dict[str, Any]]]]:
    """The runs by their settings, in the file's order."""
    found: dict[str, tuple[dict[str, Any], list[dict[str, Any]]]] = {}
    for run in table["runs"]:
        found.setdefault(json.dumps(run["settings"]), (run["settings"], []))[1].append(run)
    return list(found.values())


def column(metric: Mapping[str, Any]) -> str:
    """`psnr/DAPI`, as during training; the metric alone where there is no stain."""
    return f"{metric['metric']}/{metric['stain']}".rstrip("/")
