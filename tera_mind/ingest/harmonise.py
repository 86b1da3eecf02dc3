"""One name a gene: spelling, Ensembl ids, and features a user wants left out.

A reader gives the names its files hold; `harmonised` wraps its sections so that every name that leaves them is the
gene's one name. Names that differ only by case are one gene; an Ensembl id (with or without its version) is the gene
whose symbol a table gives.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from tera_mind.errors import FormatError, InputError
from tera_mind.ingest.small_csv import read_rows
from tera_mind.ingest.source import SectionSource, TranscriptBatch

#: ENS, three letters for a species other than human, G, eleven digits, and a version
_ENSEMBL = re.compile(r"(ENS(?:[A-Z]{3,4})?G\d{11})(?:\.\d+)?(?:_PAR_Y)?", re.IGNORECASE)


def ensembl_id(name: str) -> str | None:
    """The gene id in capitals without its version, None where the name is no Ensembl gene id."""
    match = _ENSEMBL.fullmatch(name.strip())
    return match[1].upper() if match else None


def read_symbols(path: Path) -> dict[str, str]:
    """Ensembl id -> symbol from a table whose first two columns hold them (CSV, TSV, .gz; 10x `features.tsv` is one).

    A symbol that several ids share names none of them: they keep their ids, so no gene is merged into another.
    Raises `MissingFileError` or `FormatError`.
    """
    ids: dict[str, str] = {}
    for row in read_rows(path, "a table of gene names"):
        ensembl = ensembl_id(row[0]) if row else None
        if ensembl is None or len(row) < 2 or not row[1].strip():
            continue
        symbol = row[1].strip()
        if ids.setdefault(ensembl, symbol) != symbol:
            raise FormatError(f"{path} gives {ensembl} two symbols, {ids[ensembl]} and {symbol}; leave one")
    if not ids:
        raise FormatError(f"expected Ensembl gene ids and symbols in the first two columns of {path}, found none")
    owners: dict[str, int] = {}
    for symbol in ids.values():
        owners[symbol.casefold()] = owners.get(symbol.casefold(), 0) + 1
    return {ensembl: symbol for ensembl, symbol in ids.items() if owners[symbol.casefold()] == 1}


@dataclass(frozen=True)
class GeneNames:
    """How genes are to be called.

    symbols: Ensembl id (capitals, no version) -> symbol; spelling: names as they are to be spelled (of others the
    symbols' spelling counts, then the first that comes); drop: regular expressions, without regard to case, of whole
    feature names to leave out, beside the controls that every reader drops.
    """

    symbols: Mapping[str, str] = field(default_factory=dict)
    spelling: tuple[str, ...] = ()
    drop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for pattern in self.drop:
            try:
                re.compile(pattern)
            except re.error as error:
                raise InputError(f"{pattern!r} is no regular expression ({error}); a feature's name is one") from None


class _Speller:
    """Feature -> gene; learns the first spelling of every gene."""

    def __init__(self, names: GeneNames, symbols: Mapping[str, str]) -> None:
        self._symbols = {**symbols, **names.symbols}
        self._first: dict[str, str] = {}
        for name in (*names.spelling, *self._symbols.values()):
            self._first.setdefault(name.casefold(), name)
        self._drop = [(pattern, re.compile(pattern, re.IGNORECASE)) for pattern in names.drop]
        self._known: dict[str, tuple[str, str | None]] = {}

    def __call__(self, feature: str) -> tuple[str, str | None]:
        """(gene, None), or (feature, reason) where it is to be left out."""
        if feature not in self._known:
            self._known[feature] = self._look_up(feature)
        return self._known[feature]

    def _look_up(self, feature: str) -> tuple[str, str | None]:
        ensembl = ensembl_id(feature)
        name = self._symbols.get(ensembl, ensembl) if ensembl else feature.strip()
        gene = self._first.setdefault(name.casefold(), name)
        for pattern, compiled in self._drop:
            if compiled.fullmatch(feature) or compiled.fullmatch(gene):
                return gene, f"matches {pattern}"
        return gene, None


@dataclass(frozen=True)
class _Renamed:
    """A source's stream under other names; starts anew with every call, so workers may each have their own."""

    source: SectionSource
    names: GeneNames

    def __call__(self) -> Iterator[TranscriptBatch]:
        speller = _Speller(self.names, self.source.symbols)
        for feature in self.source.panel or ():
            speller(feature)  # the panel's spelling comes first
        for batch in self.source.batches():
            yield _renamed(batch, speller)


def _renamed(batch: TranscriptBatch, speller: _Speller) -> TranscriptBatch:
    found = [speller(name) for name in batch.names]
    numbers: dict[str, int] = {}
    codes = np.array([numbers.setdefault(gene, len(numbers)) for gene, _ in found], np.int32)
    same = len(numbers) == len(codes)  # every feature keeps its number
    gene = batch.gene if same or not len(batch.gene) else codes[batch.gene]
    batch = replace(batch, gene=gene, names=list(numbers), respelled=_respelled(batch, found))
    reasons = {number: reason for number, (_, reason) in zip(codes.tolist(), found, strict=True) if reason}
    return _without(batch, reasons) if reasons and len(gene) else batch


def _respelled(batch: TranscriptBatch, found: Sequence[tuple[str, str | None]]) -> dict[str, int]:
    """Transcripts by name, of names that differ from their gene's by case alone."""
    other = {
        index: name
        for index, (name, (gene, reason)) in enumerate(zip(batch.names, found, strict=True))
        if reason is None and name.strip() != gene and name.strip().casefold() == gene.casefold()
    }
    if not other or not len(batch.gene):
        return {}
    weights = np.bincount(batch.gene, batch.count, len(batch.names)).astype(np.int64)
    return {name: int(weights[index]) for index, name in other.items() if weights[index]}


def _without(batch: TranscriptBatch, reasons: Mapping[int, str]) -> TranscriptBatch:
    """The batch without the genes of some numbers; they are counted under their reasons."""
    kept, dropped = np.ones(len(batch.gene), bool), dict(batch.dropped)
    for reason in sorted(set(reasons.values())):
        matches = np.isin(batch.gene, [number for number, other in reasons.items() if other == reason])
        weight = int(matches.sum() if batch.count is None else batch.count[matches].sum())
        dropped[reason] = dropped.get(reason, 0) + weight
        kept &= ~matches
    return replace(
        batch,
        x_um=batch.x_um[kept],
        y_um=batch.y_um[kept],
        gene=batch.gene[kept],
        count=None if batch.count is None else batch.count[kept],
        dropped=dropped,
    )


def harmonised(source: SectionSource, names: GeneNames) -> SectionSource:
    """The same section, its genes under their one name.

    Raises `InputError` when two different features that its panel declares become one gene.
    """
    panel = None
    if source.panel is not None:
        speller = _Speller(names, source.symbols)
        came_from: dict[str, str] = {}
        for feature in source.panel:
            gene, reason = speller(feature)
            if reason is None and came_from.setdefault(gene, feature) != feature:
                raise InputError(
                    f"features {came_from[gene]} and {feature} of section {source.name} both become gene {gene}: "
                    "leave one out, or give them different symbols"
                )
        panel = tuple(came_from)
    return replace(source, batches=_Renamed(source, names), panel=panel)


def harmonise(sources: Iterable[SectionSource], names: GeneNames) -> list[SectionSource]:
    """`harmonised` for the sections of one brain: the first section that declares a gene spells it for all of them."""
    sources = list(sources)
    spelling: list[str] = list(names.spelling)
    for source in sources:
        speller = _Speller(replace(names, spelling=tuple(spelling)), source.symbols)
        spelling += [speller(feature)[0] for feature in source.panel or ()]
    return [harmonised(source, replace(names, spelling=_once(spelling))) for source in sources]


def _once(names: Sequence[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(names))
