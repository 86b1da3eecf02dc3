"""Nuclei of all blocks as tables, and what the evaluation says of them: rows, paired differences, strata, arrays."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tera_mind.metrics.bootstrap import cell_difference
from tera_mind.metrics.nuclei.scores import Nuclei, Squares, count_error, nucleus_rows, reference_rows, summarise
from tera_mind.metrics.nuclei.table import NucleusTable
from tera_mind.metrics.plan import CEILING, GENERATED, REAL
from tera_mind.metrics.regions import RegionMap
from tera_mind.metrics.scores import Measured
from tera_mind.metrics.strata import StratumRow, groups, strata_rows
from tera_mind.metrics.table import Paired, Row, paired_row


@dataclass(frozen=True)
class NucleusFigures:
    """Everything about nuclei; empty where the brain has no DAPI."""

    table: list[Row] = field(default_factory=list)
    paired: list[Paired] = field(default_factory=list)
    arrays: dict[str, Callable[[], NDArray[Any]]] = field(default_factory=dict)
    excluded: dict[str, int] = field(default_factory=dict)
    #: error of the number of nuclei a window, by method, in the windows that count
    errors: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    found: Measured | None = None
    windows: Squares | None = None
    #: transcripts of those windows
    transcripts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    stain: str = ""

    def strata(self, regions: RegionMap | None, section_names: Mapping[int, str]) -> list[StratumRow]:
        """Errors of the number of nuclei by section, density of transcripts and region."""
        if self.found is None or self.windows is None:
            return []
        boxes, cells = self.windows.boxes[self.windows.kept], self.windows.cells[self.windows.kept]
        labels = None if regions is None else regions.at(boxes)
        members = [
            group._replace(name=section_names[int(group.name)]) if group.stratum == "section" else group
            for group in groups(boxes[:, 0], self.transcripts, labels, {} if regions is None else regions.names)
        ]
        scores = {(method, "nuclei_count_error", self.stain): values for method, values in self.errors.items()}
        return strata_rows(scores, members, cells, self.found.draw.resamples, self.found.draw.seed)


def nucleus_figures(found: Measured, controls: Sequence[str]) -> NucleusFigures:
    """Put the blocks' tables together, a method at a time, and compare each with the real one."""
    plan = found.plan
    if plan.nucleus_stain is None:
        return NucleusFigures()
    stain, draw = plan.stains[plan.nucleus_stain], found.draw
    windows, regions = (_squares(found, REAL, name) for name in ("window", "region"))
    real = _nuclei(found, REAL, windows, regions)
    made = NucleusFigures(
        excluded={
            "windows": int(windows.kept.sum()),
            "windows_without_transcripts": int((~windows.kept).sum()),
        },
        found=found,
        windows=windows,
        transcripts=found.test.array("window_transcripts")[windows.kept],
        stain=stain,
    )
    for method in plan.methods:
        if method == CEILING:
            continue
        own = real if method == REAL else _nuclei(found, method, windows, regions)
        made.table.extend(
            nucleus_rows(method, own, real, windows, regions, stain=stain, resamples=draw.resamples, seed=draw.seed)
        )
        if method != REAL:
            made.errors[method] = count_error(own, real, windows)
        made.arrays.update(_arrays(found, method, own, windows, regions))
    for name, squares in (("window", windows), ("region", regions)):
        made.arrays[f"{name}_boxes"] = partial(_given, squares.boxes[squares.kept])
    cells = windows.cells[windows.kept]
    for control in controls:
        gain = cell_difference(made.errors[control], made.errors[GENERATED], cells, draw.resamples, draw.seed)
        made.paired.append(paired_row("nuclei_count_error", stain, control, gain, "no window with transcripts"))
    made.table.extend(_ceiling(found, real, windows, stain, made))
    return made


def _given(array: NDArray[Any]) -> NDArray[Any]:
    return array


def _squares(found: Measured, method: str, name: str) -> Squares:
    """Windows or regions; those without transcripts do not count."""
    own = found.of(method)
    boxes = own.array(f"{name}_places")
    within = found.plan.ceiling if method == CEILING else found.plan.test
    return Squares(boxes, own.array(f"{name}_transcripts") > 0, found.plan.cells(boxes, within))


def _table(found: Measured, method: str) -> NucleusTable:
    own = found.of(method)
    names = NucleusTable.empty().arrays()
    return NucleusTable.concatenate([NucleusTable(**{n: own.array(f"nuclei/{method}/{n}") for n in names})])


def _nuclei(found: Measured, method: str, windows: Squares, regions: Squares) -> Nuclei:
    table = _table(found, method)
    within = found.plan.ceiling if method == CEILING else found.plan.test
    corners = np.zeros((len(table), 5), np.int64)
    corners[:, 0], corners[:, 1], corners[:, 3] = table.section, table.y.astype(np.int64), table.x.astype(np.int64)
    return summarise(table, found.plan.cells(corners, within), windows, regions, found.plan.pixel_um)


def _arrays(
    found: Measured, method: str, own: Nuclei, windows: Squares, regions: Squares
) -> dict[str, Callable[[], NDArray[Any]]]:
    """Counts and medians by square now, values by nucleus when they are asked for: those are many."""
    arrays: dict[str, Callable[[], NDArray[Any]]] = {}
    for name, squares, inside in (("window", windows, own.windows), ("region", regions, own.regions)):
        arrays[f"{name}_counts/{method}"] = partial(_given, inside.counts[squares.kept])
        for quantity, medians in inside.medians.items():
            arrays[f"{name}_{quantity}/{method}"] = partial(_given, medians[squares.kept])
    return arrays | _values(found, method, own)


def _values(found: Measured, method: str, own: Nuclei) -> dict[str, Callable[[], NDArray[Any]]]:
    return {f"nucleus_{quantity}/{method}": partial(_quantity, found, method, quantity) for quantity in own.values}


def _quantity(found: Measured, method: str, quantity: str) -> NDArray[Any]:
    return _table(found, method).quantities(found.plan.pixel_um)[quantity].astype(np.float32)


def _ceiling(found: Measured, real: Nuclei, windows: Squares, stain: str, made: NucleusFigures) -> list[Row]:
    """The reference tissue's nuclei, compared in distribution."""
    own_windows, own_regions = (_squares(found, CEILING, name) for name in ("window", "region"))
    own = _nuclei(found, CEILING, own_windows, own_regions)
    made.arrays.update(_values(found, CEILING, own))
    area = found.plan.test.height * found.plan.test.width * len(found.plan.sections)
    share = float(found.reference.total("sum:area_px")[0]) / area
    settings = {"resamples": found.draw.resamples, "seed": found.draw.seed}
    return reference_rows(CEILING, own, real, own_windows, windows, area_share=share, stain=stain, **settings)
