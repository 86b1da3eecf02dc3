"""`tera-mind ingest`: instrument output in, a brain store out."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from tera_mind.cli.ingest_options import build_parser, settings_of
from tera_mind.cli.inspect import describe
from tera_mind.cli.progress import track
from tera_mind.errors import InputError
from tera_mind.formats.brain import Brain, Section
from tera_mind.ingest.check import Placing, check, read_sections
from tera_mind.ingest.faults import Faults
from tera_mind.ingest.harmonise import GeneNames, harmonise, read_symbols
from tera_mind.ingest.pipeline import check_inputs, ingest
from tera_mind.ingest.placing import Canvas, place
from tera_mind.ingest.plan import plan_ingest
from tera_mind.ingest.registry import READERS
from tera_mind.ingest.sections_table import SectionsTable
from tera_mind.ingest.source import Reader
from tera_mind.ingest.tasks import cores

#: share of transcripts outside the image from which a warning is printed
_WORTH_A_WARNING = 0.01
#: pixels of all images from which several processes pay for their start
_WORTH_A_CLUSTER = 2**28
_MISPLACED = ("outside the image", "outside the canvas")
#: reasons for which a row is unusable, rather than left out by a rule
_UNUSABLE = ("no position", "position beyond 10 m")


def run(arguments: Sequence[str]) -> int:
    """Ingest the folders and print what came of it; or, with --check or --dry-run, what would come of it."""
    options = build_parser().parse_args(arguments)
    _make_absolute(options)
    if options.check:
        return _check(options)
    canvas = _canvas(options, _table(options))
    if options.dry_run:
        _print_plan(canvas, options.out)
        return 0
    brain = ingest(
        canvas,
        options.out,
        genes=options.genes,
        ranges=dict(options.range),
        max_outside=options.max_outside,
        workers=_workers(options.workers, canvas),
        scheduler=options.scheduler,
        overwrite=options.overwrite,
        progress=track,
        say=lambda line: print(line, file=sys.stderr),
    )
    print(describe(brain.path).text())
    for line in [*canvas.notes, *_warnings(brain, options.genes)]:
        print(f"warning: {line}", file=sys.stderr)
    print(f"next: tera-mind shards {brain.path}")
    return 0


def _make_absolute(options: argparse.Namespace) -> None:
    """Workers run in other folders than this process, and what is read has one name from wherever it is asked for."""
    options.folders = [folder.absolute() for folder in options.folders]
    for name in ("sections", "gene_names"):
        path = getattr(options, name)
        setattr(options, name, None if path is None else path.absolute())


def _reader(options: argparse.Namespace) -> Reader:
    return READERS[options.format](**settings_of(options))


def _table(options: argparse.Namespace) -> SectionsTable | None:
    if options.sections is None:
        return None
    if options.z_um is not None:
        raise InputError("--sections and --z-um both say where the sections lie; leave --z-um out")
    return SectionsTable.read(options.sections)


def _canvas(options: argparse.Namespace, table: SectionsTable | None) -> Canvas:
    """Read the folders' headers and put their sections onto the canvas."""
    names = _gene_names(options)
    sources = read_sections(_reader(options), options.folders, _positions(options))
    return _placing(options, table)(harmonise(sources, names))


def _positions(options: argparse.Namespace) -> tuple[float, ...]:
    """Where every folder's first section lies: z in um."""
    count = len(options.folders)
    if not 0 < options.section_um < math.inf:
        raise InputError(f"--section-um is a distance above 0, got {options.section_um:g}")
    positions: tuple[float, ...] = options.z_um or tuple(index * options.section_um for index in range(count))
    if len(positions) != count:
        raise InputError(f"--z-um needs one position a folder: {count} folders, {len(positions)} positions")
    return positions


def _gene_names(options: argparse.Namespace) -> GeneNames:
    symbols = {} if options.gene_names is None else read_symbols(options.gene_names)
    return GeneNames(symbols, drop=tuple(options.drop_genes))


def _placing(options: argparse.Namespace, table: SectionsTable | None) -> Placing:
    """How the options put sections onto a canvas."""
    return partial(
        place,
        pixel_um=options.pixel_um,
        canvas_um=options.canvas_um,
        canvas_px=options.canvas_px,
        table=table,
        missing=options.missing,
    )


def _workers(wanted: int | None, canvas: Canvas) -> int:
    """As many processes as are asked for; else one a core, for what is large enough."""
    if wanted is not None:
        if wanted < 1:
            raise InputError(f"--workers must be at least 1, got {wanted}")
        return wanted
    height, width = canvas.shape
    pixels = height * width * sum(len(placed.source.stains) for placed in canvas.sections)
    return cores() if pixels >= _WORTH_A_CLUSTER else 1


def _check(options: argparse.Namespace) -> int:
    """Print every fault of the folders, the table and how they fit; 1 when there is one."""
    faults = Faults()
    rules: dict[str, Any] = {}
    with faults.catching(options.sections or Path()):
        rules["placing"] = _placing(options, _table(options))
    with faults.catching(Path()):
        rules["positions_um"] = _positions(options)
    with faults.catching(options.gene_names or Path()):
        rules["names"] = _gene_names(options)
    if len(faults):
        rules.pop("placing", None)
    report = check(
        _reader(options),
        options.folders,
        **rules,
        genes=options.genes,
        max_outside=options.max_outside,
        one_pixel_size=options.pixel_um is None and options.sections is None,
        progress=track,
    )
    if report.canvas is not None:
        with faults.catching(options.folders[0]):
            check_inputs(report.canvas, dict(options.range))
        height, width = report.canvas.shape
        size = f"{height} x {width} px of {report.canvas.pixel_um:.4g} um"
        print(f"canvas of {size}, {len(report.canvas.sections)} sections")
        for note in report.canvas.notes:
            print(f"note: {note}")
    report = replace(report, faults=(*faults, *report.faults))
    print(report.text())
    return 1 if report.faults else 0


def _print_plan(canvas: Canvas, out: Path) -> None:
    plan = plan_ingest(canvas, out)
    height, width = canvas.shape
    print(f"{out}: {len(plan.sections)} sections of {height} x {width} px at {canvas.pixel_um:.4g} um")
    print(f"stains: {', '.join(plan.stains)}")
    for section in plan.sections:
        state = "empty" if section.missing else "read already" if section.read else "to be read"
        print(f"  {section.name}  z {section.z_um:g} um  about {section.transcripts:,} transcripts  {state}")
    print(f"about {plan.transcripts:,} transcripts in all")
    print(f"space: up to {plan.bytes_needed / 1e9:.3g} GB needed, {plan.bytes_free / 1e9:.3g} GB free")
    for note in canvas.notes:
        print(f"note: {note}")
    print("dry run: nothing was written")


def _warnings(brain: Brain, rule: str) -> list[str]:
    """What the user should know of the sections, counted."""
    lines = []
    for section in brain.sections:
        outside = section.dropped.get("outside the image", 0)
        total = section.transcripts + sum(section.dropped.get(reason, 0) for reason in _MISPLACED)
        if outside > _WORTH_A_WARNING * total:
            lines.append(
                f"{outside / total:.0%} of the transcripts of section {section.name} lie outside its image and were "
                "dropped; do image and transcripts belong together?"
            )
        cut = section.dropped.get("outside the canvas", 0)
        if cut:
            lines.append(f"{cut:,} transcripts of section {section.name} lie beyond the canvas and were cut off")
        lines += [f"section {section.name}: {notice}" for notice in section.source.get("notices", [])]
        if rule != "same":
            lines += _other_panel(section, rule)
    return lines + _unusable(brain.sections)


def _other_panel(section: Section, rule: str) -> list[str]:
    """What a panel of its own costs a section."""
    lost, absent = section.dropped.get("gene not in the panel", 0), section.source.get("genes_absent", 0)
    if rule == "shared":
        return [f"section {section.name}: {lost:,} transcripts of genes that not all sections have"] if lost else []
    return [f"section {section.name} has no transcript of {absent:,} of the brain's genes"] if absent else []


def _unusable(sections: Sequence[Section]) -> list[str]:
    """Rows that no transcript could be made of: a line a reason, with the place of the first."""
    lines = []
    for reason in _UNUSABLE:
        having = [section for section in sections if section.dropped.get(reason)]
        if having:
            first = having[0]
            rows = first.source.get("dropped_rows", {}).get(reason)
            where = f", first in {first.name}" + (f" rows {rows[0]}-{rows[1]}" if rows else "")
            lines.append(f"{sum(s.dropped[reason] for s in having):,} transcripts left out: {reason}{where}")
    return lines
