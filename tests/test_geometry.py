"""Properties of boxes, tiles, regions and section groups."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tera_mind.errors import InputError
from tera_mind.geometry import IMAGE_SECTIONS, Box, image_sections, section_groups, section_window

COORDINATE = st.integers(-60, 60)
SIZE = st.integers(0, 40)


@st.composite
def boxes(draw: st.DrawFn, smallest: int = 0) -> Box:
    y, x = draw(COORDINATE), draw(COORDINATE)
    return Box(y, y + draw(st.integers(smallest, 40)), x, x + draw(st.integers(smallest, 40)))


def pixels(box: Box) -> set[tuple[int, int]]:
    return {(y, x) for y in range(box.y0, box.y1) for x in range(box.x0, box.x1)}


@given(boxes())
def test_size(box: Box) -> None:
    assert box.height * box.width == len(pixels(box))
    assert box.is_empty == (not pixels(box))


@pytest.mark.parametrize("edges", [(1, 0, 0, 1), (0, 1, 1, 0)])
def test_a_box_turned_inside_out_is_refused(edges: tuple[int, int, int, int]) -> None:
    with pytest.raises(InputError, match="y0 <= y1"):
        Box(*edges)


@given(boxes(), st.integers(1, 17), st.integers(1, 17))
def test_tiles_cover_exactly(box: Box, height: int, width: int) -> None:
    covered: list[tuple[int, int]] = []
    for tile in box.tiles(height, width):
        assert 0 < tile.height <= height
        assert 0 < tile.width <= width
        assert (tile.y0 - box.y0) % height == 0
        assert (tile.x0 - box.x0) % width == 0
        covered += pixels(tile)
    assert len(covered) == len(set(covered))
    assert set(covered) == pixels(box)


@given(boxes(1), st.integers(1, 17), st.integers(1, 17))
def test_tiles_come_row_by_row(box: Box, height: int, width: int) -> None:
    corners = [(tile.y0, tile.x0) for tile in box.tiles(height, width)]
    assert corners == sorted(corners)


@given(boxes(), COORDINATE, COORDINATE)
def test_shift(box: Box, dy: int, dx: int) -> None:
    assert pixels(box.shift(dy, dx)) == {(y + dy, x + dx) for y, x in pixels(box)}
    assert box.shift(dy, dx).shift(-dy, -dx) == box


@given(boxes(), SIZE)
def test_grow(box: Box, margin_px: int) -> None:
    grown = box.grow(margin_px)
    assert (grown.height, grown.width) == (box.height + 2 * margin_px, box.width + 2 * margin_px)
    assert grown.contains(box)
    assert grown.grow(-margin_px) == box


def test_a_box_cannot_shrink_below_nothing() -> None:
    with pytest.raises(InputError):
        Box(0, 4, 0, 4).grow(-3)


@given(boxes(), boxes())
def test_intersect(one: Box, other: Box) -> None:
    common = one.intersect(other)
    assert pixels(common) == pixels(one) & pixels(other)
    assert pixels(other.intersect(one)) == pixels(common)
    if not common.is_empty:
        assert one.contains(common)
        assert other.contains(common)


@given(boxes(), boxes(1))
def test_contains(outer: Box, inner: Box) -> None:
    assert outer.contains(inner) == (pixels(inner) <= pixels(outer))


@given(boxes())
def test_slices_pick_the_pixels(box: Box) -> None:
    image = np.zeros((200, 200), bool)
    moved = box.shift(60, 60)
    image[moved.slices()] = True
    assert set(zip(*map(np.ndarray.tolist, np.nonzero(image)), strict=True)) == pixels(moved)


@given(boxes(1), st.data())
def test_the_text_of_a_box_is_read_back(canvas: Box, data: st.DataObject) -> None:
    y0 = data.draw(st.integers(canvas.y0, canvas.y1 - 1))
    x0 = data.draw(st.integers(canvas.x0, canvas.x1 - 1))
    box = Box(y0, data.draw(st.integers(y0 + 1, canvas.y1)), x0, data.draw(st.integers(x0 + 1, canvas.x1)))
    assert Box.parse(str(box), canvas) == box


@given(boxes(1))
def test_empty_bounds_are_the_canvas(canvas: Box) -> None:
    assert Box.parse(":,:", canvas) == canvas
    assert Box.parse("0%:100%, 0%:100%", canvas) == canvas


@given(boxes(2), st.floats(0, 100).filter(lambda percent: percent == round(percent, 3)))
def test_a_percentage_parts_the_canvas_without_gap_or_overlap(canvas: Box, percent: float) -> None:
    cut = canvas.x0 + round(canvas.width * percent / 100)
    if cut in (canvas.x0, canvas.x1):
        return
    left, right = Box.parse(f":,:{percent}%", canvas), Box.parse(f":,{percent}%:", canvas)
    assert left.x1 == right.x0 == cut
    assert pixels(left) | pixels(right) == pixels(canvas)


def test_the_right_forty_percent() -> None:
    assert Box.parse(":,60%:", Box(0, 50, 0, 1000)) == Box(0, 50, 600, 1000)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "1:2",
        "1:2,3",
        "1-2,3-4",
        "a:2,:",
        "1.5:2,:",
        "x%:,:",
        ":,5:5",
        ":,7:5",
        "-1:,:",
        ":101,:",
        ":,:101%",
        "nan%:,:",
    ],
)
def test_a_region_that_cannot_be_meant_is_refused(text: str) -> None:
    with pytest.raises(InputError) as caught:
        Box.parse(text, Box(0, 100, 0, 100))
    assert "\n" not in str(caught.value)


@given(st.integers(0, 60), st.sampled_from(sorted(IMAGE_SECTIONS)))
def test_groups_cover_every_section_once(n_sections: int, gene_sections: int) -> None:
    groups = section_groups(n_sections, gene_sections)
    made = [section for group in groups for section in group.image]
    assert len(made) == len(set(made))
    assert made[:n_sections] == list(range(n_sections))
    assert len(made) - n_sections < image_sections(gene_sections), "a whole group of surplus sections"


@given(st.integers(-20, 60), st.sampled_from(sorted(IMAGE_SECTIONS)))
def test_a_window_is_its_sections_with_equal_context(first: int, gene_sections: int) -> None:
    window = section_window(first, gene_sections)
    assert len(window.image) == image_sections(gene_sections)
    assert len(window.genes) == gene_sections
    assert window.image[0] == first
    before, after = window.image[0] - window.genes[0], window.genes[-1] - window.image[-1]
    assert before == after == (gene_sections - len(window.image)) // 2
    assert list(window.genes) == list(range(window.genes[0], window.genes[-1] + 1))


def test_published_windows() -> None:
    assert {zg: image_sections(zg) for zg in (1, 4, 8, 16)} == {1: 1, 4: 2, 8: 4, 16: 8}
    assert section_window(6, 4).genes == (5, 6, 7, 8)
    assert section_window(3, 1).genes == (3,)


@pytest.mark.parametrize("gene_sections", [0, 2, 3, 32])
def test_another_window_is_refused(gene_sections: int) -> None:
    with pytest.raises(InputError, match=r"\[1, 4, 8, 16\]"):
        section_groups(10, gene_sections)
