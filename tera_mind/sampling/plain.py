"""The plain sampler: all patches, step by step, over a whole region. The oracle for every faster sampler.

Each step runs the network (`BlockNetwork`) over blocks of patches. A block reads the state of the step before on
itself and the network's halo around. Outside the domain's active patches, and beyond the region, the state is the
constant outside value at every step. Genes are never masked: around the region they are the tissue's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from tera_mind import noise
from tera_mind.diffusion.loss import OUTSIDE
from tera_mind.diffusion.process import image_of
from tera_mind.diffusion.steppers import Stepper, StepperName
from tera_mind.errors import InputError
from tera_mind.geometry import Box, SectionGroup
from tera_mind.model.blocks import BlockNetwork
from tera_mind.model.config import Prediction
from tera_mind.sampling.domain import Domain

#: counts of a box of the brain's pixels, whole bins: (gene, gene section, bin_y, bin_x)
CountSource = Callable[[Box], Float[Tensor, "gene section bin_y bin_x"]]
#: (step, box in the brain's pixels) -> noise; step 0 is x_T, step k the noise added after step k
BoxNoise = Callable[[int, Box], Float[Tensor, "channel y x"]]
#: called after each block, so that progress can be shown
OnBlock = Callable[[], None]


@dataclass(frozen=True)
class SamplerSettings:
    """How a region is sampled. Only `prediction`, `steps`, `stepper` and `eta` change the result, up to rounding.

    Raises `InputError` where they do not fit together.
    """

    prediction: Prediction
    steps: int = 15
    stepper: StepperName = "ddim"
    #: share of the ancestral noise that DDIM adds a step, 0..1
    eta: float = 0.0
    #: patches down and across a block, the unit of work of the network
    block_rows: int = 8
    block_columns: int = 8
    #: blocks a pass through the network; a fixed number, because a pass of another shape may round differently
    micro_batch: int = 1

    def __post_init__(self) -> None:
        if min(self.block_rows, self.block_columns, self.micro_batch) < 1:
            raise InputError(
                "block_rows, block_columns and micro_batch must be at least 1, got "
                f"{self.block_rows}, {self.block_columns} and {self.micro_batch}"
            )
        _ = self.solver  # refuses steps, stepper and eta that do not exist

    @property
    def solver(self) -> Stepper:
        return Stepper.of(self.stepper, self.steps, self.eta)


def box_noise(seed: int, group: SectionGroup, stains: int) -> BoxNoise:
    """Noise of a section group keyed by (seed, step, stain, section, y, x): a box is a cut of any larger one."""

    def source(step: int, box: Box) -> Float[Tensor, "channel y x"]:
        planes = [noise.normal(seed, step, stain, z, box) for stain in range(stains) for z in group.image]
        return torch.stack([torch.from_numpy(plane) for plane in planes])

    return source


def check(network: BlockNetwork, domain: Domain) -> None:
    """Raises `InputError` where the network is in training mode or the domain is of other patches."""
    if domain.patch_px != network.patch_px:
        raise InputError(f"the network has patches of {network.patch_px} px, the domain of {domain.patch_px}")
    if network.training:
        raise InputError("the network is in training mode, where dropout makes seams: call .eval() first")


def pixel_mask(domain: Domain, patches: Box) -> Bool[Tensor, "y x"]:
    """Active pixels of a box in patches of the region."""
    mask = torch.from_numpy(domain.mask(patches))
    return mask.repeat_interleave(domain.patch_px, 0).repeat_interleave(domain.patch_px, 1)


@torch.no_grad()
def predict(
    network: BlockNetwork,
    x: Float[Tensor, "channel y x"],
    timestep: int,
    counts: CountSource,
    domain: Domain,
    settings: SamplerSettings,
    on_block: OnBlock = lambda: None,
) -> Float[Tensor, "channel y x"]:
    """The network's output over a whole region of x_t, block by block; zero in blocks without an active patch."""
    side, halo, region = network.patch_px, network.halo_px, domain.region
    padded = F.pad(x, (halo, halo, halo, halo), value=OUTSIDE)
    out = torch.zeros_like(x)
    for patches in Box(0, domain.rows, 0, domain.columns).tiles(settings.block_rows, settings.block_columns):
        if not domain.mask(patches).any():
            continue
        pixels = Box(patches.y0 * side, patches.y1 * side, patches.x0 * side, patches.x1 * side)
        window = padded[(..., *pixels.grow(halo).shift(halo, halo).slices())]
        block_counts = counts(pixels.shift(region.y0, region.x0).grow(halo))
        output = network.predict(window[None], torch.tensor([timestep]), block_counts[None])
        out[(..., *pixels.slices())] = output[0].to(out)
        on_block()
    return out


def sample_steps(
    network: BlockNetwork,
    counts: CountSource,
    noise_source: BoxNoise,
    domain: Domain,
    settings: SamplerSettings,
    on_block: OnBlock = lambda: None,
) -> Iterator[Float[Tensor, "channel y x"]]:
    """Yield the state after each step, from noise to image (stain * section, y, x) in [-1, 1].

    The network must be in evaluation mode, or tiles would differ by its dropout; `InputError` otherwise.
    """
    check(network, domain)
    active = pixel_mask(domain, Box(0, domain.rows, 0, domain.columns))

    def masked(state: Tensor) -> Float[Tensor, "channel y x"]:
        return torch.where(active, state, OUTSIDE)

    solver, carried = settings.solver, None
    x = masked(noise_source(0, domain.region))
    for index, (timestep, bar) in enumerate(zip(solver.path.timesteps, solver.path.alpha_bar, strict=True)):
        output = predict(network, x, timestep, counts, domain, settings, on_block)
        x0 = image_of(settings.prediction, output, x, torch.tensor(bar, dtype=x.dtype))
        fresh = noise_source(index + 1, domain.region) if solver.adds_noise(index) else None
        x, carried = solver.step(index, x, x0, carried, fresh)
        x = masked(x)
        yield x


def to_uint8(image: Float[Tensor, "channel y x"]) -> UInt8[Tensor, "channel y x"]:
    """[-1, 1] to 0..255, the inverse of x / 127.5 - 1, rounded to nearest."""
    return ((image + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
