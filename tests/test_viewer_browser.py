"""The viewer in a real browser: it paints, zooms, links, switches, remembers, and complains of nothing."""

from __future__ import annotations

from urllib.parse import urlsplit

import numpy as np
import pytest
from browser import Browser, find_chromium
from tiny_brain import make_brain
from viewer_page import READY, serving, stage, tissue, volume_of

from tera_mind.formats.brain import Brain
from tera_mind.formats.maps import Map, MapAttributes
from tera_mind.formats.volume import Volume
from tera_mind.geometry import Box

pytestmark = pytest.mark.skipif(find_chromium() is None, reason="no Chromium found: install chromium")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("viewer")
    image = tissue((2, 2, 700, 900), 0)
    brain = make_brain(
        folder / "brain.zarr", image=image, rows=10, shape=image.shape, tissue=np.ones((2, 11, 15), bool)
    )
    volume_of(folder / "generated.zarr", brain, tissue((2, 2, 600, 500), 1), Box(50, 650, 300, 800), (0, 1))
    values = np.random.default_rng(2).uniform(0, 9, (1, 2, 19, 16)).astype(np.float32)
    attributes = MapAttributes(
        "Uncertainty", "grey levels", ("DAPI",), 0.0, 9.0, Box(50, 650, 300, 800), (0, 1), 32, 0.4
    )
    Map.write(folder / "uncertainty.zarr", values, attributes)
    return folder


@pytest.fixture(scope="module")
def server(folder):
    with serving(*(folder / name for name in ("brain.zarr", "generated.zarr", "uncertainty.zarr"))) as server:
        yield server


@pytest.fixture(scope="module")
def chromium():
    with Browser(1400, 820) as browser:
        yield browser


@pytest.fixture
def page(chromium, server):
    """The page freshly opened; at the end nothing may have been complained of or asked of another host."""
    chromium.problems.clear()
    chromium.requests.clear()
    chromium.open("about:blank")
    chromium.open(server.url)
    chromium.wait(READY)
    yield chromium
    assert chromium.problems == []
    hosts = {urlsplit(url).netloc for url in chromium.requests if url.startswith("http")}
    assert hosts == {f"127.0.0.1:{server.server_port}"}


def middle_of(page, pane=0):
    """Page coordinates of a pane's middle."""
    return page.run(
        f"(() => {{ const p = viewer.panes()[{pane}], r = viewer.stage.getBoundingClientRect();"
        " return [r.x + p.left + p.width / 2, r.y + p.top + p.height / 2]; })()"
    )


def views(page):
    return page.run("viewer.state.views.map(({x, y, zoom}) => [x, y, zoom])")


def test_first_paint(page):
    assert page.run("viewer.firstPaint") < 10_000  # the figure for the bench volume: see the slow test
    assert page.run("viewer.state.mode") == "side"
    picture = stage(page)
    width = picture.shape[1]
    left, right = picture[:, : width // 2], picture[:, width // 2 + 2 :]
    assert left.max() > 150
    assert right.max() > 150
    tags = page.run("[...document.querySelectorAll('.tag')].map((tag) => tag.textContent)")
    assert tags == ["brain", "generatedsynthetic"]


def test_pixels_are_where_the_store_has_them_and_coloured_as_set(page, folder):
    """At 8 screen pixels a pixel, every square's colour is the raw value through window and colour."""
    page.run(
        "viewer.set({mode: 'overlay', opacity: 1, stains: [Object.assign(viewer.state.stains[0],"
        " {colour: '#ff0000', low: 0, high: 255}), Object.assign(viewer.state.stains[1], {colour: '#0000ff', low: 10,"
        " high: 130})], views: [{x: 500.5, y: 300.5, zoom: 8}, {x: 500.5, y: 300.5, zoom: 8}]})"
    )
    picture = stage(page)
    height, width = picture.shape[:2]
    volume = Volume.open(folder / "generated.zarr").image(Box(290, 312, 490, 512), [0])[:, 0].astype(float)
    for y in range(290, 312):
        for x in range(490, 512):
            at = (round(height / 2 + (y + 0.5 - 300.5) * 8), round(width / 2 + (x + 0.5 - 500.5) * 8))
            red, green, blue = picture[at].astype(float)
            first, second = volume[:, y - 290, x - 490]
            assert abs(red - first) <= 2
            assert green <= 2
            assert abs(blue - np.clip((second - 10) / 120, 0, 1) * 255) <= 2


def test_wheel_zooms_about_the_pointer(page):
    x, y = middle_of(page)
    x, y = round(x) + 60, round(y) - 80  # a wheel is reported at whole pixels
    under = (
        "(() => { const p = viewer.panes()[0], r = viewer.stage.getBoundingClientRect(), v = viewer.state.views[0];"
        f" return [v.x + ({x} - r.x - p.left - p.width / 2) / v.zoom,"
        f" v.y + ({y} - r.y - p.top - p.height / 2) / v.zoom]; }})()"
    )
    before, zoom = page.run(under), views(page)[0][2]
    page.wheel(x, y, -400)
    page.wait(f"viewer.state.views[0].zoom > {zoom * 1.5}")
    np.testing.assert_allclose(page.run(under), before, atol=0.01)
    page.wheel(x, y, 100_000)
    page.wait(f"viewer.state.views[0].zoom < {zoom}")
    assert views(page)[0][2] > 0


def test_views_are_linked_until_they_are_not(page):
    x, y = middle_of(page)
    page.wheel(x, y, -300)
    page.drag((x, y), (x - 90, y + 50))
    first, second = views(page)
    assert first == second
    start, zoom = first[:2], first[2]
    page.drag(tuple(middle_of(page, 1)), (x + 650, y + 50))
    first, second = views(page)
    assert first == second
    assert first[:2] != start
    page.key("l")
    page.drag((x, y), (x + 40, y))
    first, unmoved = views(page)
    assert unmoved == second
    assert first[0] == pytest.approx(second[0] - 40 / zoom)
    page.key("l")
    first, second = views(page)
    assert first == second


def test_modes_show_what_they_say(page, folder):
    page.run("viewer.showRegion()")
    pictures = {}
    for number, mode in enumerate(("side", "overlay", "swipe", "difference"), 1):
        page.key(str(number))
        assert page.run("viewer.state.mode") == mode
        assert page.run("document.querySelector('[aria-pressed=true][data-mode]').dataset.mode") == mode
        pictures[mode] = stage(page).astype(int)
    page.run("viewer.set({mode: 'overlay', opacity: 0})")
    real = stage(page).astype(int)
    page.run("viewer.set({opacity: 1})")
    generated = stage(page).astype(int)
    inner = np.s_[120:-160, 260:-260]
    assert np.abs(real[inner] - generated[inner]).mean() > 3
    np.testing.assert_allclose(pictures["overlay"][inner], (real[inner] + generated[inner]) / 2, atol=2)
    middle = real.shape[1] // 2
    for side, columns in ((real, np.s_[300 : middle - 40]), (generated, np.s_[middle + 40 : middle + 240])):
        np.testing.assert_array_equal(pictures["swipe"][120:-160, columns], side[120:-160, columns])


def test_the_difference_has_the_sign_of_the_arrays(page, folder):
    close = "{x: 500.5, y: 300.5, zoom: 8}"
    page.run(f"viewer.set({{mode: 'difference', gain: 1, views: [{close}, {close}]}})")
    picture = stage(page).astype(int)
    height, width = picture.shape[:2]
    box = Box(290, 311, 490, 511)
    real = Brain.open(folder / "brain.zarr").image(box, [0])[0, 0].astype(int)
    delta = Volume.open(folder / "generated.zarr").image(box, [0])[0, 0] - real
    signs = np.zeros(delta.shape, int)
    for y, x in np.ndindex(delta.shape):
        red, _, blue = picture[round(height / 2 + (y - 10) * 8), round(width / 2 + (x - 10) * 8)]
        signs[y, x] = np.sign(red - blue)
    clear = np.abs(delta) > 25
    assert clear.any()
    np.testing.assert_array_equal(signs[clear], np.sign(delta)[clear])


def test_the_curtain_is_drawn_by_hand(page):
    page.key("3")
    page.wait(READY)
    x, y = middle_of(page)
    page.drag((x, y), (x - 200, y))
    width = page.run("viewer.width")
    assert page.run("viewer.state.swipe") == pytest.approx(0.5 - 200 / width, abs=0.01)
    assert page.run("viewer.state.views[0].x") == page.run("viewer.state.views[1].x")


def test_sections_stains_and_map_change_the_picture(page):
    page.run("viewer.showRegion()")
    before = stage(page)
    page.key("]")
    assert page.run("viewer.state.section") == 1
    assert (stage(page) != before).any()
    page.key("[")
    np.testing.assert_array_equal(stage(page), before)
    page.click("#stain-1")
    without = stage(page)
    assert without.astype(int).sum() < before.astype(int).sum()
    page.click("#stain-1")
    page.key("m")
    mapped = stage(page)
    assert (mapped != before).mean() > 0.2
    x, y = middle_of(page, 1)
    page.move(x, y)
    page.wait("document.getElementById('values').textContent.includes('grey levels')")
    page.move(5, 5)
    page.key("m")
    np.testing.assert_array_equal(stage(page), before)


def test_the_readout_is_the_raw_value(page, folder):
    page.run("viewer.set({views: [{x: 400.5, y: 300.5, zoom: 16}, {x: 400.5, y: 300.5, zoom: 16}]})")
    page.wait(READY)
    page.move(*middle_of(page))
    real = Brain.open(folder / "brain.zarr").image(Box(300, 301, 400, 401), [0])[:, 0, 0, 0]
    made = Volume.open(folder / "generated.zarr").image(Box(300, 301, 400, 401), [0])[:, 0, 0, 0]
    assert page.wait("document.getElementById('values').textContent") == (
        f"DAPI {real[0]} | {made[0]}   PolyT {real[1]} | {made[1]}"
    )
    assert "x 400  y 300 px  ·  160.2, 120.2 µm" in page.run("document.getElementById('position').textContent")


def test_outlines_appear_where_nuclei_are_large_enough(page):
    page.run("viewer.set({views: [{x: 550, y: 350, zoom: 2}, {x: 550, y: 350, zoom: 2}]})")
    before = stage(page)
    page.key("n")
    page.wait(READY, 60)
    outlined = stage(page).astype(int)
    half = outlined.shape[1] // 2
    left, right = outlined[:, :half], outlined[:, half + 2 :]
    cyan = (left[..., 1] > 180) & (left[..., 2] > 160) & (left[..., 0] < 150)
    orange = (right[..., 0] > 200) & (right[..., 1] > 110) & (right[..., 2] < 120)
    assert cyan.sum() > 1000
    assert orange.sum() > 1000
    page.run("viewer.manifest.nuclei.least_screen_px = 45; viewer.set({})")  # a nucleus is 20 px wide, shown at 40
    assert "Zoom in" in page.run("document.getElementById('outlines-hint').textContent")
    np.testing.assert_array_equal(stage(page), before)
    page.run("viewer.manifest.nuclei.least_screen_px = 6; viewer.set({})")
    np.testing.assert_array_equal(stage(page), outlined)
    page.key("n")
    np.testing.assert_array_equal(stage(page), before)


def test_the_scale_bar_is_as_long_as_it_says(page):
    bar = page.run(
        "((bar) => [bar.dataset.um, bar.getBoundingClientRect().width, viewer.state.views[0].zoom, bar.textContent])"
        "(document.querySelector('.scale'))"
    )
    um, width, zoom, words = bar
    assert float(um) / 0.4 * zoom == pytest.approx(width, abs=0.6)
    assert words == f"{um} µm"


def test_the_address_keeps_the_view(page, server):
    page.run(
        "viewer.set({mode: 'swipe', swipe: 0.3, section: 1, map: 'uncertainty', outlines: true, views: [{x: 500,"
        " y: 200, zoom: 3.5}, {x: 500, y: 200, zoom: 3.5}]}); viewer.toggleStain(viewer.state.stains[1])"
    )
    address = page.wait(
        "location.hash.includes('mode=swipe') && location.hash.includes('at=500_200_3.5') && location.href"
    )
    state = page.run("JSON.stringify(viewer.state)")
    page.open("about:blank")
    page.open(address)
    page.wait(READY, 60)
    assert page.run("JSON.stringify(viewer.state)") == state


@pytest.mark.parametrize(
    "words", ["mode=none&left=x&section=99&at=NaN_1_2&stains=__,_,DAPI_1_zz_0_1&map=q", "%%%=%&&=", "at=1e9_-5_1e99"]
)
def test_a_spoilt_address_is_no_trouble(page, server, words):
    page.open("about:blank")
    page.open(f"{server.url}#{words}")
    page.wait(READY)
    state = page.run("viewer.state")
    assert (state["mode"], state["left"], state["right"], state["section"]) == ("side", "brain", "generated", 0)
    assert 0 <= state["views"][0]["x"] <= 900


def test_all_controls_have_names(page):
    nameless = page.run(
        "[...document.querySelectorAll('button, input, select, [role=slider]')].filter((e) => !(e.textContent.trim()"
        " || e.getAttribute('aria-label') || e.labels?.length)).map((e) => e.outerHTML)"
    )
    assert nameless == []


def test_a_server_that_is_gone_is_said(folder, chromium):
    line = {"latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
    with serving(folder / "brain.zarr", folder / "generated.zarr") as server:
        chromium.open(server.url)
        chromium.wait(READY)
        chromium.send("Network.emulateNetworkConditions", offline=True, **line)
        chromium.run("viewer.set({section: 1})")
        chromium.wait("document.getElementById('loading').textContent.includes('still running')")
        chromium.send("Network.emulateNetworkConditions", offline=False, **line)
        chromium.open("about:blank")
