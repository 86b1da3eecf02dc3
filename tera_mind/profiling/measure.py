"""Measured speed of generation, training and of what lies around them, on the machine at hand.

Sizes are those of the real thing, contents are random: noise for images, Poisson numbers for counts. Nothing here
depends on what a network has learnt.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from tera_mind import noise
from tera_mind.formats.brain import Brain, Transcripts, create_brain, gene_bins
from tera_mind.formats.volume import Volume, VolumeAttributes
from tera_mind.geometry import Box
from tera_mind.model.blocks import BlockNetwork
from tera_mind.model.config import ModelConfig
from tera_mind.model.fast import Precision
from tera_mind.module import GeneMorphModule
from tera_mind.profiling.kernels import Kind, scaled, time_by_class

#: transcripts a bin and gene of the random counts, and a pixel of the random brain: about 0.6 a um^2
_COUNTS_A_BIN, _TRANSCRIPTS_A_PIXEL = 0.5, 0.1


@dataclass(frozen=True)
class Speed:
    """Seconds a call: median and range over `turns`, and where they go."""

    seconds: float
    fastest: float
    slowest: float
    turns: int
    by_class: dict[Kind, float]


@dataclass(frozen=True)
class InOut:
    """Seconds a megavoxel around the network: reading genes, making noise, writing the volume."""

    genes_s: float
    noise_s: float
    write_s: float

    @property
    def total_s(self) -> float:
        return self.genes_s + self.noise_s + self.write_s


def timed(run: Callable[[], object], device: torch.device, limit_s: float) -> Speed:
    """Speed of a call after one that warms up: turns for `limit_s` seconds, then one under the profiler.

    At least three turns, unless that takes more than three times the limit.
    """

    def once() -> float:
        start = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - start

    once()
    times = [once()]
    while len(times) < 50 and sum(times) < (limit_s if len(times) >= 3 else 3 * limit_s):
        times.append(once())
    middle = statistics.median(times)
    return Speed(middle, min(times), max(times), len(times), scaled(time_by_class(run, device), middle, device))


def measure_generation(
    network: BlockNetwork,
    config: ModelConfig,
    block: tuple[int, int],
    micro_batch: int,
    device: torch.device,
    limit_s: float,
) -> Speed:
    """One pass of `micro_batch` blocks of (rows, columns) patches with their halo through the network of generation."""
    random = torch.Generator().manual_seed(0)
    height, width = (patches * network.patch_px + 2 * network.halo_px for patches in block)
    window = torch.randn((micro_batch, network.channels, height, width), generator=random).to(device)
    bins = (config.genes, config.gene_sections, height // network.bin_px, width // network.bin_px)
    counts = torch.poisson(torch.full((micro_batch, *bins), _COUNTS_A_BIN), generator=random)
    t = torch.full((micro_batch,), 500)

    @torch.no_grad()
    def run() -> None:
        network.predict(window, t, counts)

    return timed(run, device, limit_s)


def measure_training(
    module: GeneMorphModule, pairs: int, device: torch.device, precision: Precision, limit_s: float
) -> Speed:
    """One optimiser step on `pairs` pairs: loss, backward and optimiser of the module, as `fit` runs them.

    Reading data is not part of it (see benchmarks/datamodule.py). The module's weights change.
    """
    config = module.info.model
    module.to(device).train()
    module.setup("fit")
    optimizer = module.configure_optimizers()
    random = torch.Generator().manual_seed(0)
    side = 2 * config.patch_px
    counts = (pairs, config.genes, config.gene_sections, 2 * config.bins, 2 * config.bins)
    batch = {
        "image": torch.rand((pairs, config.stains, config.sections, side, side), generator=random) * 2 - 1,
        "genes": torch.poisson(torch.full(counts, _COUNTS_A_BIN), generator=random),
        "inside": torch.ones((pairs, config.sections, side, side), dtype=torch.bool),
    }
    batch = {name: value.to(device) for name, value in batch.items()} | {"number": torch.arange(pairs)}
    t = torch.linspace(0, 999, pairs).long()

    def run() -> None:
        narrow: AbstractContextManager[object] = (
            torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext()
        )
        optimizer.zero_grad()
        with narrow:
            loss = module.loss(batch, t).total
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return timed(run, device, limit_s)


def measure_io(config: ModelConfig, brain: Brain | None, index: NDArray[np.int64] | None, side_px: int) -> InOut:
    """Seconds a megavoxel of a square of about `side_px`, read, drawn and written on this machine's temporary disk.

    Genes come from `brain` (`index` is the place of the network's genes in its panel), or from a random brain of
    0.1 transcripts a pixel.
    """
    side_px = max(config.patch_px, side_px // config.patch_px * config.patch_px)
    with tempfile.TemporaryDirectory(prefix="tera-mind-benchmark-") as temporary:
        folder = Path(temporary)
        if brain is None or index is None:
            brain, index = _random_brain(folder / "brain.zarr", config, side_px), np.arange(config.genes)
        height, width = (min(side_px, size) // config.patch_px * config.patch_px for size in brain.shape[2:])
        top, left = ((size - own) // 2 for size, own in zip(brain.shape[2:], (height, width), strict=True))
        box = Box(top, top + height, left, left + width)  # the middle, where there is tissue
        megavoxels = config.image_channels * height * width / 1e6
        sections = tuple(range(min(config.gene_sections, brain.shape[1])))
        genes_s = _seconds(lambda: gene_bins(brain, sections, box, config.bin_px, index))
        planes = range(config.image_channels)
        noise_s = _seconds(lambda: [noise.normal(0, 0, plane, 0, box) for plane in planes])
        image = np.random.default_rng(0).integers(0, 256, (config.stains, config.sections, height, width), np.uint8)
        attributes = VolumeAttributes(
            stains=tuple(f"stain{i}" for i in range(config.stains)), pixel_um=brain.pixel_um, brain="benchmark",
            brain_fingerprint="0" * 16, box=box, sections=tuple(range(config.sections)), patch_px=config.patch_px,
            checkpoint="0" * 64, seed=0, steps=1,
        )  # fmt: skip
        write_s = _seconds(lambda: Volume.write(folder / "volume.zarr", image, attributes))
        return InOut(genes_s / megavoxels, noise_s / megavoxels, write_s / megavoxels)


def _seconds(run: Callable[[], object]) -> float:
    """The faster of two calls: the first also pays for imports and an empty cache."""
    times = []
    for _ in range(2):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)


def _random_brain(path: Path, config: ModelConfig, side_px: int) -> Brain:
    random = np.random.default_rng(0)
    rows = int(_TRANSCRIPTS_A_PIXEL * side_px**2)

    def transcripts() -> Transcripts:
        return Transcripts(
            random.integers(side_px, size=rows).astype(np.int32),
            random.integers(side_px, size=rows).astype(np.int32),
            random.integers(config.genes, size=rows).astype(np.int32),
            np.ones(rows, np.int32),
        )

    return create_brain(
        path,
        image=np.zeros((1, config.gene_sections, side_px, side_px), np.uint8),
        transcripts=[transcripts() for _ in range(config.gene_sections)],
        genes=tuple(f"gene{i}" for i in range(config.genes)),
        stains=("stain",),
        pixel_um=1.0,
    )
