"""Gene counts for a sampler: the checkpoint's panel out of a brain, as measured or as a control."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from tera_mind.errors import InputError, PanelMismatchError
from tera_mind.formats.brain import Brain, gene_bins
from tera_mind.formats.volume import GENE_TREATMENTS
from tera_mind.geometry import Box
from tera_mind.sampling.plain import CountSource

_SHUFFLE = 2  # purpose of the random key


@runtime_checkable
class CountEdit(Protocol):
    """A stated change of the genes before generation; picklable, and the same for a place in every window."""

    @property
    def digest(self) -> str:
        """16 hex digits of `facts`."""

    def facts(self) -> dict[str, Any]:
        """What the change depends on, plain JSON."""

    def edited(self, source: CountSource, sections: Sequence[int], region: Box) -> CountSource:
        """Counts of these sections as changed; `region` is what is generated, whose corner patches are counted from."""


def panel_index(have: Sequence[str], want: Sequence[str], *, allow_missing: bool) -> NDArray[np.int64]:
    """Position in `have` of every gene of `want`, -1 where it is missing.

    Raises `PanelMismatchError` naming the missing genes unless they are allowed.
    """
    position = {gene: i for i, gene in enumerate(have)}
    missing = [gene for gene in want if gene not in position]
    if missing and not allow_missing:
        shown = ", ".join(missing[:10]) + (f" and {len(missing) - 10} more" if len(missing) > 10 else "")
        raise PanelMismatchError(
            f"the checkpoint needs {len(want)} genes, the brain lacks {len(missing)} of them: {shown}; "
            "give a brain with these genes, or --allow-missing-genes to take them as zero"
        )
    if len(missing) == len(want):
        raise PanelMismatchError(
            f"the brain has none of the checkpoint's {len(want)} genes (it has {', '.join(list(have)[:5])}, ...; "
            f"the checkpoint {', '.join(list(want)[:5])}, ...)"
        )
    return np.array([position.get(gene, -1) for gene in want], dtype=np.int64)


@dataclass(frozen=True)
class PanelCounts:
    """Binned counts of a panel in a brain; genes with index -1 are zero."""

    brain: Brain
    sections: tuple[int, ...]
    index: NDArray[np.int64]
    bin_px: int

    def __call__(self, box: Box) -> Float[Tensor, "gene section bin_y bin_x"]:
        return torch.from_numpy(gene_bins(self.brain, self.sections, box, self.bin_px, self.index))


def shuffled(counts: CountSource, region: Box, side: int, bin_px: int, seed: int) -> CountSource:
    """Counts whose patches of `side` pixels are permuted within the region; around the region they stay."""
    rows, columns = region.height // side, region.width // side
    order = np.random.default_rng([seed, _SHUFFLE]).permutation(rows * columns)

    def source(box: Box) -> Float[Tensor, "gene section bin_y bin_x"]:
        out = counts(box)
        inner = box.intersect(region)
        if inner.is_empty:
            return out
        first_row, first_column = (inner.y0 - region.y0) // side, (inner.x0 - region.x0) // side
        for row in range(first_row, -(-(inner.y1 - region.y0) // side)):
            for column in range(first_column, -(-(inner.x1 - region.x0) // side)):
                y, x = region.y0 + row * side, region.x0 + column * side
                part = Box(y, y + side, x, x + side).intersect(box)
                if part.is_empty:
                    continue
                from_row, from_column = divmod(int(order[row * columns + column]), columns)
                moved = part.shift((from_row - row) * side, (from_column - column) * side)
                here = part.shift(-box.y0, -box.x0)
                bins = Box(here.y0 // bin_px, here.y1 // bin_px, here.x0 // bin_px, here.x1 // bin_px)
                out[(..., *bins.slices())] = counts(moved)
        return out

    return source


def count_source(
    brain: Brain,
    sections: tuple[int, ...],
    index: NDArray[np.int64],
    region: Box,
    *,
    patch_px: int,
    bin_px: int,
    treatment: str,
    seed: int,
) -> CountSource:
    """Counts of a section group for sampling a region: "as measured", or the controls "shuffled" and "zeroed".

    Boxes handed in start at multiples of `bin_px` from the region's corner. Nothing is kept between calls: a sweep
    reads every bin once.
    """
    if treatment not in GENE_TREATMENTS:
        raise InputError(f"genes are one of {', '.join(GENE_TREATMENTS)}, got {treatment!r}")
    source: CountSource = PanelCounts(brain, sections, index, bin_px)
    if treatment == "zeroed":
        measured = source
        source = lambda box: torch.zeros_like(measured(box))  # noqa: E731
    elif treatment == "shuffled":
        source = shuffled(source, region, patch_px, bin_px, seed)
    return source
