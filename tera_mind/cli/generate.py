"""`tera-mind generate`: checkpoint and brain in, volume out."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from tera_mind.cli.devices import choose_device, choose_precision
from tera_mind.errors import InputError
from tera_mind.formats.brain import Brain
from tera_mind.formats.replaceable import check_replaceable
from tera_mind.formats.volume import GENE_TREATMENTS
from tera_mind.geometry import Box, section_groups
from tera_mind.model.checkpoint import load_checkpoint
from tera_mind.sampling.generate import Generation, default_region, generate, generate_group

EPILOG = """\
examples:
  tera-mind generate --checkpoint runs/demo/last.ckpt --brain brain.zarr --out volume.zarr
  tera-mind generate --checkpoint runs/demo/last.ckpt --brain brain.zarr --out right.zarr --region ':,60%:'
  tera-mind generate --checkpoint main.ckpt --brain brain.zarr --out volume.zarr --dry-run
  tera-mind generate --checkpoint main.ckpt --brain brain.zarr --out control.zarr --genes shuffled

An interrupted run goes on with the last unfinished section group when the same command is given again.
"""


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="tera-mind generate",
        description="Paint the morphology of a brain, or of a region, from its genes alone.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = made.add_argument
    add("--checkpoint", required=True, type=Path, help="checkpoint written by `tera-mind fit`")
    add("--brain", required=True, type=Path, help="brain store whose genes are used")
    add("--out", required=True, type=Path, help="volume to write (OME-Zarr)")
    add("--region", default=None, help="y0:y1,x0:x1 in pixels or percent of the canvas (default: all of it)")
    add("--sections", default=None, help="sections to generate, for example 0:4 or 3 (default: all)")
    add("--group", type=int, default=None, help="generate only this section group (for batch arrays)")
    add("--genes", default="as measured", choices=GENE_TREATMENTS, help="control experiments (default: as measured)")
    add("--allow-missing-genes", action="store_true", help="take genes that the brain lacks as zero")
    add("--steps", type=int, default=15, help="sampling steps (default: 15)")
    add("--stepper", default="ddim", choices=("ddim", "ddpm"), help="ddim is deterministic (default: ddim)")
    add("--seed", type=int, default=0, help="seed of the noise (default: 0)")
    add("--block", type=int, default=8, help="patches along a block of one network pass; less needs less memory")
    add("--device", default="auto", help="auto, cpu or cuda (default: auto)")
    add("--precision", default="auto", choices=("auto", "32", "bf16"), help="auto: bf16 where the hardware has it")
    add("--overwrite", action="store_true", help="replace an existing volume")
    add("--dry-run", action="store_true", help="say what would be done, and how long one pass and all would take")
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
    first, colon, last = text.partition(":")
    try:
        return tuple(range(int(first or 0), int(last or count))) if colon else (int(first),)
    except ValueError:
        raise InputError(f"--sections is a number or first:last, got {text!r}") from None


def run(arguments: Sequence[str]) -> int:
    options = parser().parse_args(arguments)
    if options.out.exists() and not options.overwrite and not options.dry_run:
        raise InputError(f"{options.out} exists: give --overwrite or another --out")
    check_replaceable(options.out, ("volume",), [options.brain, options.checkpoint])
    brain, checkpoint = Brain.open(options.brain), load_checkpoint(options.checkpoint)
    wanted = None if options.region is None else Box.parse(options.region, brain.canvas)
    region = default_region(brain, checkpoint.info.model.patch_px, wanted)
    device = choose_device(options.device)
    if options.block < 1 or options.seed < 0:
        raise InputError(f"--block must be at least 1 and --seed 0 or more, got {options.block} and {options.seed}")
    job = Generation(
        checkpoint,
        brain,
        region,
        _sections(options.sections, options.group, brain, checkpoint.info.model.gene_sections),
        options.genes,
        options.seed,
        options.steps,
        options.stepper,
        options.block,
        choose_precision(options.precision, device),
        options.allow_missing_genes,
    )
    describe(job, wanted or brain.canvas)
    if options.dry_run:
        return dry_run(job, device)
    columns = (
        TextColumn("generating"), BarColumn(), MofNCompleteColumn(), TextColumn("passes"), TimeElapsedColumn(),
        TextColumn("left"), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=Console(file=sys.stderr)) as progress:
        task = progress.add_task("", total=job.block_count)
        volume = generate(job, options.out, device, lambda: progress.advance(task))
    print(f"volume (synthetic): {volume.path}  {volume.shape} (stain, section, y, x)")
    return 0


def describe(job: Generation, wanted: Box) -> None:
    info, side = job.checkpoint.info, job.checkpoint.info.model.patch_px
    print(
        f"region {job.region} of {job.brain.path.name}: {job.region.height // side} x {job.region.width // side} "
        f"patches of {side} px ({side * job.brain.pixel_um:.1f} um), sections {', '.join(map(str, job.sections))}, "
        f"{len(info.genes)} genes {job.genes}, {job.steps} steps of {job.stepper}, seed {job.seed}"
    )
    if job.region != wanted:
        print(f"(cut from {wanted} to a whole number of patches)")
    if job.missing_genes:
        print(f"warning: {len(job.missing_genes)} genes are taken as zero: {', '.join(job.missing_genes)}")


def dry_run(job: Generation, device: torch.device) -> int:
    """Time two single passes (the first warms up) and say what the whole would cost; writes nothing."""
    side = job.checkpoint.info.model.patch_px * job.block
    region = job.region.intersect(Box(job.region.y0, job.region.y0 + side, job.region.x0, job.region.x0 + side))
    seconds = 0.0
    for _ in range(2):
        start = time.monotonic()
        trial = Generation(
            job.checkpoint, job.brain, region, job.sections, job.genes, job.seed, 1, job.stepper, job.block,
            job.precision, job.allow_missing_genes,
        )  # fmt: skip
        generate_group(trial, job.groups[0], device)
        seconds = time.monotonic() - start
    total = seconds * job.block_count
    print(
        f"dry run: {job.block_count} passes of {seconds:.2f} s each = {total / 3600:.2f} h on {device.type}, "
        f"{job.memory_bytes / 2**30:.2f} GiB of main memory; nothing was written"
    )
    return 0
