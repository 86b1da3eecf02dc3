"""Tiny folders as instruments write them, for the tests of ingest."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import tifffile

PIXEL_UM = 0.5


def write_xenium(
    folder: Path,
    *,
    image: np.ndarray | None = None,
    x_um=None,
    y_um=None,
    genes=None,
    qv=None,
    pixel_um: float = PIXEL_UM,
    panel=None,
    **experiment: object,
) -> Path:
    """A bundle of 200 x 160 px; by default 600 transcripts of three genes over a bright image.

    `panel`: genes of its panel file; `experiment`: further fields of experiment.xenium.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    image = rng.integers(100, 900, (200, 160)).astype(np.uint16) if image is None else image
    x_um = rng.uniform(0, image.shape[1] * pixel_um, 600) if x_um is None else np.asarray(x_um, float)
    y_um = rng.uniform(0, image.shape[0] * pixel_um, len(x_um)) if y_um is None else np.asarray(y_um, float)
    genes = [("A", "B", "C")[index % 3] for index in range(len(x_um))] if genes is None else genes
    qv = np.full(len(x_um), 40.0) if qv is None else qv
    table = {"feature_name": genes, "x_location": x_um, "y_location": y_um, "qv": qv}
    pd.DataFrame(table).to_parquet(folder / "transcripts.parquet")
    tifffile.imwrite(folder / "morphology_mip.ome.tif", image, tile=(64, 64), compression="zlib", metadata=None)
    if panel is not None:
        targets = [{"type": {"data": {"name": gene}, "descriptor": "gene"}} for gene in panel]
        (folder / "gene_panel.json").write_text(json.dumps({"payload": {"targets": targets}}))
    record = {"pixel_size": pixel_um, "images": {"morphology_mip_filepath": "morphology_mip.ome.tif"}} | experiment
    (folder / "experiment.xenium").write_text(json.dumps({k: v for k, v in record.items() if v is not None}))
    return folder


def write_merscope(
    folder: Path,
    *,
    planes=(0, 1),
    stains=("DAPI", "PolyT"),
    rows: int = 600,
    genes=("A", "B", "C", "Blank-1"),
    offset=30,
    shape=(120, 140),
    manifest: bool = False,
) -> Path:
    """A region of 120 x 140 px at 0.108 um, `offset` px from the origin; transcripts take the planes in turn."""
    height, width = shape
    rng = np.random.default_rng(1)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    scale = 9.26
    np.savetxt(
        folder / "images" / "micron_to_mosaic_pixel_transform.csv", [[scale, 0, -offset], [0, scale, offset], [0, 0, 1]]
    )
    for stain in stains:
        for plane in planes:
            image = rng.integers(200, 3000, shape).astype(np.uint16)
            tifffile.imwrite(folder / "images" / f"mosaic_{stain}_z{plane}.tif", image)
    if manifest:
        record = {
            "microns_per_pixel": round(1 / scale, 3),
            "mosaic_width_pixels": width,
            "mosaic_height_pixels": height,
            "bbox_microns": [offset / scale, -offset / scale, (width + offset) / scale, (height - offset) / scale],
            "hor_num_tiles_box": 1,
            "vert_num_tiles_box": 1,
            "mosaic_files": [
                {"stain": stain, "z": plane, "file_name": f"mosaic_{stain}_z{plane}.tif"}
                for stain in stains
                for plane in planes
            ],
        }
        (folder / "images" / "manifest.json").write_text(json.dumps(record))
    x_um, y_um = (rng.uniform(0, width, rows) + offset) / scale, (rng.uniform(0, height, rows) - offset) / scale
    names = [genes[index % len(genes)] for index in range(rows)]
    z = [float(planes[index % len(planes)]) for index in range(rows)]
    table = pd.DataFrame({"barcode_id": 0, "global_x": x_um, "global_y": y_um, "global_z": z, "gene": names})
    table.to_csv(folder / "detected_transcripts.csv")
    return folder
