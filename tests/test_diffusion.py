"""Schedule, process and loss against the formulas they come from."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_model import counts_for, normal, tiny_config, tiny_network

from tera_mind.diffusion.loss import Crops, dual_path_loss
from tera_mind.diffusion.process import diffuse, image_of, target
from tera_mind.diffusion.schedule import TIMESTEPS, alpha_bars, respace, step_counts
from tera_mind.errors import InputError
from tera_mind.model.config import Prediction

PREDICTIONS: tuple[Prediction, ...] = ("epsilon", "v", "x0")


def test_alpha_bar_is_the_product_of_linear_betas() -> None:
    bars = alpha_bars()
    assert bars.shape == (TIMESTEPS,)
    betas = 1 - bars / np.concatenate([[1.0], bars[:-1]])
    np.testing.assert_allclose(betas, 1e-4 + (0.02 - 1e-4) * np.arange(TIMESTEPS) / (TIMESTEPS - 1), rtol=1e-9)


def test_fifteen_steps_are_the_published_ones() -> None:
    path = respace(15)
    assert path.timesteps == tuple(range(938, -1, -67))
    bars = alpha_bars()
    assert path.alpha_bar == tuple(bars[list(path.timesteps)])
    assert path.alpha_bar_previous == (*path.alpha_bar[1:], 1.0)
    np.testing.assert_allclose(np.cumprod(1 - path.betas)[::-1], path.alpha_bar, rtol=1e-12)


@pytest.mark.parametrize("steps", [1, 2, 15, 25, 50, 100, 1000])
def test_step_counts_that_exist(steps: int) -> None:
    path = respace(steps)
    assert len(path.timesteps) == steps
    assert path.timesteps[-1] == 0
    assert len(set(np.diff(path.timesteps))) <= 1, "one stride"
    assert steps in step_counts()


@pytest.mark.parametrize(
    ("steps", "nearest"), [(37, "36 and 38"), (41, "40 and 42"), (0, "1$"), (1001, "1000$"), (600, "500 and 1000")]
)
def test_step_counts_without_a_stride_name_the_nearest(steps: int, nearest: str) -> None:
    with pytest.raises(InputError, match=nearest):
        respace(steps)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("bar", [0.999, 0.5, 1e-3])
def test_the_image_comes_back_from_what_the_network_should_say(prediction: Prediction, bar: float) -> None:
    x0, noise, a = normal(2, 3, 4).clamp(-1, 1), normal(2, 3, 4, seed=1), torch.tensor(bar, dtype=torch.float64)
    x_t = diffuse(x0, noise, a)
    torch.testing.assert_close(x_t, bar**0.5 * x0 + (1 - bar) ** 0.5 * noise)
    torch.testing.assert_close(image_of(prediction, target(prediction, x0, noise, a), x_t, a), x0)


def test_targets() -> None:
    x0, noise, a = normal(5), normal(5, seed=1), torch.tensor(0.36, dtype=torch.float64)
    assert torch.equal(target("epsilon", x0, noise, a), noise)
    assert torch.equal(target("x0", x0, noise, a), x0)
    torch.testing.assert_close(target("v", x0, noise, a), 0.6 * noise - 0.8 * x0)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_the_image_is_clamped(prediction: Prediction) -> None:
    x_t, a = torch.tensor([5.0, -5.0]), torch.tensor(0.5)
    output = x_t if prediction == "x0" else -x_t
    assert image_of(prediction, output, x_t, a).tolist() == [1.0, -1.0]


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize(("margin_px", "patch_weight"), [(0, 1.0), (8, 0.5), (0, 0.0), (16, 0.0)])
@torch.no_grad()
def test_loss_against_the_sum_written_out(prediction: Prediction, margin_px: int, patch_weight: float) -> None:
    config = tiny_config(margin_px=margin_px, stains=1, gene_sections=4)
    network, side = tiny_network(config), 32
    image = normal(2, 1, 2, 64, 64).clamp(-1, 1)
    noise, counts, t = normal(2, 1, 2, 64, 64, seed=1), counts_for(config, 2, 4, 4), torch.tensor([40, 800])
    inside = torch.ones(2, 2, 64, 64, dtype=torch.bool)
    inside[0, :, :20], inside[1, 1, :, 50:] = False, False
    bars = torch.from_numpy(alpha_bars())

    patches, binned, wanted, mask = [], [], [], []
    for sample in range(2):
        a = bars[t[sample]]
        x_t = a.sqrt() * image[sample, 0] + (1 - a).sqrt() * noise[sample, 0]
        x_t[~inside[sample]] = -1.0
        says = {
            "epsilon": noise[sample, 0],
            "x0": image[sample, 0],
            "v": a.sqrt() * noise[sample, 0] - (1 - a).sqrt() * image[sample, 0],
        }[prediction]
        for y in (0, 1):
            for x in (0, 1):
                window = (..., slice(y * side, y * side + side), slice(x * side, x * side + side))
                bins = (..., slice(2 * y, 2 * y + 2), slice(2 * x, 2 * x + 2))
                patches.append(x_t[window])
                binned.append(counts[sample][bins])
                wanted.append(says[window] * inside[sample][window])
                mask.append(inside[sample][window])
    outputs, centres = network(torch.stack(patches), t, torch.stack(binned))
    patch = ((torch.stack(wanted) - outputs * torch.stack(mask)) ** 2).sum() / outputs.numel()
    total = 0.0
    for sample in range(2):
        pieces = wanted[4 * sample : 4 * sample + 4], mask[4 * sample : 4 * sample + 4]
        plane, within = (torch.cat([torch.cat(p[:2], -1), torch.cat(p[2:], -1)], -2) for p in pieces)
        low, high = side // 2 - margin_px, side // 2 + side + margin_px
        window = (..., slice(low, high), slice(low, high))
        total += ((plane[window] - centres[sample] * within[window]) ** 2).sum()
    boundary = total / centres.numel()

    loss = dual_path_loss(network, Crops(image, counts, inside, t, noise, bars), prediction, patch_weight)
    torch.testing.assert_close(loss.parts["boundary"], boundary, check_dtype=False, rtol=1e-5, atol=1e-6)
    if patch_weight:
        torch.testing.assert_close(loss.parts["patch"], patch, check_dtype=False, rtol=1e-5, atol=1e-6)
    else:
        assert "patch" not in loss.parts
    expected = patch_weight * patch + boundary
    torch.testing.assert_close(loss.total, expected, check_dtype=False, rtol=1e-5, atol=1e-6)
