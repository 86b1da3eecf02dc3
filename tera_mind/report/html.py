"""One self-contained `report.html`: pictures, plots and tables put into the page, and the figures beside it."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from tera_mind import __version__
from tera_mind.errors import InputError
from tera_mind.formats.atomic import atomic_file
from tera_mind.formats.brain import Brain
from tera_mind.formats.volume import Volume
from tera_mind.geometry import Box
from tera_mind.report import figures, tables, tissue
from tera_mind.report.figures import Plot
from tera_mind.report.inputs import Evaluation, read_losses
from tera_mind.report.tissue import Scene, Strip
from tera_mind.report.words import REFERENCES, TIMES, method_label

TITLE = "Genes paint tissue"
VOLUMES = ("generated", "shuffled", "zeroed")
PACKAGES = ("torch", "lightning", "numpy", "scipy", "scikit-image", "torchmetrics", "zarr")


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

    places = tissue.zoom_boxes(scene)
    region, zooms = tissue.hero(scene, places), tissue.zooms(scene, places)
    nuclei, controls = tissue.outlines(scene, read), tissue.controls(scene, read)
    plots = distributions(read)
    seams = [
        figures.seam_profile(f"seams_{stain}", stain, tissue.seam_profiles(scene, index))
        for index, stain in enumerate(scene.stains)
    ]
    loss = figures.loss_curve("loss", losses) if losses is not None else None

    page = template().render(
        title=title,
        version=__version__,
        verdict=tables.verdict(read),
        acceptance=tables.acceptance(read),
        unseen=unseen_words(read, scene),
        data=data_words(read, scene),
        ranges=", ".join(
            f"{s} {low:.0f} to {high:.0f}" for s, (low, high) in zip(scene.stains, scene.ranges, strict=True)
        ),
        stains=scene.stains,
        main_stain=scene.stains[scene.main_stain],
        region=region,
        zooms=zooms,
        kinds=[kind for _, kind, _, _ in places],
        nuclei=nuclei,
        controls=controls,
        absent=[method_label(m) for m in VOLUMES[1:] if m not in volumes],
        plots=plots,
        seams=seams,
        loss=loss,
        columns=[method_label(m) for m in tables.columns(read)],
        competitors=[m not in REFERENCES for m in tables.columns(read)],
        legend=tables.legend(tables.columns(read)),
        scores=tables.score_table(read),
        paired=tables.paired_table(read),
        excluded=tables.settings_rows(read.excluded),
        volumes=volume_rows(volumes),
        settings=tables.settings_rows(read.settings),
        software=[("tera-mind", __version__), *versions()],
        glossary=tables.glossary(read),
    )

    strips = [region, *zooms, *(strip for strip in (nuclei, controls) if strip is not None)]
    all_plots = [*plots, *seams, *([loss] if loss is not None else [])]
    write_figures(out.parent / "figures", strips, all_plots)
    with atomic_file(out) as partial:
        partial.write_text(page, encoding="utf-8")
    return out


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


def distributions(evaluation: Evaluation) -> list[Plot]:
    """Nucleus area and nuclei per window as histograms, and nuclei per window as a scatter; empty without nuclei."""
    shown = ("real", "generated", "shuffled", "zeroed")
    areas = evaluation.per_method("nucleus_area_um2")
    counts = evaluation.per_method("window_counts")
    window = evaluation.settings.get("window_px")
    noun = f"nuclei per {window} px window" if window else "nuclei per window"
    plots = []
    if {"real", "generated"} <= areas.keys():
        values = {m: areas[m] for m in shown if m in areas and areas[m].size}
        plots.append(figures.histogram("nucleus_area", values, "nucleus area, µm²", "nuclei"))
    if {"real", "generated"} <= counts.keys() and counts["real"].size:
        values = {m: counts[m] for m in shown if m in counts}
        plots.append(figures.histogram("window_counts", values, noun, "windows", whole=True))
        plots.append(figures.scatter("window_counts_scatter", counts["real"], counts["generated"], noun))
    return plots


def data_words(evaluation: Evaluation, scene: Scene) -> list[tuple[str, str]]:
    """What the report is about, as short pairs for its head."""
    brain, generated = scene.brain, scene.volumes["generated"].attributes
    size = np.asarray([scene.box.width, scene.box.height]) * scene.pixel_um
    train = train_box(evaluation)
    sections = len(generated.sections)
    return [
        ("Tissue", brain.path.name.removesuffix(".zarr")),
        ("Genes", f"{len(brain.genes):,}"),
        ("Stains", ", ".join(scene.stains)),
        ("Pixel", f"{scene.pixel_um:g} µm"),
        ("Test region", f"{size[0]:,.0f} {TIMES} {size[1]:,.0f} µm, {sections} section{'s' if sections > 1 else ''}"),
        ("Training region", f"pixels y {train.y0}:{train.y1}, x {train.x0}:{train.x1}" if train else "not recorded"),
        ("Section shown", brain.sections[scene.section].name),
        ("Model", f"checkpoint {str(generated.checkpoint)[:12]}, {generated.steps} steps, seed {generated.seed}"),
    ]


def train_box(evaluation: Evaluation) -> Box | None:
    edges = evaluation.settings.get("train_box")
    return Box(*edges) if edges else None


def unseen_words(evaluation: Evaluation, scene: Scene) -> str:
    """Whether the model has seen the region in training, as far as the evaluation knows."""
    train = train_box(evaluation)
    if train is None:
        return "The evaluation does not record which region was used for training."
    if train.intersect(scene.box).is_empty:
        return "The region shown was not used for training."
    return "Beware: the region shown overlaps the region used for training."


def volume_rows(volumes: Mapping[str, Volume]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Provenance of each volume, by method."""
    rows = []
    for method, volume in volumes.items():
        a = volume.attributes
        facts: dict[str, Any] = {
            "file": volume.path.name,
            "genes": a.genes,
            "checkpoint": a.checkpoint,
            "seed": a.seed,
            "steps": a.steps,
            "patch_px": a.patch_px,
            "pixel_um": a.pixel_um,
            "box": str(a.box),
            "sections": list(a.sections),
            "brain": f"{a.brain} ({a.brain_fingerprint})",
            **a.settings,
        }
        rows.append((method_label(method), tables.settings_rows(facts)))
    return rows


def versions() -> list[tuple[str, str]]:
    """Versions of the packages that shape the figures, where installed."""
    found = []
    for name in PACKAGES:
        try:
            found.append((name, metadata.version(name)))
        except metadata.PackageNotFoundError:
            continue
    return found
