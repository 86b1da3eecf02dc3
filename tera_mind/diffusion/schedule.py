"""The noise schedule: linear betas, respaced by an integer stride (DDPM, Ho 2020; DDIM, Song 2021)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tera_mind.errors import InputError

#: timesteps of the training process
TIMESTEPS = 1000


def alpha_bars(beta_start: float = 1e-4, beta_end: float = 0.02) -> NDArray[np.float64]:
    """Share of signal power left at each of the T timesteps, prod(1 - beta): (T,), falling from 0.9999 to 4e-5."""
    return np.asarray(np.cumprod(1.0 - np.linspace(beta_start, beta_end, TIMESTEPS)), dtype=np.float64)


def step_counts() -> tuple[int, ...]:
    """Every number of sampling steps that an integer stride over the timesteps gives."""
    return tuple(sorted({len(range(0, TIMESTEPS, stride)) for stride in range(1, TIMESTEPS + 1)}))


@dataclass(frozen=True)
class Respaced:
    """The timesteps a sampler visits, noisiest first.

    `alpha_bar[i]` belongs to `timesteps[i]`, `alpha_bar_previous[i]` to the step it leads to (1 after the last).
    """

    timesteps: tuple[int, ...]
    alpha_bar: tuple[float, ...]
    alpha_bar_previous: tuple[float, ...]

    @property
    def betas(self) -> NDArray[np.float64]:
        """Betas of the respaced process, cleanest step first."""
        bars, previous = np.array(self.alpha_bar[::-1]), np.array(self.alpha_bar_previous[::-1])
        betas: NDArray[np.float64] = 1.0 - bars / previous
        return betas


def respace(steps: int) -> Respaced:
    """Timesteps 0, s, 2 s, ... with the integer stride s that gives `steps` of them (15: s = 67).

    Raises `InputError` naming the nearest possible numbers where no stride exists.
    """
    strides = [s for s in range(1, TIMESTEPS + 1) if len(range(0, TIMESTEPS, s)) == steps]
    if not strides:
        possible = step_counts()
        below = max((n for n in possible if n < steps), default=None)
        above = min((n for n in possible if n > steps), default=None)
        nearest = " and ".join(str(n) for n in (below, above) if n is not None)
        raise InputError(
            f"{steps} sampling steps have no integer stride over {TIMESTEPS} timesteps; "
            f"the nearest that exist: {nearest}"
        )
    timesteps = tuple(reversed(range(0, TIMESTEPS, strides[0])))
    bars = alpha_bars()
    alpha_bar = tuple(float(bars[t]) for t in timesteps)
    return Respaced(timesteps, alpha_bar, (*alpha_bar[1:], 1.0))
