"""From finished units to the map volume and the partners' table, a window of the map in memory at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tera_mind.analysis.attention import AttentionJob, Unit
from tera_mind.formats.maps import Map, MapAttributes, writing_map

#: finds the arrays of a finished unit
Arrays = Callable[[Unit], Mapping[str, NDArray[Any]]]
DEFINITION = (
    "attention: sum over i, j of the set of A_ij x_j, A the gene-gene attention of the patch (rows softmaxed over all "
    "genes), x transcripts of the patch in the section; unweighted: mean of A_ij over i != j; previous-current, "
    "current-next: attention with the counts of all sections but these two set to zero; product: mean of x_i x_j, "
    "i < j; channels named after genes: x"
)


def map_attributes(job: AttentionJob, arrays: Arrays, name: str, details: Mapping[str, Any]) -> MapAttributes:
    """Attributes of the map of finished units; a channel's colours end where 99.5 % of a band's values stay below."""
    high = np.max([arrays(unit)["high"] for unit in job.units], axis=0)
    ranges = tuple((0.0, float(value) if value > 0 else 1.0) for value in high)
    return MapAttributes(
        name=name,
        unit="",
        channels=job.channels,
        low=0.0,
        high=max(high for _, high in ranges),
        box=job.region,
        sections=job.sections,
        step_px=job.patch_px,
        pixel_um=job.brain.pixel_um,
        ranges=ranges,
        exact=True,
        details={**job.facts(), "definition": DEFINITION, **details},
    )


def write_attention(job: AttentionJob, arrays: Arrays, path: Path, attributes: MapAttributes) -> Map:
    """The map of finished units, whole or not at all."""
    with writing_map(path, attributes) as writer:
        for box in writer.windows:
            for group in {unit.group: None for unit in job.units}:
                own = job.own_sections(group)
                window = np.full((len(job.channels), len(own), box.height, box.width), np.nan, np.float32)
                for unit in job.units:
                    first, last = max(unit.first, box.y0), min(unit.last, box.y1)
                    if unit.group != group or first >= last:
                        continue
                    rows = arrays(unit)["planes"][:, :, first - unit.first : last - unit.first, box.x0 : box.x1]
                    window[:, :, first - box.y0 : last - box.y0] = rows
                for channel in range(len(job.channels)):
                    for layer, section in enumerate(own):
                        writer.write(channel, job.sections.index(section), box, window[channel, layer])
    return Map.open(path)


def partner_sums(job: AttentionJob, arrays: Arrays) -> dict[str, NDArray[Any]]:
    """Arrays of `PartnerSums` over all units: those named `sum:` added, the others one after the other."""
    total: dict[str, NDArray[Any]] = {}
    blocks: dict[str, list[NDArray[Any]]] = {"block_row": [], "block_weight": []}
    for unit in job.units:
        found = arrays(unit)
        for name in found:
            if name.startswith("sum:"):
                total[name] = total[name] + found[name] if name in total else found[name]
            elif name in blocks:
                blocks[name].append(found[name])
    return {**total, **{name: np.concatenate(parts) for name, parts in blocks.items()}}
