"""One training step (forward, backward, optimiser) of this network against a plain transcription of the published way.

The rival is the same network with the same weights and three modules put in: every convolution is an `nn.Conv3d`, 3x3x3
with z padding inside residual blocks even where there is one section; every RMSNorm is written in float32 elementary
operations that autograd goes back through one by one; and a residual block is its modules one after the other. Both get
the same batch, noise and timesteps; dropout is off, so that their losses and gradient norms can be compared before
anything is timed. Then they take turns.

    python benchmarks/train_step.py [--quick] [--device cpu|cuda]
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tera_mind.diffusion.loss import Crops, dual_path_loss
from tera_mind.diffusion.schedule import TIMESTEPS, alpha_bars
from tera_mind.model.config import ModelConfig
from tera_mind.model.layers import ResBlock, RMSNorm, SectionConv
from tera_mind.model.unet import GeneMorphUNet

#: shapes of the network: the tests' own, one for two CPU cores, the published one
SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {
        "genes": 5, "patch_px": 16, "bin_px": 4, "base_channels": 8, "channel_mult": (1, 2), "res_blocks": 1,
        "time_channels": 16, "pyramid_channels": (8,), "attention_px": 8,
    },
    "small": {
        "genes": 100, "patch_px": 32, "bin_px": 8, "base_channels": 32, "channel_mult": (1, 2, 4, 4), "res_blocks": 1,
        "time_channels": 128, "pyramid_channels": (64, 32, 16),
    },
    "published": {"genes": 229},
}  # fmt: skip
#: gene sections in -> image sections out: 1 -> 1 and 4 -> 2
GENE_SECTIONS = (1, 4)
PRECISIONS = ("float32", "bf16")
#: largest relative difference of loss and gradient norm that counts as the same computation
TOLERANCE = {"float32": 1e-4, "bf16": 3e-2}


class PlainRMSNorm(nn.Module):
    """Elementary operations in float32, as published."""

    def __init__(self, ours: RMSNorm) -> None:
        super().__init__()
        self.weight, self.axis = nn.Parameter(ours.weight.detach().clone()), ours.axis

    def forward(self, x: Tensor) -> Tensor:
        shape = [1] * x.ndim
        shape[self.axis] = -1
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        scaled = wide * torch.rsqrt(wide.pow(2).mean(self.axis, keepdim=True) + 1e-6)
        return (scaled * self.weight.view(shape)).to(x.dtype)


class PlainResBlock(nn.Module):
    """A residual block from modules: norm, activation, scale and shift are operations of their own, as published."""

    def __init__(self, ours: ResBlock) -> None:
        """Takes the modules of ours, which are replaced in their turn."""
        super().__init__()
        self.scale = ours.scale
        for name, module in ours.named_children():
            self.add_module(name, module)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = nn.functional.silu(self.norm_in(x))
        if self.scale == "up":
            x, h = (nn.functional.interpolate(part, scale_factor=(1, 2, 2), mode="nearest") for part in (x, h))
        elif self.scale == "down":
            x, h = (nn.functional.avg_pool3d(part, (1, 2, 2)) for part in (x, h))
        h = self.conv_in(h)
        scale, shift = self.time(nn.functional.silu(embedding))[:, :, None, None, None].chunk(2, dim=1)
        h = nn.functional.silu(self.norm_out(h) * (1 + scale) + shift)
        out: Tensor = self.skip(x) + self.conv_out(self.dropout(h))
        return out


def plain_conv(ours: SectionConv, *, cube: bool) -> nn.Conv3d:
    """The same convolution as a 3-D one; `cube`: 3x3x3 with z padding, its outer planes zero where ours has none."""
    outputs, inputs, *kernel = ours.weight.shape
    padding = ours.padding
    weight = ours.weight.detach()
    if cube and kernel[0] == 1:
        weight = nn.functional.pad(weight, (0, 0, 0, 0, 1, 1))
        kernel[0], padding = 3, (1, *padding[1:])
    conv = nn.Conv3d(inputs, outputs, tuple(kernel), padding=padding)
    conv.weight = nn.Parameter(weight.clone())
    assert ours.bias is not None
    conv.bias = nn.Parameter(ours.bias.detach().clone())
    return conv


def plain_network(network: GeneMorphUNet) -> GeneMorphUNet:
    """The same network in the published way: same weights, same mathematics, plain modules."""
    plain = copy.deepcopy(network)
    for parent in list(plain.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, ResBlock):
                setattr(parent, name, PlainResBlock(child))
    for parent in list(plain.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, RMSNorm):
                setattr(parent, name, PlainRMSNorm(child))
            elif isinstance(child, SectionConv):
                cube = isinstance(parent, PlainResBlock) and name in {"conv_in", "conv_out"}
                setattr(parent, name, plain_conv(child, cube=cube))
    return plain


@dataclass
class Trainee:
    """A network with its optimiser and the one batch it is trained on."""

    network: GeneMorphUNet
    batch: Crops
    precision: str
    device: torch.device

    def __post_init__(self) -> None:
        self.network.to(self.device).train()
        self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=2e-5)

    def backward(self) -> float:
        """Loss of the dual-path objective; leaves the gradients."""
        narrow: AbstractContextManager[object] = (
            torch.autocast(self.device.type, torch.bfloat16) if self.precision == "bf16" else nullcontext()
        )
        self.optimizer.zero_grad()
        with narrow:
            loss = dual_path_loss(self.network, self.batch, "epsilon").total
        loss.backward()
        return loss.item()

    def kept_bytes(self) -> int:
        """Bytes that the forward keeps for the way back, weights aside."""
        weights = {p.untyped_storage().data_ptr() for p in self.network.parameters()}
        kept: dict[int, int] = {}

        def keep(x: Tensor) -> Tensor:
            storage = x.untyped_storage()
            if storage.data_ptr() not in weights:
                kept[storage.data_ptr()] = storage.nbytes()
            return x

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            self.backward()
        return sum(kept.values())

    def gradient_norm(self) -> float:
        return math.sqrt(sum(float(p.grad.square().sum()) for p in self.network.parameters() if p.grad is not None))

    def step(self) -> None:
        self.backward()
        self.optimizer.step()

    def seconds(self, steps: int) -> float:
        """Seconds a step, over some steps."""
        synchronize: Callable[[], None] = torch.cuda.synchronize if self.device.type == "cuda" else lambda: None
        synchronize()
        start = time.perf_counter()
        for _ in range(steps):
            self.step()
        synchronize()
        return (time.perf_counter() - start) / steps


def make_batch(config: ModelConfig, size: int, device: torch.device) -> Crops:
    """Crops of noise with Poisson counts, a strip of them outside the section; timesteps spread over the schedule."""
    random = torch.Generator().manual_seed(0)
    side, bins = 2 * config.patch_px, 2 * config.bins
    shape = (size, config.stains, config.sections, side, side)
    inside = torch.ones(size, config.sections, side, side, dtype=torch.bool)
    inside[0, :, :, : side // 8] = False
    batch = {
        "image": torch.rand(shape, generator=random) * 2 - 1,
        "counts": torch.poisson(
            torch.full((size, config.genes, config.gene_sections, bins, bins), 0.5), generator=random
        ),
        "inside": inside,
        "t": torch.linspace(0, TIMESTEPS - 1, size).long(),
        "noise": torch.randn(shape, generator=random),
        "alpha_bar": torch.from_numpy(alpha_bars()).float(),
    }
    return Crops(**{name: value.to(device) for name, value in batch.items()})


def difference(ours: Trainee, plain: Trainee) -> float:
    """Largest relative difference of loss and gradient norm between the two ways."""
    pairs = [(ours.backward(), plain.backward()), (ours.gradient_norm(), plain.gradient_norm())]
    return max(abs(a - b) / abs(b) for a, b in pairs)


def compare(config: ModelConfig, precision: str, size: int, device: torch.device, limit_s: float) -> dict[str, Any]:
    """One row: both ways on the same batch, checked, then timed in turns for about `limit_s` seconds."""
    torch.manual_seed(0)
    network = GeneMorphUNet(config)
    for weight in network.parameters():  # zero weights would hide half of the network from the comparison
        if not weight.any():
            nn.init.normal_(weight, std=0.02)
    batch = make_batch(config, size, device)
    ours = Trainee(network, batch, precision, device)
    plain = Trainee(plain_network(network), batch, precision, device)
    apart = difference(ours, plain)
    if not apart <= TOLERANCE[precision]:
        raise SystemExit(f"the two ways differ by {apart:.1e} (tolerance {TOLERANCE[precision]:g}): nothing to compare")
    warm = [way.seconds(2) for way in (ours, plain)]
    steps = max(1, round(0.25 / min(warm)))  # a turn of a quarter second at least, so that the clock does not matter
    turns = max(3, min(25, int(limit_s / (steps * sum(warm)))))
    times = [(ours.seconds(steps), plain.seconds(steps)) for _ in range(turns)]
    ratios = sorted(b / a for a, b in times)
    return {
        "sections": config.sections,
        "precision": precision,
        "ms": 1e3 * statistics.median(a for a, _ in times),
        "ms_plain": 1e3 * statistics.median(b for _, b in times),
        "ratio_min": ratios[0],
        "ratio": statistics.median(ratios),
        "ratio_max": ratios[-1],
        "turns": turns,
        "steps_a_turn": steps,
        "difference": apart,
        "kept_mb": 1e-6 * ours.kept_bytes(),
        "kept_mb_plain": 1e-6 * plain.kept_bytes(),
        "parameters": sum(p.numel() for p in ours.network.parameters()),
    }


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU {platform.machine()}, {torch.get_num_threads()} threads"


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        description="A training step of this network against a plain transcription of the published way.",
        epilog="example: python benchmarks/train_step.py --quick",
    )
    made.add_argument("--quick", action="store_true", help="a smaller network and fewer turns: under 3 minutes")
    made.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    made.add_argument("--tiny", action="store_true", help=argparse.SUPPRESS)  # for the tests
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    device = torch.device(options.device)
    shape = "tiny" if options.tiny else "small" if options.quick and device.type == "cpu" else "published"
    size = 2 if options.tiny else 16 if device.type == "cuda" else 4 if shape == "small" else 1
    limit_s = 0.0 if options.tiny else 20.0 if options.quick else 120.0
    software = {"python": platform.python_version(), "torch": torch.__version__}
    print(f"device {device_name(device)}; torch {torch.__version__}, Python {platform.python_version()}")
    print(f"network {shape}: {SHAPES[shape]}; batch {size}; a turn of each way after the other")
    print(f"same loss and gradient norm within {TOLERANCE} (relative)\n")
    columns = "sections precision    ours ms   plain ms  samples/s    plain  ratio min - median - max  turns"
    print(f"{columns}  difference  kept MB    plain")
    rows = []
    for gene_sections in GENE_SECTIONS:
        for precision in PRECISIONS:
            config = ModelConfig(**SHAPES[shape], gene_sections=gene_sections, dropout=0.0)
            row = compare(config, precision, size, device, limit_s)
            rows.append(row)
            print(
                f"{row['sections']:>8} {precision:<9} {row['ms']:>10.1f} {row['ms_plain']:>10.1f} "
                f"{1e3 * size / row['ms']:>10.2f} {1e3 * size / row['ms_plain']:>8.2f} "
                f"{row['ratio_min']:>10.2f} - {row['ratio']:>6.2f} - {row['ratio_max']:>5.2f} "
                f"{row['turns']:>6} {row['difference']:>11.1e} {row['kept_mb']:>8.1f} {row['kept_mb_plain']:>8.1f}",
                flush=True,
            )
    ratio = math.exp(statistics.fmean(math.log(row["ratio"]) for row in rows))
    print(f"\nplain over ours, geometric mean of the rows: {ratio:.2f}")
    result = {
        "benchmark": "train_step", "ratio": ratio, "rows": rows, "device": device_name(device), "network": shape,
        "batch": size, "threads": torch.get_num_threads(), "software": software,
    }  # fmt: skip
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
