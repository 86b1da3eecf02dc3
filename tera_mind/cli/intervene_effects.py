"""The second half of `tera-mind intervene`: what the edit did, measured, drawn and written down."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from tera_mind.analysis.interventions.population import measure
from tera_mind.cli.intervene_checks import FORMAT
from tera_mind.cli.intervene_latent import latent_scores
from tera_mind.cli.intervene_run import FILM, FILMSTRIP, MAP, SUMMARY, nuclear_stain, stain_place
from tera_mind.cli.progress import track
from tera_mind.effects.change import compare, write_change
from tera_mind.effects.nuclei import QUANTITIES, moved_rows, nuclei_of, nucleus_rows, scales
from tera_mind.effects.nulls import null_intervention, rank_p
from tera_mind.effects.zones import INSIDE, Zones
from tera_mind.formats.atomic import atomic_file
from tera_mind.geometry import Box
from tera_mind.metrics.nuclei.segmenters import Scale, Watershed
from tera_mind.report.film import film_frames, filmstrip, moving
from tera_mind.sampling.writer import encode

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tera_mind.analysis.interventions.intervention import Intervention
    from tera_mind.cli.intervene_run import Run
    from tera_mind.formats.brain import Brain
    from tera_mind.formats.volume import Volume
    from tera_mind.metrics.nuclei.table import NucleusTable
    from tera_mind.sampling.job import Generation

    #: (stain, y, x) by section
    Painted = dict[int, NDArray[np.uint8]]

#: changes of the null and of the edit are compared in these
_NULL = (*QUANTITIES, "pixels")
#: largest side of what the pictures show
_SHOWN_PX = 384
_VERSION = 1


class Nuclei:
    """Nuclei of volumes, brains and arrays of one region, all by the brightness of the brain's real image."""

    def __init__(self, brain: Brain, zones: Zones, known: Mapping[int, Scale] | None = None) -> None:
        self.brain, self.zones = brain, zones
        self.stain = nuclear_stain(brain.stains)
        self.segmenter = Watershed(brain.pixel_um)
        self.scales = known or scales(self.of_brain(brain), zones.region, zones.sections, self.segmenter)

    def of_brain(self, brain: Brain) -> Callable[[int, Box], NDArray[np.uint8]]:
        stain = stain_place(brain.stains, self.stain, str(brain.path))
        return lambda section, box: brain.image(box, [section])[stain, 0]

    def of_volume(self, volume: Volume) -> Callable[[int, Box], NDArray[np.uint8]]:
        stain = stain_place(volume.attributes.stains, self.stain, str(volume.path))
        return lambda section, box: volume.image(box, [section])[stain, 0]

    def table(self, read: Callable[[int, Box], NDArray[np.uint8]]) -> NucleusTable:
        return nuclei_of(read, self.zones.region, self.segmenter, self.scales, self.brain.pixel_um)


def conclude(
    made: Run, volumes: Mapping[float, Volume], target: Brain | None, options: argparse.Namespace
) -> list[str]:
    """Measure, draw, write everything; what to print."""
    zones, job = made.zones, made.job
    factual, edited = volumes[0.0], volumes[1.0]
    change = compare(factual, edited, zones)
    lines = [f"beyond the margin: largest difference {change.beyond:g} in {change.beyond_px} pixels"]
    if not change.beyond_px:
        lines = ["beyond the margin: no patch of this region lies there, give a larger one to see exact zeros"]
    elif change.beyond:
        lines[0] += "; EXPECTED EXACTLY 0, the margin does not hold"
    details = {"intervention": made.intervention.facts(), "margin_px": zones.margin_px, **change.facts()}
    nuclei = Nuclei(job.brain, zones)
    tables = {s: nuclei.table(nuclei.of_volume(v)) for s, v in track(volumes.items(), "nuclei", len(volumes))}
    doses = [
        {"strength": s, "rows": _plain(nucleus_rows(tables[0.0], t, zones, job.brain.pixel_um, options.resamples, 0))}
        | {"pixels": compare(factual, volumes[s], zones).by_zone}
        for s, t in tables.items()
    ]
    lines += dose_lines(doses)
    record: dict[str, Any] = {
        "format": FORMAT, "version": _VERSION, "intervention": made.intervention.facts(),
        "digest": made.intervention.digest, "brain": job.brain.path.name, "brain_fingerprint": job.brain.fingerprint,
        "checkpoint": job.checkpoint.sha256, "region": str(job.region), "sections": list(job.sections),
        "steps": job.settings.steps, "seed": job.seed, "margin_px": zones.margin_px, **change.facts(), "doses": doses,
        "volumes": {f"{s:g}": str(volume.path.relative_to(made.out)) for s, volume in volumes.items()},
    }  # fmt: skip
    if target is not None:
        real, wanted = (nuclei.table(nuclei.of_brain(brain)) for brain in (job.brain, target))
        both = {"before": tables[0.0], "after": tables[1.0], "source": real, "target": wanted}
        moved = moved_rows(both, zones, job.brain.pixel_um, options.resamples, 0)
        record["towards_target"] = _plain(moved)
        lines += ["towards the target, inside (true change of the real images; the edit's; share, 1 is all the way)"]
        lines += [
            f"  {m.quantity:<10} {_words(m.true_change)}   {_words(m.edit_change)}   {_words(m.share)}" for m in moved
        ]
    record |= latent_scores(made, volumes, target, options.features, lines)
    if options.null:
        record["null"] = null(made, options.null, nuclei, lines)
    # all is measured, so what an earlier run left is replaced now; the summary says that all is there, so it comes last
    (made.out / SUMMARY).unlink(missing_ok=True)
    write_change(change, made.out / MAP, factual, zones, details)
    strip = film_frames(list(volumes.values()), [f"strength {s:g}" for s in volumes], *_shown(zones))
    for name, data in ((FILMSTRIP, filmstrip(strip)), (FILM, moving(strip[:-1]))):
        with atomic_file(made.out / name) as path:
            path.write_bytes(data)
    with atomic_file(made.out / SUMMARY) as path:
        path.write_text(json.dumps(record, indent=1), encoding="utf-8")
    view = f"tera-mind view {job.brain.path} {edited.path} {made.out / MAP}"
    return [*lines, f"pictures: {made.out / FILMSTRIP}, {made.out / FILM}; numbers: {made.out / SUMMARY}", view]


def _plain(rows: Any) -> list[dict[str, Any]]:
    """Rows with their intervals as plain JSON."""
    return [{k: v._asdict() if hasattr(v, "_asdict") else v for k, v in vars(row).items()} for row in rows]


def _words(interval: Any) -> str:
    found = interval if isinstance(interval, dict) else interval._asdict()
    if found["value"] is None:
        return "unknown"
    between = "" if found["low"] is None else f" ({found['low']:.3g} to {found['high']:.3g})"
    return f"{found['value']:+.3g}{between}"


def dose_lines(doses: list[dict[str, Any]]) -> list[str]:
    """The dose-response table: change of nuclei against strength 0, with 95 % intervals."""
    lines = [f"{'strength':<9} {'zone':<8} {'quantity':<10} {'before':>9} {'after':>9}  change (95 % interval)"]
    for dose in doses:
        if dose["strength"] == 0:
            continue
        for row in dose["rows"]:
            ends = "".join(f" {'-' if row[k] is None else format(row[k], '.4g'):>9}" for k in ("before", "after"))
            name = f"{dose['strength']:<9g} {row['zone']:<8} {row['quantity']:<10}"
            lines.append(f"{name}{ends}  {_words(row['change'])} {row['unit']}")
    return lines


def null(made: Run, draws: int, nuclei: Nuclei, lines: list[str]) -> dict[str, Any]:
    """The edit and random gene sets of equal expression, painted in the smallest region that holds the edit."""
    job, zones = made.job, made.zones
    small = replace(job, region=_patches_around(_bounds(zones), zones))
    own = replace(made, job=small, zones=_cut(zones, small.region))
    counter = Nuclei(job.brain, own.zones, nuclei.scales)
    genes = job.checkpoint.info.genes
    mean = measure("all", job.brain, zones.patch_px).filled(genes).of(genes).sums.mean
    factual = painted(own.at(0.0))

    stain = stain_place(job.checkpoint.info.stains, nuclei.stain, "the checkpoint")
    inside = {z: own.zones.pixels(z, small.region) == INSIDE for z in small.sections}

    def table(image: Painted) -> NucleusTable:
        def read(section: int, box: Box) -> NDArray[np.uint8]:
            plane: NDArray[np.uint8] = image[section][stain]
            return plane[box.shift(-small.region.y0, -small.region.x0).slices()]

        return counter.table(read)

    before = table(factual)

    def effect(intervention: Intervention) -> dict[str, float | None]:
        image = painted(replace(small, edit=intervention))
        rows = nucleus_rows(before, table(image), own.zones, job.brain.pixel_um, 0, 0)
        out = {row.quantity: row.change.value for row in rows if row.zone == "inside"}
        apart = [np.abs(image[z][:, inside[z]].astype(float) - factual[z][:, inside[z]]) for z in small.sections]
        return out | {"pixels": float(np.concatenate(apart, axis=1).mean())}

    edit = effect(made.intervention)
    drawn = [effect(null_intervention(made.intervention, mean, n, job.seed)) for n in track(range(draws), "null")]
    found: dict[str, Any] = {"region": str(small.region)}
    for name in _NULL:
        value, others = edit[name], [each[name] for each in drawn]
        p = rank_p(value, others)
        found[name] = {"edit": value, "null": others, "p": p}
        known = [other for other in others if other is not None]
        if value is None or p is None or not known:
            lines.append(f"null of {draws} gene sets, {name}: unknown, there are no nuclei to measure")
            continue
        spread = f"{np.median(known):+.3g} ({min(known):+.3g} to {max(known):+.3g})"
        lines.append(f"null of {draws} gene sets, {name}: edit {value:+.3g}, null {spread}, p {p:.3g}")
    return found


def painted(job: Generation) -> Painted:
    """A small region in memory: (stain, y, x) uint8 by section."""
    device, stains = torch.device("cpu"), job.checkpoint.info.model.stains
    network = job.network(device)
    made: Painted = {}
    for group in job.groups:
        whole = np.zeros((stains * len(group.image), job.region.height, job.region.width), np.uint8)
        for box, piece in job.pieces(
            network, group, (0, job.region.height // job.checkpoint.info.model.patch_px), device
        ):
            place = box.shift(-job.region.y0, -job.region.x0)
            whole[(slice(None), *place.slices())] = encode(piece, "uint8")
        planes = whole.reshape(stains, len(group.image), *whole.shape[1:])
        made |= {z: planes[:, n] for n, z in enumerate(group.image) if z in job.sections}
    return made


def _bounds(zones: Zones, margin_px: int | None = None) -> Box:
    """The smallest box of patches that holds all edited bins of all sections, with a margin (default: the zones')."""
    rows, columns = (np.flatnonzero(zones.patches(INSIDE).any(axis=(0, axis))) for axis in (2, 1))
    side, region = zones.patch_px, zones.region
    box = Box(int(rows[0]) * side, int(rows[-1] + 1) * side, int(columns[0]) * side, int(columns[-1] + 1) * side)
    grown = box.shift(region.y0, region.x0).grow(zones.margin_px if margin_px is None else margin_px)
    return grown.intersect(region)


def _patches_around(box: Box, zones: Zones) -> Box:
    """The box widened to whole patches of the region."""
    side, (y, x) = zones.patch_px, (zones.region.y0, zones.region.x0)
    ends = ((box.y0, y, 1), (box.y1, y, -1), (box.x0, x, 1), (box.x1, x, -1))
    return Box(*(o + sign * (sign * (edge - o) // side) * side for edge, o, sign in ends)).intersect(zones.region)


def _cut(zones: Zones, region: Box) -> Zones:
    inner = region.shift(-zones.region.y0, -zones.region.x0)
    bins = Box(*(edge // zones.bin_px for edge in (inner.y0, inner.y1, inner.x0, inner.x1)))
    return replace(zones, region=region, bins=zones.bins[(slice(None), *bins.slices())])


def _shown(zones: Zones) -> tuple[int, Box, NDArray[np.bool_]]:
    """Section with most edited bins, the square of it that holds most of them, and which of its pixels are edited."""
    edited = (zones.bins == INSIDE).astype(np.float64)
    plane = int(edited.sum(axis=(1, 2)).argmax())
    size = [min(_SHOWN_PX // zones.bin_px, side) for side in edited.shape[1:]]
    total = np.pad(edited[plane].cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    within = total[size[0] :, size[1] :] - total[: -size[0], size[1] :] - total[size[0] :, : -size[1]]
    within += total[: -size[0], : -size[1]]
    row, column = np.unravel_index(int(within.argmax()), within.shape)
    y, x = (int(place) * zones.bin_px for place in (row, column))
    height, width = (side * zones.bin_px for side in size)
    box = Box(y, y + height, x, x + width).shift(zones.region.y0, zones.region.x0)
    return zones.sections[plane], box, zones.pixels(zones.sections[plane], box) == INSIDE
