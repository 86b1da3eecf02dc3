"""Training shards: WebDataset tars of slabs, with a manifest of where every sample lies.

A slab's core holds the corners of its crops; its window reaches `crop_px - 1` further, so that every crop whose
corner starts in the core lies inside. Format "shards", version 1: `manifest.json` and `<split>-<number>.tar`. Offsets,
lengths and checksums in the manifest let a reader fetch one sample without reading the tar before it; any WebDataset
reader can stream the tars as they are.
"""

from __future__ import annotations

import hashlib
import json
import tarfile
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

from tera_mind import __version__
from tera_mind.errors import FormatError, InputError, MissingFileError
from tera_mind.formats.atomic import atomic_directory, atomic_file
from tera_mind.formats.brain import Brain
from tera_mind.formats.shard_plan import Place, ShardPlan, gene_maps
from tera_mind.formats.slab import Slab, corner_box, decode_slab, encode_slab, read_slab, slab_corners
from tera_mind.geometry import Box

__all__ = ["Manifest", "SampleRef", "Slab", "Split", "write_shards"]

VERSION = 1
_BLOCK = tarfile.BLOCKSIZE


@dataclass(frozen=True)
class SampleRef:
    """Where a slab lies in its shard, and what it shows: brain, first image section, corners of its crops."""

    key: str
    shard: str
    offset: int
    size: int
    crc32: int
    place: Place


@dataclass(frozen=True)
class Split:
    """Slabs of one split, and the region of every brain that their crops stay inside (None: brain not used)."""

    box: str
    regions: tuple[Box | None, ...]
    samples: tuple[SampleRef, ...]


@dataclass(frozen=True)
class Manifest:
    """A folder of shards, opened and checked; cheap to pickle."""

    folder: Path
    genes: tuple[str, ...]
    stains: tuple[str, ...]
    pixel_um: float
    gene_sections: int
    crop_px: int
    core_px: int
    intensity_range: dict[str, tuple[float, float]]
    brains: tuple[dict[str, Any], ...]
    splits: dict[str, Split]

    @classmethod
    def open(cls, folder: str | Path) -> Manifest:
        """Read `manifest.json` and check that every shard is there and whole (its length; see `verify`).

        Raises `MissingFileError` without a manifest, `FormatError` for an unknown version, a damaged manifest, and a
        missing or truncated shard, naming the file.
        """
        folder = Path(folder)
        path = folder / "manifest.json"
        if not path.is_file():
            raise MissingFileError(f"expected shards in {folder}, there is no manifest.json; write them with `shards`")
        try:
            record = json.loads(path.read_bytes())
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
                for shard in split["shards"]:
                    _check_size(folder / shard["file"], int(shard["bytes"]))
            return cls._from_json(folder, record)
        except (KeyError, TypeError, AttributeError) as error:
            raise FormatError(f"{path} is malformed ({error!r}); write the shards again") from None

    @classmethod
    def _from_json(cls, folder: Path, record: Mapping[str, Any]) -> Manifest:
        return cls(
            folder=folder,
            genes=tuple(record["genes"]),
            stains=tuple(record["stains"]),
            pixel_um=float(record["pixel_um"]),
            gene_sections=int(record["gene_sections"]),
            crop_px=int(record["crop_px"]),
            core_px=int(record["core_px"]),
            intensity_range={s: (float(low), float(high)) for s, (low, high) in record["intensity_range"].items()},
            brains=tuple(record["brains"]),
            splits={name: _split_from_json(split) for name, split in record["splits"].items()},
        )

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

    def read(self, split: str, number: int) -> Slab:
        """Read one slab. Raises `FormatError` with file and byte offset when the shard is damaged or gone."""
        ref = self.splits[split].samples[number]
        path = self.folder / ref.shard
        where = f"shard {path} at byte {ref.offset}"
        try:
            with path.open("rb") as file:
                file.seek(ref.offset)
                chunk = file.read(ref.size)
        except OSError as error:
            raise FormatError(
                f"{where} cannot be read ({error.strerror}); restore it or write the shards again"
            ) from None
        if len(chunk) != ref.size:
            raise FormatError(
                f"{where} is truncated: {len(chunk)} of {ref.size} bytes are there; restore or write again"
            )
        if zlib.crc32(chunk) != ref.crc32:
            raise FormatError(f"{where} is damaged: its checksum is not the manifest's; restore it or write it again")
        return decode_slab(_tar_members(chunk, ref.key), where)

    def verify(self) -> None:
        """Read every shard whole against its SHA-256. Raises `FormatError` naming the first that differs."""
        record = json.loads((self.folder / "manifest.json").read_bytes())
        for split in record["splits"].values():
            for shard in split["shards"]:
                path = self.folder / shard["file"]
                with path.open("rb") as file:
                    if hashlib.file_digest(file, "sha256").hexdigest() != shard["sha256"]:
                        raise FormatError(f"shard {path} is damaged: its SHA-256 is not the manifest's; restore it")


def _check_size(path: Path, expected: int) -> None:
    if not path.is_file():
        raise FormatError(f"shard {path} of the manifest is missing; restore it or write the shards again")
    if path.stat().st_size != expected:
        raise FormatError(
            f"shard {path} should have {expected} bytes, has {path.stat().st_size}: truncated or replaced; "
            "restore it or write the shards again"
        )


def _split_from_json(record: Mapping[str, Any]) -> Split:
    samples = [
        SampleRef(
            key=sample["key"],
            shard=shard["file"],
            offset=int(sample["offset"]),
            size=int(sample["bytes"]),
            crc32=int(sample["crc32"]),
            place=Place(
                brain=int(sample["brain"]),
                first_section=int(sample["section"]),
                core=Box(sample["y"], sample["y"] + sample["height"], sample["x"], sample["x"] + sample["width"]),
            ),
        )
        for shard in record["shards"]
        for sample in shard["samples"]
    ]
    regions = tuple(None if bounds is None else Box(*bounds) for bounds in record["regions"])
    return Split(record["box"], regions, tuple(samples))


def _tar_members(chunk: bytes, key: str) -> dict[str, bytes]:
    """Extension -> bytes of the members of one sample."""
    members = {}
    with tarfile.open(fileobj=BytesIO(chunk), mode="r:") as tar:
        for info in tar:
            file = tar.extractfile(info)
            if file is not None:
                members[info.name.removeprefix(f"{key}.")] = file.read()
    return members


@dataclass
class _ShardWriter:
    """Appends samples to numbered tars of about `shard_bytes` and keeps their manifest records."""

    folder: Path
    split: str
    shard_bytes: int
    records: list[dict[str, Any]] = field(default_factory=list)
    _file: BinaryIO | None = None
    _samples: int = 0

    def add(self, members: Mapping[str, bytes], place: Place) -> None:
        key = f"{self.split}-{self._samples:07d}"
        self._samples += 1
        chunk = b"".join(_tar_member(f"{key}.{extension}", data) for extension, data in members.items())
        if self._file is not None and self._file.tell() + len(chunk) > self.shard_bytes:
            self.close()
        if self._file is None:
            name = f"{self.split}-{len(self.records):06d}.tar"
            self.records.append({"file": name, "bytes": 0, "sha256": "", "samples": []})
            self._file = (self.folder / name).open("wb")
        core = place.core
        self.records[-1]["samples"].append(
            {
                "key": key,
                "offset": self._file.tell(),
                "bytes": len(chunk),
                "crc32": zlib.crc32(chunk),
                "brain": place.brain,
                "section": place.first_section,
                "y": core.y0,
                "x": core.x0,
                "height": core.height,
                "width": core.width,
            }
        )
        self._file.write(chunk)

    def close(self) -> None:
        if self._file is None:
            return
        self._file.write(bytes(2 * _BLOCK))  # the end of a tar
        self._file.close()
        self._file = None
        path = self.folder / self.records[-1]["file"]
        with path.open("rb") as file:
            self.records[-1]["sha256"] = hashlib.file_digest(file, "sha256").hexdigest()
        self.records[-1]["bytes"] = path.stat().st_size


def _tar_member(name: str, data: bytes) -> bytes:
    """A tar header, the data, and zeros up to the block; without times or owners, so that bytes repeat."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    return info.tobuf(tarfile.USTAR_FORMAT) + data + bytes(-len(data) % _BLOCK)


def write_shards(
    brains: Sequence[Brain],
    out: str | Path,
    plan: ShardPlan,
    *,
    shard_mb: float = 64.0,
    overwrite: bool = False,
    progress: Callable[[Iterable[Place]], Iterable[Place]] = iter,
) -> Manifest:
    """Write the slabs of a plan (`tera_mind.formats.shard_plan.plan_shards`) as shards, the folder whole or not at all.

    Raises `InputError` when the folder is taken or `shard_mb` is not positive.
    """
    out = Path(out)
    if out.exists() and not overwrite:
        raise InputError(f"{out} is already there; choose another folder or add --overwrite")
    if shard_mb <= 0:
        raise InputError(f"the size of a shard should be above 0 MB, got {shard_mb}")
    new_genes = gene_maps(brains, plan.genes)
    with atomic_directory(out) as folder:
        splits = {}
        for name, split in plan.splits.items():
            writer = _ShardWriter(folder, name, round(shard_mb * 1e6))
            for place in progress(split.places):
                brain, window = brains[place.brain], place.window(plan.crop_px)
                slab = read_slab(
                    brain,
                    place.brain,
                    window,
                    first_section=place.first_section,
                    gene_sections=plan.gene_sections,
                    new_gene=new_genes[place.brain],
                )
                writer.add(encode_slab(slab, place.core), place)
            writer.close()
            regions = [None if box is None else [box.y0, box.y1, box.x0, box.x1] for box in split.regions]
            splits[name] = {"box": split.box, "regions": regions, "shards": writer.records}
        with atomic_file(folder / "manifest.json") as partial:  # last, so that a manifest promises whole shards
            partial.write_text(json.dumps(_manifest_record(brains, plan, splits)))
    return Manifest.open(out)


def _manifest_record(brains: Sequence[Brain], plan: ShardPlan, splits: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "format": "shards",
        "version": VERSION,
        "genes": list(plan.genes),
        "stains": list(brains[0].stains),
        "pixel_um": brains[0].pixel_um,
        "gene_sections": plan.gene_sections,
        "crop_px": plan.crop_px,
        "core_px": plan.core_px,
        "gap_px": plan.gap_px,
        "intensity_range": {stain: list(bounds) for stain, bounds in brains[0].intensity_range.items()},
        "brains": [
            {
                "path": str(brain.path.resolve()),
                "name": brain.path.stem,
                "fingerprint": brain.fingerprint,
                "canvas": [brain.canvas.height, brain.canvas.width],
                "sections": len(brain.sections),
                "intensity_range": {stain: list(bounds) for stain, bounds in brain.intensity_range.items()},
            }
            for brain in brains
        ],
        "splits": dict(splits),
        "software": {"tera_mind": __version__},
    }
