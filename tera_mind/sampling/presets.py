"""Named sampler settings, each with what was measured to deserve its name (benchmarks/steps.py, docs/steps.md).

published: the paper's.

fast: the cheapest DDIM setting that the study calls faithful, a third of the published work. On unseen simulated
tissue, the shipped network, against 25 steps of DDIM from the same noise: Frechet distance 414 against 462 [387, 536]
(DAPI) and 134 against 162 [131, 192] (PolyT), seam index 0.941 against 0.942 [0.882, 0.999] and 0.964 against 0.978
[0.938, 1.015], nuclei F1 0.310 against 0.292 [0.240, 0.350]. What suffers are nuclear sizes: the distance of their
areas from the real ones is 0.190 against 0.148 [0.106, 0.193], just inside, and outside with 4 steps; other noise alone
moves it to 0.106. One network, one tissue: try it on yours with `benchmarks/steps.py --checkpoint`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from tera_mind.diffusion.steppers import StepperName
from tera_mind.errors import InputError


@dataclass(frozen=True)
class Preset:
    """A stepper (a name of `tera_mind.diffusion.steppers`) and its number of steps; `why` is one line for users."""

    stepper: StepperName
    steps: int
    why: str


#: name -> setting
PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        "published": Preset("ddim", 15, "15 DDIM steps, as in the paper"),
        "fast": Preset("ddim", 5, "5 DDIM steps, a third of the work; nuclear sizes fit a little less well"),
    }
)


def preset(name: str) -> Preset:
    """The setting of a name; `InputError` lists the names there are."""
    if name not in PRESETS:
        raise InputError(f"no preset {name!r}; there are {', '.join(PRESETS)}")
    return PRESETS[name]
