"""The plain sampler: any block size gives the same volume, and nothing but the region's own state is in it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_model import counts_for, normal, tiny_config, tiny_network
from torch import Tensor

from tera_mind import noise
from tera_mind.diffusion.schedule import respace
from tera_mind.diffusion.steppers import ddim_step
from tera_mind.errors import InputError
from tera_mind.geometry import Box, section_window
from tera_mind.sampling.counts import shuffled
from tera_mind.sampling.domain import Domain
from tera_mind.sampling.plain import SamplerSettings, box_noise, sample_steps, to_uint8

CONFIG = tiny_config(gene_sections=4, stains=1)
REGION = Box(320, 320 + 96, 64, 64 + 64)  # 3 x 2 patches somewhere in a brain
START = normal(CONFIG.image_channels, REGION.height, REGION.width)
COUNTS = counts_for(CONFIG, 1, REGION.height // 16 + 2, REGION.width // 16 + 2)[0]


def counts(box: Box) -> Tensor:
    """Counts of the region and half a patch around it."""
    shifted = box.shift(CONFIG.halo_px - REGION.y0, CONFIG.halo_px - REGION.x0)
    assert min(shifted.y0, shifted.x0) >= 0
    return COUNTS[..., shifted.y0 // 16 : shifted.y1 // 16, shifted.x0 // 16 : shifted.x1 // 16]


def start(_step: int, box: Box) -> Tensor:
    """The same noise at every step, as far as the box goes."""
    return START[(..., *box.shift(-REGION.y0, -REGION.x0).slices())]


def sample(settings: SamplerSettings, domain: Domain | None = None) -> list[Tensor]:
    domain = domain or Domain.whole(REGION, 32)
    return list(sample_steps(tiny_network(CONFIG), counts, start, domain, settings))


@pytest.mark.parametrize("prediction", ["epsilon", "v"])
def test_any_block_size_gives_the_same_volume(prediction: str) -> None:
    whole = sample(SamplerSettings(prediction, steps=2))
    assert len(whole) == 2
    assert whole[-1].shape == START.shape
    assert whole[-1].abs().max() <= 1
    assert whole[-1].std() > 0.1
    for rows, columns in ((1, 1), (2, 1)):
        cut = sample(SamplerSettings(prediction, steps=2, block_rows=rows, block_columns=columns))
        for a, b in zip(whole, cut, strict=True):
            assert (a - b).abs().max() <= 1e-9


def test_beyond_the_region_the_state_is_the_outside_value(monkeypatch: pytest.MonkeyPatch) -> None:
    """At every step the network sees the state itself, and -1 in the half patch around it."""
    network, seen = tiny_network(CONFIG), []
    boundary = network.boundary

    def spy(x: Tensor, t: Tensor, counts: Tensor, rows: int, columns: int) -> Tensor:
        seen.append((x.clone(), int(t)))
        return boundary(x, t, counts, rows, columns)

    monkeypatch.setattr(network, "boundary", spy)
    states = list(sample_steps(network, counts, start, Domain.whole(REGION, 32), SamplerSettings("epsilon", steps=2)))
    assert [t for _, t in seen] == [500, 0]
    for (patches, _), state in zip(seen, [START, *states[:-1]], strict=True):
        rows = [torch.cat(list(patches[3 * row : 3 * row + 3]), dim=-1) for row in range(4)]
        plane = torch.cat(rows, dim=-2)
        torch.testing.assert_close(plane[:, 16:-16, 16:-16], state)
        plane[:, 16:-16, 16:-16] = -1
        assert (plane == -1).all()


def test_outside_the_active_patches_the_state_is_the_outside_value() -> None:
    """Masked at the start and after every step; an active patch sees the same as in a region without the others."""
    mask = np.array([[True, False], [False, False], [True, True]])
    domain = Domain(REGION, 32, mask)
    states = sample(SamplerSettings("v", steps=2, block_rows=1, block_columns=1), domain)
    pixels = torch.from_numpy(np.kron(mask, np.ones((32, 32), bool)))
    for state in states:
        assert (state[:, ~pixels] == -1).all()
        assert (state[:, pixels] != -1).float().mean() > 0.5
    alone = Domain.whole(Box(REGION.y0, REGION.y0 + 32, REGION.x0, REGION.x0 + 32), 32)
    torch.testing.assert_close(sample(SamplerSettings("v", steps=2), alone)[-1], states[-1][:, :32, :32])


def test_steps_are_those_of_the_schedule() -> None:
    """One step by hand: the network on the padded state, then DDIM with the respaced alpha-bars."""
    network, domain = tiny_network(CONFIG), Domain.whole(Box(320, 352, 64, 96), 32)
    x, path = START[:, :32, :32], respace(2)
    first = next(sample_steps(network, counts, start, domain, SamplerSettings("x0", steps=2)))
    padded = torch.nn.functional.pad(x, (16, 16, 16, 16), value=-1.0)
    patches = torch.stack([padded[:, y : y + 32, x : x + 32] for y in (0, 32) for x in (0, 32)])
    binned = torch.stack([COUNTS[..., y : y + 2, x : x + 2] for y in (0, 2) for x in (0, 2)])
    with torch.no_grad():
        _, x0 = network(patches, torch.tensor([path.timesteps[0]]), binned)
    step = ddim_step(x, x0[0].clamp(-1, 1), path.alpha_bar[0], path.alpha_bar_previous[0], 0.0, None)
    torch.testing.assert_close(first, step)


@pytest.mark.parametrize(("stepper", "eta"), [("ddpm", 0.0), ("ddim", 0.5)])
def test_noise_is_added_after_every_step_but_the_last(stepper: str, eta: float) -> None:
    asked: list[int] = []

    def source(step: int, box: Box) -> Tensor:
        asked.append(step)
        return (1 + step) * start(step, box)

    domain = Domain.whole(REGION, 32)
    settings = SamplerSettings("x0", 4, stepper, eta)
    states = list(sample_steps(tiny_network(CONFIG), counts, source, domain, settings))
    assert asked == [0, 1, 2, 3], "the start, and the noise of every step but the last"
    assert not torch.allclose(states[0], sample(SamplerSettings("x0", 4))[0])


def test_box_noise_is_the_brains_and_any_box_a_cut_of_a_larger_one() -> None:
    source = box_noise(5, section_window(3, 4), 2)
    stacked = source(1, REGION)
    assert stacked.shape == (4, REGION.height, REGION.width)
    for channel, (stain, section) in enumerate([(0, 3), (0, 4), (1, 3), (1, 4)]):
        np.testing.assert_array_equal(stacked[channel].numpy(), noise.normal(5, 1, stain, section, REGION))
    inner = REGION.grow(-7)
    assert torch.equal(source(1, inner), stacked[:, 7:-7, 7:-7])
    for other in (source(2, REGION), box_noise(6, section_window(3, 4), 2)(1, REGION)):
        assert not torch.allclose(other, stacked)


def test_shuffled_counts_are_the_same_in_every_box() -> None:
    """Any box of the control is a cut of the whole, however large, and wherever its corner lies on the bins."""
    region = Box(320, 320 + 96, 64, 64 + 96)
    bins = torch.arange(24 * 24, dtype=torch.float64).reshape(1, 1, 24, 24)
    around = region.grow(48)

    def measured(box: Box) -> Tensor:
        inner = box.shift(-around.y0, -around.x0)
        return bins[..., inner.y0 // 8 : inner.y1 // 8, inner.x0 // 8 : inner.x1 // 8].clone()

    source = shuffled(measured, region, 32, 8, seed=3)
    whole = source(around)
    assert not torch.equal(whole, bins)
    assert torch.equal(whole.flatten().sort().values, bins.flatten())
    random = np.random.default_rng(0)
    for _ in range(40):
        y0, y1 = sorted(random.choice(25, 2, replace=False).tolist())
        x0, x1 = sorted(random.choice(25, 2, replace=False).tolist())
        box = Box(8 * y0, 8 * y1, 8 * x0, 8 * x1).shift(around.y0, around.x0)
        assert torch.equal(source(box), whole[..., y0:y1, x0:x1]), box


def test_training_mode_is_refused() -> None:
    network = tiny_network(CONFIG).train()
    with pytest.raises(InputError, match=r"training mode.*eval"):
        next(sample_steps(network, counts, start, Domain.whole(REGION, 32), SamplerSettings("epsilon", steps=2)))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"steps": 37}, "36 and 38"),
        ({"eta": 0.5, "stepper": "dpm++"}, "belongs to ddim"),
        ({"block_rows": 0}, "must be at least 1, got 0, 8 and 1"),
        ({"micro_batch": -1}, "must be at least 1"),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes: dict[str, object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        SamplerSettings("epsilon", **changes)


def test_uint8_is_the_inverse_of_the_training_scale() -> None:
    values = torch.arange(256).view(1, 16, 16)
    image = values / 127.5 - 1
    assert torch.equal(to_uint8(image), values.to(torch.uint8))
    assert torch.equal(to_uint8(image.clamp(max=0.99) + 0.4 / 127.5), to_uint8(image.clamp(max=0.99)))
    assert to_uint8(torch.tensor([[[-1.2, 1.3]]])).tolist() == [[[0, 255]]]
