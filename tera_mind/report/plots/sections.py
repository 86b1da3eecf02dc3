"""Continuity along z: how alike neighbouring sections are, against how alike the real ones are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from tera_mind.report.figures import Part, Theme, dots, panels
from tera_mind.report.inputs import Evaluation
from tera_mind.report.tables import rows_of
from tera_mind.report.words import method_label, number

ABSENT = "Left out: continuity along z needs two neighbouring sections; the evaluation has no such figure."


def continuity(evaluation: Evaluation) -> Part:
    """A panel a stain with each method's correlation of neighbouring sections; the real one is the aim."""
    found: dict[str, Mapping[str, Mapping[str, Any]]] = {}
    for stain in evaluation.settings.get("stains", []):
        rows = {m: r for m, r in rows_of(evaluation, "z_correlation", stain).items() if r["value"] is not None}
        if {"real", "generated"} <= rows.keys():
            found[stain] = rows
    if not found:
        return Part([], ABSENT)
    count = max(map(len, found.values()))

    def draw(axes: NDArray[Any], theme: Theme) -> None:
        for panel, (stain, rows) in zip(axes[0], found.items(), strict=True):
            dots(panel, theme, list(rows.items()))
            real = rows["real"]
            panel.axvline(real["value"], color=theme.ink, linewidth=1, alpha=0.5)
            if real.get("low") is not None and real.get("high") is not None:
                panel.axvspan(real["low"], real["high"], color=theme.ink, alpha=0.08, linewidth=0)
            panel.set_title(stain)
            panel.set_xlabel("correlation with the next section")

    said = "; ".join(
        f"{stain}: " + ", ".join(f"{method_label(m).lower()} {number(r['value'])}" for m, r in rows.items())
        for stain, rows in found.items()
    )
    caption = (
        f"Correlation of neighbouring sections, both blurred, patch by patch; the band is the real sections' 95 % "
        f"interval. Left of it: sections that do not belong together; right of it: sections that copy each "
        f"other. {said}."
    )
    size = (4.8 * len(found), 1.35 + 0.32 * count)
    wide = len(found) > 1
    return Part(
        [panels("z_continuity", f"Continuity along z: {said}", caption, draw, size, (1, len(found)), wide=wide)]
    )
