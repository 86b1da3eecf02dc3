"""The network: its shape, its limits, its two paths, and the layers it is made of."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_model import counts_for, normal, tiny_config, tiny_network

from tera_mind.errors import InputError
from tera_mind.geometry import IMAGE_SECTIONS
from tera_mind.model import collage
from tera_mind.model.config import MAX_DENSE_GENES, ModelConfig
from tera_mind.model.genes import GenePyramid
from tera_mind.model.layers import GeneAttentionBlock, ResBlock, RMSNorm, SectionConv, from_windows, to_windows
from tera_mind.model.unet import GeneMorphUNet


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"genes": 0}, "at least 1"),
        ({"gene_sections": 3}, "gene sections must be one of"),
        ({"pyramid_channels": (128, 64)}, "one width less"),
        ({"patch_px": 60}, "patch_px must be a multiple"),
        ({"patch_px": 32, "bin_px": 4}, "finer than the deepest level"),
        ({"margin_px": 5}, "margin_px must be"),
        (
            {"channel_mult": (1,) * 6, "pyramid_channels": (8,) * 5, "bin_px": 32, "margin_px": 16},
            "whole number of positions",
        ),
        ({"genes": MAX_DENSE_GENES + 1}, "gene_rank"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        ModelConfig(**({"genes": 20} | changes))


def test_a_configuration_survives_a_checkpoint() -> None:
    config = ModelConfig(genes=7, channel_mult=(1, 2), pyramid_channels=(9,), gene_rank=3, margin_px=16)
    assert ModelConfig.from_dict(config.to_dict()) == config


@pytest.mark.parametrize(("genes", "count"), [(500, 243_719_390), (229, 213_789_608)])
def test_parameter_counts_are_the_published_ones(genes: int, count: int) -> None:
    shapes = GeneMorphUNet.parameter_shapes(ModelConfig(genes=genes))
    assert sum(shape.numel() for shape in shapes.values()) == count


@pytest.mark.parametrize(
    ("gene_sections", "patch_px", "stains"),
    [(1, 32, 1), (4, 32, 2), (8, 32, 3), (16, 32, 1), (1, 64, 2), (4, 64, 1), (1, 128, 1)],
)
def test_shapes_of_both_paths(gene_sections: int, patch_px: int, stains: int) -> None:
    config = tiny_config(
        genes=3,
        gene_sections=gene_sections,
        patch_px=patch_px,
        stains=stains,
        base_channels=2,
        channel_mult=(1, 1, 2, 2),
        pyramid_channels=(4, 3, 2),
        bin_px=patch_px // 2,
    )
    network = tiny_network(config, dtype=torch.float32)
    channels = stains * IMAGE_SECTIONS[gene_sections]
    x = normal(4, channels, patch_px, patch_px).float()
    with torch.no_grad():
        patch, boundary = network(x, torch.tensor([500]), counts_for(config, 4, 2, 2).float())
    assert patch.shape == (4, channels, patch_px, patch_px)
    assert boundary.shape == (1, channels, patch_px, patch_px)
    assert patch.isfinite().all()
    assert boundary.isfinite().all()


def test_one_section_pays_for_no_kernel_in_z() -> None:
    def depths(gene_sections: int) -> set[int]:
        shapes = GeneMorphUNet.parameter_shapes(tiny_config(gene_sections=gene_sections))
        return {shape[2] for shape in shapes.values() if len(shape) == 5}

    assert depths(1) == {1}
    assert depths(4) == {1, 3}


def test_with_one_section_only_the_central_plane_of_a_kernel_counts() -> None:
    x, weight, bias = normal(2, 3, 1, 6, 5), normal(4, 3, 3, 3, 3, seed=1), normal(4, seed=2)
    conv = SectionConv(3, 4, 1, 3).double()
    with torch.no_grad():
        conv.weight.copy_(weight[:, :, 1:2])
        conv.bias.copy_(bias)
        expected = F.conv3d(F.pad(x, (1, 1, 1, 1, 1, 1)), weight, bias)
        torch.testing.assert_close(conv(x), expected)


@pytest.mark.parametrize("kernel_z", [1, 3])
def test_section_conv_is_conv3d(kernel_z: int) -> None:
    x, conv = normal(2, 3, 4, 6, 5), SectionConv(3, 2, kernel_z, 3).double()
    with torch.no_grad():
        expected = F.conv3d(x, conv.weight, conv.bias, padding=(kernel_z // 2, 1, 1))
        torch.testing.assert_close(conv(x), expected)


def test_the_low_rank_pyramid_is_linear_in_genes() -> None:
    genes = 2 * MAX_DENSE_GENES
    shapes = GeneMorphUNet.parameter_shapes(tiny_config(genes=genes, gene_rank=8))
    assert max(shape.numel() for shape in shapes.values()) <= 8 * genes
    config = tiny_config(gene_rank=3, gene_sections=4)
    features = GenePyramid(config).double()(counts_for(config, 2, 2, 2))
    assert [tuple(level.shape) for level in features] == [(2, 3, 2, 16, 16), (2, 6, 2, 32, 32)]


def test_log_counts_and_residual_are_what_they_say() -> None:
    config = tiny_config(count_transform="log1p", gene_residual=True)
    pyramid, counts = GenePyramid(config).double(), counts_for(config, 2, 2, 2)
    plain = GenePyramid(tiny_config()).double()
    plain.load_state_dict(pyramid.state_dict())
    with torch.no_grad():
        tokens = counts.log1p().flatten(2)
        expected = plain.first((tokens + plain.gene_gene(tokens)).view(counts.shape))
        torch.testing.assert_close(pyramid(counts)[0][..., ::8, ::8], expected)


def test_gene_attention_is_a_distribution_over_genes() -> None:
    config = tiny_config()
    attention = GenePyramid(config).double().attention(counts_for(config, 3, 2, 2))
    assert attention.shape == (3, 1, config.genes, config.genes)
    torch.testing.assert_close(attention.sum(-1), torch.ones(3, 1, config.genes, dtype=torch.float64))


@torch.no_grad()
def test_encoder_patches_do_not_see_each_other() -> None:
    config = tiny_config()
    network = tiny_network(config)
    x, counts = normal(4, config.image_channels, 32, 32), counts_for(config, 4, 2, 2)
    embedding = network.time(torch.tensor([300])).repeat_interleave(4, 0)
    before = network.encode(x, embedding, counts)
    x[3], counts[3] = -x[3], counts[3] + 2
    after = network.encode(x, embedding, counts)
    for old, new in zip(
        (before.bottleneck, *before.skips, *before.genes), (after.bottleneck, *after.skips, *after.genes), strict=True
    ):
        torch.testing.assert_close(new[:3], old[:3])
        assert not torch.allclose(new[3], old[3])


@torch.no_grad()
def test_a_region_is_decoded_as_its_patches_would_be_alone() -> None:
    """The boundary path of R x K patches against each one's own group of 2 x 2 encoder patches."""
    config = tiny_config()
    network, rows, columns, t = tiny_network(config), 2, 3, torch.tensor([700])
    x, counts = normal(12, config.image_channels, 32, 32), counts_for(config, 12, 2, 2)
    together = network.boundary(x, t, counts, rows, columns)
    for row in range(rows):
        for column in range(columns):
            corner = row * (columns + 1) + column
            group = [corner, corner + 1, corner + columns + 1, corner + columns + 2]
            _, alone = network(x[group], t, counts[group])
            torch.testing.assert_close(together[row * columns + column], alone[0])


@settings(max_examples=20, deadline=None)
@given(rows=st.integers(1, 3), columns=st.integers(1, 3), margin=st.integers(0, 2), batch=st.integers(1, 2))
def test_reassembly_against_a_loop(rows: int, columns: int, margin: int, batch: int) -> None:
    side, channels = 4, 2
    grid = normal(batch * (rows + 1) * (columns + 1), channels, 1, side, side)
    out = collage.reassemble(grid, rows, columns, margin)
    wide = side + 2 * margin
    assert out.shape == (batch * rows * columns, channels, 1, wide, wide)
    for b in range(batch):
        for row in range(rows):
            for column in range(columns):
                for y in range(wide):
                    for x in range(wide):
                        # position on the plane of all encoder patches
                        plane_y = row * side + side // 2 - margin + y
                        plane_x = column * side + side // 2 - margin + x
                        patch = (b * (rows + 1) + plane_y // side) * (columns + 1) + plane_x // side
                        expected = grid[patch, :, 0, plane_y % side, plane_x % side]
                        got = out[(b * rows + row) * columns + column, :, 0, y, x]
                        assert torch.equal(got, expected)


def test_patches_and_planes_are_inverse() -> None:
    planes = normal(2, 3, 8, 12)
    patches = collage.to_patches(planes, 4)
    assert torch.equal(patches[1 * 3 + 2], planes[0, :, 4:8, 8:12])
    assert torch.equal(collage.from_patches(patches, 2, 3), planes)


@pytest.mark.parametrize("margin_px", [0, 8, 16])
@torch.no_grad()
def test_margins_are_decoded_and_cropped(margin_px: int) -> None:
    config = tiny_config(margin_px=margin_px)
    network, t = tiny_network(config), torch.tensor([10])
    x, counts = normal(6, config.image_channels, 32, 32), counts_for(config, 6, 2, 2)
    wide = network.boundary_with_margin(x, t, counts, 1, 2)
    side = 32 + 2 * margin_px
    assert wide.shape == (2, config.image_channels, side, side)
    inner = wide[..., margin_px : side - margin_px, margin_px : side - margin_px]
    assert torch.equal(network.boundary(x, t, counts, 1, 2), inner)
    _, trained = network(x[:4], t, counts[:4])
    assert trained.shape == (1, config.image_channels, side, side)


@pytest.mark.parametrize(("shape", "axis"), [((2, 3, 1, 2, 2), 1), ((3, 4, 5), -1)])
def test_rms_norm_and_its_gradient(shape: tuple[int, ...], axis: int) -> None:
    x, norm = normal(*shape).requires_grad_(), RMSNorm(shape[axis], axis).double()
    torch.nn.init.normal_(norm.weight)
    weight = norm.weight.detach().view([-1 if i == axis % len(shape) else 1 for i in range(len(shape))])
    expected = x * weight / (x.square().mean(axis, keepdim=True) + 1e-6).sqrt()
    torch.testing.assert_close(norm(x), expected)

    def function(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(norm, {"weight": weight}, (x,))

    assert torch.autograd.gradcheck(function, (x, norm.weight))


def test_rms_norm_takes_its_mean_in_float32() -> None:
    x = torch.full((1, 4), 300.0, dtype=torch.float16)  # the square is beyond float16
    out = RMSNorm(4, axis=-1).half()(x)
    torch.testing.assert_close(out, torch.ones_like(x))


def test_a_fresh_residual_block_is_its_skip() -> None:
    block = ResBlock(3, 3, time_channels=5, sections=2, dropout=0.1)
    x, embedding = normal(2, 3, 2, 4, 4).float(), normal(2, 5).float()
    assert torch.equal(block(x, embedding), x)
    assert block.conv_in.weight.any()


def test_only_second_convolutions_start_at_zero() -> None:
    network = GeneMorphUNet(tiny_config(channel_mult=(1, 1, 2, 2), pyramid_channels=(4, 3, 2), res_blocks=2))
    zero = {name for name, value in network.named_parameters() if not value.any()}
    blocks = {name for name, module in network.named_modules() if isinstance(module, ResBlock)}
    assert len(blocks) == 28
    assert zero == {f"{name}.conv_out.{kind}" for name in blocks for kind in ("weight", "bias")}


def test_resampling_blocks_change_resolution() -> None:
    x, embedding = normal(1, 3, 1, 4, 4).float(), normal(1, 5).float()
    up, down = (ResBlock(3, 3, 5, 1, 0.0, scale)(x, embedding) for scale in ("up", "down"))
    assert torch.equal(up, x.repeat_interleave(2, -1).repeat_interleave(2, -2))
    torch.testing.assert_close(down[0, :, 0, 1, 0], x[0, :, 0, 2:4, 0:2].mean((-1, -2)))


def test_time_scales_first_and_shifts_second() -> None:
    block = ResBlock(2, 2, time_channels=3, sections=1, dropout=0.0).double()
    torch.nn.init.normal_(block.conv_out.weight)
    x, embedding = normal(1, 2, 1, 4, 4), normal(1, 3)
    scale, shift = block.time(F.silu(embedding)).view(1, 4, 1, 1, 1).split(2, dim=1)
    h = block.norm_out(block.conv_in(F.silu(block.norm_in(x)))) * (1 + scale) + shift
    torch.testing.assert_close(block(x, embedding), x + block.conv_out(F.silu(h)))


def test_windows_are_inverse_and_ordered() -> None:
    x = normal(2, 3, 2, 4, 4)
    windows = to_windows(x, 2)
    assert windows.shape == (8, 8, 3)
    assert torch.equal(windows[2, 4 + 1], x[0, :, 1, 2, 1])  # third quadrant, second section, (0, 1) within
    assert torch.equal(from_windows(windows, x.shape, 2), x)


@torch.no_grad()
def test_quadrants_attend_within_themselves() -> None:
    block = GeneAttentionBlock(4, 3, window_px=2).double()
    x, genes = normal(1, 4, 2, 4, 4), normal(1, 3, 2, 4, 4, seed=1)
    before = block(x, genes)
    changed = genes.clone()
    changed[..., 0, 0, 0] += 1
    after = block(x, changed)
    differs = (after != before).any(1)[0]
    assert differs[:, :2, :2].all(), "all sections of a quadrant attend together"
    assert not differs[:, 2:].any()
    assert not differs[:, :, 2:].any()
