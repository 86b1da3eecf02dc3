"""The lines and columns of a comparison: a score for each entry and metric, ranks, tests, and how they are printed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

from tera_mind.report.comparison.runs import Entry
from tera_mind.report.glossary import GROUPS, METRICS, NULLS, metric_words
from tera_mind.report.tables import cost
from tera_mind.report.words import ARROWS, MINUS, number

#: a difference counts as found where its corrected p-value is below this
ALPHA = 0.05


class Key(NamedTuple):
    """What a score is of."""

    entry: str
    metric: str
    stain: str


class Figure(NamedTuple):
    """A figure measured on shared places; `spread` is the standard deviation over seeds."""

    value: float | None
    low: float | None
    high: float | None
    n: int
    spread: float | None


@dataclass(frozen=True)
class Score:
    """One cell of the comparison.

    low, high: 95 % bootstrap interval; spread: standard deviation over `seeds` runs, None for one; better: "higher",
    "lower", "one" or "none"; rank: 1 for the best competitor, 2 for the second, else 0; reason: why value is None.
    """

    entry: str
    metric: str
    stain: str
    value: float | None
    low: float | None
    high: float | None
    spread: float | None
    seeds: int
    n: int | None
    unit: str
    better: str
    rank: int = 0
    reason: str | None = None

    @property
    def half(self) -> float | None:
        """Half the width of the interval."""
        return None if self.low is None or self.high is None else (self.high - self.low) / 2


@dataclass(frozen=True)
class Test:
    """An entry against the reference on the same places; `difference` > 0: the entry is better.

    p: of `test` ("signed-rank" or "bootstrap"); p_holm: corrected for all tests of the comparison; effect:
    rank-biserial correlation; n: places in `cells` groups of neighbours.
    """

    entry: str
    reference: str
    metric: str
    stain: str
    difference: float | None
    low: float | None
    high: float | None
    p: float | None
    p_holm: float | None
    p_bootstrap: float | None
    test: str
    effect: float | None
    n: int
    cells: int
    reason: str | None = None

    @property
    def verdict(self) -> str:
        """What was found: "better", "worse", "undecided", or "none" where there is no test."""
        if self.p_holm is None or self.difference is None:
            return "none"
        return "undecided" if self.p_holm >= ALPHA else "better" if self.difference > 0 else "worse"


@dataclass(frozen=True)
class Comparison:
    """All that is printed and drawn. `notes`: what a reader must know, a sentence each."""

    entries: tuple[Entry, ...]
    reference: str
    scores: tuple[Score, ...]
    tests: tuple[Test, ...]
    notes: tuple[str, ...]

    @property
    def names(self) -> list[str]:
        return [entry.name for entry in self.entries]

    def score(self, entry: str, metric: str, stain: str) -> Score | None:
        return self._scores.get(Key(entry, metric, stain))

    def test(self, entry: str, metric: str, stain: str) -> Test | None:
        return self._tests.get(Key(entry, metric, stain))

    def rows(self) -> list[tuple[str, list[tuple[str, str]]]]:
        """(group, its (metric, stain) pairs with a value) in the order of tables; chance levels are in CSV and JSON."""
        known = [score for score in self.scores if score.value is not None and score.metric not in NULLS]
        pairs = dict.fromkeys((score.metric, score.stain) for score in known)
        groups: dict[str, list[tuple[str, str]]] = {group: [] for group in GROUPS}
        for metric, stain in pairs:
            groups[metric_words(metric).group].append((metric, stain))
        return [(group, found) for group, found in groups.items() if found]

    def without_value(self) -> list[str]:
        """Metrics that no entry has a value of: what these runs cannot say."""
        known = {score.metric for score in self.scores if score.value is not None}
        return list(dict.fromkeys(score.metric for score in self.scores if score.metric not in known))

    @cached_property
    def _scores(self) -> dict[Key, Score]:
        return {Key(score.entry, score.metric, score.stain): score for score in self.scores}

    @cached_property
    def _tests(self) -> dict[Key, Test]:
        return {Key(test.entry, test.metric, test.stain): test for test in self.tests}


def score_table(entries: Sequence[Entry], measured: Mapping[Key, Figure]) -> list[Score]:
    """Scores of all entries, ranked; `measured` replaces what the runs' own tables say, where it has a figure.

    Groups of seeds without a measured figure get mean and spread of their runs' values, and no interval.
    """
    order = list(METRICS)
    found: dict[tuple[str, str], dict[str, Score]] = {}
    for entry in entries:
        rows: dict[tuple[str, str], list[dict[str, Any]]] = {}
        for run in entry.runs:
            for row in run.table:
                if row["method"] == entry.method:
                    rows.setdefault((row["metric"], row.get("stain") or ""), []).append(row)
        for (metric, stain), own in rows.items():
            score = _score(entry, metric, stain, own, measured.get(Key(entry.name, metric, stain)))
            found.setdefault((metric, stain), {})[entry.name] = score
    stains = list(dict.fromkeys(stain for _, stain in found))
    pairs = sorted(found, key=lambda p: (order.index(p[0]) if p[0] in order else len(order), p[0], stains.index(p[1])))
    competing = {entry.name for entry in entries if entry.competes}
    return [score for pair in pairs for score in _ranked(found[pair], competing)]


def _score(entry: Entry, metric: str, stain: str, rows: list[dict[str, Any]], figure: Figure | None) -> Score:
    first, seeds = rows[0], len(entry.runs)
    unit, better = str(first.get("unit") or ""), str(first.get("better") or "none")
    better = better if better in ARROWS else "none"
    values = [row["value"] for row in rows if row["value"] is not None]
    reason = next((str(row["reason"]) for row in rows if row.get("reason")), None)
    low = high = spread = None
    n = first.get("n")
    value: float | None
    if figure is not None:
        value, low, high, n, spread = figure
    elif len(values) < seeds:
        value = None
        if seeds > 1:
            reason = f"{seeds - len(values)} of {seeds} seeds have no value" + (f": {reason}" if reason else "")
    else:
        value = math.fsum(values) / seeds
        if seeds > 1:
            spread = math.sqrt(math.fsum((v - value) ** 2 for v in values) / (seeds - 1))
        else:
            low, high = first.get("low"), first.get("high")
    if value is None:
        reason = reason or "could not be computed"
    return Score(
        entry.name,
        metric,
        stain,
        value,
        low,
        high,
        spread,
        seeds,
        n,
        unit,
        better,
        reason=reason if value is None else None,
    )


def _ranked(scores: dict[str, Score], competing: set[str]) -> list[Score]:
    """The same scores with the ranks of the best and the second best competitor; ties share a rank."""
    better = next(iter(scores.values())).better
    values = {name: s.value for name, s in scores.items() if name in competing and s.value is not None}
    if better == "none" or len(values) < 2:
        return list(scores.values())
    costs = {name: cost(value, better) for name, value in values.items()}
    levels: list[float] = []
    for level in sorted(costs.values()):
        if not levels or not math.isclose(level, levels[-1], rel_tol=1e-9, abs_tol=1e-12):
            levels.append(level)
    ranks = {
        name: next(i for i, level in enumerate(levels, 1) if math.isclose(own, level, rel_tol=1e-9, abs_tol=1e-12))
        for name, own in costs.items()
    }
    return [replace(s, rank=r if (r := ranks.get(name, 0)) <= 2 else 0) for name, s in scores.items()]


def printed(value: float | None, half: float | None) -> tuple[str, str]:
    """Value and half interval as text, with as many decimals as the interval justifies; "" for no interval."""
    if value is None:
        return number(None), ""
    if not half or not math.isfinite(half):
        # alike for neighbours in a row: 0.996 and 1.004, where three digits would give 0.996 and 1.00
        size = abs(value)
        plain = value.is_integer() or size < 0.01
        return number(value) if plain else f"{value:,.{max(0, 3 - len(str(int(size))) + (size < 10))}f}", ""
    decimals = max(0, 1 - math.floor(math.log10(half)))
    if decimals > 5:
        return number(value), f"{half:.1e}"
    # no decimals for numbers in the thousands, however well they are known
    decimals = min(decimals, max(0, 4 - math.floor(math.log10(max(abs(value), 1e-9)))))
    return f"{value:,.{decimals}f}".replace("-", MINUS).replace(",", " "), f"{half:,.{decimals}f}".replace(",", " ")


def p_words(p: float | None) -> str:
    """A p-value with two digits, or below which bound it lies."""
    if p is None:
        return number(None)
    return "< 0.0001" if p < 1e-4 else f"{p:.4f}" if p < 0.01 else f"{p:.2f}"
