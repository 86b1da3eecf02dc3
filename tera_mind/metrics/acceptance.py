"""The lines a generated volume is judged by: against controls, the ceiling, and the real image's own intervals."""

from __future__ import annotations

from collections.abc import Sequence

from tera_mind.metrics.plan import CEILING, REAL
from tera_mind.metrics.table import LARGE_METRICS, PATCH_METRICS, Criterion, Paired, Row, find_row

#: scores that shuffled genes must lower; distances of distributions are blind to place
_FOLLOWS_PLACE = frozenset({*PATCH_METRICS, *LARGE_METRICS, "nuclei_count_error", "gene_recovery"})


def acceptance(table: list[Row], paired: list[Paired], stains: Sequence[str], stain_of_nuclei: str) -> list[Criterion]:
    """The lines a generated volume is judged by; one that cannot be computed is not passed."""
    lines = [
        Criterion(
            f"{row.metric} {row.stain}".strip() + " beats shuffled",
            row.difference,
            "interval above 0",
            row.low is not None and row.low > 0,
        )
        for row in paired
        if row.control == "shuffled" and row.metric in _FOLLOWS_PLACE
    ]
    if not lines:
        lines.append(Criterion("paired scores beat shuffled", None, "needs a volume with shuffled genes", passed=False))

    def value(metric: str, stain: str, method: str = "generated") -> float | None:
        row = find_row(table, method, metric, stain)
        return None if row is None else row.value

    for metric, low, high in (
        ("nuclei_count_r", 0.5, 1.0),
        ("nucleus_area_ratio", 0.8, 1.2),
        ("nuclei_count_ratio", 0.75, 1.25),
    ):
        words = f"at least {low:g}" if metric == "nuclei_count_r" else f"{low:g} to {high:g}"
        lines.append(_within(metric, value(metric, stain_of_nuclei), words, low, high + 1e-9))
    for stain in stains:
        distance, zeroed, ceiling = (value("frechet", stain, m) for m in ("generated", "zeroed", CEILING))
        words = "needs a volume with zeroed genes" if zeroed is None else f"below {zeroed:.4g}, genes zeroed"
        passed = distance is not None and zeroed is not None and distance < zeroed
        lines.append(Criterion(f"frechet {stain} below zeroed", distance, words, passed))
        ratio = None if distance is None or not ceiling else distance / ceiling
        lines.append(_within(f"frechet {stain} by real against real", ratio, "at most 3", 0.0, 3.0))
        for metric in ("seam_index", "seam_step", "seam_spectrum"):
            real = find_row(table, REAL, metric, stain)
            index = value(metric, stain)
            if real is None or real.low is None or real.high is None:
                words = "needs the real image's interval"
                lines.append(Criterion(f"{metric} {stain}", index, words, passed=False))
            else:
                words = f"{real.low:.4f} to {real.high:.4f}, as real"
                lines.append(_within(f"{metric} {stain}", index, words, real.low, real.high))
    return lines


def _within(name: str, value: float | None, words: str, low: float, high: float) -> Criterion:
    return Criterion(name, value, words, value is not None and low <= value <= high)
