"""One self-contained `report.html`: pictures, plots and tables put into the page, and the figures beside it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2

from tera_mind import __version__
from tera_mind.errors import InputError
from tera_mind.formats.atomic import atomic_file
from tera_mind.formats.brain import Brain
from tera_mind.formats.volume import Volume
from tera_mind.report import provenance, scorecard, tables, tissue
from tera_mind.report.figures import PALETTE, THEMES, Part, Plot
from tera_mind.report.inputs import Evaluation, read_losses
from tera_mind.report.plots import ensemble, genes, looks, nuclei, seams, sections, strata, training
from tera_mind.report.tissue import Scene, Strip
from tera_mind.report.verdict import verdict
from tera_mind.report.words import METHODS, method_label

TITLE = "Genes paint tissue"
VOLUMES = ("generated", "shuffled", "zeroed")


def write_report(
    out: Path,
    evaluation: Path,
    brain: Brain,
    volumes: Mapping[str, Volume],
    log: Path | None = None,
    *,
    title: str = TITLE,
) -> Path:
    """Write `out` (one HTML file that needs nothing else) and its figures as PNG into `figures/` beside it.

    `evaluation` is the folder that `tera-mind evaluate` wrote; `volumes` holds "generated" and, where there are,
    the controls "shuffled" and "zeroed"; `log` is the metrics.csv of the training. Parts whose input is absent are
    replaced by a sentence saying so. Returns `out`.

    Raises `MissingFileError` for absent files, `FormatError` for unreadable ones or an unknown version, `InputError`
    when brain, volumes and evaluation do not belong together.
    """
    if "generated" not in volumes or set(volumes) - set(VOLUMES):
        raise InputError(f"a report needs the generated volume and may have {VOLUMES[1:]}, got {sorted(volumes)}")
    read = Evaluation.read(evaluation)
    losses = read_losses(log) if log is not None else None
    scene = Scene.build(read, brain, volumes)

    strips, shown = _pictures(read, scene)
    parts, found_genes = _parts(read, scene)
    loss = training.loss_curve("loss", losses) if losses is not None else None
    page = template().render(
        title=title,
        version=__version__,
        palette={theme: {"real": colours["ink"], **PALETTE} for theme, colours in THEMES.items()},
        unseen=provenance.unseen_words(read, scene),
        absent=[method_label(m) for m in VOLUMES[1:] if m not in volumes],
        viewer=provenance.viewer_command(read, brain, volumes),
        parts=parts,
        loss=loss,
        best_genes=found_genes.best,
        worst_genes=found_genes.worst,
        data=provenance.data_words(read, scene),
        volumes=provenance.volume_rows(volumes),
        software=[("tera-mind", __version__), *provenance.versions()],
        **shown,
        **_tables(read),
    )

    plots = [plot for part in parts.values() for plot in part.plots]
    write_figures(out.parent / "figures", strips, [*plots, *([loss] if loss is not None else [])])
    with atomic_file(out) as partial:
        partial.write_text(page, encoding="utf-8")
    return out


def _pictures(evaluation: Evaluation, scene: Scene) -> tuple[list[Strip], dict[str, Any]]:
    """All strips of pictures, and what the template needs to show them."""
    places = tissue.zoom_boxes(scene)
    region, zooms = tissue.hero(scene, places), tissue.zooms(scene, places)
    outlines, controls = tissue.outlines(scene, evaluation), tissue.controls(scene, evaluation)
    limits = zip(scene.stains, scene.ranges, strict=True)
    shown = {
        "ranges": ", ".join(f"{stain} {low:.0f} to {high:.0f}" for stain, (low, high) in limits),
        "stains": scene.stains,
        "main_stain": scene.stains[scene.main_stain],
        "region": region,
        "zooms": zooms,
        "kinds": [kind for _, kind, _, _ in places],
        "outlines": outlines,
        "controls": controls,
    }
    return [region, *zooms, *(strip for strip in (outlines, controls) if strip is not None)], shown


def _parts(evaluation: Evaluation, scene: Scene) -> tuple[dict[str, Part], genes.Genes]:
    """The plots of every section of the page."""
    profiles = [
        seams.seam_profile(f"seams_{stain}", stain, tissue.seam_profiles(scene, index))
        for index, stain in enumerate(scene.stains)
    ]
    found_genes = genes.genes(evaluation)
    parts = {
        "distributions": nuclei.distributions(evaluation),
        "windows": nuclei.windows(evaluation),
        "looks": looks.looks(evaluation),
        "genes": found_genes.part,
        "strata": strata.strata(evaluation),
        "sections": sections.continuity(evaluation),
        "profiles": Part(profiles),
        "seams": seams.measures(evaluation),
        "ensemble": ensemble.ensemble(evaluation),
    }
    return parts, found_genes


def _tables(evaluation: Evaluation) -> dict[str, Any]:
    """Everything of the page that is text and numbers."""
    return {
        "verdict": verdict(evaluation),
        "acceptance": tables.acceptance(evaluation),
        "scorecard": scorecard.scorecard(evaluation),
        "marks": scorecard.legend(evaluation),
        "groups": tables.score_groups(evaluation),
        "legend": tables.legend(tables.columns(evaluation)),
        "paired": tables.paired_table(evaluation),
        "excluded": tables.excluded_words(evaluation.excluded),
        "settings": tables.settings_rows(evaluation.settings),
        "glossary": tables.glossary(evaluation),
        "methods": list(METHODS),
    }


def template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("tera_mind.report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html")


def write_figures(folder: Path, strips: list[Strip], plots: list[Plot]) -> None:
    """Every picture and plot as a PNG; other files in the folder stay."""
    files = {picture.name: picture.png() for strip in strips for picture in strip.pictures}
    files |= {plot.name: plot.light for plot in plots}
    for name, data in files.items():
        with atomic_file(folder / f"{name}.png") as partial:
            partial.write_bytes(data)
