"""Perturbed brains: a stated change of genes or cells, everything else bit by bit as before.

Every draw of the simulator is keyed by cell, gene and place, so a change touches only what it names: a gene scaled in
some cells leaves all other transcripts and all images alone; removed cells take their own light and transcripts away.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from tera_mind.errors import FormatError, InputError, MissingFileError
from tera_mind.simulate import celltypes, keys, regions
from tera_mind.simulate.cells import LARGEST_CELL_UM, Cells

_CHANCE_DRAW = 9
_LARGEST_SCALE, _LARGEST_CELL = 20.0, 1.6


@dataclass(frozen=True)
class Change:
    """One change. Empty `types` or `regions` mean all.

    `scale` multiplies the mean count of `genes` ("*" is every gene) in the cells meant; `deplete` removes that share of
    the cells meant; `enlarge` multiplies their size.
    """

    genes: tuple[str, ...] = ()
    scale: float = 1.0
    types: tuple[str, ...] = ()
    regions: tuple[str, ...] = ()
    deplete: float = 0.0
    enlarge: float = 1.0

    def __post_init__(self) -> None:
        _known("cell type", self.types, celltypes.NAMES)
        _known("region", self.regions, [region.name for region in regions.REGIONS])
        if not 0 <= self.scale <= _LARGEST_SCALE:
            raise InputError(f"a change of genes has scale 0 to {_LARGEST_SCALE:g}, got {self.scale:g}")
        if not 0 <= self.deplete <= 1 or not 0.5 <= self.enlarge <= _LARGEST_CELL:
            raise InputError(
                f"a change of cells has deplete 0 to 1 and enlarge 0.5 to {_LARGEST_CELL:g}, "
                f"got {self.deplete:g} and {self.enlarge:g}"
            )
        if (self.scale != 1) != bool(self.genes):
            raise InputError("a change of genes needs both `genes` (a list, or '*' for all) and `scale` (not 1)")
        if self.scale == 1 and self.deplete == 0 and self.enlarge == 1:
            raise InputError("a change changes nothing: give genes and scale, or deplete, or enlarge")

    def kinds(self) -> NDArray[np.bool_]:
        """Which types are meant."""
        return np.array([not self.types or name in self.types for name in celltypes.NAMES])

    def places(self) -> NDArray[np.bool_]:
        """Which regions are meant."""
        return np.array([not self.regions or region.name in self.regions for region in regions.REGIONS])


@dataclass(frozen=True)
class Perturbation:
    """Changes that are applied in order."""

    changes: tuple[Change, ...]

    @staticmethod
    def read(path: Path) -> Perturbation:
        """Read a YAML file: a list `changes` of mappings with the fields of `Change`. Raises one-line errors."""
        if not path.is_file():
            raise MissingFileError(f"no perturbation at {path}: --perturb names a YAML file with a list `changes`")
        try:
            record = yaml.safe_load(path.read_text())
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise FormatError(f"{path} is no YAML: {error}") from None
        if not isinstance(record, dict) or set(record) != {"changes"} or not isinstance(record["changes"], list):
            raise FormatError(f"{path} should hold a list `changes` and nothing else")
        if not record["changes"]:
            raise FormatError(f"{path} should hold a list `changes`, each with genes and scale, or deplete, or enlarge")
        return Perturbation.from_json(record["changes"])

    @staticmethod
    def from_json(records: Sequence[Mapping[str, Any]]) -> Perturbation:
        """From plain mappings."""
        names = {field.name: field.default for field in fields(Change)}
        changes = []
        for record in records:
            if not isinstance(record, dict) or set(record) - set(names):
                raise FormatError(f"a change has {', '.join(names)}, got {record}")
            try:
                values: dict[str, Any] = {
                    name: tuple(map(str, [value] if isinstance(value, str) else value))
                    if isinstance(names[name], tuple)
                    else float(value)
                    for name, value in record.items()
                }
            except (TypeError, ValueError) as error:
                raise FormatError(f"a change holds a value that cannot be read ({error}): {record}") from None
            changes.append(Change(**values))
        return Perturbation(tuple(changes))

    def cells(self, cells: Cells, seed: int, section: int) -> Cells:
        """The cells after depletion and growth; whether a cell goes depends on its number and the change alone."""
        for index, change in enumerate(self.changes):
            meant = change.kinds()[cells.kind] & change.places()[cells.region]
            if change.enlarge != 1:
                factor = np.where(meant, change.enlarge, 1.0)
                grown = {name: getattr(cells, name) * factor for name in ("major_um", "minor_um", "soma_um")}
                cells = replace(cells, **grown)
            if change.deplete > 0:
                drawn = keys.words(seed, keys.SHAPE, section, cells.cell, np.full_like(cells.cell, index), _CHANCE_DRAW)
                cells = cells.take(~(meant & (keys.uniform(drawn[0]) < change.deplete)))
        if all(change.enlarge <= 1 for change in self.changes):
            return cells
        # a window sees no farther than the largest cell, however many changes enlarge it
        shrunk = np.minimum(1.0, LARGEST_CELL_UM / cells.major_um)
        return replace(
            cells,
            major_um=cells.major_um * shrunk,
            minor_um=cells.minor_um * shrunk,
            soma_um=np.minimum(cells.soma_um, LARGEST_CELL_UM),
        )

    def gene_factors(
        self, genes: Sequence[str], kind: NDArray[np.int8], region: NDArray[np.int8]
    ) -> NDArray[np.float64]:
        """(cell, gene): what the mean counts are multiplied by."""
        factors = np.ones((len(kind), len(genes)))
        for change in self._of_genes(genes):
            rows = change.kinds()[kind] & change.places()[region]
            factors[np.ix_(rows, change_columns(change, genes))] *= change.scale
        return factors

    def floor_factors(
        self, genes: Sequence[str], region: NDArray[np.int8], gene: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        """The same for transcripts that belong to no cell: only changes that name no cell type reach them."""
        factors = np.ones(len(gene))
        for change in self._of_genes(genes):
            if not change.types:
                meant = np.zeros(len(genes) + 1, bool)
                meant[change_columns(change, genes)] = True
                factors[change.places()[region] & meant[gene]] *= change.scale
        return factors

    def _of_genes(self, genes: Sequence[str]) -> Iterable[Change]:
        for change in self.changes:
            if change.genes:
                change_columns(change, genes)
                yield change

    def check(self, genes: Sequence[str]) -> None:
        """Refuse genes that the panel lacks, and changes that together multiply a gene too often."""
        together = np.ones(len(genes))
        for change in self._of_genes(genes):
            together[change_columns(change, genes)] *= max(change.scale, 1.0)
        if together.max(initial=1.0) > _LARGEST_SCALE:
            gene = genes[int(together.argmax())]
            raise InputError(
                f"changes together scale {gene} by {together.max():g}, at most {_LARGEST_SCALE:g}: give smaller scales"
            )


def change_columns(change: Change, genes: Sequence[str]) -> NDArray[np.intp]:
    """Positions of the change's genes in a panel. Raises `InputError` for genes that are not in it."""
    if change.genes == ("*",):
        return np.arange(len(genes))
    _known("gene", change.genes, genes)
    return np.nonzero(np.isin(np.array(genes), change.genes))[0]


def _known(what: str, given: Iterable[str], known: Sequence[str]) -> None:
    unknown = [name for name in given if name not in known]
    if unknown:
        shown = ", ".join(known[:30]) + (", ..." if len(known) > 30 else "")
        raise InputError(f"no {what} {', '.join(unknown)}; there are {shown}")
