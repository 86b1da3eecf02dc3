"""What a sweep adds where its file asks for tests: `tera-mind compare`, controls, capacities, a W&B report."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from tera_mind.formats.atomic import atomic_file
from tera_mind.sweep.capacity import COLUMNS as CAPACITY
from tera_mind.sweep.capacity import capacities, capacity_markdown, declared_budget
from tera_mind.sweep.controls import COLUMNS as CONTROLS
from tera_mind.sweep.controls import controls, controls_markdown
from tera_mind.sweep.definition import written
from tera_mind.sweep.plan import Plan, Run, point_name
from tera_mind.sweep.results import lines_csv
from tera_mind.sweep.state import state_of

FOLDER = "comparison"
#: project of the recipes' loggers
PROJECT = "tera-mind"
#: methods of an evaluation that no training was needed for: beside the trained ones, they show what is easily reached
UNTRAINED = ("ridge", "mean_image")


def write_comparisons(plan: Plan) -> list[Path]:
    """A folder for each combination of the other settings (`comparison`, or `comparison/SETTINGS`); those written.

    Each holds what `tera-mind compare` writes, controls.csv, controls.md, capacity.csv, capacity.md and
    wandb_report.json. Values whose runs are not done are named there; a combination with fewer than two that are is
    left out. Without the reference the first value that is done takes its place, and the page says so.
    """
    parts: dict[str, list[Run]] = {}
    for run in plan.runs:
        parts.setdefault(point_name({name: run.settings[name] for name in _others(plan)}), []).append(run)
    made = []
    for name, runs in parts.items():
        done = [run for run in runs if _obstacle(plan, run) is None]
        count = len({_value(plan, run) for run in done})
        if count < 2:
            which = f" of {name}" if name else ""
            print(f"no comparison{which}: it needs at least two that are done, there are {count}")
            continue
        made.append(_comparison(plan, runs, done, plan.out / FOLDER / name))
    return made


def _comparison(plan: Plan, runs: Sequence[Run], done: Sequence[Run], out: Path) -> Path:
    from tera_mind.cli.compare import compare
    from tera_mind.report.comparison.places import Aligned
    from tera_mind.report.comparison.runs import Entry, load_entries
    from tera_mind.report.comparison.wandb_report import definition_text, report_definition
    from tera_mind.report.words import method_label

    groups: dict[str, list[Run]] = {}
    for run in done:
        groups.setdefault(_value(plan, run), []).append(run)
    wanted = written(plan.sweep.table.compare)
    reference = wanted if wanted in groups else next(iter(groups))
    stage = plan.sweep.table.stage
    paths = {
        name: [str(plan.task(run, stage).makes) for run in groups[name]]
        for name in sorted(groups, key=lambda name: name != reference)
    }
    entries = load_entries([], paths)
    first = entries[0].runs[0]
    easy = [Entry(method_label(method), (first,), method) for method in UNTRAINED if method in first.methods]
    entries = [*(e for e in entries if e.competes), *easy, *(e for e in entries if not e.competes)]
    notes = _notes(plan, runs, groups, reference)
    _, drawings = compare(entries, reference, Aligned(entries), out, notes=notes)
    lines = capacities(plan, runs)
    budget = declared_budget(plan.sweep)
    capacity = (f"Declared budget of each training: {budget}.\n\n" if budget else "") + capacity_markdown(lines)
    treated = controls(plan, done)
    report = json.loads((out / "comparison.json").read_text(encoding="utf-8"))
    definition = report_definition(report, PROJECT, out.name, [drawing.name for drawing in drawings], capacity)
    texts = {
        "controls.csv": lines_csv(CONTROLS, treated),
        "controls.md": controls_markdown(treated),
        "capacity.csv": lines_csv(CAPACITY, lines),
        "capacity.md": capacity,
        "wandb_report.json": definition_text(definition),
    }
    for name, text in texts.items():
        with atomic_file(out / name) as partial:
            partial.write_text(text, encoding="utf-8")
    print(texts["controls.md"] + "\n" + capacity, end="")
    paths |= {entry.name: [f"{first.path}:{entry.method}"] for entry in easy}
    words = [word for name, found in paths.items() for word in ("--group", f"{name}={','.join(found)}")]
    words += ["--reference", reference, "--out", str(out)]
    print(f"again, and into W&B: tera-mind compare {shlex.join(words)} --wandb {PROJECT}")
    return out


def _notes(plan: Plan, runs: Sequence[Run], groups: Mapping[str, Sequence[Run]], reference: str) -> list[str]:
    """What a reader must know of the runs: a sentence each."""
    asked: dict[str, list[Run]] = {}
    for run in runs:
        asked.setdefault(_value(plan, run), []).append(run)
    notes = []
    absent = [f"{name} ({_obstacle(plan, own[0])})" for name, own in asked.items() if name not in groups]
    if absent:
        notes.append(f"Not compared, because not done: {', '.join(absent)}.")
    fewer = [f"{name} ({len(g)} of {len(asked[name])})" for name, g in groups.items() if len(g) < len(asked[name])]
    if fewer:
        notes.append(f"Not all seeds are done: {', '.join(fewer)}.")
    if reference != (wanted := written(plan.sweep.table.compare)):
        notes.append(f"Tested against {reference}, in place of {wanted}, which is not done.")
    if any(len(own) == 1 for own in groups.values()):
        notes.append(
            "Where a method was trained once, intervals and tests are over places of one training: a best score may "
            "change with another seed."
        )
    return notes


def _obstacle(plan: Plan, run: Run) -> str | None:
    """The first stage of a run that keeps it out of the comparison, and its state; None where it is done."""
    if state_of(plan.task(run, plan.sweep.table.stage)) == "done":
        return None
    states = ((task.stage.name, state_of(task)) for task in plan.of_run(run))
    return next(f"{name} {state}" for name, state in states if state != "done")


def _value(plan: Plan, run: Run) -> str:
    return written(run.settings[plan.sweep.table.setting])


def _others(plan: Plan) -> list[str]:
    """Settings besides the table's that take several values at one value of it, so that they split the comparison."""
    setting, seen = plan.sweep.table.setting, dict[tuple[str, str], set[str]]()
    for point in plan.sweep.points:
        for name in plan.sweep.settings:
            seen.setdefault((name, written(point[setting])), set()).add(written(point[name]))
    return [n for n in plan.sweep.settings if n != setting and any(len(v) > 1 for (k, _), v in seen.items() if k == n)]
