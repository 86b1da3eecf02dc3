"""The gene-morph network as generation runs it: evaluation mode, boundary-aware path only, weights made once.

The same function as `GeneMorphUNet.predict` (equal in float64 to 1e-9), with what generation throws away left out:
no patch path, no products with z padding (`planes`), time embedding and modulations once a timestep, gene pyramid
once an encoder patch. Nothing is concatenated: norms write side by side, 1x1 convolutions add up over their inputs.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Sequence
from typing import Literal, TypeVar

import torch
from jaxtyping import Float, Integer
from torch import Tensor, nn

from tera_mind.errors import InputError
from tera_mind.model import collage
from tera_mind.model.config import ModelConfig
from tera_mind.model.fast_layers import FastResBlock, FastStage, Modulation, rms_norm_silu
from tera_mind.model.layers import ResBlock, SectionConv
from tera_mind.model.planes import Halves, PlaneConv, from_halves, to_halves
from tera_mind.model.unet import GeneMorphUNet, Stage

Precision = Literal["32", "bf16"]
M = TypeVar("M", bound=nn.Module)
#: patches that go through the network at once: activations of a CPU's share stay near its caches
PATCHES_AT_ONCE = {"cpu": 4, "cuda": 128}


def balanced(total: int, most: int) -> Iterator[range]:
    """0..total in ranges of at most `most`, their lengths one apart at most."""
    pieces = -(-total // most)
    for i in range(pieces):
        yield range(i * total // pieces, (i + 1) * total // pieces)


class Collage:
    """One feature of all encoder patches of a block, put together as planes, from which decoder patches are cut."""

    def __init__(self, rows: int, columns: int, margin: float) -> None:
        """rows, columns: decoder patches; margin: share of a patch kept around each of them."""
        self.rows, self.columns, self.margin = rows, columns, margin
        self.planes: list[Float[Tensor, "k y x c"]] = []

    def put(self, halves: Halves, patches: range) -> None:
        """Encoder patches of these numbers, row-major."""
        side, channels = halves[0].shape[2:]
        if not self.planes:
            size = ((self.rows + 1) * side, (self.columns + 1) * side, channels)
            self.planes = [half.new_empty((len(half) // len(patches), *size)) for half in halves]
        for plane, half in zip(self.planes, halves, strict=True):
            pieces = half.unflatten(0, (-1, len(patches)))
            for i, patch in enumerate(patches):
                row, column = divmod(patch, self.columns + 1)
                plane[:, row * side : (row + 1) * side, column * side : (column + 1) * side] = pieces[:, i]

    def cut(self, patches: range) -> Halves:
        """Decoder patches of these numbers, row-major, half a patch later."""
        side = self.planes[0].shape[1] // (self.rows + 1)
        margin = int(self.margin * side)
        first, wide = side // 2 - margin, side + 2 * margin
        out = []
        for plane in self.planes:
            half = plane.new_empty((len(plane), len(patches), wide, wide, plane.shape[-1]))
            for i, patch in enumerate(patches):
                y, x = (first + side * number for number in divmod(patch, self.columns))
                half[:, i] = plane[:, y : y + wide, x : x + wide]
            out.append(half.flatten(0, 1))
        return out


class FastNetwork:
    """`BlockNetwork` of a `GeneMorphUNet` in evaluation mode; see the module for what it leaves out.

    Blocks are run one by one and their patches in the same small groups every time, so the result of a block has the
    same bits wherever it stands in a batch and whatever stands beside it.
    """

    training = False

    def __init__(
        self, network: GeneMorphUNet, device: torch.device, precision: Precision, patches_at_once: int
    ) -> None:
        """The weights are copied, stage by stage; a float64 network with precision "32" stays in float64."""
        config = self.config = network.config
        wide = torch.promote_types(network.head.weight.dtype, torch.float32)

        def own(module: M) -> M:
            return copy.deepcopy(module).eval().requires_grad_(requires_grad=False).to(device)

        dtype = torch.bfloat16 if precision == "bf16" else wide
        self.device, self.dtype, self.wide = device, dtype, wide
        self.patches_at_once = patches_at_once
        self.time, self.pyramid = own(network.time).to(wide), own(network.pyramid).to(wide)
        sections, per_level, n = config.sections, config.res_blocks, patches_at_once
        genes = config.gene_channels[::-1]
        inner = [config.patch_px >> level for level in range(len(genes))]
        outer = [side + (2 * config.margin_px >> level) for level, side in enumerate(inner)]
        planes = n * max(1, sections // 2)
        # the image enters and leaves in full precision
        self.stem = self.plane_conv(own(network.stem), (planes, inner[0]))
        self.encoder: list[FastStage] = []
        self.downs: list[FastResBlock] = []
        widths = [self.stem_channels(config)]
        for i, stage in enumerate(map(own, network.encoder)):
            assert isinstance(stage, Stage)
            level, first = divmod(i, per_level)
            if level and not first:
                down = own(network.downs[level - 1])
                assert isinstance(down, ResBlock)
                self.downs.append(FastResBlock(down, widths[-1:], dtype, sections, (n, inner[level])))
                widths.append(widths[-1])
            self.encoder.append(FastStage(stage, [widths[-1], genes[level]], dtype, sections, (n, inner[level])))
            widths.append(stage.block.conv_out.weight.shape[0])
        channels = widths[-1]
        self.middle = FastStage(own(network.middle), [channels, genes[-1]], dtype, sections, (n, inner[-1]))
        self.decoder: list[FastStage] = []
        for i, stage in enumerate(map(own, network.decoder)):
            assert isinstance(stage, Stage)
            level = len(genes) - 1 - i // (per_level + 1)
            parts = [channels, widths.pop(), genes[level]]
            self.decoder.append(FastStage(stage, parts, dtype, sections, (n, outer[level])))
            channels = stage.block.conv_out.weight.shape[0]
        self.norm = own(network.norm).weight.to(wide)
        self.head = self.plane_conv(own(network.head), (planes, outer[0]))
        stages = [*self.encoder, self.middle, *self.decoder]
        self.blocks = [*self.downs, *(block for stage in stages for block in stage.blocks)]
        for number, block in enumerate(self.blocks):
            block.number = number
        self._modulations: dict[int, list[Modulation]] = {}

    def plane_conv(self, conv: SectionConv, shape: tuple[int, int]) -> PlaneConv:
        """A convolution within planes, in full precision."""
        assert conv.bias is not None
        return PlaneConv(conv.weight[:, :, 0].to(self.wide), conv.bias.to(self.wide), shape)

    @staticmethod
    def stem_channels(config: ModelConfig) -> int:
        return config.base_channels * config.channel_mult[0]

    @property
    def patch_px(self) -> int:
        return self.config.patch_px

    @property
    def bin_px(self) -> int:
        return self.config.bin_px

    @property
    def halo_px(self) -> int:
        return self.config.halo_px

    @property
    def channels(self) -> int:
        return self.config.image_channels

    def modulations(self, t: int) -> list[Modulation]:
        """Scaled weights and shifts of every residual block, by its number, at a timestep; computed once."""
        if t not in self._modulations:
            embedding = self.time(torch.tensor([t], device=self.device))[0]
            self._modulations[t] = [block.modulation(embedding) for block in self.blocks]
        return self._modulations[t]

    def encode(
        self,
        x: Float[Tensor, "p channel y x"],
        counts: Float[Tensor, "p gene section bin_y bin_x"],
        modulations: list[Modulation],
    ) -> list[Halves]:
        """Features of encoder patches: bottleneck, skips in order of making, gene pyramid coarsest first."""
        patches, config = len(x), self.config
        genes = [to_halves(level.to(self.dtype)) for level in self.pyramid(counts.to(self.device, self.wide))]
        image = to_halves(x.to(self.device, self.wide).unflatten(1, (config.stains, config.sections)))
        h = [self.stem(half).to(self.dtype) for half in image]
        skips = [h]
        for i, stage in enumerate(self.encoder):
            level, first = divmod(i, config.res_blocks)
            if level and not first:
                down = self.downs[level - 1]
                h = down([h], modulations[down.number])
                skips.append(h)
            h = self.run(stage, [h], genes[-1 - level], modulations, patches)
            skips.append(h)
        h = self.run(self.middle, [h], genes[0], modulations, patches)
        return [h, *skips, *genes]

    def decode(
        self, features: list[Halves], modulations: list[Modulation], patches: int
    ) -> Float[Tensor, "p channel y x"]:
        """Decode features, as `encode` orders them, of any patches."""
        levels = len(self.config.channel_mult)
        h, skips, genes = features[0], features[1:-levels], features[-levels:]
        for i, stage in enumerate(self.decoder):
            h = self.run(stage, [h, skips.pop()], genes[i // (self.config.res_blocks + 1)], modulations, patches)
        out = [self.head(rms_norm_silu([half.to(self.wide)], self.norm)) for half in h]
        return from_halves(out, patches).flatten(1, 2)

    @staticmethod
    def run(
        stage: FastStage, parts: Sequence[Halves], genes: Halves, modulations: list[Modulation], patches: int
    ) -> Halves:
        return stage(parts, genes, [modulations[block.number] for block in stage.blocks], patches)

    def predict(
        self,
        window: Float[Tensor, "n channel y x"],
        t: Integer[Tensor, " n"],
        counts: Float[Tensor, "n gene section bin_y bin_x"],
    ) -> Float[Tensor, "n channel y2 x2"]:
        """Boundary-aware path on n blocks of R x K patches with half a patch around them (see `BlockNetwork`)."""
        blocks = zip(window, t.tolist(), counts, strict=True)
        with torch.inference_mode():
            out = torch.stack([self.block(x, step, genes) for x, step, genes in blocks])
        return out.clone()  # outside: a tensor that may be used anywhere, autograd included

    def block(
        self, window: Float[Tensor, "channel y x"], t: int, counts: Float[Tensor, "gene section bin_y bin_x"]
    ) -> Float[Tensor, "channel y2 x2"]:
        """One block."""
        side, margin = self.patch_px, self.config.margin_px
        rows, columns = window.shape[-2] // side - 1, window.shape[-1] // side - 1
        x = collage.to_patches(window[None], side)
        genes = collage.counts_to_patches(counts[None], self.config.bins)
        modulations = self.modulations(t)
        collages: list[Collage] = []
        for some in balanced(len(x), self.patches_at_once):
            features = self.encode(x[some.start : some.stop], genes[some.start : some.stop], modulations)
            collages = collages or [Collage(rows, columns, margin / side) for _ in features]
            for whole, feature in zip(collages, features, strict=True):
                whole.put(feature, some)
        out = []
        for some in balanced(rows * columns, self.patches_at_once):
            decoded = self.decode([whole.cut(some) for whole in collages], modulations, len(some))
            inner = decoded[..., margin : decoded.shape[-2] - margin, margin : decoded.shape[-1] - margin]
            out.append(inner.clone())  # a CUDA graph writes its next result over this one
        return collage.from_patches(torch.cat(out), rows, columns)[0]


def fast_network(
    network: GeneMorphUNet,
    device: torch.device,
    precision: Precision = "32",
    *,
    compile: bool = False,  # noqa: A002
    patches_at_once: int | None = None,
) -> FastNetwork:
    """The same function as `network.eval().predict`, faster; its weights are copies.

    patches_at_once: that go through it together (default: `PATCHES_AT_ONCE`), on which last bits depend.

    "bf16" keeps image, gene pyramid, time embedding and head in float32. `compile`: fuse what lies between the
    convolutions and replay it as CUDA graphs; for CUDA only, and not yet run on one. Raises `InputError` for a CPU,
    whose packed convolutions a compiler does not take.
    """
    fast = FastNetwork(network, device, precision, patches_at_once or PATCHES_AT_ONCE[device.type])
    if compile:
        check_compilable(device)
        fast.encode = torch.compile(fast.encode, mode="reduce-overhead", dynamic=False)  # type: ignore[method-assign]
        fast.decode = torch.compile(fast.decode, mode="reduce-overhead", dynamic=False)  # type: ignore[method-assign]
    return fast


def check_compilable(device: torch.device) -> None:
    """Raise `InputError` for a device on which `fast_network` cannot be compiled."""
    if device.type != "cuda":
        raise InputError(f"a compiled network needs a CUDA device, got {device}: leave compile off")


@torch.inference_mode()
def fastest_patches(network: FastNetwork, device: torch.device, memory_bytes: int, most: int = 256) -> int:
    """Patches at once (1, 2, 4, ... `most`) that take least time each and fit a memory, by trying them on a device.

    To be searched once and then fixed for a whole plan (`FastNetwork.patches_at_once`): another number may round
    differently. The memory of a try is reckoned as five times the features that the encoder leaves.
    """
    config, best, fastest, size = network.config, 1, float("inf"), 1
    modulations = network.modulations(0)
    while size <= most:
        x = torch.zeros(size, config.image_channels, config.patch_px, config.patch_px)
        counts = torch.zeros(size, config.genes, config.gene_sections, config.bins, config.bins)
        seconds = []
        for _ in range(3):  # the first one warms up
            start = time.perf_counter()
            features = network.encode(x, counts, modulations)
            network.decode(features, modulations, size)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            seconds.append(time.perf_counter() - start)
        if min(seconds[1:]) / size < fastest:
            best, fastest = size, min(seconds[1:]) / size
        kept = sum(half.numel() * half.element_size() for halves in features for half in halves)
        if 5 * 2 * kept > memory_bytes:
            break
        size *= 2
    return best
