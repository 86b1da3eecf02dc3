"""The plain sampler: any block size gives the same volume, and nothing but the region's own state is in it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_model import counts_for, normal, tiny_config, tiny_network
from torch import Tensor

from tera_mind import noise
from tera_mind.diffusion.schedule import respace
from tera_mind.diffusion.steppers import ddim_step, ddpm_step
from tera_mind.errors import InputError
from tera_mind.geometry import Box, section_window
from tera_mind.sampling.plain import SamplerSettings, blocks, keyed_noise, sample_steps, to_uint8

CONFIG = tiny_config(gene_sections=4, stains=1)
REGION = Box(320, 320 + 96, 64, 64 + 64)  # 3 x 2 patches somewhere in a brain
START = normal(CONFIG.image_channels, REGION.height, REGION.width)
COUNTS = counts_for(CONFIG, 1, REGION.height // 16 + 2, REGION.width // 16 + 2)[0]


def counts(box: Box) -> Tensor:
    """Counts of the region and half a patch around it."""
    shifted = box.shift(CONFIG.halo_px - REGION.y0, CONFIG.halo_px - REGION.x0)
    assert min(shifted.y0, shifted.x0) >= 0
    return COUNTS[..., shifted.y0 // 16 : shifted.y1 // 16, shifted.x0 // 16 : shifted.x1 // 16]


def sample(settings: SamplerSettings, region: Box = REGION) -> list[Tensor]:
    network = tiny_network(CONFIG)
    return list(sample_steps(network, counts, lambda _step: START, region, settings))


@pytest.mark.parametrize("prediction", ["epsilon", "v"])
def test_any_block_size_gives_the_same_volume(prediction: str) -> None:
    whole = sample(SamplerSettings(prediction, steps=2, block=8))
    assert len(whole) == 2
    assert whole[-1].shape == START.shape
    assert whole[-1].abs().max() <= 1
    assert whole[-1].std() > 0.1
    for block in (1, 2):
        cut = sample(SamplerSettings(prediction, steps=2, block=block))
        for a, b in zip(whole, cut, strict=True):
            assert (a - b).abs().max() <= 1e-9


def test_blocks_cover_all_patches_once() -> None:
    assert [str(block) for block in blocks(3, 2, 2)] == ["0:2,0:2", "2:3,0:2"]


def test_beyond_the_region_the_state_is_the_outside_value(monkeypatch: pytest.MonkeyPatch) -> None:
    """At every step the network sees the state itself, and -1 in the half patch around it."""
    network, seen = tiny_network(CONFIG), []
    boundary = network.boundary

    def spy(x: Tensor, t: Tensor, counts: Tensor, rows: int, columns: int) -> Tensor:
        seen.append((x.clone(), int(t)))
        return boundary(x, t, counts, rows, columns)

    monkeypatch.setattr(network, "boundary", spy)
    states = list(sample_steps(network, counts, lambda _step: START, REGION, SamplerSettings("epsilon", steps=2)))
    assert [t for _, t in seen] == [500, 0]
    for (patches, _), state in zip(seen, [START, *states[:-1]], strict=True):
        rows = [torch.cat(list(patches[3 * row : 3 * row + 3]), dim=-1) for row in range(4)]
        plane = torch.cat(rows, dim=-2)
        torch.testing.assert_close(plane[:, 16:-16, 16:-16], state)
        plane[:, 16:-16, 16:-16] = -1
        assert (plane == -1).all()


def test_steps_are_those_of_the_schedule() -> None:
    """One step by hand: the network on the padded state, then DDIM with the respaced alpha-bars."""
    network, region = tiny_network(CONFIG), Box(320, 352, 64, 96)
    start, path = START[:, :32, :32], respace(2)
    first = next(sample_steps(network, counts, lambda _step: start, region, SamplerSettings("x0", steps=2)))
    padded = torch.nn.functional.pad(start, (16, 16, 16, 16), value=-1.0)
    patches = torch.stack([padded[:, y : y + 32, x : x + 32] for y in (0, 32) for x in (0, 32)])
    binned = torch.stack([COUNTS[..., y : y + 2, x : x + 2] for y in (0, 2) for x in (0, 2)])
    with torch.no_grad():
        _, x0 = network(patches, torch.tensor([path.timesteps[0]]), binned)
    a, previous = (torch.tensor(bars[0], dtype=torch.float64) for bars in (path.alpha_bar, path.alpha_bar_previous))
    torch.testing.assert_close(first, ddim_step(start, x0[0].clamp(-1, 1), a, previous))


def test_ddpm_adds_the_keyed_noise_of_each_step() -> None:
    group = section_window(0, CONFIG.gene_sections)
    network = tiny_network(CONFIG)
    settings = SamplerSettings("x0", steps=2, stepper="ddpm")

    def final(seed: int) -> Tensor:
        source = keyed_noise(seed, group, CONFIG.stains, REGION)
        return list(sample_steps(network, counts, lambda step: source(step).double(), REGION, settings))[-1]

    assert torch.equal(final(7), final(7))
    assert not torch.allclose(final(7), final(8))


def test_ddpm_differs_from_ddim_and_ends_without_noise() -> None:
    asked: list[int] = []

    def source(step: int) -> Tensor:
        asked.append(step)
        return START

    network = tiny_network(CONFIG)
    settings = SamplerSettings("x0", steps=2, stepper="ddpm")
    states = list(sample_steps(network, counts, source, REGION, settings))
    assert asked == [0, 1], "the start, and the noise of every step but the last"
    deterministic = sample(SamplerSettings("x0", steps=2))
    assert not torch.allclose(states[0], deterministic[0])
    last = torch.ones((), dtype=torch.float64)
    assert torch.equal(ddpm_step(START, START, last / 2, last, START), START)


def test_keyed_noise_is_the_brains() -> None:
    group = section_window(3, 4)
    stacked = keyed_noise(5, group, 2, REGION)(1)
    assert stacked.shape == (4, REGION.height, REGION.width)
    for channel, (stain, section) in enumerate([(0, 3), (0, 4), (1, 3), (1, 4)]):
        np.testing.assert_array_equal(stacked[channel].numpy(), noise.normal(5, 1, stain, section, REGION))


@pytest.mark.parametrize("region", [Box(0, 96, 0, 60), Box(0, 100, 0, 64), Box(0, 0, 0, 64)])
def test_a_region_of_broken_patches_is_refused(region: Box) -> None:
    with pytest.raises(InputError, match="whole number of 32 px patches"):
        sample(SamplerSettings("epsilon", steps=2), region)


def test_training_mode_is_refused() -> None:
    network = tiny_network(CONFIG).train()
    with pytest.raises(InputError, match=r"training mode.*eval"):
        next(sample_steps(network, counts, lambda _step: START, REGION, SamplerSettings("epsilon", steps=2)))


def test_a_step_count_without_a_stride_is_refused() -> None:
    with pytest.raises(InputError, match="36 and 38"):
        sample(SamplerSettings("epsilon", steps=37))


def test_uint8_is_the_inverse_of_the_training_scale() -> None:
    values = torch.arange(256).view(1, 16, 16)
    image = values / 127.5 - 1
    assert torch.equal(to_uint8(image), values.to(torch.uint8))
    assert torch.equal(to_uint8(image.clamp(max=0.99) + 0.4 / 127.5), to_uint8(image.clamp(max=0.99)))
    assert to_uint8(torch.tensor([[[-1.2, 1.3]]])).tolist() == [[[0, 255]]]
