"""The fast network is the plain one: in float64, on the golden files, in bf16 over a whole sampling, and bit by bit."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tiny_model import counts_for, normal, tiny_config, tiny_network
from torch import Tensor

from tera_mind.errors import InputError
from tera_mind.geometry import IMAGE_SECTIONS, Box
from tera_mind.model import planes
from tera_mind.model.blocks import BlockNetwork
from tera_mind.model.checkpoint import load_checkpoint
from tera_mind.model.collage import counts_to_patches, from_patches, to_patches
from tera_mind.model.fast import FastNetwork, balanced, fast_network, fastest_patches
from tera_mind.model.layers import norm_silu
from tera_mind.model.planes import SectionProducts, from_halves, products, to_halves
from tera_mind.model.published import import_state
from tera_mind.model.unet import GeneMorphUNet
from tera_mind.sampling.domain import Domain
from tera_mind.sampling.plain import SamplerSettings, sample_steps
from tera_mind.sampling.verify import Golden

CPU = torch.device("cpu")
DEEP: dict[str, Any] = {"channel_mult": (1, 1, 2, 2), "pyramid_channels": (4, 3, 2), "res_blocks": 2}
LOW_RANK: dict[str, Any] = {"gene_rank": 3, "count_transform": "log1p", "gene_residual": True}


@pytest.mark.parametrize("sections", [1, 2, 4, 8])
def test_products_of_planes_are_the_3d_convolution(sections: int, monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight, bias = normal(3, 5, sections, 6, 4), normal(2, 5, 3, 3, 3, seed=1), normal(2, seed=2)
    conv = SectionProducts(weight, bias, torch.float64, sections, (3, 6))
    planes: list[int] = []
    conv2d = F.conv2d
    monkeypatch.setattr(F, "conv2d", lambda x, *a, **k: (planes.append(len(x) // 3), conv2d(x, *a, **k))[1])
    out = from_halves(conv(to_halves(x)), 3)
    assert sum(planes) == products(sections) <= 3 * sections - 2
    torch.testing.assert_close(out, F.conv3d(x, weight, bias, padding=1), rtol=0, atol=1e-12)


def inputs(config: Any, blocks: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    side, bins = config.patch_px, config.bins
    window = normal(blocks, config.image_channels, 2 * side, 3 * side)
    return window, torch.tensor([3, 900, 40][:blocks]), counts_for(config, blocks, 2 * bins, 3 * bins)


@pytest.mark.parametrize("gene_sections", IMAGE_SECTIONS)
@pytest.mark.parametrize("margin_px", [0, 8])
@pytest.mark.parametrize("changes", [DEEP, LOW_RANK | {"attention_px": 32}])
@torch.no_grad()
def test_it_is_the_plain_network_in_float64(gene_sections: int, margin_px: int, changes: dict[str, Any]) -> None:
    config = tiny_config(gene_sections=gene_sections, margin_px=margin_px, **changes)
    network = tiny_network(config)
    fast = fast_network(network, CPU)
    assert isinstance(fast, BlockNetwork)
    torch.testing.assert_close(fast.predict(*inputs(config)), network.predict(*inputs(config)), rtol=0, atol=1e-9)


@pytest.mark.parametrize("gene_sections", IMAGE_SECTIONS)
@pytest.mark.parametrize("packed", [True, False])
@torch.no_grad()
def test_it_is_the_plain_network_in_float32_and_nearly_in_bf16(
    gene_sections: int, packed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With packed convolutions and without: one patch of fractional counts, and an odd block."""
    if not packed:
        monkeypatch.setattr(planes, "packable", lambda _dtype: False)
    config = tiny_config(gene_sections=gene_sections, margin_px=8, bin_px=8)
    exact, network = tiny_network(config), tiny_network(config, dtype=torch.float32)
    narrow = {precision: fast_network(network, CPU, precision) for precision in ("32", "bf16")}
    assert narrow["32"].blocks[0].conv_in.both.packed == (packed and planes.packable(torch.float32))
    for rows, columns in ((1, 1), (3, 1)):
        side = (32 * (rows + 1), 32 * (columns + 1))
        window, counts = normal(1, config.image_channels, *side), counts_for(config, 1, side[0] // 8, side[1] // 8) / 3
        expected = exact.predict(window, torch.tensor([700]), counts)
        for precision, most in (("32", 1e-5), ("bf16", 0.1)):
            out = narrow[precision].predict(window.float(), torch.tensor([700]), counts.float())
            error = (out - expected).square().mean().sqrt() / expected.square().mean().sqrt()
            assert error < most


@pytest.mark.parametrize("failure", ["gone", "other arguments", "other result"])
def test_packing_is_left_where_this_torch_has_it_not(failure: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The entry points are not public: another torch may lack them, want other arguments or do something else."""

    def broken(*_arguments: Any) -> Tensor:
        raise AttributeError if failure == "gone" else TypeError

    def wrong(x: Tensor, weight: Tensor, *_: Any) -> Tensor:
        return x

    planes.packable.cache_clear()
    monkeypatch.setattr(planes, "packed_conv2d", wrong if failure == "other result" else broken)
    try:
        assert not planes.packable(torch.float32)
        assert not planes.packable(torch.bfloat16)
        conv = planes.PlaneConv(torch.ones(2, 3, 3, 3), None, (1, 4))
        assert not conv.packed
        assert conv(torch.ones(1, 4, 4, 3))[0, 1, 1, 0] == 27
    finally:
        planes.packable.cache_clear()


def test_what_it_says_may_be_used_in_autograd() -> None:
    config = tiny_config()
    out = fast_network(tiny_network(config), CPU).predict(*inputs(config, 1))
    weight = torch.ones((), dtype=torch.float64, requires_grad=True)
    (out * weight).sum().backward()
    assert weight.grad == out.sum()


@pytest.mark.parametrize("precision", ["32", "bf16"])
def test_it_keeps_one_copy_of_the_kernels(precision: Any) -> None:
    """Nothing large of the network is held beside what is run."""
    network = tiny_network(tiny_config(base_channels=16), dtype=torch.float32)
    fast = fast_network(network, CPU, precision)
    seen: set[int] = set()
    held: list[Tensor] = []

    def walk(value: Any) -> None:
        if id(value) in seen:
            return
        seen.add(id(value))
        if isinstance(value, Tensor):
            held.append(value)
        elif isinstance(value, torch.nn.Module):
            held.extend(value.state_dict().values())
        elif isinstance(value, (list, tuple, dict)):
            for part in value.values() if isinstance(value, dict) else value:
                walk(part)
        elif type(value).__module__.startswith("tera_mind.model"):
            walk(vars(value))

    walk(fast)
    kernels = sum(p.numel() for p in network.parameters() if p.ndim == 5)
    assert sum(value.numel() for value in held) < 1.1 * sum(p.numel() for p in network.parameters())
    assert sum(value.numel() for value in held if value.is_mkldnn or value.ndim == 4) <= kernels


def test_a_later_step_of_training_does_not_change_it() -> None:
    config = tiny_config()
    network = tiny_network(config)
    fast = fast_network(network, CPU)
    before = fast.predict(*inputs(config, 1))
    with torch.no_grad():
        for weight in network.parameters():
            weight.add_(0.1)
    assert torch.equal(fast.predict(*inputs(config, 1)), before)


@pytest.mark.parametrize("precision", ["32", "bf16"])
def test_bits_do_not_depend_on_place_or_company(precision: Any) -> None:
    config = tiny_config(gene_sections=4, margin_px=8)
    fast = fast_network(tiny_network(config, dtype=torch.float32), CPU, precision)
    window, t, counts = inputs(config, 3)
    window, counts = window.float(), counts.float()
    together = fast.predict(window, t, counts)
    for i in range(3):
        assert torch.equal(fast.predict(window[i : i + 1], t[i : i + 1], counts[i : i + 1])[0], together[i])
    turned = fast.predict(window.flip(0), t.flip(0), counts.flip(0))
    assert torch.equal(turned.flip(0), together)


def test_weights_are_copies_and_the_network_is_left_alone() -> None:
    network = GeneMorphUNet(tiny_config())  # in training mode
    fast = fast_network(network, CPU, "bf16")
    assert not fast.training
    assert network.training
    assert all(p.requires_grad and p.dtype == torch.float32 for p in network.parameters())


def test_what_cannot_be_compiled_is_refused() -> None:
    with pytest.raises(InputError, match="needs a CUDA device"):
        fast_network(tiny_network(tiny_config()), CPU, compile=True)


def test_the_search_for_a_micro_batch_stays_within_memory() -> None:
    fast = fast_network(tiny_network(tiny_config(), dtype=torch.float32), CPU)
    assert fastest_patches(fast, CPU, memory_bytes=0) == 1
    assert fastest_patches(fast, CPU, memory_bytes=2**30, most=4) in {1, 2, 4}


def test_patches_are_shared_out_evenly() -> None:
    pieces = list(balanced(81, 4))
    assert [i for piece in pieces for i in piece] == list(range(81))
    assert {len(piece) for piece in pieces} == {3, 4}


@pytest.mark.parametrize("name", ["golden_1slice.npz", "golden_4slices.npz"])
@torch.no_grad()
def test_it_is_the_published_model(name: str) -> None:
    """The golden boundary path: each sample is a group of 2 x 2 patches whose centre is predicted."""
    root = Path(__file__).resolve().parents[1]
    path = Path(os.environ.get("TERA_MIND_GOLDEN", root.parent / "shared" / "golden")) / name
    if not path.is_file():
        pytest.skip(f"no golden file at {path}")
    golden = Golden.read(path)
    network = GeneMorphUNet(golden.config)
    network.load_state_dict(import_state(golden.config, golden.state))
    window = from_patches(golden.tensor("x"), 2, 2)
    counts = golden.tensor("genes").transpose(1, 2)
    assert torch.equal(to_patches(window, golden.config.patch_px), golden.tensor("x"))
    assert counts_to_patches(counts, golden.config.bins).shape[0] == len(golden.tensor("x"))
    out = fast_network(network, CPU).predict(window, golden.tensor("t"), counts)
    torch.testing.assert_close(out, golden.tensor("eps_boundary"), rtol=0, atol=1e-4)


def test_bf16_is_50_db_from_the_plain_network_after_15_steps() -> None:
    """The shipped weights on made genes: clumps that differ in size between genes."""
    with resources.as_file(resources.files("tera_mind") / "weights" / "simulated.ckpt") as path:
        checkpoint = load_checkpoint(path)
    network, config = checkpoint.network, checkpoint.network.config
    random = torch.Generator().manual_seed(0)
    side, halo, bin_px = config.patch_px, config.halo_px, config.bin_px
    box, bins = Box(0, 2 * side, 0, 2 * side), 3 * side // bin_px
    clumps = torch.rand(config.genes, 1, bins // 4, bins // 4, generator=random)
    level = clumps.repeat_interleave(4, 2).repeat_interleave(4, 3) * torch.rand(config.genes, 1, 1, 1, generator=random)
    counts = torch.poisson(1.5 * level, generator=random)
    start = torch.randn(config.image_channels, box.height, box.width, generator=random)

    def genes(asked: Box) -> Tensor:
        shifted = asked.shift(halo, halo)
        rows = slice(shifted.y0 // bin_px, shifted.y1 // bin_px)
        return counts[:, :, rows, shifted.x0 // bin_px : shifted.x1 // bin_px]

    def image(network: BlockNetwork) -> Tensor:
        settings = SamplerSettings(checkpoint.info.prediction, steps=15)
        domain = Domain.whole(box, side)
        return list(sample_steps(network, genes, lambda _step, _box: start.clone(), domain, settings))[-1]

    plain = image(network)
    assert plain.std() > 0.1
    for precision, least_db in (("32", 100.0), ("bf16", 50.0)):
        fast = fast_network(network, CPU, precision)  # type: ignore[arg-type]
        error = (image(fast) - plain).square().mean()
        assert 10 * torch.log10(4 / error) > least_db


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The training benchmark, which holds the plain transcription."""
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[1] / "benchmarks"))
    import train_step  # type: ignore[import-not-found, unused-ignore]

    yield train_step
    sys.modules.pop("train_step")


@pytest.mark.parametrize("gene_sections", IMAGE_SECTIONS)
@pytest.mark.parametrize("margin_px", [0, 8])
def test_training_has_the_gradients_of_the_plain_network(
    gene_sections: int, margin_px: int, benchmark: ModuleType
) -> None:
    """Both paths, against nn.Conv3d with z padding and an elementary norm that autograd goes back through."""
    # two bins a quadrant: with one, keys are all the same there and no gradient reaches queries and keys
    config = tiny_config(gene_sections=gene_sections, margin_px=margin_px, dropout=0.0, bin_px=8)
    network = tiny_network(config)
    plain = benchmark.plain_network(network)
    results = []
    for way in (network, plain):
        x = normal(8, config.image_channels, 32, 32).requires_grad_()
        patch, boundary = way(x, torch.tensor([3, 900]), counts_for(config, 8, 4, 4))
        (patch.square().mean() + (boundary * normal(*boundary.shape)).mean()).backward()
        results.append((patch, boundary, x.grad, {name: p.grad for name, p in way.named_parameters()}))
    ours, theirs = results
    for one, other in zip(ours[:3], theirs[:3], strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-9)
    for name, grad in ours[3].items():
        expected = theirs[3][name]
        if expected.shape != grad.shape:
            expected = expected[:, :, 1:2]  # one section: the outer planes are not there
        scale = expected.abs().max()
        assert scale > 1e-12, f"{name}: no gradient to compare"
        torch.testing.assert_close(grad / scale, expected / scale, rtol=0, atol=1e-9)


@pytest.mark.parametrize("shared", [True, False])
def test_the_fused_norm_has_the_right_gradient(shared: bool) -> None:
    x = normal(2, 3, 1, 2, 2).requires_grad_()
    weight = normal(1 if shared else 2, 3, 1, 1, 1, seed=1).requires_grad_()
    shift = normal(2, 3, 1, 1, 1, seed=2).requires_grad_()
    unit = x / (x.square().mean(1, keepdim=True) + 1e-6).sqrt()
    torch.testing.assert_close(norm_silu(x, weight), F.silu(unit * weight))
    torch.testing.assert_close(norm_silu(x, weight, shift), F.silu(unit * weight + shift))
    assert torch.autograd.gradcheck(norm_silu, (x, weight, shift))


def test_groups_of_patches_do_not_matter() -> None:
    config = tiny_config(gene_sections=4)
    network = tiny_network(config)
    results = [FastNetwork(network, CPU, "32", n).predict(*inputs(config)) for n in (1, 3, 100)]
    for other in results[1:]:
        torch.testing.assert_close(other, results[0], rtol=0, atol=1e-12)
