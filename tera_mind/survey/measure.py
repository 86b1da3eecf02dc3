"""One pass over a brain store: counts a gene and section, densities, saturation, alignment; and what to warn of.

Everything is read in bands of the canvas, so memory depends on its width and not on its area.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray

from tera_mind.formats.brain import Brain
from tera_mind.formats.tissue import CELL_PX
from tera_mind.geometry import Box
from tera_mind.survey.alignment import Alignment, measure_alignment, nuclear_stain
from tera_mind.survey.coverage import grid_px, stain_grid, uncovered_share
from tera_mind.survey.neighbours import Neighbours, compare_neighbours

#: rows of the canvas read at once, a whole number of chunks and tiles
BAND_PX = 2048
#: share of the tissue's pixels at 255 from which a stain counts as saturated
SATURATED = 0.01
#: share of the transcripts outside the image, and of nuclei without transcripts, that is worth a word
OUTSIDE, UNCOVERED = 0.05, 0.10
#: sections with less than this part of the brain's median number of transcripts
POOR = 0.2

Track = Callable[[Iterable[Any], str, int | None], Iterable[Any]]


@dataclass(frozen=True)
class SectionSurvey:
    """What one section holds.

    density: transcripts in cells of `step_px`; saturated: share of tissue pixels at 255, by stain; uncovered: share of
    the nuclear area without transcripts; None, as the alignment, where no stain shows nuclei.
    """

    name: str
    gene_counts: Int[np.ndarray, " gene"]
    density: Float[np.ndarray, "rows columns"]
    saturated: dict[str, float]
    tissue_share: float
    outside_share: float
    uncovered: float | None
    alignment: Alignment | None

    @property
    def transcripts(self) -> int:
        return int(self.gene_counts.sum())


@dataclass(frozen=True)
class Survey:
    """All sections of a brain, their neighbourhood, and warnings in the order of their weight."""

    sections: list[SectionSurvey]
    neighbours: list[Neighbours]
    step_px: int
    genes: tuple[str, ...]
    warnings: list[str] = field(default_factory=list)

    @property
    def gene_counts(self) -> Int[np.ndarray, "section gene"]:
        return np.stack([section.gene_counts for section in self.sections])

    def top_genes(self, count: int) -> list[int]:
        """Indices of the genes with most transcripts in the brain, most first."""
        totals = self.gene_counts.sum(axis=0)
        return [int(index) for index in np.argsort(-totals, kind="stable")[:count] if totals[index]]

    def to_json(self) -> dict[str, Any]:
        return {
            "warnings": self.warnings,
            "sections": [
                {
                    "name": section.name,
                    "transcripts": section.transcripts,
                    "genes_seen": int((section.gene_counts > 0).sum()),
                    "tissue_share": section.tissue_share,
                    "outside_share": section.outside_share,
                    "saturated": section.saturated,
                    "nuclei_without_transcripts": section.uncovered,
                    "alignment": None
                    if section.alignment is None
                    else {
                        "dy_um": section.alignment.dy_um,
                        "dx_um": section.alignment.dx_um,
                        "correlation": section.alignment.correlation,
                        "sureness": section.alignment.sureness,
                        "words": section.alignment.words(),
                    },
                }
                for section in self.sections
            ],
            "neighbours": [
                {"sections": [pair.first, pair.first + 1], "shift_um": list(pair.shift_um), "overlap": pair.overlap}
                for pair in self.neighbours
            ],
            "gene_counts": {gene: self.gene_counts[:, index].tolist() for index, gene in enumerate(self.genes)},
        }


def survey_brain(brain: Brain, track: Track) -> Survey:
    """Look over every section; `track` reports progress. Raises `FormatError` where the store is damaged."""
    step = grid_px(brain)
    nuclei = nuclear_stain(brain.stains)
    sections = [
        _survey_section(brain, index, step, nuclei)
        for index in track(range(len(brain.sections)), "looking over sections", len(brain.sections))
    ]
    tissue = np.stack([brain.tissue(index) for index in range(len(brain.sections))])
    neighbours = compare_neighbours(tissue, CELL_PX * brain.pixel_um)
    survey = Survey(sections, neighbours, step, brain.genes)
    survey.warnings.extend(_warnings(survey, brain))
    return survey


def _survey_section(brain: Brain, index: int, step: int, nuclei: int | None) -> SectionSurvey:
    rows, columns = (-(-size // step) for size in (brain.canvas.height, brain.canvas.width))
    counts = np.zeros(len(brain.genes), np.int64)
    density = np.zeros((rows, columns))
    stain = np.zeros((rows, columns))
    saturated = np.zeros((len(brain.stains), 2))
    tissue = brain.tissue(index)
    for box in _bands(brain, step):
        found = brain.transcripts(index, box)
        counts += np.bincount(found.gene, weights=found.count, minlength=len(counts)).astype(np.int64)
        band = slice(box.y0 // step, -(-box.y1 // step))
        height = band.stop - band.start
        cell = (found.y // step).astype(np.int64) * columns + found.x // step
        density[band] = np.bincount(cell, weights=found.count, minlength=height * columns).reshape(height, columns)
        saturated += _saturation(brain, index, box, tissue)
        if nuclei is not None:
            stain[band] = stain_grid(brain, index, nuclei, box, step)
    own = brain.sections[index]
    outside = own.dropped.get("outside the image", 0)
    return SectionSurvey(
        name=own.name,
        gene_counts=counts,
        density=density,
        saturated={
            name: float(full / max(1.0, seen)) for name, (full, seen) in zip(brain.stains, saturated, strict=True)
        },
        tissue_share=float(tissue.mean()),
        outside_share=outside / max(1, outside + own.transcripts),
        uncovered=None if nuclei is None else uncovered_share(density, stain, _on_grid(tissue, (rows, columns), step)),
        alignment=None if nuclei is None else measure_alignment(brain, index, nuclei),
    )


def _bands(brain: Brain, step: int) -> Iterator[Box]:
    canvas = brain.canvas
    yield from canvas.tiles(max(1, BAND_PX // step) * step, canvas.width)


def _saturation(brain: Brain, index: int, box: Box, tissue: NDArray[np.bool_]) -> Float[np.ndarray, "stain 2"]:
    """Pixels of tissue at 255, and all of them, by stain."""
    image = brain.image(box, [index])[:, 0]
    rows = np.arange(box.y0, box.y1) // CELL_PX
    columns = np.arange(box.x0, box.x1) // CELL_PX
    mask: Bool[np.ndarray, "y x"] = tissue[np.ix_(rows, columns)]
    full = ((image == 255) & mask).sum(axis=(1, 2))
    return np.stack([full, np.full(len(full), mask.sum())], axis=1).astype(np.float64)


def _on_grid(tissue: NDArray[np.bool_], shape: tuple[int, int], step: int) -> Bool[np.ndarray, "rows columns"]:
    """The mask of 64 px cells at the centres of cells of `step` pixels."""
    centres = [
        np.minimum((np.arange(size) * step + step // 2) // CELL_PX, limit - 1)
        for size, limit in zip(shape, tissue.shape, strict=True)
    ]
    return np.asarray(tissue[np.ix_(*centres)])


def _warnings(survey: Survey, brain: Brain) -> list[str]:
    words = []
    median = float(np.median([section.transcripts for section in survey.sections]))
    for section in survey.sections:
        where = f"section {section.name}: "
        if not section.transcripts or not section.tissue_share:
            words.append(f"{where}empty ({section.transcripts:,} transcripts, tissue {section.tissue_share:.0%})")
            continue
        if section.transcripts < POOR * median:
            words.append(
                f"{where}{section.transcripts:,} transcripts, the brain's sections have {median:,.0f} (median)"
            )
        if section.alignment is not None and not section.alignment.aligned:
            words.append(where + section.alignment.words())
        if section.uncovered is not None and section.uncovered > UNCOVERED:
            words.append(
                f"{where}{section.uncovered:.0%} of the nuclear area has no transcripts around it: image and "
                "transcripts are of different fields, or do not lie on each other"
            )
        if section.outside_share > OUTSIDE:
            words.append(
                f"{where}{section.outside_share:.0%} of the transcripts lay outside the image and were dropped"
            )
        words += [
            f"{where}{share:.1%} of the tissue's {stain} pixels are saturated; ingest with a wider --range {stain}=..."
            for stain, share in section.saturated.items()
            if share > SATURATED
        ]
    for pair in survey.neighbours:
        if pair.suspicious:
            names = " and ".join(brain.sections[index].name for index in (pair.first, pair.first + 1))
            words.append(
                f"sections {names}: tissue overlaps by {pair.overlap:.0%}, best at a shift of "
                f"{np.hypot(*pair.shift_um):.0f} um: are they registered?"
            )
    silent = [gene for gene, total in zip(brain.genes, survey.gene_counts.sum(axis=0), strict=True) if not total]
    if silent:
        shown = ", ".join(silent[:6]) + (", ..." if len(silent) > 6 else "")
        words.append(f"{len(silent)} of {len(brain.genes)} genes have no transcript at all ({shown})")
    return words
