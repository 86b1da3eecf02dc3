"""How large the networks of a sweep are and what each training took, from the `run.json` that training leaves."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import yaml

from tera_mind.sweep.definition import Sweep, written
from tera_mind.sweep.plan import Plan, Run

#: columns of capacity.csv
COLUMNS = (
    "name", "run", "method", "parameters", "tile_exact", "halo_px", "global_step", "seconds", "processes", "device",
    "precision", "status",
)  # fmt: skip


def capacities(plan: Plan, runs: Sequence[Run]) -> list[dict[str, Any]]:
    """A line for each of the runs whose training has left a record; `seconds` from first start to end, pauses too.

    `name` is the value of the table's setting, as in the comparison; `method` what the training calls itself.
    """
    found = []
    for run in runs:
        records = [task.folder / "run.json" for task in plan.of_run(run) if (task.folder / "run.json").is_file()]
        for path in records:
            record = json.loads(path.read_text(encoding="utf-8"))
            seconds = None
            if record.get("ended"):
                seconds = round((_time(record["ended"]) - _time(record["started"])).total_seconds())
            name = written(run.settings[plan.sweep.table.setting])
            line = {key: record.get(key) for key in COLUMNS} | {"name": name, "run": run.name, "seconds": seconds}
            found.append(line)
    return found


def capacity_markdown(lines: Sequence[dict[str, Any]]) -> str:
    """A line for each value of the table's setting: weights, steps, time of its trainings; how they ended if amiss."""
    heads = ("name", "weights", "tiles exact", "halo, px", "trainings", "steps", "hours", "device")
    out = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    for key in dict.fromkeys((line["name"], line["parameters"]) for line in lines):
        own = [line for line in lines if (line["name"], line["parameters"]) == key]
        first = own[0]
        steps = ", ".join(str(line["global_step"]) + _unless(line["status"]) for line in own)
        hours = ", ".join(_hours(line["seconds"]) for line in own)
        exact = "yes" if first["tile_exact"] else "no"
        count = first["processes"] or 1
        device = first["device"] if count == 1 else f"{count} x {first['device']}"
        cells = [key[0], f"{key[1]:,}", exact, str(first["halo_px"]), str(len(own)), steps, hours, device]
        out.append(f"| {' | '.join(cells)} |")
    return "\n".join([*out, ""])


def declared_budget(sweep: Sweep) -> str:
    """What the recipe, with the sweep's overrides, lets every training spend, in words; "" where it sets no bound."""
    trainer = (yaml.safe_load(sweep.recipe.read_text(encoding="utf-8")) or {}).get("trainer") or {}
    trainer = trainer | {k.removeprefix("trainer."): v for k, v in sweep.overrides.items() if k.startswith("trainer.")}
    steps, time = trainer.get("max_steps"), trainer.get("max_time")
    bounds = [f"{steps:,} steps"] if isinstance(steps, int) and steps > 0 else []
    if time is not None:
        devices = trainer.get("devices", 1)
        bounds.append(f"{time} (days:hours:minutes:seconds) on {devices} device{'' if devices == 1 else 's'}")
    return " or ".join(bounds)


def _unless(status: str | None) -> str:
    return "" if status == "finished" else f" ({status})"


def _hours(seconds: int | None) -> str:
    return "" if seconds is None else f"{seconds / 3600:.3g}"


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text)
