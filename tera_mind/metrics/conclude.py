"""From the merged measurements of all units to the evaluation: every table, and the arrays that figures need."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tera_mind.metrics import ensemble, scores
from tera_mind.metrics.acceptance import acceptance
from tera_mind.metrics.nuclei.rows import NucleusFigures, nucleus_figures
from tera_mind.metrics.plan import CEILING, ENSEMBLE, GENERATED, REAL
from tera_mind.metrics.regions import RegionMap
from tera_mind.metrics.scores import Measured
from tera_mind.metrics.table import Arrays, Evaluation, Row
from tera_mind.metrics.tiles.rows import distance_rows, recovery_rows
from tera_mind.metrics.unit import Measurer

#: methods that generated is not held against: the truth, the ceiling, and what is made of generated itself
_NO_CONTROL = frozenset({REAL, GENERATED, ENSEMBLE, CEILING})

Makers = dict[str, Callable[[], NDArray[Any]]]


def conclude(
    found: Measured,
    measurer: Measurer,
    regions: RegionMap | None,
    facts: Mapping[str, Any],
    keeps: object,
) -> Evaluation:
    """All figures and arrays; arrays are read from the units' files when they are asked for."""
    plan = found.plan
    controls = [method for method in plan.methods if method not in _NO_CONTROL]
    boxes = found.test.array("patch_boxes")
    labels = None if regions is None else regions.at(boxes)
    table, paired = scores.patch_rows(found, plan.paired), scores.patch_pairs(found, controls)
    nuclei = nucleus_figures(found, controls)
    table += nuclei.table
    paired += nuclei.paired
    seams, phases = scores.seam_rows(found)
    distances, distance_pairs = distance_rows(found, measurer.extractors, controls)
    table += seams + scores.look_rows(found) + distances
    paired += distance_pairs
    genes, gene_pairs, gene_arrays, probe = recovery_rows(found, measurer.extractors[0], controls)
    table += genes + scores.continuity_rows(found)
    paired += gene_pairs
    members = None
    if measurer.sources.ensemble:
        rows, members = _ensemble(found, measurer)
        table += rows
    names = {section: measurer.sources.brain.sections[section].name for section in plan.sections}
    groups = scores.patch_groups(found, names, labels, {} if regions is None else regions.names)
    stain = None if plan.nucleus_stain is None else plan.stains[plan.nucleus_stain]
    made: Makers = {
        **_as_measured(found),
        **{
            name: partial(_given, array)
            for name, array in (phases | gene_arrays | scores.spectrum_arrays(found)).items()
        },
        **nuclei.arrays,
        **_previews(found),
        "genes": partial(_given, _gene_names(measurer)),
    }
    if labels is not None:
        made["patch_region"] = partial(_given, labels.astype(np.int32))
    return Evaluation(
        settings=dict(facts) | _controls(measurer) | {"gene_probe": probe},
        methods=list(plan.methods),
        table=table,
        paired=paired,
        strata=scores.strata(found, plan.paired, groups) + nuclei.strata(regions, names),
        ensemble=members,
        acceptance=acceptance(table, paired, plan.stains, stain or "DAPI"),
        excluded=_excluded(found, nuclei),
        arrays=Arrays(made, keeps),
    )


def _given(array: NDArray[Any]) -> NDArray[Any]:
    return array


def _gene_names(measurer: Measurer) -> NDArray[Any]:
    genes = measurer.sources.brain.genes
    return np.array([genes[index] for index in measurer.sources.reference.own_genes.tolist()])


def _as_measured(found: Measured) -> Makers:
    names = list(scores.patch_arrays(found, found.plan.paired))
    for stain in found.plan.stains:
        names += [f"{what}/{stain}" for what in ("uncertainty", "error") if f"{what}/{stain}" in found.test]
    return {name: partial(found.test.array, name) for name in names}


def _ensemble(found: Measured, measurer: Measurer) -> tuple[list[Row], dict[str, Any]]:
    """How far the seeds spread, and whether that tells where they err."""
    count = 1 + len(measurer.sources.ensemble)
    cells, draw = found.patch_cells("patch"), found.draw
    rows, calibration = [], []
    for stain in found.plan.stains:
        spread, error = (found.test.array(f"{what}/{stain}").astype(np.float64) for what in ("uncertainty", "error"))
        settings = cells, draw.resamples, draw.seed
        figures = {
            "spread_error_ratio": ensemble.spread_error_ratio(spread, error, count, *settings),
            "spread_skill": ensemble.spread_skill(spread, error, *settings),
            "spread_skill_rank": ensemble.spread_skill_rank(spread, error, *settings),
        }
        rows += [Row.of(ENSEMBLE, metric, stain, value, "no patch") for metric, value in figures.items()]
        calibration += [{"stain": stain, **part._asdict()} for part in ensemble.calibration(spread, error, count)]
    volumes = (measurer.sources.volumes[GENERATED], *measurer.sources.ensemble)
    return rows, {
        "seeds": [volume.attributes.seed for volume in volumes],
        "volumes": [str(volume.path) for volume in volumes],
        "calibration": calibration,
    }


def _controls(measurer: Measurer) -> dict[str, Any]:
    """What the settings say of the fitted controls."""
    ridge = measurer.sources.ridge
    return {
        "ridge": {
            "bin_px": ridge.bin_px,
            "components": int(ridge.axes.shape[1]),
            "penalty": ridge.penalty,
            "held_out_r2": list(ridge.held_out_r2),
            "bins": ridge.bins,
        },
        "mean_image": [int(value) for value in measurer.sources.mean],
    }


def _excluded(found: Measured, nuclei: NucleusFigures) -> dict[str, int]:
    """Squares that count, and those that do not because they hold no transcript."""
    counted = {}
    for name, plural in (("patch", "patches"), ("large", "large_squares")):
        counted[plural] = len(found.test.array(f"{name}_boxes"))
        counted[f"{plural}_without_transcripts"] = int(found.test.total(f"sum:{name}_excluded")[0])
    return counted | nuclei.excluded


def _previews(found: Measured) -> Makers:
    """The preview of the first section, put together from the blocks that it touches."""
    parts = list(found.test.optional("only:preview_box"))
    preview = found.plan.preview
    made: Makers = {
        "preview_box": partial(_given, np.array([preview.y0, preview.y1, preview.x0, preview.x1], np.int64))
    }
    for method in found.plan.images:
        if any(True for _ in found.test.optional(f"only:labels/{method}")):
            made[f"labels/{method}"] = partial(_assembled, found, f"only:labels/{method}", parts)
    made["ridge_preview"] = partial(_assembled, found, "only:ridge_preview", parts)
    return made


def _assembled(found: Measured, key: str, boxes: Sequence[NDArray[np.int64]]) -> NDArray[Any]:
    """Parts of the preview in their places; labels of different blocks stay different."""
    preview = found.plan.preview
    whole: NDArray[Any] | None = None
    last = 0
    for (y0, y1, x0, x1), part in zip((box.tolist() for box in boxes), found.test.optional(key), strict=True):
        if whole is None:
            whole = np.zeros((*part.shape[:-2], preview.height, preview.width), part.dtype)
        if key.startswith("only:labels"):
            part[part > 0] += last
            last = max(last, int(part.max(initial=0)))
        whole[..., y0 - preview.y0 : y1 - preview.y0, x0 - preview.x0 : x1 - preview.x0] = part
    assert whole is not None
    return whole
