"""Which rows of a batch are transcripts of genes, why the others are not, and where the first of those stand.

What is dropped is counted in transcripts: with those that are kept they add up to what the table holds.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tera_mind.ingest.features import no_gene_reason
from tera_mind.ingest.source import TranscriptBatch

#: no stage moves farther: 10 m in microns
FARTHEST_UM = 1e7
#: a larger number is no count of transcripts
_BELIEVED = 2**40


class Selection:
    """Rows that are kept; `drop` takes rows out and counts their transcripts under a reason. A row is counted once.

    `counts`: transcripts a row, for binned tables; a number that is no count (missing, negative, broken) weighs one.
    None: a row is a transcript.
    """

    def __init__(self, rows: int, first_row: int, counts: NDArray[np.float64] | None = None) -> None:
        self.kept = np.ones(rows, bool)
        self._counts = counts
        self._first_row = first_row
        self._dropped: dict[str, int] = {}
        self._spans: dict[str, tuple[int, int]] = {}

    def drop(self, mask: NDArray[np.bool_], reason: str) -> None:
        """Take rows out that are still in."""
        index = np.flatnonzero(mask & self.kept)
        if not len(index):
            return
        gaps = np.flatnonzero(np.diff(index) > 1)
        last = index[gaps[0]] if len(gaps) else index[-1]
        self._spans.setdefault(reason, (self._first_row + int(index[0]), self._first_row + int(last)))
        self._dropped[reason] = self._dropped.get(reason, 0) + self._transcripts(index)
        self.kept[index] = False

    def _transcripts(self, index: NDArray[np.int64]) -> int:
        """What rows stand for."""
        if self._counts is None:
            return len(index)
        counts = self._counts[index]
        with np.errstate(invalid="ignore"):
            believed = (counts >= 0) & (counts < _BELIEVED) & (counts == np.rint(counts))
        return int(np.where(believed, counts, 1).sum())

    def drop_lost(self, x_um: NDArray[np.float64], y_um: NDArray[np.float64]) -> None:
        """Take rows out whose position is missing or on no stage."""
        with np.errstate(invalid="ignore"):
            good = (np.abs(x_um) < FARTHEST_UM) & (np.abs(y_um) < FARTHEST_UM)
        if good.all():
            return
        finite = np.isfinite(x_um) & np.isfinite(y_um)
        self.drop(~finite, "no position")
        self.drop(~good, "position beyond 10 m")

    def drop_no_genes(self, codes: NDArray[np.int32], names: Sequence[str]) -> None:
        """Take rows out whose feature has no name or is a control."""
        reasons = [no_gene_reason(name) for name in names]
        for reason in sorted({reason for reason in reasons if reason}):
            self.drop(np.array([other == reason for other in reasons], bool)[codes], reason)

    def batch(
        self, x_um: NDArray[np.float64], y_um: NDArray[np.float64], codes: NDArray[np.int32], names: Sequence[str]
    ) -> TranscriptBatch:
        """The rows that are left."""
        if not self.kept.all():
            x_um, y_um, codes = x_um[self.kept], y_um[self.kept], codes[self.kept]
        return TranscriptBatch(x_um, y_um, codes, names, self._dropped, self._spans)
