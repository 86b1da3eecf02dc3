"""Solvers: from x_t and the clamped x_0 the network implies to the state one step cleaner.

Every update is a weighted sum of image planes whose weights are computed in double precision from the schedule;
nothing but planes at the same pixel enters, so a solver never widens the network's halo. With alpha = sqrt(alpha-bar),
sigma = sqrt(1 - alpha-bar), lambda = log(alpha / sigma) and h the growth of lambda over the step.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from tera_mind.diffusion.schedule import Respaced, respace
from tera_mind.errors import InputError

Array = Float[Tensor, "..."]
StepperName = Literal["ddim", "ddpm", "dpm++", "unipc"]
STEPPERS: tuple[StepperName, ...] = get_args(StepperName)
#: image planes a solver takes along from step to step, beside the state
_CARRIED = {"ddim": 0, "ddpm": 0, "dpm++": 1, "unipc": 2}


def ddim_step(x_t: Array, x0: Array, bar: float, bar_previous: float, eta: float, noise: Array | None) -> Array:
    """DDIM (Song 2021, eq. 12 and 16), epsilon recomputed from the clamped x_0; `noise` counts where eta > 0.

    eta = 0 is deterministic, eta = 1 draws from q(x_{t-1} | x_t, x_0) (Ho 2020, eq. 6-7). `bar` is alpha-bar of t,
    `bar_previous` that of the step it leads to (1: the image itself, without noise).
    """
    spread = eta * math.sqrt((1 - bar_previous) / (1 - bar) * (1 - bar / bar_previous))
    of_x_t = math.sqrt(max(0.0, 1 - bar_previous - spread**2) / (1 - bar))
    out = of_x_t * x_t + (math.sqrt(bar_previous) - of_x_t * math.sqrt(bar)) * x0
    return out if noise is None or not spread else out + spread * noise


@dataclass(frozen=True)
class _Interval:
    """A step of a solver in lambda, from noise level s to t: the weights of exponential integrators.

    alpha_t, sigma_t / sigma_s, h, and expm1(-h), the integral's factor.
    """

    alpha: float
    ratio: float
    h: float
    factor: float

    @staticmethod
    def between(bar: float, bar_previous: float) -> _Interval:
        h = log_snr(bar_previous) - log_snr(bar)
        ratio = math.sqrt((1 - bar_previous) / (1 - bar))
        return _Interval(math.sqrt(bar_previous), ratio, h, math.expm1(-h))


def log_snr(bar: float) -> float:
    """Half the log of the signal-to-noise ratio, lambda = log(alpha / sigma); infinite at alpha-bar 1."""
    return math.inf if bar >= 1 else 0.5 * math.log(bar / (1 - bar))


def dpm_step(x_t: Array, x0: Array, x0_before: Array | None, bars: tuple[float, float, float]) -> Array:
    """DPM-Solver++(2M) (Lu 2022b, alg. 2): data prediction, midpoint form; also UniP-2 with bh2 (Zhao 2023).

    `bars` are alpha-bar before (of `x0_before`), at, and after x_t. Without `x0_before`, or where the step ends in
    the image itself, the step is of first order.
    """
    step = _Interval.between(*bars[1:])
    if x0_before is None or math.isinf(step.h):
        return step.ratio * x_t - step.alpha * step.factor * x0
    r = (log_snr(bars[1]) - log_snr(bars[0])) / step.h
    of_before = step.alpha * step.factor / (2 * r)
    return step.ratio * x_t - (step.alpha * step.factor + of_before) * x0 + of_before * x0_before


def unipc_weights(bars: tuple[float, float, float], *, first: bool) -> tuple[float, float, float, float]:
    """UniC-2 with bh2 (Zhao 2023, alg. 1, B(h) = e^{-h} - 1): the corrected state after a step as a sum of planes.

    Returns the weights of x_t, x_0, the x_0 before, and the x_0 that the network says at the new point; `bars` as in
    `dpm_step`. After a step of first order, without an x_0 before, the corrector is of order one.
    """
    step = _Interval.between(*bars[1:])
    scale = step.alpha * step.factor
    if first:
        return step.ratio, -scale / 2, 0.0, -scale / 2
    # two conditions of order fix the weights of (x_0 before - x_0) / r, r < 0, and of (x_0 new - x_0)
    r = (log_snr(bars[0]) - log_snr(bars[1])) / step.h
    phi_2 = step.factor / -step.h - 1
    phi_3 = phi_2 / -step.h - 0.5
    constant, linear = phi_2 / step.factor, 2 * phi_3 / step.factor
    of_new = (linear - r * constant) / (1 - r)
    of_before = (constant - of_new) / r
    return step.ratio, -scale * (1 - of_before - of_new), -scale * of_before, -scale * of_new


@dataclass(frozen=True)
class Stepper:
    """One solver on one respaced schedule; a step is a pure function of planes.

    name: "ddim", "ddpm" (ancestral), "dpm++" (DPM-Solver++(2M)) or "unipc" (UniPC-2); eta: 0..1, noise of DDIM.
    Raises `InputError` where they do not fit together.
    """

    name: StepperName
    path: Respaced
    eta: float = 0.0

    def __post_init__(self) -> None:
        if self.name not in STEPPERS:
            raise InputError(f"a stepper is one of {', '.join(STEPPERS)}, got {self.name!r}")
        if not 0 <= self.eta <= 1 or (self.eta and self.name != "ddim"):
            raise InputError(f"eta is 0 to 1 and belongs to ddim, got eta {self.eta:g} with {self.name}")

    @staticmethod
    def of(name: StepperName, steps: int, eta: float = 0.0) -> Stepper:
        """The solver over `steps` integer-stride timesteps. Raises `InputError` where there is no such stride."""
        return Stepper(name, respace(steps), eta)

    @property
    def steps(self) -> int:
        return len(self.path.timesteps)

    @property
    def carried(self) -> int:
        """Image planes taken along a pixel from step to step, beside the state itself."""
        return _CARRIED[self.name] if self.steps > 1 else 0

    def adds_noise(self, index: int) -> bool:
        """Whether step `index` (0 is the noisiest) adds noise; the last never does."""
        return (self.name == "ddpm" or self.eta > 0) and index < self.steps - 1

    def step(
        self, index: int, x_t: Array, x0: Array, carried: Float[Tensor, "plane ..."] | None, noise: Array | None
    ) -> tuple[Array, Float[Tensor, "plane ..."] | None]:
        """The state after step `index`, and what the next step needs carried (None where that is nothing).

        x0: what the network implies for x_t, clamped; carried: as returned by the step before (None at the first);
        noise: standard normal, needed where `adds_noise`.
        """
        path, last = self.path, index == self.steps - 1
        if not _CARRIED[self.name]:
            if self.adds_noise(index) and noise is None:
                raise InputError(f"step {index} of {self.name} adds noise and was given none")
            bar, after = path.alpha_bar[index], path.alpha_bar_previous[index]
            return ddim_step(x_t, x0, bar, after, 1.0 if self.name == "ddpm" else self.eta, noise), None
        bars, before = self._bars(index), None if carried is None or self._first_order(index) else carried[-1]
        if self.name == "dpm++":
            return dpm_step(x_t, x0, before, bars), None if last else x0[None]
        if carried is not None:
            x_t = carried[0] + unipc_weights(self._bars(index - 1), first=self._first_order(index - 1))[3] * x0
        state = dpm_step(x_t, x0, before, bars)
        if last:
            return state, None
        of_x_t, of_x0, of_before, _ = unipc_weights(bars, first=before is None)
        corrected = of_x_t * x_t + of_x0 * x0  # but for the x_0 that only the next pass through the network tells
        if before is not None:
            corrected = corrected + of_before * before
        return state, torch.stack([corrected, x0])

    def _first_order(self, index: int) -> bool:
        """Whether a multistep solver takes this step without the x_0 before.

        The first step has none. The step to the last timestep visited spans a third of all of lambda (t = 67 to 0 of
        15 steps: 3.1), and a line through the last two x_0 carried that far is worse than none: on Gaussian data 15
        steps would end further from the exact solution than DDIM's. The step after it is the image itself.
        """
        return index == 0 or index >= self.steps - 2

    def _bars(self, index: int) -> tuple[float, float, float]:
        """alpha-bar of the step before, of this one, and of what it leads to."""
        path = self.path
        return path.alpha_bar[max(0, index - 1)], path.alpha_bar[index], path.alpha_bar_previous[index]
