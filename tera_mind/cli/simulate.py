"""`tera-mind simulate`: a virtual mouse brain, or a piece of one, with its truth."""

from __future__ import annotations

import argparse
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tera_mind import __version__
from tera_mind.cli.progress import track
from tera_mind.errors import InputError
from tera_mind.formats.atomic import atomic_file
from tera_mind.simulate.brains import BRAINS, SIZES, Settings
from tera_mind.simulate.merscope import um_to_mosaic, write_section
from tera_mind.simulate.perturb import Perturbation
from tera_mind.simulate.store import check_simulated, truth_folder, write_store
from tera_mind.simulate.tiles import Tiles, read_json, record_of
from tera_mind.simulate.truth import section_name, write_brain_truth
from tera_mind.simulate.windows import VirtualBrain

#: pixels of a plane (both stains) and transcripts that a core makes in a second, with their files; rounded down
_PIXELS_A_SECOND, _TRANSCRIPTS_A_SECOND = 2e6, 5e5
#: labels of every nucleus' pixels are kept up to this canvas
_LABELLED_PIXELS = 64e6
_CSV_BYTES, _PACKED_BYTES = 75, 25
_LAYOUTS = ("merscope", "store")


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tera-mind simulate",
        description=(
            "Simulate a mouse brain with its transcripts and its DAPI and PolyT images. Every pixel and transcript is\n"
            "a function of seed and place, so any part of it can be made alone. Written as MERSCOPE writes it, one\n"
            "region folder a section, or straight into a brain store; the truth (cells, types, regions, registration)\n"
            "lies beside."
        ),
        epilog=(
            "sizes: tiny (the whole brain shrunk tenfold, 2 sections), demo (480 x 800 um of cortex and hippocampus\n"
            "of a brain shrunk fivefold), bench (the whole brain shrunk fourfold, 8 sections, 500 genes), brain (50\n"
            "sections of 73,728 x 106,496 px at 0.108 um, 500 genes). Any option overrides its size.\n\n"
            "examples:\n"
            "  tera-mind simulate --out tissue --seed 1\n"
            "  tera-mind ingest merscope tissue/section_000 --out brain.zarr\n"
            "  tera-mind simulate --brain supp_m --size bench --layout store --out supp_m.zarr --workers 8\n"
            "  tera-mind simulate --size brain --out main --dry-run\n\n"
            "--perturb FILE.yaml makes the same brain with stated changes and nothing else changed, for example\n"
            "  changes:\n"
            "    - {genes: [Slc17a7], scale: 0.2, regions: [layer 5]}\n"
            "    - {types: [Microglia], deplete: 0.5}\n"
            "    - {types: [DG gran], enlarge: 1.3}\n\n"
            "Give the same command again to go on after an interruption."
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--out", type=Path, required=True, help="folder (or BRAIN.zarr with --layout store) to write")
    add("--brain", choices=BRAINS, default="main", help="which of the three brains (default: %(default)s)")
    add("--size", choices=SIZES, default="demo", help="canvas, pixels, sections and panel (default: %(default)s)")
    add("--seed", type=int, default=0, help="seed of everything random (default: %(default)s)")
    add("--layout", choices=_LAYOUTS, default="merscope", help="what to write (default: %(default)s)")
    own = parser.add_argument_group("instead of what the size has")
    for name, kind, words in (
        ("height-um", float, "height of the canvas"),
        ("width-um", float, "width of the canvas"),
        ("pixel-um", float, "pixel size; MERSCOPE's own is 0.108"),
        ("scale", float, "size of the anatomy relative to a real brain; cells keep their size"),
        ("sections", int, "number of sections"),
        ("section-um", float, "regular distance of sections (default: irregular, 100 to 200 um times the scale)"),
        ("first-mm", float, "first section, mm of a real brain from its front"),
        ("genes", int, "size of the panel, markers first, up to 20,000"),
        ("bits", int, "8 or 16; a store is always 8"),
        ("planes", int, "focal planes, 1 to 7"),
        ("misregister", float, "strength of the sections' misregistration: 0 none, 1 the usual"),
        ("density-um2", float, "transcripts a um2 of tissue (0.6)"),
    ):
        own.add_argument(f"--{name}", type=kind, default=None, metavar="N", help=words)
    add("--perturb", type=Path, default=None, metavar="FILE.yaml", help="changes of genes or cells, see below")
    add("--workers", type=int, default=None, help="processes (default: one a core)")
    add("--overwrite", action="store_true", help="replace what is there")
    add("--dry-run", action="store_true", help="say what would be made, how long it takes and what it fills")
    return parser


def run(arguments: Sequence[str]) -> int:
    options = build_parser().parse_args(arguments)
    settings = _settings(options)
    brain = VirtualBrain(settings)
    height, width = settings.pixels
    workers = options.workers if options.workers is not None else len(os.sched_getaffinity(0))
    if workers < 1:
        raise InputError(f"--workers must be at least 1, got {workers}")
    parts = options.out.with_name(options.out.name + ".parts") if options.layout == "store" else options.out / ".parts"
    tiles = Tiles(settings, parts, labels=height * width <= _LABELLED_PIXELS)
    print(_estimate(brain, tiles, options.layout, workers))
    if options.dry_run:
        print("dry run: nothing was written")
        return 0
    if options.layout == "store":
        _make_store(tiles, options.out, workers, overwrite=options.overwrite)
        print(f"brain: {options.out}; truth: {truth_folder(options.out)}; next: tera-mind shards {options.out}")
    else:
        _make_folders(tiles, brain, options.out, workers, overwrite=options.overwrite)
        z_um = ",".join(f"{z:g}" for z in brain.z_um)
        where = f" --z-um {z_um}" if len(brain.z_um) > 1 else ""
        print(f"tissue: {options.out}; read it with:")
        if settings.misregister > 0:  # the true displacement fields need a canvas of given size
            where = f" --sections {options.out}/truth/sections.csv --canvas-px {height},{width}"
        print(f"  tera-mind ingest merscope {options.out}/section_* --out brain.zarr{where}")
    return 0


def _settings(options: argparse.Namespace) -> Settings:
    names = (
        "seed", "height_um", "width_um", "pixel_um", "scale", "sections", "section_um", "first_mm", "genes", "bits",
        "planes", "misregister", "density_um2",
    )  # fmt: skip
    changes: dict[str, Any] = {name: getattr(options, name) for name in names}
    if options.layout == "store":
        if options.bits == 16:
            raise InputError("a brain store holds 8 bit: leave --bits out, or choose --layout merscope")
        changes["bits"] = 8
        if changes["misregister"] is None:
            changes["misregister"] = 0.0  # a store is registered
    if options.perturb is not None:
        changes["perturbation"] = Perturbation.read(options.perturb)
    return Settings.of(options.brain, options.size, **changes)


def _estimate(brain: VirtualBrain, tiles: Tiles, layout: str, workers: int) -> str:
    """What will be made, in words."""
    s = brain.settings
    height, width = s.pixels
    tissue_um2 = sum(_tissue_um2(brain, section) for section in _some(s.sections)) / len(_some(s.sections)) * s.sections
    if tissue_um2 == 0:
        raise InputError("no section holds tissue: the canvas or --first-mm lies outside the brain")
    transcripts = tissue_um2 * s.density_um2
    pixels = float(s.sections * height * width)
    tiles_all = s.sections * len(tiles.boxes())
    seconds = (pixels * s.planes / _PIXELS_A_SECOND + transcripts / _TRANSCRIPTS_A_SECOND) / min(workers, tiles_all)
    image_bytes = 2 * pixels * s.planes * s.bits / 8
    kept = image_bytes + transcripts * (_CSV_BYTES if layout == "merscope" else 5)
    beside = image_bytes + transcripts * _PACKED_BYTES + (4 * pixels if tiles.labels else 0)
    if layout == "merscope":
        beside /= s.sections  # tiles go when their section is written
    return (
        f"{s.brain}: {s.sections} section(s) of {height} x {width} px at {s.pixel_um:g} um, {s.genes} genes, about "
        f"{transcripts / s.sections:,.0f} transcripts each ({tissue_um2 / s.sections / 1e6:.3g} mm2 of tissue); about "
        f"{_duration(seconds)} with {min(workers, tiles_all)} process(es), {kept / 1e9:.2g} GB, for a while "
        f"{beside / 1e9:.2g} GB more"
    )


def _some(sections: int) -> range:
    return range(0, sections, max(1, sections // 6))


def _tissue_um2(brain: VirtualBrain, section: int) -> float:
    import numpy as np

    s = brain.settings
    y, x = ((np.arange(64) + 0.5) * side / 64 for side in (s.height_um, s.width_um))
    return float((brain.regions_at(section, y[:, None], x[None, :]) > 1).mean()) * s.height_um * s.width_um


def _duration(seconds: float) -> str:
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds > 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{max(1, round(seconds))} s"


def _make_folders(tiles: Tiles, brain: VirtualBrain, out: Path, workers: int, *, overwrite: bool) -> None:
    _claim(record_of(tiles.settings), out, overwrite=overwrite)
    tiles.claim()
    todo = [z for z in range(tiles.settings.sections) if not (out / section_name(z)).exists()]
    for section in todo:
        missing = tiles.missing([section])
        for _ in track(tiles.run([section], workers), f"simulate {section_name(section)}", len(missing)):
            pass
        write_section(tiles, section, out / section_name(section))
        tiles.drop(section)
    write_brain_truth(brain, out / "truth", um_to_mosaic(tiles.settings.pixel_um))
    tiles.drop()
    with atomic_file(out / "simulation.json") as partial:
        record = {"format": "simulation", "version": 2, **record_of(tiles.settings), "tera_mind": __version__}
        partial.write_text(json.dumps(record, indent=1))
    (out / "unfinished.json").unlink(missing_ok=True)


def _make_store(tiles: Tiles, out: Path, workers: int, *, overwrite: bool) -> None:
    if out.exists():
        if not overwrite:
            raise InputError(f"{out} is already there: give --overwrite or another --out")
        check_simulated(out)
    tiles.claim(overwrite=overwrite)
    sections = list(range(tiles.settings.sections))
    for _ in track(tiles.run(sections, workers), "simulate", len(tiles.missing(sections))):
        pass
    write_store(tiles, out, lambda items: track(items, "write", len(sections)))
    tiles.drop()


def _claim(settings: dict[str, Any], out: Path, *, overwrite: bool) -> None:
    """Take the folder; an interrupted run with the same settings is gone on with, anything else is refused."""
    marker = out / "unfinished.json"
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file: --out names a folder to write")
    if marker.is_file() and read_json(marker) == settings:
        return
    if out.exists() and any(out.iterdir()):
        if not overwrite:
            raise InputError(f"{out} is not empty: give --overwrite or another --out")
        if not marker.is_file() and not (out / "simulation.json").is_file():
            raise InputError(f"{out} holds no simulation, so it is not replaced: give another --out")
        for child in out.iterdir():  # only what a simulation writes is removed
            if child.is_dir() and (child.name.startswith("section_") or child.name in {"truth", ".parts"}):
                shutil.rmtree(child)
        (out / "simulation.json").unlink(missing_ok=True)
    out.mkdir(parents=True, exist_ok=True)
    with atomic_file(marker) as partial:
        partial.write_text(json.dumps(settings))
