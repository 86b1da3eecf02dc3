"""`tera-mind benchmark`: how fast this machine generates and trains, what limits it, and hours for a brain."""

from __future__ import annotations

import argparse
import json
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from tera_mind import __version__
from tera_mind.diffusion.schedule import respace
from tera_mind.errors import InputError
from tera_mind.formats.atomic import atomic_file
from tera_mind.formats.brain import Brain
from tera_mind.model.checkpoint import Checkpoint, CheckpointInfo, load_checkpoint
from tera_mind.model.config import ModelConfig
from tera_mind.model.devices import choose_device, choose_precision
from tera_mind.model.fast import Precision, fast_network
from tera_mind.model.inputs import Inputs
from tera_mind.model.macs import FLOP_A_MAC, Macs, count_macs
from tera_mind.model.unet import GeneMorphUNet
from tera_mind.module import GeneMorphModule
from tera_mind.profiling import measure, summary
from tera_mind.profiling.cost import Extent, cost
from tera_mind.profiling.peak import Peak, peak
from tera_mind.sampling.counts import panel_index
from tera_mind.sampling.presets import PRESETS, preset

if TYPE_CHECKING:
    from rich.table import Table

EPILOG = """\
examples:
  tera-mind benchmark
  tera-mind benchmark --checkpoint runs/main/last.ckpt --brain brain.zarr --devices 8
  tera-mind benchmark --model published --genes 500 --generate --device cuda --json speed.json

docs/performance.md says how to read the figures.
"""
#: sizes of `--model`: the network of experiments/demo.yaml, and the published one
MODELS: dict[str, dict[str, Any]] = {
    "demo": {
        "genes": 60, "gene_sections": 1, "patch_px": 32, "bin_px": 4, "base_channels": 24, "channel_mult": (1, 2, 4),
        "res_blocks": 1, "time_channels": 128, "pyramid_channels": (32, 16), "dropout": 0.0, "margin_px": 8,
        "count_transform": "log1p", "gene_rank": 64, "gene_residual": True,
    },
    "published": {"genes": 500},
}  # fmt: skip
#: the published brain: 1,144 x 1,656 patches of 64 px, 25 groups of two sections
BRAIN_PX, BRAIN_SECTIONS = "73216x105984", 50
#: most FLOP of one pass or step on a CPU, so that the whole stays below a minute; a quarter with --quick
CPU_FLOP = 4e11
#: side of the square on which reading and writing are timed
IO_PX, QUICK_IO_PX = 1024, 256
_SIZES = ("genes", "gene_sections", "patch_px", "bin_px", "base_channels")


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="tera-mind benchmark",
        description=(
            "Measure how fast this machine generates and trains with a network, where the time goes, and how many\n"
            "hours a brain takes. Nothing is kept; times are those of this machine as busy as it is now."
        ),
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = made.add_argument
    network = made.add_argument_group("network")
    network.add_argument("--checkpoint", type=Path, default=None, metavar="FILE", help="measure this checkpoint's")
    network.add_argument("--model", choices=tuple(MODELS), default=None, help="or one of these sizes (default: demo)")
    for name in _SIZES:
        network.add_argument(f"--{name.replace('_', '-')}", type=int, default=None, metavar="N", help="another size")
    add("--device", default="auto", help="auto, cpu or cuda (default: auto)")
    add("--precision", default="auto", choices=("auto", "32", "bf16"), help="auto: bf16 where the hardware has it")
    add("--generate", action="store_true", help="measure generation only")
    add("--train", action="store_true", help="measure training only")
    add("--block", type=int, default=None, metavar="N", help="patches along a block (default: 8, less on slow CPUs)")
    add("--micro-batch", type=int, default=1, metavar="N", help="blocks a pass (default: 1)")
    add("--pairs", type=int, default=None, metavar="N", help="pairs a training step (default: 32; a CPU: at most 8)")
    brain = made.add_argument_group("the brain whose hours are wanted")
    brain.add_argument("--brain", type=Path, default=None, help="brain store: its canvas, tissue and genes")
    brain.add_argument("--size-px", default=None, metavar="HxW", help=f"or a canvas (default: {BRAIN_PX})")
    brain.add_argument("--sections", type=int, default=None, metavar="N", help=f"(default: {BRAIN_SECTIONS})")
    brain.add_argument("--devices", type=int, default=1, metavar="N", help="devices like this one (default: 1)")
    brain.add_argument("--steps", type=int, default=None, metavar="N", help="sampling steps, instead of a preset's")
    brain.add_argument("--preset", default="published", help=f"{', '.join(PRESETS)} (default: published)")
    add("--quick", action="store_true", help="smaller sizes and fewer turns: about ten seconds")
    add("--json", type=Path, default=None, metavar="FILE", help="write every figure to this file as well")
    return made


def run(arguments: Sequence[str]) -> int:
    options = parser().parse_args(arguments)
    device = choose_device(options.device)
    precision = choose_precision(options.precision, device)
    checkpoint = None if options.checkpoint is None else load_checkpoint(options.checkpoint)
    brain = None if options.brain is None else Brain.open(options.brain)
    steps = preset(options.preset).steps if options.steps is None else len(respace(options.steps).timesteps)
    config = _config(options, checkpoint, brain)
    extent = _extent(options, config, brain)
    _check_counts(options)
    figures: dict[str, Any] = {
        "format": "benchmark",
        "version": 1,
        "device": _device_words(device),
        "precision": precision,
        "threads": torch.get_num_threads(),
        "software": {"tera_mind": __version__, "torch": torch.__version__, "python": platform.python_version()},
        "model": config.to_dict() | {"parameters": _parameters(config)},
    }
    both = options.train == options.generate
    macs, highest = count_macs(config), peak(device, precision)
    if both or options.generate:
        figures |= _generation(options, config, checkpoint, brain, extent, steps, macs, device, precision, highest)
    if both or options.train:
        figures["training"] = _training(options, config, checkpoint, macs, device, precision, highest)
    _show(figures)
    if options.json is not None:
        with atomic_file(options.json) as partial:
            partial.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
        print(f"figures: {options.json}")
    return 0


def _config(options: argparse.Namespace, checkpoint: Checkpoint | None, brain: Brain | None) -> ModelConfig:
    """The network to measure; `InputError` where the options contradict each other or the brain."""
    given = {name: getattr(options, name) for name in _SIZES if getattr(options, name) is not None}
    if checkpoint is not None:
        if given or options.model is not None:
            raise InputError("a checkpoint has its own sizes: give --checkpoint, or --model and sizes")
        if brain is not None and abs(checkpoint.info.pixel_um / brain.pixel_um - 1) > 0.01:
            raise InputError(
                f"the checkpoint was trained at {checkpoint.info.pixel_um:g} um a pixel, the brain has "
                f"{brain.pixel_um:g}: ingest it again with --pixel-um {checkpoint.info.pixel_um:g}"
            )
        return checkpoint.gene_morph.config
    if brain is not None:
        if given.setdefault("genes", len(brain.genes)) != len(brain.genes):
            raise InputError(f"the brain has {len(brain.genes)} genes, got --genes {given['genes']}: leave it out")
        given["stains"] = brain.shape[0]
    return ModelConfig(**(MODELS[options.model or "demo"] | given))


def _extent(options: argparse.Namespace, config: ModelConfig, brain: Brain | None) -> Extent:
    if brain is not None:
        if options.size_px is not None or options.sections is not None:
            raise InputError("give --brain, or --size-px and --sections, not both")
        return Extent.of_brain(brain, config)
    text = BRAIN_PX if options.size_px is None else options.size_px
    match = re.fullmatch(r"(\d+)x(\d+)", text)
    if match is None:
        raise InputError(f"--size-px is HEIGHTxWIDTH in pixels, for example {BRAIN_PX}, got {text!r}")
    sections = BRAIN_SECTIONS if options.sections is None else options.sections
    return Extent.of_size(int(match[1]), int(match[2]), sections, config)


def _check_counts(options: argparse.Namespace) -> None:
    for name in ("block", "micro_batch", "pairs", "devices"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise InputError(f"--{name.replace('_', '-')} must be at least 1, got {value}")


def _fitting(wanted: Sequence[int], flop: Mapping[int, float], device: torch.device, *, quick: bool) -> int:
    """The first of some sizes whose FLOP a CPU does in time; the first of all on a GPU, the last where none fits."""
    limit = CPU_FLOP / 4 if quick else CPU_FLOP
    fitting = [size for size in wanted if device.type == "cuda" or flop[size] <= limit]
    return fitting[0] if fitting else wanted[-1]


def _generation(
    options: argparse.Namespace,
    config: ModelConfig,
    checkpoint: Checkpoint | None,
    brain: Brain | None,
    extent: Extent,
    steps: int,
    macs: Macs,
    device: torch.device,
    precision: Precision,
    highest: Peak,
) -> dict[str, Any]:
    sizes = (8, 4, 2, 1)
    flop = {n: float(FLOP_A_MAC * macs.block(n, n)) for n in sizes}
    block = options.block or _fitting(sizes, flop, device, quick=options.quick)
    network = fast_network(GeneMorphUNet(config) if checkpoint is None else checkpoint.gene_morph, device, precision)
    limit_s = 1.0 if options.quick else 5.0
    speed = measure.measure_generation(network, config, (block, block), options.micro_batch, device, limit_s)
    index: NDArray[np.int64] | None = None
    if brain is not None:
        wanted = brain.genes if checkpoint is None else checkpoint.info.genes
        index = panel_index(brain.genes, wanted, allow_missing=True)
    io = measure.measure_io(config, brain, index, QUICK_IO_PX if options.quick else IO_PX)
    patches = options.micro_batch * block**2
    generation = summary.generation_figures(speed, macs, patches, extent.patch_voxels, steps, io, highest) | {
        "block": [block, block],
        "micro_batch": options.micro_batch,
    }
    rate = 1e6 * generation["megavoxel_steps_s"]
    return {
        "generation": generation | {"bottleneck": summary.bottleneck(generation)},
        "io": {"genes_s": io.genes_s, "noise_s": io.noise_s, "write_s": io.write_s, "total_s": io.total_s},
        "brain": summary.cost_figures(cost(extent, steps, options.devices, rate, io.total_s)),
    }


def _training(
    options: argparse.Namespace,
    config: ModelConfig,
    checkpoint: Checkpoint | None,
    macs: Macs,
    device: torch.device,
    precision: Precision,
    highest: Peak,
) -> dict[str, Any]:
    patch_path = config.margin_px == 0  # the project's own recipes, which decode a margin, leave the patch path out
    pair = macs.training_pair(patch_path=patch_path)
    sizes = (32, 16, 8, 4, 2, 1) if device.type == "cuda" else (8, 4, 2, 1)
    flop = {n: float(FLOP_A_MAC * pair * n) for n in sizes}
    pairs = options.pairs or _fitting(sizes, flop, device, quick=options.quick)
    module = _module(config, checkpoint, patch_path=patch_path)
    speed = measure.measure_training(module, pairs, device, precision, 1.0 if options.quick else 5.0)
    figures = summary.training_figures(speed, pair, pairs, highest) | {"patch_path": patch_path}
    return figures | {"bottleneck": summary.bottleneck(figures)}


def _module(config: ModelConfig, checkpoint: Checkpoint | None, *, patch_path: bool) -> GeneMorphModule:
    info = CheckpointInfo(config, "epsilon", _names("gene", config.genes), _names("stain", config.stains), 1.0, {})
    if checkpoint is not None:
        info = replace(checkpoint.info, intensity_range={})
    grid = config.gene_sections, config.patch_px, config.bin_px
    inputs = Inputs(info.genes, info.stains, info.pixel_um, {}, *grid)
    sizes = {key: value for key, value in config.to_dict().items() if key not in inputs.sizes}
    return GeneMorphModule(inputs, **sizes, prediction=info.prediction, patch_weight=1.0 if patch_path else 0.0)


def _names(kind: str, count: int) -> tuple[str, ...]:
    return tuple(f"{kind}{i}" for i in range(count))


def _parameters(config: ModelConfig) -> int:
    return sum(shape.numel() for shape in GeneMorphUNet.parameter_shapes(config).values())


def _device_words(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU {torch.cpu.get_capabilities().get('cpu_name', platform.machine())}"


def _show(figures: Mapping[str, Any]) -> None:
    from rich.console import Console

    model = figures["model"]
    print(
        f"{figures['device']}, {figures['threads']} threads, {figures['precision'].replace('32', 'float32')}, torch "
        f"{figures['software']['torch']}\nnetwork: {model['parameters'] / 1e6:.1f} M parameters, {model['genes']} "
        f"genes, {model['gene_sections']} gene sections, patches of {model['patch_px']} px"
    )
    console = Console(width=120)
    for part in ("generation", "training"):
        if part in figures:
            console.print(_table(part, figures))
            print(f"{part}: {figures[part]['bottleneck']}\n")
    if "brain" in figures:
        found = figures["brain"]
        print(
            f"brain: {found['voxels'] / 1e9:.4g} gigavoxels in {found['steps']} steps on {found['devices']} such "
            f"device(s): {found['hours']:.4g} h ({found['network_hours']:.4g} h network, {found['io_hours']:.4g} h "
            f"reading, noise and writing; {100 * (found['redundancy'] - 1):.2g} % computed twice)"
        )


def _table(part: str, figures: Mapping[str, Any]) -> Table:
    from rich.table import Table

    found = figures[part]
    table = Table(title=part, title_justify="left", show_header=False)
    low, high = (1e3 * value for value in found["seconds_range"])
    if part == "generation":
        size = f"{found['patches_a_pass']} patches a pass"
        table.add_row("rate", f"{found['megavoxel_steps_s']:.4g} megavoxel-steps/s ({size})")
    else:
        paths = "both paths" if found["patch_path"] else "boundary path alone"
        words = f"{found['pairs_s']:.4g} pairs/s ({found['pairs_a_step']} a step, {paths}; data not loaded)"
        table.add_row("rate", words)
    table.add_row("a turn", f"{1e3 * found['seconds']:.1f} ms [{low:.1f}, {high:.1f}], {found['turns']} turns")
    table.add_row("useful arithmetic", f"{found['flop_s'] / 1e12:.4g} TFLOP/s")
    if found["mfu"] is None:
        table.add_row("of the peak", f"unknown: {found['peak_source']}")
    else:
        words = f"{100 * found['mfu']:.1f} % of {found['peak_flop_s'] / 1e12:.4g} TFLOP/s"
        table.add_row("of the peak (MFU)", f"{words} ({found['peak_source']})")
    for kind, share in found["share"].items():
        table.add_row(f"  {kind}", f"{100 * share:.1f} %")
    if part == "generation":
        io = figures["io"]
        words = f"genes {io['genes_s']:.3g}, noise {io['noise_s']:.3g}, writing {io['write_s']:.3g} s a megavoxel"
        table.add_row("I/O, once a voxel", words)
    return table
