"""COCO-GAN: norms, projection and penalty against explicit computations, tiles and seams, training."""

from __future__ import annotations

import functools
import math

import pytest
import torch
import torch.nn.functional as F
from test_ddp import TWO, fit_twofold, records
from tiny_baselines import counts_of, random_field
from tiny_model import counts_for, normal
from tiny_rivals import check_recipes, check_run, pairs, rival_arguments, seam, train
from tiny_training import tiny_shards, with_callback
from torch import nn

from callbacks.guard import NonFiniteGuard
from callbacks.throughput import training_flops
from tera_mind.baselines.coco_gan import (
    CocoGan,
    CocoGanConfig,
    CocoGanDiscriminator,
    gradient_penalty,
    pooled,
    projected,
)
from tera_mind.baselines.conditional_norm import ConditionalNorm
from tera_mind.errors import InputError
from tera_mind.geometry import Box, section_window
from tera_mind.model.blocks import Painter
from tera_mind.model.checkpoint import load_checkpoint
from tera_mind.model.methods import parameter_count
from tera_mind.module.coco_gan import CocoGanModule
from tera_mind.sampling.oneshot import keyed_planes, paint_region

TINY = {
    "latent_channels": 4, "channels": [8, 6, 4, 4], "discriminator_channels": [4, 6, 6], "spade_channels": 4,
    "head_channels": 6,
}  # fmt: skip
PLANES = keyed_planes(0, section_window(0, 1))


def config(**changes):
    sizes = {key: tuple(value) if isinstance(value, list) else value for key, value in TINY.items()}
    return CocoGanConfig(
        **({"genes": 5, "stains": 2, "gene_sections": 1, "patch_px": 32, "bin_px": 4} | sizes | changes)
    )


@functools.cache
def network(dtype=torch.float32, **changes):
    """Averages of the norms as after some training."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = CocoGan(config(**changes)).to(dtype)
        counts = torch.randint(0, 4, (4, 5, made.config.gene_sections, 8, 8)).to(dtype)
        for _ in range(60):
            made.synthesise(counts, torch.randn(4, 1, made.config.latent_channels, dtype=dtype), [])
    return made.eval()


def test_conditional_norm_is_batch_norm_with_scales_of_vector_and_map():
    torch.manual_seed(0)
    norm, plain = ConditionalNorm(3, 4, 2).double(), nn.BatchNorm2d(3, momentum=0.01, affine=False).double()
    x, vector, genes = 2 * normal(4, 3, 6, 6) + 1, normal(4, 4, seed=1), normal(4, 2, 3, 3, seed=2)
    gammas, betas = norm.linear(vector).chunk(2, 1)
    repeated = genes.repeat_interleave(2, 2).repeat_interleave(2, 3)
    spade_gamma, spade_beta = norm.place(F.relu(norm.shared(repeated))).chunk(2, 1)

    def by_hand(mean, var):
        out = torch.empty_like(x)
        for n in range(4):
            for c in range(3):
                h = (x[n, c] - mean[c]) / (var[c] + 1e-5).sqrt()
                out[n, c] = h * (1 + gammas[n, c] + spade_gamma[n, c]) + betas[n, c] + spade_beta[n, c]
        return out

    flat = x.transpose(0, 1).flatten(1)
    torch.testing.assert_close(norm(x, vector, genes), by_hand(flat.mean(1), flat.var(1, correction=0)))
    plain(x)
    torch.testing.assert_close(norm.running_mean, plain.running_mean)
    torch.testing.assert_close(norm.running_var, 0.99 + 0.01 * flat.var(1, correction=0))
    before = norm.running_mean.clone()
    norm(torch.full_like(x, math.nan), vector, genes)  # leaves no trace
    assert torch.equal(norm.running_mean, before)
    torch.testing.assert_close(norm.eval()(x, vector, genes), by_hand(norm.running_mean, norm.running_var))
    assert torch.equal(norm.running_mean, before)


def test_every_layer_of_both_networks_has_a_largest_singular_value_of_one():
    torch.manual_seed(0)
    checked = 0
    for model in (CocoGan(config()).double(), CocoGanDiscriminator(config()).double()):
        for name, layer in model.named_modules():
            if isinstance(layer, nn.Conv2d | nn.Linear) and not {"linear", "shared", "place", "genes"} & set(
                name.split(".")
            ):
                for _ in range(150):
                    weight = layer.weight  # in training a step of the power iteration
                original = layer.parametrizations.weight.original.detach()
                expected = original / torch.linalg.svdvals(original.flatten(1))[0]
                torch.testing.assert_close(weight.detach(), expected, rtol=0.02, atol=1e-3, msg=name)
                checked += 1
    assert checked == 2 + 3 * 3 + 3 * 3 + 4


def test_projection_by_loops_and_what_the_discriminator_says():
    torch.manual_seed(0)
    features, y = normal(3, 4), normal(3, 5, seed=1)
    score, embed = nn.Linear(4, 1).double(), nn.Linear(5, 4).double()
    for n in range(3):
        v = [sum(embed.weight[c, g] * y[n, g] for g in range(5)) + embed.bias[c] for c in range(4)]
        psi = sum(score.weight[0, c] * features[n, c] for c in range(4)) + score.bias[0]
        expected = psi + sum(v[c] * features[n, c] for c in range(4))
        torch.testing.assert_close(projected(features, y, score, embed)[n], expected)
    judge = CocoGanDiscriminator(config()).double().eval()
    image, counts = normal(2, 2, 32, 32), counts_for(config(), 2, 8, 8)
    one, other = judge(image, counts), judge(image, counts + 1)
    assert not torch.allclose(one.score, other.score)
    assert torch.equal(one.coordinate, other.coordinate)  # told from the image alone
    expected = torch.tensor([counts[1, g].log1p().mean().tanh() for g in range(5)]).double()
    torch.testing.assert_close(pooled(counts)[1], expected, rtol=1e-6, atol=1e-6)


def test_gradient_penalty_is_the_gradient_by_hand():
    """D(x) = sum(tanh(a x)): dD/dx = a / cosh(a x)^2; its own gradient in a by finite differences."""
    image = normal(3, 2, 4, 4).requires_grad_()

    def penalty(a):
        return gradient_penalty((a * image).tanh().flatten(1).sum(1), image)

    a = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
    by_hand = ((a / torch.cosh(a * image) ** 2).flatten(1).norm(dim=1) - 1).square().mean()
    torch.testing.assert_close(penalty(a), by_hand)
    (gradient,) = torch.autograd.grad(penalty(a), a)
    numeric = (penalty(a.detach() + 1e-6) - penalty(a.detach() - 1e-6)) / 2e-6
    torch.testing.assert_close(gradient, numeric.detach(), rtol=1e-5, atol=1e-7)
    nought = torch.zeros((), dtype=torch.float64, requires_grad=True)  # D without a slope: a root of 0
    (gradient,) = torch.autograd.grad(gradient_penalty((nought * image).flatten(1).sum(1), image), nought)
    assert gradient.isfinite()


def test_micro_patches_depend_on_their_place_their_bins_and_the_genes_of_the_macro_patch():
    painter = network(torch.float64)
    counts, z = counts_for(painter.config, 1, 16, 8), normal(1, 4)
    image = painter.synthesise(counts, z[:, None], [])
    assert image.shape == (1, 2, 64, 32)
    assert image.abs().max() < 1
    other = counts.clone()
    other[..., 0, 0] += 3  # the first bin of the upper macro patch
    changed = (painter.synthesise(other, z[:, None], []) - image).abs().amax((0, 1))
    assert changed[:16, :16].max() > 3 * changed[16:32, 16:].max() > 0
    assert changed[32:].max() == 0
    macro = counts[..., :8, :]
    y = pooled(macro)
    for row, column in ((0, 0), (0, 1), (1, 0), (1, 1)):
        place = torch.tensor([[2.0 * row - 1, 2.0 * column - 1]]).double()
        genes = macro.log1p().flatten(1, 2)[..., 4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
        alone = painter.micro(z, torch.cat([place, y], 1), genes)
        rows, columns = (slice(16 * i, 16 * i + 16) for i in (row, column))
        torch.testing.assert_close(image[:, :, rows, columns], alone)


def test_whole_macro_patches_are_the_same_in_any_tiles_but_not_on_another_grid():
    painter = network()
    assert isinstance(painter, Painter)
    assert (painter.halo_px, painter.tile_exact) == (0, False)
    counts = counts_of(painter, random_field(painter, 256), 0)
    region = Box(0, 160, 0, 128)
    at_once = paint_region(painter, counts, PLANES, region, block=9)
    for block in (1, 2, 3):
        assert (paint_region(painter, counts, PLANES, region, block) - at_once).abs().max() < 1e-5
    moved = paint_region(painter, counts, PLANES, Box(16, 144, 16, 112)).detach()
    apart = (moved - at_once[:, 16:144, 16:112].detach()).square().mean().sqrt()
    assert 0.05 < apart / at_once.std() < 2


def test_a_seam_index_sees_the_borders_of_macro_patches():
    """A generator that paints what the genes of a macro patch say, and nothing by place: its micro patches fit."""
    torch.manual_seed(0)
    painter, channels = CocoGan(config()).eval(), 4
    last, kernel = painter.norm, painter.leave.parametrizations.weight.original.data
    for weight in (last.linear.weight, last.linear.bias, last.place.weight, last.place.bias):
        nn.init.zeros_(weight)
    last.linear.bias.data[:channels] = -1.0  # what comes from below is scaled by 1 + gamma = 0
    last.linear.weight.data[channels:, -painter.config.genes :] = 1.0
    middle = kernel[..., 1:2, 1:2].clone()
    kernel.zero_()[..., 1:2, 1:2] = middle
    level = 2 * torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    field = (random_field(painter, 256) * level.repeat_interleave(8, 2).repeat_interleave(8, 3)).round()
    image = paint_region(painter, counts_of(painter, field, 0), PLANES, Box(0, 256, 0, 256))[0].detach()
    patches = image.unfold(0, 32, 32).unfold(1, 32, 32)
    assert patches.std((2, 3)).max() < 1e-6 < 0.02 < patches.mean((2, 3)).std()
    texture = 0.1 * normal(256, 256).float()
    for picture, seen in ((image + texture, True), (texture, False)):
        found = seam(picture, 32)
        assert (found.estimate.value > found.null.high) == seen


def test_published_shape():
    shape = CocoGanConfig(genes=229)
    assert (shape.patch_px, shape.micro_px, shape.bin_px) == (64, 32, 16)
    with torch.device("meta"):
        generator, judge = CocoGan(shape), CocoGanDiscriminator(shape)
    assert parameter_count(generator) == 21_930_564
    assert parameter_count(judge) == 10_054_950


def test_sizes_that_do_not_fit_are_refused():
    for wrong, words in (
        ({"channels": (8, 8)}, "channels"),
        ({"bin_px": 32}, "whole bins"),
        ({"head_channels": 0}, "at least 1"),
        ({"discriminator_channels": (4,) * 7}, "halved 6 times"),
    ):
        with pytest.raises(InputError, match=words):
            config(**wrong)
    assert CocoGanConfig.from_dict(config().to_dict()) == config()


@pytest.mark.slow
def test_a_megapixel_in_tiles():
    painter = network(channels=(4, 4, 4, 4), spade_channels=2)
    counts = counts_of(painter, random_field(painter, 1024), 0)
    region = Box(0, 1024, 0, 1024)
    with torch.no_grad():
        whole, tiled = (paint_region(painter, counts, PLANES, region, block) for block in (32, 7))
    assert whole.shape == (2, 1024, 1024)
    assert (whole - tiled).abs().max() < 1e-5


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return tiny_shards(tmp_path_factory.mktemp("shards"))


@pytest.mark.slow
def test_recipes_resolve(capsys):
    check_recipes("coco_gan", capsys)


def test_trains_and_resumes_and_its_checkpoint_loads(shards, tmp_path):
    logged = ("gradient_penalty", "coordinate_real", "coordinate_fake")
    sizes = {"data.patch_px": 16, "data.bin_px": 4}
    whole = check_run("coco_gan", shards, tmp_path, TINY, logged, **sizes)
    checkpoint = load_checkpoint(whole / "last.ckpt")
    assert isinstance(checkpoint.network, CocoGan)
    assert (checkpoint.info.method, checkpoint.info.model.patch_px) == ("coco-gan", 32)
    states = torch.load(whole / "last.ckpt", weights_only=True)["optimizer_states"]
    for state, rate in zip(states, (2e-4, 8e-4), strict=True):
        assert state["param_groups"][0]["lr"] == rate
        assert state["param_groups"][0]["betas"] == (0.0, 0.999)
        assert state["state"][0]["step"] == 4


def made(shards, **settings):
    data = pairs(shards, 16, 4)
    torch.manual_seed(0)
    return next(iter(data.train_dataloader())), CocoGanModule(data.inputs, **(TINY | settings))


def test_losses_are_those_of_the_paper(shards):
    batch, module = made(shards)
    module.eval()
    real, counts, own = module._pairs(batch, torch.zeros_like(batch["genes"]))
    assert torch.equal(own, counts)
    fake = module.images(counts, batch["number"], 4).detach()
    said = [module.discriminator(image, own) for image in (real, fake)]
    errors = [(one.coordinate - pooled(own)).square().mean() for one in said]
    scores = [one.score.mean() for one in said]
    torch.testing.assert_close(module.judge(*said, own).total, scores[1] - scores[0] + 100 * (errors[0] + errors[1]))
    torch.testing.assert_close(module.learn(said[1], own).total, -scores[1] + 100 * errors[1])
    penalty = module.penalties(real, fake, own, batch)["gradient_penalty"]
    shares = set()
    for n in range(len(real)):  # a number in (0, 1) for each sample, from its own key
        one = {"number": batch["number"][n : n + 1]}
        shares.add(module.penalties(real[n : n + 1], fake[n : n + 1], own[n : n + 1], one)["gradient_penalty"].item())
    assert penalty.item() == pytest.approx(sum(shares) / len(real), rel=1e-4)
    assert training_flops(module, batch) > 1e5


def test_a_bad_discriminator_is_counted_though_its_generator_is_well(shards, tmp_path):
    """A penalty of NaN: only the discriminator's steps are bad, the generator's are good, and the run ends."""
    batch, module = made(shards)
    module.penalties = lambda *_: {"gradient_penalty": torch.tensor(math.nan) * module.discriminator.score.bias.sum()}
    before = {name: value.clone() for name, value in module.discriminator.named_parameters()}
    guard = NonFiniteGuard(max_bad_steps=1)
    with pytest.raises(Exception, match="2 steps in a row, up to step 1"):
        train(module, [batch] * 3, tmp_path, guard)
    assert guard.state_dict() == {"in_a_row": 2, "total": 2}
    assert all(torch.equal(value, before[name]) for name, value in module.discriminator.named_parameters())


@pytest.mark.slow
def test_a_generator_learns_what_its_critic_sees(shards, tmp_path):
    """Real images of one grey: the generator must come to paint it, from images that were not."""
    batch, module = made(shards, coordinate_weight=1.0, learning_rate=5e-3, discriminator_rate=5e-3)
    batch["image"] = torch.full_like(batch["image"], -0.6)

    def distance():
        with torch.no_grad():
            return (module.images(batch["genes"], batch["number"], 9) + 0.6).abs().mean().item()

    before = distance()
    numbers = torch.arange(4)
    train(module, [batch | {"number": numbers + 4 * step} for step in range(40)], tmp_path)
    module.train()
    assert distance() < 0.6 * before


@pytest.mark.slow
def test_two_processes_keep_the_same_weights(shards, tmp_path):
    out = tmp_path / "run"
    out.mkdir()
    sizes = {"data.patch_px": 16, "data.bin_px": 4, "data.steps_per_epoch": 20}
    two = {key.replace("__", "."): value for key, value in TWO.items()}
    words = rival_arguments("coco_gan", shards, out, TINY, **(sizes | two))
    said, code = fit_twofold([*words[1:], with_callback("StepRecorder", folder=str(out))], tmp_path)
    assert code == 0, said
    one, other = records(out, 2)
    assert (one["world"], one["steps"]) == (2, 4)
    assert one["weights"] == other["weights"]
    assert one["losses"] != other["losses"]
