"""What the report calls things, in words for a biologist; metrics are in `tera_mind.report.glossary`."""

from __future__ import annotations

import math

DASH, MINUS, TIMES = "\N{EN DASH}", "\N{MINUS SIGN}", "\N{MULTIPLICATION SIGN}"

#: method -> (column head, what it is); the order of the report's columns
METHODS = {
    "real": ("Real", "the measured tissue itself"),
    "generated": ("Generated", "painted by the model from the genes of this tissue"),
    "shuffled": (
        "Genes shuffled",
        "the same model, genes exchanged between patches: such tissue in the wrong places; only scores of places tell",
    ),
    "zeroed": ("Genes zeroed", "the same model, all genes set to zero: what it paints without any genes"),
    "mean_image": ("Mean image", "one constant grey level, the training tissue's mean: right in brightness, and empty"),
    "ridge": (
        "Ridge",
        "linear regression from binned genes to the blurred stain; aims at the mean: strong in PSNR, without texture",
    ),
    "ensemble_mean": (
        "Mean of seeds",
        "the mean of volumes that differ in their noise alone: less error, and blurred",
    ),
    "real_neighbour": ("Real neighbour", "the neighbouring measured section here: as alike as two sections are"),
    "real_vs_real": (
        "Real vs real",
        "measured tissue of the training region against that shown here: two real pieces are no closer",
    ),
}

#: methods that stand beside the competition: the truth and the ceilings never win a row
REFERENCES = frozenset({"real", "real_neighbour", "real_vs_real"})

#: `better` of a table row -> (arrow, its meaning)
ARROWS = {
    "higher": ("↑", "higher is better"),
    "lower": ("↓", "lower is better"),
    "one": ("→ 1", "closest to 1 is best"),
    "none": ("", "a description, neither better nor worse"),
}


def method_label(name: str) -> str:
    return METHODS[name][0] if name in METHODS else name


def number(value: float | None) -> str:
    """About three significant digits, thousands apart, a true minus; a dash for what could not be computed."""
    if value is None or not math.isfinite(value):
        return DASH
    size = abs(value)
    if size >= 100 or value == 0:
        text = f"{value:,.0f}"
    elif size >= 1:
        text = f"{value:.1f}" if size >= 10 else f"{value:.2f}"
    else:
        text = f"{value:.3f}" if size >= 0.001 else f"{value:.4f}" if size >= 0.0001 else f"{value:.0e}"
    return text.replace("-", MINUS).replace(",", " ")
