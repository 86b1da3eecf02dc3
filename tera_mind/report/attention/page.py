"""The figures of an attention map as files, and a small page that shows them with what must be read beside them."""

from __future__ import annotations

import html
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tera_mind.formats.atomic import atomic_file
from tera_mind.formats.attention_map import PREVIOUS
from tera_mind.formats.maps import Map
from tera_mind.report.attention.figures import Levels, heat_maps, joint_plots, neighbour_surface, partner_bars

_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:1100px;margin:2em auto;padding:0 1em;color:#22262e}"
    "img{max-width:100%}figcaption{color:#6b7280}figure{margin:1.5em 0}td,th{padding:.1em .8em .1em 0;text-align:left}"
)
_CAUTION = (
    "Attention is what the network looked at, not an interaction of molecules. It is weighted by expression: compare "
    "it with the maps of expression and of their product, which need no network."
)


def write_figures(attention: Map, section: int, folder: Path, page: str, record: Mapping[str, Any]) -> list[str]:
    """Draw a section into PNG files of a folder and show them on `page` with the numbers of `record`; their names."""
    levels = Levels(attention, section)
    plots = [heat_maps(levels), joint_plots(levels)]
    if PREVIOUS in attention.attributes.channels:
        plots.append(neighbour_surface(levels))
    if record.get("partners_top"):
        plots.append(partner_bars(str(record["partners"]["gene"]), record["partners_top"]))
    for plot in plots:
        with atomic_file(folder / f"{plot.name}.png") as path:
            path.write_bytes(plot.light)
    figures = "\n".join(
        f'<figure><img src="{plot.name}.png" alt="{html.escape(plot.alt)}"><figcaption>{html.escape(plot.caption)}'
        "</figcaption></figure>"
        for plot in plots
    )
    facts = [("genes", ", ".join(levels.genes)), ("brain", f"{record['brain']} ({record['brain_fingerprint']})")]
    facts += [("checkpoint", str(record["checkpoint"])[:16]), ("definition", str(record["definition"]))]
    facts += [("correlation", row["words"]) for row in record.get("restates", ())]
    facts += [("reproducibility", line) for found in record.get("reproducibility", ()) for line in found["lines"]]
    rows = "".join(f"<tr><th>{html.escape(key)}</th><td>{html.escape(value)}</td></tr>" for key, value in facts)
    title = html.escape(f"{attention.attributes.name}, section {section}")
    with atomic_file(folder / page) as path:
        path.write_text(
            f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title><style>{_STYLE}</style>'
            f"<h1>{title}</h1><p>{_CAUTION}</p><table>{rows}</table>{figures}</html>",
            encoding="utf-8",
        )
    return [f"{plot.name}.png" for plot in plots]
