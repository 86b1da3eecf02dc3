"""Writing a brain store section by section, from one process or several.

Images, transcripts, tissue and checksums of a section lie in files of their own, and those of a window of
`shard_windows` too, so that processes may write different sections, or windows of one section, at the same time.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import numpy as np
import zarr
from numpy.typing import NDArray

from tera_mind import __version__
from tera_mind.errors import InputError
from tera_mind.formats.attributes import Section, fingerprint_of, read_attributes
from tera_mind.formats.checksums import DIGEST_BYTES, section_sha256, window_digest
from tera_mind.formats.ome import build_plane_pyramid, create_multiscale, open_level, shard_windows, window_grid
from tera_mind.formats.section_arrays import SectionArray
from tera_mind.formats.tissue import CELL_PX, tissue_grid
from tera_mind.formats.transcripts import MAX_GENES, SectionWriter, key_tile_counts, tile_grid
from tera_mind.geometry import Box

#: version of the brain store that is written
VERSION = 2
_UNFINISHED = "unfinished brain"


class BrainWriter:
    """Writes a brain piece by piece into a folder; `finish` makes it a store.

    `create` starts an empty folder (that of `atomic_directory`, or one that is kept between runs), `resume` opens the
    same folder again, in this process or another. Of a section: `write_image` for every window, `section_writer`,
    `write_tissue`, `build_section_pyramid` for every stain, in any order; then `seal_section`. At last `finish`, once.
    """

    def __init__(self, folder: Path, facts: Mapping[str, Any]) -> None:
        self._folder, self._facts = folder, facts
        self._shape = cast("tuple[int, int, int, int]", tuple(facts["shape"]))
        self._images = open_level(folder / "images", mode="r+")
        self._tissue = SectionArray(folder / "tissue", "r+")
        self._checksums = SectionArray(folder / "checksums", "r+")

    @classmethod
    def create(
        cls,
        folder: Path,
        *,
        genes: Sequence[str],
        stains: Sequence[str],
        pixel_um: float,
        shape: tuple[int, int, int, int],
        section_um: float = 10.0,
    ) -> BrainWriter:
        """Start a brain of (stain, section, height, width) in an empty folder.

        `section_um` is the spacing that viewers show. Raises `InputError` for a panel, stains or a shape that no
        brain can have.
        """
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
        group = zarr.create_group(folder, zarr_format=3)
        group.create_group("transcripts")
        create_multiscale(
            folder / "images", shape, name="images", stains=stains, pixel_um=pixel_um, section_um=section_um
        )
        SectionArray.create(folder / "tissue", (shape[1], *tissue_grid(*shape[2:])))
        SectionArray.create(folder / "checksums", (shape[1], shape[0], *window_grid(shape), DIGEST_BYTES))
        group.attrs["tera_mind"] = {
            "format": _UNFINISHED,
            "version": VERSION,
            "genes": list(genes),
            "stains": list(stains),
            "pixel_um": pixel_um,
            "shape": list(shape),
        }
        return cls.resume(folder)

    @classmethod
    def resume(cls, folder: Path) -> BrainWriter:
        """Open a folder that `create` started. Raises `MissingFileError` or `FormatError` where it is none."""
        return cls(folder, read_attributes(folder, _UNFINISHED, VERSION, ("shape",), "start it again"))

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(stain, section, height, width)."""
        return self._shape

    @property
    def tile_columns(self) -> int:
        """Columns of 256 px tiles, as `pack_keys` wants them."""
        return tile_grid(*self._shape[2:])[1]

    def write_image(self, stain: int, section: int, box: Box, window: NDArray[np.uint8]) -> str:
        """Write one of the windows of `shard_windows(shape)`, (y, x) uint8; its digest for `seal_section`."""
        self._images[(stain, section, *box.slices())] = window
        return window_digest(window)

    def section_writer(self, section: int) -> SectionWriter:
        """Writer of a section's transcripts; what an earlier one left of the section is removed."""
        folder = self._folder / "transcripts" / str(section)
        if folder.exists():
            shutil.rmtree(folder)
        rows, columns = tile_grid(*self._shape[2:])
        return SectionWriter(folder, rows * columns)

    def write_transcripts(self, section: int, keys: NDArray[np.uint64], counts: NDArray[np.uint16]) -> str:
        """Write all sorted, distinct keys of a section (from `merge_keys`); their digest for `seal_section`."""
        writer = self.section_writer(section)
        writer.append(keys, counts)
        return writer.finish()

    def write_tissue(self, section: int, mask: NDArray[np.bool_]) -> None:
        """Write the tissue mask of a section, cells of 64 px."""
        self._tissue.write(section, mask.astype(np.uint8))

    def build_section_pyramid(self, stain: int, section: int) -> None:
        """Fill the coarser levels of one stain and section from the windows written before."""
        build_plane_pyramid(self._folder / "images", stain, section)

    def seal_section(self, section: int, images: Mapping[tuple[int, Box], str], rows: str) -> str:
        """Keep the digests of a section and return its SHA-256, for `Section.sha256`.

        `images`: what `write_image` gave for (stain, window), in any order; a window that is left out was not written
        and is zero. `rows`: what `SectionWriter.finish` gave. The tissue mask must be there,
        else `FormatError`.
        """
        digests = np.zeros(self._checksums.shape[1:], np.uint8)
        places = {box: divmod(number, digests.shape[2]) for number, box in enumerate(shard_windows(self._shape))}
        for (stain, box), digest in images.items():
            digests[(stain, *places[box])] = np.frombuffer(bytes.fromhex(digest), np.uint8)
        self._checksums.write(section, digests)
        return section_sha256(digests, rows, self._tissue.read(section))

    def finish(self, sections: Sequence[Section], intensity_range: Mapping[str, tuple[float, float]]) -> None:
        """Write the attributes; from here on the folder is a brain store. Every section needs its `sha256`."""
        unsealed = [section.name for section in sections if not section.sha256]
        if unsealed or len(sections) != self._shape[1]:
            raise ValueError(f"{len(sections)} of {self._shape[1]} sections, not sealed: {unsealed}")
        facts = {
            "format": "brain",
            "version": VERSION,
            "genes": self._facts["genes"],
            "stains": self._facts["stains"],
            "pixel_um": self._facts["pixel_um"],
            "sections": [asdict(section) for section in sections],
            "intensity_range": {stain: list(bounds) for stain, bounds in intensity_range.items()},
            "software": {"tera_mind": __version__, "zarr": zarr.__version__},
        }
        facts["fingerprint"] = fingerprint_of(facts, self._shape)
        zarr.open_group(self._folder, mode="r+").attrs["tera_mind"] = facts


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
