"""Forward process and what the network predicts: the noise, the velocity, or the image; pure functions of tensors.

x_t = sqrt(a) x_0 + sqrt(1 - a) eps, with a = alpha-bar of t (Ho 2020, eq. 4); v = sqrt(a) eps - sqrt(1 - a) x_0
(Salimans & Ho 2022).
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from tera_mind.model.config import Prediction

Array = Float[Tensor, "..."]


def diffuse(x0: Array, noise: Array, alpha_bar: Array) -> Array:
    """x_t of the image and the noise; `alpha_bar` broadcasts."""
    return alpha_bar.sqrt() * x0 + (1 - alpha_bar).sqrt() * noise


def target(prediction: Prediction, x0: Array, noise: Array, alpha_bar: Array) -> Array:
    """What the network should say for this image and noise."""
    if prediction == "epsilon":
        return noise
    if prediction == "x0":
        return x0
    return alpha_bar.sqrt() * noise - (1 - alpha_bar).sqrt() * x0


def image_of(prediction: Prediction, output: Array, x_t: Array, alpha_bar: Array) -> Array:
    """x_0 that a network output implies, clamped to [-1, 1] as published."""
    if prediction == "epsilon":
        x0 = (x_t - (1 - alpha_bar).sqrt() * output) / alpha_bar.sqrt()
    elif prediction == "x0":
        x0 = output
    else:
        x0 = alpha_bar.sqrt() * x_t - (1 - alpha_bar).sqrt() * output
    return x0.clamp(-1, 1)
