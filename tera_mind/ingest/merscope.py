"""Vizgen MERSCOPE: `detected_transcripts.csv`, `images/mosaic_{STAIN}_z{K}.tif` and the micron-to-mosaic transform.

A folder is one region. Its z planes are a micron or two apart, inside one 10 um section: by default they are one
section (brightest pixel over the planes, transcripts of all planes); several chosen planes are sections of their own.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
from numpy.typing import NDArray

from tera_mind.errors import FormatError, InputError, MissingFileError
from tera_mind.ingest.features import check_pixel_um, encode_names, no_gene_reason
from tera_mind.ingest.registration import pixel_size_um
from tera_mind.ingest.source import Plane, SectionSource, StainImage, TranscriptBatch, pick_stains
from tera_mind.ingest.tiff import MaxPlane, TiffPlane

BLOCK_BYTES = 2**24
_COLUMNS = ("global_x", "global_y", "global_z", "gene")
_TRANSFORM = "micron_to_mosaic_pixel_transform.csv"


@dataclass(frozen=True)
class MerscopeReader:
    """`planes`: "max" (project all), "each", or numbers "3" or "0,3"; `plane_um`: their distance.

    One number takes that plane's image with the transcripts of all planes; several (or "each") make every plane a
    section with its own transcripts. `transcripts` and `images` are paths in the folder, for deposits that moved them.
    """

    planes: str = "max"
    plane_um: float = 1.5
    stains: tuple[str, ...] = ()
    transcripts: str = "detected_transcripts.csv"
    images: str = "images"

    def sections(self, folder: Path, z_um: float) -> list[SectionSource]:
        """The sections of a region folder. Raises `MissingFileError`, `FormatError` or `InputError`, one line each."""
        if not folder.is_dir():
            raise MissingFileError(f"expected a MERSCOPE region folder at {folder}, nothing is there")
        um_to_px = _transform(folder / self.images / _TRANSFORM)
        table = _table(folder / self.transcripts)
        mosaics = _mosaics(folder / self.images)
        stains = pick_stains(sorted(mosaics, key=lambda name: (name != "DAPI", name)), self.stains, folder)
        common = sorted(set.intersection(*(set(mosaics[stain]) for stain in stains)))
        chosen = _chosen_planes(self.planes, common, folder)
        split = self.planes == "each" or (self.planes != "max" and len(chosen) > 1)
        name = folder.resolve().name
        sections = []
        for group in [(plane,) for plane in chosen] if split else [tuple(chosen)]:
            images = tuple(
                StainImage(stain, _image([mosaics[stain][plane] for plane in group], stain), um_to_px)
                for stain in stains
            )
            only = group[0] if split else None
            sections.append(
                SectionSource(
                    name=f"{name}_z{only}" if split else name,
                    z_um=z_um + (group[0] - chosen[0]) * self.plane_um if split else z_um,
                    stains=images,
                    batches=lambda only=only: _batches(table, only),  # type: ignore[misc]
                    panel=_panel(folder),
                    expected_batches=math.ceil(table.stat().st_size / BLOCK_BYTES),
                    provenance={
                        "format": "merscope",
                        "folder": name,
                        "planes": list(group),
                        "pixel_um": pixel_size_um(um_to_px),
                    },
                )
            )
        return sections


def _image(paths: Sequence[Path], stain: str) -> Plane:
    planes = [TiffPlane(path) for path in paths]
    return planes[0] if len(planes) == 1 else MaxPlane(planes, stain)


def _transform(path: Path) -> NDArray[np.float64]:
    if not path.is_file():
        raise MissingFileError(f"expected the micron-to-pixel transform at {path}; without it the units are unknown")
    try:
        affine = np.loadtxt(path, dtype=np.float64, ndmin=2)
    except (OSError, ValueError) as error:
        raise FormatError(f"{path} cannot be read ({error}); expected 3 x 3 numbers separated by spaces") from None
    if affine.shape != (3, 3) or not np.allclose(affine[2], [0, 0, 1]) or not np.isfinite(affine).all():
        raise FormatError(f"{path} should be a 3 x 3 affine whose last row is 0 0 1, got {affine.shape}")
    if abs(np.linalg.det(affine)) < 1e-12:
        raise InputError(f"{path} cannot be inverted: it maps the plane onto a line; export it again")
    check_pixel_um(pixel_size_um(affine), path)
    return affine


def _mosaics(folder: Path) -> dict[str, dict[int, Path]]:
    """Stain -> z plane -> file."""
    if not folder.is_dir():
        raise MissingFileError(f"expected a folder of mosaics at {folder}, nothing is there")
    mosaics: dict[str, dict[int, Path]] = {}
    for path in sorted(folder.iterdir()):
        match = re.fullmatch(r"mosaic_(.+)_z(\d+)\.tiff?", path.name)
        if match:
            mosaics.setdefault(match[1], {})[int(match[2])] = path
    if not mosaics:
        raise MissingFileError(f"expected images named mosaic_STAIN_zK.tif in {folder}, found none")
    return mosaics


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


def _table(path: Path) -> Path:
    if not path.is_file():
        raise MissingFileError(f"expected transcripts at {path}, nothing is there (--transcripts names another file)")
    try:
        with path.open(newline="") as file:
            header = next(csv.reader(file), [])
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise FormatError(f"{path} cannot be read as CSV ({error})") from None
    missing = [column for column in _COLUMNS if column not in header]
    if missing:
        raise FormatError(f"{path} lacks columns {', '.join(missing)}; it has {', '.join(filter(None, header))}")
    return path


def _batches(path: Path, only_plane: int | None) -> Iterator[TranscriptBatch]:
    types = {column: pa.float64() for column in _COLUMNS[:3]} | {"gene": pa.string()}
    convert = pacsv.ConvertOptions(include_columns=list(_COLUMNS), column_types=types)
    try:
        with pacsv.open_csv(path, pacsv.ReadOptions(block_size=BLOCK_BYTES), convert_options=convert) as reader:
            for batch in reader:
                yield _batch(batch, only_plane)
    except (OSError, pa.ArrowException) as error:
        raise FormatError(f"{path} is damaged or not CSV as MERSCOPE writes it ({error})") from None


def _batch(batch: Any, only_plane: int | None) -> TranscriptBatch:
    codes, names = encode_names(batch.column("gene"))
    x_um, y_um, plane = (
        np.asarray(batch.column(name).to_numpy(zero_copy_only=False), np.float64) for name in _COLUMNS[:3]
    )
    kept = np.isfinite(x_um) & np.isfinite(y_um)
    dropped = {"no position": int((~kept).sum())}
    if only_plane is not None:
        here = plane == only_plane
        dropped["other plane"] = int((kept & ~here).sum())
        kept &= here
    blank = kept & np.array([no_gene_reason(name) is not None for name in names], bool)[codes]
    dropped["blank codeword"] = int(blank.sum())
    kept &= ~blank
    return TranscriptBatch(x_um[kept], y_um[kept], codes[kept], names, dropped)


def _panel(folder: Path) -> tuple[str, ...] | None:
    """Genes of the codebook or the cell-by-gene table, whichever lies beside the transcripts; None without either."""
    for path in [*sorted(folder.glob("codebook*.csv")), folder / "cell_by_gene.csv"]:
        if not path.is_file():
            continue
        try:
            with path.open(newline="") as file:
                if path.name == "cell_by_gene.csv":
                    return _genes(next(csv.reader(file), [])[1:])
                return _genes([row["name"] for row in csv.DictReader(file)])
        except (OSError, ValueError, KeyError, csv.Error) as error:
            message = f"{path} gives no gene panel ({error!r}), expected a column 'name'; take it out of the folder"
            raise FormatError(message) from None
    return None


def _genes(names: Sequence[str]) -> tuple[str, ...] | None:
    return tuple(sorted({name for name in names if name and no_gene_reason(name) is None})) or None
