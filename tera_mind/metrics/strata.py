"""Where a method does well: patch scores by section, by density of transcripts and by region of a map."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from tera_mind.metrics.bootstrap import cell_mean
from tera_mind.metrics.cells import CellIds
from tera_mind.metrics.fidelity import Scores

DENSITIES = ("low", "middle", "high")


@dataclass(frozen=True)
class StratumRow:
    """Mean score of a method over the patches of one group; None where it has none."""

    stratum: str
    group: str
    method: str
    metric: str
    stain: str
    value: float | None
    low: float | None
    high: float | None
    n: int


class Group(NamedTuple):
    """Patches that belong together."""

    stratum: str
    name: str
    members: Bool[np.ndarray, " patch"]


def groups(
    sections: Int[np.ndarray, " patch"],
    transcripts: Int[np.ndarray, " patch"],
    regions: Int[np.ndarray, " patch"] | None = None,
    region_names: Mapping[int, str] | None = None,
) -> list[Group]:
    """Every section, every third of the patches by number of transcripts, every region; empty groups are left out.

    A region goes by its number where it has no name; 0 is outside the map and left out.
    """
    found = [Group("section", str(section), sections == section) for section in np.unique(sections).tolist()]
    third = density_third(transcripts)
    found += [Group("density", name, third == index) for index, name in enumerate(DENSITIES)]
    if regions is not None:
        names = {} if region_names is None else region_names
        numbers = [number for number in np.unique(regions).tolist() if number != 0]
        found += [Group("region", names.get(number, str(number)), regions == number) for number in numbers]
    return [group for group in found if group.members.any()]


def density_third(transcripts: Int[np.ndarray, " patch"]) -> Int[np.ndarray, " patch"]:
    """0, 1, 2: lowest, middle and highest third of patches by transcripts; equal patches share the lower third."""
    if not len(transcripts):
        return np.zeros(0, np.int64)
    edges = np.quantile(transcripts, [1 / 3, 2 / 3])
    return np.searchsorted(edges, transcripts, side="left")


def strata_rows(
    scores: Mapping[tuple[str, str, str], Scores],
    groups: Sequence[Group],
    cells: CellIds,
    resamples: int,
    seed: int,
) -> list[StratumRow]:
    """Mean and interval (cells resampled) of every (method, metric, stain) in every group, in their order."""
    rows = []
    for group in groups:
        inside = cells[group.members]
        for (method, metric, stain), values in scores.items():
            mean = cell_mean(values[group.members], inside, resamples, seed)
            rows.append(StratumRow(group.stratum, group.name, method, metric, stain, *mean))
    return rows
