"""The brain store: one zarr v3 group a brain, images as OME-Zarr, transcripts by tile, facts in the attributes.

Version 2. `images/` (stain, section, y, x) uint8 with pyramid; `transcripts/<section>/` (see
`tera_mind.formats.transcripts`); `tissue/` uint8 (section, cells of 64 px); `checksums/` uint8 (section, stain, row,
column, 32), SHA-256 of every window of `shard_windows`, zeros for one that is all zero and so not stored; the attribute
`tera_mind` holds genes, stains, pixel size, true section positions, the affine from microns, intensity ranges,
provenance and the fingerprint of these. Version 1, still read, had no checksums and an array a column of transcripts.
Pixel i covers [i, i + 1): a position in pixels is rounded down.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from tera_mind.errors import FormatError, InputError
from tera_mind.formats.atomic import atomic_directory
from tera_mind.formats.attributes import Affine, Section, fingerprint_of, read_attributes
from tera_mind.formats.brain_writer import VERSION, BrainWriter, cell_counts, cell_means
from tera_mind.formats.checksums import Checksums, section_sha256
from tera_mind.formats.ome import DAMAGE, ZarrArray, open_level, read_window, shard_windows
from tera_mind.formats.section_arrays import SectionArray
from tera_mind.formats.sections import ARRAYS, SectionTranscripts
from tera_mind.formats.tissue import tissue_grid, tissue_mask
from tera_mind.formats.transcripts import Transcripts, add_bins, bin_transcripts, empty_bins, merge_keys, pack_keys
from tera_mind.geometry import Box

__all__ = [
    "Affine",
    "Brain",
    "BrainWriter",
    "Section",
    "Transcripts",
    "bin_transcripts",
    "cell_counts",
    "cell_means",
    "create_brain",
    "gene_bins",
    "read_attributes",
]

_OLDEST_VERSION = 1
_KEYS = ("genes", "stains", "pixel_um", "sections", "intensity_range")


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
        self.version = int(attributes["version"])
        self._sections: dict[int, SectionTranscripts] = {}

    @classmethod
    def open(cls, path: str | Path) -> Brain:
        """Open and validate a store. Raises `MissingFileError` or `FormatError` (damaged, or of an unknown version)."""
        path = Path(path)
        attributes = read_attributes(
            path, "brain", VERSION, _KEYS, "make one with `tera-mind ingest`", oldest=_OLDEST_VERSION
        )
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
            missing = [n for n in ARRAYS[self.version] if not (self._folder(index) / n / "zarr.json").is_file()]
            if missing:
                raise FormatError(
                    f"section {index} of {self.path} lacks transcripts/{', '.join(missing)}; ingest again"
                )
        _ = self._checksums  # says where they are missing
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
    def _tissue(self) -> SectionArray:
        return SectionArray(self.path / "tissue", sparse=self.version == 1)

    @cached_property
    def _checksums(self) -> Checksums | None:
        return None if self.version == 1 else Checksums(self.path, self.shape)

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
        return fingerprint_of(self.attributes, self.shape)

    def image(self, box: Box, sections: Sequence[int] | None = None, fill: int = 0) -> NDArray[np.uint8]:
        """Stains of a box that may leave the canvas: (stain, section, y, x) uint8, `fill` where there is nothing.

        `sections` (default: all) may hold numbers below 0 or beyond the last section; those are `fill` throughout.
        Raises `FormatError` where a file is damaged or lost.
        """
        sections = range(self.shape[1]) if sections is None else sections
        inside = box.intersect(self.canvas)
        if self._checksums is not None and not inside.is_empty:
            self._checksums.require_files([z for z in sections if 0 <= z < self.shape[1]], inside)
        return read_window(self._images, box, sections, fill)

    def overview(self, level: int) -> NDArray[np.uint8]:
        """A whole pyramid level, (stain, section, y, x); every level halves y and x."""
        array = open_level(self.path / "images", level)
        return read_window(array, Box(0, array.shape[2], 0, array.shape[3]), range(array.shape[1]), 0)

    def transcripts(self, section: int, box: Box) -> Transcripts:
        """Transcripts of a box that may leave the canvas; none for a section that does not exist."""
        if not 0 <= section < len(self.sections):
            return Transcripts.empty()
        return self._transcripts(section).window(box)

    def _transcripts(self, section: int) -> SectionTranscripts:
        if section not in self._sections:
            total = self.sections[section].transcripts
            self._sections[section] = SectionTranscripts(self._folder(section), self.canvas, total, self.version)
        return self._sections[section]

    def tissue(self, section: int) -> NDArray[np.bool_]:
        """Tissue in cells of 64 px: bool (ceil(height / 64), ceil(width / 64)).

        Raises `FormatError` where it is damaged or lost.
        """
        return self._tissue.read(section).astype(bool)

    def verify(self, progress: Callable[[Sequence[int]], Iterable[int]] = iter) -> None:
        """Read the whole store and compare it with its checksums; `progress` wraps the sections.

        Raises `FormatError` that names what is damaged: the first section and file, or the attributes, as far as
        `fingerprint` covers them; and `InputError` for a store of version 1, which has no checksums.
        """
        if self._checksums is None:
            raise InputError(
                f"{self.path} is of version 1, which has no checksums; ingest the brain again to have them"
            )
        for index in progress(range(len(self.sections))):
            try:
                self._checksums.verify(index)
                rows = self._transcripts(index).verify(len(self.genes))
                tissue = self._tissue.read(index)
            except DAMAGE as error:
                raise FormatError(f"section {index} ({self.sections[index].name}): {error}") from None
            if section_sha256(self._checksums.section(index), rows, tissue) != self.sections[index].sha256:
                raise FormatError(
                    f"section {index} ({self.sections[index].name}) of {self.path} is not as its SHA-256 says: its "
                    "tissue mask, checksums or attributes were changed; ingest the brain again"
                )
        if self.attributes.get("fingerprint") != self.fingerprint:
            raise FormatError(
                f"attributes of {self.path} are not as they were written: genes, stains, pixel size, intensity ranges "
                "or sections were changed; ingest the brain again"
            )


def gene_bins(
    brain: Brain, sections: Sequence[int], box: Box, bin_px: int, genes_index: NDArray[np.int64] | None = None
) -> NDArray[np.float32]:
    """Binned counts of a box: float32 (gene, section, height / bin_px, width / bin_px).

    `genes_index` picks and orders genes of the brain (default: all), each at most once; those of index -1 are zero.
    Sections that do not exist are empty. Memory is that of the result: keep boxes small where genes are many.
    """
    new_gene = None
    if genes_index is not None:
        there = np.flatnonzero(genes_index >= 0)
        new_gene = np.full(len(brain.genes), -1, np.int64)
        new_gene[genes_index[there]] = there
        if (new_gene >= 0).sum() < len(there):
            raise InputError("a gene was asked for twice, expected each once")
    genes = len(brain.genes) if genes_index is None else len(genes_index)
    counts = empty_bins(genes, len(sections), (box.height, box.width), bin_px)
    for layer, section in enumerate(sections):
        add_bins(counts, layer, brain.transcripts(section, box), bin_px, new_gene)
    return counts


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
        writer = BrainWriter.create(folder, genes=genes, stains=stains, pixel_um=pixel_um, shape=shape)
        sections = []
        for index, rows in enumerate(transcripts):
            _check_rows(rows, (height, width), len(genes), index)
            keys = pack_keys(rows.y.astype(np.int64), rows.x.astype(np.int64), rows.gene, writer.tile_columns)
            digest = writer.write_transcripts(index, *merge_keys(keys, rows.count.astype(np.int64)))
            digests = {
                (stain, box): writer.write_image(stain, index, box, image[(stain, index, *box.slices())])
                for stain in range(len(stains))
                for box in shard_windows(shape)
            }
            mask = tissue_mask(cell_counts(keys, (height, width)), cell_means(image[0, index]))
            writer.write_tissue(index, mask if tissue is None else tissue[index])
            for stain in range(len(stains)):
                writer.build_section_pyramid(stain, index)
            sha256 = writer.seal_section(index, digests, digest)
            total = int(rows.count.sum())
            sections.append(Section(names[index], float(positions[index]), affine, total, sha256=sha256))
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
