"""Every fault of the folders that a brain is to be made of, with its place, in one go; nothing is written.

All headers first, then every pixel and every row. What `ingest` would repair by leaving rows out is counted beside.
What is a fault depends on the rules that `ingest` would be given, so both are told the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from tera_mind.errors import InputError, TeraMindError
from tera_mind.geometry import Box
from tera_mind.ingest.faults import Fault, Faults
from tera_mind.ingest.harmonise import GeneNames, harmonise
from tera_mind.ingest.panel import SectionGenes, common_panel, respelled_words
from tera_mind.ingest.placing import Canvas, Placed
from tera_mind.ingest.registration import Registration, pixel_size_um
from tera_mind.ingest.source import Reader, SectionSource, StainImage, Track, TranscriptBatch, expanded, no_progress

_WINDOW_PX = 2048
#: names that are shown of many
_SHOWN = 5

#: puts sections onto their canvas; raises what `place` raises
Placing = Callable[[Sequence[SectionSource]], Canvas]


@runtime_checkable
class FaultyTable(Protocol):
    """A stream of transcripts that can say all places where it breaks, not only the first."""

    def __call__(self) -> Iterable[TranscriptBatch]: ...

    def faults(self) -> Iterable[Fault]: ...


@dataclass(frozen=True)
class Repair:
    """Something that is left out or taken as it is: `count` rows for a reason, from a first stretch of rows on."""

    section: str
    reason: str
    count: int = 0
    rows: tuple[int, int] | None = None

    @property
    def line(self) -> str:
        """One line."""
        where = "" if self.rows is None else f", first in rows {self.rows[0]}-{self.rows[1]}"
        what = f"{self.count:,} transcripts left out: {self.reason}" if self.count else self.reason
        return f"section {self.section}: {what}{where}"


@dataclass(frozen=True)
class CheckReport:
    """`faults` make an ingest fail; `repairs` would be made and counted. `sections`: names, `kept`: transcripts.

    `canvas`: where the sections lie; None where that was not asked for or faults are in the way.
    """

    faults: tuple[Fault, ...]
    repairs: tuple[Repair, ...]
    sections: tuple[str, ...]
    kept: int
    canvas: Canvas | None = None

    def text(self) -> str:
        """A line a fault and a repair, and a last line that sums up."""
        lines = [f"fault: {fault.line}" for fault in self.faults]
        lines += [f"repair: {repair.line}" for repair in self.repairs]
        found = f"{len(self.faults)} faults, {len(self.repairs)} repairs"
        lines.append(f"{len(self.sections)} sections, {self.kept:,} transcripts of genes in their images; {found}")
        return "\n".join(lines)


def read_sections(reader: Reader, folders: Sequence[Path], positions_um: Sequence[float]) -> list[SectionSource]:
    """The sections of all folders; what is wrong with any of them is raised at once (`FaultsError` when several)."""
    faults = Faults()
    sections = _sections(reader, folders, positions_um, faults)
    faults.raise_any()
    return sections


def check(
    reader: Reader,
    folders: Sequence[Path],
    *,
    positions_um: Sequence[float] | None = None,
    names: GeneNames | None = None,
    genes: str = "same",
    max_outside: float = 0.5,
    one_pixel_size: bool = True,
    placing: Placing | None = None,
    progress: Track = no_progress,
) -> CheckReport:
    """Go through all files of all sections; never raises for what it finds in them.

    The rules are those of `ingest`: z of the folders in um (default: 0, 1, ...), names and rule of the genes, the share
    of transcripts that may lie outside their image, whether all sections must have pixels of one size because nothing
    says what to resample them to, and how they are placed (default: each at the corner of a canvas of its own).
    """
    faults = Faults()
    raw = _sections(reader, folders, positions_um or [float(index) for index in range(len(folders))], faults)
    _compare(raw, folders, faults, one_pixel_size=one_pixel_size)
    sections, canvas = raw, None
    with faults.catching(folders[0]):
        sections = harmonise(raw, names or GeneNames())
    if placing is not None and not len(faults):
        with faults.catching(folders[0]):
            canvas = placing(sections)
    on_canvas = {} if canvas is None else {placed.source.name: placed for placed in canvas.sections}
    repairs: list[Repair] = []
    observed: list[tuple[SectionGenes, set[str]]] = []
    kept = 0
    for section, own in progress(list(zip(sections, raw, strict=True)), "checking sections", len(sections)):
        notices = section.provenance.get("notices", [])
        repairs += [Repair(section.name, str(notice)) for notice in notices]
        for image in section.stains:
            _check_image(section, image, faults, progress)
        tally = _Tally(on_canvas.get(section.name) or _alone(section))
        with faults.catching(_folder(section, folders), f"section {section.name}"):
            _stream(own, section, tally, faults, progress)
            if not tally.broken:
                tally.refuse_empty(max_outside)
        kept += tally.inside
        repairs += tally.repairs()
        observed.append((SectionGenes(section.name, tally.genes, section.panel), tally.genes_kept))
    if not len(faults) and observed:
        with faults.catching(folders[0]):
            _check_panel(observed, genes)
    return CheckReport(tuple(faults), tuple(repairs), tuple(section.name for section in sections), kept, canvas)


def _check_panel(observed: Sequence[tuple[SectionGenes, set[str]]], rule: str) -> None:
    """Raise `InputError` where panels differ more than the rule allows, or a section has no gene of it."""
    panel = {gene.casefold() for gene in common_panel([section for section, _ in observed], rule)}
    for section, kept in observed:
        if not any(gene.casefold() in panel for gene in kept):
            raise InputError(f"section {section.section} has no transcript left of the panel's genes")


def _alone(section: SectionSource) -> Placed:
    """The section on a canvas that is its first stain's image."""
    image = section.stains[0]
    return Placed(section, Registration(image.um_to_px), image.plane.shape)


def _sections(
    reader: Reader, folders: Sequence[Path], positions_um: Sequence[float], faults: Faults
) -> list[SectionSource]:
    sections = []
    for folder, z_um in zip(folders, positions_um, strict=True):
        with faults.catching(folder):
            sections += reader.sections(folder, z_um)
    return sections


def _folder(section: SectionSource, folders: Sequence[Path]) -> Path:
    own = str(section.provenance.get("folder", section.name))
    return next((folder for folder in folders if folder.resolve().name == own), Path(own))


def _compare(
    sections: Sequence[SectionSource], folders: Sequence[Path], faults: Faults, *, one_pixel_size: bool
) -> None:
    """What sections must have in common: own names, the same stains, one pixel type a stain, perhaps one pixel size."""
    for index, section in enumerate(sections):
        folder, place, first = _folder(section, folders), f"section {section.name}", sections[0]
        if section.name in {other.name for other in sections[:index]}:
            faults.add(folder, place, "its name came before; every section needs its own, rename a folder")
        stains, expected = ([image.name for image in source.stains] for source in (section, first))
        if stains != expected:
            words = f"it has stains {', '.join(stains)}, section {first.name} has {', '.join(expected)}"
            faults.add(folder, place, f"{words}; choose common ones with --stains")
            continue
        for image, other in zip(section.stains, first.stains, strict=True):
            types = [getattr(source.plane, "dtype", None) for source in (image, other)]
            if None not in types and types[0] != types[1]:
                words = f"{image.name} is {types[0]}, in section {first.name} {types[1]}"
                faults.add(folder, place, f"{words}: their brightness cannot be compared; export them alike")
        own, common = (pixel_size_um(source.stains[0].um_to_px) for source in (section, first))
        if one_pixel_size and abs(own / common - 1) > 1e-3:
            words = f"its pixels are {own:.4g} um, those of section {first.name} {common:.4g} um"
            faults.add(folder, place, f"{words}; --pixel-um brings them to one size")


def _check_image(section: SectionSource, image: StainImage, faults: Faults, progress: Track) -> None:
    """Read every pixel: damaged windows are one fault an image, as is an image of one grey."""
    height, width = image.plane.shape
    windows = list(Box(0, height, 0, width).tiles(_WINDOW_PX, _WINDOW_PX))
    low, high, damaged, first = np.inf, -np.inf, 0, None
    for box in progress(windows, f"{image.name} of {section.name}", len(windows)):
        try:
            window = image.plane.read(box)
        except TeraMindError as error:
            damaged, first = damaged + 1, first or error
            continue
        low, high = min(low, float(window.min())), max(high, float(window.max()))
    path = Path(getattr(image.plane, "path", section.name))
    place = f"section {section.name}, stain {image.name}"
    if first is not None:
        faults.add(path, place, f"{damaged} of {len(windows)} windows cannot be read, the first: {first}")
    elif low == high:
        faults.add(path, place, f"every pixel is {low:g}: the image is empty; export it again")


@dataclass
class _Tally:
    """What a section's transcripts come to."""

    placed: Placed
    inside: int = 0
    cut: int = 0
    broken: bool = False
    outside: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    spans: dict[str, tuple[int, int]] = field(default_factory=dict)
    genes: dict[str, int] = field(default_factory=dict)
    genes_kept: set[str] = field(default_factory=set)
    respelled: dict[str, int] = field(default_factory=dict)

    def add(self, batch: TranscriptBatch) -> None:
        _add(self.dropped, batch.dropped)
        _add(self.respelled, batch.respelled)
        for reason, rows in batch.spans.items():
            self.spans.setdefault(reason, rows)
        if not len(batch.gene):
            return
        there = self.placed.locate(batch.x_um, batch.y_um)
        self.inside += int(there.kept.sum())
        self.outside += there.dropped["outside the image"]
        self.cut += there.dropped["outside the canvas"]
        total = np.bincount(batch.gene, minlength=len(batch.names)).tolist()
        _add(self.genes, {name: count for name, count in zip(batch.names, total, strict=True) if count})
        self.genes_kept |= {batch.names[code] for code in np.unique(batch.gene[there.kept]).tolist()}

    def repairs(self) -> list[Repair]:
        name = self.placed.source.name
        found = [Repair(name, reason, count, self.spans.get(reason)) for reason, count in self.dropped.items() if count]
        if self.outside:
            found.append(Repair(name, "outside the image", self.outside))
        if self.cut:
            found.append(Repair(name, "outside the canvas", self.cut))
        if self.respelled:
            found.append(Repair(name, respelled_words(self.respelled)))
        panel = self.placed.source.panel
        unknown = [] if panel is None else sorted(set(self.genes) - set(panel))
        if unknown:
            shown = ", ".join(unknown[:_SHOWN]) + (", ..." if len(unknown) > _SHOWN else "")
            total = sum(self.genes[gene] for gene in unknown)
            words = f"{total:,} transcripts of {len(unknown)} genes ({shown}) are not in the declared panel and kept"
            found.append(Repair(name, words))
        return found

    def refuse_empty(self, max_outside: float) -> None:
        """Raise `InputError` where nothing, or too little, would be left."""
        name, total = self.placed.source.name, self.inside + self.outside + self.cut
        if not total:
            reasons = ", ".join(f"{count} {reason}" for reason, count in self.dropped.items() if count) or "empty table"
            raise InputError(f"section {name} has no transcripts ({reasons}); a brain needs some")
        if self.outside == total or self.outside > max_outside * total:
            raise InputError(
                f"{self.outside / total:.0%} of the transcripts of section {name} lie outside its image, at most "
                f"{max_outside:.0%} may (--max-outside); check units, pixel size and transform"
            )
        if not self.inside:
            raise InputError(f"no transcript of section {name} lies on the canvas; check where it is placed")


def _add(total: dict[str, int], more: Mapping[str, int]) -> None:
    for name, count in more.items():
        total[name] = total.get(name, 0) + count


def _stream(raw: SectionSource, section: SectionSource, tally: _Tally, faults: Faults, progress: Track) -> None:
    """Read every row; where the stream breaks, the table of the section as it was read is asked for all its faults."""
    try:
        for batch in progress(expanded(section.batches()), f"transcripts of {section.name}", section.expected_batches):
            tally.add(batch)
    except TeraMindError:
        found = list(raw.batches.faults()) if isinstance(raw.batches, FaultyTable) else []
        if not found:
            raise
        for fault in found:
            place = ", ".join(filter(None, [f"section {section.name}", fault.place]))
            faults.add(fault.file, place, fault.words)
        tally.broken = True
