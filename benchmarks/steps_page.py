"""What benchmarks/steps.py makes of its rows: which settings are faithful, the page and the figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tera_mind.diffusion.steppers import StepperName
from tera_mind.metrics.table import METRICS as ALL_METRICS
from tera_mind.report.comparison.style import COLOURS, INK, LINE, MARKERS, grid_figure

#: metric -> its heading; nuclei are found in one stain
METRICS = {
    "psnr": "PSNR, dB", "pearson_blur": "r, blurred", "frechet": "Frechet distance", "seam_index": "seam index",
    "seam_step": "seam step", "nuclei_count_ratio": "nuclei found / real", "nuclei_f1": "nuclei F1",
    "nucleus_area_ks": "nuclear area, KS",
}  # fmt: skip
#: what a faithful setting must keep, in every stain
GATE = ("frechet", "seam_index", "nuclei_count_ratio", "nuclei_f1", "nucleus_area_ks", "psnr")
#: words for the solvers
WORDS = {"ddim": "DDIM", "dpm++": "DPM-Solver++(2M)", "unipc": "UniPC-2"}

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Setting:
    """A solver, its steps, and the seed of the noise."""

    stepper: StepperName
    steps: int
    seed: int = 0

    @property
    def name(self) -> str:
        return f"{self.stepper}-{self.steps}-seed{self.seed}"


def worse(metric: str, value: float, low: float, high: float) -> bool:
    """Whether a value lies beyond an interval on the worse side; a ratio may also lie nearer to one."""
    better = ALL_METRICS[metric][1]
    if better == "higher":
        return value < low
    if better == "lower":
        return value > high
    farthest = max(abs(low - 1), abs(high - 1))
    return not low <= value <= high and abs(value - 1) > farthest


def breaches(row: Row, reference: Row) -> list[str]:
    """Gated figures of a row that the reference's interval does not hold, as metric/stain."""
    keys = [key for key in reference if key.partition("/")[0] in GATE]
    found = []
    for key in keys:
        value, (_, low, high) = row.get(key, [None])[0], reference[key]
        if low is None or high is None:
            continue  # the reference itself has no interval: nothing can be said
        if value is None or worse(key.partition("/")[0], value, low, high):
            found.append(key)
    return found


def faithful(rows: Sequence[Row], reference: Setting) -> list[list[str]]:
    """For every row what keeps it from being faithful, nothing where it is; a solver's larger counts speak too.

    Only the reference's own noise is judged, and only where the gate's intervals exist at all.
    """
    base = next(row for row in rows if (row["stepper"], row["steps"], row["seed"]) == key_of(reference))
    own = [breaches(row, base) for row in rows]
    verdicts = []
    for row, found in zip(rows, own, strict=True):
        if row["seed"] != reference.seed:
            verdicts.append([*found, "other noise"])
            continue
        later = [
            f"{key} at {other['steps']} steps"
            for other, theirs in zip(rows, own, strict=True)
            if other["stepper"] == row["stepper"] and other["seed"] == row["seed"]
            and row["steps"] < other["steps"] <= reference.steps
            for key in theirs
        ]  # fmt: skip
        verdicts.append(found or later)
    return verdicts


def key_of(setting: Setting) -> tuple[str, int, int]:
    return setting.stepper, setting.steps, setting.seed


def cell(figures: Sequence[float | None] | None, digits: int) -> str:
    """value [low, high]."""
    if figures is None or figures[0] is None:
        return "-"
    value, low, high = figures
    text = f"{value:.{digits}f}"
    return text if low is None or high is None else f"{text} [{low:.{digits}f}, {high:.{digits}f}]"


def digits_of(metric: str) -> int:
    return {"psnr": 2, "frechet": 0, "psnr_difference": 2}.get(metric, 3)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def label(row: Row, solution: Setting) -> tuple[str, str]:
    """Solver and steps of a row, in words."""
    words = WORDS[row["stepper"]]
    if row["seed"]:
        words += ", other noise"
    if (row["stepper"], row["steps"]) == (solution.stepper, solution.steps):
        words += " (the solution)"
    return words, str(row["steps"])


def ordered(rows: Sequence[Row]) -> list[int]:
    """Places of the rows: by solver, then steps; other noise last."""

    def place(i: int) -> tuple[int, int, int]:
        return rows[i]["seed"], list(WORDS).index(rows[i]["stepper"]), rows[i]["steps"]

    return sorted(range(len(rows)), key=place)


def page(
    rows: Sequence[Row],
    verdicts: Sequence[list[str]],
    stains: Sequence[str],
    about: str,
    reference: Setting,
    solution: Setting,
    cheapest: Setting,
) -> str:
    """The whole page of documentation."""
    base = next(row for row in rows if (row["stepper"], row["steps"], row["seed"]) == key_of(reference))
    real = base["real"]

    def one(metric: str) -> tuple[str, list[str]]:
        """Head and cells (one a row) of a metric; both stains in one cell."""
        head = METRICS.get(metric, metric)
        cells = []
        for i in ordered(rows):
            parts = [cell(rows[i].get(f"{metric}/{stain}"), digits_of(metric)) for stain in stains]
            cells.append(" / ".join(part for part in parts if part != "-") or "-")
        parts = [cell(real.get(f"{metric}/{stain}"), digits_of(metric)) for stain in stains]
        return head, [*cells, " / ".join(part for part in parts if part != "-") or "-"]

    names = [[*label(rows[i], solution)] for i in ordered(rows)] + [["real tissue", ""]]
    verdict = ["yes" if not verdicts[i] else "no" if rows[i]["seed"] == reference.seed else "" for i in ordered(rows)]
    gate = [one(metric) for metric in ("frechet", "seam_index", "nuclei_count_ratio", "nuclei_f1", "nucleus_area_ks")]
    scores = [one(metric) for metric in ("psnr", "pearson_blur", "seam_step")]
    difference = [
        " / ".join(cell(rows[i].get(f"psnr_difference/{stain}"), 2) for stain in stains) for i in ordered(rows)
    ] + ["-"]
    away = [cell(rows[i]["distance"], 2) for i in ordered(rows)] + ["-"]
    first = table(
        ["solver", "steps", "faithful", *(head for head, _ in gate)],
        [[*names[i], [*verdict, ""][i], *(cells[i] for _, cells in gate)] for i in range(len(names))],
    )
    second = table(
        ["solver", "steps", f"rms to {solution.steps} steps, grey levels", *(head for head, _ in scores),
         f"PSNR minus that of {reference.steps} steps, dB"],
        [[*names[i], away[i], *(cells[i] for _, cells in scores), difference[i]] for i in range(len(names))],
    )  # fmt: skip
    why = [
        f"- {WORDS[rows[i]['stepper']]}, {rows[i]['steps']}: {', '.join(verdicts[i])}"
        for i in ordered(rows)
        if verdicts[i] and rows[i]["seed"] == reference.seed
    ]
    return f"""# How few steps are enough

The same noise, the same genes, the same network; only solver and number of steps differ. Tissue that no training saw:
{about}. Figures are those of `tera-mind evaluate`, with 95 % intervals of its block bootstrap; two stains are
{" / ".join(stains)}. "Other noise" is the reference again from another seed: differences of that size mean nothing.

A setting is **faithful** when Frechet distance, seam index, the three nuclear figures and PSNR lie within the interval
of {WORDS[reference.stepper]} with {reference.steps} steps, or on its better side, in both stains, and do so for every
larger number of steps of the same solver up to {reference.steps}. That is a coarse sieve: the intervals are those of a
small piece of tissue, and a trend over the steps may be real where no single setting leaves them.

**The cheapest faithful setting is {WORDS[cheapest.stepper]} with {cheapest.steps} steps**: {15 / cheapest.steps:.1f}
times less work than the published 15.

![quality against steps](img/steps.png)

{first}

What keeps the others from being faithful:

{chr(10).join(why) if why else "- none"}

{second}

rms: root mean square over both stains against {WORDS[solution.stepper]} with {solution.steps} steps from the same
noise, the nearest thing to the exact solution. A solver may come nearer to it with fewer steps and still score worse
or better against real tissue: the exact solution of an imperfect network is no more real than an inexact one.

Made by `python benchmarks/steps.py --write docs/steps.md`.
"""


def figure(rows: Sequence[Row], stains: Sequence[str], reference: Setting) -> bytes:
    """PNG: a panel a figure, a line a solver; the band is the reference's interval, the cross other noise."""
    base = next(row for row in rows if (row["stepper"], row["steps"], row["seed"]) == key_of(reference))
    panels = [f"frechet/{stain}" for stain in stains] + [f"seam_index/{stain}" for stain in stains]
    panels += [key for key in (f"nuclei_f1/{stain}" for stain in stains) if key in base]
    panels += [key for key in (f"nuclei_count_ratio/{stain}" for stain in stains) if key in base]
    panels += [key for key in (f"nucleus_area_ks/{stain}" for stain in stains) if key in base]
    panels += [f"psnr/{stains[0]}", "distance"]
    panels = [key for key in panels if any(row[key][0] is not None for row in rows)]

    def draw(drawing: Any, axes: Any) -> None:
        flat = list(axes.ravel())
        for spare in flat[len(panels) :]:
            spare.set_visible(False)
        for panel, key in zip(flat, panels, strict=False):
            _panel(panel, key, rows, base, reference)
        handles, labels = flat[0].get_legend_handles_labels()
        drawing.legend(handles, labels, loc="outside lower center", ncols=len(labels), fontsize=8)

    across = 3 if len(panels) % 3 == 0 else 4
    return grid_figure("steps", "", -(-len(panels) // across), across, draw).png


def _panel(panel: Any, key: str, rows: Sequence[Row], base: Row, reference: Setting) -> None:
    metric, _, stain = key.partition("/")
    if key != "distance" and base[key][1] is not None:
        panel.axhspan(*base[key][1:], color=LINE, alpha=0.45, lw=0)
    for place, stepper in enumerate(WORDS):
        own = sorted((r for r in rows if r["stepper"] == stepper and not r["seed"]), key=lambda r: r["steps"])
        own = [row for row in own if row["steps"] <= reference.steps and row[key][0] is not None]
        if not own:
            continue
        x = [row["steps"] * (0.97 + 0.03 * place) for row in own]
        y = [row[key][0] for row in own]
        spans = [[row[key][0] - (row[key][1] if row[key][1] is not None else row[key][0]) for row in own],
                 [(row[key][2] if row[key][2] is not None else row[key][0]) - row[key][0] for row in own]]  # fmt: skip
        spans = [[max(0.0, s) for s in side] for side in spans]
        panel.errorbar(x, y, yerr=spans, color=COLOURS[place], marker=MARKERS[place], ms=4, lw=1.3, elinewidth=0.7,
                       label=WORDS[stepper])  # fmt: skip
    if key != "distance":
        for row in rows:
            if row["seed"] and row[key][0] is not None:
                panel.plot(row["steps"], row[key][0], "x", color=INK, ms=6, label="other noise")
    counts = sorted({row["steps"] for row in rows if row["steps"] <= reference.steps})
    panel.set_xscale("log")
    panel.set_xticks(counts, [str(n) for n in counts])
    panel.minorticks_off()
    panel.set_xlabel("steps")
    title = "rms to the solution, grey levels" if key == "distance" else f"{METRICS[metric]} ({stain})"
    panel.set_title(title)
    panel.grid(axis="y")
