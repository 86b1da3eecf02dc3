"""The StyleGAN2 core: each part against an explicit computation, alignment without padding, double gradients."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_model import normal

from tera_mind.baselines.stylegan2.alignment import after_convolution, after_corners, after_upsampling, layer_windows
from tera_mind.baselines.stylegan2.layers import EqualConv, EqualLinear, filtered, modulated_convolution, upsampled
from tera_mind.baselines.stylegan2.losses import (
    discriminator_loss,
    generator_loss,
    moved_mean,
    path_lengths,
    r1_penalty,
)
from tera_mind.baselines.stylegan2.networks import Discriminator, Mapping, Synthesis, with_spread
from tera_mind.errors import InputError
from tera_mind.geometry import Box


def by_loops(x, weight, style, demodulate):
    """Equations 1 and 3 of Karras 2020, number by number; valid borders."""
    n, c_in, height, width = x.shape
    c_out, _, side, _ = weight.shape
    out = torch.zeros(n, c_out, height - side + 1, width - side + 1, dtype=x.dtype)
    for b, j in itertools.product(range(n), range(c_out)):
        kernel = torch.stack([style[b, i] * weight[j, i] for i in range(c_in)])
        if demodulate:
            kernel = kernel / math.sqrt(sum(value**2 for value in kernel.flatten().tolist()) + 1e-8)
        for y, x0 in itertools.product(range(out.shape[2]), range(out.shape[3])):
            out[b, j, y, x0] = (x[b, :, y : y + side, x0 : x0 + side] * kernel).sum()
    return out


def by_midpoints(x):
    """A sample between any two, their mean."""
    rows = torch.stack([x[..., :-1, :], (x[..., :-1, :] + x[..., 1:, :]) / 2], -2).flatten(-3, -2)
    rows = torch.cat([rows, x[..., -1:, :]], -2)
    columns = torch.stack([rows[..., :-1], (rows[..., :-1] + rows[..., 1:]) / 2], -1).flatten(-2)
    return torch.cat([columns, rows[..., -1:]], -1)


@pytest.mark.parametrize("demodulate", [True, False])
@pytest.mark.parametrize("side", [1, 3])
def test_modulated_convolution_is_the_explicit_loop_and_the_grouped_convolution(side, demodulate):
    x, weight, style = normal(2, 3, 5, 4), normal(4, 3, side, side, seed=1), normal(2, 3, seed=2)
    ours = modulated_convolution(x, weight, style, demodulate=demodulate)
    torch.testing.assert_close(ours, by_loops(x, weight, style, demodulate))
    kernels = weight[None] * style[:, None, :, None, None]
    if demodulate:
        kernels = kernels * (kernels.square().sum((2, 3, 4), keepdim=True) + 1e-8).rsqrt()
    grouped = F.conv2d(x.flatten(0, 1)[None], kernels.flatten(0, 1), groups=2)
    torch.testing.assert_close(ours, grouped.view_as(ours), rtol=1e-6, atol=1e-6)


def test_upsampling_comes_before_the_convolution_on_both_grids():
    x, weight, style = normal(2, 3, 5, 4), normal(4, 3, 3, 3, seed=1), normal(2, 3, seed=2)
    torch.testing.assert_close(upsampled(x), by_midpoints(x))
    ours = modulated_convolution(x, weight, style, up=True)
    torch.testing.assert_close(ours, by_loops(by_midpoints(x), weight, style, True))
    padded = modulated_convolution(x, weight, style, up=True, padded=True)
    assert padded.shape[-2:] == (10, 8)
    # StyleGAN2's own filter [1, 3, 3, 1]: zeros between the samples, then the filter; the rim differs by its padding
    zeros = torch.zeros(2, 3, 10, 8, dtype=x.dtype)
    zeros[..., ::2, ::2] = x
    finer = filtered(zeros, (1.0, 3.0, 3.0, 1.0), gain=4.0)  # its first sample is number 2 of the finer grid
    torch.testing.assert_close(padded[..., 3:8, 3:6], by_loops(finer, weight, style, True))


def test_filter_is_the_convolution_of_its_taps():
    x, taps = normal(2, 3, 6, 7), (1.0, 2.0, 1.0)
    kernel = torch.outer(torch.tensor(taps), torch.tensor(taps)).double() / 16
    expected = torch.stack([F.conv2d(x[:, i : i + 1], kernel[None, None])[:, 0] for i in range(3)], 1)
    torch.testing.assert_close(filtered(x, taps), expected)


def test_equalised_layers_scale_at_run_time():
    layer = EqualLinear(16, 4, bias=1.0, rate=0.01).double()
    x = normal(3, 16)
    torch.testing.assert_close(layer(x), x @ (layer.weight * 0.01 / 4).T + 1.0)
    assert layer.weight.std() > 50  # unit variance over the rate, so that its product has unit variance
    conv = EqualConv(2, 3, 3, padded=True, down=True).double()
    x = normal(1, 2, 8, 8)
    blurred = filtered(F.pad(x, (2, 2, 2, 2)), (1.0, 3.0, 3.0, 1.0))
    torch.testing.assert_close(conv(x), F.conv2d(blurred, conv.weight / math.sqrt(18), stride=2))
    assert conv(x).shape[-2:] == (4, 4)


@settings(max_examples=20, deadline=None)
@given(
    y=st.integers(-9, 9), x=st.integers(-9, 9), height=st.integers(9, 12), width=st.integers(9, 14),
    doublings=st.integers(0, 3),
)  # fmt: skip
def test_alignment_is_what_the_layers_leave(y, x, height, width, doublings):
    """Sizes against the layers themselves, places against a field that is linear in the position."""
    bins = Box(y, y + height, x, x + width)
    windows = layer_windows(after_corners(bins), doublings)
    # each bin's value is the pixel at its centre; means and bilinear steps keep a linear field linear
    bin_px = 2**doublings
    field = (torch.arange(y, y + height).double() + 0.5) * bin_px
    grid = F.avg_pool2d(field[None, None, :, None].expand(1, 1, height, width), 2, stride=1)
    middle = torch.zeros(1, 1, 3, 3, dtype=torch.float64)
    middle[..., 1, 1] = 1
    one = torch.ones(1, 1, dtype=torch.float64)
    for layer, window in enumerate(windows):
        grid = modulated_convolution(grid, middle, one, demodulate=False, up=bool(layer % 2))
        assert grid.shape[-2:] == (window.height, window.width)
        stride = bin_px >> ((layer + 1) // 2)
        places = torch.arange(window.y0, window.y1).double() * stride
        torch.testing.assert_close(grid[0, 0, :, 0], places)
    last, side = windows[-1], bin_px * (height - 8) + 5
    if doublings:
        assert (last.height, last.y0) == (side, bin_px * (y + 4) - 2)
    assert after_upsampling(after_convolution(bins)).height == 2 * (height - 2) - 1


def test_published_sizes():
    """12 bins of 32 px give 133 px, whose middle 128 are 4 whole bins."""
    window = layer_windows(after_corners(Box(0, 12, 0, 12)), 5)[-1]
    assert (window.height, window.y0, window.y1) == (133, 128 - 2, 256 + 3)


def synthesis(padded=False):
    torch.manual_seed(0)
    network = Synthesis(3, (4, 4, 2), 2, 5, padded=padded).double()
    for name, weight in network.named_parameters():
        if name.endswith(("strength", "bias")):
            torch.nn.init.normal_(weight, std=0.5)
    return network


@pytest.mark.parametrize("padded", [False, True])
def test_synthesis_is_skip_connections_of_its_layers(padded):
    network, n = synthesis(padded), 9
    w, features = normal(2, 5, 5, seed=1), normal(2, 3, n, n)
    sides = [n, 2 * n, 2 * n, 4 * n, 4 * n] if padded else [n - 2, 2 * n - 7, 2 * n - 9, 4 * n - 21, 4 * n - 23]
    noise = [normal(2, side, side, seed=side) for side in sides]
    x = network.first(features, w[:, 0], noise[0])
    image = network.images[0](x, w[:, 1])
    for level in (0, 1):
        x = network.ups[level](x, w[:, 1 + 2 * level], noise[1 + 2 * level])
        x = network.convs[level](x, w[:, 2 + 2 * level], noise[2 + 2 * level])
        finer = (
            F.interpolate(image, scale_factor=2.0, mode="bilinear") if padded else by_midpoints(image)[..., 2:-2, 2:-2]
        )
        image = finer + network.images[level + 1](x, w[:, min(3 + 2 * level, 4)])
    torch.testing.assert_close(network(features, w, noise), image)
    assert image.shape[-1] == (4 * n if padded else 4 * (n - 7) + 5)
    more = [plane + (index == 4) for index, plane in enumerate(noise)]
    assert not torch.equal(network(features, w, more), image)
    with pytest.raises(InputError, match="5 styles"):
        network(features, w, noise[:3])


def test_styled_convolution_against_its_parts():
    network = synthesis()
    layer, x, w, noise = network.first, normal(2, 3, 5, 5), normal(2, 5, seed=1), normal(2, 3, 3, seed=2)
    style = w @ layer.style.weight.T / math.sqrt(5) + layer.style.bias
    plain = by_loops(x, layer.weight / math.sqrt(27), style, True)
    before = plain + layer.strength * noise[:, None] + layer.bias[:, None, None]
    expected = torch.where(before > 0, before, 0.2 * before) * math.sqrt(2)
    torch.testing.assert_close(layer(x, w, noise), expected, rtol=1e-6, atol=1e-6)


def test_mapping_ignores_the_length_of_z():
    mapping = Mapping(6, 3).double()
    z = normal(4, 6)
    torch.testing.assert_close(mapping(z), mapping(3 * z))
    assert mapping(z).std(0).min() > 0


def test_discriminator_sees_the_spread_of_its_minibatch():
    x = normal(4, 3, 2, 2)
    out = with_spread(x, 2)
    first = torch.stack([x[0], x[2]]).std(0, correction=0).mean()  # samples half a batch apart are a group
    torch.testing.assert_close(out[0, 3, 0, 0], first.to(out), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(out[2, 3], out[0, 3])
    assert not torch.allclose(out[1, 3], out[0, 3])
    torch.manual_seed(0)
    judge = Discriminator(2, (4, 6), 16).double()
    image = normal(3, 2, 16, 16)
    assert judge(image).shape == (3,)
    assert not torch.allclose(judge(image)[:1], judge(image[:1]))
    with pytest.raises(InputError, match="4, 8, 16"):
        Discriminator(2, (4, 6), 24)


def test_adversarial_losses_are_the_logarithms():
    real, fake = normal(5), normal(5, seed=1)
    expected = -real.sigmoid().log().mean() - (1 - fake.sigmoid()).log().mean()
    torch.testing.assert_close(discriminator_loss(real, fake), expected)
    torch.testing.assert_close(generator_loss(fake), -fake.sigmoid().log().mean())


def test_r1_is_the_gradient_by_hand_and_trains_the_discriminator():
    """D(x) = sum(tanh(a x)): dD/dx = a / cosh(a x)^2, and the penalty's own gradient in a by finite differences."""
    images = normal(3, 2, 4, 4).requires_grad_()

    def penalty(a):
        return r1_penalty((a * images).tanh().flatten(1).sum(1), images)

    a = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    by_hand = ((a / torch.cosh(a * images) ** 2) ** 2).flatten(1).sum(1).mean()
    torch.testing.assert_close(penalty(a), by_hand)
    (gradient,) = torch.autograd.grad(penalty(a), a)
    with torch.no_grad():
        step = 1e-6
    numeric = (penalty(a.detach() + step) - penalty(a.detach() - step)) / (2 * step)
    torch.testing.assert_close(gradient, numeric.detach(), rtol=1e-5, atol=1e-8)
    torch.manual_seed(0)
    judge = Discriminator(2, (4,), 4).double()
    r1_penalty(judge(images), images).backward()
    assert all(weight.grad is not None for name, weight in judge.named_parameters() if "weight" in name)


def test_path_lengths_are_those_of_the_whole_jacobian():
    network, n = synthesis(), 8
    w = normal(2, 1, 5, seed=1).expand(2, 5, 5).clone().requires_grad_()
    features = normal(2, 3, n, n)
    noise = [normal(2, side, side, seed=side) for side in (6, 9, 7, 11, 9)]
    images = network(features, w, noise)
    y = normal(*images.shape, seed=9)
    lengths = path_lengths(images, w, y)
    for i in range(2):
        jacobian = torch.autograd.functional.jacobian(
            lambda one, i=i: network(features[i : i + 1], one[None], [plane[i : i + 1] for plane in noise])[0],
            w[i].detach(),
        )  # (channel, y, x, layer, style)
        product = torch.einsum("cyx,cyxls->ls", y[i] / math.sqrt(81), jacobian)
        torch.testing.assert_close(lengths[i], product.square().sum(1).mean().sqrt())
    mean = moved_mean(torch.tensor(2.0, dtype=torch.float64), lengths)
    torch.testing.assert_close(mean, 2.0 + 0.01 * (lengths.detach().mean() - 2.0))
    (lengths - mean).square().mean().backward()
    assert all(weight.grad is not None for name, weight in network.named_parameters() if name.endswith("style.weight"))
