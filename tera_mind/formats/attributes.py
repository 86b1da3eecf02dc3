"""What the attributes of a store say: its format and version, and the record of a brain's section."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import zarr

from tera_mind import __version__
from tera_mind.errors import FormatError, MissingFileError
from tera_mind.formats.ome import DAMAGE

#: (a, b, c), (d, e, f): x_px = a x_um + b y_um + c, y_px = d x_um + e y_um + f
Affine = tuple[tuple[float, float, float], tuple[float, float, float]]


@dataclass(frozen=True)
class Section:
    """One section of a brain: its true position, its map from microns to canvas pixels, where it came from.

    dropped: transcripts that were left out, by reason; with `transcripts` they add up to what the source holds.
    sha256: what `BrainWriter.seal_section` gave, over the section's images, transcripts and tissue mask.
    """

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


def fingerprint_of(attributes: Mapping[str, Any], shape: tuple[int, int, int, int]) -> str:
    """16 hex digits of a brain's attributes, without provenance and what was dropped, and shape (stain, z, y, x)."""
    sections = [Section.from_json(record) for record in attributes["sections"]]
    facts = [
        int(attributes["version"]),
        list(attributes["genes"]),
        list(attributes["stains"]),
        float(attributes["pixel_um"]),
        list(shape),
        [[s.name, s.z_um, s.affine_um_to_px, s.transcripts, s.sha256] for s in sections],
        {stain: [float(low), float(high)] for stain, (low, high) in attributes["intensity_range"].items()},
    ]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def read_attributes(
    path: Path, kind: str, version: int, keys: Sequence[str], remedy: str, *, oldest: int | None = None
) -> dict[str, Any]:
    """The `tera_mind` attributes of a zarr store of the given format; errors say what else the path is.

    Versions `oldest` (default: `version` alone) to `version` are read; others raise `FormatError`.
    """
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
    known = range(version if oldest is None else oldest, version + 1)
    if attributes.get("version") not in known:
        raise FormatError(
            f"{path} has {kind} format of unknown version {attributes.get('version')!r}, tera-mind {__version__} reads "
            f"version {' and '.join(map(str, known))}; update tera-mind or write the store again"
        )
    missing = [key for key in keys if key not in attributes]
    if missing:
        raise FormatError(f"attributes of {path} lack {', '.join(missing)}; write the store again")
    return cast("dict[str, Any]", attributes)
