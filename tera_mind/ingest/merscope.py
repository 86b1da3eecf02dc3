"""Vizgen MERSCOPE: `detected_transcripts.csv`, `images/mosaic_{STAIN}_z{K}.tif` and the micron-to-mosaic transform.

A folder is one region. Its z planes are a micron or two apart, inside one 10 um section: by default they are one
section (brightest pixel over the planes, transcripts of all planes); several chosen planes are sections of their own.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from tera_mind.errors import FormatError, InputError, MissingFileError
from tera_mind.ingest.faults import Fault, Faults
from tera_mind.ingest.features import check_pixel_um, encode_names, no_gene_reason
from tera_mind.ingest.manifest import Manifest, read_manifest
from tera_mind.ingest.registration import pixel_size_um
from tera_mind.ingest.selection import Selection
from tera_mind.ingest.source import SectionSource, StainImage, TranscriptBatch, option, pick_stains
from tera_mind.ingest.tables import Table
from tera_mind.ingest.tiff import MaxPlane, TiffPlane

_PLANE = "global_z"
_NUMBERS = ("global_x", "global_y", _PLANE)
_TRANSFORM = "micron_to_mosaic_pixel_transform.csv"
#: a mosaic's pixels are square to a fraction of a percent
_MOST_OBLONG = 1.5


@dataclass(frozen=True)
class MerscopeReader:
    """Vizgen MERSCOPE region folders (detected_transcripts.csv, images/mosaic_*)."""

    EXAMPLE: ClassVar[str] = "tera-mind ingest merscope region_0 --out brain.zarr --planes 3 --stains DAPI,PolyT"

    planes: str = option(
        "max",
        "max: project all z planes; K: that plane with the transcripts of all; each or K,K: every plane a section",
        "max|each|K|K,K",
    )
    plane_um: float = option(1.5, "distance between z planes", "UM")
    stains: tuple[str, ...] = option((), "stains to take (default: all)", "A,B")
    transcripts: str = option("detected_transcripts.csv", "transcript table in the folder, CSV or Parquet", "PATH")
    images: str = option("images", "image folder in the folder", "PATH")

    def sections(self, folder: Path, z_um: float) -> list[SectionSource]:
        """The sections of a region folder.

        Raises `MissingFileError`, `FormatError` or `InputError`; several faults come as one `FaultsError`.
        """
        if not folder.is_dir():
            raise MissingFileError(f"expected a MERSCOPE region folder at {folder}, nothing is there")
        images, faults = folder / self.images, Faults()
        um_to_px, table, panel, manifest = np.eye(3), None, None, None
        mosaics: dict[str, dict[int, TiffPlane]] = {}
        with faults.catching(images / _TRANSFORM):
            um_to_px = _transform(images / _TRANSFORM)
        with faults.catching(folder / self.transcripts):
            table = _table(folder, self.transcripts)
        with faults.catching(folder):
            panel = _panel(folder)
        with faults.catching(images):
            files = _files(images)
            stains = pick_stains(sorted(files, key=lambda name: (name != "DAPI", name)), self.stains, folder)
            common = sorted(set.intersection(*(set(files[stain]) for stain in stains)))
            chosen = _chosen_planes(self.planes, common, folder)
            mosaics = _open({stain: files[stain] for stain in stains}, chosen, faults)
        with faults.catching(images / "manifest.json"):
            manifest = read_manifest(images / "manifest.json")
        if manifest is not None and mosaics and not len(faults):
            manifest.check(um_to_px, next(iter(mosaics[stains[0]].values())).shape, faults)
        faults.raise_any()
        assert table is not None  # else its fault was raised
        left_out = {stain: sorted(set(files[stain]) - set(common)) for stain in stains}
        notices = _notices(manifest, images, left_out)
        split = self.planes == "each" or (self.planes != "max" and len(chosen) > 1)
        name = folder.resolve().name
        sections = []
        for group in [(plane,) for plane in chosen] if split else [tuple(chosen)]:
            only = group[0] if split else None
            sections.append(
                SectionSource(
                    name=f"{name}_z{only}" if split else name,
                    z_um=z_um + (group[0] - chosen[0]) * self.plane_um if split else z_um,
                    stains=tuple(StainImage(stain, _image(mosaics[stain], group, stain), um_to_px) for stain in stains),
                    batches=MerscopeTranscripts(table if split else table.without(_PLANE), only),
                    panel=panel,
                    expected_batches=table.expected_batches,
                    provenance={
                        "format": "merscope",
                        "folder": name,
                        "planes": list(group),
                        "pixel_um": pixel_size_um(um_to_px),
                    }
                    | ({"notices": notices} if notices else {}),
                )
            )
        return sections


@dataclass(frozen=True)
class MerscopeTranscripts:
    """The transcripts of a table, of all z planes or of one; called, it streams them."""

    table: Table
    only_plane: int | None = None

    def __call__(self) -> Iterator[TranscriptBatch]:
        """Batches; raises `FormatError` where the table is damaged."""
        for first_row, batch in self.table.batches():
            codes, names = encode_names(batch.column("gene"))
            x_um, y_um, *plane = (
                np.asarray(batch.column(name).to_numpy(zero_copy_only=False), np.float64) for name in self.table.numbers
            )
            rows = Selection(len(codes), first_row)
            rows.drop_lost(x_um, y_um)
            if self.only_plane is not None:
                rows.drop(plane[0] != self.only_plane, "other plane")
            rows.drop_no_genes(codes, names)
            yield rows.batch(x_um, y_um, codes, names)

    def faults(self) -> Iterator[Fault]:
        """Every place of the table that cannot be read."""
        yield from self.table.faults()


def _image(planes: dict[int, TiffPlane], group: Sequence[int], stain: str) -> TiffPlane | MaxPlane:
    return planes[group[0]] if len(group) == 1 else MaxPlane([planes[plane] for plane in group], stain)


def _transform(path: Path) -> NDArray[np.float64]:
    if not path.is_file():
        raise MissingFileError(f"expected the micron-to-pixel transform at {path}; without it the units are unknown")
    try:
        lines = path.read_text().split("\n")
        affine = np.array([[float(number) for number in line.split()] for line in lines if line.strip()], np.float64)
    except (OSError, ValueError) as error:
        raise FormatError(f"{path} cannot be read ({error}); expected 3 x 3 numbers separated by spaces") from None
    if affine.shape != (3, 3) or not np.isfinite(affine).all() or not np.allclose(affine[2], [0, 0, 1]):
        got = " x ".join(map(str, affine.shape)) + ("" if np.isfinite(affine).all() else ", not all finite")
        raise FormatError(f"{path} should be a 3 x 3 affine whose last row is 0 0 1, got {got} numbers")
    long, short = np.linalg.svd(affine[:2, :2], compute_uv=False)
    if short < 1e-12 * long or not short > 0:
        raise InputError(f"{path} cannot be inverted: it maps the plane onto a line; export it again")
    if long > _MOST_OBLONG * short:
        raise InputError(f"{path} gives pixels of {1 / long:g} x {1 / short:g} um, expected squares; export it again")
    check_pixel_um(pixel_size_um(affine), path)
    return affine


def _table(folder: Path, name: str) -> Table:
    """The named table, or the Parquet file beside it that newer software writes instead."""
    path = folder / name
    if not path.is_file() and path.suffix == ".csv" and path.with_suffix(".parquet").is_file():
        path = path.with_suffix(".parquet")
    return Table.open(path, _NUMBERS, ("gene",), hint=" (--transcripts names another file)")


def _files(folder: Path) -> dict[str, dict[int, Path]]:
    """Stain -> z plane -> file."""
    if not folder.is_dir():
        raise MissingFileError(f"expected a folder of mosaics at {folder}, nothing is there")
    mosaics: dict[str, dict[int, Path]] = {}
    for path in sorted(folder.iterdir()):
        match = re.fullmatch(r"mosaic_(.+)_z(\d{1,4})\.tiff?", path.name)
        if match:
            other = mosaics.setdefault(match[1], {}).setdefault(int(match[2]), path)
            if other != path:
                raise InputError(f"{other} and {path} are the same stain and plane; take one out of the folder")
    if not mosaics:
        raise MissingFileError(f"expected images named mosaic_STAIN_zK.tif in {folder}, found none")
    return mosaics


def _open(files: dict[str, dict[int, Path]], chosen: Sequence[int], faults: Faults) -> dict[str, dict[int, TiffPlane]]:
    """The chosen mosaics; they are one image plane, so they have one shape."""
    opened: dict[str, dict[int, TiffPlane]] = {stain: {} for stain in files}
    first: TiffPlane | None = None
    for stain, planes in files.items():
        for plane in chosen:
            path = planes[plane]
            with faults.catching(path):
                mosaic = opened[stain][plane] = TiffPlane(path)
                first = first or mosaic
                if mosaic.shape != first.shape:
                    raise InputError(
                        f"the mosaics of a region should have one shape, {first.path} has {first.shape}, {path} has "
                        f"{mosaic.shape}; export them again or choose others with --planes and --stains"
                    )
    return opened


def _chosen_planes(planes: str, available: Sequence[int], folder: Path) -> list[int]:
    if planes in {"max", "each"}:
        chosen = list(available)
    else:
        try:
            chosen = [int(part) for part in planes.split(",")]
        except ValueError:
            raise InputError(f"planes are 'max', 'each' or numbers such as 0,3; got {planes!r}") from None
    missing = sorted(set(chosen) - set(available))
    if missing or not chosen:
        raise InputError(f"{folder} has planes {list(available)} in every chosen stain, asked for {planes}")
    if len(set(chosen)) != len(chosen):
        raise InputError(f"every plane comes once, got {planes}")
    return chosen


def _notices(manifest: Manifest | None, images: Path, left_out: dict[str, list[int]]) -> list[str]:
    """What is not as it should be, and harmless."""
    notices = [
        f"{stain}: z planes {planes} are not in every stain and left out"
        for stain, planes in left_out.items()
        if planes
    ]
    absent = [name for name in (manifest.files if manifest else ()) if not (images / name).is_file()]
    if absent:
        notices.append(f"manifest.json lists {len(absent)} mosaics that are not there, the first is {absent[0]}")
    return notices


def _panel(folder: Path) -> tuple[str, ...] | None:
    """Genes of the codebook or the cell-by-gene table, whichever lies beside the transcripts; None without either."""
    for path in [*sorted(folder.glob("codebook*.csv")), folder / "cell_by_gene.csv"]:
        if not path.is_file():
            continue
        try:
            with path.open(newline="", encoding="utf-8-sig") as file:
                if path.name == "cell_by_gene.csv":
                    return _genes(next(csv.reader(file), [])[1:])
                return _genes([row["name"] for row in csv.DictReader(file)])
        except (OSError, ValueError, KeyError, csv.Error) as error:
            message = f"{path} gives no gene panel ({error!r}), expected a column 'name'; take it out of the folder"
            raise FormatError(message) from None
    return None


def _genes(names: Sequence[Any]) -> tuple[str, ...] | None:
    return tuple(sorted({name for name in names if name and no_gene_reason(name) is None})) or None
