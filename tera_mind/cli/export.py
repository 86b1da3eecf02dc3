"""`tera-mind export`: brain stores and generated volumes for other software."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from tera_mind.cli.progress import track
from tera_mind.errors import InputError
from tera_mind.export.selection import Selection
from tera_mind.formats.replaceable import check_apart, check_replaceable

_DESCRIPTION = """\
Write a brain store or a generated volume in a format that other software opens.

  ome-tiff      one pyramidal, tiled OME-TIFF a section: QuPath, Fiji, Bio-Formats
  ome-zarr      one OME-Zarr 0.5 image (c, z, y, x): napari, neuroglancer, Vizarr
  spatialdata   a SpatialData zarr with images and transcripts in microns: scverse, napari-spatialdata
                (needs: pip install 'tera-mind[spatial]')

A brain store's `images` folder and a volume are OME-Zarr 0.5 images as they are; ome-zarr is for a part of them."""

_EPILOG = """\
examples:
  tera-mind export brain.zarr --to ome-tiff --out qupath/
  tera-mind export volume.zarr --to ome-tiff --sections 12 --out section_012.ome.tif
  tera-mind export brain.zarr --to spatialdata --region 20%:60%,: --out part.zarr"""

FORMATS = ("ome-tiff", "ome-zarr", "spatialdata")


def _numbers(text: str) -> tuple[int, ...]:
    """`3`, `0,4,7` or `0-9`, mixed."""
    numbers: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        numbers += range(int(first), int(last or first) + 1)
    return tuple(numbers)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tera-mind export",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("store", type=Path, metavar="STORE", help="brain store or volume")
    parser.add_argument("--to", required=True, choices=FORMATS, help="format to write")
    parser.add_argument(
        "--out", required=True, type=Path, metavar="PATH",
        help="what to write: for ome-tiff a folder, or NAME.ome.tif for one section; a zarr store for the others",
    )  # fmt: skip
    parser.add_argument(
        "--sections", type=_numbers, metavar="N,N-N", help="section numbers, counted from 0 (default: all)"
    )
    parser.add_argument("--region", metavar="BOX", help="y0:y1,x0:x1 in pixels or percent (default: everything)")
    parser.add_argument("--overwrite", action="store_true", help="replace what is at --out")
    parser.add_argument("--dry-run", action="store_true", help="say what would be written, write nothing")
    return parser


def run(arguments: Sequence[str]) -> int:
    """Export and say where it lies."""
    options = build_parser().parse_args(arguments)
    selection = Selection.of(options.store, options.sections, options.region)
    out: Path = options.out
    print(
        f"{len(selection.sections)} sections, {', '.join(selection.stains)}, box {selection.box}: "
        f"{selection.image_bytes / 1e9:.2f} GB before compression, to {out} as {options.to}"
    )
    files = _tiff_files(selection, out) if options.to == "ome-tiff" else [out]
    taken = [path for path in files if path.exists()]
    if taken and not options.overwrite:
        raise InputError(f"{taken[0]} is already there; choose another --out or pass --overwrite")
    for path in files if options.to == "ome-tiff" else ():
        check_apart(path, [options.store])
        if path.exists() and not path.is_file():
            raise InputError(f"{path} is no file, so it is not replaced; choose another --out or remove it yourself")
    if options.to != "ome-tiff":
        check_replaceable(out, ("export",), [options.store])
    _check_space(out, selection.image_bytes)
    if options.dry_run:
        print("dry run: nothing was written")
        return 0
    if options.to == "ome-tiff":
        from tera_mind.export.ome_tiff import write_ome_tiff

        todo = list(zip(selection.sections, files, strict=True))
        for number, path in track(todo, "writing OME-TIFF", len(todo)):
            write_ome_tiff(selection, number, path)
    else:
        _writer(options.to)(selection, out, track)
    print(f"written: {', '.join(map(str, files[:4]))}{f' and {len(files) - 4} more' if len(files) > 4 else ''}")
    return 0


def _writer(kind: str) -> Callable[..., None]:
    if kind == "ome-zarr":
        from tera_mind.export.ome_zarr import write_ome_zarr

        return write_ome_zarr
    from tera_mind.export.spatialdata import write_spatialdata

    return write_spatialdata


def _tiff_files(selection: Selection, out: Path) -> list[Path]:
    if out.name.lower().endswith((".tif", ".tiff")):
        if len(selection.sections) != 1:
            raise InputError(
                f"an OME-TIFF holds one section, {len(selection.sections)} are chosen: give a folder as --out, "
                "or --sections N"
            )
        if not out.name.lower().endswith((".ome.tif", ".ome.tiff")):
            raise InputError(f"an OME-TIFF is named NAME.ome.tif, got {out}")
        return [out]
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file; give a folder or NAME.ome.tif as --out")
    return [out / f"{name}.ome.tif" for name in selection.names]


def _check_space(out: Path, image_bytes: int) -> None:
    """Lossless coding of real tissue saves little, pyramids add a third: ask for what the pixels take."""
    existing = next(parent for parent in [out.resolve(), *out.resolve().parents] if parent.exists())
    free = shutil.disk_usage(existing).free
    if image_bytes > free:
        raise InputError(f"about {image_bytes / 1e9:.1f} GB are needed at {existing}, {free / 1e9:.1f} GB are free")
