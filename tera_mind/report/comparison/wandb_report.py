"""A Weights & Biases report of a comparison, as plain data.

`wandb_report.json`: {"format": "wandb-report", "version": 1, "report": BLOCK}; a BLOCK is {"class": NAME, ...} with the
name and the arguments of a class of `wandb_workspaces.reports.v2` (Report, H1, H2, MarkdownBlock, PanelGrid, Runset,
BarPlot, MediaBrowser), arguments again blocks. It names what `tera-mind compare --wandb` logs; docs/comparison.md has
the lines that make a report of it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

VERSION = 1


def report_definition(comparison: Mapping[str, Any], project: str, group: str, capacity: str = "") -> dict[str, Any]:
    """The report of a `comparison.json` (its content) in a project, of the runs in a group.

    capacity: Markdown table of the networks' sizes.
    """
    scored = [score for score in comparison["scores"] if score["value"] is not None]
    keys = dict.fromkeys("/".join(filter(None, ("compare", s["metric"], s["stain"]))) for s in scored)
    runs = [_block("Runset", project=project, name="entries", filters=f"Group == {group!r}")]
    names = ", ".join(entry["name"] for entry in comparison["entries"])
    blocks = [
        _block("H1", text="Comparison"),
        _block("MarkdownBlock", text=f"Entries: {names}.\n\n{comparison['tested']}"),
        *(_block("MarkdownBlock", text=f"> {note}") for note in comparison["notes"]),
        _block("H2", text="Capacity and budget"),
        _block("MarkdownBlock", text=capacity or "Not recorded."),
        _block("H2", text="Pictures and tests"),
        _grid(runs, [_block("MediaBrowser", media_keys=["compare/same_region", "compare/fidelity"], num_columns=1)]),
        _block("H2", text="Scores"),
        _grid(runs, [_block("BarPlot", title=key.removeprefix("compare/"), metrics=[key]) for key in keys]),
    ]
    words = f"Tested against {comparison['reference']}"
    report = _block("Report", project=project, title="Comparison of methods", description=words, blocks=blocks)
    return {"format": "wandb-report", "version": VERSION, "report": report}


def definition_text(definition: Mapping[str, Any]) -> str:
    return json.dumps(definition, indent=1, ensure_ascii=False) + "\n"


def _block(kind: str, /, **arguments: Any) -> dict[str, Any]:
    return {"class": kind, **arguments}


def _grid(runs: Sequence[Any], panels: Sequence[Any]) -> dict[str, Any]:
    return _block("PanelGrid", runsets=list(runs), panels=list(panels))
