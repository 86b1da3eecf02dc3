"""One step of sampling, as pure functions of x_t, the clamped x_0 and noise; every argument broadcasts."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

Array = Float[Tensor, "..."]


def ddim_step(x_t: Array, x0: Array, alpha_bar: Array, alpha_bar_previous: Array) -> Array:
    """DDIM with eta = 0 (Song 2021, eq. 12); epsilon is recomputed from the clamped x_0."""
    epsilon = (x_t - alpha_bar.sqrt() * x0) / (1 - alpha_bar).sqrt()
    return alpha_bar_previous.sqrt() * x0 + (1 - alpha_bar_previous).sqrt() * epsilon


def ddpm_step(x_t: Array, x0: Array, alpha_bar: Array, alpha_bar_previous: Array, noise: Array) -> Array:
    """Ancestral step: a draw of q(x_{t-1} | x_t, x_0) (Ho 2020, eq. 6-7); no noise is added at the last step."""
    alpha = alpha_bar / alpha_bar_previous
    weight_x0 = alpha_bar_previous.sqrt() * (1 - alpha) / (1 - alpha_bar)
    weight_x_t = alpha.sqrt() * (1 - alpha_bar_previous) / (1 - alpha_bar)
    variance = (1 - alpha) * (1 - alpha_bar_previous) / (1 - alpha_bar)
    return weight_x0 * x0 + weight_x_t * x_t + variance.sqrt() * noise
