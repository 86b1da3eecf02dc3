"""From merged measurements to figures: rows with intervals and paired differences, one topic a function.

Every function asks the results for the few arrays that it needs, so memory holds one of them at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int
from numpy.typing import NDArray

from tera_mind.metrics import spectra
from tera_mind.metrics.bootstrap import cell_difference, cell_mean
from tera_mind.metrics.cells import CellSums, merge
from tera_mind.metrics.partial import Results
from tera_mind.metrics.plan import CEILING, GENERATED, REAL, Plan
from tera_mind.metrics.seam_figures import SeamFigure, coherent_step, gradient_index, grid_spectrum
from tera_mind.metrics.seam_sums import SeamSums, merge_seams
from tera_mind.metrics.strata import Group, StratumRow, groups, strata_rows
from tera_mind.metrics.table import LARGE_METRICS, PATCH_METRICS, Paired, Row, paired_row
from tera_mind.metrics.zcontinuity import z_correlation_gap

#: measures of a seam, by the end of their names
SEAMS = {"index": gradient_index, "step": coherent_step, "spectrum": grid_spectrum}


@dataclass(frozen=True)
class Resampling:
    """Number of bootstrap resamples and their seed."""

    resamples: int
    seed: int


@dataclass(frozen=True)
class Measured:
    """All that was measured: places, results of the test box and of the reference tissue; `genes` shared genes."""

    plan: Plan
    test: Results
    reference: Results
    draw: Resampling
    genes: int

    def patch_cells(self, name: str) -> Int[np.ndarray, " patch"]:
        """Bootstrap cells of "patch", "large" or "z" boxes."""
        return self.plan.cells(self.test.array(f"{name}_boxes"))

    def of(self, method: str) -> Results:
        return self.reference if method == CEILING else self.test

    def cell_sums(self, what: str, method: str, stain: str) -> CellSums:
        """Sums by cell of all blocks as one."""
        found = self.of(method)
        return merge([CellSums(*(found.array(f"{what}/{method}/{stain}/{part}") for part in CellSums._fields))])


def patch_rows(found: Measured, methods: Sequence[str]) -> list[Row]:
    """Means over patches of the paired scores."""
    rows = []
    for boxes, metrics in (("patch", PATCH_METRICS), ("large", LARGE_METRICS)):
        cells = found.patch_cells(boxes)
        for method in methods:
            for metric in metrics:
                for stain in found.plan.stains:
                    values = found.test.array(f"{metric}/{method}/{stain}")
                    mean = cell_mean(values, cells, found.draw.resamples, found.draw.seed)
                    rows.append(Row.of(method, metric, stain, mean, _why_no_patch(found.plan, boxes)))
    return rows


def _why_no_patch(plan: Plan, boxes: str) -> str:
    if boxes == "large":
        return f"no square of {plan.large_px} px with transcripts fits into the region"
    return "no patch has transcripts and contrast"


def patch_pairs(found: Measured, controls: Sequence[str]) -> list[Paired]:
    """Generated against each control on the same patches; positive: generated is better."""
    rows = []
    for boxes, metrics in (("patch", PATCH_METRICS), ("large", LARGE_METRICS)):
        cells = found.patch_cells(boxes)
        for metric in metrics:
            for stain in found.plan.stains:
                own = found.test.array(f"{metric}/{GENERATED}/{stain}")
                for control in controls:
                    other = found.test.array(f"{metric}/{control}/{stain}")
                    gain = cell_difference(own, other, cells, found.draw.resamples, found.draw.seed)
                    rows.append(paired_row(metric, stain, control, gain, "no patch with transcripts"))
    return rows


def seam_rows(found: Measured) -> tuple[list[Row], dict[str, NDArray[Any]]]:
    """Three measures of seams at every grid, their null, and the gradient index by shift of the grid."""
    rows, phases = [], {}
    for name, grid in found.plan.seam_grids.items():
        prefix = "" if name == "seams" else "tile_"
        for method in found.plan.images:
            for stain in found.plan.stains:
                key = f"{name}/{method}/{stain}"
                parts = SeamSums(*(found.test.array(f"{key}/{part}") for part in SeamSums._fields))
                sums = merge_seams([parts])
                figures = {
                    f"{prefix}seam_{end}": measure(sums, grid, found.draw.resamples, found.draw.seed)
                    for end, measure in SEAMS.items()
                }
                for metric, figure in figures.items():
                    rows.append(Row.of(method, metric, stain, figure.estimate, _why_no_seam(metric)))
                    null = f"{prefix}seam_null" if metric.endswith("index") else f"{metric}_null"
                    rows.append(Row.of(method, null, stain, figure.null, _why_no_seam(metric)))
                index: SeamFigure = figures[f"{prefix}seam_index"]
                phases[f"{prefix}seam_phase/{method}/{stain}"] = index.shifts
    return rows, phases


def _why_no_seam(metric: str) -> str:
    if metric.endswith("spectrum"):
        return "needs a region of at least three grid squares a side, and an image with texture"
    return "no border of the grid inside the box, or an image without any gradient"


def look_rows(found: Measured) -> list[Row]:
    """Distances of power spectra and of histograms to the real image, for the ceiling as well."""
    rows = []
    for stain in found.plan.stains:
        real = {what: found.cell_sums(what, REAL, stain) for what in ("spectrum", "histogram")}
        for method in found.plan.methods:
            if method == REAL:
                continue
            for what, metric, measure in (
                ("spectrum", "spectrum_distance", spectra.spectrum_distance),
                ("histogram", "histogram_wasserstein", spectra.histogram_wasserstein),
            ):
                own = found.cell_sums(what, method, stain)
                distance = measure(own, real[what], found.draw.resamples, found.draw.seed)
                rows.append(Row.of(method, metric, stain, distance, "no whole patch with transcripts on both sides"))
    return rows


def continuity_rows(found: Measured) -> list[Row]:
    """Correlation of neighbouring sections, and its gap to that of the real sections."""
    rows = []
    cells, why = found.patch_cells("z"), "one section, or no patch with transcripts in two"
    for stain in found.plan.stains:
        real = found.test.array(f"z/{REAL}/{stain}")
        for method in found.plan.images:
            if f"z/{method}/{stain}" not in found.test:
                continue
            own = found.test.array(f"z/{method}/{stain}")
            settings = found.draw.resamples, found.draw.seed
            rows.append(Row.of(method, "z_correlation", stain, cell_mean(own, cells, *settings), why))
            if method != REAL:
                gap = z_correlation_gap(own, real, cells, *settings)
                rows.append(Row.of(method, "z_correlation_gap", stain, gap, why))
    return rows


def patch_groups(
    found: Measured, section_names: Mapping[int, str], regions: NDArray[Any] | None, names: Mapping[int, str]
) -> list[Group]:
    """Groups of patches by section, density of transcripts and region."""
    boxes = found.test.array("patch_boxes")
    made = groups(boxes[:, 0], found.test.array("patch_transcripts"), regions, names)
    return [g._replace(name=section_names[int(g.name)]) if g.stratum == "section" else g for g in made]


def strata(found: Measured, methods: Sequence[str], members: Sequence[Group]) -> list[StratumRow]:
    """Every patch score in every group, one score in memory at a time."""
    cells = found.patch_cells("patch")
    rows: list[StratumRow] = []
    for method in methods:
        for metric in PATCH_METRICS:
            for stain in found.plan.stains:
                scores = {(method, metric, stain): found.test.array(f"{metric}/{method}/{stain}")}
                rows += strata_rows(scores, members, cells, found.draw.resamples, found.draw.seed)
    return rows


def patch_arrays(found: Measured, methods: Sequence[str]) -> Iterator[str]:
    """Names of the arrays that are kept as they were measured."""
    for boxes, metrics in (("patch", PATCH_METRICS), ("large", LARGE_METRICS)):
        yield f"{boxes}_boxes"
        yield from (
            f"{metric}/{method}/{stain}" for metric in metrics for method in methods for stain in found.plan.stains
        )
    yield "patch_transcripts"


def spectrum_arrays(found: Measured) -> dict[str, NDArray[Any]]:
    """Mean spectra and histograms of every method."""
    arrays: dict[str, NDArray[Any]] = {}
    for method in found.plan.methods:
        for stain in found.plan.stains:
            sums = found.cell_sums("spectrum", method, stain)
            if len(sums.cells):
                arrays[f"spectrum/{method}/{stain}"] = spectra.mean_spectrum(sums)
                histogram = found.cell_sums("histogram", method, stain)
                arrays[f"histogram/{method}/{stain}"] = histogram.sums.sum(axis=0)
    arrays["spectrum_cycles_per_um"] = spectra.frequencies(found.plan.whole_px, found.plan.pixel_um)
    return arrays
