"""Statistics of the virtual brain's cells beside what is stated: densities, spacing, make-up, sizes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.spatial import cKDTree

from tera_mind.simulate import celltypes, regions
from tera_mind.simulate.cells import make_cells
from tera_mind.simulate.windows import VirtualBrain

CORTEX = ("layer 1", "layer 2/3", "layer 4", "layer 5", "layer 6")
CEREBELLUM = ("CB molecular", "Purkinje layer", "CB granule")


@dataclass(frozen=True)
class Row:
    """A statistic: what is stated of real tissue, what the simulator makes, and why where they differ."""

    name: str
    stated: float | tuple[float, float]
    simulated: float
    note: str = ""

    @property
    def within(self) -> bool:
        low, high = self.stated if isinstance(self.stated, tuple) else (self.stated, self.stated)
        return 0.85 * low <= self.simulated <= 1.15 * high

    def markdown(self) -> str:
        stated = "-".join(f"{v:,.4g}" for v in (self.stated if isinstance(self.stated, tuple) else (self.stated,)))
        return (
            f"| {self.name} | {stated} | {self.simulated:,.4g} | {'yes' if self.within else '**no**'} | {self.note} |"
        )


def whole_cells(brain: VirtualBrain, sections: Sequence[int]) -> tuple[list, np.ndarray, list[float]]:
    """Cells of whole sections (strip by strip), mm2 of every region in them, and the share of tissue in the canvas."""
    s = brain.settings
    found, area, tissue = [], np.zeros(len(regions.REGIONS)), []
    (y0, x0), step = s.corner_um, 20.0
    for section in sections:
        z = brain.z_um[section]
        for top in np.arange(0, s.height_um, 1500.0):
            edges = (y0 + top, y0 + min(top + 1500.0, s.height_um), x0, x0 + s.width_um)
            found.append(make_cells(s.work, s.anatomy, section, z, edges))
        y, x = np.arange(y0, y0 + s.height_um, step), np.arange(x0, x0 + s.width_um, step)
        counts = np.bincount(s.anatomy.region(y[:, None], x[None, :], z).ravel(), minlength=len(area))
        area += counts * step**2 * 1e-6
        tissue.append(counts[2:].sum() / counts.sum())
    return found, area, tissue


def tissue_shares(brain: VirtualBrain) -> float:
    """Share of tissue in the canvas over all sections of a brain."""
    s = brain.settings
    y, x = ((np.arange(60) + 0.5) * side / 60 for side in (s.height_um, s.width_um))
    return float(np.mean([(brain.regions_at(z, y[:, None], x[None, :]) > 1).mean() for z in range(s.sections)]))


def rows_of_cells(brain: VirtualBrain, sections: Sequence[int]) -> list[Row]:
    found, area, _ = whole_cells(brain, sections)
    region = np.concatenate([c.region for c in found])
    kind = np.concatenate([c.kind for c in found])
    passed = np.concatenate([c.passes_qc for c in found])
    rows = [Row("tissue in the canvas, mean of all sections, %", (46, 52), 100 * tissue_shares(brain))]
    rows.append(Row("cells that pass quality control a mm2, whole brain", 1750, passed.sum() / area[2:].sum()))
    rows.append(Row("nuclei for each such cell", 1.4, len(passed) / passed.sum()))
    for index, about in enumerate(regions.REGIONS):
        if area[index] > 0.02 and about.cells_mm2:
            here = passed[region == index].sum() / area[index]
            note = "" if about.name in STATED else "own estimate: none is stated"
            rows.append(Row(f"cells a mm2, {about.name}", about.cells_mm2, here, note))
    granule = (region == regions.INDEX["CB granule"]).sum() / area[regions.INDEX["CB granule"]]
    rows.append(Row("nuclei a mm2, cerebellar granule layer (at least)", 15000, granule))
    near = []
    for part in found:
        keep = part.passes_qc & ~np.isin(part.region, [regions.INDEX[name] for name in CEREBELLUM])
        points = np.stack([part.y_um[keep], part.x_um[keep]], 1)
        if len(points) > 50:
            near.append(cKDTree(points).query(points, k=2)[0][:, 1])
    note = "cells that pass quality control, without the cerebellum"
    for percent, stated, value in zip(
        (5, 25, 50, 75, 95),
        (8.0, 11.3, 14.3, 18.0, 25.2),
        np.percentile(np.concatenate(near), (5, 25, 50, 75, 95)),
        strict=True,
    ):
        rows.append(Row(f"nearest neighbour, {percent} %, um", stated, value, note))
    rows += make_up_rows(region, kind)
    rows += shape_rows(found)
    return rows


#: regions whose density the atlas states
STATED = {
    *CORTEX,
    "fibre tract",
    "striatum",
    "thalamus",
    "CA",
    "dentate gyrus",
    "hippocampal molecular",
    "CB molecular",
}
MAKE_UP = (
    ("layer 1", "Astrocyte", 30), ("layer 1", "Oligodendrocyte", 13), ("layer 1", "Microglia", 9),
    ("layer 2/3", "L23 exc", 62), ("layer 2/3", "Interneuron", 9), ("layer 2/3", "Astrocyte", 8),
    ("layer 4", "L23 exc", 67), ("layer 4", "Oligodendrocyte", 3), ("layer 5", "L56 exc", 52),
    ("layer 5", "Oligodendrocyte", 6), ("layer 6", "L56 exc", 61), ("layer 6", "Oligodendrocyte", 11),
    ("fibre tract", "Oligodendrocyte", 69), ("fibre tract", "Astrocyte", 11), ("striatum", "MSN", 55),
    ("striatum", "Astrocyte", 11), ("striatum", "Oligodendrocyte", 10), ("thalamus", "Thal exc", 48),
    ("thalamus", "Oligodendrocyte", 18), ("thalamus", "Astrocyte", 12),
    ("dentate gyrus", "DG gran", 85), ("pia", "VLMC", 52),
)  # fmt: skip


def make_up_rows(region: np.ndarray, kind: np.ndarray) -> list[Row]:
    rows = []
    for place, name, stated in MAKE_UP:
        here = kind[region == regions.INDEX[place]]
        rows.append(Row(f"{name} in {place}, %", stated, 100 * float((here == celltypes.INDEX[name]).mean())))
    return rows


def shape_rows(found: list) -> list[Row]:
    rows = []
    chosen = [c.take(~np.isin(c.region, [regions.INDEX[name] for name in CEREBELLUM])) for c in found]
    radius = np.concatenate([np.sqrt(c.major_um * c.minor_um) for c in chosen])
    ratio = np.concatenate([c.minor_um / c.major_um for c in chosen])
    for percent, stated in ((10, 2.5), (50, 4.4), (90, 6.0)):
        note = (
            "the stated spread holds cut and touching nuclei of a segmentation"
            if percent != 50
            else "without the cerebellum"
        )
        rows.append(Row(f"nucleus radius, {percent} %, um", stated, float(np.percentile(radius, percent)), note))
    rows.append(
        Row("nucleus axis ratio, median", 0.83, float(np.median(ratio)), "by type as stated: most types are 0.88-0.93")
    )
    bright = np.concatenate([c.dapi for c in chosen])
    rows.append(Row("nucleus intensity, CV between nuclei", 0.36, float(bright.std() / bright.mean())))
    kinds = np.concatenate([c.kind for c in found])
    sizes = np.concatenate([np.sqrt(c.major_um * c.minor_um) for c in found])
    somata = np.concatenate([c.soma_um for c in found])
    worst = {"nucleus radius": 0.0, "soma radius": 0.0}
    for index, kind in enumerate(celltypes.TYPES):
        if (kinds == index).sum() > 50:
            own = kinds == index
            for name, values, wanted in (
                ("nucleus radius", sizes, kind.nucleus_um),
                ("soma radius", somata, kind.soma_um),
            ):
                worst[name] = max(worst[name], abs(float(np.median(values[own])) / wanted - 1))
    for name, value in worst.items():
        rows.append(Row(f"{name} by type: largest deviation of a median, %", (0, 15), 100 * value))
    return rows
