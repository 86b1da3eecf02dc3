"""A simulated section in the layout that MERSCOPE writes, put together from its tiles without ever holding it whole."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import tifffile
from numpy.typing import NDArray

from tera_mind.formats.atomic import atomic_directory
from tera_mind.geometry import Box
from tera_mind.simulate.panel import BLANKS
from tera_mind.simulate.tiles import Tiles
from tera_mind.simulate.truth import write_cells, write_regions
from tera_mind.simulate.windows import STAINS, VirtualBrain

#: the mosaic's origin (x, y) lies here in the instrument's micrometres, so that no reader may take it for zero
ORIGIN_UM = (-37.25, 118.5)
#: y pixels are this much larger than x pixels, as real transforms have it
Y_STRETCH = 1.000005
_TIFF_PX = 256
_HEADER = ",barcode_id,global_x,global_y,global_z,x,y,fov,gene,transcript_id\n"


def um_to_mosaic(pixel_um: float) -> NDArray[np.float64]:
    """3 x 3 from the instrument's um to pixels of the mosaic."""
    scale_x, scale_y = 1 / pixel_um, Y_STRETCH / pixel_um
    return np.array([[scale_x, 0, -ORIGIN_UM[0] * scale_x], [0, scale_y, -ORIGIN_UM[1] * scale_y], [0, 0, 1.0]])


def write_section(tiles: Tiles, section: int, folder: Path) -> None:
    """Write the region folder of a section from its tiles, whole or not at all."""
    brain = VirtualBrain(tiles.settings)
    with atomic_directory(folder) as partial:
        (partial / "images").mkdir()
        (partial / "truth").mkdir()
        _write_images(tiles, section, partial / "images")
        names = np.array([*brain.genes, *(f"Blank-{index}" for index in range(1, BLANKS + 1))])
        _write_table(tiles, section, names, partial)
        codebook = pd.DataFrame({"name": names, "id": [f"SIM{i:06d}" for i in range(len(names))]})
        codebook.to_csv(partial / "codebook_0_simulated.csv", index=False)
        write_cells(tiles, section, partial / "truth" / "cells.parquet")
        write_regions(brain, section, partial / "truth" / "regions.tif")
        if tiles.labels:
            _write_mosaic(tiles, section, partial / "truth" / "nuclei.tif", _labels, np.dtype(np.uint32), "zlib")


def _labels(tiles: Tiles, section: int, box: Box) -> NDArray[Any]:
    return tiles.read(section, box, ("labels",))["labels"]


def _write_images(tiles: Tiles, section: int, folder: Path) -> None:
    s = tiles.settings
    np.savetxt(folder / "micron_to_mosaic_pixel_transform.csv", um_to_mosaic(s.pixel_um), fmt="%.18e")
    files = []
    for stain, name in enumerate(STAINS):
        for plane in range(s.planes):

            def image(tiles: Tiles, section: int, box: Box, at: tuple[int, int] = (stain, plane)) -> NDArray[Any]:
                # a copy, so that the tile's other planes are let go
                return np.array(tiles.read(section, box, ("images",))["images"][at])

            files.append({"stain": name, "z": plane, "file_name": f"mosaic_{name}_z{plane}.tif"})
            path = folder / f"mosaic_{name}_z{plane}.tif"
            _write_mosaic(tiles, section, path, image, np.dtype(np.uint8 if s.bits == 8 else np.uint16), None)
    height, width = s.pixels
    x, y = ORIGIN_UM
    manifest = {
        "microns_per_pixel": s.pixel_um,
        "mosaic_width_pixels": width,
        "mosaic_height_pixels": height,
        "bbox_microns": [x, y, x + s.width_um, y + s.height_um],
        "mosaic_files": files,
    }
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1))


def _write_mosaic(
    tiles: Tiles,
    section: int,
    path: Path,
    read: Callable[[Tiles, int, Box], NDArray[Any]],
    dtype: np.dtype[Any],
    compression: str | None,
) -> None:
    """One TIFF from the tiles of a section, a row of tiles at a time."""
    height, width = tiles.settings.pixels

    def squares() -> Iterator[NDArray[Any]]:
        boxes = tiles.boxes()
        for top in sorted({box.y0 for box in boxes}):
            row = [box for box in boxes if box.y0 == top]
            band = np.concatenate([read(tiles, section, box) for box in row], axis=1)
            band = np.pad(band, [(0, -size % _TIFF_PX) for size in band.shape])
            for y in range(0, band.shape[0], _TIFF_PX):
                for x in range(0, band.shape[1], _TIFF_PX):
                    yield np.ascontiguousarray(band[y : y + _TIFF_PX, x : x + _TIFF_PX])

    big = height * width * dtype.itemsize > 2**31
    tifffile.imwrite(
        path,
        squares(),
        shape=(height, width),
        dtype=dtype,
        tile=(_TIFF_PX, _TIFF_PX),
        compression=compression,
        bigtiff=big,
    )


def _write_table(tiles: Tiles, section: int, names: NDArray[Any], folder: Path) -> None:
    """The transcripts as CSV, and in the same order what is true of them: cell and compartment."""
    schema = pa.schema([("cell", pa.int64()), ("place", pa.int8())])
    options = pacsv.WriteOptions(include_header=False, quoting_style="needed")
    identity = np.array([f"SIM{index:06d}" for index in range(len(names))])
    written = 0
    truth = folder / "truth" / "transcripts.parquet"
    with (folder / "detected_transcripts.csv").open("wb") as file, pq.ParquetWriter(truth, schema) as parquet:
        file.write(_HEADER.encode())
        for box in tiles.boxes():
            rows = tiles.transcripts(section, box)
            count = len(rows)
            table = pa.table(
                {
                    "index": np.arange(written, written + count),
                    "barcode_id": rows.gene,
                    "global_x": (rows.x_um + ORIGIN_UM[0]).round(4),
                    "global_y": (rows.y_um / Y_STRETCH + ORIGIN_UM[1]).round(4),
                    "global_z": np.zeros(count),
                    "x": rows.x_um.round(4),
                    "y": rows.y_um.round(4),
                    "fov": np.zeros(count, np.int64),
                    "gene": names[rows.gene],
                    "transcript_id": identity[rows.gene],
                }
            )
            if count:
                pacsv.write_csv(table, file, options)
            parquet.write_table(pa.table({"cell": rows.cell, "place": rows.place}, schema=schema))
            written += count
