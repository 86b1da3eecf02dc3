"""What a sweep adds where its file asks for tests: `tera-mind compare` of its runs, capacities, a W&B report."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path

from tera_mind.formats.atomic import atomic_file
from tera_mind.sweep.capacity import capacities, capacity_csv, capacity_markdown
from tera_mind.sweep.definition import written
from tera_mind.sweep.plan import Plan, Run, point_name
from tera_mind.sweep.state import state_of

FOLDER = "comparison"
#: project of the recipes' loggers
PROJECT = "tera-mind"


def write_comparisons(plan: Plan) -> list[Path]:
    """A folder for each combination of the other settings (`comparison`, or `comparison/SETTINGS`); those written.

    Each holds what `tera-mind compare` writes, capacity.csv, capacity.md and wandb_report.json. Runs that are not done
    are left out; so is a combination that lacks the reference or has nothing beside it.
    """
    table, made = plan.sweep.table, []
    done = [run for run in plan.runs if state_of(plan.task(run, table.stage)) == "done"]
    parts: dict[str, list[Run]] = {}
    for run in done:
        parts.setdefault(point_name({name: run.settings[name] for name in _others(plan)}), []).append(run)
    for name, runs in parts.items():
        groups: dict[str, list[Run]] = {}
        for run in runs:
            groups.setdefault(written(run.settings[table.setting]), []).append(run)
        reference = written(table.compare)
        if reference not in groups or len(groups) < 2:
            print(f"no comparison{' of ' + name if name else ''}: it needs {reference} and one more that is done")
            continue
        made.append(_comparison(plan, groups, reference, plan.out / FOLDER / name))
    return made


def _comparison(plan: Plan, groups: Mapping[str, list[Run]], reference: str, out: Path) -> Path:
    from tera_mind.cli.compare import run as compare
    from tera_mind.report.comparison.wandb_report import definition_text, report_definition

    stage = plan.sweep.table.stage
    words = []
    for name in sorted(groups, key=lambda name: name != reference):
        words += ["--group", f"{name}={','.join(str(plan.task(run, stage).makes) for run in groups[name])}"]
    words += ["--reference", reference, "--out", str(out)]
    compare(words)
    lines = capacities(plan, [run for runs in groups.values() for run in runs])
    content = json.loads((out / "comparison.json").read_text(encoding="utf-8"))
    definition = report_definition(content, PROJECT, out.name, capacity_markdown(lines))
    texts = {
        "capacity.csv": capacity_csv(lines),
        "capacity.md": capacity_markdown(lines),
        "wandb_report.json": definition_text(definition),
    }
    for name, text in texts.items():
        with atomic_file(out / name) as partial:
            partial.write_text(text, encoding="utf-8")
    print(f"again, and into W&B: tera-mind compare {shlex.join(words)} --wandb {PROJECT}")
    return out


def _others(plan: Plan) -> list[str]:
    """Settings besides the table's that take several values at one value of it, so that they split the comparison."""
    setting, seen = plan.sweep.table.setting, dict[tuple[str, str], set[str]]()
    for point in plan.sweep.points:
        for name in plan.sweep.settings:
            seen.setdefault((name, written(point[setting])), set()).add(written(point[name]))
    return [n for n in plan.sweep.settings if n != setting and any(len(v) > 1 for (k, _), v in seen.items() if k == n)]
