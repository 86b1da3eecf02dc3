"""Gene panels, and what every gene means: mean counts by cell type, and how much of it stays in the nucleus.

Genes are numbered once for all brains. A number's biology depends on nothing else, so a gene means the same in every
simulated brain and panel.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

from tera_mind.errors import InputError
from tera_mind.simulate import keys
from tera_mind.simulate.celltypes import INDEX, TYPES, column

_BIOLOGY = 0  # shared by all brains: keyed by this, not by a brain's seed
_PANEL = 4
MOST_GENES = 20_000
BLANKS = 5
#: genes that three brains of 500 share, as the published ones do
SHARED_OF_500 = 229
#: the supporting brains' own genes are numbered from here
_OWN = 30_000

#: mean count in a cell, by type; 0.15 where nothing is named
MARKERS: dict[str, dict[str, float]] = {
    "Slc17a7": {"L23 exc": 30.0, "L56 exc": 24.0, "CA pyr": 26.0, "DG gran": 14.0, "CB granule": 12.0, "Thal exc": 2.0},
    "Slc17a6": {"Thal exc": 22.0, "Dopaminergic": 2.0, "L56 exc": 1.0},
    "Gad2": {"Interneuron": 16.0, "Purkinje": 9.0, "MSN": 8.0},
    "Nr4a2": {"Dopaminergic": 14.0, "L56 exc": 2.0},
    "Lamp5": {"L23 exc": 9.0, "L56 exc": 3.0, "Interneuron": 3.0},
    "Rorb": {"Thal exc": 5.0, "L23 exc": 3.0, "Purkinje": 3.0},
    "Rasgrp1": {"L23 exc": 8.0, "CA pyr": 8.0, "L56 exc": 6.0, "DG gran": 6.0, "MSN": 4.0},
    "C1ql3": {"DG gran": 9.0, "L23 exc": 7.0, "L56 exc": 5.0, "CA pyr": 4.0},
    "Nrn1": {"CA pyr": 10.0, "L23 exc": 8.0, "L56 exc": 8.0, "DG gran": 4.0},
    "Rgs4": {"L23 exc": 8.0, "L56 exc": 8.0, "Thal exc": 8.0, "MSN": 7.0, "CA pyr": 5.0},
    "Calb1": {"Purkinje": 18.0, "DG gran": 8.0, "MSN": 5.0, "L23 exc": 4.0},
    "Pvalb": {"Purkinje": 15.0, "Interneuron": 10.0},
    "Vip": {"Interneuron": 5.0},
    "Slc1a3": {"Astrocyte": 18.0},
    "Aqp4": {"Astrocyte": 13.0},
    "Gja1": {"Astrocyte": 14.0, "VLMC": 2.0},
    "Tcf7l2": {"Thal exc": 11.0, "Astrocyte": 1.5},
    "Sox10": {"Oligodendrocyte": 6.0, "OPC": 6.0},
    "Mog": {"Oligodendrocyte": 11.0},
    "St18": {"Oligodendrocyte": 9.0},
    "Ctss": {"Microglia": 16.0},
    "Cldn5": {"Endothelial": 14.0},
}
#: markers that the smallest panels lack: they come after the first unnamed genes
LATER_MARKERS: dict[str, dict[str, float]] = {
    "Th": {"Dopaminergic": 40.0},
    "Gpr88": {"MSN": 14.0},
    "Penk": {"MSN": 18.0},
    "Cbln1": {"CB granule": 9.0},
    "Dcn": {"VLMC": 18.0},
    "Pdgfra": {"OPC": 9.0},
}
UNNAMED_FIRST = 38
_EARLY = len(MARKERS) + UNNAMED_FIRST
#: the first unnamed genes are defined on these types alone, the only ones of the tissue that the shipped weights saw
_FIRST_TYPES = 8


def gene_name(number: int) -> str:
    """Name of gene `number`: markers, `Gene_0001` to `Gene_0038`, later markers, `Gene_0039`, ..."""
    if number < len(MARKERS):
        return list(MARKERS)[number]
    if _EARLY <= number < _EARLY + len(LATER_MARKERS):
        return list(LATER_MARKERS)[number - _EARLY]
    skipped = len(MARKERS) if number < _EARLY else len(MARKERS) + len(LATER_MARKERS)
    return f"Gene_{number - skipped + 1:04d}"


def gene_numbers(genes: int, *, supporting: bool = False) -> tuple[int, ...]:
    """Numbers of a panel's genes; a supporting brain shares the first 229 of 500 with the main one (`InputError`)."""
    if not len(MARKERS) <= genes <= MOST_GENES:
        raise InputError(
            f"a simulated panel has the {len(MARKERS)} marker genes or more, up to {MOST_GENES}, got {genes}"
        )
    shared = genes if not supporting else max(len(MARKERS), round(genes * SHARED_OF_500 / 500))
    return (*range(shared), *range(_OWN + shared, _OWN + genes))


def panel(genes: int, *, supporting: bool = False) -> tuple[str, ...]:
    """Gene names of a panel."""
    return tuple(gene_name(number) for number in gene_numbers(genes, supporting=supporting))


@cache
def expression(numbers: tuple[int, ...]) -> NDArray[np.float64]:
    """Mean count of every gene in a cell of every type, (gene, type), before the brain's global factor.

    Markers as stated. Other genes: lognormal (median 0.15, sigma 1.2), raised tenfold in one to three random types, and
    proportional to the size of the type's soma.
    """
    size = column("soma_um") / 7.5
    first = _first_unnamed()
    table = np.empty((len(numbers), len(TYPES)))
    for row, number in enumerate(numbers):
        named = _marker(number)
        if named is not None:
            table[row] = 0.15
            for name, mean in named.items():
                table[row, INDEX[name]] = mean
        elif number < _EARLY:
            table[row] = first[number - len(MARKERS)] * size
        else:
            table[row] = _unnamed(number) * size
    table.flags.writeable = False
    return table


def _marker(number: int) -> dict[str, float] | None:
    if number < len(MARKERS):
        return list(MARKERS.values())[number]
    return list(LATER_MARKERS.values())[number - _EARLY] if 0 <= number - _EARLY < len(LATER_MARKERS) else None


def _first_unnamed() -> NDArray[np.float64]:
    random = np.random.default_rng([_BIOLOGY, _PANEL])
    table = random.lognormal(np.log(0.15), 1.2, UNNAMED_FIRST)[:, None] * np.ones(len(TYPES))
    for row in table:
        row[random.choice(_FIRST_TYPES, random.integers(1, 4), replace=False)] *= 10
    return table


def _unnamed(number: int) -> NDArray[np.float64]:
    random = np.random.default_rng([_BIOLOGY, _PANEL, number])
    row = random.lognormal(np.log(0.15), 1.2) * np.ones(len(TYPES))
    row[random.choice(len(TYPES), random.integers(1, 4), replace=False)] *= 10
    return row


@cache
def nuclear_share(numbers: tuple[int, ...]) -> NDArray[np.float64]:
    """Of a gene's transcripts in nucleus and soma, the share in the nucleus: median 0.41, 5-95 % 0.19 to 0.71."""
    index = np.array(numbers, np.int64)
    drawn = keys.words(_BIOLOGY, keys.FIELD, _PANEL, index, index)[0]
    share = keys.quantiles("logistic normal", -0.50, 0.75)[keys.halves(drawn)[0]]
    share.flags.writeable = False
    return share
