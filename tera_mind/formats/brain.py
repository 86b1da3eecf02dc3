"""The brain store: one zarr v3 group a brain, images as OME-Zarr, transcripts by tile, facts in the attributes.

Version 1. `images/` (stain, section, y, x) uint8 with pyramid; `transcripts/<section>/` (see
`tera_mind.formats.transcripts`); `tissue/` uint8 (section, cells of 64 px); the attribute `tera_mind` holds genes,
stains, pixel size, true section positions, the affine from microns, intensity ranges and provenance.
Pixel i covers [i, i + 1): a position in pixels is rounded down.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import zarr
from numpy.typing import NDArray

from tera_mind import __version__
from tera_mind.errors import FormatError, InputError, MissingFileError
from tera_mind.formats.atomic import atomic_directory
from tera_mind.formats.ome import (
    DAMAGE,
    ZarrArray,
    build_pyramid,
    create_multiscale,
    open_level,
    read_window,
    shard_windows,
)
from tera_mind.formats.tissue import CELL_PX, tissue_grid, tissue_mask
from tera_mind.formats.transcripts import (
    COLUMNS,
    MAX_GENES,
    SectionTranscripts,
    Transcripts,
    bin_transcripts,
    key_tile_counts,
    merge_keys,
    pack_keys,
    tile_grid,
    write_section,
)
from tera_mind.geometry import Box

__all__ = ["Brain", "BrainWriter", "Section", "Transcripts", "bin_transcripts", "create_brain", "gene_bins"]

VERSION = 1
_KEYS = ("genes", "stains", "pixel_um", "sections", "intensity_range")

#: (a, b, c), (d, e, f): x_px = a x_um + b y_um + c, y_px = d x_um + e y_um + f
Affine = tuple[tuple[float, float, float], tuple[float, float, float]]


@dataclass(frozen=True)
class Section:
    """One section of a brain: its true position, its map from microns to canvas pixels, where it came from."""

    name: str
    z_um: float
    affine_um_to_px: Affine
    transcripts: int
    dropped: dict[str, int] = field(default_factory=dict)
    source: dict[str, Any] = field(default_factory=dict)
    sha256: str = ""

    @staticmethod
    def from_json(record: Mapping[str, Any]) -> Section:
        (a, b, c), (d, e, f) = record["affine_um_to_px"]
        return Section(
            name=str(record["name"]),
            z_um=float(record["z_um"]),
            affine_um_to_px=((float(a), float(b), float(c)), (float(d), float(e), float(f))),
            transcripts=int(record["transcripts"]),
            dropped=dict(record.get("dropped", {})),
            source=dict(record.get("source", {})),
            sha256=str(record.get("sha256", "")),
        )


class Brain:
    """A brain store opened for reading: cheap to open and to pickle, arrays are opened when first used."""

    def __init__(self, path: Path, attributes: Mapping[str, Any]) -> None:
        self.path = path
        self.attributes = attributes
        self.genes: tuple[str, ...] = tuple(attributes["genes"])
        self.stains: tuple[str, ...] = tuple(attributes["stains"])
        self.pixel_um = float(attributes["pixel_um"])
        self.sections: tuple[Section, ...] = tuple(Section.from_json(record) for record in attributes["sections"])
        self.intensity_range: dict[str, tuple[float, float]] = {
            stain: (float(low), float(high)) for stain, (low, high) in attributes["intensity_range"].items()
        }
        self._sections: dict[int, SectionTranscripts] = {}

    @classmethod
    def open(cls, path: str | Path) -> Brain:
        """Open and validate a store. Raises `MissingFileError` or `FormatError` (damaged, or of an unknown version)."""
        path = Path(path)
        attributes = read_attributes(path, "brain", VERSION, _KEYS, "make one with `tera-mind ingest`")
        try:
            brain = cls(path, attributes)
        except (KeyError, TypeError, ValueError) as error:
            raise FormatError(f"attributes of {path} are malformed ({error!r}); ingest the brain again") from None
        brain._check()
        return brain

    def _check(self) -> None:
        expected = (len(self.stains), len(self.sections))
        if self.shape[:2] != expected or not all(expected) or not self.genes:
            raise FormatError(f"{self.path} promises {expected} stains and sections, its images hold {self.shape[:2]}")
        if len(set(self.genes)) != len(self.genes):
            raise FormatError(f"{self.path} names a gene twice; ingest the brain again")
        for index in range(len(self.sections)):
            missing = [n for n in ("indptr", *COLUMNS) if not (self._folder(index) / n / "zarr.json").is_file()]
            if missing:
                raise FormatError(
                    f"section {index} of {self.path} lacks transcripts/{', '.join(missing)}; ingest again"
                )
        cells = (len(self.sections), *tissue_grid(*self.shape[2:]))
        if self._tissue.shape != cells:
            raise FormatError(f"tissue mask of {self.path} should be {cells}, is {self._tissue.shape}; ingest again")

    def __reduce__(self) -> tuple[Any, ...]:
        return Brain, (self.path, self.attributes)

    def __repr__(self) -> str:
        return f"Brain({str(self.path)!r}, shape={self.shape}, genes={len(self.genes)}, pixel_um={self.pixel_um:g})"

    def _folder(self, section: int) -> Path:
        return self.path / "transcripts" / str(section)

    @cached_property
    def _images(self) -> ZarrArray:
        return open_level(self.path / "images")

    @cached_property
    def _tissue(self) -> ZarrArray:
        try:
            return zarr.open_array(self.path / "tissue", mode="r")
        except DAMAGE as error:
            raise FormatError(f"tissue mask of {self.path} cannot be read ({error}); ingest the brain again") from None

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(stain, section, height, width)."""
        return cast("tuple[int, int, int, int]", self._images.shape)

    @property
    def canvas(self) -> Box:
        return Box(0, self.shape[2], 0, self.shape[3])

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits that change with the genes, stains, geometry, intensities or contents of the brain."""
        sections = [
            [s.name, s.z_um, [list(row) for row in s.affine_um_to_px], s.transcripts, s.sha256] for s in self.sections
        ]
        ranges = {stain: list(bounds) for stain, bounds in self.intensity_range.items()}
        facts = [VERSION, self.genes, self.stains, self.pixel_um, list(self.shape), sections, ranges]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]

    def image(self, box: Box, sections: Sequence[int] | None = None, fill: int = 0) -> NDArray[np.uint8]:
        """Stains of a box that may leave the canvas: (stain, section, y, x) uint8, `fill` where there is nothing.

        `sections` (default: all) may hold numbers below 0 or beyond the last section; those are `fill` throughout.
        """
        return read_window(self._images, box, range(self.shape[1]) if sections is None else sections, fill)

    def overview(self, level: int) -> NDArray[np.uint8]:
        """A whole pyramid level, (stain, section, y, x); every level halves y and x."""
        array = open_level(self.path / "images", level)
        return read_window(array, Box(0, array.shape[2], 0, array.shape[3]), range(array.shape[1]), 0)

    def transcripts(self, section: int, box: Box) -> Transcripts:
        """Transcripts of a box that may leave the canvas; none for a section that does not exist."""
        if not 0 <= section < len(self.sections):
            return Transcripts.empty()
        if section not in self._sections:
            total = self.sections[section].transcripts
            self._sections[section] = SectionTranscripts(self._folder(section), self.canvas, total)
        return self._sections[section].window(box)

    def tissue(self, section: int) -> NDArray[np.bool_]:
        """Tissue in cells of 64 px: bool (ceil(height / 64), ceil(width / 64))."""
        return np.asarray(self._tissue[section], bool)


def read_attributes(path: Path, kind: str, version: int, keys: Sequence[str], remedy: str) -> dict[str, Any]:
    """The `tera_mind` attributes of a zarr store of the given format; errors say what else the path is."""
    if not path.exists():
        raise MissingFileError(f"expected a {kind} store at {path}, nothing is there; {remedy}")
    try:
        attributes = dict(zarr.open_group(path, mode="r").attrs).get("tera_mind")
    except DAMAGE as error:
        raise FormatError(f"expected a {kind} store at {path}, it is no readable zarr group ({error})") from None
    if not isinstance(attributes, dict) or attributes.get("format") != kind:
        found = attributes.get("format") if isinstance(attributes, dict) else None
        what = f"it is a {found} store" if found else "it was not written by tera-mind"
        raise FormatError(f"expected a {kind} store at {path}, {what}; {remedy}")
    if attributes.get("version") != version:
        raise FormatError(
            f"{path} has {kind} format of unknown version {attributes.get('version')!r}, "
            f"tera-mind {__version__} reads version {version}; update tera-mind or write the store again"
        )
    missing = [key for key in keys if key not in attributes]
    if missing:
        raise FormatError(f"attributes of {path} lack {', '.join(missing)}; write the store again")
    return cast("dict[str, Any]", attributes)


def gene_bins(
    brain: Brain, sections: Sequence[int], box: Box, bin_px: int, genes_index: NDArray[np.int64] | None = None
) -> NDArray[np.float32]:
    """Binned counts of a box: float32 (gene, section, height / bin_px, width / bin_px).

    `genes_index` picks and orders genes of the brain (default: all). Sections that do not exist are empty.
    """
    layers = [
        bin_transcripts(brain.transcripts(section, box), (box.height, box.width), bin_px, len(brain.genes))
        for section in sections
    ]
    counts = np.stack(layers, axis=1)
    return counts if genes_index is None else counts[genes_index]


class BrainWriter:
    """Writes a brain piece by piece into the empty folder that `atomic_directory` yields; `finish` makes it a store."""

    def __init__(
        self,
        folder: Path,
        *,
        genes: Sequence[str],
        stains: Sequence[str],
        pixel_um: float,
        shape: tuple[int, int, int, int],
        section_um: float = 10.0,
    ) -> None:
        if not 0 < len(genes) <= MAX_GENES:
            raise InputError(f"a panel has 1 to {MAX_GENES} genes, got {len(genes)}")
        for what, names in (("gene", genes), ("stain", stains)):
            if len(set(names)) != len(names):
                raise InputError(
                    f"every {what} needs its own name, got {[n for n in names if list(names).count(n) > 1]}"
                )
        if min(shape) < 1:
            raise InputError(
                f"a brain needs at least one stain, section and pixel, got (stain, section, y, x) = {shape}"
            )
        self._folder, self._shape = folder, shape
        self._genes, self._stains, self._pixel_um = list(genes), list(stains), pixel_um
        self._group = zarr.create_group(folder, zarr_format=3)
        self._group.create_group("transcripts")
        self._images = create_multiscale(
            folder / "images", shape, name="images", stains=stains, pixel_um=pixel_um, section_um=section_um
        )
        cells = (shape[1], *tissue_grid(*shape[2:]))
        self._tissue = self._group.create_array("tissue", shape=cells, dtype="uint8", chunks=(1, *cells[1:]))
        self._digests = [hashlib.sha256() for _ in range(shape[1])]

    @property
    def tile_columns(self) -> int:
        """Columns of 256 px tiles, as `pack_keys` wants them."""
        return tile_grid(*self._shape[2:])[1]

    def write_image(self, stain: int, section: int, box: Box, window: NDArray[np.uint8]) -> None:
        """Write one of the windows of `shard_windows(shape)`, (y, x) uint8."""
        self._images[(stain, section, *box.slices())] = window
        self._digests[section].update(f"{stain}:{box}".encode())
        self._digests[section].update(np.ascontiguousarray(window).data)

    def write_transcripts(self, section: int, keys: NDArray[np.uint64], counts: NDArray[np.uint16]) -> None:
        """Write the sorted, distinct keys of a section (from `merge_keys`) and their counts."""
        rows, columns = tile_grid(*self._shape[2:])
        write_section(self._folder / "transcripts" / str(section), keys, counts, rows * columns)
        self._digests[section].update(keys.data)
        self._digests[section].update(counts.data)

    def write_tissue(self, section: int, mask: NDArray[np.bool_]) -> None:
        """Write the tissue mask of a section, cells of 64 px."""
        self._tissue[section] = mask.astype(np.uint8)

    def finish(self, sections: Sequence[Section], intensity_range: Mapping[str, tuple[float, float]]) -> None:
        """Build the image pyramid and write the attributes; from here on the folder is a brain store."""
        build_pyramid(self._folder / "images")
        records = [
            asdict(section) | {"sha256": digest.hexdigest()}
            for section, digest in zip(sections, self._digests, strict=True)
        ]
        self._group.attrs["tera_mind"] = {
            "format": "brain",
            "version": VERSION,
            "genes": self._genes,
            "stains": self._stains,
            "pixel_um": self._pixel_um,
            "sections": records,
            "intensity_range": {stain: list(bounds) for stain, bounds in intensity_range.items()},
            "software": {"tera_mind": __version__, "zarr": zarr.__version__},
        }


def create_brain(
    path: str | Path,
    *,
    image: NDArray[np.uint8],
    transcripts: Sequence[Transcripts],
    genes: Sequence[str],
    stains: Sequence[str],
    pixel_um: float,
    section_z_um: Sequence[float] | None = None,
    names: Sequence[str] | None = None,
    tissue: NDArray[np.bool_] | None = None,
    overwrite: bool = False,
) -> Brain:
    """Write a brain that fits in memory, whole or not at all, and open it.

    `image` is (stain, section, y, x) uint8; `transcripts` has one entry a section, in canvas pixels; `section_z_um`
    defaults to a spacing of 10 um; `tissue` (section, cells of 64 px) is estimated when not given. The affine is a
    plain scale by `pixel_um`. Raises `InputError` when the parts do not fit together or the path is taken.
    """
    path = Path(path)
    if path.exists() and not overwrite:
        raise InputError(f"{path} is already there; choose another path or overwrite it")
    if image.ndim != 4 or image.shape[:2] != (len(stains), len(transcripts)):
        raise InputError(f"image should be ({len(stains)}, {len(transcripts)}, y, x), got {image.shape}")
    depth, height, width = image.shape[1:]
    positions = [10.0 * index for index in range(depth)] if section_z_um is None else list(section_z_um)
    names = [f"section_{index:03d}" for index in range(depth)] if names is None else list(names)
    if len(positions) != depth or len(names) != depth:
        raise InputError(f"{depth} sections need as many names and positions, got {len(names)} and {len(positions)}")
    affine: Affine = ((1 / pixel_um, 0.0, 0.0), (0.0, 1 / pixel_um, 0.0))
    shape = cast("tuple[int, int, int, int]", image.shape)
    with atomic_directory(path) as folder:
        writer = BrainWriter(folder, genes=genes, stains=stains, pixel_um=pixel_um, shape=shape)
        sections = []
        for index, rows in enumerate(transcripts):
            _check_rows(rows, (height, width), len(genes), index)
            keys = pack_keys(rows.y.astype(np.int64), rows.x.astype(np.int64), rows.gene, writer.tile_columns)
            writer.write_transcripts(index, *merge_keys(keys, rows.count.astype(np.int64)))
            for stain in range(len(stains)):
                for box in shard_windows(shape):
                    writer.write_image(stain, index, box, image[(stain, index, *box.slices())])
            mask = tissue_mask(cell_counts(keys, (height, width)), cell_means(image[0, index]))
            writer.write_tissue(index, mask if tissue is None else tissue[index])
            sections.append(Section(names[index], float(positions[index]), affine, int(rows.count.sum())))
        writer.finish(sections, dict.fromkeys(stains, (0.0, 255.0)))
    return Brain.open(path)


def _check_rows(rows: Transcripts, shape_px: tuple[int, int], genes: int, section: int) -> None:
    if not len(rows):
        return
    for name, column, limit in (("y", rows.y, shape_px[0]), ("x", rows.x, shape_px[1]), ("gene", rows.gene, genes)):
        if column.min() < 0 or column.max() >= limit:
            raise InputError(
                f"transcripts of section {section} have {name} in {column.min()}..{column.max()}, "
                f"expected 0..{limit - 1}"
            )


def cell_counts(keys: NDArray[np.uint64], shape_px: tuple[int, int]) -> NDArray[np.int64]:
    """Keys in every 64 px cell of a canvas (rows, columns)."""
    rows, columns = tissue_grid(*shape_px)
    return key_tile_counts(keys, tile_grid(*shape_px), CELL_PX)[:rows, :columns]


def cell_means(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Mean of every 64 px cell of an image (y, x); cells at the far edges average what they hold."""
    edges_y, edges_x = (np.arange(0, size, CELL_PX) for size in image.shape)
    totals = np.add.reduceat(np.add.reduceat(image.astype(np.float32), edges_y, axis=0), edges_x, axis=1)
    heights = np.diff(edges_y, append=image.shape[0])
    widths = np.diff(edges_x, append=image.shape[1])
    return np.asarray(totals / np.outer(heights, widths), np.float32)
