"""The manifest of a folder of shards: what is in them, checked on opening; slabs are read by byte range.

Format "shards", version 2: `manifest.json` (facts, and a line a shard), `<split>.index.npy` (a row a slab, see
`tera_mind.formats.shard_index`) and `<split>-<number>.tar`. Offsets, lengths and checksums let a reader fetch one
sample without reading the tar before it; any WebDataset reader can stream the tars as they are.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
from numpy.typing import NDArray

from tera_mind import __version__
from tera_mind.errors import FormatError, InputError, MissingFileError
from tera_mind.formats.shard_folder import ShardFolder
from tera_mind.formats.shard_index import SampleRef, SlabIndex
from tera_mind.formats.slab import Slab, corner_box, decode_slab, slab_corners, tar_members
from tera_mind.geometry import Box

VERSION = 2
MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Split:
    """Slabs of one split, brain after brain; the region of every brain that their crops stay inside (None: not used).

    `slabs` counts the slabs of every brain, `bytes` those of all tars.
    """

    box: str
    regions: tuple[Box | None, ...]
    slabs: tuple[int, ...]
    samples: SlabIndex
    bytes: int


@dataclass(frozen=True)
class Manifest:
    """A folder of shards, opened and checked; cheap to pickle."""

    files: ShardFolder
    genes: tuple[str, ...]
    stains: tuple[str, ...]
    pixel_um: float
    gene_sections: int
    crop_px: int
    core_px: int
    intensity_range: dict[str, tuple[float, float]]
    brains: tuple[dict[str, Any], ...]
    splits: dict[str, Split]
    fingerprint: str

    @classmethod
    def open(cls, location: str | Path, *, check_shards: bool = True) -> Manifest:
        """Read `manifest.json` of a local folder or a URL, and check that every local shard has its length.

        Remote shards are checked when they are read; `check_shards=False` leaves local ones to that too. Raises
        `MissingFileError` without a manifest, `FormatError` for an unknown version, a damaged manifest, and a missing
        or truncated shard, naming the file.
        """
        folder = ShardFolder(location)
        path = folder.where(MANIFEST)
        try:
            text = folder.read(MANIFEST)
        except MissingFileError:
            raise MissingFileError(
                f"expected shards in {folder}, there is no manifest.json; write them with `shards`"
            ) from None
        try:
            record = json.loads(text)
        except ValueError as error:
            raise FormatError(f"{path} is no readable JSON ({error}); write the shards again") from None
        if not isinstance(record, dict) or record.get("format") != "shards":
            raise FormatError(f"{path} is no manifest of shards; write them with `tera-mind shards`")
        if record.get("version") != VERSION:
            raise FormatError(
                f"{path} has unknown version {record.get('version')!r}, tera-mind {__version__} reads version "
                f"{VERSION}; update tera-mind or write the shards again"
            )
        try:
            for split in record["splits"].values():
                files = [split["index"], *(split["shards"] if check_shards else ())]
                for file in files if folder.is_local else ():
                    _check_size(folder, file["file"], int(file["bytes"]))
            return cls._from_json(folder, record, hashlib.sha256(text).hexdigest()[:16])
        except FormatError:
            raise
        except (KeyError, IndexError, TypeError, AttributeError, ValueError, OverflowError) as error:
            raise FormatError(f"{path} is malformed ({error!r}); write the shards again") from None

    @classmethod
    def _from_json(cls, folder: ShardFolder, record: Mapping[str, Any], fingerprint: str) -> Manifest:
        brains, splits = record["brains"], record["splits"]
        for name, split in splits.items():
            if not 0 < len(brains) == len(split["slabs"]) == len(split["regions"]):
                raise ValueError(f"slabs and regions of {name} are not those of {len(brains)} brains")
        missing = [stain for stain in record["stains"] if stain not in record["intensity_range"]]
        if missing:
            raise ValueError(f"no intensity_range of {', '.join(missing)}")
        return cls(
            files=folder,
            genes=tuple(record["genes"]),
            stains=tuple(record["stains"]),
            pixel_um=float(record["pixel_um"]),
            gene_sections=int(record["gene_sections"]),
            crop_px=int(record["crop_px"]),
            core_px=int(record["core_px"]),
            intensity_range={s: (float(low), float(high)) for s, (low, high) in record["intensity_range"].items()},
            brains=tuple(brains),
            splits={name: _split_from_json(folder, name, split) for name, split in splits.items()},
            fingerprint=fingerprint,
        )

    @property
    def folder(self) -> str | Path:
        """Where the shards are: the path of a local folder, or a URL."""
        return Path(str(self.files)) if self.files.is_local else str(self.files)

    def split(self, name: str) -> Split:
        if name not in self.splits:
            raise InputError(
                f"shards in {self.folder} have no split {name!r}, only {', '.join(self.splits)}; "
                f"write them again with --{name}"
            )
        return self.splits[name]

    def _canvas(self, brain: int) -> Box:
        height, width = self.brains[brain]["canvas"]
        return Box(0, height, 0, width)

    def corner_area(self, split: str, brain: int, crop_px: int) -> Box:
        """Canvas pixels where crops of `crop_px` may have their corners in a brain's region of a split (half open)."""
        region = self.split(split).regions[brain]
        if region is None:
            raise InputError(f"shards in {self.folder} have no {split} region of brain {self.brains[brain]['name']}")
        return corner_box(region, self._canvas(brain), crop_px)

    def corners(self, split: str, number: int, crop_px: int) -> Box:
        """The part of `corner_area` that one slab serves; the slabs of a region tile it."""
        place = self.splits[split].samples[number].place
        tiled, full = (self.corner_area(split, place.brain, size) for size in (self.crop_px, crop_px))
        return slab_corners(place.core, tiled, full)

    def all_corners(self, split: str, crop_px: int) -> NDArray[np.int32]:
        """`corners` of every slab of a split, (slab, 4): y0, y1, x0, x1; computed together, a brain has millions."""
        table, firsts = self.splits[split].samples.table, np.cumsum((0, *self.splits[split].slabs))
        found = np.empty((len(table), 4), np.int32)
        for brain, (first, end) in enumerate(pairwise(firsts.tolist())):
            if first == end:
                continue
            tiled, full = (self.corner_area(split, brain, size) for size in (self.crop_px, crop_px))
            rows = table[first:end]
            y, x = (rows[name].astype(np.int64) for name in "yx")
            y_end, x_end = y + rows["height"], x + rows["width"]
            found[first:end, 0] = np.maximum(y, full.y0)
            found[first:end, 1] = np.where(y_end == tiled.y1, full.y1, y_end)
            found[first:end, 2] = np.maximum(x, full.x0)
            found[first:end, 3] = np.where(x_end == tiled.x1, full.x1, x_end)
        return found

    def read(self, split: str, number: int) -> Slab:
        """Read one slab. Raises `FormatError` with file and byte offset when the shard is damaged or gone."""
        (slab,) = self.read_many(split, [number])
        if isinstance(slab, FormatError):
            raise slab
        return slab

    def read_many(self, split: str, numbers: Sequence[int]) -> list[Slab | FormatError]:
        """Read slabs, from a remote folder at the same time; an error stands where one could not be read."""
        refs = [self.splits[split].samples[number] for number in numbers]
        chunks = self.files.read_ranges([(ref.shard, ref.offset, ref.size) for ref in refs])
        return [self._decoded(ref, chunk) for ref, chunk in zip(refs, chunks, strict=True)]

    def _decoded(self, ref: SampleRef, chunk: bytes | FormatError) -> Slab | FormatError:
        if isinstance(chunk, FormatError):
            return chunk
        where = f"shard {self.files.where(ref.shard)} at byte {ref.offset}"
        if imagecodecs.deflate_crc32(chunk) != ref.crc32:  # zlib's CRC-32 at ten times its speed
            return FormatError(f"{where} is damaged: its checksum is not the manifest's; restore it or write it again")
        try:
            return decode_slab(tar_members(chunk, ref.key), where)
        except FormatError as error:
            return error
        except ValueError as error:
            return FormatError(f"{where} is no sample of a tar ({error}); write the shards again")

    def verify(self) -> None:
        """Read every file whole against its SHA-256. Raises `FormatError` naming the first that differs."""
        record = json.loads(self.files.read(MANIFEST))
        for split in record["splits"].values():
            for file in (split["index"], *split["shards"]):
                if hashlib.sha256(self.files.read(file["file"])).hexdigest() != file["sha256"]:
                    raise FormatError(
                        f"shard {self.files.where(file['file'])} is damaged: its SHA-256 is not the manifest's; "
                        "restore it"
                    )


def _check_size(folder: ShardFolder, name: str, expected: int) -> None:
    size = folder.size(name)
    if size is None:
        raise FormatError(
            f"shard {folder.where(name)} of the manifest is missing; restore it or write the shards again"
        )
    if size != expected:
        raise FormatError(
            f"shard {folder.where(name)} should have {expected} bytes, has {size}: truncated or replaced; "
            "restore it or write the shards again"
        )


def _split_from_json(folder: ShardFolder, name: str, record: Mapping[str, Any]) -> Split:
    regions = tuple(None if bounds is None else Box(*bounds) for bounds in record["regions"])
    slabs = tuple(int(count) for count in record["slabs"])
    shards = tuple(str(shard["file"]) for shard in record["shards"])
    index = SlabIndex(folder, str(record["index"]["file"]), name, shards, sum(slabs), str(record["index"]["sha256"]))
    total = sum(int(shard["bytes"]) for shard in record["shards"])
    return Split(str(record["box"]), regions, slabs, index, total)
