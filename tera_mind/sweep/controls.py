"""Whether each method reads the genes: its score beside those of its own controls, from the `metrics.json` of its runs.

`generated` is painted from the genes, `shuffled` from genes exchanged between patches, `zeroed` from none. A method
whose three scores are alike has not used them, however good they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tera_mind.sweep.definition import written
from tera_mind.sweep.plan import Plan, Run
from tera_mind.sweep.results import METHOD, column, read_rows

TREATMENTS = (METHOD, "shuffled", "zeroed")
#: columns of controls.csv
COLUMNS = ("method", "metric", "stain", "unit", "better", "seeds", *TREATMENTS)


def controls(plan: Plan, runs: Sequence[Run]) -> list[dict[str, Any]]:
    """A line for each value of the table's setting and metric, of runs that are done: means over their seeds.

    None where a seed has no such score.
    """
    table = plan.sweep.table
    groups: dict[str, list[Mapping[tuple[str, str, str], Mapping[str, Any]]]] = {}
    for run in runs:
        rows = read_rows(plan.task(run, table.stage).makes)
        groups.setdefault(written(run.settings[table.setting]), []).append(rows)
    lines = []
    for name, seeds in groups.items():
        for metric, stain in table.metrics:
            first = seeds[0].get((METHOD, metric, stain), {})
            line: dict[str, Any] = {"method": name, "metric": metric, "stain": stain, "seeds": len(seeds)}
            line |= {key: first.get(key) or "" for key in ("unit", "better")}
            for made in TREATMENTS:
                line[made] = _mean([rows.get((made, metric, stain)) for rows in seeds])
            lines.append(line)
    return lines


def _mean(rows: Sequence[Mapping[str, Any] | None]) -> float | None:
    values = [None if row is None else row["value"] for row in rows]
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if len(known) == len(values) else None


def controls_markdown(lines: Sequence[Mapping[str, Any]]) -> str:
    """A line a method, a column a metric: generated / shuffled / zeroed."""
    metrics = list(dict.fromkeys(column(line) for line in lines))
    out = ["Scores of each method from the genes / from genes shuffled between patches / from none:", ""]
    out += [f"| {' | '.join(['method', *metrics])} |", "|" + "---|" * (len(metrics) + 1)]
    for name in dict.fromkeys(line["method"] for line in lines):
        own = {column(line): line for line in lines if line["method"] == name}
        cells = [" / ".join(_number(own[metric][made]) for made in TREATMENTS) for metric in metrics]
        out.append(f"| {' | '.join([name, *cells])} |")
    return "\n".join([*out, ""])


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
