"""Noise and timesteps keyed by sample: the same in any company, stratified over what one optimiser step sees."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tera_mind.diffusion.keyed import keyed_noise, keyed_timesteps

CPU = torch.device("cpu")


@settings(max_examples=25, deadline=None)
@given(
    numbers=st.lists(st.integers(0, 2**40), min_size=1, max_size=12, unique=True),
    seed=st.integers(0, 2**32),
    group=st.integers(1, 96),
    cut=st.integers(0, 12),
)
def test_a_sample_does_not_depend_on_its_batch(numbers, seed, group, cut):
    together = torch.tensor(numbers)
    apart = [torch.tensor(part) for part in (numbers[:cut], numbers[cut:]) if part]
    noise = torch.cat([keyed_noise((seed, 0), part, (2, 3), CPU) for part in apart])
    times = torch.cat([keyed_timesteps((seed, 0), part, group) for part in apart])
    assert torch.equal(keyed_noise((seed, 0), together, (2, 3), CPU), noise)
    assert torch.equal(keyed_timesteps((seed, 0), together, group), times)
    assert len(torch.unique(noise)) == noise.numel()
    assert ((times >= 0) & (times < 1000)).all()


@settings(max_examples=25, deadline=None)
@given(group=st.integers(1, 200), first=st.integers(0, 10**9), seed=st.integers(0, 99))
def test_every_stratum_of_a_global_batch_is_met_once(group, first, seed):
    numbers = torch.arange(first * group, (first + 1) * group)
    times = keyed_timesteps((seed, 0), numbers, group)
    shuffled = keyed_timesteps((seed, 0), numbers.flip(0), group).flip(0)
    assert torch.equal(times, shuffled)
    strata = torch.sort(times).values * group / 1000
    assert ((strata - torch.arange(group)) > -group / 1000).all()
    assert ((strata - torch.arange(group)) < 1).all()


def test_noise_is_normal_and_keys_are_apart():
    numbers = torch.arange(200)
    noise = {key: keyed_noise(key, numbers, (2, 500), CPU) for key in ((0, 0), (0, 1), (1, 0))}
    for one in noise.values():
        assert abs(one.mean().item()) < 0.01
        assert abs(one.std().item() - 1) < 0.01
    flat = torch.stack([one.flatten() for one in noise.values()])
    assert (torch.corrcoef(flat) - torch.eye(3)).abs().max() < 0.01
    rows = torch.corrcoef(noise[0, 0].flatten(1)[:20])
    assert (rows - torch.eye(20)).abs().max() < 0.2
    times = keyed_timesteps((0, 0), torch.arange(8000), 8)
    places = times.view(-1, 8).float().mean(0)  # no place of a batch keeps to some timesteps
    assert (places - 500).abs().max() < 50
