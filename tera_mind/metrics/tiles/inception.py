"""The Inception network of the FID, for those who have its weights: `pt_inception-2015-12-05-6726825d.pth`.

That file is the state dict that the PyTorch ports of the FID share, converted from the TensorFlow graph of 2015-12-05.
The graph differs from the Inception v3 of the paper and of other libraries: average pools do not count the zeros of
their padding, the last block has a maximum pool, images are resized by TensorFlow 1's bilinear rule and scaled by
(value - 128) / 128. FID: the 2048 pooled features. sFID (Nash et al., ICML 2021): the first 7 channels of the 17 x 17
maps of `mixed_6/conv`, the 1 x 1 branch of Mixed_6d, 2023 numbers. Each stain is shown in all three channels.
"""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from tera_mind.errors import FormatError, MissingFileError
from tera_mind.metrics.tiles.features import Features, Tiles, in_batches

SIDE_PX = 299
CLASSES = 1008
SPATIAL_CHANNELS = 7
_NAME = "pt_inception-2015-12-05-6726825d.pth, the PyTorch weights of the FID"


class Layer(NamedTuple):
    """A convolution of a branch: name, channels that come out, kernel; at stride 2 without padding."""

    name: str
    out: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1


#: layers one after the other; a tuple at the end stands side by side, its outputs are joined
Chain = Sequence[Layer | tuple[Layer, ...]]
Pool = Literal["average", "maximum", "reduce"]


class Convolution(nn.Module):
    """Convolution, batch norm, ReLU."""

    def __init__(self, inputs: int, layer: Layer, *, padded: bool = True) -> None:
        super().__init__()
        height, width = layer.kernel
        padding = (height // 2, width // 2) if padded and layer.stride == 1 else (0, 0)
        self.conv = nn.Conv2d(inputs, layer.out, layer.kernel, layer.stride, padding, bias=False)
        self.bn: nn.Module = nn.BatchNorm2d(layer.out, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)), inplace=True)

    def fold(self) -> None:
        """Put the batch norm into the convolution."""
        assert isinstance(self.bn, nn.BatchNorm2d)
        self.conv, self.bn = fuse_conv_bn_eval(self.conv, self.bn), nn.Identity()


class Block(nn.Module):
    """Branches over one input, their outputs joined, the pooled branch last.

    `pool`: 3 x 3, "average" over what is there, "maximum", both followed by a convolution `branch_pool`; "reduce": a
    maximum at stride 2, alone.
    """

    def __init__(self, inputs: int, chains: Sequence[Chain], pool: Pool, pool_out: int = 0) -> None:
        super().__init__()
        self.chains: list[list[tuple[str, ...]]] = []
        self.pool = pool
        self.out = inputs if pool == "reduce" else pool_out
        for chain in chains:
            width, names = inputs, []
            for step in chain:
                layers = (step,) if isinstance(step, Layer) else step
                for layer in layers:
                    self.add_module(layer.name, Convolution(width, layer))
                names.append(tuple(layer.name for layer in layers))
                width = sum(layer.out for layer in layers)
            self.chains.append(names)
            self.out += width
        if pool != "reduce":
            self.add_module("branch_pool", Convolution(inputs, Layer("branch_pool", pool_out)))

    def forward(self, x: Tensor) -> Tensor:
        outputs = []
        for chain in self.chains:
            y = x
            for names in chain:
                parts = [self.get_submodule(name)(y) for name in names]
                y = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
            outputs.append(y)
        return torch.cat([*outputs, self.pooled(x)], dim=1)

    def pooled(self, x: Tensor) -> Tensor:
        if self.pool == "reduce":
            return F.max_pool2d(x, 3, stride=2)
        if self.pool == "maximum":
            y = F.max_pool2d(x, 3, stride=1, padding=1)
        else:
            y = F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)
        pooled: Tensor = self.get_submodule("branch_pool")(y)
        return pooled


def _block_a(inputs: int, pool_out: int) -> Block:
    chains: list[Chain] = [
        [Layer("branch1x1", 64)],
        [Layer("branch5x5_1", 48), Layer("branch5x5_2", 64, (5, 5))],
        [Layer("branch3x3dbl_1", 64), Layer("branch3x3dbl_2", 96, (3, 3)), Layer("branch3x3dbl_3", 96, (3, 3))],
    ]
    return Block(inputs, chains, "average", pool_out)


def _block_b(inputs: int) -> Block:
    chains: list[Chain] = [
        [Layer("branch3x3", 384, (3, 3), 2)],
        [Layer("branch3x3dbl_1", 64), Layer("branch3x3dbl_2", 96, (3, 3)), Layer("branch3x3dbl_3", 96, (3, 3), 2)],
    ]
    return Block(inputs, chains, "reduce")


def _block_c(inputs: int, width: int) -> Block:
    row, column = (1, 7), (7, 1)
    chains: list[Chain] = [
        [Layer("branch1x1", 192)],
        [Layer("branch7x7_1", width), Layer("branch7x7_2", width, row), Layer("branch7x7_3", 192, column)],
        [
            Layer("branch7x7dbl_1", width),
            Layer("branch7x7dbl_2", width, column),
            Layer("branch7x7dbl_3", width, row),
            Layer("branch7x7dbl_4", width, column),
            Layer("branch7x7dbl_5", 192, row),
        ],
    ]
    return Block(inputs, chains, "average", 192)


def _block_d(inputs: int) -> Block:
    chains: list[Chain] = [
        [Layer("branch3x3_1", 192), Layer("branch3x3_2", 320, (3, 3), 2)],
        [
            Layer("branch7x7x3_1", 192),
            Layer("branch7x7x3_2", 192, (1, 7)),
            Layer("branch7x7x3_3", 192, (7, 1)),
            Layer("branch7x7x3_4", 192, (3, 3), 2),
        ],
    ]
    return Block(inputs, chains, "reduce")


def _block_e(inputs: int, pool: Pool) -> Block:
    def fork(name: str) -> tuple[Layer, ...]:
        return Layer(f"{name}a", 384, (1, 3)), Layer(f"{name}b", 384, (3, 1))

    chains: list[Chain] = [
        [Layer("branch1x1", 320)],
        [Layer("branch3x3_1", 384), fork("branch3x3_2")],
        [Layer("branch3x3dbl_1", 448), Layer("branch3x3dbl_2", 384, (3, 3)), fork("branch3x3dbl_3")],
    ]
    return Block(inputs, chains, pool, 192)


class InceptionNetwork(nn.Module):
    """The network with the names of the weights file; grey levels (b, 1, 299, 299), scaled to [-1, 1], go in."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = Convolution(3, Layer("", 32, (3, 3), 2))
        self.Conv2d_2a_3x3 = Convolution(32, Layer("", 32, (3, 3)), padded=False)
        self.Conv2d_2b_3x3 = Convolution(32, Layer("", 64, (3, 3)))
        self.Conv2d_3b_1x1 = Convolution(64, Layer("", 80))
        self.Conv2d_4a_3x3 = Convolution(80, Layer("", 192, (3, 3)), padded=False)
        self.Mixed_5b = _block_a(192, 32)
        self.Mixed_5c = _block_a(256, 64)
        self.Mixed_5d = _block_a(288, 64)
        self.Mixed_6a = _block_b(288)
        self.Mixed_6b = _block_c(768, 128)
        self.Mixed_6c = _block_c(768, 160)
        self.Mixed_6d = _block_c(768, 160)
        self.Mixed_6e = _block_c(768, 192)
        self.Mixed_7a = _block_d(768)
        self.Mixed_7b = _block_e(1280, "average")
        self.Mixed_7c = _block_e(2048, "maximum")
        # unused: its 1008 classes tell the FID's weights from others of the same names
        self.fc = nn.Linear(2048, CLASSES)

    def spatial(self, x: Tensor) -> Tensor:
        """(b, 7 * 17 * 17): the features of the sFID."""
        x = self._up_to_6c(x)
        maps: Tensor = self.Mixed_6d.get_submodule("branch1x1")(x)
        return maps[:, :SPATIAL_CHANNELS].flatten(1)

    def pooled(self, x: Tensor) -> Tensor:
        """(b, 2048): the features of the FID."""
        x = self.Mixed_6e(self.Mixed_6d(self._up_to_6c(x)))
        maps: Tensor = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x)))
        return maps.mean(dim=(2, 3))

    def _up_to_6c(self, x: Tensor) -> Tensor:
        x = self.Conv2d_1a_3x3(x.expand(-1, 3, -1, -1).contiguous(memory_format=torch.channels_last))
        x = F.max_pool2d(self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(x)), 3, stride=2)
        x = F.max_pool2d(self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x)), 3, stride=2)
        for block in (self.Mixed_5b, self.Mixed_5c, self.Mixed_5d, self.Mixed_6a, self.Mixed_6b, self.Mixed_6c):
            x = block(x)
        return x


def resize(images: Tensor, side_px: int = SIDE_PX) -> Tensor:
    """Bilinear resize as in TensorFlow 1: output pixel i looks at input position i * in / out, corners not aligned."""
    for axis in (-2, -1):
        size = images.shape[axis]
        at = torch.arange(side_px, dtype=torch.float32) * (size / side_px)
        low = at.floor().long()
        high = torch.clamp(low + 1, max=size - 1)
        share = (at - low)[:, None] if axis == -2 else at - low
        first, second = images.index_select(axis, low), images.index_select(axis, high)
        images = first + (second - first) * share
    return images


@dataclass(frozen=True)
class Inception:
    """Inception features of 256 px tiles, from a weights file: "fid" (2048 pooled) or "sfid" (2023 spatial).

    Raises `MissingFileError` or `FormatError` (no such weights) as soon as it is made.
    """

    path: Path
    kind: Literal["fid", "sfid"] = "fid"

    tile_px: ClassVar[int] = 256

    def __post_init__(self) -> None:
        _network(self.path)

    @property
    def name(self) -> str:
        return f"inception-2015-12-05 {self.kind}"

    @property
    def size(self) -> int:
        return 2048 if self.kind == "fid" else SPATIAL_CHANNELS * 17 * 17

    def features(self, tiles: Tiles) -> Features:
        """Float32 (tile, size)."""
        network = _network(self.path)
        last = network.pooled if self.kind == "fid" else network.spatial
        return in_batches(tiles, lambda batch: last((resize(batch) - 128) / 128), self.size)


@cache
def _network(path: Path) -> InceptionNetwork:
    network = load_weights(read_state(path), path)
    for module in network.modules():
        if isinstance(module, Convolution):
            module.fold()
    # `to` changes the module in place
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return network


def read_state(path: Path) -> Mapping[str, Tensor]:
    """The tensors of a weights file. Raises `MissingFileError` or `FormatError` (damaged, or something else)."""
    if not path.is_file():
        raise MissingFileError(f"expected Inception weights at {path}, nothing is there: give the path of {_NAME}")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, OSError, EOFError, ValueError, KeyError, pickle.UnpicklingError, zipfile.BadZipFile) as error:
        reason = str(error).strip().split("\n")[0]
        raise FormatError(
            f"{path} cannot be read as PyTorch weights, it is damaged, cut short or something else ({reason}): give "
            f"the path of {_NAME}"
        ) from None
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise FormatError(f"{path} holds a {type(state).__name__}, no table of tensors: give the path of {_NAME}")
    return state


def load_weights(state: Mapping[str, Tensor], path: Path) -> InceptionNetwork:
    """The network with the given tensors, for evaluation. Raises `FormatError` when names or shapes do not fit."""
    network = InceptionNetwork()
    expected = {name: value for name, value in network.state_dict().items() if not name.endswith("num_batches_tracked")}
    missing = [name for name in expected if name not in state]
    if missing:
        shown = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
        raise FormatError(
            f"{path} lacks {len(missing)} of {len(expected)} Inception tensors ({shown}): give the path of {_NAME}"
        )
    wrong = [name for name, value in expected.items() if state[name].shape != value.shape]
    if wrong:
        name = wrong[0]
        raise FormatError(
            f"{name} in {path} should have shape {tuple(expected[name].shape)}, has {tuple(state[name].shape)} (1000 "
            f"classes are another Inception than the FID's): give the path of {_NAME}"
        )
    # counts of training batches may be there or not; nothing reads them
    network.load_state_dict({name: state[name] for name in expected}, strict=False)
    if not all(bool(torch.isfinite(value).all()) for value in network.state_dict().values()):
        raise FormatError(f"{path} holds weights that are not finite: give the path of {_NAME}")
    return network.eval().requires_grad_(requires_grad=False)
