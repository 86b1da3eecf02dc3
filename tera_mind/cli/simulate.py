"""`tera-mind simulate`: a small piece of tissue with its truth, in MERSCOPE layout."""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from tera_mind.cli.progress import track
from tera_mind.errors import InputError
from tera_mind.formats.atomic import atomic_file
from tera_mind.simulate.tissue import Simulation, section_name, write_section, write_settings


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tera-mind simulate",
        description=(
            "Simulate cortex with its transcripts and its DAPI and PolyT images, in the layout that MERSCOPE writes,\n"
            "one region folder a section; the truth (cells, types, nuclei) lies beside in each folder's truth/."
        ),
        epilog=(
            "example:\n"
            "  tera-mind simulate --out tissue --seed 1\n"
            "  tera-mind ingest merscope tissue/section_000 --out brain.zarr\n"
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    default = Simulation()
    add = parser.add_argument
    add("--out", type=Path, required=True, help="folder to write")
    add("--height-um", type=float, default=default.height_um, help="height of the tissue (default: %(default)g)")
    add("--width-um", type=float, default=default.width_um, help="width of the tissue (default: %(default)g)")
    add(
        "--pixel-um", type=float, default=default.pixel_um,
        help="pixel size; MERSCOPE's own is 0.108, the default suits a small model (default: %(default)g)",
    )  # fmt: skip
    add("--sections", type=int, default=default.sections, help="number of sections (default: %(default)s)")
    add("--section-um", type=float, default=default.section_um, help="distance of sections (default: %(default)g)")
    add("--genes", type=int, default=default.genes, help="size of the panel, markers first (default: %(default)s)")
    add("--seed", type=int, default=default.seed, help="seed of everything random (default: %(default)s)")
    add("--overwrite", action="store_true", help="replace what is there")
    add("--dry-run", action="store_true", help="say what would be made")
    return parser


def run(arguments: Sequence[str]) -> int:
    options = build_parser().parse_args(arguments)
    simulation = Simulation(
        options.height_um, options.width_um, options.pixel_um, options.sections, options.section_um, options.genes,
        options.seed,
    )  # fmt: skip
    height, width = simulation.pixels
    print(
        f"{simulation.sections} section(s) of {height} x {width} px at {simulation.pixel_um:g} um, {simulation.genes} "
        f"genes, about {simulation.transcripts_about:,} transcripts each"
    )
    if options.dry_run:
        print("dry run: nothing was written")
        return 0
    _claim(simulation, options.out, overwrite=options.overwrite)
    todo = [z for z in range(simulation.sections) if not (options.out / section_name(z)).exists()]
    for section in track(todo, "simulate"):
        write_section(simulation, section, options.out / section_name(section))
    (options.out / "unfinished.json").unlink()
    write_settings(simulation, options.out)
    print(f"tissue: {options.out}; read it with: tera-mind ingest merscope {options.out}/section_* --out brain.zarr")
    return 0


def _claim(simulation: Simulation, out: Path, *, overwrite: bool) -> None:
    """Take the folder; an interrupted run with the same settings is gone on with, anything else is refused."""
    marker, settings = out / "unfinished.json", asdict(simulation)
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file: --out names a folder to write")
    if marker.is_file() and _settings_in(marker) == settings:
        return
    if out.exists() and any(out.iterdir()):
        if not overwrite:
            raise InputError(f"{out} is not empty: give --overwrite or another --out")
        for child in out.iterdir():  # only what a simulation writes is removed
            if child.name.startswith("section_") and child.is_dir():
                shutil.rmtree(child)
        (out / "simulation.json").unlink(missing_ok=True)
    out.mkdir(parents=True, exist_ok=True)
    with atomic_file(marker) as partial:
        partial.write_text(json.dumps(settings))


def _settings_in(marker: Path) -> object:
    """What an interrupted run noted; None where it cannot be read, which matches no run."""
    try:
        return json.loads(marker.read_text())
    except ValueError:
        return None
