"""A slab: a window of a brain with its margin, from which several crops are cut; its raw members in a shard.

Members: `image.u8` is (stain, section, y, x) uint8; `rna.bin` holds the columns y, x, gene, count (little-endian
uint16) and gene section (uint8, counted from the first gene section of the window) one after the other, at full pixel
resolution, sorted by section, then y; `json` holds the rest. Nothing is pickled.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tera_mind.errors import FormatError, InputError
from tera_mind.formats.brain import Brain, Transcripts
from tera_mind.geometry import Box, section_window

#: columns of `rna.bin` in their order
_COLUMNS = (("y", "<u2"), ("x", "<u2"), ("gene", "<u2"), ("count", "<u2"), ("section", "u1"))
_ROW_BYTES = sum(np.dtype(kind).itemsize for _, kind in _COLUMNS)
#: a crop overhangs the canvas by at most this part of its size: half of a small patch
_OVERHANG = 4


@dataclass(frozen=True)
class Slab:
    """Pixels and transcripts of `window` (canvas pixels, may leave the canvas) for one window of sections.

    `image` is (stain, section, y, x) uint8, 0 outside the canvas; `inside` is the window's part on the canvas;
    `exists` says which of the image sections the brain has. Transcripts are the columns `y`, `x` (relative to the
    window's corner), `gene`, `count` and `section` (counted from the first of `gene_sections`), sorted by section,
    then y; `line` is `section * window.height + y`, ascending.
    """

    brain: int
    first_section: int
    window: Box
    inside: Box
    exists: tuple[bool, ...]
    image: NDArray[np.uint8]
    gene_sections: int
    y: NDArray[np.uint16]
    x: NDArray[np.uint16]
    gene: NDArray[np.uint16]
    count: NDArray[np.uint16]
    section: NDArray[np.uint8]
    line: NDArray[np.int32]

    @property
    def nbytes(self) -> int:
        """Memory that the slab takes."""
        return self.image.nbytes + (_ROW_BYTES + self.line.itemsize) * len(self.line)

    @property
    def transcripts(self) -> tuple[Transcripts, ...]:
        """The rows of every gene section."""
        edges = np.searchsorted(self.section, np.arange(self.gene_sections + 1))
        columns = (self.y, self.x, self.gene, self.count)
        return tuple(
            Transcripts(*(column[first:last].astype(np.int32) for column in columns)) for first, last in pairwise(edges)
        )


def corner_box(region: Box, canvas: Box, crop_px: int) -> Box:
    """Pixels (half open) where a square crop that stays inside a region may have its corner.

    Where the region's edge is the canvas' own edge, a crop may overhang it by a quarter, so that tissue at the border
    is seen as the sampler sees it. Raises `InputError` when no crop fits.
    """
    over = crop_px // _OVERHANG
    box = (
        region.y0 - over * (region.y0 == canvas.y0),
        region.y1 + over * (region.y1 == canvas.y1) - crop_px + 1,
        region.x0 - over * (region.x0 == canvas.x0),
        region.x1 + over * (region.x1 == canvas.x1) - crop_px + 1,
    )
    if box[1] <= box[0] or box[3] <= box[2]:
        raise InputError(
            f"region {region} has {region.height} x {region.width} px, too small for crops of {crop_px} px; "
            "take a larger region or smaller crops"
        )
    return Box(*box)


def slab_corners(core: Box, tiled: Box, full: Box) -> Box:
    """Corners that smaller crops may take in a slab whose core is a tile of `tiled`.

    `tiled` and `full` are the `corner_box` of the region for the shard's crops and for the smaller ones. The result
    for all cores tiles `full`: smaller crops reach the region's edges too, and overhang the canvas by less.
    """
    return Box(
        max(core.y0, full.y0),
        full.y1 if core.y1 == tiled.y1 else core.y1,
        max(core.x0, full.x0),
        full.x1 if core.x1 == tiled.x1 else core.x1,
    )


def read_slab(
    brain: Brain,
    number: int,
    window: Box,
    *,
    first_section: int,
    gene_sections: int,
    new_gene: NDArray[np.int64] | None = None,
) -> Slab:
    """Cut a slab from a brain store; gene g becomes `new_gene[g]`, or is left out where that is negative."""
    group = section_window(first_section, gene_sections)
    columns: dict[str, list[NDArray[Any]]] = {name: [] for name, _ in _COLUMNS}
    for section, number_in_window in zip(group.genes, range(gene_sections), strict=True):
        rows = brain.transcripts(section, window)
        gene = rows.gene if new_gene is None else new_gene[rows.gene]
        order = np.argsort(rows.y, kind="stable")
        order = order[gene[order] >= 0]
        for name, column in (("y", rows.y), ("x", rows.x), ("gene", gene), ("count", rows.count)):
            columns[name].append(column[order])
        columns["section"].append(np.full(len(order), number_in_window))
    joined = {name: np.concatenate(columns[name]).astype(kind) for name, kind in _COLUMNS}
    return Slab(
        brain=number,
        first_section=first_section,
        window=window,
        inside=window.intersect(brain.canvas),
        exists=tuple(0 <= section < len(brain.sections) for section in group.image),
        image=brain.image(window, group.image),
        gene_sections=gene_sections,
        **joined,
        line=_lines(joined, window.height),
    )


def _lines(columns: Mapping[str, NDArray[Any]], height: int) -> NDArray[np.int32]:
    lines: NDArray[np.int32] = columns["section"].astype(np.int32) * np.int32(height) + columns["y"]
    return lines


def encode_slab(slab: Slab, core: Box) -> dict[str, bytes]:
    """Members of a slab in a shard: extension -> bytes."""
    facts = {
        "brain": slab.brain,
        "first_section": slab.first_section,
        "window": _bounds(slab.window),
        "core": _bounds(core),
        "inside": _bounds(slab.inside),
        "exists": list(slab.exists),
        "shape": list(slab.image.shape),
        "gene_sections": slab.gene_sections,
        "rows": len(slab.y),
        "transcripts": int(slab.count.sum(dtype=np.int64)),
    }
    return {
        "image.u8": slab.image.tobytes(),
        "rna.bin": b"".join(getattr(slab, name).tobytes() for name, _ in _COLUMNS),
        "json": json.dumps(facts, separators=(",", ":")).encode(),
    }


def decode_slab(sample: Mapping[str, bytes | memoryview], where: str) -> Slab:
    """The slab of a shard's sample (extension -> bytes), its arrays views of those bytes.

    `where` names it in the `FormatError` of a damaged one.
    """
    try:
        facts = json.loads(bytes(sample["json"]))
        window = Box(*facts["window"])
        columns = _unpack(sample["rna.bin"], int(facts["rows"]))
        return Slab(
            brain=int(facts["brain"]),
            first_section=int(facts["first_section"]),
            window=window,
            inside=Box(*facts["inside"]),
            exists=tuple(map(bool, facts["exists"])),
            image=np.frombuffer(sample["image.u8"], np.uint8).reshape(facts["shape"]),
            gene_sections=int(facts["gene_sections"]),
            **columns,
            line=_lines(columns, window.height),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise FormatError(f"{where} holds no slab that can be read ({error!r}); write the shards again") from None


def tar_members(chunk: bytes, key: str) -> dict[str, memoryview]:
    """Extension -> bytes of the members of one sample, not copied. Raises `ValueError` for a damaged header."""
    view, at, members = memoryview(chunk), 0, {}
    while at < len(chunk):
        # a USTAR header: the name in its first 100 bytes, the size as octal digits from byte 124 on
        name = chunk[at : at + 100].rstrip(b"\0").decode()
        start, size = at + tarfile.BLOCKSIZE, int(chunk[at + 124 : at + 136].rstrip(b"\0 "), 8)
        members[name.removeprefix(f"{key}.")] = view[start : start + size]
        at = start + -(-size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
    return members


def _unpack(packed: bytes | memoryview, rows: int) -> dict[str, NDArray[Any]]:
    if len(packed) != rows * _ROW_BYTES:
        raise ValueError(f"rna.bin should have {rows * _ROW_BYTES} bytes, has {len(packed)}")
    columns: dict[str, NDArray[Any]] = {}
    offset = 0
    for name, kind in _COLUMNS:
        columns[name] = np.frombuffer(packed, kind, rows, offset)
        offset += columns[name].nbytes
    return columns


def _bounds(box: Box) -> list[int]:
    return [box.y0, box.y1, box.x0, box.x1]
