"""The picture of a survey: every section with its stains, transcripts and neighbour; top genes; counts a gene."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure, SubFigure
from numpy.typing import NDArray

from tera_mind.formats.atomic import atomic_file
from tera_mind.formats.brain import Brain
from tera_mind.formats.ome import pyramid_levels
from tera_mind.survey.measure import Survey

#: sections that get a row, evenly chosen where there are more; genes that get a map, and a line in the table
SECTIONS, MAPS, LISTED = 8, 8, 24
#: pictures of at most so many pixels a side
LARGEST_PX = 640
INCHES = 2.5


def draw_survey(brain: Brain, survey: Survey, path: Path) -> None:
    """Write the figure; its suffix (png, pdf, svg) says in which format. One row a section, then genes."""
    shown = np.unique(np.linspace(0, len(survey.sections) - 1, SECTIONS).round().astype(int)).tolist()
    columns = len(brain.stains) + 2
    height, width = brain.shape[2:]
    row_inches = float(np.clip(INCHES * height / width, 1.2, 4.0))
    top = row_inches * len(shown) + 0.9
    maps = 2 * (row_inches * 0.9 + 0.3)
    figure = Figure(figsize=(INCHES * columns + 0.8, top + maps + 5.2), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    parts = np.asarray(figure.subfigures(3, 1, height_ratios=[top, maps, 5.2]), object)
    upper, middle, lower = parts.ravel()
    total = sum(section.transcripts for section in survey.sections)
    words = f"{len(survey.sections)} sections, {total:,} transcripts of {len(brain.genes)} genes"
    upper.suptitle(f"{brain.path.name}: {words}", fontsize=10)
    _draw_sections(upper, brain, survey, shown)
    _draw_genes(middle, brain, survey)
    _draw_counts(lower, brain, survey)
    with atomic_file(path) as partial:
        figure.savefig(partial, format=path.suffix.removeprefix(".").lower() or "png")


def _level(brain: Brain) -> int:
    last = pyramid_levels(brain.path / "images") - 1
    return min(last, max(0, int(np.ceil(np.log2(max(brain.shape[2:]) / LARGEST_PX)))))


def _draw_sections(figure: SubFigure, brain: Brain, survey: Survey, shown: Sequence[int]) -> None:
    level = _level(brain)
    overview = brain.overview(level)
    axes = figure.subplots(len(shown), len(brain.stains) + 2, squeeze=False)
    brightest = max(float(np.quantile(survey.sections[index].density, 0.995)) for index in shown)
    for row, index in zip(axes, shown, strict=True):
        section = survey.sections[index]
        for axis, stain in zip(row, range(len(brain.stains)), strict=False):
            axis.imshow(overview[stain, index], cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        row[-2].imshow(section.density, cmap="magma", vmin=0, vmax=max(brightest, 1.0), interpolation="nearest")
        row[-1].imshow(_overlay(overview[0], index), interpolation="nearest")
        row[0].set_ylabel(f"{section.name[:22]}\nz {brain.sections[index].z_um:.1f} um", fontsize=6)
        row[-2].set_ylabel(f"{section.transcripts:,}", fontsize=6)
    titles = [*brain.stains, f"transcripts a {survey.step_px * brain.pixel_um:.0f} um cell", "with its neighbour"]
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title, fontsize=7)
    for axis in axes.ravel():
        axis.set_xticks([])
        axis.set_yticks([])


def _overlay(first_stain: NDArray[np.uint8], index: int) -> NDArray[np.uint8]:
    """A section in magenta and the next one (the one before, for the last) in green: grey where they agree."""
    other = index + 1 if index + 1 < len(first_stain) else index - 1
    green = first_stain[other] if 0 <= other < len(first_stain) else np.zeros_like(first_stain[index])
    return np.stack([first_stain[index], green, first_stain[index]], axis=-1)


def _draw_genes(figure: SubFigure, brain: Brain, survey: Survey) -> None:
    """Maps of the genes with most transcripts, in the section that holds most of all."""
    richest = int(np.argmax([section.transcripts for section in survey.sections]))
    genes = survey.top_genes(MAPS)
    figure.suptitle(f"the genes with most transcripts, in section {survey.sections[richest].name}", fontsize=9)
    axes = figure.subplots(2, MAPS // 2, squeeze=False).ravel()
    for axis in axes:
        axis.axis("off")
    for axis, gene, counts in zip(axes, genes, _gene_maps(brain, richest, genes), strict=False):
        axis.imshow(counts, cmap="magma", vmin=0, vmax=max(1.0, float(np.quantile(counts, 0.995))))
        axis.set_title(f"{brain.genes[gene]} {int(counts.sum()):,}", fontsize=7)


def _gene_maps(brain: Brain, section: int, genes: Sequence[int]) -> NDArray[np.float64]:
    """Transcripts of the genes on a grid of at most 160 cells a side: (gene, rows, columns)."""
    step = max(1, -(-max(brain.shape[2:]) // 160))
    rows, columns = (-(-size // step) for size in brain.shape[2:])
    place = np.full(len(brain.genes), -1)
    place[list(genes)] = np.arange(len(genes))
    maps = np.zeros(len(genes) * rows * columns)
    for box in brain.canvas.tiles(2048, brain.canvas.width):
        found = brain.transcripts(section, box)
        kept = place[found.gene] >= 0
        y, x = (found.y[kept].astype(np.int64) + box.y0) // step, found.x[kept].astype(np.int64) // step
        index = (place[found.gene[kept]] * rows + y) * columns + x
        maps += np.bincount(index, weights=found.count[kept], minlength=maps.size)
    return maps.reshape(len(genes), rows, columns)


def _draw_counts(figure: SubFigure, brain: Brain, survey: Survey) -> None:
    """Left: transcripts a gene and section, on a logarithmic scale; right: all genes by rank, a line a section."""
    listed = survey.top_genes(LISTED)
    left, right = figure.subplots(1, 2, width_ratios=[1.25, 1])
    shares = survey.gene_counts[:, listed].T.astype(float)
    picture = left.imshow(np.log10(1 + shares), aspect="auto", cmap="viridis", interpolation="nearest")
    left.set_yticks(range(len(listed)), [brain.genes[gene] for gene in listed], fontsize=5.5)
    left.set_xlabel("section", fontsize=7)
    left.set_title("transcripts of a gene and section", fontsize=8)
    left.tick_params(axis="x", labelsize=6)
    left.xaxis.get_major_locator().set_params(integer=True)
    bar = figure.colorbar(picture, ax=left, shrink=0.8)
    bar.set_label("log10 (1 + transcripts)", fontsize=6)
    bar.ax.tick_params(labelsize=6)
    for section in survey.sections:
        ranked = np.sort(section.gene_counts)[::-1]
        right.plot(np.arange(1, len(ranked) + 1), np.maximum(ranked, 0.5), linewidth=0.9, alpha=0.7)
    right.set_yscale("log")
    right.set_xscale("log")
    right.set_xlabel("gene, by rank", fontsize=7)
    right.set_ylabel("transcripts", fontsize=7)
    right.set_title("all genes, a line a section", fontsize=8)
    right.tick_params(labelsize=6)
