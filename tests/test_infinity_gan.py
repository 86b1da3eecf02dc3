"""InfinityGAN: the implicit synthesiser against loops, any tiling the same, no seams, diversity, training."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from tiny_baselines import counts_of
from tiny_model import counts_for, normal
from tiny_rivals import check_recipes, check_run, pairs, seam, train
from tiny_training import tiny_shards

from tera_mind.baselines.infinity_gan import (
    HALO_BINS,
    InfinityGan,
    InfinityGanConfig,
    InfinityGanDiscriminator,
    StructureSynthesiser,
    diversity_loss,
)
from tera_mind.errors import InputError
from tera_mind.geometry import Box, section_window
from tera_mind.model.blocks import Painter
from tera_mind.model.checkpoint import load_checkpoint
from tera_mind.model.methods import parameter_count
from tera_mind.module.adversarial import LEARNT
from tera_mind.module.infinity_gan import InfinityGanModule
from tera_mind.sampling.oneshot import keyed_planes, paint_region

BIN_PX = 8
TINY = {
    "channels": [6, 4], "local_channels": 4, "structure_layers": 4, "style_channels": 6, "mapping_layers": 2,
    "discriminator_genes": 2,
}  # fmt: skip


def config(**changes):
    sizes = {
        "genes": 5, "stains": 2, "gene_sections": 4, "patch_px": 16, "bin_px": BIN_PX, "channels": (8, 6, 4, 4),
        "local_channels": 5, "structure_layers": 4, "style_channels": 6, "mapping_layers": 2, "discriminator_genes": 3,
    }  # fmt: skip
    return InfinityGanConfig(**(sizes | changes))


def network(dtype=torch.float32, **changes):
    """All weights count: strengths of noise and biases are zero at first."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = InfinityGan(config(**changes))
        for name, weight in made.named_parameters():
            if name.endswith(("strength", "bias")) and "style" not in name:
                torch.nn.init.normal_(weight, std=0.3)
    for image in made.texture.images:
        image.weight.data *= 0.02  # inside (-1, 1), where nothing is cut off
        image.bias.data *= 0.3
    return made.to(dtype).eval()


def field(shape, bins):
    """Counts of a tissue from 16 bins before pixel 0 on."""
    return counts_of(shape, counts_for(shape, 1, bins, bins)[0].float(), 16 * shape.bin_px)


def test_structure_is_a_modulated_perceptron_of_the_unfolded_latents_at_every_place():
    torch.manual_seed(0)
    structure = StructureSynthesiser(3, 4, 4).double()
    for layer in structure.layers:
        torch.nn.init.normal_(layer.weight.bias)
    z_l, w = normal(2, 3, 9, 8), normal(2, 4, 4, seed=1)
    out = structure(z_l, w)
    unfolded = F.unfold(z_l, 7).view(2, 3 * 49, 3, 2)
    for sample, y, x in itertools.product(range(2), range(3), range(2)):
        h = unfolded[sample, :, y, x]
        for index, layer in enumerate(structure.layers):
            style = w[sample, index] @ layer.style.weight.T / math.sqrt(4) + 1
            matrix = layer.weight.weight.flatten(2)  # (out, in, offset)
            matrix = (matrix * style[None, :, None] / math.sqrt(matrix[0].numel())).flatten(1)
            matrix = matrix / (matrix.square().sum(1, keepdim=True) + 1e-8).sqrt()
            h = F.leaky_relu(matrix @ h + layer.weight.bias, 0.2) * math.sqrt(2)
        torch.testing.assert_close(out[sample, :, y, x], h, rtol=1e-6, atol=1e-6)
    assert out.shape == (2, 3, 3, 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_region_in_tiles_is_the_region_at_once(dtype):
    painter = network(dtype)
    assert isinstance(painter, Painter)
    assert painter.tile_exact
    assert painter.halo_px == 7 * BIN_PX
    counts, planes = field(painter.config, 40), keyed_planes(3, section_window(2, 4))
    region = Box(-16, 80, 0, 112)
    at_once = paint_region(painter, counts, planes, region, block=99)
    assert 0.1 < at_once.std() < 1
    assert (at_once.abs() == 1).float().mean() < 0.05
    for block in (1, 2, 5):
        tiled = paint_region(painter, counts, planes, region, block)
        assert (tiled - at_once).abs().max() <= (1e-5 if dtype == torch.float32 else 1e-6)
    part = paint_region(painter, counts, planes, Box(0, 48, 32, 64), block=2)
    assert (part - at_once[:, 16:64, 32:64]).abs().max() <= 1e-5
    other = paint_region(painter, counts, keyed_planes(4, section_window(2, 4)), region)
    assert (other - at_once).abs().mean() > 0.01


def test_halo_is_as_wide_as_stated_and_no_wider():
    painter = network(torch.float64)
    bins = 2 * HALO_BINS + 2
    counts = counts_for(painter.config, 1, bins, bins).requires_grad_()
    planes = keyed_planes(0, section_window(0, 4))
    z, *noise = (planes(i, plane)[None].double() for i, plane in enumerate(painter.noise_planes(Box(0, bins, 0, bins))))
    image = painter.synthesise(counts, painter.styles(z[:, 0]), noise)
    assert image.shape[-2:] == (2 * BIN_PX, 2 * BIN_PX)
    for column, reached in ((0, range(14)), (-1, range(2, 16))):
        (gradient,) = torch.autograd.grad(image[..., column].sum(), counts, retain_graph=True)
        assert set(gradient.abs().sum((0, 1, 2, 3)).nonzero()[:, 0].tolist()) <= set(reached)
        assert gradient.abs().sum((0, 1, 2, 3))[reached[0]] > 0 or column == -1


def test_no_seam_at_tiles_and_a_seam_index_that_would_see_one():
    painter = network(gene_sections=1)
    counts, planes = field(painter.config, 56), keyed_planes(0, section_window(0, 1))
    image = paint_region(painter, counts, planes, Box(0, 160, 0, 160), block=1)[0]
    found = seam(image, 16)
    assert found.estimate.value <= found.null.high
    y, x = torch.meshgrid(torch.arange(160) // 16, torch.arange(160) // 16, indexing="ij")
    broken = seam(image + 0.05 * ((y + x) % 2), 16)
    assert broken.estimate.value > broken.null.high


def test_diversity_is_the_ratio_and_stays_finite():
    z_l, z_s = normal(3, 2, 4, 4), normal(3, 5, 2, 2, seed=1).requires_grad_()
    pairs = [(0, 2), (1, 0), (2, 1)]
    ratios = [(z_l[a] - z_l[b]).abs().mean() / ((z_s[a] - z_s[b]).abs().mean() + 1e-5) for a, b in pairs]
    torch.testing.assert_close(diversity_loss(z_l, z_s), torch.stack(ratios).mean())
    latents = z_l.clone().requires_grad_()
    diversity_loss(latents, z_s).backward()
    assert latents.grad is None
    assert z_s.grad.abs().sum() > 0
    for size, same in ((3, True), (1, False)):  # collapsed structures, a batch of one
        collapsed = (torch.zeros_like(z_s[:size]) if same else z_s[:size].detach()).requires_grad_()
        loss = diversity_loss(z_l[:size], collapsed)
        loss.backward()
        assert loss.isfinite()
        assert collapsed.grad.isfinite().all()
        assert (loss > 1e4) == same


def test_discriminator_sees_genes_only_where_asked():
    image, counts = normal(2, 4, 32, 32), counts_for(config(), 2, 4, 4)
    torch.manual_seed(0)
    for genes in (0, 3):
        judge = InfinityGanDiscriminator(config(discriminator_genes=genes)).double()
        assert torch.allclose(judge(image, counts), judge(image, counts + 1)) == (genes == 0)


def test_published_shape():
    shape = InfinityGanConfig(genes=229)
    assert (shape.halo_px, shape.bins, shape.bin_px) == (112, 4, 16)
    with torch.device("meta"):
        generator, judge = InfinityGan(shape), InfinityGanDiscriminator(shape)
    assert len(generator.noise_planes(Box(0, 22, 0, 22))) == 10
    assert parameter_count(generator) == 29_884_957
    assert parameter_count(judge) == 31_562_561


def test_sizes_that_do_not_fit_are_refused():
    for wrong, words in (({"channels": (8, 8)}, "log2"), ({"local_channels": 0}, "local_channels"),
                         ({"mapping_layers": -1}, "mapping_layers")):  # fmt: skip
        with pytest.raises(InputError, match=words):
            config(**wrong)
    assert InfinityGanConfig.from_dict(config().to_dict()) == config()


def test_a_megapixel_in_tiles():
    """1,024 x 1,024 px, in blocks of 6 and 16 patches."""
    painter = network(channels=(4, 4, 2, 2), gene_sections=1, patch_px=64)
    counts, planes = field(painter.config, 160), keyed_planes(0, section_window(0, 1))
    region = Box(0, 1024, 0, 1024)
    whole, tiled = (paint_region(painter, counts, planes, region, block) for block in (16, 6))
    assert whole.shape == (2, 1024, 1024)
    assert (whole - tiled).abs().max() <= 1e-5


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return tiny_shards(tmp_path_factory.mktemp("shards"))


@pytest.mark.slow
def test_recipes_resolve(capsys):
    check_recipes("infinity_gan", capsys)


@pytest.mark.slow
def test_trains_and_resumes_and_its_checkpoint_loads(shards, tmp_path):
    """Images of 4 px, 2 px bins, crops of 32 px."""
    sizes = {"data.patch_px": 16, "data.bin_px": 2}
    whole = check_run("infinity_gan", shards, tmp_path, TINY | {"path_weight": 2.0}, ["diversity"], **sizes)
    checkpoint = load_checkpoint(whole / "last.ckpt")
    assert isinstance(checkpoint.network, InfinityGan)
    assert (checkpoint.info.method, checkpoint.info.model.patch_px) == ("infinity-gan", 2)


def test_diversity_drives_structures_apart(shards, tmp_path):
    """Trained on it alone (the discriminator's rate is the generator's, its signal a hundredth), structures part."""
    data = pairs(shards, 16, 2)
    batch = next(iter(data.train_dataloader()))
    ratios = {}
    for weight in (0.0, 100.0):
        torch.manual_seed(0)
        module = InfinityGanModule(data.inputs, **TINY, path_weight=0.0, diversity_weight=weight)
        assert module.generator.jittered is False
        if not weight:
            assert module.terms(batch["genes"], batch) == {}
        train(module, [batch] * 15, tmp_path)
        module.diversity_weight = 1.0
        ratios[weight] = module.terms(batch["genes"], batch)["diversity"].item()
    assert ratios[100.0] < 0.8 * ratios[0.0]
    z, _ = module.noise(batch["genes"], batch["number"], LEARNT)
    assert z.shape == (4, 6)


def test_crops_without_room_for_the_halo_are_refused(shards):
    data = pairs(shards, 16, 4)
    with pytest.raises(InputError, match=r"more than 28 with bins of 4 px, got 16"):
        InfinityGanModule(data.inputs)
