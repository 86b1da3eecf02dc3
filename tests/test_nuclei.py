"""Nucleus segmentation and measurement: human truth, discs of known number and size, scikit-image, blocks, pickles."""

from __future__ import annotations

import importlib.util
import json
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
from scipy import ndimage
from scipy.spatial.distance import cdist
from skimage.measure import regionprops
from skimage.morphology import h_maxima

from tera_mind.errors import InputError
from tera_mind.formats.transcripts import Transcripts
from tera_mind.geometry import Box
from tera_mind.metrics.nuclei.basins import basins, join_shallow
from tera_mind.metrics.nuclei.join import Rule, bright_part, join_parts, whole
from tera_mind.metrics.nuclei.match import Matches, match, same_nuclei
from tera_mind.metrics.nuclei.segmenters import NucleusSettings, Scale, Segmenter, Watershed
from tera_mind.metrics.nuclei.table import NucleusTable, measure_nuclei

NO_TRANSCRIPTS = Transcripts.empty()


def discs(pixel_um, centres_um, radius_um=4.5, side_um=100.0, value=120.0, noise=2.0, background=20.0):
    side = round(side_um / pixel_um)
    y, x = (np.indices((side, side)) + 0.5) * pixel_um
    image = np.zeros((side, side))
    for cy, cx in centres_um:
        image[np.hypot(y - cy, x - cx) < radius_um] = value
    image = ndimage.gaussian_filter(image, 0.4 / pixel_um) + background
    image += np.random.default_rng(0).normal(0, noise, image.shape)
    return np.clip(image, 0, 255).astype(np.uint8)


GRID = [(y, x) for y in range(12, 95, 16) for x in range(12, 95, 16)]


def tissue(height, width, pixel_um=0.85, seed=0, per_um2=0.006):
    """Ellipses of many sizes, many of them touching, of uneven brightness, over an uneven background."""
    random = np.random.default_rng(seed)
    image = 10 + 15 * ndimage.zoom(random.random((5, 5)), (height / 5, width / 5), order=1)
    yy, xx = np.indices((41, 41)) - 20
    for _ in range(round(per_um2 * height * width * pixel_um**2)):
        cy, cx = int(random.integers(0, height)), int(random.integers(0, width))
        major, turn = random.uniform(3, 5.5) / pixel_um, random.uniform(0, np.pi)
        minor = major * random.uniform(0.6, 1)
        u, v = yy * np.cos(turn) + xx * np.sin(turn), xx * np.cos(turn) - yy * np.sin(turn)
        stamp = ((u / major) ** 2 + (v / minor) ** 2 < 1) * random.uniform(50, 170)
        at = Box(cy - 20, cy + 21, cx - 20, cx + 21)
        inside = at.intersect(Box(0, height, 0, width))
        place = image[inside.slices()]
        np.maximum(place, stamp[inside.shift(-at.y0, -at.x0).slices()], out=place)
    image = ndimage.gaussian_filter(image, 0.6 / pixel_um) + random.normal(0, 3, image.shape)
    return np.clip(image, 0, 255).astype(np.uint8)


def segmented(image, pixel_um, **settings):
    segmenter = Watershed(pixel_um, NucleusSettings(**settings))
    return segmenter.segment(image, segmenter.calibrate([image]))


def table_of(labels, image, pixel_um=1.0, core=None, rows=NO_TRANSCRIPTS, **more):
    at = Box(0, labels.shape[0], 0, labels.shape[1])
    return measure_nuclei(labels, image, pixel_um, at, core or at, rows, section=0, **more)


def test_annotated_nuclei_are_found(real_data):
    image = tifffile.imread(real_data / "nuclei_2d" / "img2d.tif")
    image = np.clip(np.rint(image / np.percentile(image, 99.9) * 255), 0, 255).astype(np.uint8)
    truth = tifffile.imread(real_data / "nuclei_2d" / "mask2d.tif").astype(np.int64)
    area = np.bincount(truth.ravel())[1:]
    # the image's pixel size is not recorded: the annotated median nucleus is taken as the typical one
    pixel_um = 8.0 / (2 * np.sqrt(np.median(area[area > 0]) / np.pi))
    labels = segmented(image, pixel_um)
    assert match(truth, labels).f1 >= 0.88
    areas = table_of(labels, image, pixel_um).area_um2
    assert np.median(areas) == pytest.approx(np.pi * 8.0**2 / 4, rel=0.2)


@pytest.mark.parametrize("pixel_um", [0.1, 0.2125, 0.425, 0.85])
def test_number_and_area_do_not_depend_on_the_pixel_size(pixel_um):
    image = discs(pixel_um, GRID)
    table = table_of(segmented(image, pixel_um, diameter_um=9.0), image, pixel_um)
    assert len(table) == len(GRID)
    assert np.median(table.area_um2) == pytest.approx(np.pi * 4.5**2, rel=0.15)


def test_touching_nuclei_are_split_and_textured_ones_are_not():
    pairs = discs(0.4, [(y, x + dx) for y in (20, 50, 80) for x in (20, 60) for dx in (0, 8)])
    assert segmented(pairs, 0.4, diameter_um=9.0).max() == 12
    # chromatin: spots inside a nucleus, as bright as half of it
    texture = ndimage.gaussian_filter(np.random.default_rng(3).normal(0, 1, (250, 250)), 2)
    spotted = discs(0.4, GRID).astype(float)
    spotted = np.where(spotted > 60, spotted + 25 * texture / texture.std(), spotted)
    assert segmented(np.clip(spotted, 0, 255).astype(np.uint8), 0.4, diameter_um=9.0).max() == len(GRID)


def test_real_threshold_finds_no_nuclei_in_noise():
    segmenter = Watershed(0.4)
    scale = segmenter.calibrate([discs(0.4, GRID)])
    noise = np.clip(np.random.default_rng(1).normal(40, 6, (250, 250)), 0, 255).astype(np.uint8)
    assert segmenter.segment(noise, scale).max() == 0
    # its own threshold would: the reason why the real image sets it
    assert segmenter.segment(noise, segmenter.calibrate([noise])).max() > 0


def test_flat_image_has_no_nuclei():
    assert segmented(np.full((64, 64), 70, np.uint8), 0.4).max() == 0
    assert Watershed(0.4).calibrate([]) == Scale(float("inf"), 1.0)


def test_calibration_does_not_depend_on_the_order_of_windows_and_pools_them():
    windows = [tissue(96, 96, seed=seed) for seed in range(3)]
    segmenter = Watershed(0.85)
    scale = segmenter.calibrate(iter(windows))
    assert segmenter.calibrate(windows[::-1]) == scale
    assert {segmenter.calibrate([w]) for w in windows} != {scale}
    assert 0 < scale.low < scale.high < 255


def test_segmenters_are_picklable_and_say_what_they_do():
    segmenter: Segmenter = Watershed(0.85)
    image = tissue(128, 128)
    again = pickle.loads(pickle.dumps(segmenter))
    scale = segmenter.calibrate([image])
    np.testing.assert_array_equal(again.segment(image, scale), segmenter.segment(image, scale))
    assert again.segment(image, scale).dtype == np.int32
    assert json.loads(json.dumps(segmenter.settings()))["diameter_um"] == 8.0
    assert segmenter.name == "watershed"
    with pytest.raises(InputError, match="diameter"):
        NucleusSettings(diameter_um=0.0)
    with pytest.raises(InputError, match="pixel size"):
        Watershed(0.0)


@pytest.mark.parametrize("block_px", [150, 256, 400])
def test_blocks_have_the_nuclei_of_the_whole_image_simulated(block_px):
    assert_blocks(tissue(500, 640), 0.85, block_px)


@pytest.mark.parametrize("block_px", [300, 512])
def test_blocks_have_the_nuclei_of_the_whole_image_xenium(real_data, block_px):
    raw = tifffile.imread(next((real_data / "xenium_breast_crop").glob("morphology*.tif")))
    raw = raw[-1] if raw.ndim == 3 else raw
    coarse = raw[: raw.shape[0] // 2 * 2, : raw.shape[1] // 2 * 2].reshape(raw.shape[0] // 2, 2, -1, 2).mean((1, 3))
    low, high = np.percentile(coarse, [1, 99.9])
    assert_blocks(np.clip((coarse - low) / (high - low) * 255, 0, 255).astype(np.uint8), 0.425, block_px)


def assert_blocks(image, pixel_um, block_px):
    """To the last bit: labels' matches, every column of the table, transcripts."""
    segmenter = Watershed(pixel_um)
    scale = segmenter.calibrate([image])
    other = np.roll(image, 2, axis=0)
    random = np.random.default_rng(5)
    canvas = Box(7, 7 + image.shape[0], 11, 11 + image.shape[1])
    y, x = (random.integers(0, size, 5000).astype(np.int32) for size in image.shape)
    rows = Transcripts(y, x, np.zeros(5000, np.int32), random.integers(1, 4, 5000).astype(np.int32))

    def measured(core):
        at = core.grow(segmenter.halo_px).intersect(canvas)
        window = at.shift(-canvas.y0, -canvas.x0)
        labels, reference = (segmenter.segment(whole[window.slices()], scale) for whole in (image, other))
        near = Transcripts(y - np.int32(window.y0), x - np.int32(window.x0), rows.gene, rows.count)
        table = measure_nuclei(labels, image[window.slices()], pixel_um, at, core, near, section=3, reference=reference)
        return table, match(reference, labels, core.shift(-at.y0, -at.x0))

    expected, matches = measured(canvas)
    parts = [measured(core) for core in canvas.tiles(block_px, block_px)]
    found = NucleusTable.concatenate([table for table, _ in parts][::-1])
    assert len(expected) > 100
    for name, column in NucleusTable.concatenate([expected]).arrays().items():
        np.testing.assert_array_equal(getattr(found, name), column, err_msg=name)
    assert Matches(*(sum(column) for column in zip(*(m for _, m in parts), strict=True))) == matches
    assert 0 < matches.tp < matches.a
    assert found.transcripts.sum() > 0


def test_too_small_a_halo_would_change_nuclei():
    """The test above can fail: blocks without a halo cut nuclei."""
    image, segmenter = tissue(300, 300), Watershed(0.85)
    scale = segmenter.calibrate([image])
    whole_count = len(table_of(segmenter.segment(image, scale), image))
    cut = sum(
        segmenter.segment(np.ascontiguousarray(image[b.slices()]), scale).max()
        for b in Box(0, 300, 0, 300).tiles(100, 100)
    )
    assert cut > whole_count


def test_measurements_agree_with_regionprops():
    image = tissue(200, 220)
    labels = segmented(image, 0.85)
    labels[labels == 3] = 0
    random = np.random.default_rng(2)
    y, x = (random.integers(-5, size + 5, 3000).astype(np.int32) for size in image.shape)
    rows = Transcripts(y, x, np.zeros(3000, np.int32), random.integers(1, 5, 3000).astype(np.int32))
    at = Box(50, 250, 30, 250)
    table = measure_nuclei(labels, image, 0.85, at, at, rows, section=2)
    regions = regionprops(labels, image)
    under = np.zeros(labels.max() + 1, int)
    for cy, cx, count in zip(y, x, rows.count, strict=True):
        if 0 <= cy < 200 and 0 <= cx < 220:
            under[labels[cy, cx]] += count
    assert len(table) == len(regions) > 20
    np.testing.assert_allclose(table.y, [r.centroid[0] + 50 for r in regions])
    np.testing.assert_allclose(table.x, [r.centroid[1] + 30 for r in regions])
    np.testing.assert_allclose(table.area_um2, [r.area * 0.85**2 for r in regions])
    np.testing.assert_allclose(table.eccentricity, [r.eccentricity for r in regions], atol=1e-7)
    np.testing.assert_allclose(table.intensity, [r.intensity_mean for r in regions])
    np.testing.assert_array_equal(table.transcripts, [under[r.label] for r in regions])
    assert set(table.section.tolist()) == {2}


def test_cores_split_nuclei_by_their_centroids_half_open():
    labels = np.zeros((8, 12), np.int32)
    labels[0:3, 0:3], labels[4:8, 5:8], labels[5:8, 9:12] = 1, 2, 5
    image = np.full((8, 12), 9, np.uint8)
    # the second one's centroid lies on the edge, at x = 6
    left, right = (table_of(labels, image, core=core) for core in (Box(0, 8, 0, 6), Box(0, 8, 6, 12)))
    np.testing.assert_array_equal(left.x, [1])
    np.testing.assert_array_equal(right.x, [6, 10])
    one_pixel = np.zeros((3, 3), np.int32)
    one_pixel[1, 1] = 1
    assert table_of(one_pixel, image[:3, :3]).eccentricity.tolist() == [0.0]
    assert len(table_of(np.zeros((3, 3), np.int32), image[:3, :3])) == 0
    with pytest.raises(InputError, match="does not fill"):
        measure_nuclei(labels, image, 1.0, Box(0, 8, 0, 11), Box(0, 8, 0, 6), NO_TRANSCRIPTS, section=0)


def test_nearest_neighbours_are_sought_within_a_section():
    random = np.random.default_rng(0)
    section = np.array([0] * 30 + [1] * 20 + [4])
    y, x = random.uniform(0, 100, (2, 51))
    zeros = np.zeros(51)
    table = NucleusTable(section, y, x, zeros, zeros, zeros, np.zeros(51, np.int64), np.zeros(51, bool))
    distance = cdist(np.c_[y, x], np.c_[y, x])
    distance[section[:, None] != section[None]] = np.inf
    np.fill_diagonal(distance, np.inf)
    expected = 0.5 * distance.min(axis=1)
    np.testing.assert_allclose(table.nearest_um(0.5)[:-1], expected[:-1])
    assert np.isnan(table.nearest_um(0.5)[-1])
    again = NucleusTable(**table.arrays())
    np.testing.assert_array_equal(again.y, table.y)


def test_matches_at_half_overlap_and_above_are_one_to_one():
    truth = np.zeros((10, 30), np.int64)
    truth[:, :10], truth[:, 10:20] = 1, 5
    found = np.zeros_like(truth)
    found[:, :9], found[:, 15:25] = 2, 1
    # 9 of 10 columns match; 5 of 15 do not
    assert match(truth, found) == Matches(1, 2, 2)
    assert match(truth, truth).f1 == 1
    assert match(truth, np.zeros_like(truth)).f1 == 0
    assert match(np.zeros_like(truth), np.zeros_like(truth)).f1 == 1
    # two halves of one nucleus: exactly 0.5 each, one of them counts
    halves = np.zeros_like(truth)
    halves[:, :5], halves[:, 5:10] = 7, 4
    np.testing.assert_array_equal(same_nuclei(truth, halves), [[1, 4]])
    np.testing.assert_array_equal(same_nuclei(halves, truth), [[4, 1]])
    assert len(same_nuclei(truth, halves, 0.51)) == 0
    with pytest.raises(InputError, match=r"0\.5 to 1"):
        same_nuclei(truth, halves, 0.4)


def test_matches_agree_with_brute_force():
    a, b = (segmented(tissue(160, 160, seed=4), 0.85, edge=edge) for edge in (0.35, 0.65))
    pairs = {
        (i, j)
        for i in range(1, a.max() + 1)
        for j in range(1, b.max() + 1)
        if 2 * ((a == i) & (b == j)).sum() >= ((a == i) | (b == j)).sum()
    }
    assert {tuple(pair) for pair in same_nuclei(a, b).tolist()} == pairs
    assert 0 < len(pairs) < a.max()


def test_basins_are_the_h_maxima_of_a_smooth_map():
    height = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=(80, 90)), 3).astype(np.float32)
    everything = np.ones(height.shape, bool)
    labels, peaks = basins(height, everything)
    maxima, count = ndimage.label(height == ndimage.maximum_filter(height, 3), np.ones((3, 3)))
    assert labels.max() == count
    np.testing.assert_allclose(np.sort(peaks[1:]), np.sort(height[maxima > 0]))
    joined = join_shallow(labels, height, peaks, 0.05)
    expected = ndimage.label(h_maxima(height, 0.05), np.ones((3, 3)))[1]
    assert joined.max() == pytest.approx(expected, abs=1)
    assert 1 < joined.max() < count


def test_basins_break_ties_alike_in_every_crop():
    """A plateau has one peak, its first pixel, and a crop that holds it gives the same parts."""
    height = np.zeros((30, 40), np.float32)
    height[10:20, 8:30] = 1
    labels, _ = basins(height, height > 0)
    assert labels.max() == 1
    crop, _ = basins(height[5:, 3:], height[5:, 3:] > 0)
    np.testing.assert_array_equal(crop, labels[5:, 3:])


def test_parts_are_joined_by_what_their_border_looks_like():
    labels = np.zeros((20, 40), np.int32)
    labels[:, :20], labels[:, 20:] = 1, 2
    brightness = np.full((20, 40), 10.0)
    rule = Rule(bias=-10.0, neck=0.0, valley=10.5, contrast=-20.0, together=0.0)
    assert join_parts(labels, brightness, 300.0, rule).max() == 1
    valley = brightness.copy()
    valley[:, 19:21] = 8
    assert join_parts(labels, valley, 300.0, rule).max() == 2
    contrast = brightness.copy()
    contrast[:, 20:] = 13
    assert join_parts(labels, contrast, 300.0, rule).max() == 2
    # too large together, too short a neck
    assert join_parts(labels, brightness, 200.0, Rule(2.0, 0.0, 0.0, 0.0, -2.0)).max() == 2
    assert join_parts(labels, brightness, 900.0, Rule(2.0, 0.0, 0.0, 0.0, -2.0)).max() == 1
    labels[5:, 19:21] = 0
    assert join_parts(labels, brightness, 300.0, Rule(-1.0, 2.0, 0.0, 0.0, 0.0)).max() == 2


def test_bright_part_and_largest_part_of_labels():
    labels = np.zeros((6, 10), np.int32)
    labels[0], labels[2, :4], labels[2, 6:], labels[4, :2] = 1, 3, 3, 4
    labels[3, 6] = 3
    brightness = np.arange(60.0).reshape(6, 10)
    assert bright_part(brightness, labels, 0.8).tolist() == [0, 7, 0, 28, 40]
    expected = np.zeros_like(labels)
    expected[0], expected[2, 6:], expected[3, 6] = 1, 2, 2
    np.testing.assert_array_equal(whole(labels, 3.0), expected)


def load_benchmark():
    path = Path(__file__).resolve().parents[1] / "benchmarks" / "nuclei.py"
    spec = importlib.util.spec_from_file_location("nuclei_benchmark", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["nuclei_benchmark"] = module
    spec.loader.exec_module(module)
    return module


def test_benchmark_scores_the_held_out_half(real_data, capsys):
    benchmark = load_benchmark()
    assert benchmark.main(["--nuclei-2d", str(real_data / "nuclei_2d"), "--fit"]) == 0
    out = capsys.readouterr().out
    result = json.loads(out.strip().splitlines()[-1])
    assert "skipped mnfinder" in out
    halves = {row["half"]: row for row in result["rows"] if row["source"] == "nuclei_2d"}
    assert halves["tuned"]["annotated"] + halves["held out"]["annotated"] == 125
    assert result["f1_held_out"] > 0.8


def test_benchmark_reads_colours_and_splits_by_name(tmp_path, capsys):
    benchmark = load_benchmark()
    from PIL import Image

    for number in range(4):
        folder = tmp_path / "data" / "source"
        image, colours = tissue(96, 96, seed=min(number, 2)), np.zeros((96, 96, 3), np.uint8)
        labels = segmented(image, 0.85)
        colours[labels > 0] = np.stack([labels % 5 + 1, labels % 7, labels % 3], -1)[labels > 0]
        for name in ("images", "nucleus_masks"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        tifffile.imwrite(folder / "images" / f"{number}.tif", image)
        Image.fromarray(colours).save(folder / "nucleus_masks" / f"{number}.png")
    items = benchmark.mnfinder_images(tmp_path)
    # the last two are one image: tuned on only
    assert [item.half for item in items] == ["tuned", "held out", "tuned", "tuned"]
    assert items[0].truth.max() >= 20
    assert benchmark.main(["--mnfinder", str(tmp_path)]) == 0
    assert json.loads(capsys.readouterr().out.strip().splitlines()[-1])["f1_held_out"] > 0.8
    assert benchmark.main([]) == 0
    assert "nothing measured" in capsys.readouterr().out
