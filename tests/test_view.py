"""`tera-mind view`: which stores make a scene, whose nuclei are outlined and how exactly, how the command ends."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys

import numpy as np
import pytest
from scipy import ndimage
from tiny_brain import make_brain
from viewer_stores import make_stores, make_volume

from tera_mind.cli.main import main
from tera_mind.cli.view import nucleus_segmenter
from tera_mind.errors import FormatError, InputError, MissingFileError
from tera_mind.formats.brain import Brain
from tera_mind.metrics.nuclei.segmenters import NucleusSettings, Watershed
from tera_mind.report.viewer import outlines
from tera_mind.report.viewer.layers import open_scene
from tera_mind.report.viewer.outlines import PER_PX, RIM, Outlines, rim_distance
from tera_mind.report.viewer.tiles import Tiles


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    return make_stores(tmp_path_factory.mktemp("stores"))


def test_a_damaged_tile_is_an_error_in_words(tmp_path):
    brain = make_brain(tmp_path / "brain.zarr", shape=(1, 1, 300, 300), rows=5, stains=("DAPI",))
    shard = next(path for path in (brain.path / "images/0/c").rglob("*") if path.is_file())
    shard.write_bytes(shard.read_bytes()[:50])
    with pytest.raises(FormatError, match="is damaged at level 0"):
        Tiles(open_scene([brain.path])).tile("brain", 0, 0, 0, 0, 0)


def discs(shape=(700, 700), radius=9, count=150, seed=3):
    """An image of bright discs on a noisy ground."""
    rng = np.random.default_rng(seed)
    y, x = np.indices(shape)
    image = np.full(shape, 20.0)
    for cy, cx in rng.uniform(10, 690, (count, 2)):
        image = np.maximum(image, 200.0 * (np.hypot(y - cy, x - cx) < radius))
    return np.clip(ndimage.gaussian_filter(image, 1) + rng.normal(0, 3, shape), 1, 255).astype(np.uint8)


def test_outlines_are_those_of_the_whole_image(tmp_path, monkeypatch):
    """Blocks with a halo agree with one segmentation of everything, also across the borders of blocks and tiles."""
    image = discs()
    planes = image[None, None]
    brain = make_brain(tmp_path / "brain.zarr", image=planes, rows=5, shape=planes.shape, stains=("DAPI",))
    watershed = Watershed(brain.pixel_um, NucleusSettings(diameter_um=8.0))
    scale = watershed.calibrate([image])
    whole = rim_distance(watershed.segment(image, scale))
    segmenter = outlines.Segmenter(lambda _, window: watershed.segment(window, scale), "DAPI", 20.0, watershed.halo_px)
    monkeypatch.setattr(outlines, "BLOCK_PX", 192)
    served = Outlines(Tiles(open_scene([brain.path])), segmenter)
    shown = np.block([[served.tile("brain", 0, 0, row, column) for column in range(3)] for row in range(3)])
    assert shown.shape == whole.shape
    assert (shown > RIM).sum() > 10_000
    assert (np.abs(shown.astype(int) - whole) > PER_PX).mean() < 0.002
    half = served.tile("brain", 1, 0, 0, 0)
    assert half.shape == (256, 256)
    np.testing.assert_allclose(half[10, 12], shown[20:22, 24:26].mean(), atol=0.51)


def test_rim_distance_is_the_distance_to_the_rim():
    labels = np.zeros((40, 40), np.int32)
    labels[5:20, 5:20], labels[5:20, 20:30] = 1, 2  # two nuclei that touch
    values = rim_distance(labels).astype(int)
    assert (values[5, 5:30] == RIM).all()
    assert (values[10, [19, 20]] == RIM).all(), "touching nuclei keep a line between them"
    assert values[12, 12] == min(255, RIM + 7 * PER_PX)
    assert values[10, 3] == RIM - 2 * PER_PX
    assert values[0, 39] == 1
    assert (rim_distance(np.zeros((3, 3), np.int32)) == 1).all()


def test_the_nucleus_scale_comes_from_the_real_section(tmp_path):
    image = np.stack([discs(), discs(seed=4) // 6])[None]
    brain = make_brain(
        tmp_path / "brain.zarr", image=image, rows=5, shape=(1, 2, 700, 700), stains=("DAPI",),
        tissue=np.ones((2, 11, 11), bool),
    )  # fmt: skip
    segmenter = nucleus_segmenter(brain, 8.0)
    assert segmenter.diameter_px == 20.0
    for section in range(2):
        truth = ndimage.label(image[0, section] > image[0, section].max() / 2)[1]
        found = segmenter.segment(section, image[0, section]).max()
        assert 0.7 * truth < found < 1.6 * truth
    assert segmenter.segment(0, image[0, 1]).max() < 10, "a picture too dark for its section has no nuclei"
    assert nucleus_segmenter(make_brain(tmp_path / "other.zarr", stains=("A", "B")), 8.0) is None


def test_stores_that_do_not_fit_are_refused(stores, tmp_path):
    brain = Brain.open(stores / "brain.zarr")
    other = make_brain(tmp_path / "other.zarr", shape=(2, 3, 480, 900), rows=5)
    foreign = make_volume(tmp_path / "foreign.zarr", brain, brain_fingerprint="0" * 16)
    coarse = make_volume(tmp_path / "coarse.zarr", brain, pixel_um=0.8)
    far = make_volume(tmp_path / "far.zarr", brain, sections=(0, 5))
    for paths, words in (
        ([brain.path, other.path], "do not fit the canvas"),
        ([brain.path, foreign.path], "does not match the given brain.zarr"),
        ([stores / "generated.zarr", foreign.path], "does not match generated.zarr"),
        ([brain.path, coarse.path], "one pixel size"),
        ([brain.path, far.path], "sections 0..5"),
        ([stores / "uncertainty.zarr"], "maps only"),
    ):
        with pytest.raises(InputError, match=words):
            open_scene(paths)
    with pytest.raises(MissingFileError, match="nothing is there"):
        open_scene([tmp_path / "absent.zarr"])
    with pytest.raises(FormatError, match="no readable zarr"):
        open_scene([tmp_path])


def test_layers_of_one_name_get_names_of_their_own(stores):
    scene = open_scene([stores / "brain.zarr", stores / "generated.zarr", stores / "generated.zarr"])
    assert [layer.id for layer in scene.layers] == ["brain", "generated", "generated~2"]


def test_volumes_alone_make_a_canvas(stores):
    scene = open_scene([stores / "generated.zarr"])
    assert (scene.height, scene.width, scene.sections, scene.brain) == (400, 700, (0, 2), None)


def test_bad_options_end_in_one_line(stores, tmp_path, capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        for arguments, words in (
            ([str(stores / "brain.zarr"), "--port", port], "choose another with --port"),
            ([str(stores / "brain.zarr"), "--port", "70000"], "0 to 65535"),
            ([str(stores / "brain.zarr"), "--nucleus-um", "0"], "1 to 100 um"),
            ([str(stores / "brain.zarr"), "--allow-origin", "*"], "an origin is a scheme"),
            ([str(tmp_path / "absent.zarr")], "nothing is there"),
        ):
            assert main(["view", *arguments, "--no-browser"]) == 2
            error = capsys.readouterr().err
            assert error.count("\n") == 1
            assert words in error


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_the_command_serves_until_it_is_stopped(stores, stop):
    command = [sys.executable, "-m", "tera_mind.cli.main", "view", str(stores / "generated.zarr"), "--print-url"]
    options = ["--brain", str(stores / "brain.zarr"), "--port", "0"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen([*command, *options], env={**os.environ, "OMP_NUM_THREADS": "1"}, **pipes)
    try:
        url = process.stdout.readline().strip()
        port = int(re.fullmatch(r"http://127\.0\.0\.1:(\d+)/", url)[1])
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        connection.request("GET", "/manifest.json")
        layers = json.loads(connection.getresponse().read())["layers"]
        assert [layer["id"] for layer in layers] == ["brain", "generated"]
        process.send_signal(stop)
        assert process.wait(timeout=30) == 0
        assert "Traceback" not in process.stderr.read()
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        process.stderr.close()
