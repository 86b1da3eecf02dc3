"""Writing training shards: WebDataset tars of slabs, their index and manifest, the folder whole or not at all.

A slab's core holds the corners of its crops; its window reaches `crop_px - 1` further, so that every crop whose
corner starts in the core lies inside. `tera_mind.formats.manifest` describes and reads what is written here.
"""

from __future__ import annotations

import hashlib
import json
import tarfile
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from tera_mind import __version__
from tera_mind.errors import InputError
from tera_mind.formats.atomic import atomic_directory, atomic_file
from tera_mind.formats.brain import Brain
from tera_mind.formats.manifest import MANIFEST, VERSION, Manifest, Split
from tera_mind.formats.places import Place
from tera_mind.formats.replaceable import check_replaceable
from tera_mind.formats.shard_index import INDEX, SampleRef, sample_key
from tera_mind.formats.shard_plan import ShardPlan, gene_maps
from tera_mind.formats.slab import Slab, encode_slab, read_slab

__all__ = ["Manifest", "SampleRef", "Slab", "Split", "write_shards"]

_BLOCK = tarfile.BLOCKSIZE


@dataclass
class _ShardWriter:
    """Appends samples to numbered tars of about `shard_bytes` and a row for each to the split's index."""

    folder: Path
    split: str
    shard_bytes: int
    slabs: int
    brains: int
    shards: list[dict[str, Any]] = field(default_factory=list)
    _file: BinaryIO | None = None
    _samples: int = 0

    def __post_init__(self) -> None:
        self._index = np.lib.format.open_memmap(
            self.folder / f"{self.split}.index.npy", mode="w+", dtype=INDEX, shape=(self.slabs,)
        )
        self._counts = [0] * self.brains

    def add(self, members: Mapping[str, bytes], place: Place) -> None:
        key = sample_key(self.split, self._samples)
        chunk = b"".join(_tar_member(f"{key}.{extension}", data) for extension, data in members.items())
        if self._file is not None and self._file.tell() + len(chunk) > self.shard_bytes:
            self._close_shard()
        if self._file is None:
            name = f"{self.split}-{len(self.shards):06d}.tar"
            self.shards.append({"file": name, "slabs": 0})
            self._file = (self.folder / name).open("wb")
        core, shard = place.core, len(self.shards) - 1
        span = (self._file.tell(), len(chunk), zlib.crc32(chunk), shard)
        shown = (place.brain, place.first_section, core.y0, core.x0, core.height, core.width)
        self._index[self._samples] = (*span, *shown)
        self._file.write(chunk)
        self._samples += 1
        self._counts[place.brain] += 1
        self.shards[-1]["slabs"] += 1

    def _close_shard(self) -> None:
        if self._file is not None:
            self._file.write(bytes(2 * _BLOCK))  # the end of a tar
            self._file.close()
            self._file = None
            self.shards[-1] |= _facts(self.folder / self.shards[-1]["file"])

    def finish(self) -> dict[str, Any]:
        """The split's part of the manifest, once all its slabs are written."""
        self._close_shard()
        assert self._samples == self.slabs
        self._index.flush()
        name = f"{self.split}.index.npy"
        index = {"file": name} | _facts(self.folder / name)
        return {"slabs": self._counts, "index": index, "shards": self.shards}


def _facts(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


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

    Raises `InputError` when the folder is taken (with `overwrite`: by something else than shards), holds or lies in a
    brain, or `shard_mb` is not positive.
    """
    out = Path(out)
    if out.exists() and not overwrite:
        raise InputError(f"{out} is already there; choose another folder or add --overwrite")
    check_replaceable(out, ("shards",), [brain.path for brain in brains])
    if shard_mb <= 0:
        raise InputError(f"the size of a shard should be above 0 MB, got {shard_mb}")
    new_genes = gene_maps(brains, plan.genes)
    with atomic_directory(out) as folder:
        splits = {}
        for name, split in plan.splits.items():
            writer = _ShardWriter(folder, name, round(shard_mb * 1e6), len(split.places), len(brains))
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
            regions = [None if box is None else [box.y0, box.y1, box.x0, box.x1] for box in split.regions]
            splits[name] = {"box": split.box, "regions": regions} | writer.finish()
        with atomic_file(folder / MANIFEST) as partial:  # last, so that a manifest promises whole shards
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
