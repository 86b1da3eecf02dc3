"""Nucleus segmentation against human truth and against discs whose number and size are known."""

from __future__ import annotations

import numpy as np
import pytest
import tifffile
from scipy import ndimage

from tera_mind.geometry import Box
from tera_mind.metrics.measure import by_window
from tera_mind.metrics.nuclei import NucleusSettings, calibrate, match_f1, measure, segment


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


def test_annotated_nuclei_are_found(real_data):
    image = tifffile.imread(real_data / "nuclei_2d" / "img2d.tif")
    truth = tifffile.imread(real_data / "nuclei_2d" / "mask2d.tif").astype(np.int64)
    area = np.bincount(truth.ravel())[1:]
    settings = NucleusSettings()
    # the image's pixel size is not recorded: the annotated median nucleus is taken as the typical one
    pixel_um = settings.diameter_um / (2 * np.sqrt(np.median(area[area > 0]) / np.pi))
    found = segment(image, pixel_um, calibrate(image, pixel_um, settings), settings)
    assert match_f1(truth, found.labels) >= 0.85
    assert np.median(found.area_um2) == pytest.approx(np.pi * settings.diameter_um**2 / 4, rel=0.2)


@pytest.mark.parametrize("pixel_um", [0.1, 0.2125, 0.425, 0.85])
def test_number_and_area_do_not_depend_on_the_pixel_size(pixel_um):
    image = discs(pixel_um, GRID)
    settings = NucleusSettings(diameter_um=9.0)
    found = segment(image, pixel_um, calibrate(image, pixel_um, settings), settings)
    assert len(found.area_um2) == len(GRID)
    assert np.median(found.area_um2) == pytest.approx(np.pi * 4.5**2, rel=0.15)


def test_touching_nuclei_are_split():
    image = discs(0.4, [(y, x + dx) for y in (20, 50, 80) for x in (20, 60) for dx in (0, 8)])
    settings = NucleusSettings(diameter_um=9.0)
    assert len(segment(image, 0.4, calibrate(image, 0.4, settings), settings).area_um2) == 12


def test_real_threshold_finds_no_nuclei_in_noise():
    settings = NucleusSettings()
    scale = calibrate(discs(0.4, GRID), 0.4, settings)
    noise = np.clip(np.random.default_rng(1).normal(40, 6, (250, 250)), 0, 255).astype(np.uint8)
    assert len(segment(noise, 0.4, scale, settings).area_um2) == 0
    # its own threshold would: the reason why the real image sets it
    assert len(segment(noise, 0.4, calibrate(noise, 0.4, settings), settings).area_um2) > 0


def test_flat_image_has_no_nuclei():
    settings = NucleusSettings()
    flat = np.full((64, 64), 70, np.uint8)
    assert segment(flat, 0.4, calibrate(flat, 0.4, settings), settings).labels.max() == 0


def test_match_f1_counts_matches_above_half_overlap():
    truth = np.zeros((10, 30), np.int64)
    truth[:, :10], truth[:, 10:20] = 1, 5
    found = np.zeros_like(truth)
    found[:, :9], found[:, 15:25] = 2, 1
    # 9 of 10 columns match; 5 of 15 do not
    assert match_f1(truth, found) == pytest.approx(2 * 1 / 4)
    assert match_f1(truth, truth) == 1
    assert match_f1(truth, np.zeros_like(truth)) == 0


def test_windows_count_centroids():
    labels = np.zeros((8, 12), np.int32)
    labels[0:2, 0:2], labels[4:8, 5:7], labels[5:7, 8:12] = 1, 2, 3
    windows = list(Box(0, 8, 0, 12).tiles(4, 4))
    found = by_window(measure(labels, 2.0), windows)
    np.testing.assert_array_equal(found.counts, [1, 0, 0, 0, 1, 1])
    np.testing.assert_allclose(found.areas, [16, np.nan, np.nan, np.nan, 32, 32])
