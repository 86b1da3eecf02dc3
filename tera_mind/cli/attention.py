"""`tera-mind attention`: gene-gene attention of a gene set, as maps, figures and a table of partners."""

from __future__ import annotations

import argparse
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tera_mind.errors import InputError

if TYPE_CHECKING:
    from tera_mind.analysis.attention import AttentionJob, Unit
    from tera_mind.analysis.partners import Partner
    from tera_mind.formats.maps import Map
    from tera_mind.metrics.partial import PartialStore
    from tera_mind.model.checkpoint import Checkpoint

#: what the command writes into its folder, and so may replace there
MAP, PARTNERS, BLOCKS, SUMMARY, PAGE, WORK = (
    "attention.zarr", "partners.csv", "partners.npz", "summary.json", "summary.html", ".work",
)  # fmt: skip
_FIGURES = ("maps.png", "joint.png", "neighbours.png", "partners.png")
_FORMAT = "attention"

_DESCRIPTION = """\
Read the gene-gene attention of a trained network over a brain: for a set of genes, one number a patch and section,
beside the expression of each gene and the product of expressions, which need no network. An attention map that only
restates expression is seen as such. Written as a map volume for `tera-mind view`, with figures and a summary."""

_EPILOG = """\
shipped pathways: GLUT (Slc17a6, Slc17a7), DOPA (Nr4a2, Th), BLOD (Cldn5, Aqp4); your own: FILE.yaml with lines such as
  MYEL: [Mog, Sox10, St18]

examples:
  tera-mind attention --checkpoint main.ckpt --brain brain.zarr --pathway GLUT --out glut
  tera-mind attention --checkpoint main.ckpt --brain brain.zarr --genes Mog,Sox10 --region ':,60%:' --pairwise --out mog
  tera-mind attention --checkpoint main.ckpt --brain brain.zarr --pathway BLOD --partners Cldn5 --out vessels
  tera-mind attention --checkpoint main.ckpt --brain other.zarr --pathway GLUT --out glut2 --compare glut
  tera-mind view brain.zarr glut/attention.zarr

An interrupted run goes on where it stopped when the same command is given again."""


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tera-mind attention",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--checkpoint", type=Path, required=True, help="checkpoint whose network is read")
    add("--brain", type=Path, required=True, help="brain store whose genes it sees")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--pathway", metavar="NAME", help="a named set of genes")
    which.add_argument("--genes", metavar="A,B", help="a set of genes, two or more")
    add("--pathways", type=Path, metavar="FILE.yaml", help="named sets of your own, beside the shipped ones")
    add("--out", type=Path, required=True, metavar="FOLDER", help="folder for map, figures, tables and summary")
    add("--region", default=None, help="y0:y1,x0:x1 in pixels, percent, um or mm (default: the canvas)")
    add("--sections", default=None, help="sections to map, for example 0:4 or 3 (default: all)")
    add("--pairwise", action="store_true", help="also previous-current and current-next: all other sections masked")
    add("--partners", metavar="GENE", help="also the genes that this gene attends to most, with significance")
    add("--permutations", type=int, default=999, help="draws of the partners' spatial null (default: %(default)s)")
    add("--compare", type=Path, nargs="+", default=[], metavar="FOLDER", help="earlier outputs, for reproducibility")
    add("--figure-section", type=int, default=None, help="section shown in the figures (default: the middle one)")
    add("--allow-missing-genes", action="store_true", help="take genes outside the set that the brain lacks as zero")
    add("--seed", type=int, default=0, help="seed of permutations and resampling (default: %(default)s)")
    add("--workers", type=int, default=0, help="processes (default: one a core where there is work enough)")
    add("--overwrite", action="store_true", help="replace what an earlier run left in the folder")
    add("--dry-run", action="store_true", help="check everything, time one block, say how long the whole takes")
    return parser


def run(arguments: Sequence[str]) -> int:
    options = build_parser().parse_args(arguments)

    import tera_mind.baselines  # noqa: F401 - so that checkpoints of other methods are known, and refused by name
    from tera_mind.formats.brain import Brain
    from tera_mind.model.checkpoint import load_checkpoint

    _check_out(options)
    name, genes = _set(options)
    brain, checkpoint = Brain.open(options.brain), load_checkpoint(options.checkpoint)
    job = make_job(options, checkpoint, brain, genes)
    shown = _figure_section(options.figure_section, job)
    # a process takes seconds to start, so few bands are done in this one
    workers = options.workers or max(1, min(len(os.sched_getaffinity(0)), len(job.units) // 8))
    rows, columns = job.grid
    print(
        f"{name}: {', '.join(job.genes)} of {len(job.panel)} genes; {rows} x {columns} patches of {job.patch_px} px, "
        f"sections {', '.join(map(str, job.sections))}; {len(job.units)} bands, {workers} worker(s)",
        flush=True,
    )
    if options.dry_run:
        print(dry_run(job, workers))
        return 0
    store = compute(job, checkpoint, options.out, workers)
    attention = conclude(job, store, options, name, checkpoint, shown)
    shutil.rmtree(options.out / WORK, ignore_errors=True)
    print(f"map: {attention.path}  (tera-mind view {options.brain} {attention.path})")
    print(f"summary: {options.out / SUMMARY}; figures: {options.out / PAGE}")
    return 0


def _check_out(options: argparse.Namespace) -> None:
    """The output folder is new, empty, one to go on with, or to be replaced; never an input or a store."""
    from tera_mind.cli.attention_compare import check_comparable
    from tera_mind.formats.replaceable import check_apart, check_folder, check_replaceable, check_summary

    if options.seed < 0:
        raise InputError(f"--seed must be 0 or more, got {options.seed}")
    if options.workers < 0:
        raise InputError(f"--workers must be at least 1, or 0 for one a core, got {options.workers}")
    out: Path = options.out
    check_apart(out, [options.brain, options.checkpoint, *options.compare])
    for folder in options.compare:
        check_comparable(folder)
    if not out.exists():
        return
    check_folder(out, (PARTNERS, BLOCKS, PAGE, *_FIGURES))
    check_summary(out / SUMMARY, _FORMAT)
    check_replaceable(out / MAP, ("map",), [])
    if (out / SUMMARY).exists() and not options.overwrite and not options.dry_run:
        raise InputError(f"{out} holds a finished analysis: give --overwrite or another --out")


def _set(options: argparse.Namespace) -> tuple[str, tuple[str, ...]]:
    """Name and genes of the set asked for."""
    from tera_mind.analysis.pathways import choose_pathway, read_pathways

    if options.pathway is None:
        genes = tuple(gene.strip() for gene in options.genes.split(",") if gene.strip())
        return "-".join(genes), genes
    own = {} if options.pathways is None else read_pathways(options.pathways)
    return options.pathway, choose_pathway(options.pathway, {**read_pathways(), **own})


def make_job(options: argparse.Namespace, checkpoint: Checkpoint, brain: Any, genes: tuple[str, ...]) -> AttentionJob:
    from tera_mind.analysis.attention import AttentionJob
    from tera_mind.analysis.partners import PartnerSettings
    from tera_mind.geometry import Box

    partners = None
    if options.partners is not None:
        partners = PartnerSettings(options.partners, options.permutations, options.seed)
    return AttentionJob.of(
        checkpoint,
        brain,
        genes,
        region=None if options.region is None else Box.parse(options.region, brain.canvas, brain.pixel_um),
        sections=_sections(options.sections, len(brain.sections)),
        pairwise=options.pairwise,
        partners=partners,
        allow_missing=options.allow_missing_genes,
    )


def _sections(text: str | None, count: int) -> tuple[int, ...] | None:
    if text is None:
        return None
    first, colon, last = text.partition(":")
    try:
        return tuple(range(int(first or 0), int(last or count))) if colon else (int(first),)
    except ValueError:
        raise InputError(f"--sections is a number or first:last, got {text!r}") from None


def _figure_section(asked: int | None, job: AttentionJob) -> int:
    if asked is not None and asked not in job.sections:
        raise InputError(f"--figure-section must be one of the sections mapped, {list(job.sections)}, got {asked}")
    return job.sections[len(job.sections) // 2] if asked is None else asked


def dry_run(job: AttentionJob, workers: int) -> str:
    """Time the middle band, which holds tissue if any does, and say what the whole would cost; nothing is written."""
    import time

    unit = job.units[len(job.units) // 2]
    seconds = []
    for _ in range(2):  # the first warms up
        start = time.monotonic()
        job(unit)
        seconds.append(time.monotonic() - start)
    hours = seconds[-1] * len(job.units) / min(workers, len(job.units)) / 3600
    numbers = len(job.channels) * len(job.sections) * job.grid[0] * job.grid[1]
    return (
        f"dry run: {len(job.units)} bands of about {seconds[-1]:.2f} s = {hours:.3g} h; the map takes at most "
        f"{5 * numbers / 1e9:.3g} GB; nothing was written"
    )


def compute(job: AttentionJob, checkpoint: Checkpoint, out: Path, workers: int) -> PartialStore:
    """Do the bands that are not done yet, with a bar and the remaining time."""
    from tera_mind.cli.progress import track
    from tera_mind.metrics.partial import PartialStore
    from tera_mind.metrics.pool import run_units

    store = PartialStore(out / WORK, {**job.facts(), "checkpoint": checkpoint.sha256})
    store.prepare()
    waiting = [(unit.name, unit) for unit in job.units if not store.has(unit.name)]

    def finished() -> Iterator[str]:
        todo = {name for name, _ in waiting}
        yield from (unit.name for unit in job.units if unit.name not in todo)
        yield from run_units(waiting, job, store, workers)

    for _ in track(finished(), "attention", len(job.units)):
        pass
    return store


def conclude(
    job: AttentionJob, store: PartialStore, options: argparse.Namespace, name: str, checkpoint: Checkpoint, shown: int
) -> Map:
    """Map, tables, figures and summary of finished bands; the summary comes last, so it says that all is there."""
    import numpy as np

    from tera_mind.analysis.assemble import map_attributes, partner_sums, write_attention
    from tera_mind.analysis.partners import partner_table
    from tera_mind.cli.attention_compare import compare, restates
    from tera_mind.formats.atomic import atomic_file
    from tera_mind.report.attention.page import write_figures

    def arrays(unit: Unit) -> Mapping[str, Any]:
        found: Mapping[str, Any] = np.load(store.path(unit.name), allow_pickle=False)
        return found

    out: Path = options.out
    sums = None if job.partners is None else partner_sums(job, arrays)
    table = () if job.partners is None or sums is None else partner_table(job.partners, job.panel, sums)
    # nothing is refused any more; what an earlier run left would be taken for this one's
    for old in (SUMMARY, PAGE, PARTNERS, BLOCKS, *_FIGURES):
        (out / old).unlink(missing_ok=True)
    details = {"pathway": name, "checkpoint": checkpoint.sha256}
    attributes = map_attributes(job, arrays, f"attention {name}", details)
    attention = write_attention(job, arrays, out / MAP, attributes)
    record: dict[str, Any] = {"format": _FORMAT, "version": 1, **attributes.details, "figure_section": shown}
    if sums is not None:
        record["partners_top"] = _partners(job, sums, table, out)
    record["restates"] = restates(attention, shown, options.seed)
    for row in record["restates"]:
        print(row["words"])
    record["reproducibility"] = [compare(attention, other, options.seed) for other in options.compare]
    for line in (line for found in record["reproducibility"] for line in found["lines"]):
        print(line)
    record["figures"] = write_figures(attention, shown, out, PAGE, record)
    with atomic_file(out / SUMMARY) as path:
        path.write_text(json.dumps(record, indent=1), encoding="utf-8")
    return attention


def _partners(job: AttentionJob, sums: Mapping[str, Any], table: Sequence[Partner], out: Path) -> list[dict[str, Any]]:
    """Write and print the partners' table; the ten first as plain JSON."""
    import csv
    from dataclasses import asdict, fields

    import numpy as np

    from tera_mind.analysis.partners import Partner
    from tera_mind.formats.atomic import atomic_file

    assert job.partners is not None
    with atomic_file(out / PARTNERS) as path, path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["rank", *(field.name for field in fields(Partner))])
        writer.writerows([rank, *asdict(partner).values()] for rank, partner in enumerate(table, start=1))
    with atomic_file(out / BLOCKS) as path, path.open("wb") as file:
        np.savez(
            file, gene=job.partners.gene, panel=np.array(job.panel),
            block_row=sums["block_row"], block_weight=sums["block_weight"],
        )  # fmt: skip
    print(f"partners of {job.partners.gene} (attention over uniform; q: genes permuted, spatial shift)")
    print(f"  {'gene':<12}{'ratio':>8}{'q genes':>10}{'q shift':>10}{'transcripts':>13}{'product':>10}{'r':>7}")
    for partner in table[:10]:
        correlation = "-" if partner.correlation is None else f"{partner.correlation:.2f}"
        print(
            f"  {partner.gene:<12}{partner.ratio:>8.3f}{partner.q_genes:>10.2g}{partner.q_shift:>10.2g}"
            f"{partner.expression:>13.3g}{partner.product:>10.3g}{correlation:>7}"
        )
    return [asdict(partner) for partner in table[:10]]
