"""Populations of tissue as the second moments of their gene counts: one streamed pass, one file.

A row is the transcripts of one square of `row_px` pixels of one section, every gene a column. Squares are the model's
patches: about a cell, the unit in which the network's gene-gene attention sees counts. Bins are too small: nearly all
their counts are 0 or 1, and their second moment is mostly sampling noise. Squares without any transcript are no rows.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from tera_mind import __version__
from tera_mind.analysis.interventions.algebra import Spectrum, spectrum
from tera_mind.analysis.interventions.masks import EVERYWHERE, Mask
from tera_mind.errors import FormatError, InputError, MissingFileError, PanelMismatchError
from tera_mind.formats.atomic import atomic_file
from tera_mind.formats.brain import Brain, gene_bins
from tera_mind.geometry import Box
from tera_mind.sums import Sums

VERSION = 1
#: counts in memory at once
_TILE_BYTES = 64 * 2**20
#: two sizes of a row that differ by less are the same
_SAME_SIZE = 0.01


@dataclass(frozen=True, eq=False)
class Basis:
    """Moments of a population with where they come from.

    genes: names, in the order of the sums; row_um: side of a row's square; facts: provenance, plain JSON. Raises
    `InputError` for a population without rows.
    """

    genes: tuple[str, ...]
    sums: Sums
    row_um: float
    facts: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.sums.n < 1:
            raise InputError(f"population {self.facts.get('name', '')!r} has no square with transcripts")

    @cached_property
    def uncentred(self) -> Spectrum:
        return spectrum(self.sums.second_moment)

    @cached_property
    def centred(self) -> Spectrum:
        return spectrum(self.sums.covariance)

    @cached_property
    def digest(self) -> str:
        """16 hex digits of the numbers and genes."""
        sha = hashlib.sha256(json.dumps([self.genes, self.sums.n, self.row_um]).encode())
        sha.update(np.ascontiguousarray(self.sums.outer).data)
        sha.update(np.ascontiguousarray(self.sums.total).data)
        return sha.hexdigest()[:16]

    def of(self, genes: Sequence[str]) -> Basis:
        """The same population in other genes, in their order. Raises `PanelMismatchError` if any is missing."""
        if tuple(genes) == self.genes:
            return self
        place = {gene: number for number, gene in enumerate(self.genes)}
        missing = [gene for gene in genes if gene not in place]
        if missing:
            raise PanelMismatchError(
                f"population {self.facts.get('name', '')!r} lacks {len(missing)} of {len(genes)} genes: "
                f"{', '.join(missing[:8])}; measure it on a brain that has them"
            )
        own = np.array([place[gene] for gene in genes], np.int64)
        sums = Sums(self.sums.n, self.sums.total[own], self.sums.outer[np.ix_(own, own)])
        return Basis(tuple(genes), sums, self.row_um, self.facts)

    def filled(self, genes: Sequence[str]) -> Basis:
        """The same population, with genes that it lacks taken as zero."""
        more = tuple(gene for gene in genes if gene not in set(self.genes))
        sums = Sums(self.sums.n, np.pad(self.sums.total, (0, len(more))), np.pad(self.sums.outer, (0, len(more))))
        return Basis((*self.genes, *more), sums, self.row_um, self.facts)

    def require_rows(self, row_um: float) -> None:
        """Raise `InputError` unless a row is a square of this side."""
        if abs(self.row_um / row_um - 1) > _SAME_SIZE:
            raise InputError(
                f"population {self.facts.get('name', '')!r} has rows of {self.row_um:g} um, the network patches of "
                f"{row_um:g} um: measure the population again for this network"
            )

    def write(self, path: Path) -> None:
        """One .npz file, whole or not at all: sums, both decompositions, and `attributes` as JSON text."""
        record = {
            "format": "population",
            "version": VERSION,
            "genes": list(self.genes),
            "rows": self.sums.n,
            "row_um": self.row_um,
            "facts": self.facts,
            "digest": self.digest,
            "software": {"tera_mind": __version__, "numpy": np.__version__},
        }
        with atomic_file(path) as partial, partial.open("wb") as stream:
            np.savez(
                stream,
                attributes=np.array(json.dumps(record)),
                total=self.sums.total,
                outer=self.sums.outer,
                mean=self.sums.mean,
                eigenvalues=self.uncentred.values,
                eigenvectors=self.uncentred.vectors,
                centred_eigenvalues=self.centred.values,
                centred_eigenvectors=self.centred.vectors,
            )

    @staticmethod
    def read(path: Path) -> Basis:
        """Raises `MissingFileError`, or `FormatError` where the file is damaged or none of `write`."""
        if not path.is_file():
            raise MissingFileError(f"no population at {path}: expected a .npz file that `tera-mind intervene` wrote")
        try:
            with np.load(path, allow_pickle=False) as file:
                record = json.loads(str(file["attributes"]))
                sums = Sums(int(record["rows"]), file["total"], file["outer"])
            known = record["format"] == "population" and record["version"] == VERSION
            basis = Basis(tuple(record["genes"]), sums, float(record["row_um"]), dict(record["facts"]))
        except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
            words = " ".join(str(error).split())
            raise FormatError(f"{path} cannot be read as a population ({words}); measure it again") from None
        if not known:
            raise FormatError(f"{path} is no population of version {VERSION}; measure it again")
        if basis.digest != record["digest"]:
            raise FormatError(f"{path} is not as it was written: its digest differs; measure it again")
        return basis


def population_facts(
    name: str, brain: Brain, region: Box, sections: Sequence[int], row_px: int, mask: Mask = EVERYWHERE
) -> dict[str, Any]:
    """What a population depends on, plain JSON."""
    return {
        "name": name,
        "brain": brain.path.name,
        "brain_fingerprint": brain.fingerprint,
        "region": str(region),
        "sections": list(sections),
        "row_px": row_px,
        "mask": mask.facts(),
    }


def tiles_of(region: Box, sections: Sequence[int], row_px: int, genes: int) -> list[tuple[int, Box]]:
    """Sections and boxes that one pass reads, whole rows each; squares cut by the region's far edges are left out."""
    side = row_px * max(1, min(64, int((_TILE_BYTES / 4 / genes) ** 0.5)))
    whole = Box(
        region.y0,
        region.y0 + region.height // row_px * row_px,
        region.x0,
        region.x0 + region.width // row_px * row_px,
    )
    return [(section, box) for section in sections for box in whole.tiles(side, side)]


def tile_sums(brain: Brain, section: int, box: Box, row_px: int, mask: Mask = EVERYWHERE) -> Sums:
    """Sums of the squares of one tile whose centre the mask holds and that have transcripts."""
    kept = mask.at(section, box, row_px)
    if not kept.any():
        return Sums.of(np.zeros((0, len(brain.genes))))
    counts = gene_bins(brain, (section,), box, row_px)[:, 0]
    rows = counts[:, kept].T
    return Sums.of(rows[rows.any(axis=1)])


def measure(
    name: str,
    brain: Brain,
    row_px: int,
    *,
    region: Box | None = None,
    sections: Sequence[int] | None = None,
    mask: Mask = EVERYWHERE,
    progress: Callable[[Sequence[tuple[int, Box]]], Iterable[tuple[int, Box]]] = iter,
) -> Basis:
    """Moments of a brain's population in one streamed pass: only a tile of counts is in memory."""
    region = brain.canvas if region is None else region
    sections = range(len(brain.sections)) if sections is None else sections
    sums = Sums.of(np.zeros((0, len(brain.genes))))
    for section, box in progress(tiles_of(region, sections, row_px, len(brain.genes))):
        sums = sums.merge(tile_sums(brain, section, box, row_px, mask))
    facts = population_facts(name, brain, region, sections, row_px, mask)
    return Basis(brain.genes, sums, row_px * brain.pixel_um, facts)
