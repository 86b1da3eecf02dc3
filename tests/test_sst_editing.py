"""SST-editing: driven kernels against loops, what genes it knows of, patches of any tiling the same, seams, limits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_baselines import counts_of, random_field
from tiny_model import normal

from tera_mind.baselines.sst_editing import (
    SstEditing,
    SstEditingConfig,
    SstEditingDiscriminator,
    driven_convolution,
    patch_sums,
)
from tera_mind.errors import InputError
from tera_mind.geometry import Box, section_window
from tera_mind.metrics.seam_figures import coherent_step
from tera_mind.metrics.seam_sums import SeamGrid, seam_cell_px, seam_sums
from tera_mind.model.blocks import Painter
from tera_mind.model.methods import method_named, parameter_count
from tera_mind.sampling.oneshot import keyed_planes, paint_region
from tera_mind.sampling.plain import to_uint8

GROUP = section_window(2, 4)


def config(**changes):
    sizes = {
        "genes": 5, "stains": 2, "gene_sections": 4, "patch_px": 32, "bin_px": 8, "channels": (8, 6, 4, 4),
        "style_channels": 6, "mapping_layers": 2, "drive_channels": 8, "drive_layers": 3,
    }  # fmt: skip
    return SstEditingConfig(**(sizes | changes))


def network(dtype=torch.float32, **changes):
    """All weights count: strengths of noise and biases are zero at first."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = SstEditing(config(**changes))
        for name, weight in made.named_parameters():
            if name.endswith(("strength", "bias")) and "style" not in name:
                torch.nn.init.normal_(weight, std=0.3)
    for image in made.images:
        image.weight.data *= 0.05  # inside (-1, 1), where nothing is cut off
    return made.to(dtype).eval()


@pytest.mark.parametrize("demodulate", [True, False])
def test_every_kernel_is_multiplied_tap_by_tap(demodulate):
    """Against loops over samples, channels, places and taps."""
    x, weight, style, drive = normal(2, 3, 4, 5), normal(2, 3, 3, 3), normal(2, 3), normal(2, 9)
    found = driven_convolution(x, weight, style, drive, demodulate=demodulate)
    padded = np.pad(x.numpy(), [(0, 0), (0, 0), (1, 1), (1, 1)])
    for n in range(2):
        for out in range(2):
            kernel = np.zeros((3, 3, 3))
            for j in range(3):
                for row in range(3):
                    for column in range(3):
                        factor = drive[n, 3 * row + column] * style[n, j]
                        kernel[j, row, column] = weight[out, j, row, column] * factor
            if demodulate:
                kernel /= np.sqrt((kernel**2).sum() + 1e-8)
            for y in range(4):
                for column in range(5):
                    expected = (padded[n, :, y : y + 3, column : column + 3] * kernel).sum()
                    assert found[n, out, y, column] == pytest.approx(expected, abs=1e-5)


def test_upsampling_is_bilinear_before_the_convolution():
    weight, style, drive = normal(1, 1, 3, 3), torch.ones(1, 1), torch.zeros(1, 9)
    drive[0, 4] = 1  # of the kernel the middle alone is left
    line = np.array([0, 0.25, 0.75, 1.25, 1.75, 2])  # where samples of twice the rate lie, the rim repeated
    ramp = torch.arange(3.0).double().expand(1, 1, 3, 3)
    ramped = driven_convolution(ramp, weight, style.double(), drive.double(), demodulate=False, up=True)
    assert ramped.shape == (1, 1, 6, 6)
    np.testing.assert_allclose(ramped[0, 0, 2].numpy(), line * weight[0, 0, 1, 1].item(), atol=1e-6)


def test_factors_are_nine_a_layer_and_of_the_genes_alone():
    painter = network(torch.float64)
    genes = normal(2, 20)
    factors = painter.factors(genes)
    assert factors.shape == (2, painter.layers + 1, 9)
    x = genes
    for layer in painter.drive:  # the MLP written out: equalised weights, leaky ReLU of slope 0.2 behind every layer
        x = x @ (layer.weight.T * 0.01 / layer.weight.shape[1] ** 0.5) + 0.01 * layer.bias
        x = torch.where(x > 0, x, 0.2 * x) * 2**0.5
    torch.testing.assert_close(factors.flatten(1), x)
    assert len(painter.drive) == painter.config.drive_layers
    # each layer has its own: another nine in one place change the image, whichever it is
    bins, noise = Box(0, 4, 0, 4), keyed_planes(0, GROUP)
    z, *planes = (noise(i, plane)[None].double() for i, plane in enumerate(painter.noise_planes(bins)))
    w = painter.styles(z[:, 0])
    image = painter._patches(factors[:1], w, planes)
    for layer in range(painter.layers + 1):
        changed = factors[:1].clone()
        changed[:, layer] = changed[:, layer].flip(-1) + 0.1
        assert (painter._patches(changed, w, planes) - image).abs().max() > 1e-4, layer


def test_a_patch_knows_its_sums_and_not_where_they_lie():
    painter = network()
    field = random_field(painter, 96)
    region, planes = Box(0, 96, 0, 96), keyed_planes(0, GROUP)

    def painted(counts):
        return paint_region(painter, counts_of(painter, counts, 0), planes, region)

    image, moved = painted(field), field.clone()
    moved[..., :4, :4] = moved[..., :4, :4].flip(-1, -2)  # inside the first patch
    assert (painted(moved) - image).abs().max() < 1e-5
    moved[2, 0, 0, 0] += 5
    changed = (painted(moved) - image).abs().amax(0) > 1e-5
    assert changed[:32, :32].float().mean() > 0.9
    changed[:32, :32] = False
    assert not changed.any()  # its neighbours know nothing of it
    sums = patch_sums(field[None], painter.config)
    expected = field[..., 4:8, 8:12].sum((-1, -2)).flatten().log1p()
    torch.testing.assert_close(sums[3 + 2], expected)


def test_patches_are_the_same_in_any_tiling_and_keyed():
    painter = network()
    assert isinstance(painter, Painter)
    assert not painter.tile_exact
    counts = counts_of(painter, random_field(painter, 160), 32)
    region = Box(-32, 96, 0, 96)
    at_once = paint_region(painter, counts, keyed_planes(3, GROUP), region, block=99)
    assert 0.05 < at_once.std() < 1
    for block in (1, 2):
        tiled = paint_region(painter, counts, keyed_planes(3, GROUP), region, block)
        assert (tiled - at_once).abs().max() < 1e-5
    other = paint_region(painter, counts, keyed_planes(4, GROUP), region)
    assert (other - at_once).abs().mean() > 0.01


def test_a_seam_index_sees_the_borders_of_patches():
    """Genes the same everywhere, noise of layers left out: only the network can make a grid."""
    painter = network()
    for name, weight in painter.named_parameters():
        if name.endswith("strength"):
            weight.data.zero_()
    field = torch.ones(5, 4, 32, 32)
    image = paint_region(painter, counts_of(painter, field, 0), keyed_planes(0, GROUP), Box(0, 256, 0, 256))[0]
    grey = to_uint8((image - image.mean())[None] / (4 * image.std()))[0].numpy()
    box = Box(0, 256, 0, 256)
    grid = SeamGrid(box, 32, (0, 0), 32, seam_cell_px(box, 32))
    found = coherent_step(seam_sums(grey, box, box, grid), grid, 100, 0)
    print(f"coherent step {found.estimate.value:.2f}, elsewhere up to {found.null.high:.2f}")
    assert found.estimate.value > found.null.high


def test_discriminator_judges_genes_only_where_asked():
    image, counts = normal(2, 4, 32, 32), normal(2, 5, 4, 4, 4).abs()
    torch.manual_seed(0)
    for genes in (0, 3):
        judge = SstEditingDiscriminator(config(discriminator_genes=genes)).double()
        assert torch.allclose(judge(image, counts), judge(image, counts + 1)) == (genes == 0)


def test_published_shape():
    shape = SstEditingConfig(genes=229)
    assert (shape.constant_px, shape.halo_px, shape.patch_px) == (4, 0, 128)
    with torch.device("meta"):
        generator = SstEditing(shape)
        judge = SstEditingDiscriminator(SstEditingConfig(genes=229, discriminator_genes=64))
    assert len(generator.drive) == 8
    assert generator.drive[-1].weight.shape == (9 * 12, 256)
    assert generator.drive[0].weight.shape == (256, 229 * 4)
    assert len(generator.noise_planes(Box(0, 8, 0, 8))) == 12
    assert parameter_count(generator) == 30_078_863
    assert parameter_count(judge) == 28_464_449
    assert method_named("sst-editing").network is SstEditing


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match="must divide patch_px 36"):
        config(patch_px=36, bin_px=4)
    with pytest.raises(InputError, match="drive_layers"):
        config(drive_layers=0)
    assert SstEditingConfig.from_dict(config().to_dict()) == config()


@pytest.mark.slow
def test_a_megapixel_in_tiles():
    """1,024 x 1,024 px, in blocks of 8 and 3 patches."""
    painter = network(channels=(4, 4, 2, 2), gene_sections=1, patch_px=128)
    counts, planes = counts_of(painter, random_field(painter, 1024), 0), keyed_planes(0, section_window(0, 1))
    region = Box(0, 1024, 0, 1024)
    whole, tiled = (paint_region(painter, counts, planes, region, block) for block in (8, 3))
    assert whole.shape == (2, 1024, 1024)
    assert (whole - tiled).abs().max() < 1e-5
