"""The processed tiles that were published with the paper: genes as sparse npz, images as zipped zarr 2, uint8.

One file a tile of 256 px with a margin of 128 px, called `r0_r1_c0_c1_R0_R1_C0_C1`: rows and columns of the core and
of the whole. Genes: a pydata-sparse COO array (rows, columns, sections * genes), channel = section * genes + gene.
Images: (stains * sections, rows, columns), all sections of the first stain first. Only cores are used, so nothing
comes twice. Source: the data set's files at the Brain Image Library, entry 64a7615a166fc0c3.
"""

from __future__ import annotations

import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, overload

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.storage import ZipStore

from tera_mind.errors import FormatError, InputError, MissingFileError
from tera_mind.geometry import Box
from tera_mind.ingest.features import no_gene_reason, scale_matrix
from tera_mind.ingest.mosaic import MosaicPlane
from tera_mind.ingest.published_genes import TILE_DAMAGE, Split, TileBatches, TileCounts, count_sections
from tera_mind.ingest.published_tiles import Tiles, list_tiles
from tera_mind.ingest.small_csv import read_rows
from tera_mind.ingest.source import Plane, SectionSource, StainImage, option


@dataclass(frozen=True)
class PublishedReader:
    """The paper's processed tiles (gene npz, image zarr zip): all sections of one brain in one folder."""

    EXAMPLE: ClassVar[str] = (
        "tera-mind ingest published 638850 --out brain.zarr --gene-list genes.txt --section-step 200"
    )

    stains: tuple[str, ...] = option(("DAPI", "PolyT"), "stains of the images, in their order", "A,B")
    gene_tiles: str = option("genes", "folder of the npz tiles in the folder", "PATH")
    image_tiles: str = option("images", "folder of the zarr zips in the folder", "PATH")
    gene_list: str = option("genes.txt", "names of the genes, one a line, in the order of the channels", "PATH")
    tile_um: float = option(0.108, "side of a pixel", "UM")
    section_step: float = option(100.0, "distance between sections", "UM")
    split: str = option(
        "",
        "scratch folder that keeps the genes by section, made at the first reading (16 bytes a count); without it "
        "every section decodes every tile again",
        "FOLDER",
    )
    take: tuple[str, ...] = option((), "numbers of the sections to take, from 0 (default: all)", "K,K")

    def sections(self, folder: Path, z_um: float) -> list[SectionSource]:
        """The sections of a brain's folder. Raises `MissingFileError`, `FormatError` or `InputError`, one line each."""
        if not folder.is_dir():
            raise MissingFileError(f"expected a folder of processed tiles at {folder}, nothing is there")
        um_to_px = scale_matrix(self.tile_um, self.tile_um, folder)
        names = [row[0].strip() for row in read_rows(folder / self.gene_list, "names of genes")]
        twice = sorted(name for name, times in Counter(names).items() if times > 1 or not name)
        if twice or not names:
            listed = ", ".join(repr(name) for name in twice[:4]) or "none"
            raise FormatError(f"{folder / self.gene_list} should have every gene's name once, one a line; see {listed}")
        tiles, images = list_tiles(folder / self.gene_tiles, "npz"), list_tiles(folder / self.image_tiles, "zip")
        count = count_sections(tiles, len(names))
        channels = _image_shape(images)[0]
        if channels != len(self.stains) * count:
            raise InputError(
                f"{images.path(0)} has {channels} channels, expected those of {len(self.stains)} stains "
                f"({', '.join(self.stains)}) in {count} sections; name the stains with --stains"
            )
        corner = np.minimum(tiles.cores[:, [0, 2]].min(axis=0), images.cores[:, [0, 2]].min(axis=0))
        size = images.cores[:, [1, 3]].max(axis=0) - corner
        boxes = images.cores - np.repeat(corner, 2)
        chosen = self._chosen(count)
        counts = TileCounts(tiles, count, len(names))
        notices = _notices(tiles, images)
        split = Split(str(Path(self.split).absolute()), counts) if self.split else None
        return [
            SectionSource(
                name=f"{folder.resolve().name}_{section:02d}",
                z_um=z_um + (section - chosen[0]) * self.section_step,
                stains=tuple(
                    StainImage(
                        stain,
                        MosaicPlane(
                            boxes, _Cores(images, index * count + section), (int(size[0]), int(size[1])), "uint8"
                        ),
                        um_to_px,
                        (0.0, 255.0),
                    )
                    for index, stain in enumerate(self.stains)
                ),
                batches=TileBatches(
                    counts, split, section, tuple(names), (int(corner[0]), int(corner[1])), self.tile_um
                ),
                panel=tuple(name for name in names if no_gene_reason(name) is None),
                expected_batches=None if split else len(tiles),
                provenance={
                    "format": "published",
                    "folder": folder.resolve().name,
                    "section": section,
                    "pixel_um": self.tile_um,
                    "intensities": "uint8 as published, not stretched again",
                    "tile_px_of_corner": corner.tolist(),
                }
                | notices,
            )
            for section in chosen
        ]

    def _chosen(self, count: int) -> list[int]:
        try:
            chosen = [int(text) for text in self.take] or list(range(count))
        except ValueError:
            raise InputError(f"sections to take are numbers from 0 to {count - 1}, got {','.join(self.take)}") from None
        if min(chosen) < 0 or max(chosen) >= count or chosen != sorted(set(chosen)):
            raise InputError(
                f"sections to take are numbers from 0 to {count - 1}, ascending, got {','.join(self.take)}"
            )
        return chosen


def _notices(tiles: Tiles, images: Tiles) -> dict[str, list[str]]:
    """Cores that only one of the two folders has: empty there. Under the key that reports read."""
    genes, pictures = ({tuple(core) for core in own.cores.tolist()} for own in (tiles, images))
    notices = [
        f"{len(cores)} tiles have {words}, the first is {'_'.join(map(str, min(cores)))}"
        for words, cores in (("an image and no genes", pictures - genes), ("genes and no image", genes - pictures))
        if cores
    ]
    return {"notices": notices} if notices else {}


@dataclass(frozen=True, eq=False)
class _CorePlane:
    """The core of one channel of an image tile."""

    path: Path
    channel: int
    core: Box

    @property
    def shape(self) -> tuple[int, int]:
        return self.core.height, self.core.width

    def read(self, box: Box) -> NDArray[Any]:
        """Pixels (y, x) of a box inside the core. Raises `FormatError` where the file is damaged."""
        try:
            with _opened(self.path) as array:
                window = np.asarray(array[(self.channel, *box.shift(self.core.y0, self.core.x0).slices())])
        except TILE_DAMAGE as error:
            raise FormatError(f"image tile {self.path} is damaged ({error!r}); copy it again") from None
        if window.shape != (box.height, box.width) or window.dtype != np.uint8:
            raise FormatError(f"image tile {self.path} holds {window.shape} {window.dtype}, expected {box} as uint8")
        return window


@dataclass(frozen=True, eq=False)
class _Cores(Sequence[Plane]):
    """One channel of all image tiles, opened one by one."""

    tiles: Tiles
    channel: int

    def __len__(self) -> int:
        return len(self.tiles)

    @overload
    def __getitem__(self, index: int) -> Plane: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Plane]: ...

    def __getitem__(self, index: int | slice) -> Plane | Sequence[Plane]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        return _CorePlane(self.tiles.path(index), self.channel, self.tiles.core_in_tile(index))


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """The array of a zip: at its root, or the only one of its group."""
    with zipfile.ZipFile(path):
        pass  # raises what it should for no zip, over which zarr's own store stumbles
    with ZipStore(path, mode="r") as store:
        node: Any = zarr.open(store, mode="r")
        arrays = [node] if isinstance(node, zarr.Array) else [array for _, array in node.arrays()]
        if len(arrays) != 1:
            raise ValueError(f"{len(arrays)} arrays in the zip, expected one")
        yield arrays[0]


def _image_shape(images: Tiles) -> tuple[int, ...]:
    """Shape (channels, rows, columns) of the first tile."""
    path = images.path(0)
    try:
        with _opened(path) as array:
            shape, dtype = tuple(int(size) for size in array.shape), array.dtype
    except TILE_DAMAGE as error:
        raise FormatError(f"image tile {path} cannot be read as zipped zarr ({error!r}); copy it again") from None
    if len(shape) != 3 or shape[1:] != images.shape(0) or dtype != np.uint8:
        raise FormatError(
            f"expected (channels, {images.shape(0)[0]}, {images.shape(0)[1]}) uint8 in {path}, got {shape} {dtype}"
        )
    return shape
