"""`tera-mind generate`: checkpoint and brain in, volume out."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from tera_mind.cli.status import duration
from tera_mind.diffusion.steppers import STEPPERS, StepperName
from tera_mind.errors import InputError
from tera_mind.formats.brain import Brain
from tera_mind.formats.ome import PIXEL_TYPES
from tera_mind.formats.replaceable import check_replaceable
from tera_mind.formats.volume import GENE_TREATMENTS, is_unfinished
from tera_mind.geometry import Box, section_groups
from tera_mind.model.checkpoint import load_checkpoint
from tera_mind.model.devices import choose_device, choose_devices, choose_precision
from tera_mind.sampling.estimate import fitting, time_pass, with_fastest_patches
from tera_mind.sampling.job import Generation, block_of, default_region
from tera_mind.sampling.launch import Launch, Watch, generate, needed_bytes, plan_of
from tera_mind.sampling.ledger import FOLDER, Ledger
from tera_mind.sampling.presets import PRESETS, preset
from tera_mind.sampling.progress import Snapshot

EPILOG = """\
examples:
  tera-mind generate --checkpoint runs/demo/last.ckpt --brain brain.zarr --out volume.zarr
  tera-mind generate --checkpoint runs/demo/last.ckpt --brain brain.zarr --out right.zarr --region ':,60%:'
  tera-mind generate --checkpoint main.ckpt --brain brain.zarr --out corner.zarr --region '0um:500um,1mm:2mm'
  tera-mind generate --checkpoint main.ckpt --brain brain.zarr --out volume.zarr --workers 2 --devices 0,1
  tera-mind generate --checkpoint main.ckpt --brain brain.zarr --out volume.zarr --dry-run

The volume grows where it will be. It is cut into units that workers claim one by one; a worker that dies costs what it
did since its unit's last column of shards, no more. Give the same command again, here or on other machines, to go on or
to join in: `tera-mind status` shows what is done. The pixels depend on neither the number of workers nor on
interruptions.
"""


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="tera-mind generate",
        description="Paint the morphology of a brain, or of a region, from its genes alone.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = made.add_argument_group("what").add_argument
    add("--checkpoint", required=True, type=Path, help="checkpoint written by `tera-mind fit`")
    add("--brain", required=True, type=Path, help="brain store whose genes are used")
    add("--out", required=True, type=Path, help="volume to write (OME-Zarr)")
    add(
        "--region",
        default=None,
        help="y0:y1,x0:x1 in pixels, percent of the canvas, um or mm from its corner (default: all of it)",
    )
    add("--sections", default=None, help="sections to generate, for example 0:4, 3 or 0,2,5 (default: all)")
    add("--group", type=int, default=None, help="generate only this section group")
    add("--genes", default="as measured", choices=GENE_TREATMENTS, help="control experiments (default: as measured)")
    add("--allow-missing-genes", action="store_true", help="take genes that the brain lacks as zero")
    add(
        "--mask",
        default="tissue",
        choices=("tissue", "none"),
        help="tissue: leave out what is further than two patches from tissue (default); none: paint every patch",
    )
    add(
        "--dtype",
        default="uint8",
        choices=PIXEL_TYPES,
        help="uint8: rounded as published (default); float16: in [-1, 1], unrounded, twice the size",
    )
    add = made.add_argument_group("how well").add_argument
    names = "; ".join(f"{name}: {chosen.why}" for name, chosen in PRESETS.items())
    add("--preset", default=None, choices=tuple(PRESETS), help=f"stepper and steps by name ({names})")
    add("--steps", type=int, default=None, help="sampling steps (default: 15)")
    add("--stepper", default=None, choices=STEPPERS, help="ddim (default) and dpm++ are deterministic, ddpm adds noise")
    add("--eta", type=float, default=0.0, help="noise that ddim adds a step, 0 to 1 (default: 0)")
    add("--seed", type=int, default=0, help="seed of the noise (default: 0)")
    add("--precision", default="auto", choices=("auto", "32", "bf16"), help="auto: bf16 where the hardware has it")
    add = made.add_argument_group("on what").add_argument
    add("--device", default="auto", help="auto, cpu or cuda (default: auto)")
    add("--devices", default=None, help="GPUs that the workers take in turn, for example 0,1")
    add("--workers", type=int, default=None, help="processes on this machine (default: one a device)")
    add(
        "--join",
        type=int,
        default=1,
        metavar="N",
        help="this is one of N commands that do the volume together, such as tasks of a batch array: the plan is cut "
        "for all of them, and a command ends when there is nothing left to claim",
    )
    add("--block", default=None, help="patches along a block, such as 8 or 4x8, rows x columns (default: at most 8)")
    add("--micro-batch", type=int, default=None, help="blocks a pass (default: what suits the device, less if it must)")
    add(
        "--patches-at-once",
        type=int,
        default=None,
        help="patches through the network together (default: 4 on a CPU, on a GPU what is fastest there)",
    )
    add("--compile", action="store_true", help="compile the network, on CUDA (not yet tried on a GPU)")
    add(
        "--memory-gb",
        type=float,
        default=None,
        help="main memory a worker may take (default: its part of what is free)",
    )
    add(
        "--threads",
        type=int,
        default=None,
        help="of a worker on the CPU (default: all cores); with several workers give cores / workers. Last bits depend "
        "on it, so a volume keeps what it was begun with",
    )
    add("--shard-px", type=int, default=None, help="largest side of a shard file (default: 2048); less: smaller units")
    add(
        "--overwrite",
        action="store_true",
        help="replace an existing volume, as soon as everything is checked and work begins",
    )
    add("--dry-run", action="store_true", help="time one pass and say what all would cost; writes nothing")
    return made


def _sections(text: str | None, group: int | None, brain: Brain, gene_sections: int) -> tuple[int, ...]:
    count = brain.shape[1]
    if text is not None and group is not None:
        raise InputError("give --sections or --group, not both")
    if group is not None:
        groups = section_groups(count, gene_sections)
        if not 0 <= group < len(groups):
            raise InputError(f"the brain has section groups 0 to {len(groups) - 1}, got --group {group}")
        return tuple(z for z in groups[group].image if z < count)
    if text is None:
        return tuple(range(count))
    chosen: list[int] = []
    try:
        for part in text.split(","):
            first, colon, last = part.partition(":")
            chosen += range(int(first or 0), int(last or count)) if colon else [int(first)]
    except ValueError:
        raise InputError(f"--sections is numbers or first:last, got {text!r}") from None
    if len(set(chosen)) != len(chosen):
        raise InputError(f"--sections names a section twice: {text!r}")
    return tuple(sorted(chosen))


def _block(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(-?\d+)(?:x(-?\d+))?", text)
    if match is None:
        raise InputError(f"--block is patches, or rows x columns such as 4x8, got {text!r}")
    return int(match[1]), int(match[2] or match[1])


def _bytes(gigabytes: float) -> int:
    if not 0 < gigabytes < 2**20:
        raise InputError(f"--memory-gb is the main memory a worker may take, more than 0, got {gigabytes:g}")
    return int(gigabytes * 2**30)


def run(arguments: Sequence[str]) -> int:
    options = parser().parse_args(arguments)
    if options.out.is_symlink():  # the volume goes where the link leads, as its space is there
        options.out = options.out.resolve()
    check_replaceable(options.out, ("volume",), [options.brain, options.checkpoint])
    brain, checkpoint = Brain.open(options.brain), load_checkpoint(options.checkpoint)
    wanted = None if options.region is None else Box.parse(options.region, brain.canvas, brain.pixel_um)
    region = default_region(brain, checkpoint.info.model.patch_px, wanted)
    devices = (choose_device(options.device),) if options.devices is None else choose_devices(options.devices)
    stepper, steps = _sampler(options)
    rows, columns = block_of(region, checkpoint.info.model.patch_px) if options.block is None else _block(options.block)
    job = Generation(
        checkpoint,
        brain,
        region,
        _sections(options.sections, options.group, brain, checkpoint.info.model.gene_sections),
        options.genes,
        options.seed,
        steps,
        stepper,
        options.eta,
        rows,
        columns,
        1 if options.micro_batch is None else options.micro_batch,
        options.mask == "tissue",
        choose_precision(options.precision, devices[0]),
        options.dtype,
        options.allow_missing_genes,
        options.patches_at_once,
        options.compile,
    )
    launch = Launch(
        devices,
        len(devices) if options.workers is None else options.workers,
        options.join,
        options.overwrite,
        None if options.memory_gb is None else _bytes(options.memory_gb),
        options.shard_px,
        options.threads,
    )
    describe(job, wanted or brain.canvas)
    job = with_sizes(job, options, devices[0])
    if options.dry_run:
        return dry_run(job, launch)
    there = options.out.exists() and not is_unfinished(options.out) and not options.overwrite
    with progress_bar() as watch:
        volume = generate(job, options.out, launch, watch)
    if there:
        print(f"{options.out} is there already, complete and of the same settings: nothing was done")
    elif volume is None:
        print(f"nothing left to claim: others are at work on the rest, see tera-mind status {options.out}")
    else:
        print(f"volume (synthetic): {volume.path}  {volume.shape} (stain, section, y, x)")
    return 0


def _sampler(options: argparse.Namespace) -> tuple[StepperName, int]:
    """Stepper and steps."""
    if options.preset is None:
        return options.stepper or "ddim", 15 if options.steps is None else options.steps
    if options.steps is not None or options.stepper is not None:
        raise InputError("--preset stands for --stepper and --steps: give one or the other")
    chosen = preset(options.preset)
    return chosen.stepper, chosen.steps


def with_sizes(job: Generation, options: argparse.Namespace, device: torch.device) -> Generation:
    """The job with the sizes of a pass that were not asked for: those of the volume that it goes on with, or new ones.

    New ones suit the device and fit into its memory.
    """
    out, asked = options.out, {"micro_batch": options.micro_batch, "patches_at_once": options.patches_at_once}
    if is_unfinished(out) or (not options.overwrite and (out / FOLDER).is_dir()):
        facts = Ledger.open(out).facts
        known = {key: facts[key] for key, value in asked.items() if value is None and isinstance(facts.get(key), int)}
        return replace(job, **known)
    if options.patches_at_once is None:
        job = with_fastest_patches(job, device)
    if options.micro_batch is not None:
        return job
    wanted = replace(job, micro_batch=job.wanted_micro_batch(device))
    fits = wanted if wanted.micro_batch == 1 else fitting(wanted, device)
    if fits.micro_batch < wanted.micro_batch:
        print(
            f"out of memory with --micro-batch {wanted.micro_batch}: taken {fits.micro_batch} instead, which is noted "
            "in the volume"
        )
    return fits


@contextmanager
def progress_bar() -> Iterator[Watch]:
    """A bar over all units, with the remaining time and what the workers are at."""
    columns = (
        TextColumn("generating"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn(), TextColumn("left"),
        TimeRemainingColumn(), TextColumn("{task.fields[now]}"),
    )  # fmt: skip
    with Progress(*columns, console=Console(file=sys.stderr)) as progress:
        bar: list[int] = []

        def watch(state: Snapshot) -> None:
            now = " ".join(f"{each.task.name} {each.share:.0%}" for each in state.running[:4])
            if not bar:  # what is done already says nothing about the pace
                bar.append(progress.add_task("", total=state.total, completed=state.done, now=now))
            progress.update(bar[0], completed=state.done, now=now)  # type: ignore[arg-type]

        yield watch


def describe(job: Generation, wanted: Box) -> None:
    info, side = job.checkpoint.info, job.checkpoint.info.model.patch_px
    print(
        f"region {job.region} of {job.brain.path.name}: {job.region.height // side} x {job.region.width // side} "
        f"patches of {side} px ({side * job.brain.pixel_um:.1f} um), sections {', '.join(map(str, job.sections))}, "
        f"{len(info.genes)} genes {job.genes}, "
        f"{f'{job.steps} steps of {job.stepper}' if job.has_steps else f'one pass of {info.method}'}, seed {job.seed}"
    )
    if job.region != wanted:
        print(f"(cut from {wanted} to a whole number of patches)")
    if job.missing_genes:
        print(f"warning: {len(job.missing_genes)} genes are taken as zero: {', '.join(job.missing_genes)}")


def dry_run(job: Generation, launch: Launch) -> int:
    """Say what the plan is and what it would cost, from one timed pass; writes nothing."""
    device, workers = launch.devices[0], launch.workers * launch.share
    one = time_pass(job, device)
    plan = plan_of(job, launch)
    active = [job.domain(group).share for group in job.groups]
    seconds = plan.makespan(workers) * one.seconds
    lines = {
        "units": f"{len(plan.units)} of {len(plan.groups)} section groups, for {workers} worker(s)",
        "patches": f"{sum(active) / len(active):.1%} of them in or near tissue, the rest is left out"
        if job.masked
        else "all of them",
        "redundancy": f"{plan.redundancy:.2%} of the passes are done twice, balance {plan.balance(workers):.1%}",
        "passes": f"{plan.blocks} blocks of {job.block_rows} x {job.block_columns} patches, {one.seconds:.3f} s each "
        f"on {device.type} ({job.precision}, {job.micro_batch} at once)",
        "arithmetic": f"{plan.flop:.2e} FLOP",
        "memory": f"{plan.memory_bytes / 2**30:.3f} GiB a worker, and the network's own"
        + (f" ({one.memory_bytes / 2**30:.2f} GiB on the GPU)" if one.memory_bytes else ""),
        "disk": f"at most {needed_bytes(job, plan) / 2**30:.3f} GiB written, {plan.bytes_read / 2**30:.3f} GiB of "
        "genes read",
        "time": f"about {duration(seconds)} with {workers} worker(s), and the pyramids",
    }
    for name, words in lines.items():
        print(f"  {name:<11} {words}")
    print("dry run: nothing was written")
    return 0
