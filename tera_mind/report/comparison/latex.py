"""A comparison as LaTeX: a table with booktabs rules for each group of metrics, to be read by another document.

A table of many columns is shrunk to the page's width where it is wider.
"""

from __future__ import annotations

import re

from tera_mind.report.comparison.scores import ALPHA, Comparison, Score, printed
from tera_mind.report.comparison.text import label
from tera_mind.report.words import DASH, MINUS, TIMES

#: more columns than this take the width of the page, in smaller type
NARROW = 4
#: a box no wider than the page
SHRINK = r"\resizebox{\ifdim\width>\textwidth\textwidth\else\width\fi}{!}{"
SPECIAL = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': "''",
    "µ": r"$\mu$",
    "²": r"$^2$",
    MINUS: r"$-$",
    DASH: "--",
    "±": r"$\pm$",
    TIMES: r"$\times$",
    "→": r"$\to$",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
    "é": r"\'e",
    "\N{NO-BREAK SPACE}": "~",
    "\N{NARROW NO-BREAK SPACE}": r"\,",
    "\N{THIN SPACE}": r"\,",
}


def escape(text: str) -> str:
    """Text that LaTeX prints as it is; letters beyond ASCII are left to its UTF-8 input."""
    return "".join(SPECIAL.get(letter, letter) for letter in " ".join(text.split()))


def latex(comparison: Comparison) -> str:
    """Tables, one a group of metrics; the document needs the packages booktabs and graphicx."""
    wide = len(comparison.names) > NARROW
    environment, size = ("table*", r"\scriptsize\setlength{\tabcolsep}{3pt}") if wide else ("table", r"\small")
    shrink, end = (SHRINK, "}") if wide else ("", "")
    parts = ["% needs \\usepackage{booktabs,graphicx}; made by tera-mind compare"]
    for group, pairs in comparison.rows():
        # real tissue has few of the metrics: a column of nothing only makes the others smaller
        names = [
            entry.name
            for entry in comparison.entries
            if entry.competes or any(comparison.score(entry.name, *pair) is not None for pair in pairs)
        ]
        body = []
        for metric, stain in pairs:
            first = next(s for name in comparison.names if (s := comparison.score(name, metric, stain)) is not None)
            scores = [comparison.score(name, metric, stain) for name in names]
            cells = ["" if score is None else cell(comparison, score) for score in scores]
            body.append([escape(label(metric, first.better, first.unit)), escape(stain), *cells])
        head = ["Metric", "Stain", *map(escape, names)]
        parts.append(
            "\n".join(
                [
                    rf"\begin{{{environment}}}[t]",
                    rf"\centering{size}",
                    rf"\caption{{{_caption(comparison, group)}}}",
                    rf"\label{{tab:compare-{'-'.join(re.findall('[a-z]+', group.lower()))}}}",
                    rf"{shrink}\begin{{tabular}}{{ll{'r' * len(names)}}}",
                    r"\toprule",
                    " & ".join(head) + r" \\",
                    r"\midrule",
                    *(" & ".join(line) + r" \\" for line in body),
                    r"\bottomrule",
                    rf"\end{{tabular}}{end}",
                    rf"\end{{{environment}}}",
                ]
            )
        )
    return "\n\n".join(parts) + "\n"


def cell(comparison: Comparison, score: Score) -> str:
    """A value: best in bold, second underlined, half of the interval small, a star where a difference was found."""
    value, half = printed(score.value, score.half)
    text = escape(value)
    text = rf"\textbf{{{text}}}" if score.rank == 1 else rf"\underline{{{text}}}" if score.rank == 2 else text
    test = comparison.test(score.entry, score.metric, score.stain)
    if test is not None and score.value is not None and test.verdict in {"better", "worse"}:
        text += r"$^{*}$"
    return text + (rf"{{\tiny$\pm${escape(half)}}}" if half else "")


def _caption(comparison: Comparison, group: str) -> str:
    words = f"{group}: value and half of its 95 % interval; best in bold, second underlined."
    if comparison.tests:
        words += f" * differs from {comparison.reference} at p < {ALPHA:g} (paired, Holm's correction)."
    return escape(words)
