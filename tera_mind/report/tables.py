"""The report's tables and its verdict, computed from `metrics.json`: what the template prints, nothing else."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tera_mind.report.inputs import Evaluation
from tera_mind.report.words import (
    ARROWS,
    DASH,
    GROUPS,
    METHODS,
    METRICS,
    REFERENCES,
    method_label,
    metric_words,
    number,
)


@dataclass(frozen=True)
class Cell:
    """One number with its interval; `why` says why there is none."""

    value: str
    interval: str
    best: bool
    why: str


@dataclass(frozen=True)
class Row:
    label: str
    stain: str
    unit: str
    arrow: str
    arrow_words: str
    cells: list[Cell]


@dataclass(frozen=True)
class Pair:
    """Generated against one control; interval and middle in percent of the row's bar, 50 is no difference."""

    label: str
    stain: str
    unit: str
    difference: str
    interval: str
    verdict: str  # "better", "worse", "undecided" or "none"
    left: float
    middle: float
    right: float


@dataclass(frozen=True)
class Verdict:
    """`tone` is "good" (all targets met), "mixed", "bad" (none met) or "none" (no targets)."""

    sentence: str
    paired: str
    tone: str


def unit_words(unit: str | None) -> str:
    return (unit or "").replace("um^2", "µm²").replace("um2", "µm²").replace("um", "µm")


def _interval(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f"{number(low)} to {number(high)}"


def columns(evaluation: Evaluation) -> list[str]:
    """Methods that have a row, in the report's order."""
    found = {row["method"] for row in evaluation.table}
    return [m for m in METHODS if m in found] + sorted(found - METHODS.keys())


def _best(rows: Mapping[str, Mapping[str, Any]], better: str) -> set[str]:
    """Methods whose printed value is the best; references do not compete."""
    values = {m: row["value"] for m, row in rows.items() if m not in REFERENCES and row["value"] is not None}
    if better == "none" or len(values) < 2:
        return set()
    cost = {m: {"higher": -v, "lower": v, "one": abs(v - 1)}[better] for m, v in values.items()}
    least = min(cost.values())
    return {m for m, c in cost.items() if math.isclose(c, least, rel_tol=1e-9, abs_tol=1e-12)}


def score_table(evaluation: Evaluation) -> list[tuple[str, list[Row]]]:
    """Groups of rows, a metric and stain each, methods as cells in the order of `columns`."""
    by_row: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
    for row in evaluation.table:
        by_row.setdefault((row["metric"], row.get("stain") or ""), {})[row["method"]] = row
    groups: dict[str, list[Row]] = {group: [] for group in GROUPS}
    for (metric, stain), rows in by_row.items():
        first = next(iter(rows.values()))
        better = first.get("better") if first.get("better") in ARROWS else "none"
        best = _best(rows, str(better))
        cells = []
        for method in columns(evaluation):
            found = rows.get(method)
            if found is None:
                cells.append(Cell("", "", best=False, why="not measured for this method"))
                continue
            why = found.get("reason") or ("could not be computed" if found["value"] is None else "")
            interval = _interval(found.get("low"), found.get("high"))
            cells.append(Cell(number(found["value"]), interval, method in best, why))
        words = metric_words(metric)
        groups[words.group].append(Row(words.label, stain, unit_words(first.get("unit")), *ARROWS[str(better)], cells))
    return [(group, rows) for group, rows in groups.items() if rows]


def _pair_verdict(row: Mapping[str, Any]) -> str:
    low, high = row.get("low"), row.get("high")
    if row.get("difference") is None or low is None or high is None:
        return "none"
    return "better" if low > 0 else "worse" if high < 0 else "undecided"


def paired_table(evaluation: Evaluation) -> list[tuple[str, list[Pair]]]:
    """Controls with their rows. Bars of one metric and stain share a scale, so controls can be compared."""
    scale: dict[tuple[str, str], float] = {}
    for row in evaluation.paired:
        ends = [abs(row[key]) for key in ("difference", "low", "high") if row.get(key) is not None]
        name = (row["metric"], row.get("stain") or "")
        scale[name] = max([scale.get(name, 0.0), *ends])
    units = {row["metric"]: unit_words(row.get("unit")) for row in evaluation.table}
    groups: dict[str, list[Pair]] = {}
    for row in evaluation.paired:
        name = (row["metric"], row.get("stain") or "")
        half = scale[name] or 1.0
        left, middle, right = (50 + 48 * (row.get(key) or 0.0) / half for key in ("low", "difference", "high"))
        groups.setdefault(row["control"], []).append(
            Pair(
                metric_words(row["metric"]).label,
                name[1],
                units.get(row["metric"], ""),
                number(row.get("difference")),
                _interval(row.get("low"), row.get("high")),
                _pair_verdict(row),
                round(left, 2),
                round(middle, 2),
                round(right, 2),
            )
        )
    order = [*METHODS, *groups]
    return [(method_label(c), groups[c]) for c in sorted(groups, key=order.index)]


def verdict(evaluation: Evaluation) -> Verdict:
    """One sentence from the acceptance rows, one from the paired rows against shuffled genes."""
    total, met = len(evaluation.acceptance), sum(bool(row["passed"]) for row in evaluation.acceptance)
    if total:
        failed = "" if met == total else "; what falls short is listed below"
        sentence = f"{met} of {total} acceptance targets are met{failed}."
        tone = "good" if met == total else "mixed" if met else "bad"
    else:
        sentence, tone = "No acceptance targets were evaluated.", "none"
    rows = [row for row in evaluation.paired if row["control"] == "shuffled"]
    if not rows:
        return Verdict(sentence, "The control with shuffled genes was not evaluated.", tone)
    marks = [_pair_verdict(row) for row in rows]
    paired = (
        f"Against the same model with shuffled genes, the generated tissue is better in {marks.count('better')} of "
        f"{len(rows)} paired scores, worse in {marks.count('worse')}, and undecided in "
        f"{len(rows) - marks.count('better') - marks.count('worse')} (95 % intervals)."
    )
    return Verdict(sentence, paired, tone)


def acceptance(evaluation: Evaluation) -> list[dict[str, Any]]:
    return [
        {"name": r["name"], "value": _plain(r["value"]), "target": _plain(r["target"]), "passed": bool(r["passed"])}
        for r in evaluation.acceptance
    ]


def _plain(value: Any) -> str:
    if value is None:
        return DASH
    if isinstance(value, bool | str):
        return str(value)
    if isinstance(value, int | float):
        return number(value)
    return json.dumps(value, ensure_ascii=False, default=str)


def settings_rows(settings: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Settings as printable pairs; nested ones get dotted names."""
    rows: list[tuple[str, str]] = []
    for key, value in settings.items():
        if isinstance(value, Mapping):
            rows += [(f"{key}.{name}", text) for name, text in settings_rows(value)]
        else:
            rows.append((str(key), str(value) if isinstance(value, int | float | str) else _plain(value)))
    return rows


def glossary(evaluation: Evaluation) -> list[tuple[str, str]]:
    """A sentence for each metric that the tables use, in the report's order."""
    used = {row["metric"] for row in evaluation.table} | {row["metric"] for row in evaluation.paired}
    return [(words.label, words.sentence) for name, words in METRICS.items() if name in used]


def legend(methods: Sequence[str]) -> list[tuple[str, str]]:
    return [METHODS[m] for m in methods if m in METHODS]
