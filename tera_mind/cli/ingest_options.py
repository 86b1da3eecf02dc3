"""Options of `tera-mind ingest`: the shared ones, and those of every format from the fields of its reader."""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import math
from pathlib import Path
from typing import Any, get_type_hints

from tera_mind.ingest.panel import RULES
from tera_mind.ingest.placing import MISSING
from tera_mind.ingest.registry import READERS

#: fields that need no words of their own
_WORDS = {"stains": ("stains to take (default: all)", "A,B")}
#: before the name of a reader's field among the parsed options
_SETTING = "setting_"


class _Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Keeps the examples' lines; shows defaults where there is one and the words do not say it already."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default in (None, "", (), [], False) or "(default" in (action.help or ""):
            return action.help
        if isinstance(action.default, tuple):
            return f"{action.help} (default: {','.join(map(str, action.default))})"
        return super()._get_help_string(action)


class _Parser(argparse.ArgumentParser):
    """A format's parser: --out may be left out with --check alone."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        options, rest = super().parse_known_args(args, namespace)
        if options.out is None and not options.check:
            self.error("--out BRAIN.zarr is required (only --check does without)")
        return options, rest


def _names(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(float(part) for part in text.split(","))


def _size(text: str) -> tuple[float, float]:
    height, width = _numbers(text)
    return height, width


def _pixels(text: str) -> tuple[int, int]:
    height, width = (int(part) for part in text.split(","))
    return height, width


def _range(text: str) -> tuple[str, tuple[float, float]]:
    stain, _, bounds = text.rpartition("=")
    low, _, high = bounds.partition(":")
    if not stain or not -math.inf < float(low) < float(high) < math.inf:
        raise ValueError(text)
    if float(low) < 0:  # what lies outside an image is 0 and stays it
        raise argparse.ArgumentTypeError(f"raw intensities begin at 0, got {text}; give 0 or more as LOW")
    return stain, (float(low), float(high))


_TYPES: dict[Any, Any] = {str: str, int: int, float: float, tuple[str, ...]: _names}


def _shared_options() -> _Parser:
    parser = _Parser(add_help=False)
    add = parser.add_argument
    add("folders", nargs="+", type=Path, metavar="FOLDER", help="output folders, one a section")
    add("--out", type=Path, metavar="BRAIN.zarr", help="brain store to write")
    add("--overwrite", action="store_true", help="replace what is at --out")
    add("--check", action="store_true", help="read everything, list every fault with its place, write nothing")
    add("--dry-run", action="store_true", help="say what would be written and what space it takes, write nothing")
    where = parser.add_argument_group("where sections lie")
    add = where.add_argument
    add("--pixel-um", type=float, metavar="UM", help="resample to this pixel size (default: native)")
    add("--section-um", type=float, default=10.0, metavar="UM", help="distance between sections")
    add("--z-um", type=_numbers, metavar="UM,UM,...", help="true positions, one a folder (default: by --section-um)")
    add(
        "--sections", type=Path, metavar="SECTIONS.csv",
        help="registration: an affine and, if wanted, a displacement field a section (default: unregistered)",
    )  # fmt: skip
    add(
        "--missing", choices=MISSING, default="refuse",
        help="what to do with sections of --sections whose folder is not given: stop, or leave them empty",
    )  # fmt: skip
    size = where.add_mutually_exclusive_group()
    size.add_argument(
        "--canvas-um", type=_size, metavar="HEIGHT,WIDTH",
        help="the canvas, from its corner; what lies beyond is cut off (default: all sections fit)",
    )  # fmt: skip
    size.add_argument("--canvas-px", type=_pixels, metavar="HEIGHT,WIDTH", help="the same in pixels of --pixel-um")
    what = parser.add_argument_group("what is taken")
    add = what.add_argument
    add(
        "--range", type=_range, action="append", default=[], metavar="STAIN=LOW:HIGH",
        help="raw intensities that become 0 and 255 (default: measured: background and 99.9th percentile of tissue)",
    )  # fmt: skip
    add(
        "--genes", choices=RULES, default="same",
        help="what to do when panels differ: refuse, keep the shared genes, or keep all and count absent ones as zero",
    )  # fmt: skip
    add(
        "--gene-names", type=Path, metavar="TABLE",
        help="Ensembl ids and symbols (CSV or TSV; a 10x features.tsv is one): ids become symbols",
    )  # fmt: skip
    add(
        "--drop-genes", action="append", default=[], metavar="REGEX",
        help="leave out features whose whole name matches, beside the controls that every format leaves out",
    )  # fmt: skip
    add(
        "--max-outside", type=float, default=0.5, metavar="SHARE",
        help="refuse a section when more of its transcripts lie outside its image",
    )  # fmt: skip
    how = parser.add_argument_group("how it is computed")
    add = how.add_argument
    add(
        "--workers", type=int, metavar="N",
        help="processes of this machine (default: one a core; a single one for small brains)",
    )  # fmt: skip
    add("--scheduler", metavar="ADDRESS", help="address of a running Dask scheduler to work on, as tcp://node1:8786")
    return parser


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tera-mind ingest",
        description=(
            "Read what an instrument wrote - images and transcripts - into one brain store:\n"
            "images as 8-bit OME-Zarr, transcripts by tile, both on one canvas.\n"
            "Every FOLDER is a section; give them in order, or with --sections in any. The store\n"
            "appears whole or not at all; give an interrupted command again to go on."
        ),
        epilog=(
            "examples:\n"
            "  tera-mind ingest xenium outs/ --out brain.zarr --pixel-um 0.425\n"
            "  tera-mind ingest merscope region_0 region_1 --out brain.zarr --z-um 0,200 --stains DAPI,PolyT\n"
            "  tera-mind ingest merscope mouse/* --out b.zarr --sections sections.csv --canvas-px 73728,106496\n\n"
            "sections.csv has a row a section, by ascending z_um, with columns\n"
            "  section, section_id, z_um, a00, a01, a02, a10, a11, a12, source_unit, canvas_unit [, displacement]\n"
            "section_id is the folder's name. x' = a00 x + a01 y + a02 and y' = a10 x + a11 y + a12 lead from um of\n"
            "the instrument or px of the image to um of the canvas, or to px as large as the image's. displacement\n"
            "names a float32 (2, rows, columns) array (.npy, .zarr, .tif) of (dy, dx) in canvas units, spread evenly\n"
            "over the canvas and added after the affine. `tera-mind sections` makes the table from ABBA's files.\n\n"
            "`tera-mind ingest xenium --help` explains the options of a format."
        ),
        formatter_class=_Help,
    )
    formats = parser.add_subparsers(
        dest="format", required=True, metavar="{" + ",".join(READERS) + "}", parser_class=_Parser
    )
    shared = _shared_options()
    for name, reader in READERS.items():
        words = inspect.cleandoc(reader.__doc__ or "")
        own = formats.add_parser(
            name,
            parents=[shared],
            formatter_class=_Help,
            help=words.partition("\n")[0].rstrip("."),
            description=words,
            epilog=f"example:\n  {reader.EXAMPLE}",  # type: ignore[attr-defined]
        )
        _add_settings(own, name, reader)
    return parser


def _add_settings(parser: argparse.ArgumentParser, name: str, reader: Any) -> None:
    """An option a field of a reader, by the field's type, default and words.

    A field named like a shared option gets the format's name before its own.
    """
    types = get_type_hints(reader)
    group = parser.add_argument_group(f"of {name}")
    for field in dataclasses.fields(reader):
        words, metavar = _WORDS.get(field.name, ("", ""))
        words, metavar = field.metadata.get("help") or words, field.metadata.get("metavar") or metavar
        flag = "--" + field.name.replace("_", "-")
        given: dict[str, Any] = {"dest": _SETTING + field.name, "default": field.default, "help": words}
        if types[field.name] is bool:
            given["action"] = "store_true"
        else:
            given |= {"type": _TYPES[types[field.name]], "metavar": metavar or None}
        try:
            group.add_argument(flag, **given)
        except argparse.ArgumentError:
            group.add_argument(f"--{name}{flag[1:]}", **given)


def settings_of(options: argparse.Namespace) -> dict[str, Any]:
    """The reader's settings among the parsed options."""
    return {name.removeprefix(_SETTING): value for name, value in vars(options).items() if name.startswith(_SETTING)}
