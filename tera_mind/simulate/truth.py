"""What is true of a simulated brain, written beside it: cells, regions, expression, and the sections' registration.

`sections.csv` is the true registration, section to registered canvas; `misregistration.csv` is its inverse, from the
canvas to the section's image. Both hold an affine on (x, y, 1) and, where there is one, a displacement that is added
after the affine: float32 (2, rows, columns) = (dy, dx) in units of the target, spread evenly over the target's canvas.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import tifffile
from numpy.typing import NDArray

from tera_mind.simulate import celltypes, panel, regions
from tera_mind.simulate.cells import Cells
from tera_mind.simulate.tiles import Tiles
from tera_mind.simulate.windows import VirtualBrain

#: pixels of the map of regions, um
REGION_UM = 8.0
#: cells of a displacement field, um of an unscaled brain
_FIELD_UM = 25.0
Matrix = NDArray[np.float64]
Move = Callable[[NDArray[np.float64], NDArray[np.float64]], tuple[NDArray[np.float64], NDArray[np.float64]]]


def section_name(section: int) -> str:
    return f"section_{section:03d}"


def cell_table(cells: Cells) -> pd.DataFrame:
    """Cells with their types and regions by name; positions in um of the section's image."""
    columns = {field.name: getattr(cells, field.name) for field in fields(Cells)}
    kind, region = columns.pop("kind"), columns.pop("region")
    table = pd.DataFrame(columns)
    table.insert(1, "type", np.array(celltypes.NAMES)[kind])
    table.insert(2, "region", np.array([r.name for r in regions.REGIONS])[region])
    return table


def write_cells(tiles: Tiles, section: int, path: Path) -> int:
    """`cells.parquet` of a section, a tile at a time; how many cells there are."""
    count = 0
    schema = pa.Schema.from_pandas(cell_table(tiles.cells(section, tiles.boxes()[0]).take(np.zeros(0, np.intp))))
    schema = schema.set(1, pa.field("type", pa.string())).set(2, pa.field("region", pa.string())).remove_metadata()
    with pq.ParquetWriter(path, schema) as writer:
        for box in tiles.boxes():
            table = cell_table(tiles.cells(section, box))
            count += len(table)
            writer.write_table(pa.Table.from_pandas(table, schema=schema, preserve_index=False))
    return count


def write_regions(brain: VirtualBrain, section: int, path: Path) -> None:
    """`regions.tif`, uint8 by `regions.json`, one pixel for `REGION_UM` of the section's image."""
    s = brain.settings
    counts = (int(np.ceil(side / REGION_UM)) for side in (s.height_um, s.width_um))
    y, x = (np.asarray((np.arange(count) + 0.5) * REGION_UM, np.float64) for count in counts)
    image = np.concatenate(
        [brain.regions_at(section, rows[:, None], x[None, :]) for rows in np.array_split(y, 1 + len(y) // 64)]
    )
    tifffile.imwrite(path, image.astype(np.uint8), compression="zlib")


def write_brain_truth(brain: VirtualBrain, folder: Path, source_to_mosaic: Matrix) -> None:
    """What concerns all sections: registration both ways, names of regions, expression by type.

    `source_to_mosaic`: 3 x 3, from the layout's own um to pixels of the section's image.
    """
    folder.mkdir(parents=True, exist_ok=True)
    names = {str(index): region.name for index, region in enumerate(regions.REGIONS)}
    (folder / "regions.json").write_text(json.dumps({"pixel_um": REGION_UM, "names": names}, indent=1))
    means = panel.expression(brain.transcriptome.numbers) * brain.transcriptome.factor
    table = pd.DataFrame(means, columns=list(celltypes.NAMES)).assign(gene=brain.genes)
    table["nuclear_share"] = panel.nuclear_share(brain.transcriptome.numbers)
    table.to_parquet(folder / "expression.parquet", index=False)
    header = ["section", "section_id", "z_um", "a00", "a01", "a02", "a10", "a11", "a12", "source_unit", "canvas_unit"]
    with (
        (folder / "sections.csv").open("w", newline="") as file,
        (folder / "misregistration.csv").open("w", newline="") as back,
    ):
        forward, inverse = csv.writer(file), csv.writer(back)
        forward.writerow([*header, "displacement"])
        inverse.writerow([*header, "displacement"])
        for section in range(brain.settings.sections):
            to_canvas, to_mosaic = _affines(brain, section)
            start = [section_name(section), section, brain.z_um[section]]
            paths = _write_displacements(brain, section, folder, to_canvas, to_mosaic)
            forward.writerow([*start, *_numbers(to_canvas @ source_to_mosaic), "um", "px", paths[0]])
            inverse.writerow([*start, *_numbers(to_mosaic), "px", "px", paths[1]])


def _numbers(affine: Matrix) -> list[str]:
    return [repr(float(value)) for value in affine[:2].ravel()]


def _affines(brain: VirtualBrain, section: int) -> tuple[Matrix, Matrix]:
    """Pixels of the section's image to pixels of the registered canvas, without displacement; and back."""
    s = brain.settings
    if s.misregister == 0:
        return np.eye(3), np.eye(3)
    to_um = np.array([[s.pixel_um, 0, s.corner_um[1]], [0, s.pixel_um, s.corner_um[0]], [0, 0, 1.0]])
    forward = np.linalg.inv(to_um) @ brain.map_of(section).affine @ to_um
    return np.linalg.inv(forward), forward


def _write_displacements(
    brain: VirtualBrain, section: int, folder: Path, to_canvas: Matrix, to_mosaic: Matrix
) -> tuple[str, str]:
    """Fields of what the affines leave, for section to canvas and back; their names in the folder ("" without)."""
    s, mapped = brain.settings, brain.map_of(section)
    if s.misregister == 0:
        return "", ""

    def registered(y: NDArray[np.float64], x: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        y, x = mapped.to_atlas(y * s.pixel_um + s.corner_um[0], x * s.pixel_um + s.corner_um[1])
        return (y - s.corner_um[0]) / s.pixel_um, (x - s.corner_um[1]) / s.pixel_um

    def imaged(y: NDArray[np.float64], x: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        y, x = mapped.to_section(y * s.pixel_um + s.corner_um[0], x * s.pixel_um + s.corner_um[1])
        return (y - s.corner_um[0]) / s.pixel_um, (x - s.corner_um[1]) / s.pixel_um

    names = []
    for name, undo, move in (("registration", to_mosaic, registered), ("misregistration", to_canvas, imaged)):
        field = _field(s.pixels, s.pixel_um / (_FIELD_UM * s.scale), undo, move)
        names.append(f"{name}_{section:03d}.npy")
        np.save(folder / names[-1], field)
    return names[0], names[1]


def _field(pixels: tuple[int, int], share: float, undo: Matrix, move: Move) -> NDArray[np.float32]:
    """(dy, dx) at target pixels q: where the true map takes the source of q, less q; `share` cells a pixel."""
    rows, columns = (max(2, int(np.ceil(side * share))) for side in pixels)
    y = (np.arange(rows) + 0.5) * (pixels[0] / rows)
    x = (np.arange(columns) + 0.5) * (pixels[1] / columns)
    y, x = np.broadcast_arrays(y[:, None], x[None, :])
    source_x, source_y = (undo[k, 0] * x + undo[k, 1] * y + undo[k, 2] for k in (0, 1))
    moved_y, moved_x = move(source_y, source_x)
    return np.stack([moved_y - y, moved_x - x]).astype(np.float32)
