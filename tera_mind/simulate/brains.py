"""The three virtual brains, the sizes they come in, and the settings of a run."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from tera_mind.errors import InputError
from tera_mind.simulate import keys
from tera_mind.simulate.anatomy import Anatomy
from tera_mind.simulate.cells import SECTION_UM, Brainwork
from tera_mind.simulate.optics import Staining
from tera_mind.simulate.panel import gene_numbers
from tera_mind.simulate.perturb import Perturbation


@dataclass(frozen=True)
class Preset:
    """What sets a brain apart from the others; `seed` is added to the user's."""

    seed: int
    #: z of the first section on the brain's plan, mm; the supporting brains lack the olfactory bulb
    first_mm: float
    #: share of steps of 200 um between sections; the others are 100 um
    wide_steps: float
    density: float
    library_sigma: float
    staining: Staining
    bulb: bool
    supporting: bool


BRAINS = {
    "main": Preset(0, 1.25, 0.82, 1.0, 0.35, Staining(), bulb=True, supporting=False),
    "supp_m": Preset(
        101, 2.35, 0.55, 1.06, 0.38, Staining(dapi=1.12, polyt=0.88, tissue=1.1, noise=1.1), bulb=False, supporting=True
    ),
    "supp_f": Preset(
        202, 2.50, 0.50, 0.95, 0.33, Staining(dapi=0.9, polyt=1.1, tissue=0.92, noise=0.95), bulb=False, supporting=True
    ),
}
#: canvas of a whole brain, um: 288 x 416 tiles of 256 px at 0.108 um; its corner in the atlas (y, x), um
CANVAS_UM = (288 * 256 * 0.108, 416 * 256 * 0.108)
CORNER_UM = (-60.0, -CANVAS_UM[1] / 2)


@dataclass(frozen=True)
class Size:
    """A choice of canvas, pixels, sections and panel; `scale` shrinks the anatomy, so that small canvases show all.

    `corner_um`: the canvas' corner (y, x) in the atlas; None: the whole brain is on it. `first_mm`: the first section
    on the plan; None: the brain's own.
    """

    scale: float
    height_um: float
    width_um: float
    pixel_um: float
    sections: int
    genes: int
    bits: int
    first_mm: float | None
    corner_um: tuple[float, float] | None
    misregister: float


def _whole(scale: float, pixel_um: float, sections: int, genes: int, bits: int, first_mm: float | None) -> Size:
    height, width = (scale * side for side in CANVAS_UM)
    return Size(scale, height, width, pixel_um, sections, genes, bits, first_mm, None, 1.0)


SIZES = {
    "tiny": _whole(0.1, 0.85, 2, 60, 16, 5.9),
    "demo": Size(0.20, 480.0, 800.0, 0.425, 1, 60, 16, 6.4, (76.0, 110.0), 0.0),
    "bench": _whole(0.25, 0.425, 8, 500, 16, 4.6),
    "brain": _whole(1.0, 0.108, 50, 500, 16, None),
}


@dataclass(frozen=True)
class Settings:
    """A virtual brain as asked for; `InputError` where a value makes none."""

    brain: str = "main"
    size: str = "demo"
    seed: int = 0
    scale: float = 0.20
    height_um: float = 480.0
    width_um: float = 800.0
    corner_um: tuple[float, float] = (0.0, 0.0)
    pixel_um: float = 0.425
    sections: int = 1
    first_mm: float = 6.4
    #: regular distance of sections; None: the brain's own irregular one
    section_um: float | None = None
    genes: int = 60
    bits: int = 16
    planes: int = 1
    misregister: float = 0.0
    #: transcripts a um2 of tissue
    density_um2: float = 0.6
    perturbation: Perturbation | None = None

    @staticmethod
    def of(brain: str = "main", size: str = "demo", **changes: Any) -> Settings:
        """Settings of a brain in a size, with changes (None: as the size has it)."""
        if brain not in BRAINS:
            raise InputError(f"no brain {brain!r}: there are {', '.join(BRAINS)}")
        if size not in SIZES:
            raise InputError(f"no size {size!r}: there are {', '.join(SIZES)}")
        preset = SIZES[size]
        scale = changes.get("scale") or preset.scale
        values = asdict(preset)
        corner = preset.corner_um or (CORNER_UM[0] * preset.scale, CORNER_UM[1] * preset.scale)
        ratio = scale / preset.scale
        values["corner_um"] = (corner[0] * ratio, corner[1] * ratio)
        values["first_mm"] = BRAINS[brain].first_mm if preset.first_mm is None else preset.first_mm
        if preset.corner_um is None and scale != preset.scale:
            values["height_um"], values["width_um"] = (scale * side for side in CANVAS_UM)
        given = {name: value for name, value in changes.items() if value is not None}
        return replace(Settings(brain, size), **(values | given))

    def __post_init__(self) -> None:
        numbers = (
            self.scale,
            self.height_um,
            self.width_um,
            self.pixel_um,
            self.first_mm,
            self.misregister,
            *self.corner_um,
        )
        if not all(map(math.isfinite, numbers)) or not math.isfinite(self.section_um or 1.0):
            raise InputError("sizes of simulated tissue must be finite numbers")
        if min(self.height_um, self.width_um) < 20 or not 0.05 <= self.pixel_um <= 2:
            raise InputError(
                f"simulated tissue is at least 20 um a side at 0.05 to 2 um a pixel, got {self.height_um:g} x "
                f"{self.width_um:g} um at {self.pixel_um:g}"
            )
        if max(self.height_um, self.width_um) > 12_000:
            raise InputError(f"a brain fits on 12,000 um, got {self.height_um:g} x {self.width_um:g} um")
        if self.seed >= 2**53:
            raise InputError(f"the seed is below 2^53, got {self.seed}")
        if self.sections < 1 or self.seed < 0 or (self.section_um is not None and self.section_um < SECTION_UM):
            raise InputError(
                f"sections must be above 0, their distance at least {SECTION_UM:g} um, the seed not negative"
            )
        if not 0.08 <= self.scale <= 1:
            raise InputError(f"the scale of the anatomy is 0.08 to 1, got {self.scale:g}")
        if self.bits not in {8, 16} or not 1 <= self.planes <= 7:
            raise InputError(f"images have 8 or 16 bits and 1 to 7 planes, got {self.bits} and {self.planes}")
        if not 0 <= self.misregister <= 3 or not 0.05 <= self.density_um2 <= 5:
            raise InputError(
                f"misregistration is 0 to 3 and transcripts a um2 0.05 to 5, got {self.misregister:g} and "
                f"{self.density_um2:g}"
            )
        gene_numbers(self.genes)

    @property
    def preset(self) -> Preset:
        return BRAINS[self.brain]

    @property
    def key(self) -> int:
        """The seed of everything random."""
        return 1000 * self.seed + self.preset.seed

    @property
    def pixels(self) -> tuple[int, int]:
        """(height, width) of a section's images."""
        return round(self.height_um / self.pixel_um), round(self.width_um / self.pixel_um)

    @property
    def anatomy(self) -> Anatomy:
        return Anatomy(self.key, self.scale, self.preset.bulb)

    @property
    def work(self) -> Brainwork:
        return Brainwork(self.key, self.preset.density, self.preset.library_sigma)

    def z_um(self) -> list[float]:
        """Positions of the sections: steps of about 100 or 200 um of the unscaled brain, or regular ones."""
        first = self.first_mm * 1000 * self.scale
        if self.section_um is not None:
            return [first + index * self.section_um for index in range(self.sections)]
        steps = keys.section_numbers(self.key, keys.STEPS, 0, 2 * self.sections)
        wide = np.where(steps[: self.sections] < self.preset.wide_steps, 200.0, 100.0)
        jitter = 8.0 * (steps[self.sections :] - 0.5)
        scaled = np.maximum((wide + jitter) * self.scale, SECTION_UM)
        return [round(float(value), 3) for value in first + np.concatenate([[0.0], np.cumsum(scaled)[:-1]])]

    def record(self) -> dict[str, Any]:
        """The settings as plain values, for a file."""
        record = asdict(self)
        record["corner_um"] = list(self.corner_um)
        return record
