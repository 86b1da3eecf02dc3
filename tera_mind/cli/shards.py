"""`tera-mind shards`: cut brain stores into WebDataset shards for training and validation."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from tera_mind.cli.progress import track
from tera_mind.formats.brain import Brain
from tera_mind.formats.places import Place
from tera_mind.formats.shard_plan import ShardPlan, plan_shards
from tera_mind.formats.shards import write_shards
from tera_mind.geometry import IMAGE_SECTIONS

_DESCRIPTION = """\
Cut brain stores into slabs - windows with a margin, from which training takes random crops - and write them as
WebDataset tar shards with a manifest.

Training and validation come from regions of the canvas that share no pixel. A region is y0:y1,x0:x1 in pixels or
percent: ':,:60%' is the left 60 %. Without regions everything is for training."""

_EPILOG = """\
example:
  tera-mind shards brain.zarr --train ':,:60%' --val ':,60%:' --gap-px 64 --out shards
  tera-mind fit -c experiments/demo.yaml --data.shards shards"""


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tera-mind shards",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("brains", nargs="+", metavar="BRAIN.zarr", help="brain stores, made by `tera-mind ingest`")
    add("--out", required=True, metavar="DIR", type=Path, help="folder of shards to write, whole or not at all")
    add("--train", metavar="BOX", help="region of every brain to train on (default: everything if no --val is given)")
    add("--val", metavar="BOX", help="region of every brain to validate on (default: none)")
    add(
        "--gap-px", type=int, default=0, metavar="N", help="pixels kept free between the regions (default: %(default)s)"
    )
    add(
        "--core-px",
        type=int,
        default=256,
        metavar="N",
        help="corners of crops a slab holds, N x N (default: %(default)s)",
    )
    add(
        "--crop-px",
        type=int,
        default=128,
        metavar="N",
        help="largest crop that training may cut: two small patches (default: %(default)s)",
    )
    add(
        "--gene-sections",
        type=int,
        default=1,
        choices=sorted(IMAGE_SECTIONS),
        help="sections of genes a sample sees; 1, 2, 4, 8 image sections come with them (default: %(default)s)",
    )
    add("--common-genes", action="store_true", help="keep the genes that all brains have (default: panels must agree)")
    add("--shard-mb", type=float, default=64.0, metavar="MB", help="size of a tar (default: %(default)s)")
    add("--skip-empty", action="store_true", help="leave out slabs without tissue")
    add("--overwrite", action="store_true", help="replace DIR if it is there")
    add("--dry-run", action="store_true", help="say what would be written, write nothing")
    return parser


def run(arguments: Sequence[str]) -> int:
    """Plan, then write or only describe. Exit code 0; user errors are raised as `TeraMindError`."""
    options = build_parser().parse_args(arguments)
    brains = [Brain.open(path) for path in options.brains]
    plan = plan_shards(
        brains,
        train=options.train,
        val=options.val,
        gap_px=options.gap_px,
        core_px=options.core_px,
        crop_px=options.crop_px,
        gene_sections=options.gene_sections,
        skip_empty=options.skip_empty,
        common_genes=options.common_genes,
    )
    _describe(plan, brains)
    if options.dry_run:
        print("dry run: nothing was written")
        return 0

    def progress(places: Iterable[Place]) -> Iterator[Place]:
        return track(places, "slabs")

    manifest = write_shards(
        brains, options.out, plan, shard_mb=options.shard_mb, overwrite=options.overwrite, progress=progress
    )
    shards = sum(len(split.samples.shards) for split in manifest.splits.values())
    print(f"{shards} shards in {options.out}; train with: tera-mind fit --data.shards {options.out}")
    return 0


def _describe(plan: ShardPlan, brains: Sequence[Brain]) -> None:
    for name, split in plan.splits.items():
        regions = "; ".join(f"{brain.path.name} {box}" for brain, box in zip(brains, split.regions, strict=True))
        print(f"{name}: {len(split.places)} slabs of {regions}")
    megabytes = plan.image_bytes(len(brains[0].stains)) / 1e6
    for brain in brains:
        print(f"{brain.path.name}: {len(plan.genes)} of its {len(brain.genes)} genes are in the panel")
    print(
        f"panel of {len(plan.genes)} genes, {plan.gene_sections} gene sections, "
        f"{megabytes:.1f} MB of images before transcripts"
    )
