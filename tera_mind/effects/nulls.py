"""What edits of other genes would have done: random gene sets of equal expression, the same change, the same place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from tera_mind.analysis.interventions.edits import Scale
from tera_mind.analysis.interventions.intervention import Intervention, Part
from tera_mind.errors import InputError

#: genes nearest in expression among which one is drawn
NEAREST = 8


def null_genes(
    genes: Sequence[str],
    panel: Sequence[str],
    expression: NDArray[np.float64],
    draw: int,
    seed: int,
    excluded: Sequence[str] = (),
) -> tuple[str, ...]:
    """Set number `draw`: for every gene another one of about its expression, none of the edited ones, none twice.

    Of the `NEAREST` free genes by |log ratio| of (expression + 1e-6), one at random. Raises `InputError` where the
    panel has too few others.
    """
    random = np.random.default_rng([seed, draw])
    place = {gene: number for number, gene in enumerate(panel)}
    free = [gene for gene in panel if gene not in set(genes) | set(excluded)]
    if len(free) < len(genes):
        raise InputError(f"a null needs {len(genes)} genes beside those edited, the panel has {len(free)}")
    level = np.log(expression + 1e-6)
    chosen: list[str] = []
    for gene in genes:
        near = sorted(free, key=lambda other, own=level[place[gene]]: (abs(level[place[other]] - own), other))  # type: ignore[misc]
        pick = near[int(random.integers(min(NEAREST, len(near))))]
        chosen.append(pick)
        free.remove(pick)
    return tuple(chosen)


def null_intervention(
    intervention: Intervention, expression: NDArray[np.float64], draw: int, seed: int
) -> Intervention:
    """The intervention with the genes of every `scale` replaced. Raises `InputError` where it holds another kind."""
    parts = []
    for part in intervention.parts:
        if not isinstance(part.edit, Scale):
            kind = part.edit.facts()["kind"]
            raise InputError(f"a null of random genes is for edits of kind scale alone, this one has kind {kind}")
        drawn = null_genes(part.edit.genes, intervention.genes, expression, draw, seed, intervention.targets)
        parts.append(Part(replace(part.edit, genes=drawn), part.mask, part.strength))
    return replace(intervention, name=f"{intervention.name}, null {draw}", parts=tuple(parts))


def rank_p(value: float | None, null: Sequence[float | None]) -> float | None:
    """Share of null values at least as far from 0, (1 + k) / (1 + n): two-sided; None without a value or a null.

    What is unknown of a null set (the mean area of no nucleus) counts as far, so that it makes nothing significant.
    """
    if value is None or not null:
        return None
    return (1 + sum(other is None or abs(other) >= abs(value) for other in null)) / (1 + len(null))
