"""A comparison as Markdown, as tidy CSV (a line for each entry and metric) and as JSON."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from tera_mind.report.comparison.scores import ALPHA, Comparison, Score, Test, p_words, printed
from tera_mind.report.glossary import metric_words
from tera_mind.report.tables import unit_words
from tera_mind.report.words import ARROWS, number

VERSION = 1
MARKS = {"better": "▲", "worse": "▼"}
COLUMNS = (
    *("name", "method", "metric", "stain", "value", "low", "high", "spread", "seeds", "n", "unit", "better", "rank"),
    *("reference", "difference", "difference_low", "difference_high", "p", "p_holm", "p_bootstrap", "test"),
    *("effect", "places", "cells", "reason"),
)


def how_tested(comparison: Comparison) -> str:
    """What the tests are of, in words for a caption."""
    rivals = sum(entry.competes for entry in comparison.entries) - 1
    if not comparison.tests or not rivals:
        return "Nothing was tested: a test needs two entries with scores on the same places."
    return (
        f"Tested: every entry against {comparison.reference} on the places (patches, windows, regions) that all share. "
        "Means over places: Wilcoxon's signed-rank test, two-sided, on groups of neighbouring places, because "
        "neighbours are not independent; its effect is the rank-biserial correlation, from -1 (worse in every group) "
        "to 1 (better in every group). Correlations: two-sided bootstrap over the same groups. Intervals are 95 % "
        f"bootstrap intervals over groups. {sum(t.p is not None for t in comparison.tests)} tests, p corrected "
        f"together (Holm); {MARKS['better']} better and {MARKS['worse']} worse than {comparison.reference} at "
        f"corrected p < {ALPHA:g}."
    )


def label(metric: str, better: str, unit: str) -> str:
    arrow, units = ARROWS[better][0], unit_words(unit)
    return metric_words(metric).label + (f" [{units}]" if units else "") + (f" {arrow}" if arrow else "")


def mark(comparison: Comparison, score: Score) -> str:
    """Whether the entry is better or worse than the reference, as a sign; "" where that is open."""
    test = comparison.test(score.entry, score.metric, score.stain)
    return "" if test is None or score.value is None else MARKS.get(test.verdict, "")


def markdown(comparison: Comparison, figures: Sequence[tuple[str, str]] = ()) -> str:
    """The page: what is compared, scores by group, tests, and `figures` as (path, caption)."""
    lines = ["# Comparison", ""]
    lines += _table(["name", "method", "runs"], [_entry_row(entry) for entry in comparison.entries])
    lines += [f"> {note}\n" for note in comparison.notes]
    lines += ["Value ± half of its 95 % interval; (seeds: standard deviation over seeds). **Best**, *second*.", ""]
    for group, pairs in comparison.rows():
        lines += [f"## {group}", ""]
        rows = []
        for metric, stain in pairs:
            scores = [comparison.score(name, metric, stain) for name in comparison.names]
            first = next(score for score in scores if score is not None)
            cells = ["" if score is None else _markdown_cell(comparison, score) for score in scores]
            rows.append([label(metric, first.better, first.unit), stain, *cells])
        lines += _table(["metric", "stain", *comparison.names], rows)
    if absent := comparison.without_value():
        lines += [f"No value in any entry: {', '.join(metric_words(metric).label for metric in absent)}.", ""]
    lines += ["## Tests on the same places", "", how_tested(comparison), ""]
    if comparison.tests:
        head = ["metric", "stain", "entry", "difference", "95 % interval", "p", "p, Holm", "effect", "places (groups)"]
        lines += _table([*head, ""], [_test_row(test) for test in comparison.tests])
    for path, caption in figures:
        lines += [f"![{_plain(caption)}]({path})", "", caption, ""]
    return "\n".join(lines).rstrip() + "\n"


def _entry_row(entry: Any) -> list[str]:
    return [entry.name, entry.method, ", ".join(str(run.path) for run in entry.runs)]


def _markdown_cell(comparison: Comparison, score: Score) -> str:
    value, half = printed(score.value, score.half)
    value = f"**{value}**" if score.rank == 1 else f"*{value}*" if score.rank == 2 else value
    text = value + (f" ± {half}" if half else "")
    if score.spread is not None:
        text += f" (seeds: {number(score.spread)})"
    sign = mark(comparison, score)
    return f"{text} {sign}" if sign else text


def _test_row(test: Test) -> list[str]:
    interval = "" if test.low is None else f"{number(test.low)} to {number(test.high)}"
    return [
        metric_words(test.metric).label,
        test.stain,
        test.entry,
        number(test.difference),
        interval or (test.reason or ""),
        p_words(test.p),
        p_words(test.p_holm),
        "" if test.effect is None else f"{test.effect:.2f}",
        f"{test.n:,} ({test.cells:,})",
        MARKS.get(test.verdict, ""),
    ]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(_plain(cell) for cell in line) + " |" for line in lines] + [""]


def _plain(text: str) -> str:
    """Without what would end a cell or a link's text."""
    return text.replace("|", "\\|").replace("[", "(").replace("]", ")").replace("\n", " ")


def tidy_csv(comparison: Comparison) -> str:
    """Header `COLUMNS` and a line for each entry, metric and stain; what there is not is empty."""
    methods = {entry.name: entry.method for entry in comparison.entries}
    stream = io.StringIO()
    writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for score in comparison.scores:
        row: dict[str, Any] = asdict(score) | {"name": score.entry, "method": methods[score.entry]}
        test = comparison.test(score.entry, score.metric, score.stain)
        if test is not None:
            row |= {key: getattr(test, key) for key in ("reference", "difference", "p", "p_holm", "p_bootstrap")}
            row |= {"test": test.test, "effect": test.effect, "places": test.n, "cells": test.cells}
            row |= {"difference_low": test.low, "difference_high": test.high}
            row["reason"] = row["reason"] or test.reason
        writer.writerow({key: row.get(key) for key in COLUMNS})
    return stream.getvalue()


def to_json(comparison: Comparison) -> str:
    """`comparison.json`: format "comparison", version 1, entries, reference, scores, tests, notes."""
    content = {
        "format": "comparison",
        "version": VERSION,
        "reference": comparison.reference,
        "entries": [
            {"name": entry.name, "method": entry.method, "runs": [str(run.path) for run in entry.runs]}
            for entry in comparison.entries
        ],
        "scores": [asdict(score) for score in comparison.scores],
        "tests": [asdict(test) | {"verdict": test.verdict} for test in comparison.tests],
        "notes": list(comparison.notes),
        "tested": how_tested(comparison),
    }
    return json.dumps(content, indent=1, allow_nan=False, ensure_ascii=False) + "\n"
