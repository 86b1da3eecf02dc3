"""Solvers against the formulas they come from, closed-form solutions, and transcriptions with the whole history."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from tiny_model import normal
from torch import Tensor

from tera_mind.diffusion.process import image_of
from tera_mind.diffusion.schedule import Respaced, respace
from tera_mind.diffusion.steppers import STEPPERS, Stepper, ddim_step, log_snr, unipc_weights
from tera_mind.errors import InputError

#: x_0 that a network would imply: (x_t, alpha-bar)
Denoiser = Callable[[Tensor, float], Tensor]


def run(stepper: Stepper, x: Tensor, denoise: Denoiser, noise: Callable[[int], Tensor] | None = None) -> list[Tensor]:
    """All states, carrying what the solver asks for, and no more."""
    carried, states = None, []
    for index, bar in enumerate(stepper.path.alpha_bar):
        assert (0 if carried is None else len(carried)) == (stepper.carried if index else 0)
        fresh = noise(index) if noise is not None and stepper.adds_noise(index) else None
        x, carried = stepper.step(index, x, denoise(x, bar), carried, fresh)
        states.append(x)
    assert carried is None
    return states


def bent(x: Tensor, bar: float) -> Tensor:
    """Some nonlinear denoiser."""
    return torch.tanh(bar**0.5 * x + torch.sin(3 * x) * (1 - bar)).clamp(-0.9, 0.9)


def test_ddim_recomputes_the_noise_from_the_clamped_image() -> None:
    x_t, eps = 3 * normal(50), normal(50, seed=1)
    x0 = ((x_t - 0.8**0.5 * eps) / 0.2**0.5).clamp(-1, 1)
    assert (x0.abs() == 1).any()
    again = (x_t - 0.2**0.5 * x0) / 0.8**0.5
    expected = 0.7**0.5 * x0 + 0.3**0.5 * again
    found = image_of("epsilon", eps, x_t, torch.tensor(0.2, dtype=torch.float64))
    torch.testing.assert_close(ddim_step(x_t, found, 0.2, 0.7, 0.0, None), expected)


@pytest.mark.parametrize("name", STEPPERS)
def test_the_last_step_is_the_image_itself(name: str) -> None:
    stepper, x, x0 = Stepper.of(name, 4), normal(9), normal(9, seed=1)
    carried = torch.stack([normal(9, seed=2)] * stepper.carried) if stepper.carried else None
    assert not stepper.adds_noise(3)
    torch.testing.assert_close(stepper.step(3, x, x0, carried, None)[0], x0, rtol=0, atol=1e-14)


@pytest.mark.parametrize("name", ["ddpm", "ddim"])
def test_the_ancestral_step_draws_from_the_posterior(name: str) -> None:
    """Mean and variance from Gaussian conditioning: x_s given x_0, times x_t given x_s. DDIM with eta 1 is the same."""
    stepper, x_t, x0, z = Stepper.of(name, 15, 1.0 if name == "ddim" else 0.0), *(normal(20, seed=k) for k in range(3))
    for index in (0, 7, 13):
        bar, bar_s = stepper.path.alpha_bar[index], stepper.path.alpha_bar_previous[index]
        alpha = bar / bar_s
        variance = 1 / (1 / (1 - bar_s) + alpha / (1 - alpha))
        mean = variance * (bar_s**0.5 * x0 / (1 - bar_s) + alpha**0.5 * x_t / (1 - alpha))
        assert stepper.adds_noise(index)
        torch.testing.assert_close(stepper.step(index, x_t, x0, None, z)[0], mean + variance**0.5 * z)


def test_between_zero_and_one_eta_scales_the_noise_and_keeps_the_marginal() -> None:
    """Of x_t = a x_0 + s eps the step makes a' x_0 + noise of variance 1 - a'^2, whatever eta (Song 2021, lemma 1)."""
    bar, after = 0.3, 0.6
    one, zero = torch.ones((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    for eta in (0.0, 0.4, 1.0):
        of_image = ddim_step(bar**0.5 * one, one, bar, after, eta, zero)
        of_eps = ddim_step((1 - bar) ** 0.5 * one, zero, bar, after, eta, zero)
        of_noise = ddim_step(zero, zero, bar, after, eta, one)
        assert math.isclose(of_image, after**0.5)
        assert math.isclose(of_eps**2 + of_noise**2, 1 - after)
        assert math.isclose(of_noise, eta * ddim_step(zero, zero, bar, after, 1.0, one))


@pytest.mark.parametrize("first", [False, True])
def test_the_corrector_integrates_polynomials_exactly(first: bool) -> None:
    """x_t = sigma_t / sigma_s x_s + sigma_t int e^lambda x_0(lambda): exact up to degree 2 (first step: degree 0)."""
    bars = (0.05, 0.2, 0.55)
    before, start, end = map(log_snr, bars)
    weights = unipc_weights(bars, first=first)
    alpha_t, sigma_t, sigma_s, x_s = bars[2] ** 0.5, (1 - bars[2]) ** 0.5, (1 - bars[1]) ** 0.5, 0.7
    for degree in range(1 if first else 3):
        integral = quad(lambda lam, n=degree: math.exp(lam - end) * (lam - start) ** n, start, end, epsabs=1e-13)[0]
        exact = sigma_t / sigma_s * x_s + alpha_t * integral  # sigma_t e^lambda_t = alpha_t
        planes = (x_s, float(degree == 0), (before - start) ** degree, (end - start) ** degree)
        assert math.isclose(sum(w * p for w, p in zip(weights, planes, strict=True)), exact, rel_tol=1e-9)


def transcription(path: Respaced, x: Tensor, denoise: Denoiser, *, correct: bool) -> list[Tensor]:
    """UniPC-2 with bh2 after the paper's algorithm, all x_0 kept and the conditions of order solved as a system.

    Without `correct` it is UniP-2, which with bh2 is DPM-Solver++(2M). Of first order at the first step and at the one
    that leads to the last timestep.
    """
    steps = len(path.alpha_bar)
    bars, images, states, corrected = [*path.alpha_bar, path.alpha_bar_previous[-1]], [], [], []
    lam = [log_snr(bar) for bar in bars]

    def update(i: int, order: int, new: Tensor | None) -> Tensor:
        h = lam[i + 1] - lam[i]
        base = ((1 - bars[i + 1]) / (1 - bars[i])) ** 0.5 * corrected[i]
        if math.isinf(h):
            return base + bars[i + 1] ** 0.5 * images[i]
        big = math.expm1(-h)
        r = [(lam[i - 1] - lam[i]) / h] if order == 2 else []
        d = [(images[i - 1] - images[i]) / r[0]] if order == 2 else []
        if new is None:
            rho = [0.5] if order == 2 else []
        else:
            r, d = [*r, 1.0], [*d, new - images[i]]
            phi = [big / -h - 1]
            phi.append(phi[0] / -h - 0.5)
            matrix = np.array([[x**k for x in r] for k in range(order)])
            rho = np.linalg.solve(matrix, [phi[0] / big, 2 * phi[1] / big][:order]).tolist() if order == 2 else [0.5]
        total = images[i] + sum(w * x for w, x in zip(rho, d, strict=True))
        return base - bars[i + 1] ** 0.5 * big * total

    for i, bar in enumerate(path.alpha_bar):
        images.append(denoise(x, bar))
        corrected.append(update(i - 1, 2 if 0 < i - 1 < steps - 2 else 1, images[i]) if correct and i else x)
        x = update(i, 2 if 0 < i < steps - 2 else 1, None)
        states.append(x)
    return states


@pytest.mark.parametrize("steps", [1, 2, 15])
@pytest.mark.parametrize("name", ["dpm++", "unipc"])
def test_multistep_solvers_equal_a_transcription_with_the_whole_history(name: str, steps: int) -> None:
    stepper, x = Stepper.of(name, steps), normal(40)
    have, want = run(stepper, x, bent), transcription(respace(steps), x, bent, correct=name == "unipc")
    for a, b in zip(have, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
    assert stepper.carried == (0 if steps == 1 else 1 if name == "dpm++" else 2)
    if steps == 15:
        assert not torch.allclose(have[-2], run(Stepper.of("ddim", steps), x, bent)[-2], atol=1e-4)


MEAN, SPREAD = 0.3, 0.4


def gaussian(x: Tensor, bar: float) -> Tensor:
    """E[x_0 | x_t] of data N(MEAN, SPREAD^2)."""
    gain = bar**0.5 * SPREAD**2 / (bar * SPREAD**2 + 1 - bar)
    return MEAN + gain * (x - bar**0.5 * MEAN)


def solution(x: Tensor, bar: float, after: float) -> Tensor:
    """Closed form of the probability-flow ODE of that data: (x - a MEAN) over its standard deviation stays."""
    spread = [(b * SPREAD**2 + 1 - b) ** 0.5 for b in (bar, after)]
    return after**0.5 * MEAN + spread[1] / spread[0] * (x - bar**0.5 * MEAN)


def error(name: str, steps: int) -> float:
    """Of a path with even steps in lambda from -3 to 2."""
    bars = 1 / (1 + np.exp(-2 * np.linspace(-3, 2, steps + 1)))
    path = Respaced(tuple(range(steps)), tuple(bars[:-1].tolist()), tuple(bars[1:].tolist()))
    x = normal(30)
    return float((run(Stepper(name, path), x, gaussian)[-1] - solution(x, bars[0], bars[-1])).abs().max())


@pytest.mark.parametrize(("name", "order"), [("ddim", 1), ("dpm++", 2), ("unipc", 2)])
def test_order_of_convergence_on_a_gaussian(name: str, order: int) -> None:
    """One step of first order at each end takes nothing from the order of the whole."""
    errors = [error(name, steps) for steps in (160, 320, 640)]
    orders = np.log2(np.array(errors[:-1]) / errors[1:])
    assert (np.abs(orders - order) < 0.15).all(), (errors, orders)


@pytest.mark.parametrize("steps", [8, 10, 15, 20, 25, 50])
def test_higher_orders_end_nearer_on_the_published_timesteps(steps: int) -> None:
    """Root mean square of the final image's error, Gaussian data; a second-order step to t = 0 would lose to DDIM."""
    x, found = normal(300), {}
    for name in ("ddim", "dpm++", "unipc"):
        stepper = Stepper.of(name, steps)
        exact = solution(x, stepper.path.alpha_bar[0], 1.0)
        found[name] = float((run(stepper, x, gaussian)[-1] - exact).square().mean().sqrt())
    assert found["unipc"] < 0.95 * found["ddim"]
    assert found["dpm++"] < 0.95 * found["ddim"]
    if steps >= 15:
        assert found["dpm++"] < 0.7 * found["ddim"]


def test_noise_is_asked_for_and_needed() -> None:
    assert [Stepper.of("ddim", 4, 0.5).adds_noise(k) for k in range(4)] == [True, True, True, False]
    for name in ("ddim", "dpm++", "unipc"):
        assert not any(Stepper.of(name, 4).adds_noise(k) for k in range(4))
    with pytest.raises(InputError, match="given none"):
        Stepper.of("ddpm", 4).step(0, normal(3), normal(3), None, None)


@pytest.mark.parametrize(
    ("name", "steps", "eta", "words"),
    [
        ("dpm++", 4, 0.5, "belongs to ddim"),
        ("ddim", 4, 1.5, "0 to 1"),
        ("ddim", 4, math.nan, "0 to 1"),
        ("unipc", 37, 0.0, "36 and 38"),
    ],
)
def test_solvers_that_do_not_exist_are_refused(name: str, steps: int, eta: float, words: str) -> None:
    with pytest.raises(InputError, match=words):
        Stepper.of(name, steps, eta)
