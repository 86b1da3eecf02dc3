"""`tera-mind compare`: methods or runs in one table, tested on the same patches, and the paper's figures redrawn."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from tera_mind.errors import InputError

if TYPE_CHECKING:
    from rich.table import Table

    from tera_mind.report.comparison.places import Aligned
    from tera_mind.report.comparison.runs import Entry
    from tera_mind.report.comparison.scores import Comparison
    from tera_mind.report.comparison.style import Drawing

#: bootstrap resamples of a comparison
RESAMPLES = 10_000
FORMATS = {"md": "compare.md", "csv": "compare.csv", "latex": "compare.tex"}

_DESCRIPTION = """\
Put evaluations side by side. A RUN is a folder that `tera-mind evaluate` wrote, or a run that holds one as
`evaluation`; RUN:METHOD takes one of its controls (run:shuffled). One RUN alone compares its own methods.

Scores by patch, window or region are tested on the places that all runs share: same section and box, of one brain,
pixel size and patch size. Every line is tested against the reference; neighbouring places count as one. Writes
compare.md, compare.csv (a line for each score, with its test), compare.tex (booktabs), comparison.json and figures/
as PNG and PDF."""

_EPILOG = """\
examples:
  tera-mind compare run/evaluation --out comparison
  tera-mind compare ours rival run:ridge --names Ours Rival Ridge --reference Ours --out comparison
  tera-mind compare --group 5=a0,a1,a2 --group 15=b0,b1,b2 --out steps      # mean and spread over seeds"""


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tera-mind compare",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("runs", nargs="*", metavar="RUN", help="evaluation folder, or RUN:METHOD")
    parser.add_argument(
        "--group",
        action="append",
        default=[],
        metavar="NAME=RUN,RUN,...",
        help="runs that differ in their seed alone, as one line: mean and spread (may be repeated)",
    )
    parser.add_argument(
        "--names", nargs="+", metavar="NAME", help="one name a RUN (default: what their paths differ in)"
    )
    parser.add_argument("--method", default="generated", help="method taken of a RUN (default: %(default)s)")
    parser.add_argument(
        "--reference", metavar="NAME", help="the line that all others are tested against (default: first)"
    )
    parser.add_argument(
        "--format",
        default=",".join(FORMATS),
        metavar="LIST",
        help="which tables to write, of %(default)s (default: all; comparison.json is always written)",
    )
    parser.add_argument("--resamples", type=int, default=RESAMPLES, help="bootstrap resamples (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the resampling (default: %(default)s)")
    parser.add_argument(
        "--wandb", metavar="PROJECT", help="log tables, figures and scalars to this W&B project as well"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write into")
    parser.add_argument("--dry-run", action="store_true", help="say what would be compared and written, and stop")
    return parser


def run(arguments: Sequence[str]) -> int:
    options = build_parser().parse_args(arguments)
    formats = parse_formats(options.format)
    if options.resamples < 1 or options.seed < 0:
        raise InputError("--resamples must be at least 1 and --seed at least 0")
    groups = parse_groups(options.group)
    # scipy and matplotlib take seconds to import: not before the arguments are known to be right
    from tera_mind.report.comparison.places import Aligned
    from tera_mind.report.comparison.runs import load_entries

    entries = load_entries(options.runs, groups, options.names, options.method)
    reference = find_reference(entries, options.reference)
    aligned = Aligned(entries)
    if options.dry_run:
        print(plan_words(entries, reference, aligned, options.out, formats))
        return 0
    if options.wandb is not None:
        from tera_mind.report.comparison.tracking import check_wandb

        check_wandb()
    comparison, drawings = compare(
        entries, reference, aligned, options.out, formats, resamples=options.resamples, seed=options.seed
    )
    if options.wandb is not None:
        from tera_mind.report.comparison.tracking import log_comparison

        log_comparison(comparison, drawings, options.wandb, options.out)
    return 0


def compare(
    entries: Sequence[Entry],
    reference: str,
    aligned: Aligned,
    out: Path,
    formats: Sequence[str] = tuple(FORMATS),
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
    notes: Sequence[str] = (),
) -> tuple[Comparison, list[Drawing]]:
    """Measure, test, draw, write into `out` and print; `notes` are sentences that stand before the comparison's own.

    Raises `InputError` where `out` cannot be written, before anything is computed.
    """
    writable(out)
    from tera_mind.report.comparison.figures import draw_all
    from tera_mind.report.comparison.text import how_tested

    found = measure(entries, reference, aligned, resamples, seed)
    found = replace(found, notes=(*notes, *found.notes))
    drawings = draw_all(found, aligned)
    write(out, found, drawings, formats)
    print_table(found)
    for note in (*found.notes, how_tested(found)):
        print(note)
    print(f"comparison: {out / 'comparison.json'}")
    return found, drawings


def parse_formats(text: str) -> list[str]:
    found = [name.strip() for name in text.split(",") if name.strip()]
    if not found or set(found) - FORMATS.keys():
        raise InputError(f"--format takes a list of {', '.join(FORMATS)}, got {text!r}")
    return found


def parse_groups(texts: Sequence[str]) -> dict[str, list[str]]:
    """NAME=RUN,RUN,... arguments as name -> runs."""
    groups: dict[str, list[str]] = {}
    for text in texts:
        name, equals, members = text.partition("=")
        runs = [member for member in members.split(",") if member]
        if not (name and equals and runs):
            raise InputError(f"--group needs NAME=RUN,RUN,..., got {text!r}")
        if name in groups:
            raise InputError(f"two groups are called {name}: give distinct names")
        groups[name] = runs
    return groups


def find_reference(entries: Sequence[Entry], name: str | None) -> str:
    """The line that others are tested against: by its name, or by its method where only one line has it."""
    competing = [entry.name for entry in entries if entry.competes]
    if not competing:
        raise InputError("only real tissue was named: give at least one generated run or control")
    if name is None or name in competing:
        return name or competing[0]
    of_method = [entry.name for entry in entries if entry.competes and entry.method == name]
    if len(of_method) != 1:
        raise InputError(f"no line {name!r} to be the reference, there are {', '.join(competing)}")
    return of_method[0]


def writable(out: Path) -> None:
    """Make the folder, or say in one line why that fails, before anything is computed."""
    try:
        (out / "figures").mkdir(parents=True, exist_ok=True)
        probe = out / f".{out.name}.probe"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise InputError(f"cannot write into {out} ({error.strerror}): name another folder with --out") from None


def measure(entries: Sequence[Entry], reference: str, aligned: Aligned, resamples: int, seed: int) -> Comparison:
    """Scores on the shared places where a run has others or several seeds, and all tests against the reference."""
    from tera_mind.metrics.compare import estimate, holm, paired_test, spatial_cells
    from tera_mind.report.comparison.scores import Comparison, Figure, Key, Test, score_table

    measured: dict[Key, Figure] = {}
    tests: list[Test] = []
    seeds = {entry.name: len(entry.runs) for entry in entries}
    for sample in aligned.samples:
        cells = spatial_cells(sample.boxes)
        for name, values in sample.values.items():
            if seeds[name] > 1 or name not in sample.own:
                found, spread = estimate(values, cells, sample.real, resamples=resamples, seed=seed)
                measured[Key(name, sample.metric, sample.stain)] = Figure(*found, spread)
            if name == reference or reference not in sample.values:
                continue
            test = paired_test(
                values,
                sample.values[reference],
                cells,
                sample.real,
                better=sample.better,
                resamples=resamples,
                seed=seed,
            )
            tests.append(
                Test(
                    name,
                    reference,
                    sample.metric,
                    sample.stain,
                    test.difference,
                    test.low,
                    test.high,
                    test.p,
                    None,
                    test.p_bootstrap,
                    test.test,
                    test.effect,
                    test.n,
                    test.cells,
                    test.reason,
                )
            )
    corrected = [replace(test, p_holm=p) for test, p in zip(tests, holm([t.p for t in tests]), strict=True)]
    scores = score_table(entries, measured)
    return Comparison(tuple(entries), reference, tuple(scores), tuple(corrected), tuple(aligned.notes))


def plan_words(entries: Sequence[Entry], reference: str, aligned: Aligned, out: Path, formats: Sequence[str]) -> str:
    """What a run without --dry-run would do, a line each."""
    from tera_mind.report.comparison.places import PLACES

    width = max(len(entry.name) for entry in entries)
    lines = ["would compare"]
    for entry in entries:
        role = " (reference)" if entry.name == reference else "" if entry.competes else " (not in competition)"
        runs = ", ".join(str(run.path) for run in entry.runs)
        lines.append(f"  {entry.name:<{width}}  {entry.method} of {runs}{role}")
    lines.append(
        "on " + ", ".join(f"{len(b):,} {PLACES[k]}" for k, b in aligned.boxes.items() if len(b)) + " that all share"
    )
    files = [*(FORMATS[name] for name in formats), "comparison.json", "figures/"]
    lines.append(f"and write {', '.join(files)} into {out}")
    return "\n".join([*lines, *aligned.notes])


def write(out: Path, comparison: Comparison, drawings: Sequence[Drawing], formats: Sequence[str]) -> None:
    """All files, each whole or not at all; comparison.json last, so that its presence means that all are there."""
    from tera_mind.formats.atomic import atomic_file
    from tera_mind.report.comparison.latex import latex
    from tera_mind.report.comparison.text import markdown, tidy_csv, to_json

    try:
        for drawing in drawings:
            for ending, data in (("png", drawing.png), ("pdf", drawing.pdf)):
                with atomic_file(out / "figures" / f"{drawing.name}.{ending}") as path:
                    path.write_bytes(data)
        pictures = [(f"figures/{drawing.name}.png", drawing.caption) for drawing in drawings]
        texts = {"md": lambda: markdown(comparison, pictures), "csv": lambda: tidy_csv(comparison)}
        texts["latex"] = lambda: latex(comparison)
        files = [(FORMATS[name], texts[name]()) for name in formats] + [("comparison.json", to_json(comparison))]
        for name, text in files:
            with atomic_file(out / name) as path:
                path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot write into {out} ({error}): name another folder with --out") from None


def print_table(comparison: Comparison) -> None:
    """The table at its full width; on a screen that is narrower, in parts, the reference beside every part."""
    from rich.console import Console
    from rich.measure import Measurement

    # a file is as wide as it needs to be
    full = Console(width=10_000)
    if not sys.stdout.isatty():
        full.print(terminal_table(comparison, comparison.names))
        return
    console, rest = Console(), [name for name in comparison.names if name != comparison.reference]
    while True:
        count = len(rest)
        while True:
            table = terminal_table(comparison, [comparison.reference, *rest[:count]])
            if count <= 1 or Measurement.get(full, full.options, table).maximum <= console.width:
                break
            count -= 1
        console.print(table)
        rest = rest[count:]
        if not rest:
            return


def terminal_table(comparison: Comparison, names: Sequence[str]) -> Table:
    """Metrics down, lines across; the best bold, the second underlined, and whether it differs from the reference."""
    from rich.table import Table
    from rich.text import Text

    from tera_mind.report.comparison.scores import printed
    from tera_mind.report.comparison.text import label, mark

    table = Table(title="Comparison", caption="± half of the 95 % interval", header_style="bold")
    table.add_column("metric", min_width=24)
    table.add_column("stain")
    for name in names:
        table.add_column(Text(name), justify="right")
    for group, pairs in comparison.rows():
        table.add_section()
        table.add_row(Text(group, style="bold dim"))
        for metric, stain in pairs:
            first = next(s for name in comparison.names if (s := comparison.score(name, metric, stain)) is not None)
            scores = [comparison.score(name, metric, stain) for name in names]
            cells = []
            for score in scores:
                value, half = ("", "") if score is None else printed(score.value, score.half)
                style = "" if score is None else {1: "bold green", 2: "underline"}.get(score.rank, "")
                cell = Text(value, style=style)
                cell.append(f" ±{half}" if half else "", style="not bold not underline dim")
                cell.append(f" {sign}" if score is not None and (sign := mark(comparison, score)) else "")
                cells.append(cell)
            table.add_row(Text(label(metric, first.better, first.unit)), Text(stain), *cells)
    return table
