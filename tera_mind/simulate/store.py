"""A simulated brain straight into a brain store, with its truth in a folder beside it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import tifffile

from tera_mind.errors import InputError
from tera_mind.formats.atomic import atomic_directory
from tera_mind.formats.brain import Brain, BrainWriter, Section, cell_counts, cell_means
from tera_mind.formats.tissue import CELL_PX, tissue_grid, tissue_mask
from tera_mind.formats.transcripts import merge_keys, pack_keys
from tera_mind.simulate.optics import BYTE_FLOOR, BYTE_SCALE, CAMERA_LEVEL
from tera_mind.simulate.tiles import Tiles, record_of
from tera_mind.simulate.truth import section_name, write_brain_truth, write_cells, write_regions
from tera_mind.simulate.windows import STAINS, VirtualBrain

#: wraps the sections to report progress
Hook = Callable[[Iterable[int]], Iterable[int]]


def truth_folder(out: Path) -> Path:
    """Where the truth of a store lies: `brain.zarr` -> `brain.truth`."""
    return out.with_name(out.name.removesuffix(".zarr") + ".truth")


def write_store(tiles: Tiles, out: Path, progress: Hook = iter) -> None:
    """Write the brain store of finished tiles of 8 bit, whole or not at all, and its truth first."""
    s, brain = tiles.settings, VirtualBrain(tiles.settings)
    height, width = s.pixels
    scale = np.diag([1 / s.pixel_um, 1 / s.pixel_um, 1.0])
    ranges = {
        stain: (CAMERA_LEVEL - BYTE_FLOOR / level, CAMERA_LEVEL + (255 - BYTE_FLOOR) / level)
        for stain, level in zip(STAINS, BYTE_SCALE, strict=True)
    }
    steps = np.diff(brain.z_um)
    shape = (len(STAINS), s.sections, height, width)
    # left in turn, the last first: a store never stands without its truth
    with atomic_directory(out) as folder, atomic_directory(truth_folder(out)) as truth:
        write_brain_truth(brain, truth, scale)
        writer = BrainWriter.create(
            folder, genes=brain.genes, stains=STAINS, pixel_um=s.pixel_um, shape=shape,
            section_um=float(np.median(steps)) if len(steps) else 10.0,
        )  # fmt: skip
        sections = []
        for index in progress(range(s.sections)):
            own = truth / section_name(index)
            own.mkdir()
            sections.append(_write_section(writer, tiles, brain, index, own))
        writer.finish(sections, ranges)


def _write_section(writer: BrainWriter, tiles: Tiles, brain: VirtualBrain, index: int, truth: Path) -> Section:
    s = tiles.settings
    height, width = s.pixels
    keys, means = [], np.zeros(tissue_grid(height, width), np.float32)
    digests = {}
    blanks = 0
    for box in tiles.boxes():
        images = tiles.read(index, box, ("images",))["images"]
        for stain in range(len(STAINS)):
            digests[stain, box] = writer.write_image(stain, index, box, images[stain].max(axis=0))
        rows = tiles.transcripts(index, box)
        gene = rows.gene < len(brain.genes)
        blanks += int((~gene).sum())
        y, x = (np.floor(part[gene] * (1.0 / s.pixel_um)).astype(np.int64) for part in (rows.y_um, rows.x_um))
        keys.append(pack_keys(y, x, rows.gene[gene], writer.tile_columns))
        part = cell_means(images[0].max(axis=0))
        top, left = box.y0 // CELL_PX, box.x0 // CELL_PX
        means[top : top + part.shape[0], left : left + part.shape[1]] = part
        if tiles.labels:
            path = truth / f"nuclei_{box.y0}_{box.x0}.tif"
            tifffile.imwrite(path, tiles.read(index, box, ("labels",))["labels"], compression="zlib")
    packed = np.concatenate(keys)
    digest = writer.write_transcripts(index, *merge_keys(packed))
    for stain in range(len(STAINS)):
        writer.build_section_pyramid(stain, index)
    writer.write_tissue(index, tissue_mask(cell_counts(packed, (height, width)), means))
    write_cells(tiles, index, truth / "cells.parquet")
    write_regions(brain, index, truth / "regions.tif")
    pixel = 1 / s.pixel_um
    return Section(
        name=section_name(index),
        z_um=brain.z_um[index],
        affine_um_to_px=((pixel, 0.0, 0.0), (0.0, pixel, 0.0)),
        transcripts=len(packed),
        dropped={"blank codeword": blanks} if blanks else {},
        source={"format": "simulated", "settings": record_of(s), "misregistered": s.misregister},
        sha256=writer.seal_section(index, digests, digest),
    )


def check_simulated(out: Path) -> None:
    """Raise `InputError` unless what lies at `out` and at its truth's place was simulated."""
    sections = Brain.open(out).sections
    if not sections or sections[0].source.get("format") != "simulated":
        raise InputError(f"{out} is no simulated brain, so it is not replaced: give another --out")
    truth = truth_folder(out)
    if truth.exists() and not (truth / "expression.parquet").is_file():
        raise InputError(f"{truth} is no truth of a simulated brain, so it is not replaced: give another --out")
