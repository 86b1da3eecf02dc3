"""Whether volumes, brains and regions can be compared at all: every mismatch is one clear line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from tera_mind.errors import InputError
from tera_mind.formats.brain import Brain
from tera_mind.formats.volume import Volume
from tera_mind.geometry import Box
from tera_mind.metrics.plan import ENSEMBLE, GENERATED, VOLUME_METHODS, Reference, shared_genes


def check_volumes(brain: Brain, volumes: Mapping[str, Volume], ensemble: Sequence[Volume] = ()) -> None:
    """Raise `InputError` unless all volumes can be compared with the brain and with each other."""
    unknown = sorted(set(volumes) - set(VOLUME_METHODS))
    if unknown or GENERATED not in volumes:
        raise InputError(
            f"expected a 'generated' volume and at most {VOLUME_METHODS[1:]} beside it, got {list(volumes)}"
        )
    generated = volumes[GENERATED].attributes
    for method, volume in (*volumes.items(), *((ENSEMBLE, volume) for volume in ensemble)):
        own = volume.attributes
        for what, expected, found in (
            ("brain", brain.fingerprint, own.brain_fingerprint),
            ("stains", brain.stains, own.stains),
            ("box", generated.box, own.box),
            ("sections", generated.sections, own.sections),
        ):
            if expected != found:
                raise InputError(
                    f"the {method} volume {volume.path} should have {what} {expected}, has {found}: generate it from "
                    "the same brain and region"
                )
        if abs(own.pixel_um / brain.pixel_um - 1) > 1e-3:
            raise InputError(
                f"the {method} volume {volume.path} has pixels of {own.pixel_um:g} um, the brain {brain.path} of "
                f"{brain.pixel_um:g} um: generate it from this brain"
            )
    missing = [section for section in generated.sections if not 0 <= section < len(brain.sections)]
    if missing:
        raise InputError(f"the volume holds sections {missing}, the brain only 0 to {len(brain.sections) - 1}")
    if generated.box.intersect(brain.canvas).is_empty:
        raise InputError(f"the volume's box {generated.box} and the brain's canvas {brain.canvas} do not overlap")
    _check_ensemble(volumes[GENERATED], ensemble)


def _check_ensemble(generated: Volume, ensemble: Sequence[Volume]) -> None:
    """Members differ in their seeds and in nothing else."""
    made = generated.attributes
    for volume in ensemble:
        own = volume.attributes
        if (own.checkpoint, own.steps, own.genes) != (made.checkpoint, made.steps, made.genes):
            raise InputError(
                f"the ensemble volume {volume.path} was made otherwise than the generated one (checkpoint, steps or "
                "genes): only the seed may differ"
            )
    seeds = [made.seed, *(volume.attributes.seed for volume in ensemble)]
    if len(set(seeds)) < len(seeds):
        raise InputError(f"members of an ensemble need seeds of their own, got {seeds}")


def reference_tissue(brain: Brain, generated: Volume, train_box: Box, other: Brain | None) -> Reference:
    """The reference tissue, checked; on the same brain it must not overlap the generated box."""
    source = brain if other is None else other
    if train_box.is_empty or not source.canvas.contains(train_box):
        raise InputError(f"the training region {train_box} is empty or leaves the brain's canvas {source.canvas}")
    if source.fingerprint == brain.fingerprint:
        test = generated.attributes.box.intersect(brain.canvas)
        if not test.intersect(train_box).is_empty:
            raise InputError(
                f"the training region {train_box} overlaps the generated box {test}, so scores there would be of "
                "tissue that was seen: name the region that was trained on with --train-region, or generate another"
            )
        every = np.arange(len(brain.genes))
        return Reference(brain, train_box, generated.attributes.sections, every, every)
    if source.stains != brain.stains or abs(source.pixel_um / brain.pixel_um - 1) > 1e-3:
        raise InputError(
            f"the training brain {source.path} has stains {source.stains} at {source.pixel_um:g} um, {brain.path} has "
            f"{brain.stains} at {brain.pixel_um:g} um: ingest both alike"
        )
    own, shared = shared_genes(brain, source)
    return Reference(source, train_box, tuple(range(len(source.sections))), shared, own)
