"""`tera-mind ingest`: instrument output in, a brain store out."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

from tera_mind.cli.inspect import describe
from tera_mind.cli.progress import track
from tera_mind.errors import InputError
from tera_mind.formats.brain import Brain
from tera_mind.ingest.merscope import MerscopeReader
from tera_mind.ingest.panel import RULES
from tera_mind.ingest.pipeline import ingest
from tera_mind.ingest.registry import READERS
from tera_mind.ingest.source import SectionSource
from tera_mind.ingest.xenium import XeniumReader

#: share of transcripts outside the image from which a warning is printed
_WORTH_A_WARNING = 0.01


class _Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Keeps the examples' lines; shows defaults where there is one and the words do not say it already."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default in (None, (), [], False) or "(default:" in (action.help or ""):
            return action.help
        return super()._get_help_string(action)


def _names(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(float(part) for part in text.split(","))


def _range(text: str) -> tuple[str, tuple[float, float]]:
    stain, _, bounds = text.rpartition("=")
    low, _, high = bounds.partition(":")
    if not stain or not float(low) < float(high):
        raise ValueError(text)
    return stain, (float(low), float(high))


def _shared_options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="output folders, one a section")
    parser.add_argument("--out", type=Path, required=True, metavar="BRAIN.zarr", help="brain store to write")
    parser.add_argument("--pixel-um", type=float, metavar="UM", help="resample to this pixel size (default: native)")
    parser.add_argument("--section-um", type=float, default=10.0, metavar="UM", help="distance between sections")
    parser.add_argument(
        "--z-um", type=_numbers, metavar="UM,UM,...", help="true positions, one a folder (default: by --section-um)"
    )
    parser.add_argument("--stains", type=_names, default=(), metavar="A,B", help="stains to take (default: all)")
    parser.add_argument(
        "--range", type=_range, action="append", default=[], metavar="STAIN=LOW:HIGH",
        help="raw intensities that become 0 and 255 (default: measured: background and 99.9th percentile of tissue)",
    )  # fmt: skip
    parser.add_argument(
        "--genes", choices=RULES, default="same",
        help="what to do when panels differ: refuse, keep the shared genes, or keep all and count absent ones as zero",
    )  # fmt: skip
    parser.add_argument(
        "--max-outside", type=float, default=0.5, metavar="SHARE",
        help="refuse a section when more of its transcripts lie outside its image",
    )  # fmt: skip
    parser.add_argument("--overwrite", action="store_true", help="replace what is at --out")
    return parser


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tera-mind ingest",
        description=(
            "Read what an instrument wrote - images and transcripts - into one brain store:\n"
            "images as 8-bit OME-Zarr, transcripts by tile, both on one canvas.\n"
            "Every FOLDER is a section; give them in order. The store appears whole or not at all."
        ),
        epilog=(
            "examples:\n"
            "  tera-mind ingest xenium outs/ --out brain.zarr --pixel-um 0.425\n"
            "  tera-mind ingest merscope region_0 region_1 --out brain.zarr --z-um 0,200 --stains DAPI,PolyT\n\n"
            "`tera-mind ingest xenium --help` explains the options of a format."
        ),
        formatter_class=_Help,
    )
    formats = parser.add_subparsers(dest="format", required=True, metavar="{" + ",".join(READERS) + "}")
    shared = _shared_options()
    xenium = formats.add_parser(
        "xenium",
        parents=[shared],
        formatter_class=_Help,
        help="10x Xenium output (experiment.xenium, transcripts.parquet, a morphology image)",
        description="10x Xenium: needs experiment.xenium, transcripts.parquet and one morphology image a folder.",
        epilog="example:\n  tera-mind ingest xenium outs/ --out brain.zarr --pixel-um 0.425",
    )
    xenium.add_argument(
        "--min-qv", type=float, default=XeniumReader.min_qv, metavar="Q", help="drop transcripts of lower quality"
    )
    merscope = formats.add_parser(
        "merscope",
        parents=[shared],
        formatter_class=_Help,
        help="Vizgen MERSCOPE region folders (detected_transcripts.csv, images/mosaic_*)",
        description=(
            "Vizgen MERSCOPE: needs detected_transcripts.csv, images/mosaic_STAIN_zK.tif and\n"
            "images/micron_to_mosaic_pixel_transform.csv in every region folder."
        ),
        epilog="example:\n  tera-mind ingest merscope region_0 --out brain.zarr --planes 3 --stains DAPI,PolyT",
    )
    merscope.add_argument(
        "--planes", default=MerscopeReader.planes, metavar="max|each|K|K,K",
        help="max: project all z planes; K: that plane with the transcripts of all; each or K,K: every plane a section",
    )  # fmt: skip
    merscope.add_argument(
        "--plane-um", type=float, default=MerscopeReader.plane_um, metavar="UM", help="distance between z planes"
    )
    merscope.add_argument(
        "--transcripts", default=MerscopeReader.transcripts, metavar="PATH", help="transcript table in the folder"
    )
    merscope.add_argument("--images", default=MerscopeReader.images, metavar="PATH", help="image folder in the folder")
    return parser


def _sources(options: argparse.Namespace) -> list[SectionSource]:
    folders: list[Path] = options.folders
    positions = options.z_um or tuple(index * options.section_um for index in range(len(folders)))
    if len(positions) != len(folders):
        raise InputError(f"--z-um needs one position a folder: {len(folders)} folders, {len(positions)} positions")
    reader_type = READERS[options.format]
    settings = {field.name: getattr(options, field.name) for field in dataclasses.fields(reader_type)}  # type: ignore[arg-type]
    reader = reader_type(**settings)
    return [source for folder, z_um in zip(folders, positions, strict=True) for source in reader.sections(folder, z_um)]


def _warn_outside(brain: Brain) -> None:
    for section in brain.sections:
        outside = section.dropped.get("outside the image", 0)
        share = outside / (outside + section.transcripts)
        if share > _WORTH_A_WARNING:
            print(
                f"warning: {share:.0%} of the transcripts of section {section.name} lie outside its image and were "
                "dropped; do image and transcripts belong together?",
                file=sys.stderr,
            )


def run(arguments: Sequence[str]) -> int:
    """Ingest the folders and print what came of it."""
    options = build_parser().parse_args(arguments)
    brain = ingest(
        _sources(options),
        options.out,
        pixel_um=options.pixel_um,
        genes=options.genes,
        ranges=dict(options.range),
        max_outside=options.max_outside,
        overwrite=options.overwrite,
        progress=track,
    )
    print(describe(brain.path).text())
    _warn_outside(brain)
    print(f"next: tera-mind shards {brain.path}")
    return 0
