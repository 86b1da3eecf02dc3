"""How large the networks of a sweep are and what each training took, from the `run.json` that training leaves."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from tera_mind.sweep.plan import Plan, Run

#: columns of capacity.csv
COLUMNS = (
    "run", "method", "parameters", "tile_exact", "halo_px", "global_step", "seconds", "device", "precision", "status",
)  # fmt: skip


def capacities(plan: Plan, runs: Sequence[Run]) -> list[dict[str, Any]]:
    """A line for each of the runs whose training has left a record; `seconds` from first start to end, pauses too."""
    found = []
    for run in runs:
        records = [task.folder / "run.json" for task in plan.of_run(run) if (task.folder / "run.json").is_file()]
        for path in records:
            record = json.loads(path.read_text(encoding="utf-8"))
            seconds = None
            if record.get("ended"):
                seconds = round((_time(record["ended"]) - _time(record["started"])).total_seconds())
            line = {key: record.get(key) for key in COLUMNS} | {"run": run.name, "seconds": seconds}
            found.append(line)
    return found


def capacity_csv(lines: Sequence[dict[str, Any]]) -> str:
    """Header `COLUMNS`, a line a trained network."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return stream.getvalue()


def capacity_markdown(lines: Sequence[dict[str, Any]]) -> str:
    """A line a method: weights, steps and time of each of its trainings."""
    heads = ("method", "weights", "tiles exact", "halo, px", "trainings", "steps", "seconds", "device")
    out = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    for key in dict.fromkeys((line["method"], line["parameters"]) for line in lines):
        own = [line for line in lines if (line["method"], line["parameters"]) == key]
        first = own[0]
        steps, seconds = (", ".join(str(line[name]) for line in own) for name in ("global_step", "seconds"))
        exact = "yes" if first["tile_exact"] else "no"
        cells = [key[0], f"{key[1]:,}", exact, str(first["halo_px"]), str(len(own)), steps, seconds, first["device"]]
        out.append(f"| {' | '.join(cells)} |")
    return "\n".join([*out, ""])


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text)
