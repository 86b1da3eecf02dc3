"""Noise and timesteps of training samples as functions of (key, number of the sample) alone.

A sample has the same noise and timestep whichever process, worker, batch or resumed run meets it. `key` is a few
numbers that say what the draws are for: a seed and a purpose.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Integer
from torch import Tensor

from tera_mind.diffusion.schedule import TIMESTEPS

#: last number of a key: what is drawn
_NOISE, _TIME = 0, 1


def keyed_noise(
    key: Sequence[int], numbers: Integer[Tensor, " b"], shape: Sequence[int], device: torch.device
) -> Float[Tensor, "b ..."]:
    """Standard normal noise (b, *shape), float32, made on the device; each kind of device has numbers of its own."""
    out = torch.empty((len(numbers), *shape), device=device)
    generator = torch.Generator(device)
    for sample, number in zip(out, numbers.tolist(), strict=True):
        words = np.random.SeedSequence([*key, _NOISE, number]).generate_state(1, np.uint64)
        generator.manual_seed(int(words[0]))
        sample.normal_(generator=generator)
    return out


def keyed_timesteps(key: Sequence[int], numbers: Integer[Tensor, " b"], group: int) -> Integer[Tensor, " b"]:
    """Timesteps in [0, T), int64 on the CPU, stratified: of `group` samples in a row each has a stratum of its own.

    Samples number k * group, ..., (k + 1) * group - 1 share a random order of the strata and a random offset in them.
    """
    wanted = numbers.numpy()
    out = np.empty(len(wanted), np.int64)
    for index in np.unique(wanted // group).tolist():
        random = np.random.default_rng([*key, _TIME, index])
        stratum, offset = random.permutation(group), random.random()
        mine = wanted // group == index
        out[mine] = (stratum[wanted[mine] % group] + offset) * TIMESTEPS / group
    return torch.from_numpy(np.minimum(out, TIMESTEPS - 1))
