"""What every reader turns its format into: sections with lazy images and streams of transcripts, all in microns."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from tera_mind.errors import InputError
from tera_mind.geometry import Box


@runtime_checkable
class Track(Protocol):
    """A hook that reports progress: yields the items unchanged; `total` is None where it is unknown."""

    def __call__(self, items: Iterable[Any], description: str, total: int | None = None) -> Iterable[Any]: ...


def no_progress(items: Iterable[Any], description: str, total: int | None = None) -> Iterable[Any]:
    """Report nothing."""
    del description, total
    return items


@runtime_checkable
class Plane(Protocol):
    """A lazy 2-D image, uint8 or uint16."""

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width)."""

    def read(self, box: Box) -> NDArray[Any]:
        """Pixels (y, x) of a box inside the image."""


@dataclass(frozen=True)
class StainImage:
    """One stain of a section and its map from microns, (x_um, y_um, 1), to its pixels: 3 x 3.

    `levels`: intensities that are 0 and 255 already, where somebody stretched the image before; None: to be measured.
    """

    name: str
    plane: Plane
    um_to_px: NDArray[np.float64]
    levels: tuple[float, float] | None = None


@dataclass(frozen=True)
class TranscriptBatch:
    """Some transcripts: positions in microns, `gene` as an index into `names`.

    `dropped` counts the transcripts left out by reason; `spans` says, where the reader knows, between which rows of its
    table (counted from 1) the first stretch of them lies. `count`: transcripts a row (1 or more), for binned tables;
    None: a row is a transcript (`expanded` makes it so). `respelled`: transcripts by the spelling that the files had,
    where it differs from the gene's by case alone.
    """

    x_um: NDArray[np.float64]
    y_um: NDArray[np.float64]
    gene: NDArray[np.int32]
    names: Sequence[str]
    dropped: dict[str, int] = field(default_factory=dict)
    spans: dict[str, tuple[int, int]] = field(default_factory=dict)
    count: NDArray[np.int64] | None = None
    respelled: dict[str, int] = field(default_factory=dict)


#: transcripts that `expanded` puts into one batch at most, unless one row alone counts more
EXPANDED_ROWS = 2**20


def expanded(batches: Iterable[TranscriptBatch]) -> Iterator[TranscriptBatch]:
    """The same transcripts, one a row: a row that counts n comes n times, in batches of bounded size."""
    for batch in batches:
        if batch.count is None or not len(batch.count):
            yield batch
            continue
        ends = np.cumsum(batch.count)
        start, dropped, spans, respelled = 0, batch.dropped, batch.spans, batch.respelled
        while start < len(ends):
            before = int(ends[start - 1]) if start else 0
            stop = max(start + 1, int(np.searchsorted(ends, before + EXPANDED_ROWS, side="right")))
            rows = np.repeat(np.arange(start, stop), batch.count[start:stop])
            yield TranscriptBatch(
                batch.x_um[rows], batch.y_um[rows], batch.gene[rows], batch.names, dropped, spans, respelled=respelled
            )
            start, dropped, spans, respelled = stop, {}, {}, {}


@dataclass(frozen=True)
class SectionSource:
    """A section as its instrument left it. `batches()` starts a new stream of its transcripts.

    `panel` is the list of genes that the files declare; None where only the observed ones are known. `symbols` are
    the gene symbols of Ensembl ids that the section's own files give. `expected_batches` is for progress only.
    """

    name: str
    z_um: float
    stains: tuple[StainImage, ...]
    batches: Callable[[], Iterator[TranscriptBatch]]
    panel: tuple[str, ...] | None = None
    expected_batches: int | None = None
    provenance: dict[str, Any] = field(default_factory=dict)
    symbols: Mapping[str, str] = field(default_factory=dict)


def known_levels(sources: Iterable[SectionSource]) -> dict[str, tuple[float, float]]:
    """Stain -> intensities that are 0 and 255 already, of the stains for which all sections say the same."""
    said: dict[str, set[tuple[float, float] | None]] = {}
    for source in sources:
        for image in source.stains:
            said.setdefault(image.name, set()).add(image.levels)
    known = {stain: next(iter(levels)) for stain, levels in said.items() if len(levels) == 1}
    return {stain: levels for stain, levels in known.items() if levels is not None}


def by_number(name: str) -> list[int | str]:
    """Key that sorts names by the numbers in them: section_2 before section_10."""
    parts = re.split(r"(\d+)", name)  # text, number, text, ...: always in turns, so that names can be compared
    return [int(part) if index % 2 else part for index, part in enumerate(parts)]


def option(default: Any, words: str, metavar: str = "") -> Any:
    """A reader's setting: a dataclass field that the command line turns into an option with these words of help."""
    return field(default=default, metadata={"help": words, "metavar": metavar})


@runtime_checkable
class Reader(Protocol):
    """A format: its settings are the fields of a dataclass, its sections come from one folder at a time."""

    def sections(self, folder: Path, z_um: float) -> list[SectionSource]:
        """The sections in a folder whose (first) section lies at `z_um`."""


def pick_stains(available: Sequence[str], wanted: Sequence[str], folder: Path) -> list[str]:
    """The wanted stains in the wanted order (all of them when none is named), matched without regard to case."""
    if not wanted:
        return list(available)
    by_name = {name.lower(): name for name in available}
    missing = [name for name in wanted if name.lower() not in by_name]
    if missing:
        raise InputError(
            f"{folder} has stains {', '.join(available)}, not {', '.join(missing)}; name others in --stains"
        )
    return [by_name[name.lower()] for name in wanted]
