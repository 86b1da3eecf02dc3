"""Painting in one pass: blocks in order and in place, the noise that a painter asks for, what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tera_mind import noise
from tera_mind.errors import InputError
from tera_mind.geometry import Box, SectionGroup, section_window
from tera_mind.model.blocks import NoisePlane, Painter
from tera_mind.sampling.domain import Domain
from tera_mind.sampling.oneshot import keyed_planes, paint_blocks, paint_region, sweep
from tera_mind.sampling.plain import SamplerSettings, pixel_mask

SIDE, BIN_PX, HALO = 16, 4, 8


class MeanAndNoise:
    """Paints the mean count within the halo, plus noise on a grid twice as coarse and one number for the brain."""

    patch_px, bin_px, halo_px, channels, tile_exact, training = SIDE, BIN_PX, HALO, 2, True, False

    def noise_planes(self, bins):
        inner = bins.grow(-HALO // BIN_PX)
        double = Box(*(2 * edge for edge in (inner.y0, inner.y1, inner.x0, inner.x1)))
        return [NoisePlane(double), NoisePlane(Box(0, 1, 0, 3), shared=True)]

    def paint(self, counts, noise):
        around = torch.nn.functional.avg_pool2d(counts.sum((1, 2))[:, None], 2 * HALO // BIN_PX + 1, stride=1)
        bins = around.repeat_interleave(BIN_PX, 2).repeat_interleave(BIN_PX, 3)
        fine = noise[0][:, None].repeat_interleave(2, 2).repeat_interleave(2, 3)
        image = bins / 100 + fine + noise[1].sum((1, 2))[:, None, None, None]
        return torch.cat([image, -image], 1)


def counts(box):
    """A function of place alone: row + 2 column of the bin, negative places too."""
    y, x = np.arange(box.y0 // BIN_PX, box.y1 // BIN_PX), np.arange(box.x0 // BIN_PX, box.x1 // BIN_PX)
    return torch.from_numpy((y[:, None] + 2 * x[None]).astype(np.float32))[None, None]


GROUP = section_window(3, 1)


@pytest.mark.parametrize("lacking", ["patch_px", "halo_px", "channels", "training", "tile_exact", "noise_planes"])
def test_what_lacks_a_part_is_no_painter(lacking):
    members = {name: value for name, value in vars(MeanAndNoise).items() if not name.startswith("__")}
    assert isinstance(type("Whole", (), members)(), Painter)
    assert not isinstance(type("Part", (), {name: members[name] for name in members if name != lacking})(), Painter)


def test_blocks_come_row_by_row_and_cover_the_region():
    region = Box(-16, 64, 32, 80)
    boxes = [box for box, _ in paint_blocks(MeanAndNoise(), counts, keyed_planes(0, GROUP), region, block=2)]
    assert boxes == list(region.tiles(2 * SIDE, 2 * SIDE))
    for box, image in paint_blocks(MeanAndNoise(), counts, keyed_planes(0, GROUP), region, block=2):
        assert image.shape == (2, box.height, box.width)


@settings(max_examples=10, deadline=None)
@given(
    y=st.integers(-3, 3), x=st.integers(-3, 3), rows=st.integers(1, 4), columns=st.integers(1, 4),
    block=st.integers(1, 5),
)  # fmt: skip
def test_pixels_are_what_was_written_down(y, x, rows, columns, block):
    region = Box(y * SIDE, (y + rows) * SIDE, x * SIDE, (x + columns) * SIDE)
    image = paint_region(MeanAndNoise(), counts, keyed_planes(5, GROUP), region, block)
    places = np.arange(region.y0, region.y1)[:, None] // BIN_PX, np.arange(region.x0, region.x1)[None] // BIN_PX
    genes = (places[0] + 2 * places[1]) / 100  # the mean of a linear field around a bin is its value there
    fine = Box(region.y0 // 2, region.y1 // 2, region.x0 // 2, region.x1 // 2)
    added = noise.normal(5, 0, 0, 3, fine).repeat(2, 0).repeat(2, 1)
    whole = noise.normal(5, 1, 0, 0, Box(0, 1, 0, 3)).sum()  # shared: section 0, whatever the group
    np.testing.assert_allclose(image[0].numpy(), genes + added + whole, rtol=1e-4, atol=1e-4)
    assert torch.equal(image[1], -image[0])


def test_noise_differs_by_layer_seed_and_section():
    plane = NoisePlane(Box(-3, 20, 5, 30))
    drawn = [
        keyed_planes(seed, group)(layer, plane)
        for seed, group, layer in ((0, GROUP, 0), (1, GROUP, 0), (0, section_window(4, 1), 0), (0, GROUP, 1))
    ]
    for other in drawn[1:]:
        assert abs(torch.corrcoef(torch.stack([drawn[0].flatten(), other.flatten()]))[0, 1]) < 0.2
    assert torch.equal(drawn[0], keyed_planes(0, SectionGroup(image=(3, 4), genes=(2,)))(0, plane))


def test_what_cannot_be_painted_is_refused():
    assert isinstance(MeanAndNoise(), Painter)
    planes = keyed_planes(0, GROUP)
    for region in (Box(0, 24, 0, 16), Box(0, 0, 0, 16)):
        with pytest.raises(InputError, match="whole number of 16 px patches"):
            next(paint_blocks(MeanAndNoise(), counts, planes, region))
    trained = MeanAndNoise()
    trained.training = True
    with pytest.raises(InputError, match="training mode"):
        next(paint_blocks(trained, counts, planes, Box(0, 16, 0, 16)))


def test_any_rows_of_a_region_are_those_of_the_whole():
    """Bands as units sweep them, with patches that are not painted: the region at once, cut."""
    region = Box(16, 16 + 16 * 7, 32, 32 + 16 * 5)
    domain = Domain(region, SIDE, np.random.default_rng(0).random((7, 5)) < 0.6)
    given_settings, planes = SamplerSettings("x0", 1, block_rows=2, block_columns=3), keyed_planes(3, GROUP)
    at_once = paint_region(MeanAndNoise(), counts, planes, region, block=7)
    wanted = torch.where(pixel_mask(domain, Box(0, 7, 0, 5)), at_once, -1.0)
    for rows in ((0, 7), (0, 3), (3, 4), (4, 7)):
        pieces = list(sweep(MeanAndNoise(), counts, planes, domain, given_settings, rows))
        assert [box.x0 for box, _ in pieces] == [32, 80]
        found = torch.cat([piece for _, piece in pieces], dim=-1)
        torch.testing.assert_close(found, wanted[:, SIDE * rows[0] : SIDE * rows[1]])
