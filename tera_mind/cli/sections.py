"""`tera-mind sections`: ABBA's registration of a brain's sections into the table that `ingest --sections` reads."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from tera_mind.errors import InputError
from tera_mind.ingest.abba import import_abba


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tera-mind sections",
        description=(
            "Turn the registrations that ABBA exported (ABBA-Transform-ATLAS.json, one a section) into sections.csv.\n"
            "The canvas becomes the atlas in um, seen along the axis that the sections follow. ABBA is a folder with\n"
            "one folder a section, or a QuPath project, whose image names become section_id: rename them in the table\n"
            "where they are not the names of the folders to ingest. Affines are taken over exactly; a spline is\n"
            "refused unless --displacements gives what it adds."
        ),
        epilog=(
            "examples:\n"
            "  tera-mind sections abba_export --out sections.csv\n"
            "  tera-mind sections qupath_project --atlas allen_mouse_10um_java --out sections.csv\n"
            "  tera-mind ingest merscope mouse/* --sections sections.csv --out brain.zarr"
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("abba", type=Path, metavar="ABBA", help="folder with ABBA's transforms")
    parser.add_argument("--out", type=Path, required=True, metavar="SECTIONS.csv", help="table to write")
    parser.add_argument("--atlas", metavar="NAME", help="whose transforms to take, where there are several atlases")
    parser.add_argument(
        "--displacements", type=Path, metavar="FOLDER",
        help="fields named SECTION.npy (.zarr, .tif): float32 (2, rows, columns), (dy, dx) in um of the canvas",
    )  # fmt: skip
    parser.add_argument("--overwrite", action="store_true", help="replace what is at --out")
    return parser


def run(arguments: Sequence[str]) -> int:
    """Write the table and say what became of the atlas' axes."""
    options = build_parser().parse_args(arguments)
    if options.out.exists() and not options.overwrite:
        raise InputError(f"{options.out} is already there; choose another --out or pass --overwrite")
    imported = import_abba(options.abba, options.out, atlas=options.atlas, displacements=options.displacements)
    imported.table.write()
    rows = imported.table.rows
    x, y, z = imported.axes
    print(
        f"{options.out}: {len(rows)} sections, z {rows[0].z_um:.0f} to {rows[-1].z_um:.0f} um; the atlas' axes {x}, "
        f"{y}, {z} (counted from 0) are the canvas' x, y and z"
    )
    print(f"next: tera-mind ingest merscope FOLDER ... --sections {options.out} --out brain.zarr")
    return 0
