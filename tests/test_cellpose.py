"""Cellpose as a segmenter: its errors always, itself where the extra is installed, with weights made at random."""

from __future__ import annotations

import importlib.util
import json
import pickle
import socket

import numpy as np
import pytest
import torch

from tera_mind.errors import FormatError, InputError, MissingFileError
from tera_mind.metrics.nuclei.match import match
from tera_mind.metrics.nuclei.segmenters import Cellpose, Scale, Segmenter

installed = pytest.mark.skipif(
    importlib.util.find_spec("cellpose") is None, reason="needs the extra: pip install 'tera-mind[cellpose]'"
)


def hide_package(monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "cellpose" else found(name, *a))


def test_missing_weights_are_said_first_and_never_fetched(tmp_path, monkeypatch):
    monkeypatch.setattr(socket, "socket", lambda *a, **k: pytest.fail("a connection was opened"))
    hide_package(monkeypatch)
    for path in (tmp_path / "cyto3", tmp_path):
        with pytest.raises(MissingFileError, match=r"no Cellpose weights at .* none is fetched"):
            Cellpose(path, 0.5)


def test_missing_package_is_said_with_what_to_install(tmp_path, monkeypatch):
    hide_package(monkeypatch)
    (tmp_path / "weights").write_bytes(b"anything")
    with pytest.raises(InputError, match=r"cellpose 3\.1\.1\.3, which is not installed: .*tera-mind\[cellpose\]"):
        Cellpose(tmp_path / "weights", 0.5)


@pytest.mark.parametrize(("pixel_um", "diameter_um"), [(0.0, 8.0), (0.5, 0.0), (float("nan"), 8.0)])
def test_sizes_must_be_above_0(tmp_path, pixel_um, diameter_um):
    with pytest.raises(InputError, match="above 0 um"):
        Cellpose(tmp_path / "weights", pixel_um, diameter_um)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A network at random, in the file format of Cellpose."""
    from cellpose.resnet_torch import CPnet

    torch.manual_seed(0)
    network = CPnet([2, 32, 64, 128, 256], 3, sz=3, diam_mean=17.0)
    path = tmp_path_factory.mktemp("cellpose") / "random_weights"
    network.save_model(path)
    return path


@installed
@pytest.mark.parametrize("damage", ["text", "cut", "other", "shape"])
def test_files_that_hold_no_weights_are_refused(weights, tmp_path, damage):
    path = tmp_path / damage
    state = torch.load(weights, weights_only=True)
    if damage == "text":
        path.write_text("not found")
    elif damage == "cut":
        path.write_bytes(weights.read_bytes()[:5000])
    elif damage == "other":
        torch.save({"W2": torch.zeros(3)}, path)
    else:
        torch.save(state | {"output.2.weight": torch.zeros(7, 32, 1, 1)}, path)
    with pytest.raises(FormatError, match=damage):
        Cellpose(path, 0.5)


@installed
def test_scale_is_the_percentiles_of_all_windows(weights):
    segmenter = Cellpose(weights, 0.5)
    random = np.random.default_rng(0)
    windows = [random.integers(low, low + 100, (64, 80)).astype(np.uint8) for low in (0, 60, 120)]
    scale = segmenter.calibrate(iter(windows))
    assert segmenter.calibrate(windows[::-1]) == scale
    np.testing.assert_allclose(scale, np.percentile(np.concatenate(windows), [1, 99]), atol=1)
    assert segmenter.calibrate([np.full((9, 9), 7, np.uint8)]) == Scale(7.0, 8.0)


@installed
def test_a_segmenter_like_the_other_one(weights, monkeypatch):
    """No download, the same labels after a pickle, the brightness of the real image, lengths in microns."""
    monkeypatch.setattr(socket, "socket", lambda *a, **k: pytest.fail("a connection was opened"))
    segmenter: Segmenter = Cellpose(weights, 0.5)
    image = np.zeros((96, 120), np.uint8)
    image[20:40, 20:40], image[60:80, 70:90] = 150, 200
    image += np.random.default_rng(0).integers(0, 20, image.shape).astype(np.uint8)
    scale = segmenter.calibrate([image])
    labels = segmenter.segment(image, scale)
    assert labels.shape == image.shape
    assert labels.dtype == np.int32
    again = pickle.loads(pickle.dumps(segmenter))
    np.testing.assert_array_equal(again.segment(image, scale), labels)
    settings = json.loads(json.dumps(segmenter.settings()))
    assert settings["segmenter"] == "cellpose" == segmenter.name
    assert len(settings["sha256"]) == 64
    # twice the pixels a micron, twice the margin
    assert Cellpose(weights, 0.25).halo_px == pytest.approx(2 * segmenter.halo_px, abs=1)


@installed
def test_flows_of_nuclei_become_their_labels(weights, monkeypatch):
    """A network that answers with the right flows: what comes back are the nuclei, at the image's own scale."""
    from cellpose import models
    from cellpose.dynamics import labels_to_flows

    y, x = np.indices((90, 110))
    truth = np.zeros((90, 110), np.int32)
    for label, (cy, cx) in enumerate([(20, 20), (20, 38), (60, 80)], start=1):
        truth[np.hypot(y - cy, x - cx) < 9] = label
    _, inside, dy, dx = labels_to_flows([truth], device=torch.device("cpu"))[0]
    answer = np.stack([5 * dy, 5 * dx, 20 * inside - 10], axis=-1)[None].astype(np.float32)
    scales = []

    def network(net, image, rsz, **settings):
        scales.append(rsz)
        return answer, np.zeros((1, 256), np.float32)

    monkeypatch.setattr(models, "run_net", network)
    labels = Cellpose(weights, 0.5).segment((truth > 0).astype(np.uint8) * 100, Scale(0.0, 100.0))
    assert labels.max() == 3
    assert match(truth, labels, iou=0.9).tp == 3
    # nuclei of 16 px are brought to the 17 px of the weights
    assert scales == [pytest.approx(17 / 16)]


@installed
def test_grey_levels_are_scaled_by_the_real_image(weights, monkeypatch):
    from cellpose import transforms

    seen = []
    scaled = transforms.normalize_img

    def watched(*arguments, **settings):
        seen.append(scaled(*arguments, **settings))
        return seen[-1]

    monkeypatch.setattr(transforms, "normalize_img", watched)
    image = np.random.default_rng(0).integers(50, 100, (64, 64)).astype(np.uint8)
    Cellpose(weights, 0.5).segment(image, Scale(0.0, 200.0))
    np.testing.assert_allclose(seen[0][..., 0].squeeze(), image / 200, atol=1e-6)
