"""SpatialData zarr (scverse): one image and one table of points a section, both in microns of the brain's canvas.

Elements are named `<section>_image` and `<section>_transcripts`; the coordinate system is "global", in micrometres. A
transcript is a point at the centre of its canvas pixel. Images and points stay lazy while they are written. Needs the
extra `spatial`.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import zarr

from tera_mind.export.selection import LEVELS, Selection, Track
from tera_mind.formats.atomic import atomic_directory
from tera_mind.formats.brain import Brain
from tera_mind.formats.scverse import require_spatialdata
from tera_mind.geometry import Box

#: chunks of the images, and rows of the canvas whose transcripts are one partition
CHUNK_PX, BAND_PX = 2048, 4096


def write_spatialdata(selection: Selection, path: Path, track: Track) -> None:
    """Write the selection as a SpatialData zarr store, whole or not at all."""
    spatialdata = require_spatialdata()
    with atomic_directory(path) as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the library's own: deprecations of its dependencies
        zarr.create_group(folder)
        store = spatialdata.SpatialData(attrs=_facts(selection))
        store.write(folder, overwrite=True)
        todo = list(zip(selection.sections, selection.names, strict=True))
        for number, name in track(todo, "writing SpatialData", len(todo)):
            store.images[f"{name}_image"] = _image(selection, number)
            store.write_element(f"{name}_image")
            if isinstance(selection.source, Brain):
                store.points[f"{name}_transcripts"] = _points(selection, number)
                store.write_element(f"{name}_transcripts")
            store.write_consolidated_metadata()


def _facts(selection: Selection) -> dict[str, Any]:
    return {
        "tera_mind": {
            "format": "export",
            "of": selection.source.path.name,
            "synthetic": selection.synthetic,
            "pixel_um": selection.pixel_um,
            "unit": "micrometer",
            "levels": list(LEVELS),
            "sections": list(selection.sections),
            "z_um": dict(zip(selection.names, selection.z_um, strict=True)),
        }
    }


def _image(selection: Selection, number: int) -> Any:
    from dask import array as dask_array
    from spatialdata.models import Image2DModel
    from spatialdata.transformations import Scale, Sequence, Translation

    box, um = selection.box, selection.pixel_um
    windows = [
        [
            dask_array.from_delayed(
                _delayed_image(selection, number, tile), (len(selection.stains), tile.height, tile.width), np.uint8
            )
            for tile in band.tiles(CHUNK_PX, CHUNK_PX)
        ]
        for band in selection.bands(CHUNK_PX)
    ]
    to_um = Sequence([Translation([box.x0, box.y0], axes=("x", "y")), Scale([um, um], axes=("x", "y"))])
    levels = max(0, int(np.ceil(np.log2(max(box.height, box.width) / CHUNK_PX))))
    return Image2DModel.parse(
        dask_array.block([windows]),
        dims=("c", "y", "x"),
        c_coords=list(selection.stains),
        transformations={"global": to_um},
        scale_factors=[2] * levels or None,
        chunks=(1, CHUNK_PX, CHUNK_PX),
    )


def _delayed_image(selection: Selection, number: int, tile: Box) -> Any:
    from dask.delayed import delayed

    return delayed(selection.image, pure=True)(number, tile)


def _points(selection: Selection, number: int) -> Any:
    from dask import dataframe
    from spatialdata.models import PointsModel
    from spatialdata.transformations import Identity

    assert isinstance(selection.source, Brain)
    genes = list(selection.source.genes)
    frame = dataframe.from_map(
        _rows, list(selection.bands(BAND_PX)), selection=selection, number=number, genes=genes,
        meta=_frame(np.zeros(0), np.zeros(0), np.zeros(0, np.int64), genes),
    )  # fmt: skip
    return PointsModel.parse(
        frame, coordinates={"x": "x", "y": "y"}, feature_key="gene", transformations={"global": Identity()}
    )


def _rows(band: Box, selection: Selection, number: int, genes: list[str]) -> pd.DataFrame:
    """A row a transcript; x, y in microns, at the centre of the canvas pixel that holds it."""
    found = selection.transcripts(number, band)
    y, x, gene = (np.repeat(column, found.count) for column in (found.y, found.x, found.gene))
    um = selection.pixel_um
    return _frame((x + band.x0 + 0.5) * um, (y + band.y0 + 0.5) * um, gene.astype(np.int64), genes)


def _frame(x: Any, y: Any, gene: Any, genes: list[str]) -> pd.DataFrame:
    return pd.DataFrame({"x": x, "y": y, "gene": pd.Categorical.from_codes(gene, categories=pd.Index(genes))})
