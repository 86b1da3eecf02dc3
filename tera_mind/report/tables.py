"""The report's tables, computed from `metrics.json`: what the template prints, nothing else."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tera_mind.report.glossary import ENSEMBLE, GROUPS, METRICS, NULLS, QUESTIONS, SEAMS, metric_words
from tera_mind.report.inputs import Evaluation
from tera_mind.report.words import ARROWS, DASH, METHODS, REFERENCES, method_label, number

#: groups of at most so many rows are shown unfolded
FEW_ROWS = 8
#: of the paired comparisons, the one that is shown unfolded
FIRST_CONTROL = "shuffled"


@dataclass(frozen=True)
class Cell:
    """One number with its interval; `why` says why there is none, `chance` what the same figure is without a seam."""

    value: str
    interval: str
    best: bool
    why: str
    chance: str = ""


@dataclass(frozen=True)
class Row:
    label: str
    stain: str
    unit: str
    arrow: str
    arrow_words: str
    cells: list[Cell]


@dataclass(frozen=True)
class Group:
    """Rows that answer one question, for the methods (`columns`) that have one; `few`: shown unfolded."""

    name: str
    question: str
    columns: list[str]
    competes: list[bool]
    rows: list[Row]
    #: scores that no method has, with the reason
    lacking: list[str]

    @property
    def few(self) -> bool:
        return len(self.rows) <= FEW_ROWS


@dataclass(frozen=True)
class Pair:
    """Generated against one control; interval and middle in percent of the row's bar, 50 is no difference."""

    label: str
    stain: str
    unit: str
    difference: str
    interval: str
    p: str
    verdict: str  # "better", "worse", "undecided" or "none"
    left: float
    middle: float
    right: float


@dataclass(frozen=True)
class Pairs:
    """All differences against one control, and how many are decided."""

    control: str
    rows: list[Pair]
    first: bool

    def count(self, verdict: str) -> int:
        return sum(row.verdict == verdict for row in self.rows)


def unit_words(unit: str | None) -> str:
    return (unit or "").replace("um^2", "µm²").replace("um2", "µm²").replace("um", "µm")


def interval_words(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f"{number(low)} to {number(high)}"


def columns(evaluation: Evaluation) -> list[str]:
    """Methods that have a row, in the report's order."""
    found = {row["method"] for row in evaluation.table}
    return [m for m in METHODS if m in found] + sorted(found - METHODS.keys())


def rows_of(evaluation: Evaluation, metric: str, stain: str) -> dict[str, dict[str, Any]]:
    """The table's rows of one metric and stain by method, in the report's order."""
    found = {r["method"]: r for r in evaluation.table if r["metric"] == metric and (r.get("stain") or "") == stain}
    return {m: found[m] for m in columns(evaluation) if m in found}


def cost(value: float, better: str) -> float:
    """How far a value is from the best it could be, for ordering values of one metric; `better` is not "none"."""
    return {"higher": -value, "lower": value, "one": abs(value - 1)}[better]


def _best(rows: Mapping[str, Mapping[str, Any]], better: str) -> set[str]:
    """Methods whose printed value is the best; references do not compete."""
    values = {m: row["value"] for m, row in rows.items() if m not in REFERENCES and row["value"] is not None}
    if better == "none" or len(values) < 2:
        return set()
    costs = {m: cost(v, better) for m, v in values.items()}
    least = min(costs.values())
    return {m for m, c in costs.items() if math.isclose(c, least, rel_tol=1e-9, abs_tol=1e-12)}


def score_groups(evaluation: Evaluation) -> list[Group]:
    """Groups with their rows. Nulls of seam figures have no row: they stand in the cells of what they judge."""
    by_row: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
    nulls: dict[tuple[str, str, str], dict[str, Any]] = {}
    for row in evaluation.table:
        stain = row.get("stain") or ""
        if row["metric"] in NULLS:
            nulls[NULLS[row["metric"]], stain, row["method"]] = row
        else:
            by_row.setdefault((row["metric"], stain), {})[row["method"]] = row
    groups: dict[str, list[tuple[str, str]]] = {group: [] for group in GROUPS}
    for name in sorted(by_row, key=_order(evaluation)):
        groups[metric_words(name[0]).group].append(name)
    found = []
    for group, names in groups.items():
        known = [name for name in names if any(row["value"] is not None for row in by_row[name].values())]
        lacking = _lacking({name: by_row[name] for name in names if name not in known})
        # a method without any figure of the group needs no column in it
        used = [m for m in columns(evaluation) if any(m in by_row[name] for name in known)]
        rows = [_row(metric, stain, by_row[metric, stain], nulls, used) for metric, stain in known]
        if names:
            heads = [method_label(m) for m in used]
            found.append(Group(group, QUESTIONS[group], heads, [m not in REFERENCES for m in used], rows, lacking))
    return found


def _lacking(scores: Mapping[tuple[str, str], Mapping[str, Mapping[str, Any]]]) -> list[str]:
    """Sentences in place of rows of dashes, one a reason."""
    reasons: dict[str, dict[str, list[str]]] = {}
    for (metric, stain), rows in scores.items():
        why = next((str(row["reason"]) for row in rows.values() if row.get("reason")), "could not be computed")
        reasons.setdefault(why, {}).setdefault(metric_words(metric).label, []).append(stain)
    return [
        "; ".join(f"{label} ({', '.join(s)})" if any(s) else label for label, s in labels.items()) + f": {why}."
        for why, labels in reasons.items()
    ]


def _order(evaluation: Evaluation) -> Any:
    """Metrics as in the glossary, then the others; stains as the evaluation lists them."""
    order = {metric: place for place, metric in enumerate(METRICS)}
    stains = {stain: place for place, stain in enumerate(evaluation.settings.get("stains") or [])}
    return lambda name: (order.get(name[0], len(order)), stains.get(name[1], len(stains)))


def _row(
    metric: str,
    stain: str,
    rows: Mapping[str, dict[str, Any]],
    nulls: Mapping[tuple[str, str, str], dict[str, Any]],
    methods: Sequence[str],
) -> Row:
    first = next(iter(rows.values()))
    better = str(first.get("better") or "none")
    words = metric_words(metric)
    # a picture that was not put together has no seam to win with
    best = set() if words.group in {SEAMS, ENSEMBLE} else _best(rows, better)
    cells = []
    for method in methods:
        row, null = rows.get(method), nulls.get((metric, stain, method), {})
        if row is None:
            cells.append(Cell("", "", best=False, why="not measured for this method"))
            continue
        why = row.get("reason") or ("could not be computed" if row["value"] is None else "")
        interval = interval_words(row.get("low"), row.get("high"))
        chance = interval_words(null.get("low"), null.get("high")) if row["value"] is not None else ""
        chance = chance.replace(" to ", DASH)
        cells.append(Cell(number(row["value"]), interval, method in best, why, chance))
    return Row(words.label, stain, unit_words(first.get("unit")), *ARROWS[better], cells)


def pair_verdict(row: Mapping[str, Any]) -> str:
    """Where the interval of a paired difference lies: "better", "worse", "undecided", or "none" if unknown."""
    low, high = row.get("low"), row.get("high")
    if row.get("difference") is None or low is None or high is None:
        return "none"
    return "better" if low > 0 else "worse" if high < 0 else "undecided"


def paired_table(evaluation: Evaluation) -> list[Pairs]:
    """Controls with their rows. Bars of one metric and stain share a scale, so controls can be compared."""
    scale: dict[tuple[str, str], float] = {}
    for row in evaluation.paired:
        ends = [abs(row[key]) for key in ("difference", "low", "high") if row.get(key) is not None]
        name = (row["metric"], row.get("stain") or "")
        scale[name] = max([scale.get(name, 0.0), *ends])
    units = {row["metric"]: unit_words(row.get("unit")) for row in evaluation.table}
    groups: dict[str, list[Pair]] = {}
    order_of = _order(evaluation)
    for row in sorted(evaluation.paired, key=lambda r: order_of((r["metric"], r.get("stain") or ""))):
        name = (row["metric"], row.get("stain") or "")
        half = scale[name] or 1.0
        left, middle, right = (50 + 48 * (row.get(key) or 0.0) / half for key in ("low", "difference", "high"))
        groups.setdefault(row["control"], []).append(
            Pair(
                metric_words(row["metric"]).label,
                name[1],
                units.get(row["metric"], ""),
                number(row.get("difference")),
                interval_words(row.get("low"), row.get("high")),
                p_words(row.get("p"), int(evaluation.settings.get("bootstrap") or 0)),
                pair_verdict(row),
                round(left, 2),
                round(middle, 2),
                round(right, 2),
            )
        )
    order = [*METHODS, *groups]
    controls = sorted(groups, key=order.index)
    first = FIRST_CONTROL if FIRST_CONTROL in groups else next(iter(controls), "")
    return [Pairs(method_label(c), groups[c], c == first) for c in controls]


def p_words(p: float | None, resamples: int) -> str:
    """A p-value; one at the end of what so many resamples can tell is given as such."""
    if p is None:
        return DASH
    least = 2 / (resamples + 1) if resamples else 0.0
    return f"≤ {number(least)}" if least and p <= 1.01 * least else number(p)


def acceptance(evaluation: Evaluation) -> list[dict[str, Any]]:
    """The targets as printable rows, those not met first; a metric's name gives way to its label."""
    rows = []
    for r in sorted(evaluation.acceptance, key=lambda r: bool(r["passed"])):
        metric, _, rest = str(r["name"]).partition(" ")
        name = f"{METRICS[metric].label} {rest}".strip() if metric in METRICS else str(r["name"])
        rows.append(
            {"name": name, "value": _plain(r["value"]), "target": _plain(r["target"]), "passed": bool(r["passed"])}
        )
    return rows


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


def excluded_words(excluded: Mapping[str, Any]) -> str:
    """What was counted and what was left out, a sentence for each kind of square."""
    sentences = []
    for key, count in excluded.items():
        left_out = excluded.get(f"{key}_without_transcripts")
        if key.endswith("_without_transcripts") and key.removesuffix("_without_transcripts") in excluded:
            continue
        without = "none without transcripts"
        if left_out:
            without = f"{_count(left_out)} more left out, because they hold no transcript"
        more = "" if left_out is None else f", {without}"
        sentences.append(f"{_count(count)} {key.replace('_', ' ')} counted{more}.")
    return " ".join(sentences)


def _count(value: Any) -> str:
    return f"{value:,}".replace(",", " ") if isinstance(value, int) else str(value)


def glossary(evaluation: Evaluation) -> list[tuple[str, list[dict[str, str]]]]:
    """What each metric that the tables use says, is blind to and comes from, by group."""
    used = {row["metric"] for row in evaluation.table} | {row["metric"] for row in evaluation.paired}
    entries = {name: words for name, words in METRICS.items() if name in used}
    groups = {group: [words for words in entries.values() if words.group == group] for group in GROUPS}
    return [
        (group, [{"name": w.label, "says": w.sentence, "blind": w.blind, "source": w.source} for w in found])
        for group, found in groups.items()
        if found
    ]


def legend(methods: Sequence[str]) -> list[tuple[str, str]]:
    return [METHODS[m] for m in methods if m in METHODS]
