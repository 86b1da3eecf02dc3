"""MS-PIE: positions against their formula, heads of any size, genes at the head and in the style, tiles that differ."""

from __future__ import annotations

import math

import pytest
import torch
from tiny_baselines import counts_of, random_field
from tiny_model import normal

from tera_mind.baselines.ms_pie import MsPie, MsPieConfig, MsPieDiscriminator, sinusoidal_positions
from tera_mind.errors import InputError
from tera_mind.geometry import Box, section_window
from tera_mind.metrics.seam_figures import coherent_step
from tera_mind.metrics.seam_sums import SeamGrid, seam_cell_px, seam_sums
from tera_mind.model.blocks import Painter
from tera_mind.model.inputs import Inputs
from tera_mind.model.methods import method_named, parameter_count
from tera_mind.module.ms_pie import MsPieModule
from tera_mind.sampling.oneshot import keyed_planes, paint_region
from tera_mind.sampling.plain import to_uint8

GROUP = section_window(2, 4)
INPUTS = Inputs(
    tuple(f"g{i}" for i in range(5)), ("DAPI", "PolyT"), 0.4, {"DAPI": (0.0, 255.0), "PolyT": (0.0, 255.0)}, 1, 16, 4
)
SHAPE = {"channels": (8, 6, 4, 4), "position_channels": 8, "style_channels": 6, "mapping_layers": 2}


def config(**changes):
    return MsPieConfig(**({"genes": 5, "stains": 2, "gene_sections": 4, "patch_px": 32, "bin_px": 8} | SHAPE | changes))


def network(dtype=torch.float32, **changes):
    """All weights count: strengths of noise and biases are zero at first."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = MsPie(config(**changes))
        for name, weight in made.named_parameters():
            if name.endswith(("strength", "bias")) and "style" not in name:
                torch.nn.init.normal_(weight, std=0.3)
    for image in made.synthesis.images:
        image.weight.data *= 0.05  # inside (-1, 1), where nothing is cut off
    return made.to(dtype).eval()


def test_positions_follow_the_formula():
    height, width, channels = 5, 8, 12
    grid = sinusoidal_positions(height, width, channels)
    for y in range(height):
        for x in range(width):
            expected = []
            for place in (100 + x - width // 2, 100 + y - height // 2):  # x first
                for wave in (math.sin, math.cos):
                    expected += [wave(place / 10_000 ** (2 * k / (channels / 2))) for k in range(channels // 4)]
            assert grid[:, y, x].tolist() == pytest.approx(expected, abs=1e-6)
    assert torch.equal(sinusoidal_positions(4, 4, 8), sinusoidal_positions(8, 6, 8)[:, 2:6, 1:5])  # one middle for all
    places = grid.flatten(1)
    assert torch.cdist(places.T, places.T).fill_diagonal_(1).min() > 0.1  # no two places alike


def made(painter, counts, seed=0):
    """The image before it is limited to [-1, 1], of a window from the origin on."""
    planes = painter.noise_planes(Box(0, counts.shape[-2], 0, counts.shape[-1]))
    z, *noise = (keyed_planes(seed, GROUP)(i, plane)[None].to(counts) for i, plane in enumerate(planes))
    return painter.synthesise(counts, painter.styles(z[:, 0]), noise)


def test_the_head_holds_positions_and_genes_and_the_style_their_mean():
    painter = network(torch.float64)
    counts = random_field(painter, 64).double()[None] + 0.5
    heads = []
    painter.synthesis.first.register_forward_hook(lambda _, given, __: heads.append(given))
    image = made(painter, counts)
    head, w, _ = heads[0]
    assert image.shape == (1, 4, 64, 64)
    assert head.shape == (1, 8 + 8, 8, 8)
    torch.testing.assert_close(head[0, 8:].float(), sinusoidal_positions(8, 8, 8))
    entered = torch.einsum("og,gyx->oyx", painter.enter.weight[..., 0, 0] / 20**0.5, counts[0].log1p().flatten(0, 1))
    entered = entered + painter.enter.bias[:, None, None]
    torch.testing.assert_close(head[0, :8], torch.where(entered > 0, entered, 0.2 * entered) * 2**0.5)
    # genes elsewhere change the style here, by their mean and not by their place
    moved = counts.flip(-1)
    made(painter, moved)
    torch.testing.assert_close(heads[1][1], w)
    made(painter, counts + 1)
    assert (heads[2][1] - w).abs().max() > 1e-3


@pytest.mark.parametrize("bins", [2, 3, 8])
def test_images_and_their_judge_are_of_any_size(bins):
    painter = network()
    torch.manual_seed(0)
    judge = MsPieDiscriminator(config(discriminator_genes=3))
    counts = random_field(painter, 8 * bins)[None].repeat(2, 1, 1, 1, 1)
    planes = painter.noise_planes(Box(0, bins, 0, bins))
    assert [plane.box.height for plane in planes[1:]] == [bins * scale for scale in (1, 2, 2, 4, 4, 8, 8)]
    z, *noise = (normal(2, plane.box.height, plane.box.width).float() for plane in planes)
    image = painter.synthesise(counts, painter.styles(z[:, 0]), noise)
    assert image.shape == (2, 4, 8 * bins, 8 * bins)
    logits = judge(image, counts)
    assert logits.shape == (2,)
    assert not torch.allclose(logits, judge(image, counts + 1))


def test_tiles_differ_from_the_whole_and_a_seam_index_sees_them():
    """Measured: of a picture with standard deviation 1. Genes the same everywhere: only the network makes a grid."""
    painter = network()
    assert isinstance(painter, Painter)
    assert not painter.tile_exact
    assert painter.halo_px == 0
    counts, region = counts_of(painter, torch.ones(5, 4, 32, 32), 0), Box(0, 256, 0, 256)
    whole, tiled = (paint_region(painter, counts, keyed_planes(0, GROUP), region, block) for block in (8, 1))
    error = (whole - tiled)[0] / whole[0].std()
    seams = []
    for image in (whole[0], tiled[0]):
        grey = to_uint8((image - image.mean())[None] / (4 * whole[0].std()))[0].numpy()
        grid = SeamGrid(region, 32, (0, 0), 32, seam_cell_px(region, 32))
        seams.append(coherent_step(seam_sums(grey, region, region, grid), grid, 100, 0))
    print(f"largest {error.abs().max():.2f}, root mean square {error.square().mean().sqrt():.2f} of the sd")
    for name, found in zip(("whole", "tiled"), seams, strict=True):
        print(f"{name}: coherent step {found.estimate.value:.2f}, elsewhere up to {found.null.high:.2f}")
    assert error.abs().max() > 0.1
    assert seams[1].estimate.value > seams[1].null.high
    assert seams[1].estimate.value > 1.5 * seams[0].estimate.value


def test_one_window_is_one_picture_keyed_by_seed_and_place():
    painter = network()
    counts, region = counts_of(painter, random_field(painter, 192), 64), Box(0, 64, 0, 64)
    images = [paint_region(painter, counts, keyed_planes(seed, GROUP), region, 2) for seed in (0, 0, 1)]
    assert torch.equal(images[0], images[1])
    assert (images[2] - images[0]).abs().mean() > 0.01
    moved = paint_region(painter, counts, keyed_planes(0, GROUP), region.shift(32, 0), 2)
    assert (moved - images[0]).abs().mean() > 0.01


def module(**changes):
    settings = {
        "channels": [6, 4, 4], "position_channels": 8, "style_channels": 6, "mapping_layers": 1,
        "head_bins": [2, 4, 8], "head_shares": [0.5, 0.25, 0.25],
    }  # fmt: skip
    torch.manual_seed(0)
    return MsPieModule(INPUTS, **(settings | changes))


def test_training_draws_the_size_of_the_head_and_the_place_in_the_crop():
    trained = module()
    drawn = [trained.head(step, 8) for step in range(800)]
    again, other = module(), module(seed=1)
    sides = [side for side, _, _ in drawn]
    for side, share in ((2, 0.5), (4, 0.25), (8, 0.25)):
        assert sides.count(side) / len(sides) == pytest.approx(share, abs=0.06)
    assert all(0 <= edge <= 8 - side for side, row, column in drawn for edge in (row, column))
    assert {row for side, row, _ in drawn if side == 4} == set(range(5))
    assert drawn == [again.head(step, 8) for step in range(800)]
    assert drawn != [other.head(step, 8) for step in range(800)]


def test_a_training_image_is_a_part_of_the_crop_with_its_own_genes():
    trained = module()
    places = torch.arange(64.0).view(8, 8)  # bins and the pixels over them tell where they are
    genes = places.expand(2, 5, 1, 8, 8)
    image = places.repeat_interleave(4, 0).repeat_interleave(4, 1).expand(2, 2, 1, 32, 32)
    batch = {"genes": genes, "image": image}
    side, row, column = trained.head(0, 8)
    real, counts, own = trained._pairs(batch, torch.zeros_like(genes))
    assert real.shape == (2, 2, 4 * side, 4 * side)
    assert counts.shape[-2:] == (side, side)
    assert counts is own
    assert torch.equal(counts[0, 0, 0], places[row : row + side, column : column + side])
    assert torch.equal(real[..., ::4, ::4][0, 0], counts[0, 0, 0])
    trained.eval()
    assert trained._pairs(batch, torch.zeros_like(genes))[0].shape == (2, 2, 32, 32)


def test_published_shape():
    shape = MsPieConfig(genes=229)
    with torch.device("meta"):
        generator, judge = MsPie(shape), MsPieDiscriminator(MsPieConfig(genes=229, discriminator_genes=64))
    assert generator.synthesis.first.weight.shape == (512, 1024, 3, 3)  # 256 channels an axis, and 512 of genes
    assert len(generator.noise_planes(Box(0, 8, 0, 8))) == 12
    assert parameter_count(generator) == 33_146_915
    assert parameter_count(judge) == 30_300_481
    assert method_named("ms-pie").network is MsPie
    assert MsPieConfig.from_dict(config().to_dict()) == config()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"channels": [8, 8]}, "log2"),
        ({"position_channels": 6}, "multiple of 4, got 6"),
        ({"head_bins": [9], "head_shares": [1.0]}, "between 2 and 8 bins, a quarter and the whole of a crop of 32 px"),
        ({"head_bins": [1], "head_shares": [1.0]}, "between 2 and 8 bins"),
        ({"head_bins": []}, "head_bins"),
        ({"head_shares": [0.5, 0.5]}, "one share a size"),
        ({"head_shares": [0.5, 0.5, 0.5]}, "add up to 1"),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes, words):
    with pytest.raises(InputError, match=words):
        module(**changes)


@pytest.mark.slow
def test_a_megapixel():
    """1,024 x 1,024 px at once, as it is meant, and in tiles."""
    painter = network(channels=(4, 4, 2, 2), gene_sections=1, patch_px=64)
    counts, planes = counts_of(painter, random_field(painter, 1024), 0), keyed_planes(0, section_window(0, 1))
    region = Box(0, 1024, 0, 1024)
    whole, tiled = (paint_region(painter, counts, planes, region, block) for block in (16, 6))
    assert whole.shape == tiled.shape == (2, 1024, 1024)
    assert (whole - tiled).abs().max() > 0.01
