"""One generation step of a 512 x 512 px region: the fast forward against a plain transcription of the published way.

The rival cuts the region into 256 px tiles, encodes each with its rim (25 patches for 16), decodes on both paths and
throws the patch path away; its convolutions are 3-D with z padding, its norms elementary float32 operations, its
weights and data float32. Ours is what `tera-mind generate` runs: the sampler over blocks of the fast network. Both get
the same weights, noise and genes, and their results are compared before anything is believed. They take turns.

    python benchmarks/generate.py [--quick] [--device cpu|cuda]
"""

from __future__ import annotations

import argparse
import functools
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from train_step import SHAPES, device_name, plain_network

from tera_mind.diffusion.loss import OUTSIDE
from tera_mind.diffusion.process import image_of
from tera_mind.geometry import Box
from tera_mind.model.collage import counts_to_patches, from_patches, to_patches
from tera_mind.model.config import ModelConfig
from tera_mind.model.fast import FastNetwork, Precision, fast_network
from tera_mind.model.unet import GeneMorphUNet
from tera_mind.sampling.domain import Domain
from tera_mind.sampling.plain import SamplerSettings, sample_steps

#: side of a published tile, in patches
TILE = 4
SETTINGS = SamplerSettings("epsilon", steps=15)
#: largest difference allowed, over the largest magnitude there is
TOLERANCE: dict[Precision, float] = {"32": 1e-3, "bf16": 0.3}


class Region:
    """A region of patches with its noise and genes around it, and the step both ways take."""

    def __init__(self, config: ModelConfig, patches: int, device: torch.device) -> None:
        random = torch.Generator().manual_seed(0)
        side, halo, bins = config.patch_px, config.halo_px, config.bins
        self.config, self.patches, self.device = config, patches, device
        self.noise = torch.randn((config.image_channels, patches * side, patches * side), generator=random)
        size = (config.genes, config.gene_sections, (patches + 1) * bins, (patches + 1) * bins)
        self.counts = torch.poisson(torch.full(size, 0.5), generator=random)
        self.halo, self.box = halo, Box(0, patches * side, 0, patches * side)

    def genes(self, box: Box) -> Tensor:
        """Counts of a box of pixels of the region or up to half a patch around it."""
        shifted, bin_px = box.shift(self.halo, self.halo), self.config.bin_px
        rows = slice(shifted.y0 // bin_px, shifted.y1 // bin_px)
        return self.counts[:, :, rows, shifted.x0 // bin_px : shifted.x1 // bin_px]

    def fast(self, network: FastNetwork, columns: int) -> Tensor:
        """State after one step; only the left `columns` of patches are tissue."""
        active = np.zeros((self.patches, self.patches), bool)
        active[:, :columns] = True
        settings = SamplerSettings("epsilon", steps=SETTINGS.steps, block_columns=columns)
        domain = Domain(self.box, self.config.patch_px, active)
        return next(sample_steps(network, self.genes, lambda _step, _box: self.noise.clone(), domain, settings))

    @torch.no_grad()
    def published(self, plain: GeneMorphUNet) -> Tensor:
        """State after one step, tile by tile, both paths decoded."""
        side, halo, bins = self.config.patch_px, self.halo, self.config.bins
        solver = SETTINGS.solver
        padded = nn.functional.pad(self.noise, (halo, halo, halo, halo), value=OUTSIDE)
        output = torch.empty_like(self.noise)
        embedding = plain.time(torch.tensor([solver.path.timesteps[0]], device=self.device))
        tile = min(TILE, self.patches)
        for patches in Box(0, self.patches, 0, self.patches).tiles(tile, tile):
            pixels = Box(patches.y0 * side, patches.y1 * side, patches.x0 * side, patches.x1 * side)
            window = padded[(..., *pixels.grow(halo).shift(halo, halo).slices())][None].to(self.device)
            genes = counts_to_patches(self.genes(pixels.grow(halo))[None].to(self.device), bins)
            rim = embedding.expand((tile + 1) ** 2, -1)
            encoding = plain.encode(to_patches(window, side), rim, genes)
            plain.decode(encoding, rim)
            decoded = plain.decode(plain.reassemble(encoding, tile, tile), embedding.expand(tile**2, -1))
            output[(..., *pixels.slices())] = from_patches(decoded, tile, tile)[0].cpu()
        x0 = image_of("epsilon", output, self.noise, torch.tensor(solver.path.alpha_bar[0], dtype=output.dtype))
        return solver.step(0, self.noise, x0, None, None)[0]


def seconds(way: Callable[[], Tensor], device: torch.device) -> tuple[float, Tensor]:
    """Seconds of one step and the state after it."""
    start = time.perf_counter()
    state = way()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start, state


def ready(network: GeneMorphUNet) -> GeneMorphUNet:
    """Evaluation mode, and no weight at zero: those would hide half of the network from the comparison."""
    for weight in network.parameters():
        if not weight.any():
            nn.init.normal_(weight, std=0.02)
    return network.eval()


def check(name: str, state: Tensor, reference: Tensor, precision: Precision) -> float:
    """Largest difference over the largest magnitude; ends the program where it is not the same computation."""
    apart = float((state - reference).abs().max() / reference.abs().max())
    if not apart <= TOLERANCE[precision]:
        raise SystemExit(f"{name} differs from the published way by {apart:.1e} (tolerance {TOLERANCE[precision]:g})")
    return apart


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        description="One generation step: the fast forward against a plain transcription of the published way.",
        epilog="example: python benchmarks/generate.py --quick",
    )
    made.add_argument("--quick", action="store_true", help="one 256 px tile instead of 512 x 512 px: under 3 minutes")
    made.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    made.add_argument("--compile", action="store_true", help="compile ours (CUDA only)")
    made.add_argument("--tiny", action="store_true", help=argparse.SUPPRESS)  # for the tests
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    device = torch.device(options.device)
    config = ModelConfig(**SHAPES["tiny"], gene_sections=4) if options.tiny else ModelConfig(genes=229)
    patches = TILE if options.quick or options.tiny else 2 * TILE
    turns = 2 if options.quick else 3
    side = patches * config.patch_px
    print(f"device {device_name(device)}; torch {torch.__version__}, Python {platform.python_version()}")
    print(
        f"{config.genes} genes, {config.sections} sections, {side} x {side} px, one step; {turns} turns of each way\n"
    )
    torch.manual_seed(0)
    network = ready(GeneMorphUNet(config))
    region = Region(config, patches, device)
    plain = plain_network(network).eval().to(device)
    ways: dict[str, tuple[Precision, Callable[[], Tensor]]] = {}
    precisions: tuple[Precision, ...] = ("32", "bf16")
    for precision in precisions:
        fast = fast_network(network, device, precision, compile=options.compile)
        ways[precision] = precision, functools.partial(region.fast, fast, patches)
        ways[f"{precision}, half empty"] = precision, functools.partial(region.fast, fast, patches // 2)
    reference = region.published(plain)
    differences = dict.fromkeys(ways, 0.0)
    times: dict[str, list[float]] = {name: [] for name in ("published", *ways)}
    for _ in range(turns):
        times["published"].append(seconds(lambda: region.published(plain), device)[0])
        for name, (precision, way) in ways.items():
            taken, state = seconds(way, device)
            times[name].append(taken)
            # at the domain's edge x_t differs, so a half-empty region agrees where the edge cannot be seen
            columns = side if name == precision else side // 2 - config.patch_px
            differences[name] = check(name, state[..., :columns], reference[..., :columns], precision)
    rows = []
    print("way                  s a step  megapixels/s  published over it: min - median - max  difference")
    for name, taken in times.items():
        ratios = sorted(b / a for a, b in zip(taken, times["published"], strict=True))
        row: dict[str, Any] = {
            "way": name, "s": statistics.median(taken), "ratio_min": ratios[0], "ratio": statistics.median(ratios),
            "ratio_max": ratios[-1], "difference": differences.get(name, 0.0),
        }  # fmt: skip
        rows.append(row)
        rate = 1e-6 * side * side * config.sections / row["s"]
        print(
            f"{name:<20} {row['s']:>8.2f} {rate:>13.4f} {row['ratio_min']:>20.2f} - {row['ratio']:>6.2f} - "
            f"{row['ratio_max']:>5.2f} {row['difference']:>11.1e}"
        )
    ratio = {row["way"]: row["ratio"] for row in rows}
    result = {
        "benchmark": "generate", "ratio": ratio["32"], "ratio_bf16": ratio["bf16"],
        "ratio_half_empty": ratio["32, half empty"], "ratio_bf16_half_empty": ratio["bf16, half empty"],
        "rows": rows, "side_px": side, "turns": turns, "device": device_name(device),
        "threads": torch.get_num_threads(), "compiled": options.compile,
        "software": {"python": platform.python_version(), "torch": torch.__version__},
    }  # fmt: skip
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
