"""The viewer on large stores: exact at 100,000 px, quick on the bench volume."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import zarr
from browser import Browser, find_chromium
from tiny_brain import make_brain
from viewer_page import READY, serving, stage, tissue, volume_of

from tera_mind.formats.ome import create_multiscale, open_level, pyramid_levels, window_grid
from tera_mind.geometry import Box

pytestmark = pytest.mark.skipif(find_chromium() is None, reason="no Chromium found: install chromium")


@pytest.fixture(scope="module")
def chromium():
    with Browser(1400, 820) as browser:
        yield browser


def wide_brain(path):
    """A brain of 100,000 px width of which a few chunks hold something: the rest costs no space."""
    brain = make_brain(path, shape=(1, 1, 64, 64), rows=5, stains=("DAPI",), pixel_um=0.4)
    shape = (1, 1, 40_000, 100_000)
    shutil.rmtree(path / "images")
    create_multiscale(path / "images", shape, name="images", stains=["DAPI"], pixel_um=0.4)
    tile = tissue((1, 1, 256, 256), 5)
    for level in range(pyramid_levels(path / "images")):
        array = open_level(path / "images", level, "r+")
        height, width = array.shape[2:]
        far = (max(0, (height - 1) // 256 * 256), max(0, (width - 1) // 256 * 256))
        for y, x in ((0, 0), far):
            rows, columns = min(256, height - y), min(256, width - x)
            array[:, :, y : y + rows, x : x + columns] = tile[:, :, :rows, :columns]
    digests = np.zeros((1, 1, *window_grid(shape), 32), np.uint8)
    digests[0, 0, 0, 0] = digests[0, 0, -1, -1] = 1  # the files that must be there; nobody verifies them here
    shutil.rmtree(path / "checksums")
    zarr.open_group(path, mode="r+").create_array("checksums", data=digests)
    shutil.rmtree(path / "tissue")
    cells = (1, -(-shape[2] // 64), -(-shape[3] // 64))
    zarr.open_group(path, mode="r+").create_array("tissue", data=np.ones(cells, np.uint8))
    return brain.path


def test_a_hundred_thousand_pixels_wide(tmp_path, chromium):
    path = wide_brain(tmp_path / "wide.zarr")
    chromium.problems.clear()
    with serving(path) as server:
        chromium.open(server.url)
        chromium.wait(READY)
        assert chromium.run("viewer.manifest.width") == 100_000
        assert chromium.run("viewer.firstPaint") < 10_000
        # the last pixel of the far corner lies exactly where its coordinates say, at the closest zoom
        chromium.run("viewer.set({views: [{x: 100000, y: 40000, zoom: 32}, {x: 100000, y: 40000, zoom: 32}]})")
        chromium.wait(READY)
        chromium.run("Object.assign(viewer.state.stains[0], {low: 0, high: 255, colour: '#ffffff'}); viewer.set({})")
        picture = stage(chromium)
        height, width = picture.shape[:2]
        stored = open_level(path / "images")[0, 0, -8:, -8:]
        for y in range(1, 7):
            for x in range(1, 7):
                at = (round(height / 2 - (y - 0.5) * 32), round(width / 2 - (x - 0.5) * 32))
                assert abs(int(picture[at][0]) - int(stored[-y, -x])) <= 1, (y, x)
        chromium.run("viewer.showAll()")
        for _ in range(12):
            chromium.run("viewer.zoomBy(0, 2.2)")
            chromium.wait(READY)
        assert len(chromium.run("[...viewer.renderer.store.tiles.keys()]")) < 1000
        assert chromium.run("viewer.renderer.store.problem") == ""
    chromium.open("about:blank")
    assert chromium.problems == []


@pytest.mark.slow
def test_first_paint_of_the_bench_volume_in_two_seconds(tmp_path, chromium):
    """8,192 x 8,192 px, 2 sections, 2 stains, real beside generated: median of five, with software drawing."""
    small = tissue((2, 2, 2048, 2048), 0)
    image, cells = np.tile(small, (1, 1, 4, 4)), np.ones((2, 128, 128), bool)
    brain = make_brain(tmp_path / "brain.zarr", image=image, rows=10, shape=image.shape, tissue=cells)
    volume_of(tmp_path / "generated.zarr", brain, image[:, :, ::-1], Box(0, 8192, 0, 8192), (0, 1))
    times = []
    for _ in range(5):
        with serving(brain.path, tmp_path / "generated.zarr") as server:
            chromium.open(server.url)
            chromium.wait(READY)
            times.append(chromium.run("viewer.firstPaint"))
    print(f"first paint: {sorted(round(time) for time in times)} ms")
    assert np.median(times) < 2000
