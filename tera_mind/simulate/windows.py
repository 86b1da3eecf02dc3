"""Any window of any section: images, transcripts, cells and regions, from the settings and the place alone."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tera_mind.errors import InputError
from tera_mind.geometry import Box
from tera_mind.simulate import celltypes, regions
from tera_mind.simulate.brains import CANVAS_UM, CORNER_UM, Settings
from tera_mind.simulate.cells import LARGEST_CELL_UM, SECTION_UM, Cells, make_cells
from tera_mind.simulate.optics import padded, photograph, spread_grid
from tera_mind.simulate.panel import expression, gene_numbers, panel
from tera_mind.simulate.regions import OUTSIDE, VENTRICLE
from tera_mind.simulate.registration import SectionMap
from tera_mind.simulate.stamps import Light, Plane, draw
from tera_mind.simulate.transcripts import FLOOR_SHARE, LARGEST_NEUROPIL_UM, Transcriptome, TranscriptRows
from tera_mind.simulate.vessels import vessels

STAINS = ("DAPI", "PolyT")
#: grid on which the tissue between cells is evaluated
GRID_UM = 4.0
_LUMEN_LIGHT = 0.25


@dataclass(frozen=True)
class Window:
    """A window of a section. `images` (stain, plane, y, x); transcripts and cells in um from the canvas' corner; cells
    are those whose centre lies in the window; `labels` (y, x): the cell whose nucleus is on top, 0 where none is.
    """

    box: Box
    images: NDArray[np.uint8] | NDArray[np.uint16]
    transcripts: TranscriptRows
    cells: Cells
    labels: NDArray[np.uint32]


@dataclass(frozen=True)
class VirtualBrain:
    """A brain that is computed where it is looked at."""

    settings: Settings

    def __post_init__(self) -> None:
        if self.settings.perturbation is not None:
            self.settings.perturbation.check(self.genes)

    @cached_property
    def z_um(self) -> list[float]:
        return self.settings.z_um()

    @cached_property
    def genes(self) -> tuple[str, ...]:
        return panel(self.settings.genes, supporting=self.settings.preset.supporting)

    @property
    def canvas(self) -> Box:
        height, width = self.settings.pixels
        return Box(0, height, 0, width)

    def map_of(self, section: int) -> SectionMap:
        """Misregistration of a section, atlas to section; the canvas' corner is at the same place in both."""
        s = self.settings
        middle = (s.corner_um[0] + s.height_um / 2, s.corner_um[1] + s.width_um / 2)
        return SectionMap(s.key, section, s.misregister, s.scale, middle)

    @cached_property
    def transcriptome(self) -> Transcriptome:
        """Panel and factors: the brain as a whole gets the wanted transcripts a um2 of tissue."""
        s = self.settings
        numbers = gene_numbers(s.genes, supporting=s.preset.supporting)
        share = region_shares(s)
        in_cells = (
            (share * s.preset.density * regions.nuclei_um2()) @ celltypes.shares() @ expression(numbers).sum(axis=0)
        )
        factor = float(
            f"{s.density_um2 * (1 - FLOOR_SHARE) / float(in_cells):.3g}"
        )  # the last digits are the machine's
        return Transcriptome(s.key, numbers, self.genes, factor, FLOOR_SHARE * s.density_um2, s.perturbation)

    def cells_near(self, section: int, box: Box, margin_um: float) -> Cells:
        """Cells with their centre in a window or at most `margin_um` outside it; positions in um of the canvas."""
        s, mapped = self.settings, self.map_of(section)
        edges = [edge * s.pixel_um for edge in (box.y0, box.y1, box.x0, box.x1)]
        outer = (edges[0] - margin_um, edges[1] + margin_um, edges[2] - margin_um, edges[3] + margin_um)
        corner = s.corner_um
        window = mapped.atlas_window(
            outer[0] + corner[0], outer[1] + corner[0], outer[2] + corner[1], outer[3] + corner[1]
        )
        cells = make_cells(s.work, s.anatomy, section, self.z_um[section], window)
        if s.perturbation is not None:
            cells = s.perturbation.cells(cells, s.key, section)
        y_um, x_um = mapped.to_section(cells.y_um, cells.x_um)
        y_um, x_um = y_um - corner[0], x_um - corner[1]
        if s.misregister:
            cos, sin = mapped.direction
            turned = (cells.cos * cos - cells.sin * sin, cells.sin * cos + cells.cos * sin)
            cells = replace(cells, cos=turned[0], sin=turned[1])
        inside = (y_um >= outer[0]) & (y_um < outer[1]) & (x_um >= outer[2]) & (x_um < outer[3])
        return replace(cells, y_um=y_um, x_um=x_um).take(inside)

    def window(self, section: int, box: Box) -> Window:
        """Everything of a window, in the section's own pixels. Raises `InputError` outside the canvas."""
        s = self.settings
        if not 0 <= section < s.sections or not self.canvas.contains(box) or box.is_empty:
            raise InputError(f"section {section}, window {box} is not in 0:{s.sections} of {self.canvas}")
        outer = padded(box, s.pixel_um)
        widest = max(LARGEST_CELL_UM + (box.y0 - outer.y0 + 1) * s.pixel_um, LARGEST_CELL_UM + LARGEST_NEUROPIL_UM)
        cells = self.cells_near(section, box, widest)
        between = self.between_cells(section, box)
        planes, labels = [], np.zeros((box.height, box.width), np.uint32)
        inner = box.shift(-outer.y0, -outer.x0).slices()
        for plane, focus_um in enumerate(focal_planes(s.planes)):
            light: Light = draw(cells, s.key, section, s.pixel_um, outer, focus_um)
            planes.append(
                photograph(
                    light, box, between, pixel_um=s.pixel_um, staining=s.preset.staining, key=(s.key, section, plane),
                    bits=s.bits,
                )
            )  # fmt: skip
            labels = light.labels[inner]
        transcripts = self._transcripts(section, box, cells)
        row, column = (np.floor(part * (1.0 / s.pixel_um)) for part in (cells.y_um, cells.x_um))
        own = (row >= box.y0) & (row < box.y1) & (column >= box.x0) & (column < box.x1)
        images: NDArray[Any] = np.stack(planes, axis=1)
        return Window(box, images, transcripts, cells.take(own), np.ascontiguousarray(labels))

    def transcripts(self, section: int, box: Box) -> TranscriptRows:
        """Transcripts of a window without its images."""
        return self._transcripts(section, box, self.cells_near(section, box, LARGEST_CELL_UM + LARGEST_NEUROPIL_UM))

    def _transcripts(self, section: int, box: Box, cells: Cells) -> TranscriptRows:
        s, mapped, corner = self.settings, self.map_of(section), self.settings.corner_um
        y0, y1, x0, x1 = (edge * s.pixel_um for edge in (box.y0, box.y1, box.x0, box.x1))
        window = mapped.atlas_window(y0 + corner[0], y1 + corner[0], x0 + corner[1], x1 + corner[1])
        floor = self.transcriptome.floor(s.anatomy, section, self.z_um[section], window)
        y_um, x_um = mapped.to_section(floor.y_um, floor.x_um)
        floor = replace(floor, y_um=y_um - corner[0], x_um=x_um - corner[1])
        rows = TranscriptRows.join([self.transcriptome.of_cells(cells, section), floor])
        row, column = (np.floor(part * (1.0 / s.pixel_um)) for part in (rows.y_um, rows.x_um))
        return rows.take((row >= box.y0) & (row < box.y1) & (column >= box.x0) & (column < box.x1))

    def regions_at(self, section: int, y_um: NDArray[np.float64], x_um: NDArray[np.float64]) -> NDArray[np.int8]:
        """Region of places given in um from the canvas' corner."""
        corner = self.settings.corner_um
        y, x = np.broadcast_arrays(y_um + corner[0], x_um + corner[1])
        y, x = self.map_of(section).to_atlas(y, x)
        return self.settings.anatomy.region(y, x, self.z_um[section])

    def between_cells(self, section: int, box: Box) -> tuple[Plane, Plane]:
        """Brightness of the tissue between cells on a window, DAPI and PolyT, relative to cortex."""
        s = self.settings
        first = [int(np.floor(edge * s.pixel_um / GRID_UM)) - 3 for edge in (box.y0, box.x0)]
        last = [int(np.ceil(edge * s.pixel_um / GRID_UM)) + 4 for edge in (box.y1, box.x1)]
        y_um, x_um = ((np.arange(a, b) + 0.5) * GRID_UM for a, b in zip(first, last, strict=True))
        corner = s.corner_um
        y, x = np.broadcast_arrays(y_um[:, None] + corner[0], x_um[None, :] + corner[1])
        y, x = self.map_of(section).to_atlas(y, x)
        z_um = self.z_um[section]
        region = s.anatomy.region(y, x, z_um)
        hollow = np.ones(region.shape, np.float32)
        inside = region > VENTRICLE
        hollow[inside] = np.where(
            vessels(s.key, y[inside], x[inside], z_um).lumen, np.float32(_LUMEN_LIGHT), np.float32(1)
        )
        planes = []
        for stain in ("dapi", "polyt"):
            grid = _soften(regions.column(stain).astype(np.float32)[region] * hollow)
            planes.append(spread_grid(grid, (first[0], first[1]), GRID_UM, box, s.pixel_um))
        return planes[0], planes[1]


def _soften(grid: Plane) -> Plane:
    """Blur over neighbours of a grid, (1 2 1) / 4 along both axes; its rim is not used."""
    for _ in range(2):
        grid = np.pad(grid, 1, mode="edge")
        grid = (grid[:-2] + grid[2:]) * np.float32(0.25) + grid[1:-1] * np.float32(0.5)
        grid = (grid[:, :-2] + grid[:, 2:]) * np.float32(0.25) + grid[:, 1:-1] * np.float32(0.5)
    return grid


def focal_planes(planes: int) -> list[float]:
    """Depths in um of the focal planes in a section: its middle, or planes 1.5 um apart."""
    return [SECTION_UM / 2 + 1.5 * (index - (planes - 1) / 2) for index in range(planes)]


def region_shares(settings: Settings) -> NDArray[np.float64]:
    """Share of every region in the tissue of the whole brain, on a coarse grid of a dozen sections."""
    scale = settings.scale
    step = 60.0 * scale
    y = np.arange(CORNER_UM[0] * scale, (CORNER_UM[0] + CANVAS_UM[0]) * scale, step)
    x = np.arange(CORNER_UM[1] * scale, -CORNER_UM[1] * scale, step)
    first = settings.preset.first_mm
    total = np.zeros(len(regions.REGIONS))
    for z_mm in np.linspace(first, 9.9, 12):
        region = settings.anatomy.region(y[:, None], x[None, :], float(z_mm) * 1000 * scale)
        total += np.bincount(region.ravel(), minlength=len(total))
    total[[OUTSIDE, VENTRICLE]] = 0
    return np.asarray(total / total.sum())
