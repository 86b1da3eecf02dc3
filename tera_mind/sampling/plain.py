"""The plain sampler: all patches, step by step, over a whole region. The oracle for every faster sampler.

Each step runs the network (`BlockNetwork`) over blocks of patches. A block reads the state of the step before on
itself and the network's halo around; beyond the region the state is the constant outside value at every step. Genes
are never masked: around the region they are the tissue's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from tera_mind import noise
from tera_mind.diffusion.loss import OUTSIDE
from tera_mind.diffusion.process import image_of
from tera_mind.diffusion.schedule import Respaced, respace
from tera_mind.diffusion.steppers import ddim_step, ddpm_step
from tera_mind.errors import InputError
from tera_mind.geometry import Box, SectionGroup
from tera_mind.model.blocks import BlockNetwork
from tera_mind.model.config import Prediction

#: counts of a box of pixels, whole bins: (gene, gene section, bin_y, bin_x)
CountSource = Callable[[Box], Float[Tensor, "gene section bin_y bin_x"]]
#: start and step noise of a box: (step) -> (stain * section, y, x); step 0 is x_T
NoiseSource = Callable[[int], Float[Tensor, "channel y x"]]
Stepper = Literal["ddim", "ddpm"]
#: called after each block, so that progress can be shown
OnBlock = Callable[[], None]


@dataclass(frozen=True)
class SamplerSettings:
    """How a region is sampled; none of it but `steps`, `stepper` and `prediction` changes the result."""

    prediction: Prediction
    steps: int = 15
    stepper: Stepper = "ddim"
    #: patches along a block; a block is one pass through the network
    block: int = 8


def keyed_noise(seed: int, group: SectionGroup, stains: int, region: Box) -> NoiseSource:
    """Noise of a section group keyed by (seed, step, stain, section, y, x) in the brain's pixels."""

    def source(step: int) -> Float[Tensor, "channel y x"]:
        planes = [noise.normal(seed, step, stain, z, region) for stain in range(stains) for z in group.image]
        return torch.stack([torch.from_numpy(plane) for plane in planes])

    return source


def blocks(rows: int, columns: int, block: int) -> Iterator[Box]:
    """Blocks of patches, in patches, row-major; those at the far edges are smaller."""
    return Box(0, rows, 0, columns).tiles(block, block)


@torch.no_grad()
def predict(
    network: BlockNetwork,
    x: Float[Tensor, "channel y x"],
    timestep: int,
    counts: CountSource,
    region: Box,
    settings: SamplerSettings,
    on_block: OnBlock = lambda: None,
) -> Float[Tensor, "channel y x"]:
    """The network's output over a whole region of x_t, block by block."""
    side, halo = network.patch_px, network.halo_px
    padded = F.pad(x, (halo, halo, halo, halo), value=OUTSIDE)
    out = torch.empty_like(x)
    t = torch.tensor([timestep])
    for patch_box in blocks(region.height // side, region.width // side, settings.block):
        pixels = Box(patch_box.y0 * side, patch_box.y1 * side, patch_box.x0 * side, patch_box.x1 * side)
        window = padded[(..., *pixels.grow(halo).shift(halo, halo).slices())]
        block_counts = counts(pixels.shift(region.y0, region.x0).grow(halo))
        out[(..., *pixels.slices())] = network.predict(window[None], t, block_counts[None])[0].to(out)
        on_block()
    return out


def sample_steps(
    network: BlockNetwork,
    counts: CountSource,
    noise_source: NoiseSource,
    region: Box,
    settings: SamplerSettings,
    on_block: OnBlock = lambda: None,
) -> Iterator[Float[Tensor, "channel y x"]]:
    """Yield the state after each step, from noise to image (stain * section, y, x) in [-1, 1].

    `region` is in the brain's pixels and a whole number of patches a side; `InputError` otherwise. The network must
    be in evaluation mode, or tiles would differ by its dropout.
    """
    side = network.patch_px
    if region.is_empty or region.height % side or region.width % side:
        raise InputError(f"a region must be a whole number of {side} px patches a side, got {region}")
    if network.training:
        raise InputError("the network is in training mode, where dropout makes seams: call .eval() first")
    path: Respaced = respace(settings.steps)
    x = noise_source(0)
    rows = zip(path.timesteps, path.alpha_bar, path.alpha_bar_previous, strict=True)
    for number, (timestep, bar, bar_previous) in enumerate(rows, start=1):
        a, a_previous = torch.tensor(bar, dtype=x.dtype), torch.tensor(bar_previous, dtype=x.dtype)
        output = predict(network, x, timestep, counts, region, settings, on_block)
        x0 = image_of(settings.prediction, output, x, a)
        if settings.stepper == "ddim":
            x = ddim_step(x, x0, a, a_previous)
        else:
            x = ddpm_step(x, x0, a, a_previous, noise_source(number) if bar_previous < 1 else torch.zeros_like(x))
        yield x


def to_uint8(image: Float[Tensor, "channel y x"]) -> UInt8[Tensor, "channel y x"]:
    """[-1, 1] to 0..255, the inverse of x / 127.5 - 1, rounded to nearest."""
    return ((image + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
