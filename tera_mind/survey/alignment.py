"""Whether transcripts lie where the nuclei are: cross-correlation of transcript density with the nuclear stain.

Transcripts are denser in and around nuclei than between cells, so the correlation of both, as a function of the shift
between them, peaks at no shift where a section is registered, at the offset where it is not, and nowhere where image
and transcripts do not belong together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from scipy import fft, ndimage

from tera_mind.formats.brain import Brain
from tera_mind.formats.tissue import CELL_PX
from tera_mind.geometry import Box

#: side of a grid cell: a few of them make a nucleus
GRID_UM = 0.8
#: side of a window that is correlated, and how far the shift is looked for
WINDOW_UM, REACH_UM = 220.0, 24.0
WINDOWS = 12
#: nuclei pass, the slope of the illumination and pixel noise do not: widths of the two Gaussians
FINE_UM, COARSE_UM = 1.2, 7.0
#: shifts nearer than this to the peak belong to it
PEAK_UM = 8.0
#: a peak so many standard deviations above the correlation elsewhere is no chance
SURE = 6.0
#: an offset that a nucleus of 8 um still forgives
TOLERATED_UM = 2.0


@dataclass(frozen=True)
class Alignment:
    """Where transcripts lie against nuclei: `dy_um`, `dx_um` move the transcripts onto the nuclei.

    correlation: at the peak, -1..1; sureness: its height above the correlation at other shifts, in their standard
    deviations; transcripts: how many were looked at.
    """

    dy_um: float
    dx_um: float
    correlation: float
    sureness: float
    transcripts: int

    @property
    def offset_um(self) -> float:
        return float(np.hypot(self.dy_um, self.dx_um))

    @property
    def related(self) -> bool:
        """Whether transcripts follow the nuclei at any shift at all."""
        return self.sureness >= SURE and self.correlation > 0

    @property
    def aligned(self) -> bool:
        return self.related and self.offset_um <= TOLERATED_UM

    def words(self) -> str:
        """One clause for people."""
        if not self.related:
            return (
                f"transcripts do not follow the nuclei at any shift up to {REACH_UM:g} um "
                f"(correlation {self.correlation:.2f}): image and transcripts do not belong together, or too little "
                "was seen"
            )
        if self.aligned:
            return f"transcripts lie on the nuclei (offset {self.offset_um:.1f} um, correlation {self.correlation:.2f})"
        down, right = ("down" if self.dy_um > 0 else "up"), ("right" if self.dx_um > 0 else "left")
        return (
            f"transcripts lie {self.offset_um:.1f} um off the nuclei: move them {abs(self.dy_um):.1f} um {down} and "
            f"{abs(self.dx_um):.1f} um {right} (correlation there {self.correlation:.2f})"
        )


def measure_alignment(brain: Brain, section: int, stain: int) -> Alignment | None:
    """The alignment of a section's transcripts with a nuclear stain; None where there is no tissue to judge by."""
    step = max(1, round(GRID_UM / brain.pixel_um))
    cell_um = step * brain.pixel_um
    total: NDArray[np.float64] | None = None
    power = np.zeros(2)
    seen = 0
    for box in tissue_windows(brain, section, max(step, round(WINDOW_UM / brain.pixel_um) // step * step)):
        density = _density(brain, section, box, step)
        seen += int(density.sum())
        nuclei = _shrunk(brain.image(box, [section])[stain, 0], step)
        first, second = (_band_passed(layer, cell_um) for layer in (density, nuclei))
        surface = _correlation(first, second)
        total = surface if total is None else total + surface
        power += (first**2).sum(), (second**2).sum()
    if total is None or not power.all():
        return None
    return _peak(total / np.sqrt(power.prod()), cell_um, seen)


def tissue_windows(brain: Brain, section: int, side_px: int, count: int = WINDOWS) -> list[Box]:
    """Windows of one size with the most tissue, at most `count`, evenly chosen among those that are half tissue."""
    side = min(side_px, brain.canvas.height, brain.canvas.width)
    tissue = brain.tissue(section)
    boxes = [box for box in brain.canvas.tiles(side, side) if (box.height, box.width) == (side, side)]
    share = np.array([_share(tissue, box) for box in boxes])
    half = np.flatnonzero(share >= 0.5)
    good = half if len(half) else np.flatnonzero(share > 0)
    return (
        [boxes[good[index]] for index in np.unique(np.linspace(0, len(good) - 1, count).astype(int))]
        if len(good)
        else []
    )


def _share(tissue: NDArray[np.bool_], box: Box) -> float:
    cells = tissue[box.y0 // CELL_PX : -(-box.y1 // CELL_PX), box.x0 // CELL_PX : -(-box.x1 // CELL_PX)]
    return float(cells.mean()) if cells.size else 0.0


def _density(brain: Brain, section: int, box: Box, step: int) -> Float[np.ndarray, "y x"]:
    """Transcripts of all genes in cells of `step` pixels; a last cell that is not whole is left out."""
    rows, columns = box.height // step, box.width // step
    found = brain.transcripts(section, box)
    y, x = found.y // step, found.x // step
    kept = (y < rows) & (x < columns)
    index = y[kept].astype(np.int64) * columns + x[kept]
    return np.bincount(index, weights=found.count[kept], minlength=rows * columns).reshape(rows, columns)


def _shrunk(image: NDArray[np.uint8], step: int) -> Float[np.ndarray, "y x"]:
    rows, columns = image.shape[0] // step, image.shape[1] // step
    cells = image[: rows * step, : columns * step].reshape(rows, step, columns, step)
    return np.asarray(cells.mean(axis=(1, 3), dtype=np.float64), np.float64)


def _band_passed(layer: NDArray[np.float64], cell_um: float) -> Float[np.ndarray, "y x"]:
    fine, coarse = (ndimage.gaussian_filter(layer, width / cell_um) for width in (FINE_UM, COARSE_UM))
    passed = fine - coarse
    return np.asarray(passed - passed.mean(), np.float64)


def _correlation(first: NDArray[np.float64], second: NDArray[np.float64]) -> Float[np.ndarray, "dy dx"]:
    """Sum over pixels of `first` moved by every shift times `second`; no shift at the centre, no wrapping."""
    shape = [fft.next_fast_len(2 * size - 1, real=True) for size in first.shape]
    product = np.conj(fft.rfft2(first, shape)) * fft.rfft2(second, shape)
    surface: NDArray[np.float64] = np.asarray(fft.irfft2(product, shape), np.float64)
    rows, columns = first.shape
    centred: NDArray[np.float64] = np.roll(surface, (rows - 1, columns - 1), (0, 1))
    return centred[: 2 * rows - 1, : 2 * columns - 1]


def _peak(surface: NDArray[np.float64], cell_um: float, transcripts: int) -> Alignment:
    centre = np.array(surface.shape) // 2
    dy, dx = (np.arange(size) - middle for size, middle in zip(surface.shape, centre, strict=True))
    # beyond half a window the overlap is too small to say anything
    far = np.minimum(np.array(surface.shape) // 4, int(2 * REACH_UM / cell_um))
    reach = np.minimum(far, int(REACH_UM / cell_um))
    near = (np.abs(dy)[:, None] <= reach[0]) & (np.abs(dx)[None] <= reach[1])
    y, x = np.unravel_index(np.argmax(np.where(near, surface, -np.inf)), surface.shape)
    beyond = np.hypot((np.arange(surface.shape[0]) - y)[:, None], np.arange(surface.shape[1]) - x) * cell_um > PEAK_UM
    elsewhere = surface[beyond & (np.abs(dy)[:, None] <= far[0]) & (np.abs(dx)[None] <= far[1])]
    spread = float(elsewhere.std()) if elsewhere.size > 1 else 0.0
    height = float(surface[y, x])
    sureness = (height - float(elsewhere.mean())) / spread if spread > 0 else 0.0
    return Alignment(
        dy_um=float((dy[y] + _vertex(surface[:, x], int(y))) * cell_um),
        dx_um=float((dx[x] + _vertex(surface[y], int(x))) * cell_um),
        correlation=height,
        sureness=sureness,
        transcripts=transcripts,
    )


def _vertex(line: NDArray[np.float64], index: int) -> float:
    """Where between its neighbours a peak lies, by the parabola through the three: -0.5..0.5 cells."""
    if not 0 < index < len(line) - 1:
        return 0.0
    left, middle, right = line[index - 1 : index + 2]
    bend = left - 2 * middle + right
    return float(np.clip(0.5 * (left - right) / bend, -0.5, 0.5)) if bend < 0 else 0.0


def nuclear_stain(stains: Sequence[str]) -> int | None:
    """Index of the stain that shows nuclei, by its name; None without one."""
    return next((index for index, name in enumerate(stains) if name.lower() in {"dapi", "hoechst", "dna"}), None)
