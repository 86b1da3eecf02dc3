"""Seconds and peak memory of a training step and of a generated megavoxel, for every method, in one run.

Each method is made from its recipe (experiments/baselines, at demo size on a CPU) and trained by Lightning on one batch
of noise; generation is one pass over a region times the method's number of steps. Every measurement has a process of
its own, forked from one that has loaded everything (on a GPU: the allocator's peak, in this process), and the methods
take turns. A voxel is one pixel of one stain and section. Before anything is timed each method makes the region in
small tiles and at once, which must agree where it says so; COCO-GAN and SST-editing never see a region as a whole. A
step of a GAN is one of each network; the regularisers of StyleGAN2, every 4 and 16 steps, fall among 16 timed ones.

    python benchmarks/baselines.py [--quick] [--device cpu|cuda] [--methods NAME ...]
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import multiprocessing
import platform
import resource
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import lightning
import torch
import yaml
from torch import Tensor

from tera_mind.baselines.plain_ddpm import PlainDDPM
from tera_mind.baselines.regression import Regression
from tera_mind.geometry import Box, section_window
from tera_mind.model.blocks import BlockNetwork
from tera_mind.model.inputs import Inputs
from tera_mind.model.methods import parameter_count
from tera_mind.module import MODULES, MethodModule
from tera_mind.sampling.domain import Domain
from tera_mind.sampling.oneshot import keyed_planes, paint_region
from tera_mind.sampling.plain import SamplerSettings, predict

RECIPES = Path(__file__).resolve().parents[1] / "experiments"
#: recipe -> DDIM steps of a picture, as published; 1 for methods without steps
METHODS = {
    "tera_mind": 15, "patch_dm": 50, "sinfusion": 50, "sinfusion_matched": 50, "plain_ddpm": 50, "coco_gan": 1,
    "infinity_gan": 1, "ms_pie": 1, "sst_editing": 1, "ist_editing": 1, "regression": 1,
}  # fmt: skip
#: largest difference of tiles and whole region that counts as none, float32, in units of the output
TOLERANCE = 1e-4
GENE_SECTIONS = 4


def recipe_of(name: str, *, demo: bool) -> dict[str, Any]:
    path = RECIPES / "baselines" / ("demo" if demo else "") / f"{name}.yaml"
    if name == "tera_mind" and not demo:
        path = RECIPES / "paper" / "main.yaml"
    recipe: dict[str, Any] = yaml.safe_load(path.read_text())
    return recipe


def module_of(recipe: dict[str, Any], genes: int) -> MethodModule:
    """The recipe's module for a panel of so many genes."""
    torch.manual_seed(0)
    stains = ("DAPI", "PolyT")
    inputs = Inputs(
        genes=tuple(f"gene{i}" for i in range(genes)),
        stains=stains,
        pixel_um=0.108,
        intensity_range=dict.fromkeys(stains, (0.0, 255.0)),
        gene_sections=GENE_SECTIONS,
        patch_px=recipe["data"]["patch_px"],
        bin_px=recipe["data"]["bin_px"],
    )
    return MODULES[recipe.get("method", "tera-mind")](inputs, **recipe["model"])


def make_batch(recipe: dict[str, Any], genes: int, size: int) -> dict[str, Tensor]:
    """A batch of noise with Poisson counts, of the recipe's crops."""
    random = torch.Generator().manual_seed(0)
    side, bins = 2 * recipe["data"]["patch_px"], 2 * recipe["data"]["patch_px"] // recipe["data"]["bin_px"]
    sections = len(section_window(0, GENE_SECTIONS).image)
    return {
        "image": torch.rand((size, 2, sections, side, side), generator=random) * 2 - 1,
        "genes": torch.poisson(torch.full((size, genes, GENE_SECTIONS, bins, bins), 0.5), generator=random),
        "inside": torch.ones(size, sections, side, side, dtype=torch.bool),
        "position": torch.zeros(size, 4, dtype=torch.int64),
        "number": torch.arange(size),
    }


class Clock(lightning.Callback):
    """When each training batch ended."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        del trainer, outputs, batch, batch_idx
        if pl_module.device.type == "cuda":
            torch.cuda.synchronize()
        self.ends.append(time.perf_counter())


def train_seconds(name: str, *, demo: bool, genes: int, size: int, steps: int, device: str) -> float:
    """Seconds a step; the first, which allocates, is left out."""
    recipe = recipe_of(name, demo=demo)
    clock, batch = Clock(), make_batch(recipe, genes, size)
    trainer = lightning.Trainer(
        accelerator="gpu" if device == "cuda" else "cpu", devices=1, max_epochs=1, logger=False, callbacks=[clock],
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
    )  # fmt: skip
    batches: Any = [batch] * (steps + 1)
    trainer.fit(module_of(recipe, genes), torch.utils.data.DataLoader(batches, batch_size=None))
    return (clock.ends[-1] - clock.ends[0]) / steps


class Picture:
    """A region that a method makes in one pass, from random genes."""

    def __init__(self, name: str, *, demo: bool, genes: int, device: str, patches: int) -> None:
        recipe = recipe_of(name, demo=demo)
        module = module_of(recipe, genes)
        self.network = module.network.to(device).eval()
        config = module.info.model
        small = 32 if demo else 64  # of Tera-MIND: all methods make the same region
        side = max(1, patches * small // config.patch_px) * config.patch_px
        self.region = Box(0, side, 0, side)
        bins = (side + 2 * config.halo_px) // config.bin_px
        field = torch.poisson(torch.full((genes, GENE_SECTIONS, bins, bins), 0.5), torch.Generator().manual_seed(1))

        def counts(box: Box) -> Tensor:
            moved = box.shift(config.halo_px, config.halo_px)
            edges = (edge // config.bin_px for edge in (moved.y0, moved.y1, moved.x0, moved.x1))
            return field[(..., *Box(*edges).slices())]

        self.counts = counts
        self.exact = config.tile_exact
        shape = (config.image_channels, side, side)
        self.start = torch.randn(shape, generator=torch.Generator().manual_seed(2))
        self.megavoxels = math.prod(shape) / 1e6
        self.parameters = parameter_count(self.network)

    def __call__(self, block: int = 8) -> Tensor:
        """One pass over the region in blocks of so many patches."""
        if isinstance(self.network, BlockNetwork):
            settings = SamplerSettings("v", 1, block_rows=block, block_columns=block)
            domain = Domain.whole(self.region, self.network.patch_px)
            return predict(self.network, self.start, 500, self.counts, domain, settings)
        planes = keyed_planes(0, section_window(0, GENE_SECTIONS))
        return paint_region(self.network, self.counts, planes, self.region, block)  # type: ignore[arg-type]

    @torch.no_grad()
    def joint(self) -> Tensor:
        """The region at once; of a method that cuts whole patches in any block, its network on the uncut region."""
        if isinstance(self.network, Regression):
            return self.network(self.counts(self.region)[None])[0].clamp(-1, 1).cpu()
        if isinstance(self.network, PlainDDPM):
            device = next(self.network.parameters()).device
            counts = self.counts(self.region)[None]
            return self.network(self.start[None].to(device), torch.tensor([500], device=device), counts)[0].cpu()
        return self(block=64)

    def tile_error(self) -> float:
        """Largest difference between single patches and the region at once; stops where that breaks a promise."""
        tiled = self(block=1)
        joint = self.joint()
        error = float((joint - tiled).abs().max())
        if not bool(joint.isfinite().all()) or (self.exact and error > TOLERANCE * max(1.0, float(joint.abs().max()))):
            raise SystemExit(f"tiles and whole region differ by {error:.1e} in a method that says they are the same")
        return error


def picture_seconds(name: str, *, demo: bool, genes: int, device: str, patches: int) -> float:
    """Seconds a megavoxel of finished picture: one pass, warm, times the steps."""
    picture = Picture(name, demo=demo, genes=genes, device=device, patches=patches)
    picture()
    begin = time.perf_counter()
    picture()
    if device == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - begin) * METHODS[name] / picture.megavoxels


def _resident() -> float:
    """Peak resident memory of this process, GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def measured(work: Callable[[], float], device: str) -> tuple[float, float]:
    """Seconds and peak memory in GB: above what is loaded (CPU, in a process of its own), or of the allocator (GPU)."""
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        seconds = work()
        return seconds, torch.cuda.max_memory_allocated() / 1e9
    receiver, sender = multiprocessing.Pipe(duplex=False)

    def child() -> None:
        before = _resident()
        sender.send((work(), _resident() - before))

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join()
    if process.exitcode:
        raise SystemExit(f"a measurement ended with code {process.exitcode}")
    seconds, memory = receiver.recv()
    return seconds, memory


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        description="Seconds and memory of a training step and of a generated megavoxel, for every method.",
        epilog="example: python benchmarks/baselines.py --quick",
    )
    made.add_argument("--quick", action="store_true", help="fewer turns and a smaller region: under 3 minutes")
    made.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    made.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), help="default: all")
    made.add_argument("--tiny", action="store_true", help=argparse.SUPPRESS)  # for the tests
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning.*")
    demo = options.device == "cpu"
    genes = 5 if options.tiny else 60 if demo else 229
    size, steps = (1, 1) if options.tiny else (2, 2) if options.quick and demo else (8, 16)
    patches = 4 if demo else 16
    turns = 1 if options.tiny or options.quick else 3
    common = {"demo": demo, "genes": genes, "device": options.device}
    device = torch.cuda.get_device_name() if options.device == "cuda" else f"CPU {platform.machine()}"
    print(f"device {device}, {torch.get_num_threads()} threads; torch {torch.__version__}; float32; {genes} genes")
    print(f"recipes {'at demo size' if demo else 'as published'}; batch {size}, {steps} steps a turn, {turns} turns\n")
    rows: dict[str, dict[str, Any]] = {}
    for name in options.methods:  # in a process of its own: the parent that forks must not have run a network

        def check(name: str = name) -> float:
            picture = Picture(name, **common, patches=max(4, patches // 2))
            print(f"{name:<18} {picture.parameters:>12,} weights; tiled and joint differ by {picture.tile_error():.1e}"
                  f"{'' if picture.exact else ' (not exact)'}", flush=True)  # fmt: skip
            return float(picture.parameters)

        rows[name] = {"parameters": int(measured(check, options.device)[0]), "train": [], "picture": []}
    for _ in range(turns):
        for name, row in rows.items():
            row["train"].append(
                measured(partial(train_seconds, name, **common, size=size, steps=steps), options.device)
            )
            row["picture"].append(measured(partial(picture_seconds, name, **common, patches=patches), options.device))
    print("\nmethod                 step s (min-max)       step GB   steps   megavoxel s (min-max)    GB")
    for name, row in rows.items():
        for kind in ("train", "picture"):
            seconds, memory = zip(*row.pop(kind), strict=True)
            row |= {f"{kind}_s": statistics.median(seconds), f"{kind}_s_range": [min(seconds), max(seconds)]}
            row[f"{kind}_gb"] = max(memory)
        print(
            f"{name:<18} {row['train_s']:>9.3f} ({row['train_s_range'][0]:.3f}-{row['train_s_range'][1]:.3f}) "
            f"{row['train_gb']:>9.2f} {METHODS[name]:>7} {row['picture_s']:>10.2f} "
            f"({row['picture_s_range'][0]:.2f}-{row['picture_s_range'][1]:.2f}) {row['picture_gb']:>7.2f}"
        )
    rivals = [row["picture_s"] for name, row in rows.items() if METHODS[name] > 1 and name != "tera_mind"]
    ratio = rows["tera_mind"]["picture_s"] / min(rivals) if "tera_mind" in rows and rivals else None
    if ratio is not None:
        print(f"\ngeneration, tera_mind over the fastest rival that denoises: {ratio:.2f}")
    result = {
        "benchmark": "baselines", "ratio": ratio, "rows": rows, "device": device, "threads": torch.get_num_threads(),
        "torch": torch.__version__, "python": platform.python_version(), "batch": size, "genes": genes, "turns": turns,
    }  # fmt: skip
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
