"""What the page says of where its figures come from: tissue, volumes, software, and how to look further."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from importlib import metadata
from typing import Any

import numpy as np

from tera_mind.formats.brain import Brain
from tera_mind.formats.volume import Volume
from tera_mind.geometry import Box
from tera_mind.report.inputs import Evaluation
from tera_mind.report.tables import settings_rows
from tera_mind.report.tissue import Scene
from tera_mind.report.words import TIMES, method_label

PACKAGES = ("torch", "lightning", "numpy", "scipy", "scikit-image", "torchmetrics", "zarr")


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
        ("Training region", _train_words(evaluation, train)),
        ("Section shown", brain.sections[scene.section].name),
        ("Model", f"checkpoint {str(generated.checkpoint)[:12]}, {generated.steps} steps, seed {generated.seed}"),
    ]


def _train_words(evaluation: Evaluation, train: Box | None) -> str:
    if train is None:
        return "not recorded"
    brain = f" of {evaluation.settings['reference_brain']}" if _trained_elsewhere(evaluation) else ""
    return f"pixels y {train.y0}:{train.y1}, x {train.x0}:{train.x1}{brain}"


def train_box(evaluation: Evaluation) -> Box | None:
    edges = evaluation.settings.get("train_box")
    return Box(*edges) if edges else None


def _trained_elsewhere(evaluation: Evaluation) -> bool:
    """Whether the training region lies in another brain than the one shown."""
    settings = evaluation.settings
    other = settings.get("reference_fingerprint")
    return other is not None and other != settings.get("brain_fingerprint")


def unseen_words(evaluation: Evaluation, scene: Scene) -> str:
    """Whether the model has seen the region in training, as far as the evaluation knows."""
    train = train_box(evaluation)
    if train is None:
        return "The evaluation does not record which region was used for training."
    if _trained_elsewhere(evaluation):
        return "The model was trained on another brain."
    if train.intersect(scene.box).is_empty:
        return "The region shown was not used for training."
    return "Beware: the region shown overlaps the region used for training."


def viewer_command(evaluation: Evaluation, brain: Brain, volumes: Mapping[str, Volume]) -> str:
    """The command that opens these stores, and the map of the seeds' spread, in the deep-zoom viewer."""
    spread = evaluation.path / "uncertainty.zarr"
    stores = [brain.path, *(volume.path for volume in volumes.values()), *([spread] if spread.exists() else [])]
    return shlex.join(["tera-mind", "view", *map(str, stores)])


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
        rows.append((method_label(method), settings_rows(facts)))
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
