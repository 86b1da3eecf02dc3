"""The wavefront equals the plain sampler, whatever is swept, in whatever blocks, with whatever solver."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from tiny_blocks import TinyBlocks, tiny_counts
from tiny_model import counts_for, tiny_config, tiny_network
from torch import Tensor

from tera_mind.errors import InputError
from tera_mind.geometry import Box, section_window
from tera_mind.model.blocks import BlockNetwork
from tera_mind.sampling.domain import Domain
from tera_mind.sampling.plain import BoxNoise, CountSource, SamplerSettings, box_noise, sample_steps
from tera_mind.sampling.wavefront import sweep

REGION = Box(40, 40 + 8 * 9, -16, -16 + 8 * 13)  # 9 x 13 patches, partly beyond the canvas
SOLVERS = [("ddim", 0.0), ("ddim", 0.6), ("ddpm", 0.0), ("dpm++", 0.0), ("unipc", 0.0)]


def noise_of(dtype: torch.dtype, channels: int = 2) -> BoxNoise:
    source = box_noise(5, section_window(2, 4), channels // 2)
    return lambda step, box: source(step, box).to(dtype)


def domain_of(share: float, seed: int = 0, region: Box = REGION, patch_px: int = 8) -> Domain:
    whole = Domain.whole(region, patch_px)
    if share == 1:
        return whole
    return Domain(region, patch_px, np.random.default_rng(seed).random(whole.active.shape) < share)


def plain(
    network: BlockNetwork, domain: Domain, given: SamplerSettings, dtype: torch.dtype, counts: CountSource = tiny_counts
) -> Tensor:
    """The whole region, in blocks of another shape than any wavefront has here."""
    plainly = SamplerSettings(given.prediction, given.steps, given.stepper, given.eta, block_rows=5, block_columns=6)
    return list(sample_steps(network, counts, noise_of(dtype, network.channels), domain, plainly))[-1]


def swept(
    network: BlockNetwork,
    domain: Domain,
    given: SamplerSettings,
    dtype: torch.dtype,
    rows: tuple[int, int] | None = None,
    columns: tuple[int, int] | None = None,
    counts: CountSource = tiny_counts,
) -> Tensor:
    """The pieces of a sweep put together; they come from left to right and fill rows and columns exactly."""
    side, region = domain.patch_px, domain.region
    (r0, r1), (c0, c1) = rows or (0, domain.rows), columns or (0, domain.columns)
    pieces, x = [], region.x0 + c0 * side
    for box, piece in sweep(network, counts, noise_of(dtype, network.channels), domain, given, rows, columns):
        assert (box.y0, box.y1, box.x0) == (region.y0 + r0 * side, region.y0 + r1 * side, x)
        assert piece.shape == (network.channels, box.height, box.width)
        assert piece.dtype == dtype
        pieces.append(piece)
        x = box.x1
    assert x == region.x0 + c1 * side
    return torch.cat(pieces, dim=-1)


def cut(state: Tensor, rows: tuple[int, int], columns: tuple[int, int], side: int = 8) -> Tensor:
    return state[..., rows[0] * side : rows[1] * side, columns[0] * side : columns[1] * side]


@st.composite
def stretches(draw: st.DrawFn, size: int) -> tuple[int, int]:
    first = draw(st.integers(0, size - 1))
    return first, draw(st.integers(first + 1, size))


@settings(max_examples=20, deadline=None, derandomize=True, phases=(Phase.explicit, Phase.generate))
@given(
    solver=st.sampled_from(SOLVERS),
    steps=st.sampled_from([1, 2, 4, 15]),
    prediction=st.sampled_from(["epsilon", "v", "x0"]),
    halo_px=st.sampled_from([4, 8, 16]),
    block=st.tuples(st.integers(1, 10), st.integers(1, 14)),
    micro_batch=st.integers(1, 4),
    rows=stretches(9),
    columns=stretches(13),
    share=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    exact=st.booleans(),
)
def test_any_window_in_any_blocks_is_that_of_the_plain_sampler(
    solver, steps, prediction, halo_px, block, micro_batch, rows, columns, share, exact
) -> None:
    # epsilon prediction amplifies rounding 87-fold at the first of many steps
    dtype = torch.float64 if exact or prediction == "epsilon" else torch.float32
    network = TinyBlocks(halo_px=halo_px, dtype=dtype)
    domain = domain_of(share, seed=steps)
    given = SamplerSettings(prediction, steps, *solver, *block, micro_batch)
    want = cut(plain(network, domain, given, dtype), rows, columns)
    have = swept(network, domain, given, dtype, rows, columns)
    assert (have - want).abs().max() <= (1e-9 if dtype == torch.float64 else 2e-4)


@pytest.mark.parametrize("solver", [("ddim", 0.6), ("unipc", 0.0)])
def test_the_published_network_too(solver: tuple[str, float]) -> None:
    """The gene-morph UNet, whole region and a window, float64; its counts reach half a patch beyond the region."""
    config = tiny_config(base_channels=2, stains=2)
    region = Box(64, 64 + 3 * 32, 32, 32 + 3 * 32)
    around = region.grow(16)
    every = counts_for(config, 1, around.height // 16, around.width // 16)[0]

    def counts(box: Box) -> Tensor:
        inner = box.shift(-around.y0, -around.x0)
        assert min(inner.y0, inner.x0) >= 0
        assert inner.y1 <= around.height
        assert inner.x1 <= around.width
        return every[..., inner.y0 // 16 : inner.y1 // 16, inner.x0 // 16 : inner.x1 // 16]

    network = tiny_network(config)
    domain = domain_of(0.8, region=region, patch_px=32)
    given = SamplerSettings("v", 3, *solver, 2, 1, 2)
    want = plain(network, domain, given, torch.float64, counts)
    assert want.std() > 0.1
    assert (swept(network, domain, given, torch.float64, counts=counts) - want).abs().max() <= 1e-9
    window = swept(network, domain, given, torch.float64, (1, 2), (1, 3), counts)
    assert (window - cut(want, (1, 2), (1, 3), 32)).abs().max() <= 1e-9


@pytest.mark.parametrize(("precision", "micro_batch"), [("float32", 1), ("bf16", 1), ("bf16", 3)])
def test_bits_do_not_depend_on_what_is_swept(precision: str, micro_batch: int) -> None:
    """One block shape and one micro-batch: bands and windows, in any order, have the bits of the whole, in bf16 too."""
    config = tiny_config(base_channels=2, stains=2, patch_px=16, bin_px=8, attention_px=8)
    network = tiny_network(config, dtype=torch.float32)
    domain = domain_of(0.9, region=Box(0, 6 * 16, 0, 7 * 16), patch_px=16)
    every = counts_for(config, 1, 2 * 6 + 2, 2 * 7 + 2)[0].float()
    given = SamplerSettings("v", 3, "dpm++", 0.0, 2, 3, micro_batch)

    def counts(box: Box) -> Tensor:
        rows, columns = slice(box.y0 // 8 + 1, box.y1 // 8 + 1), slice(box.x0 // 8 + 1, box.x1 // 8 + 1)
        return every[..., rows, columns]

    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        places = [((3, 5), (0, 7)), ((2, 4), (4, 6)), ((0, 3), (0, 7)), ((0, 6), (0, 7))]
        parts = [swept(network, domain, given, torch.float32, *place, counts=counts) for place in places]
    whole = parts.pop()
    assert whole.std() > 0.1
    for (rows, columns), part in zip(places, parts, strict=False):
        assert torch.equal(part, cut(whole, rows, columns, 16)), (rows, columns)


def test_passes_have_one_shape_and_fill_up() -> None:
    """Every pass is of `micro_batch` whole blocks; with few block rows the steps share passes."""
    network, seen = TinyBlocks(), []
    given = SamplerSettings("v", 15, "ddim", 0.0, 2, 3, 4)
    domain = domain_of(1.0)
    for _ in sweep(network, tiny_counts, noise_of(torch.float64), domain, given, on_block=lambda: seen.append(0)):
        pass
    assert set(network.passes) == {(4, 2, 2 * 8 + 8, 3 * 8 + 8)}
    assert len(seen) <= 4 * len(network.passes) <= 1.1 * len(seen)


@pytest.mark.parametrize("steps", [1, 4])
def test_nothing_active_is_all_background_and_costs_nothing(steps: int) -> None:
    network = TinyBlocks()
    image = swept(network, domain_of(0.0), SamplerSettings("v", steps), torch.float32)
    assert image.shape == (2, REGION.height, REGION.width)
    assert (image == -1).all()
    assert not network.passes


def test_counts_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """All steps together read each bin of the region and its rim once, and none outside what they need."""
    read = torch.zeros(REGION.height // 4 + 40, REGION.width // 4 + 40, dtype=torch.int64)

    def counts(box: Box) -> Tensor:
        inner = box.shift(80 - REGION.y0, 80 - REGION.x0)
        read[inner.y0 // 4 : inner.y1 // 4, inner.x0 // 4 : inner.x1 // 4] += 1
        return tiny_counts(box)

    given = SamplerSettings("v", 15, "ddim", 0.0, 2, 3, 2)
    for _ in sweep(TinyBlocks(), counts, noise_of(torch.float32), domain_of(1.0), given):
        pass
    assert read.max() == 1
    assert int(read.sum()) == (REGION.height // 4 + 2) * (REGION.width // 4 + 2)


@pytest.mark.parametrize(("rows", "columns"), [((0, 10), None), ((3, 3), None), (None, (-1, 3)), (None, (5, 2))])
def test_windows_that_leave_the_region_are_refused(
    rows: tuple[int, int] | None, columns: tuple[int, int] | None
) -> None:
    with pytest.raises(InputError, match=r"rows within 0:9 and columns within 0:13"):
        swept(TinyBlocks(), domain_of(1.0), SamplerSettings("v", 2), torch.float32, rows, columns)


def test_training_mode_and_other_patches_are_refused() -> None:
    network = TinyBlocks()
    with pytest.raises(InputError, match="patches of 8 px, the domain of 4"):
        swept(network, Domain.whole(REGION, 4), SamplerSettings("v", 2), torch.float32)
    network.training = True
    with pytest.raises(InputError, match=r"training mode.*eval"):
        swept(network, domain_of(1.0), SamplerSettings("v", 2), torch.float32)
