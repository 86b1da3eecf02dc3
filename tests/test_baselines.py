"""Networks of the baselines: tiled against joint, how far they look, what is seamless and what a seam index sees."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_baselines import SHAPES, counts_of, random_field, tiny

from tera_mind.baselines.sinfusion import SinFusionConfig
from tera_mind.diffusion.loss import Crops, crop_loss
from tera_mind.diffusion.schedule import alpha_bars
from tera_mind.errors import FormatError, InputError
from tera_mind.geometry import Box, section_window
from tera_mind.metrics.seam_figures import coherent_step
from tera_mind.metrics.seam_sums import SeamGrid, seam_cell_px, seam_sums
from tera_mind.model.blocks import BlockNetwork, Painter
from tera_mind.model.config import ModelConfig
from tera_mind.model.methods import method_named, parameter_count
from tera_mind.sampling.domain import Domain
from tera_mind.sampling.oneshot import keyed_planes, paint_region
from tera_mind.sampling.plain import SamplerSettings, predict, sample_steps, to_uint8

DENOISING = [name for name in SHAPES if name != "regression"]
EXACT = [name for name in DENOISING if name != "plain-ddpm"]
REGION = Box(0, 64, 0, 96)
#: what the exact ones may differ by in a step, float32
TOLERANCE = 1e-5


def start(network, region=REGION, seed=2):
    return torch.randn(network.channels, region.height, region.width, generator=torch.Generator().manual_seed(seed))


def step(network, x, counts, block, region=REGION):
    """One pass over a region in blocks of so many patches."""
    domain = Domain.whole(region, network.patch_px)
    return predict(network, x, 500, counts, domain, SamplerSettings("v", 5, block_rows=block, block_columns=block))


def around(network, region=REGION):
    """Counts with enough around a region for any halo here."""
    return counts_of(network, random_field(network, region.width + 2 * 48), 48)


@pytest.mark.parametrize("gene_sections", [1, 4])
@pytest.mark.parametrize("method", EXACT)
def test_a_step_in_tiles_is_the_step_at_once(method, gene_sections):
    network = tiny(method, gene_sections=gene_sections)
    assert isinstance(network, BlockNetwork)
    assert network.config.tile_exact
    x, counts = start(network), around(network)
    joint = step(network, x, counts, block=6)
    assert joint.std() > 0.05  # there is something to differ
    for block in (1, 2, 3):
        assert (step(network, x, counts, block) - joint).abs().max() <= TOLERANCE


@pytest.mark.parametrize(
    ("halo_px", "least", "most"), [(0, 1e-2, 10.0), (4, 1e-4, 10.0), (8, 1e-7, 1.0), (12, 0.0, 1e-5)]
)
def test_sinfusion_errs_by_what_its_halo_lacks(halo_px, least, most):
    network = tiny("sinfusion", halo_px=halo_px)
    assert network.config.reach_px == 12
    assert network.config.tile_exact == (halo_px >= 12)
    x, counts = start(network), around(network)
    error = (step(network, x, counts, block=1) - step(network, x, counts, block=6)).abs().max()
    print(f"halo {halo_px} px: tiled and joint differ by {error:.1e}")
    assert least <= error <= most


def test_sinfusion_looks_as_far_as_it_says():
    """Read off gradients: nothing beyond `reach_px` matters, something within a bin of it does."""
    network = tiny("sinfusion", halo_px=24, bin_px=2, patch_px=16, width=16, blocks=4)
    reach, halo = network.config.reach_px, 24
    assert reach < halo
    side = 16 + 2 * halo
    window = start(network, Box(0, side, 0, side))[None].requires_grad_()
    counts = random_field(network, side)[None].requires_grad_()
    network.predict(window, torch.tensor([500]), counts).square().sum().backward()
    for gradient, cell_px in ((window.grad, 1), (counts.grad, network.bin_px)):
        seen = gradient.flatten(0, -3).abs().sum(0).amax(1).nonzero().flatten()
        first = int(seen[0]) * cell_px
        assert halo - reach <= first < halo
    image, genes = (int(g.flatten(0, -3).abs().sum(0).amax(1).nonzero()[0]) for g in (window.grad, counts.grad))
    assert min(image, genes * network.bin_px) < halo - reach + 2 * network.bin_px


@pytest.mark.parametrize(("bins", "reach"), [(16, 64), (8, 56)])
def test_the_published_chain_needs_64_px(bins, reach):
    config = SinFusionConfig(genes=3, bin_px=bins)
    assert config.reach_px == reach
    assert config.tile_exact
    assert not SinFusionConfig(genes=3, bin_px=bins, halo_px=32).tile_exact


def test_whole_patches_do_not_know_of_each_other():
    """Any tiling paints the same, and none is what the network makes of the region at once."""
    network = tiny("plain-ddpm")
    assert not network.config.tile_exact
    x, counts = start(network), around(network)
    tiled = step(network, x, counts, block=3)
    assert (step(network, x, counts, block=1) - tiled).abs().max() <= TOLERANCE
    with torch.no_grad():
        joint = network(x[None], torch.tensor([500]), counts(REGION)[None])[0]
    error = (joint - tiled).abs().max()
    print(f"plain-ddpm: tiled and joint differ by {error:.1e}")
    assert error > 0.01 * joint.std()
    changed = x.clone()
    changed[:, :32, :32] = 0
    other = step(network, changed, counts, block=3)
    assert torch.equal(other[:, :, 32:], tiled[:, :, 32:])
    assert not torch.allclose(other[:, :32, :32], tiled[:, :32, :32])


def test_regression_paints_whole_patches_from_genes_alone():
    network = tiny("regression")
    assert isinstance(network, Painter)
    assert not isinstance(network, BlockNetwork)
    counts = around(network)
    images = [paint_region(network, counts, keyed_planes(seed, section_window(0, 1)), REGION, block)
              for seed, block in ((0, 1), (1, 2), (2, 3))]  # fmt: skip
    assert images[0].std() > 0.01
    for image in images[1:]:
        assert (image - images[0]).abs().max() <= TOLERANCE
    with torch.no_grad():
        joint = network(counts(REGION)[None])[0]
    assert (joint.clamp(-1, 1) - images[0]).abs().max() > 0.01 * joint.std()


def seam(image, grid_px):
    """Coherent step at the lines of a grid: the measure and the limits of what other grids give."""
    box = Box(0, image.shape[0], 0, image.shape[1])
    grid = SeamGrid(box, grid_px, (0, 0), grid_px, seam_cell_px(box, grid_px))
    return coherent_step(seam_sums(np.asarray(image), box, box, grid), grid, 100, 0)


def painted(network, region, block):
    """A region over genes that are the same everywhere, so that nothing but the network can make a grid."""
    field = torch.ones(5, 1, (region.height + 96) // 4, (region.width + 96) // 4)
    settings, x = SamplerSettings("x0", 4, block_rows=block, block_columns=block), start(network, region)
    domain = Domain.whole(region, network.patch_px)
    state = x
    for state in sample_steps(network, counts_of(network, field, 48), lambda *_: x, domain, settings):  # noqa: B007
        pass
    scaled = (state[0] - state[0].mean()) / (4 * state[0].std())
    return to_uint8(scaled[None])[0].numpy()


@pytest.mark.parametrize(("halo_px", "seams"), [(0, True), (20, False)])
def test_a_seam_index_sees_tiles_without_a_halo(halo_px, seams):
    network = tiny("sinfusion", halo_px=halo_px, blocks=4)
    found = seam(painted(network, Box(0, 128, 0, 160), block=1), network.patch_px)
    print(f"halo {halo_px} px: coherent step {found.estimate.value:.2f}, elsewhere up to {found.null.high:.2f}")
    assert (found.estimate.value > found.null.high) == seams


def test_a_seam_index_sees_patches_that_do_not_know_of_each_other():
    """Trained on crops each as bright as chance will have it, the network gives every patch a brightness of its own."""
    torch.manual_seed(0)
    network = tiny("plain-ddpm").train()
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    bars = torch.from_numpy(alpha_bars()).float()
    for _ in range(25):
        bright = (0.7 * torch.rand(4, 1, 1, 1, 1).sub(0.5).sign()).expand(4, 2, 1, 32, 32)
        noise, t, inside = torch.randn(4, 2, 1, 32, 32), torch.randint(1000, (4,)), torch.ones(4, 1, 32, 32).bool()
        crops = Crops(bright, torch.ones(4, 5, 1, 8, 8), inside, t, noise, bars)
        loss = crop_loss(network, crops, "x0").total
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    found = seam(painted(network.eval(), Box(0, 192, 0, 192), block=6), 32)
    print(f"loss {loss:.2f}: coherent step {found.estimate.value:.2f}, elsewhere up to {found.null.high:.2f}")
    assert found.estimate.value > 2 * found.null.high


def test_genes_enter_where_they_should():
    """Patch-DM: in the decoder alone. All: other genes, other output."""
    for method in SHAPES:
        network = tiny(method)
        field = random_field(network, 192)
        counts, none = (counts_of(network, f, 48) for f in (field, torch.zeros_like(field)))
        if method == "regression":
            made = [network.paint(c(REGION)[None], []) for c in (counts, none)]
        else:
            made = [step(network, start(network), c, 6) for c in (counts, none)]
        assert (made[0] - made[1]).abs().max() > 1e-3, method
    network = tiny("patch-dm")
    patch = start(network, Box(0, 16, 0, 16))[None, :, None]
    genes = [network.pyramid(c[None]) for c in (field[..., :4, :4], torch.zeros(5, 1, 4, 4))]
    embedding = network.unet.time(torch.tensor([3]))
    coded = [network.unet.encode(patch, embedding, levels) for levels in genes]
    assert torch.equal(coded[0][0], coded[1][0])


def test_capacity_at_the_published_shapes():
    """The numbers of docs/baselines.md, 229 genes; SinFusion as adapted is far smaller, its twin is not."""

    def count(method, **shape):
        made = method_named(method)
        with torch.device("meta"):
            return parameter_count(made.network(made.config(genes=229, **shape)))

    tera = count("tera-mind")
    assert tera == 213_789_608
    assert count("patch-dm") == 194_238_777
    assert count("sinfusion") == 3_380_588
    assert count("sinfusion", width=1068) / tera == pytest.approx(1, abs=0.01)
    assert count("plain-ddpm", patch_px=128) == 81_818_691
    assert count("regression", patch_px=128) == 81_835_971


@pytest.mark.parametrize(
    ("method", "changes", "words"),
    [
        ("sinfusion", {"halo_px": 6}, "halo_px must be 0 or a multiple of bin_px"),
        ("sinfusion", {"blocks": 3}, "must be even"),
        ("sinfusion", {"genes": 2000}, "at most 1500 genes"),
        ("patch-dm", {"pyramid_channels": (8, 8)}, "pyramid_channels must have 1 widths"),
        ("patch-dm", {"bin_px": 1}, "bin_px must be a multiple"),
        ("plain-ddpm", {"patch_px": 30}, "multiple of bin_px"),
        ("regression", {"gene_sections": 3}, "gene sections must be one of"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(method, changes, words):
    with pytest.raises(InputError, match=words):
        tiny(method, **changes)


def test_an_unknown_method_is_named():
    with pytest.raises(FormatError, match="unknown method 'coco'; this release knows tera-mind, "):
        method_named("coco")
    assert method_named("tera-mind").config is ModelConfig
