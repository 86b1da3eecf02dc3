"""A Weights & Biases report of a comparison, as plain data.

`wandb_report.json`: {"format": "wandb-report", "version": 1, "report": BLOCK}; a BLOCK is {"class": NAME, ...} with the
name and the arguments of a class of `wandb_workspaces.reports.v2` (Report, H1, H2, MarkdownBlock, PanelGrid, Runset,
BarPlot, MediaBrowser, Layout), arguments again blocks. It names what `tera-mind compare --wandb` logs;
docs/comparison.md has the lines that make a report of it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

VERSION = 1


def report_definition(
    comparison: Mapping[str, Any], project: str, group: str, figures: Sequence[str] = (), capacity: str = ""
) -> dict[str, Any]:
    """The report of a `comparison.json` (its content) in a project, of the runs in a group.

    figures: names of the comparison's figures, without ending; capacity: Markdown on the networks' sizes.
    """
    scored = [score for score in comparison["scores"] if score["value"] is not None]
    keys = dict.fromkeys("/".join(filter(None, ("compare", s["metric"], s["stain"]))) for s in scored)
    runs = [_block("Runset", project=project, name="entries", filters=f"Group == {group!r} and JobType == 'compare'")]
    count = len(comparison["entries"]) + 1  # the run of tables and figures is one more
    names = ", ".join(entry["name"] for entry in comparison["entries"])
    blocks = [
        _block("H1", text="Comparison"),
        _block("MarkdownBlock", text=f"Entries: {names}.\n\n{comparison['tested']}"),
        *(_block("MarkdownBlock", text=f"> {note}") for note in comparison["notes"]),
        _block("H2", text="Capacity and budget"),
        _block("MarkdownBlock", text=capacity or "Not recorded."),
        _block("H2", text="Pictures and tests"),
        _grid(
            runs,
            [
                _block("MediaBrowser", title=name, media_keys=[f"compare/{name}"], num_columns=1, layout=_layout(i))
                for i, name in enumerate(figures)
            ],
        ),
        _block("H2", text="Scores"),
        # W&B shows ten runs of a bar chart unless told otherwise
        _grid(
            runs,
            [
                _block(
                    "BarPlot",
                    title=key.removeprefix("compare/"),
                    metrics=[key],
                    max_runs_to_show=count,
                    max_bars_to_show=count,
                )
                for key in keys
            ],
        ),
    ]
    words = f"Tested against {comparison['reference']}"
    report = _block("Report", project=project, title="Comparison of methods", description=words, blocks=blocks)
    return {"format": "wandb-report", "version": VERSION, "report": report}


def _layout(row: int) -> dict[str, Any]:
    """A panel as wide as the page, below `row` others."""
    return _block("Layout", x=0, y=18 * row, w=24, h=18)


def definition_text(definition: Mapping[str, Any]) -> str:
    return json.dumps(definition, indent=1, ensure_ascii=False) + "\n"


def _block(kind: str, /, **arguments: Any) -> dict[str, Any]:
    return {"class": kind, **arguments}


def _grid(runs: Sequence[Any], panels: Sequence[Any]) -> dict[str, Any]:
    return _block("PanelGrid", runsets=list(runs), panels=list(panels))
