"""IST-editing: any tiling the same, a shift by one gene bin is a shift of the image, what it depends on, limits."""

from __future__ import annotations

import pytest
import torch
from tiny_model import counts_for, normal

from tera_mind.baselines.ist_editing import IstEditing, IstEditingConfig, IstEditingDiscriminator
from tera_mind.errors import InputError
from tera_mind.geometry import Box, section_window
from tera_mind.model.blocks import Painter
from tera_mind.model.methods import method_named, parameter_count
from tera_mind.sampling.oneshot import keyed_planes, paint_region

BIN_PX = 8


def config(**changes):
    sizes = {
        "genes": 5,
        "stains": 2,
        "gene_sections": 4,
        "patch_px": 16,
        "bin_px": BIN_PX,
        "channels": (8, 6, 4, 4),
        "style_channels": 6,
        "mapping_layers": 2,
        "count_transform": "log1p",
    }
    return IstEditingConfig(**(sizes | changes))


def network(dtype=torch.float32, **changes):
    """All weights count: strengths of noise and biases are zero at first."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = IstEditing(config(**changes))
        for name, weight in made.named_parameters():
            if name.endswith(("strength", "bias")) and "style" not in name:
                torch.nn.init.normal_(weight, std=0.3)
    for image in made.synthesis.images:
        image.weight.data *= 0.05  # inside (-1, 1), where nothing is cut off
    return made.to(dtype).eval()


def field(shape, bins_y, bins_x):
    """Counts of a tissue of whole bins from pixel (-64, -64) on."""
    whole = counts_for(shape, 1, bins_y, bins_x)[0].float()
    first = 64 // shape.bin_px

    def counts(box):
        rows, columns = (
            slice(first + low // shape.bin_px, first + high // shape.bin_px)
            for low, high in ((box.y0, box.y1), (box.x0, box.x1))
        )
        return whole[..., rows, columns]

    return counts


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_region_in_tiles_is_the_region_at_once(dtype):
    painter = network(dtype)
    assert isinstance(painter, Painter)
    assert painter.tile_exact
    assert painter.halo_px == 4 * BIN_PX
    counts, planes = field(painter.config, 24, 26), keyed_planes(3, section_window(2, 4))
    region = Box(-16, 80, 0, 112)
    at_once = paint_region(painter, counts, planes, region, block=99)
    assert 0.1 < at_once.std() < 1
    assert (at_once.abs() == 1).float().mean() < 0.05
    for block in (1, 2, 5):
        tiled = paint_region(painter, counts, planes, region, block)
        assert (tiled - at_once).abs().max() < (1e-5 if dtype == torch.float32 else 1e-6)
    part = paint_region(painter, counts, planes, Box(0, 48, 32, 64), block=2)
    assert (part - at_once[:, 16:64, 32:64]).abs().max() < 1e-5


def test_noise_of_each_layer_counts_and_is_keyed():
    painter = network()
    counts, region = field(painter.config, 24, 24), Box(0, 32, 0, 32)
    group = section_window(2, 4)
    images = [
        paint_region(painter, counts, keyed_planes(seed, where), region)
        for seed, where in ((0, group), (0, group), (1, group), (0, section_window(4, 4)))
    ]
    assert torch.equal(images[0], images[1])
    for other in images[2:]:
        assert (other - images[0]).abs().mean() > 0.01
    shared = painter.noise_planes(Box(0, 10, 0, 10))[0]
    z = [keyed_planes(0, where)(0, shared) for where in (group, section_window(4, 4))]
    assert torch.equal(*z)  # one style for all sections of a brain


def test_a_shift_by_one_gene_bin_shifts_the_image_by_its_pixels():
    painter = network(torch.float64)
    whole, planes = counts_for(painter.config, 1, 13, 12)[0], keyed_planes(0, section_window(0, 4))
    images = []
    for first in (0, 1):  # the window, and its noise, one bin further down
        bins = Box(first, first + 12, 0, 12)
        noise = [planes(layer, plane)[None] for layer, plane in enumerate(painter.noise_planes(bins))]
        images.append(painter.paint(whole[None, ..., first : first + 12, :], noise)[0])
    torch.testing.assert_close(images[0][:, BIN_PX:], images[1][:, :-BIN_PX], rtol=0, atol=1e-12)
    assert images[0].shape == (4, 4 * BIN_PX, 4 * BIN_PX)


def test_halo_is_as_wide_as_stated_and_no_wider():
    """The outermost bins of the halo reach the image; the image beyond the reach of one bin stays."""
    painter = network(torch.float64)
    counts = counts_for(painter.config, 1, 16, 16).requires_grad_()
    bins = Box(0, 16, 0, 16)
    planes = keyed_planes(0, section_window(0, 4))
    noise = [planes(layer, plane)[None] for layer, plane in enumerate(painter.noise_planes(bins))]
    image = painter.synthesise(counts, painter.styles(noise[0][:, 0].double()), [one.double() for one in noise[1:]])
    (gradient,) = torch.autograd.grad(image[..., :, 0].sum(), counts)
    reached = gradient.abs().sum((0, 1, 2, 3)).ne(0).nonzero()[:, 0]
    assert reached.tolist() == list(range(8))  # of the first pixel column: all 4 bins before it
    (gradient,) = torch.autograd.grad(
        painter.synthesise(counts, painter.styles(noise[0][:, 0].double()), [o.double() for o in noise[1:]])[
            ..., -1
        ].sum(),
        counts,
    )
    assert gradient.abs().sum((0, 1, 2, 3)).ne(0).nonzero()[:, 0].min() >= 8


def test_genes_speak_and_the_jitter_is_its_mean():
    painter = network(torch.float64, count_transform="counts")
    counts = counts_for(painter.config, 1, 12, 12)
    bins = Box(0, 12, 0, 12)
    noise = [normal(1, p.box.height, p.box.width, seed=i) for i, p in enumerate(painter.noise_planes(bins))]
    image = painter.paint(counts, noise)
    w = painter.styles(noise[0][:, 0])
    torch.testing.assert_close(image, painter.synthesise(counts + 0.5, w, noise[1:]).clamp(-1, 1))
    assert not torch.allclose(image, painter.paint(counts.flip(-1), noise))


def test_discriminator_judges_genes_only_where_asked():
    image, counts = normal(2, 4, 32, 32), counts_for(config(), 2, 4, 4)
    torch.manual_seed(0)
    for genes in (0, 3):
        judge = IstEditingDiscriminator(config(discriminator_genes=genes)).double()
        same = torch.allclose(judge(image, counts), judge(image, counts + 1))
        assert same == (genes == 0)


def test_published_shape():
    shape = IstEditingConfig(genes=229)
    assert (shape.halo_px, shape.bins, shape.bin_px) == (128, 2, 32)
    with torch.device("meta"):
        generator, judge = IstEditing(shape), IstEditingDiscriminator(shape)
    assert judge.judge.blocks[-1].second.weight.shape[0] == 512
    assert len(generator.noise_planes(Box(0, 12, 0, 12))) == 12
    assert parameter_count(generator) == 29_792_803
    assert parameter_count(judge) == 28_389_377
    assert method_named("ist-editing").network is IstEditing


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match="log2"):
        config(channels=(8, 8))
    with pytest.raises(InputError, match="style_channels"):
        config(style_channels=0)
    assert IstEditingConfig.from_dict(config().to_dict()) == config()


@pytest.mark.slow
def test_a_megapixel_in_tiles():
    """1,024 x 1,024 px, in blocks of 8 and 16 patches."""
    painter = network(channels=(4, 4, 2, 2), gene_sections=1, patch_px=64)
    counts, planes = field(painter.config, 144, 144), keyed_planes(0, section_window(0, 1))
    region = Box(0, 1024, 0, 1024)
    whole, tiled = (paint_region(painter, counts, planes, region, block) for block in (16, 6))
    assert whole.shape == (2, 1024, 1024)
    assert (whole - tiled).abs().max() < 1e-5
