"""A small brain whose image follows its genes, and volumes of a part of it: enough for a whole evaluation."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from tera_mind.formats.brain import Brain, Transcripts, create_brain
from tera_mind.formats.volume import Volume, VolumeAttributes
from tera_mind.geometry import Box

PIXEL_UM = 0.5


class Case(NamedTuple):
    folder: Path
    brain: Brain
    volumes: dict[str, Volume]
    test: Box
    train: Box


def disc_section(seed: int, height: int, width: int):
    """Discs of 4.5 um radius, each full of gene 0; genes 1 and 2 are everywhere but in the lower right corner."""
    random = np.random.default_rng(seed)
    centres = [(y, x) for y in range(14, height, 28) for x in range(14, width, 28) if random.random() < 0.55]
    y, x = np.indices((height, width))
    image = np.full((height, width), 20.0)
    everywhere = height * width // 200
    rows = [random.integers(0, [[height], [width]], (2, everywhere)), np.zeros((2, 0), int)]
    for cy, cx in centres:
        image[np.hypot(y - cy, x - cx) < 9] = random.uniform(110, 170)
        rows.append(np.rint(random.normal([[cy], [cx]], 4, (2, 30))).astype(int))
    where = np.concatenate(rows, axis=1)
    gene = np.concatenate([random.integers(1, 3, everywhere), np.zeros(where.shape[1] - everywhere, int)])
    kept = (where >= 0).all(0) & (where[0] < height) & (where[1] < width)
    kept &= (where[0] < height - 64) | (where[1] < width - 64)
    image = ndimage.gaussian_filter(image, 1) + random.normal(0, 3, image.shape)
    columns = (where[0][kept], where[1][kept], gene[kept], np.ones(kept.sum()))
    return np.clip(image, 0, 255).astype(np.uint8), Transcripts(*(c.astype(np.int32) for c in columns))


def make_tissue(path: Path, height: int, width: int, sections: int = 2, seed: int = 0, genes="abc") -> Brain:
    images, rows = zip(*(disc_section(seed + n, height, width) for n in range(sections)), strict=True)
    image = np.stack([np.stack(images), 255 - np.stack(images)])
    return create_brain(
        path, image=image, transcripts=rows, genes=list(genes), stains=["DAPI", "PolyT"], pixel_um=PIXEL_UM
    )


def attributes_of(brain: Brain, test: Box, patch_px: int = 32, **changes) -> VolumeAttributes:
    made = VolumeAttributes(
        stains=brain.stains,
        pixel_um=brain.pixel_um,
        brain="brain",
        brain_fingerprint=brain.fingerprint,
        box=test,
        sections=tuple(range(len(brain.sections))),
        patch_px=patch_px,
        checkpoint="0" * 64,
        seed=0,
        steps=15,
    )
    return replace(made, **changes)


def paint(brain: Brain, test: Box, path: Path, *, noise_seed: int = 5, **changes) -> Volume:
    """A volume that is the real image, blurred and noisy."""
    real = brain.image(test).astype(float)
    noise = np.random.default_rng(noise_seed).normal(0, 3, real.shape)
    image = ndimage.gaussian_filter(real, (0, 0, 0.7, 0.7)) + noise
    return Volume.write(path, np.clip(image, 0, 255).astype(np.uint8), attributes_of(brain, test, **changes))


def make_case(folder: Path, height: int, width: int, test: Box, train: Box) -> Case:
    """The brain with its generated, shuffled and zeroed volumes."""
    brain = make_tissue(folder / "brain.zarr", height, width)
    real = brain.image(test).astype(float)
    random = np.random.default_rng(6)
    made = {
        "shuffled": np.roll(real, (64, 96), (2, 3)),
        "zeroed": 60 + random.normal(0, 20, real.shape),
    }
    volumes = {"generated": paint(brain, test, folder / "generated.zarr")}
    for method, image in made.items():
        pixels = np.clip(image, 0, 255).astype(np.uint8)
        volumes[method] = Volume.write(folder / f"{method}.zarr", pixels, attributes_of(brain, test, genes=method))
    return Case(folder, brain, volumes, test, train)
