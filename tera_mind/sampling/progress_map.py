"""A volume's progress as a map, section groups across and their bands down, in the terminal and as a picture."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from tera_mind.formats.atomic import atomic_file
from tera_mind.sampling.ledger import Ledger, Task
from tera_mind.sampling.progress import Snapshot

#: state -> (mark in the terminal, colour in the picture)
MARKS = {
    "done": ("#", "#4c956c"),
    "running": ("+", "#f2a541"),
    "silent": ("?", "#b08bbb"),
    "failed": ("x", "#c8553d"),
    "to do": (".", "#e6e6e6"),
}
#: lines of the terminal's map
LINES = 24


def states(ledger: Ledger, state: Snapshot) -> Iterator[tuple[Task, str, float]]:
    """Every task with its state, a key of `MARKS`, and the share of it that is done."""
    running = {each.task.name: each for each in state.running}
    for task in ledger.tasks:
        if task.name in state.finished:
            yield task, "done", 1.0
        elif task.name in state.failed:
            yield task, "failed", 0.0
        elif task.name in running:
            each = running[task.name]
            yield task, "silent" if each.lease.expired else "running", each.share
        else:
            yield task, "to do", 0.0


def text_map(ledger: Ledger, state: Snapshot) -> str:
    """A column a section group, a line a stretch of patch rows, and a last line for the pyramids' planes."""
    rows = ledger.plan.region.height // ledger.plan.patch_px
    lines = min(LINES, rows)
    canvas = [[MARKS["to do"][0]] * len(ledger.plan.groups) for _ in range(lines)]
    pyramids = []
    for task, name, _ in states(ledger, state):
        if task.unit is None:
            pyramids.append(MARKS[name][0])
            continue
        first, last = task.unit.rows
        for line in range(lines):
            if first <= (line + 0.5) * rows / lines < last:
                canvas[line][task.unit.group] = MARKS[name][0]
    legend = "  ".join(f"{mark} {name}" for name, (mark, _) in MARKS.items())
    body = "\n".join("  " + "".join(line) for line in canvas)
    return f"section groups across, rows of patches down ({legend})\n{body}\npyramids of planes\n  {''.join(pyramids)}"


def write_figure(ledger: Ledger, state: Snapshot, path: Path, title: str) -> None:
    """The same as a picture: a column a section group, a box a band, filled as far as it is done."""
    plan = ledger.plan
    figure = Figure(figsize=(max(4.0, min(16.0, 1.5 + 0.35 * len(plan.groups))), 6.0), layout="constrained")
    axes, planes = figure.subplots(2, 1, height_ratios=(8, 1))
    pyramids = []
    for task, name, share in states(ledger, state):
        colour = MARKS[name][1]
        if task.unit is None:
            pyramids.append(colour)
            continue
        box = plan.box(task.unit)
        corner = (task.unit.group - 0.45, box.y0)
        axes.add_patch(Rectangle(corner, 0.9, box.height, facecolor=MARKS["to do"][1], edgecolor="none"))
        full = box.height * (share if name == "running" else 1.0)
        axes.add_patch(Rectangle(corner, 0.9, full, facecolor=colour, edgecolor="none"))
        axes.add_patch(Rectangle(corner, 0.9, box.height, facecolor="none", edgecolor="white", linewidth=0.6))
    axes.set_xlim(-0.6, len(plan.groups) - 0.4)
    axes.set_ylim(plan.region.y1, plan.region.y0)
    step = max(1, len(plan.groups) // 12)
    names = [_sections(group.image) for group in plan.groups]
    axes.set_xticks(range(0, len(names), step), names[::step], fontsize=8)
    axes.set_xlabel("sections of a group")
    axes.set_ylabel("row (px of the brain)")
    axes.set_title(title, fontsize=10, loc="left")
    axes.legend(
        handles=[Patch(color=colour, label=name) for name, (_, colour) in MARKS.items()],
        loc="upper left",
        bbox_to_anchor=(1.0, 1.0),
        frameon=False,
        fontsize=8,
    )
    for number, colour in enumerate(pyramids):
        planes.add_patch(Rectangle((number + 0.05, 0.0), 0.9, 1.0, facecolor=colour, edgecolor="none"))
    planes.set_xlim(0, max(1, len(pyramids)))
    planes.set_ylim(0, 1)
    planes.set_yticks([])
    planes.set_xlabel("pyramid of a plane (section, then stain)")
    for each in (axes, planes):
        each.spines[:].set_visible(False)
    with atomic_file(path) as partial, partial.open("wb") as file:
        figure.savefig(file, format="png", dpi=120)


def _sections(numbers: tuple[int, ...]) -> str:
    return str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]}-{numbers[-1]}"
