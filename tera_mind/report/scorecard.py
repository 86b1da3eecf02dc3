"""The scorecard: headline scores as strips, every method at its place between the worst shown and the best possible."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tera_mind.report.glossary import (
    BEST_PUBLISHED_RECOVERY,
    FIDELITY,
    GENES,
    LOOKS,
    NUCLEI,
    NUCLEUS,
    NULLS,
    QUESTIONS,
    SEAMS,
    SECTIONS,
    SHAPES,
    metric_words,
)
from tera_mind.report.inputs import Evaluation
from tera_mind.report.tables import columns, cost, interval_words, rows_of, unit_words
from tera_mind.report.verdict import RIVALS, against
from tera_mind.report.words import ARROWS, method_label, number

#: question -> the scores that answer it at a glance
HEADLINES = {
    FIDELITY: ("psnr", "ssim", "ms_ssim", "pearson_blur"),
    LOOKS: ("frechet", "fid", "sfid", "spectrum_distance", "histogram_wasserstein"),
    NUCLEI: ("nuclei_count_r", "nuclei_count_ratio", "nuclei_f1"),
    SHAPES: (
        "nucleus_area_ratio",
        *(f"nucleus_{quantity}_ks" for quantity in NUCLEUS),
        "nucleus_area_r",
        "nucleus_transcripts_r",
    ),
    GENES: ("gene_recovery",),
    SECTIONS: ("z_correlation_gap",),
    SEAMS: ("seam_step", "seam_spectrum", "tile_seam_step", "tile_seam_spectrum"),
}
#: trivial methods may lie beyond the left end: they would push all others into a corner
MAY_CLIP = frozenset({"mean_image", "zeroed"})
#: least ratio of a seam that a strip tells apart from none
LEAST_RATIO = 0.1
#: a grid shifted off the borders shows a seam of its own where it is so many times above real tissue
OFF_BORDER = 1.1
#: rival -> its name in the last column
SHORT = {"shuffled": "shuffled", "zeroed": "zeroed", "mean_image": "mean image", "ridge": "ridge"}
#: methods without a place on a strip
HIDDEN = frozenset({"ensemble_mean"})


@dataclass(frozen=True)
class Mark:
    """One method on a strip, at `x` per cent; `clipped`: it lies beyond the left end."""

    method: str
    x: float
    words: str
    clipped: bool


@dataclass(frozen=True)
class Strip:
    """One score: marks, the interval of the generated tissue and the band of chance (left, width in per cent)."""

    label: str
    stain: str
    arrow: str
    unit: str
    value: str
    interval: str
    marks: list[Mark]
    span: tuple[float, float] | None
    band: tuple[float, float] | None
    ends: tuple[str, str]
    tone: str
    finding: str
    #: more on the finding
    rivals: str
    words: str


def scorecard(evaluation: Evaluation) -> list[tuple[str, str, list[Strip]]]:
    """(group, its question, strips) of the headline scores that the evaluation has."""
    stains = [*(evaluation.settings.get("stains") or []), ""]
    found = []
    for group, metrics in HEADLINES.items():
        strips = [strip(evaluation, metric, stain) for metric in metrics for stain in stains]
        if any(strips):
            found.append((group, QUESTIONS[group], [s for s in strips if s is not None]))
    return found


def legend(evaluation: Evaluation) -> list[tuple[str, str]]:
    """(method, label) of the marks, in the report's order."""
    return [(m, method_label(m)) for m in columns(evaluation) if m not in HIDDEN]


def strip(evaluation: Evaluation, metric: str, stain: str) -> Strip | None:
    """The strip of one score; None where the generated tissue has no such value."""
    rows = {m: r for m, r in rows_of(evaluation, metric, stain).items() if r["value"] is not None and m not in HIDDEN}
    if "generated" not in rows:
        return None
    own = rows["generated"]
    better = str(own.get("better") or "none")
    null = _null(evaluation, metric, stain)
    scale = _Scale(rows, better, null if metric_words(metric).group == SEAMS else None)
    unit = unit_words(own.get("unit"))
    marks = [
        Mark(m, scale.x(r["value"]), f"{method_label(m)}: {_amount(r, unit)}", scale.clipped(r["value"]))
        for m, r in rows.items()
    ]
    if metric == "gene_recovery":
        best = BEST_PUBLISHED_RECOVERY
        marks.insert(0, Mark("landmark", scale.x(best), f"best published share: {100 * best:.0f} %", clipped=False))
    # the generated tissue last: it is drawn over the others
    marks.sort(key=lambda mark: mark.method == "generated")
    if scale.seam:
        tone, finding, rivals = _seam(own, rows.get("real", {}), null, _null(evaluation, metric, stain, "real"))
    else:
        tone, finding, rivals = _rivals(evaluation, metric, stain)
    words = metric_words(metric)
    said = "; ".join(mark.words for mark in marks)
    return Strip(
        words.label,
        stain,
        ARROWS[better][0],
        unit,
        number(own["value"]),
        interval_words(own.get("low"), own.get("high")),
        marks,
        scale.span(own.get("low"), own.get("high")),
        scale.span(null.get("low"), null.get("high")) if scale.seam else None,
        scale.ends,
        tone,
        finding,
        rivals,
        f"{words.label} {stain}: {said}".replace(" :", ":"),
    )


def _amount(row: Mapping[str, Any], unit: str) -> str:
    interval = interval_words(row.get("low"), row.get("high"))
    return f"{number(row['value'])} {unit}".strip() + (f" ({interval})" if interval else "")


class _Scale:
    """From values to per cent of a strip: right is better.

    The right end is what is best possible (1 of a correlation or ratio, 0 of a distance), or the best shown where a
    score has no such end; the left end is the worst of the methods shown but trivial ones, which may lie beyond it. Of
    seams, whose chance is known, the ends are the extremes of the real and the generated tissue and of chance.
    """

    def __init__(self, rows: Mapping[str, Mapping[str, Any]], better: str, null: Mapping[str, Any] | None) -> None:
        self.better = better
        self.seam = null is not None
        if null is not None:
            ends = [rows[m].get(k) for m in ("generated", "real") if m in rows for k in ("value", "low", "high")]
            known = [v for v in (*ends, null.get("low"), null.get("high"), 1.0) if v is not None]
            self.ends = (number(max(known)), number(min(known)))
            self._best, self._worst = self._cost(min(known)), self._cost(max(known))
        else:
            own = rows["generated"]
            shown = [r["value"] for m, r in rows.items() if m not in MAY_CLIP]
            if len(shown) < 2:
                shown = [r["value"] for r in rows.values()]
            shown += [own[k] for k in ("low", "high") if own.get(k) is not None]
            costs = [cost(v, better) for v in shown]
            bounded = better == "higher" and not own.get("unit")
            self._worst = max(costs)
            self._best = min(-1.0, *costs) if bounded else 0.0 if better in {"lower", "one"} else min(costs)
            self._best = min(self._best, *costs)
            self.ends = self._words()
        room = 0.04 * (self._worst - self._best)
        self._worst += room
        self._width = max(self._worst - self._best, 1e-12)

    def _words(self) -> tuple[str, str]:
        worst, best = (-end if self.better == "higher" else end for end in (self._worst, self._best))
        if self.better == "one":
            return f"{number(worst)} off", "1"
        return number(worst), number(best)

    def _cost(self, value: float) -> float:
        # seams are ratios: 2 is as far above 1 as 1 / 2 is below it
        return math.log(max(value, LEAST_RATIO)) if self.seam else cost(value, self.better)

    def x(self, value: float) -> float:
        share = (self._worst - self._cost(value)) / self._width
        return round(100 * min(1.0, max(0.0, share)), 2)

    def clipped(self, value: float) -> bool:
        return self._cost(value) > self._worst

    def span(self, low: float | None, high: float | None) -> tuple[float, float] | None:
        if low is None or high is None:
            return None
        ends = [self.x(low), self.x(high)]
        if self.better == "one" and not self.seam and low <= 1 <= high:
            ends.append(100.0)
        return min(ends), round(max(ends) - min(ends), 2)


def _null(evaluation: Evaluation, metric: str, stain: str, method: str = "generated") -> Mapping[str, Any]:
    name = next((null for null, judged in NULLS.items() if judged == metric), "")
    return rows_of(evaluation, name, stain).get(method, {}) if name else {}


def _rivals(evaluation: Evaluation, metric: str, stain: str) -> tuple[str, str, str]:
    """Who of the other methods is better, or level: tone, finding, and how it stands with each."""
    outcomes = {m: against(evaluation, metric, stain, m) for m in RIVALS}
    known = {m: outcome for m, outcome in outcomes.items() if outcome != "none"}
    if not known:
        return "none", "no rival", "no other method has this score"
    said = "generated is " + ", ".join(f"{outcome} than {method_label(m).lower()}" for m, outcome in known.items())
    said = said.replace("undecided than", "level with")
    for tone, verb in (("worse", "behind"), ("undecided", "level with")):
        found = [SHORT.get(m, m) for m, outcome in known.items() if outcome == tone]
        if found:
            return tone, f"{verb} {found[0]}" + (f" +{len(found) - 1}" if len(found) > 1 else ""), said
    only = next(iter(known))
    return "better", "ahead of all" if len(known) > 1 else f"ahead of {SHORT.get(only, only)}", said


def _seam(
    own: Mapping[str, Any], real: Mapping[str, Any], null: Mapping[str, Any], real_null: Mapping[str, Any]
) -> tuple[str, str, str]:
    """Whether a seam shows, beyond what real tissue shows at the border and anywhere else; or one off the border."""
    limits = [row["high"] for row in (real, real_null) if row.get("high") is not None]
    if not limits:
        return "none", "chance unknown", "the real tissue's interval is not known"
    limit = max(limits)
    real_words = f"real tissue reaches {number(limit)}"
    if (own.get("low") or own["value"]) > limit:
        return "worse", "seam", real_words
    if (null.get("high") or 0.0) > OFF_BORDER * limit:
        return "worse", "off the border", f"a grid shows between the borders: {number(null['high'])}; {real_words}"
    if own["value"] > limit:
        return "undecided", "perhaps a seam", real_words
    return "better", "no seam", real_words
