"""What the figures say in plain words: targets met, the worth of the genes, and where a simple method does better."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tera_mind.report.glossary import ENSEMBLE, NULLS, SEAMS, metric_words
from tera_mind.report.inputs import Evaluation
from tera_mind.report.tables import columns, cost, pair_verdict, rows_of, unit_words
from tera_mind.report.words import METHODS, REFERENCES, method_label, number

#: methods that the generated tissue is held against: those that had to predict
RIVALS = tuple(m for m in METHODS if m not in REFERENCES | {"generated", "ensemble_mean"})
#: rival -> how a sentence about it begins
SUBJECTS = {
    "shuffled": "The same model with shuffled genes",
    "zeroed": "The same model without genes",
    "mean_image": "One constant grey level",
    "ridge": "A ridge regression",
}
#: at most so many scores are named in a sentence
NAMED = 4
#: below this share of the real number, a picture has hardly any nuclei
HARDLY_ANY = 0.05
#: a number of nuclei, or a distance, that is so many times off is worth a word
FAR_OFF = 1.5


@dataclass(frozen=True)
class Verdict:
    """`tone` is "good" (all targets met), "mixed", "bad" (none met) or "none" (no targets)."""

    sentence: str
    paired: str
    rivals: list[str]
    tone: str


def verdict(evaluation: Evaluation) -> Verdict:
    """One sentence from the acceptance rows, one from the paired rows against shuffled genes, one a rival."""
    total, met = len(evaluation.acceptance), sum(bool(row["passed"]) for row in evaluation.acceptance)
    if total:
        failed = "" if met == total else "; what falls short is listed below"
        sentence = f"{met} of {total} acceptance targets are met{failed}."
        tone = "good" if met == total else "mixed" if met else "bad"
    else:
        sentence, tone = "No acceptance targets were evaluated.", "none"
    rows = [row for row in evaluation.paired if row["control"] == "shuffled"]
    paired = "The control with shuffled genes was not evaluated."
    if rows:
        marks = [pair_verdict(row) for row in rows]
        paired = (
            f"Against the same model with shuffled genes, the generated tissue is better in {marks.count('better')} of "
            f"{len(rows)} paired scores, worse in {marks.count('worse')}, and undecided in "
            f"{len(rows) - marks.count('better') - marks.count('worse')} (95 % intervals)."
        )
    return Verdict(sentence, paired, rival_sentences(evaluation), tone)


def against(evaluation: Evaluation, metric: str, stain: str, rival: str) -> str:
    """How the generated tissue compares with a rival in one score: "better", "worse", "undecided" or "none" (unknown).

    From the paired difference where there is one, else from whether the two intervals are apart.
    """
    for row in evaluation.paired:
        if (row["metric"], row.get("stain") or "", row["control"]) == (metric, stain, rival):
            return pair_verdict(row)
    rows = rows_of(evaluation, metric, stain)
    own, other = rows.get("generated"), rows.get(rival)
    if own is None or other is None or own["value"] is None or other["value"] is None:
        return "none"
    better = str(own.get("better") or "none")
    if better == "none":
        return "none"
    gain = cost(other["value"], better) - cost(own["value"], better)
    ends = [row[end] for row in (own, other) for end in ("low", "high") if row.get(end) is not None]
    if len(ends) == 4 and ends[0] <= ends[3] and ends[2] <= ends[1]:
        return "undecided"
    return "better" if gain > 0 else "worse" if gain < 0 else "undecided"


def rival_sentences(evaluation: Evaluation) -> list[str]:
    """Where a simple method does better than the model, and what it lacks; one sentence if none does."""
    rivals = [m for m in RIVALS if m in columns(evaluation)]
    if not rivals:
        return []
    scores = dict.fromkeys((r["metric"], r.get("stain") or "") for r in evaluation.table if r["metric"] not in NULLS)
    # a picture that was not put together has no seam to be better in
    judged = [name for name in scores if metric_words(name[0]).group not in {SEAMS, ENSEMBLE}]
    sentences = []
    for rival in rivals:
        ahead = [name for name in judged if against(evaluation, *name, rival) == "worse"]
        if ahead:
            faults = _faults(evaluation, rival)
            but = f"; {faults}" if faults else ""
            sentences.append(f"{SUBJECTS.get(rival, method_label(rival))} does better in {_scores(ahead)}{but}.")
    names = ", ".join(method_label(m).lower() for m in rivals)
    return sentences or [f"None of the simpler methods ({names}) is better in any score beyond its interval."]


def _scores(names: Sequence[tuple[str, str]]) -> str:
    """Scores by metric with their stains: "PSNR (DAPI, PolyT), SSIM (DAPI) and 3 more"."""
    stains: dict[str, list[str]] = {}
    for metric, stain in names:
        label = metric_words(metric).label
        quoted = f"\N{LEFT DOUBLE QUOTATION MARK}{label}\N{RIGHT DOUBLE QUOTATION MARK}"
        stains.setdefault(quoted if "," in label else label, []).append(stain)
    said = [f"{label} ({', '.join(s)})" if any(s) else label for label, s in stains.items()]
    if len(said) > NAMED:
        return f"{', '.join(said[:NAMED])} and {len(said) - NAMED} more score{'s' if len(said) > NAMED + 1 else ''}"
    return " and ".join([", ".join(said[:-1]), said[-1]]) if len(said) > 1 else said[0]


def _faults(evaluation: Evaluation, rival: str) -> str:
    """What a picture of this method lacks: nuclei, texture, the look of tissue."""
    faults = []
    nuclei = _nuclei(evaluation, rival)
    if nuclei:
        faults.append(nuclei)
    stains = evaluation.settings.get("stains") or []
    for metric, words in (("spectrum_distance", "its texture is"), ("frechet", "its Fréchet distance is")):
        for stain in stains[:1]:
            rows = rows_of(evaluation, metric, stain)
            own, other = (rows.get(m, {}).get("value") for m in ("generated", rival))
            if own is not None and other is not None and other > FAR_OFF * max(own, 1e-9):
                off = " off" if metric == "spectrum_distance" else ""
                unit = unit_words(rows[rival].get("unit"))
                amount = f"{number(other)} {unit}".strip()
                faults.append(f"{words} {amount}{off} (generated {number(own)}, {stain})")
    return " and ".join([", ".join(faults[:-1]), faults[-1]]) if len(faults) > 1 else "".join(faults)


def _nuclei(evaluation: Evaluation, rival: str) -> str:
    rows: Mapping[str, Any] = rows_of(evaluation, "nuclei_count", evaluation.settings.get("nucleus_stain") or "")
    real, other = (rows.get(m, {}).get("value") for m in ("real", rival))
    if not real or other is None:
        return ""
    share = other / real
    if share == 0:
        return "it has no nuclei"
    if share < HARDLY_ANY:
        return f"it has hardly any nuclei ({number(100 * share)} % of the real number)"
    if share < 1 / FAR_OFF or share > FAR_OFF:
        return f"it has {number(100 * share)} % of the real number of nuclei"
    return ""
