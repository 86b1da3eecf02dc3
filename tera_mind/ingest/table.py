"""A user's own table of transcripts or counts with images: CSV, TSV or Parquet, and TIFF, OME-TIFF or OME-Zarr.

Binned data (Visium HD, Stereo-seq GEM) come in by a column of counts. One table holds one or several sections.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from tera_mind.errors import FormatError, InputError, MissingFileError
from tera_mind.ingest.channels import open_channels
from tera_mind.ingest.faults import Fault
from tera_mind.ingest.features import check_pixel_um, encode_names, no_gene_reason, scale_matrix
from tera_mind.ingest.harmonise import ensembl_id, read_symbols
from tera_mind.ingest.registration import pixel_size_um
from tera_mind.ingest.selection import Selection
from tera_mind.ingest.small_csv import read_rows
from tera_mind.ingest.source import SectionSource, StainImage, TranscriptBatch, by_number, option, pick_stains
from tera_mind.ingest.tables import Table

_TABLES = (".csv", ".tsv", ".txt", ".gem", ".csv.gz", ".tsv.gz", ".txt.gz", ".gem.gz", ".parquet")
_IMAGES = (".tif", ".tiff", ".zarr")
_MOST = 2**16 - 1


@dataclass(frozen=True)
class TableReader:
    """Your own table of transcripts or binned counts (CSV, TSV, Parquet) and TIFF, OME-TIFF or OME-Zarr images."""

    EXAMPLE: ClassVar[str] = (
        "tera-mind ingest table spots.csv --out brain.zarr --x x_um --y y_um --gene symbol --images dapi.ome.tif\n"
        "  tera-mind ingest table S1.gem.gz --out brain.zarr --gene geneID --count MIDCount --unit 0.5 "
        "--images DAPI=S1_ssDNA.tif --image-um 0.5"
    )

    stains: tuple[str, ...] = option((), "stains to take (default: all)", "A,B")
    table: str = option("", "table in the folder (default: the only one; the path given may be the table)", "PATH")
    images: tuple[str, ...] = option(
        (),
        "images beside the table, PATH or STAIN=PATH; {section} in a path stands for a section's name (default: all)",
        "A,B",
    )
    channels: tuple[str, ...] = option((), "names of each image's channels, in order (default: its own)", "A,B")
    image_um: float = option(0.0, "side of an image pixel (default 0: as the image's metadata say)", "UM")
    x: str = option("x", "column of x", "NAME")
    y: str = option("y", "column of y", "NAME")
    gene: str = option("gene", "column of the gene", "NAME")
    count: str = option("", "column of counts, for binned data (default: a row is one transcript)", "NAME")
    quality: str = option("", "column of a quality", "NAME")
    min_quality: float = option(0.0, "drop rows whose quality is lower", "Q")
    section: str = option("", "column of the section's name (default: all rows are one section)", "NAME")
    z: str = option("", "column of z in microns; its mean is the section's z (default: as for folders)", "NAME")
    section_step: float = option(
        10.0, "distance between sections of one table without a column of z, in the order of their names", "UM"
    )
    unit: str = option("um", "unit of x and y: um, px (of the first image), or its size in microns, as 0.5", "UNIT")
    features: str = option("", "10x features.tsv, or a list of genes, beside the table: the panel", "PATH")

    def sections(self, folder: Path, z_um: float) -> list[SectionSource]:
        """The sections of a table. Raises `MissingFileError`, `FormatError` or `InputError`, one line each."""
        path = self._find(folder)
        table, labels = self._open(path)
        groups = self._positions(table.path, labels, z_um)
        panel, symbols = self._features(path.parent)
        name = path.name.split(".")[0] if folder.is_file() else folder.resolve().name
        return [
            self._section(table, label, name=label or name, z_um=z, panel=panel, symbols=symbols)
            for label, z in groups.items()
        ]

    def _positions(self, path: Path, labels: Table | None, z_um: float) -> dict[str, float]:
        """Section -> z by ascending z: as the column says, else a step apart, by the numbers in their names."""
        if self.z:
            known = _groups(path, labels, self.z)
            return {name: known[name] for name in sorted(known, key=lambda name: (known[name], by_number(name)))}
        if labels is None:
            return {"": z_um}
        names = sorted(_groups(path, labels, ""), key=by_number)
        return {name: z_um + index * self.section_step for index, name in enumerate(names)}

    def _section(
        self,
        table: Table,
        label: str,
        *,
        name: str,
        z_um: float,
        panel: tuple[str, ...] | None,
        symbols: dict[str, str],
    ) -> SectionSource:
        stains = self._stains(table.path, name)
        to_um = self._to_um(stains[0])
        return SectionSource(
            name=name,
            z_um=z_um,
            stains=tuple(stains),
            batches=_Batches(table, self, label, to_um),
            panel=panel,
            expected_batches=table.expected_batches,
            provenance={
                "format": "table",
                "table": table.path.name,
                "columns": {key: getattr(self, key) for key in ("x", "y", "gene", "count", "quality", "section", "z")},
                "unit": self.unit,
                "pixel_um": pixel_size_um(stains[0].um_to_px),
                "min_quality": self.min_quality if self.quality else None,
            },
            symbols=symbols,
        )

    def _find(self, folder: Path) -> Path:
        if folder.is_file() and not self.table:
            return folder
        if not folder.is_dir():
            raise MissingFileError(f"expected a table, or a folder with one, at {folder}; nothing is there")
        if self.table:
            return folder / self.table
        found = [path for path in sorted(folder.iterdir()) if _is_one(path, _TABLES) and path.is_file()]
        found = [path for path in found if path.name != self.features]
        if len(found) != 1:
            names = ", ".join(path.name for path in found) or "none"
            raise InputError(f"expected one table in {folder}, found {names}; name it with --table")
        return found[0]

    def _open(self, path: Path) -> tuple[Table, Table | None]:
        """The table of transcripts, and the column of sections alone."""
        if self.quality and not np.isfinite(self.min_quality):
            raise InputError(f"the least quality is a number, got {self.min_quality}")
        numbers = [name for name in (self.x, self.y, self.count, self.quality) if name]
        if len({*numbers, self.gene}) != len(numbers) + 1:
            raise InputError(f"every column has one meaning, got {', '.join([*numbers, self.gene])}")
        numeric = bool(self.section) and _holds_numbers(path, self.section)
        labels = [self.section] if self.section else []
        extra = [*labels] if numeric else []
        table = Table.open(path, [*numbers, *extra], [self.gene, *([] if numeric else labels)], hint=" (--table)")
        z = [self.z] if self.z else []
        if z and not labels:
            Table.open(path, z, [])
        return table, Table.open(path, [*extra, *z], [] if numeric else labels) if labels else None

    def _features(self, folder: Path) -> tuple[tuple[str, ...] | None, dict[str, str]]:
        if not self.features:
            return None, {}
        path = folder / self.features
        rows = [row for row in read_rows(path, "a list of features") if row and row[0].strip()]
        genes = [row for row in rows if len(row) < 3 or row[2] == "Gene Expression"]
        names = [row[0].strip() for row in genes if not any(no_gene_reason(name) for name in row[:2])]
        if not names:
            raise FormatError(f"expected names of genes in the first column of {path}, found none")
        ids = any(ensembl_id(name) for name in names)
        return tuple(dict.fromkeys(names)), read_symbols(path) if ids and len(genes[0]) > 1 else {}

    def _stains(self, table: Path, section: str) -> list[StainImage]:
        available: dict[str, StainImage] = {}
        for stain, path in self._image_paths(table, section):
            image = open_channels(path, (stain,) if stain else self.channels)
            if self.image_um:
                um_to_px = scale_matrix(self.image_um, self.image_um, path)
            elif image.um_to_px is None:
                raise InputError(f"{path} does not say how large its pixels are; pass --image-um")
            else:
                um_to_px = image.um_to_px
            check_pixel_um(pixel_size_um(um_to_px), path)
            for name, plane in image.planes.items():
                if name in available:
                    raise InputError(f"{path} and another image of {table.name} both have a channel {name}; name them")
                available[name] = StainImage(name, plane, um_to_px, image.levels)
        return [available[name] for name in pick_stains(list(available), self.stains, table)]

    def _image_paths(self, table: Path, section: str) -> list[tuple[str, Path]]:
        """(stain or nothing, path) of a section's images."""
        if not self.images:
            found = [path for path in sorted(table.parent.iterdir()) if _is_one(path, _IMAGES)]
            if not found:
                raise MissingFileError(
                    f"expected images ({', '.join(_IMAGES)}) beside {table}; name them with --images"
                )
            if self.section:
                raise InputError(f"{table} has several sections: say which image is whose, --images '{{section}}.tif'")
            return [("", path) for path in found]
        named = [entry.rpartition("=") for entry in self.images]
        return [(stain, table.parent / path.replace("{section}", section)) for stain, _, path in named]

    def _to_um(self, first: StainImage) -> NDArray[np.float64]:
        """3 x 3 from the table's positions to microns."""
        if self.unit == "um":
            return np.eye(3)
        if self.unit == "px":
            return np.asarray(np.linalg.inv(first.um_to_px), np.float64)
        try:
            size_um = float(self.unit)
        except ValueError:
            size_um = np.nan
        if not 1e-4 <= size_um <= 1e4:
            raise InputError(
                f"the unit of x and y is um, px or its size in microns (0.0001 to 10000), got {self.unit!r}"
            )
        return np.diag([size_um, size_um, 1.0])


@dataclass(frozen=True, eq=False)
class _Batches:
    """The stream of one section's rows."""

    table: Table
    reader: TableReader
    label: str
    to_um: NDArray[np.float64]

    def __call__(self) -> Iterator[TranscriptBatch]:
        """Positions in microns; rows of other sections are passed over."""
        for first_row, batch in self.table.batches():
            if self.label:
                codes, labels = _labels(batch.column(self.reader.section))
                here = np.flatnonzero(np.array([label == self.label for label in labels], bool)[codes])
                if not len(here):
                    continue
                if len(here) < batch.num_rows:
                    batch = batch.take(pa.array(here))  # noqa: PLW2901  the section's rows are the batch
            yield self._batch(batch, first_row)

    def faults(self) -> Iterator[Fault]:
        """Every place of the table that cannot be read."""
        yield from self.table.faults()

    def _batch(self, batch: Any, first_row: int) -> TranscriptBatch:
        reader = self.reader
        codes, names = encode_names(batch.column(reader.gene))
        x, y = _numbers(batch, reader.x), _numbers(batch, reader.y)
        (a, b, c), (d, e, f) = self.to_um[:2].tolist()
        x_um, y_um = a * x + b * y + c, d * x + e * y + f
        counts = _numbers(batch, reader.count) if reader.count else None
        chosen = Selection(len(codes), first_row, counts)
        chosen.drop_lost(x_um, y_um)
        chosen.drop_no_genes(codes, names)
        if reader.quality:
            low = ~(_numbers(batch, reader.quality) >= reader.min_quality)  # true for a missing quality
            chosen.drop(low, f"{reader.quality} below {reader.min_quality:g}")
        if counts is None:
            return chosen.batch(x_um, y_um, codes, names)
        chosen.drop(~(counts >= 0), "no count")
        chosen.drop(counts == 0, "count of zero")
        chosen.drop(counts != np.rint(counts), "count that is no whole number")
        chosen.drop(counts > _MOST, f"count above {_MOST}")
        kept = chosen.batch(x_um, y_um, codes, names)
        whole = counts[chosen.kept].astype(np.int64)
        return TranscriptBatch(kept.x_um, kept.y_um, kept.gene, kept.names, kept.dropped, kept.spans, whole)


def _is_one(path: Path, endings: tuple[str, ...]) -> bool:
    return path.name.lower().endswith(endings) and not path.name.startswith(".")


def _numbers(batch: Any, column: str) -> NDArray[np.float64]:
    return np.asarray(batch.column(column).to_numpy(zero_copy_only=False), np.float64)


def _labels(column: Any) -> tuple[NDArray[np.int32], list[str]]:
    """Names of sections; whole numbers without a point, however they are stored."""
    codes, names = encode_names(column)
    return codes, [name.strip().removesuffix(".0") for name in names]


def _holds_numbers(path: Path, column: str) -> bool:
    if path.suffix != ".parquet" or not path.is_file():
        return False
    try:
        schema = pq.read_schema(path)
    except (OSError, pa.ArrowException):
        return False  # opening the table says what is wrong
    kinds = [field.type for field in schema if field.name == column]
    return any(pa.types.is_integer(kind) or pa.types.is_floating(kind) for kind in kinds)


def _groups(path: Path, table: Table | None, z: str) -> dict[str, Any]:
    """Section -> mean z (None without a column of z), in the order of the table; "" where there is no such column."""
    table = table or Table(path, (z,), ())
    sums: dict[str, list[float]] = {}
    label = next((name for name in table.columns if name != z), "")
    for _, batch in table.batches():
        codes, labels = _labels(batch.column(label)) if label else (np.zeros(batch.num_rows, np.int32), [""])
        heights = _numbers(batch, z) if z else np.full(len(codes), np.nan)
        good = np.isfinite(heights)
        totals, numbers = (np.bincount(codes[good], w, len(labels)) for w in (heights[good], None))
        for index, name in enumerate(labels):
            known = sums.setdefault(name, [0.0, 0.0])
            known[0], known[1] = known[0] + float(totals[index]), known[1] + float(numbers[index])
    sums.pop("" if label else "\0", None)
    if not sums:
        raise InputError(f"{path} names no section in its column {label or z}")
    if z and not all(number for _, number in sums.values()):
        raise InputError(f"{path} has a section without any number in its column {z}")
    return {name: total / number if z else None for name, (total, number) in sums.items()}
