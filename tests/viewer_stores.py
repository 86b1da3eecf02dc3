"""Small stores that belong together: a brain, a volume painted from it, a map over it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from tiny_brain import make_brain

from tera_mind.formats.brain import Brain
from tera_mind.formats.maps import Map, MapAttributes
from tera_mind.formats.volume import Volume, VolumeAttributes
from tera_mind.geometry import Box

BOX, SECTIONS = Box(30, 400, 100, 700), (2, 0)


def make_volume(path: Path, brain: Brain, box=BOX, sections=SECTIONS, **changes) -> Volume:
    facts = {
        "stains": brain.stains, "pixel_um": brain.pixel_um, "brain": brain.path.name, "box": box, "sections": sections,
        "brain_fingerprint": brain.fingerprint, "patch_px": 32, "checkpoint": "ab" * 32, "seed": 7, "steps": 15,
    }  # fmt: skip
    attributes = VolumeAttributes(**facts | changes)
    image = np.random.default_rng(1).integers(1, 256, attributes.shape, dtype=np.uint8)
    image[0, 0, :256, 256:512] = 0  # one tile without anything in it
    return Volume.write(path, image, attributes)


def make_map(path: Path, values, box=BOX, sections=SECTIONS, **changes) -> Map:
    attributes = MapAttributes(
        **{"name": "Uncertainty", "unit": "grey", "channels": ("DAPI",), "low": 0.0, "high": 10.0, "box": box,
           "sections": sections, "step_px": 32, "pixel_um": 0.4} | changes
    )  # fmt: skip
    return Map.write(path, values, attributes)


def make_stores(folder: Path) -> Path:
    """brain.zarr, generated.zarr and uncertainty.zarr in a folder."""
    brain = make_brain(folder / "brain.zarr", shape=(2, 3, 500, 900), rows=50)
    make_volume(folder / "generated.zarr", brain)
    values = np.random.default_rng(2).uniform(0, 10, (1, 2, 12, 19)).astype(np.float32)
    values[0, 0, :4] = np.nan
    make_map(folder / "uncertainty.zarr", values)
    return folder
