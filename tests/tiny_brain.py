"""A brain of random pixels and transcripts, small enough for every test."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tera_mind.formats.brain import Brain, Transcripts, create_brain

GENES = ("Aqp4", "Gad2", "Mog", "Slc17a7", "Vip")


def random_transcripts(rng, height, width, rows, genes):
    return Transcripts(
        rng.integers(height, size=rows).astype(np.int32),
        rng.integers(width, size=rows).astype(np.int32),
        rng.integers(genes, size=rows).astype(np.int32),
        rng.integers(1, 4, size=rows).astype(np.int32),
    )


def make_brain(
    path: Path,
    *,
    shape=(2, 3, 120, 200),
    rows=3000,
    genes=GENES,
    stains=("DAPI", "PolyT"),
    pixel_um=0.4,
    seed=0,
    **more,
) -> Brain:
    """Random image (stain, section, y, x) without zeros, `rows` random transcripts a section."""
    rng = np.random.default_rng(seed)
    image = more.pop("image", rng.integers(1, 256, size=shape).astype(np.uint8))
    transcripts = [random_transcripts(rng, *shape[2:], rows, len(genes)) for _ in range(shape[1])]
    return create_brain(
        path,
        image=image,
        transcripts=more.pop("transcripts", transcripts),
        genes=genes,
        stains=stains,
        pixel_um=pixel_um,
        **more,
    )
