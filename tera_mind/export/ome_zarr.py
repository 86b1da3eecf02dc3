"""A stand-alone OME-Zarr 0.5 image (c, z, y, x) of chosen sections and box, with its pyramid."""

from __future__ import annotations

from pathlib import Path

import zarr

from tera_mind.export.selection import LEVELS, Selection, Track
from tera_mind.formats.atomic import atomic_directory
from tera_mind.formats.ome import build_pyramid, create_multiscale, shard_windows


def write_ome_zarr(selection: Selection, path: Path, track: Track) -> None:
    """Write the selection shard by shard, whole or not at all. The attribute `tera_mind` says where it comes from."""
    box = selection.box
    shape = (len(selection.stains), len(selection.sections), box.height, box.width)
    with atomic_directory(path) as folder:
        image = create_multiscale(
            folder,
            shape,
            name=path.name.split(".")[0],
            stains=selection.stains,
            pixel_um=selection.pixel_um,
            section_um=selection.section_um,
        )
        windows = list(shard_windows(shape))
        todo = [(plane, window) for plane in range(shape[1]) for window in windows]
        for plane, window in track(todo, "writing OME-Zarr", len(todo)):
            pixels = selection.image(selection.sections[plane], window.shift(box.y0, box.x0))
            for stain in range(shape[0]):
                image[(stain, plane, *window.slices())] = pixels[stain]
        build_pyramid(folder)
        zarr.open_group(folder, mode="r+").attrs["tera_mind"] = {
            "format": "export",
            "of": selection.source.path.name,
            "synthetic": selection.synthetic,
            "levels": list(LEVELS),
            "box": [box.y0, box.y1, box.x0, box.x1],
            "sections": list(selection.sections),
        }
