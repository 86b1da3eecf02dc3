"""What one block of an image says about seams: sums by bootstrap cell that add over blocks and sections.

Lines lie between pixel y - 1 and pixel y (columns alike) and belong to pixel y. Of every line three things are kept:

- |gradient|, the change across the line, pixel by pixel;
- |step|, the coherent change: levels averaged along a stretch of the line, so that noise averages out; half the changes
  at the two lines beside it are taken away, so that a gentle slope of the tissue is no step;
- the transform of the |gradient| profile at the grid's frequencies and at those beside them.

All but the last are whole numbers and exact. `tera_mind.metrics.seam_figures` makes measures of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Complex, Float, Int, UInt8

from tera_mind.errors import InputError
from tera_mind.geometry import Box
from tera_mind.metrics.cells import CellSums, merge

#: pixels that a block needs around itself, inside the test box
HALO_PX = 2
#: harmonics of the grid, and most frequencies to either side of each
HARMONICS, BESIDE = 4, 4
#: most shifts of the grid that are told apart
MAX_SHIFTS = 128
#: numbers of cells between which their side is chosen
FEW_CELLS, MANY_CELLS = 8, 36

#: |gradient| and its pixels, |step| and its stretches
LineTable = Int[np.ndarray, "line column 4"]


@dataclass(frozen=True)
class SeamGrid:
    """A grid of lines on the test box, and the bootstrap cells by which its sums are kept. All in canvas pixels.

    within: test box, whose edges are no lines; grid_px: side of a grid square (a patch, or a sampler's tile);
    origin: y, x of one of its corners; stretch_px: length along a line over which a step is averaged (a patch);
    cell_px: side of a cell, counted from the test box's corner, a multiple of grid_px and of stretch_px.
    """

    within: Box
    grid_px: int
    origin: tuple[int, int]
    stretch_px: int
    cell_px: int

    def __post_init__(self) -> None:
        if self.grid_px < 4 or self.stretch_px < 1 or self.cell_px < 1:
            raise InputError(f"seams need a grid of 4 px or more, stretches and cells of 1 px or more, got {self}")
        if self.cell_px % self.grid_px or self.cell_px % self.stretch_px:
            raise InputError(
                f"the side of a cell must be a multiple of the grid's {self.grid_px} px and of the stretches' "
                f"{self.stretch_px} px, got {self.cell_px}"
            )

    @property
    def cell_columns(self) -> int:
        """Cells in a row of cells; a cell's number is row * cell_columns + column."""
        return -(-self.within.width // self.cell_px)

    @property
    def shifts_px(self) -> Int[np.ndarray, " shift"]:
        """Shifts of the grid along both axes: every pixel, or `MAX_SHIFTS` evenly spread ones of a wide grid."""
        count = min(self.grid_px, MAX_SHIFTS)
        return np.asarray(np.arange(count) * self.grid_px // count)

    @property
    def offsets(self) -> Int[np.ndarray, " offset"]:
        """Frequencies around a harmonic, in cycles a cell; 0 alone where cells are below three grid squares wide."""
        beside = min(BESIDE, (self.cell_px // self.grid_px - 1) // 2)
        return np.arange(-beside, beside + 1)

    @property
    def cycles(self) -> Int[np.ndarray, "harmonic offset"]:
        """Frequencies of the spectrum in cycles a cell, below the Nyquist frequency."""
        harmonics = np.arange(1, min(HARMONICS, self.grid_px // 2 - 1) + 1)
        return np.asarray(harmonics[:, None] * (self.cell_px // self.grid_px) + self.offsets)


class SeamSums(NamedTuple):
    """Sums by cell, of one block or of many.

    lines: (cell, shift + 1, 4), for every shift of the grid the lines of the shifted grid, last all lines; |gradient|
    in grey levels and its pixels, |step| in 1 / (2 stretch_px) grey levels and its stretches. waves: (cell, axis, 2,
    harmonic, offset), transforms of |gradient| and of the number of pixels.
    """

    cells: Int[np.ndarray, " cell"]
    lines: Int[np.ndarray, "cell s 4"]
    waves: Complex[np.ndarray, "cell 2 2 harmonic offset"]


def seam_cell_px(within: Box, grid_px: int) -> int:
    """Side of the cells: four grid squares, more as long as 36 cells are left, less until there are 8."""

    def cells(side: int) -> int:
        return (within.height // side) * (within.width // side)

    side = 4 * grid_px
    while cells(2 * side) >= MANY_CELLS:
        side *= 2
    while cells(side) < FEW_CELLS and side > grid_px:
        side //= 2
    return side


def seam_sums(image: UInt8[np.ndarray, "y x"], at: Box, core: Box, grid: SeamGrid) -> SeamSums:
    """Sums of the lines that belong to the pixels of `core`, a block of the test box.

    `at` is where the image lies on the canvas: `core` with `HALO_PX` around it, less where the test box ends. The edges
    of `core` must lie between stretches, counted from the test box's corner, or on the test box's edge.
    """
    needed = core.grow(HALO_PX).intersect(grid.within)
    if (at.height, at.width) != image.shape or not at.contains(needed):
        raise InputError(
            f"seams of {core} need the pixels of {needed}, got {image.shape[0]} x {image.shape[1]} at {at}"
        )
    stretch, within = grid.stretch_px, grid.within
    starts, stops = (core.y0 - within.y0, core.x0 - within.x0), (core.y1 - within.y0, core.x1 - within.x0)
    cut = [n % stretch and n != size for n, size in zip(stops, (within.height, within.width), strict=True)]
    if any(cut) or any(n % stretch for n in starts):
        raise InputError(f"a block must end between stretches of {stretch} px counted from {within}, got {core}")
    rows, columns = (
        np.arange(start // grid.cell_px, -(-stop // grid.cell_px)) for start, stop in zip(starts, stops, strict=True)
    )
    down = _axis_sums(image, at, core, within, grid, grid.origin[0])
    turned = [Box(box.x0, box.x1, box.y0, box.y1) for box in (at, core, within)]
    right = _axis_sums(image.T, turned[0], turned[1], turned[2], grid, grid.origin[1])
    lines = down[0] + right[0].swapaxes(0, 1)
    waves = np.stack([down[1], right[1].swapaxes(0, 1)], axis=2)
    cells = (rows[:, None] * grid.cell_columns + columns).ravel()
    return SeamSums(cells, lines.reshape(len(cells), *lines.shape[2:]), waves.reshape(len(cells), *waves.shape[2:]))


def _axis_sums(
    image: UInt8[np.ndarray, "y x"], at: Box, core: Box, within: Box, grid: SeamGrid, origin: int
) -> tuple[Int[np.ndarray, "row column s 4"], Complex[np.ndarray, "row column 2 h o"]]:
    """Sums over the lines between rows, by rows and columns of cells."""
    # along a line a block owns its own pixels, across it the halo is needed too
    values = np.ascontiguousarray(image[:, core.x0 - at.x0 : core.x1 - at.x0])
    lines = np.arange(max(core.y0, within.y0 + 1), core.y1)
    column = (np.arange(core.x0, core.x1) - within.x0) // grid.cell_px
    column -= column[0]
    # a step needs a line to either side
    inner = (lines >= within.y0 + 2) & (lines <= within.y1 - 2)
    table = np.concatenate(
        [_gradients(values, lines - at.y0, column), _steps(values, lines - at.y0, column, inner, grid.stretch_px)],
        axis=2,
    )
    first_row, last_row = ((y - within.y0) // grid.cell_px for y in (core.y0, core.y1 - 1))
    row = (lines - within.y0) // grid.cell_px - first_row
    shape = (last_row - first_row + 1, table.shape[1])
    phase = (lines - origin) % grid.grid_px
    return _by_shift(table, row, phase, grid, shape), _transform(table, row, lines - within.y0, grid, shape)


def _gradients(
    values: UInt8[np.ndarray, "y x"], place: Int[np.ndarray, " line"], column: Int[np.ndarray, " x"]
) -> Int[np.ndarray, "line column 2"]:
    """|gradient| across each line and its pixels, by columns of cells; line i lies above row `place[i]`."""
    gradient = np.abs(np.diff(values.astype(np.int16), axis=0))[place - 1]
    starts = np.flatnonzero(np.diff(column, prepend=-1))
    sums = np.add.reduceat(gradient, starts, axis=1, dtype=np.int64)
    return np.stack([sums, np.broadcast_to(np.bincount(column), sums.shape)], axis=2)


def _steps(
    values: UInt8[np.ndarray, "y x"],
    place: Int[np.ndarray, " line"],
    column: Int[np.ndarray, " x"],
    inner: Bool[np.ndarray, " line"],
    stretch_px: int,
) -> Int[np.ndarray, "line column 2"]:
    """|step| of each line and its stretches, by columns of cells; a stretch cut by the test box's edge is left out."""
    stretches = values.shape[1] // stretch_px
    level = values[:, : stretches * stretch_px].reshape(len(values), stretches, stretch_px).sum(axis=2, dtype=np.int64)
    change = np.diff(level, axis=0)
    here = place[inner] - 1
    step = np.abs(2 * change[here] - change[here - 1] - change[here + 1])
    table = np.zeros((len(place), int(column[-1]) + 1, 2), np.int64)
    for stretch, owner in enumerate(column[: stretches * stretch_px : stretch_px]):
        table[inner, owner, 0] += step[:, stretch]
        table[inner, owner, 1] += 1
    return table


def _by_shift(
    table: LineTable,
    row: Int[np.ndarray, " line"],
    phase: Int[np.ndarray, " line"],
    grid: SeamGrid,
    shape: tuple[int, int],
) -> Int[np.ndarray, "row column s 4"]:
    """Sums of the lines of every shifted grid, last of all lines, by cells."""
    shifts = grid.shifts_px
    sums = np.zeros((shape[0], len(shifts) + 1, shape[1], 4), np.int64)
    np.add.at(sums, (row, np.full_like(row, len(shifts))), table)
    measured = np.isin(phase, shifts)
    np.add.at(sums, (row[measured], np.searchsorted(shifts, phase[measured])), table[measured])
    return sums.swapaxes(1, 2)


def _transform(
    table: LineTable,
    row: Int[np.ndarray, " line"],
    line: Int[np.ndarray, " line"],
    grid: SeamGrid,
    shape: tuple[int, int],
) -> Complex[np.ndarray, "row column 2 h o"]:
    """Fourier transform of |gradient| and of its pixels along the lines of each cell; `line` from the box's corner."""
    angle = (line % grid.cell_px)[:, None, None] * grid.cycles % grid.cell_px
    wave = np.exp(-2j * np.pi / grid.cell_px * angle)
    profile: Float[np.ndarray, "line column 2"] = table[:, :, :2].astype(np.float64)
    waves = np.zeros((*shape, 2, *grid.cycles.shape), np.complex128)
    for number in range(shape[0]):
        own = row == number
        waves[number] = np.tensordot(profile[own], wave[own], axes=(0, 0))
    return waves


def merge_seams(parts: Sequence[SeamSums]) -> SeamSums:
    """Sums of all blocks of an image as one, and of sections on the same cells, added in the order given."""
    lines = merge([CellSums(part.cells, part.lines) for part in parts])
    waves = merge([CellSums(part.cells, part.waves) for part in parts])
    return SeamSums(lines.cells, lines.sums, waves.sums)
