"""Simulated sections in MERSCOPE layout, with their truth beside them."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import tifffile

from tera_mind import __version__
from tera_mind.errors import InputError
from tera_mind.formats.atomic import atomic_directory, atomic_file
from tera_mind.simulate.anatomy import Anatomy
from tera_mind.simulate.cells import make_cells
from tera_mind.simulate.optics import Rendered, render
from tera_mind.simulate.transcripts import BLANKS, DENSITY_UM2, make_transcripts, panel

#: the mosaic's origin lies here in the instrument's micrometres, so that no reader may take it for zero
ORIGIN_UM = (-37.25, 118.5)
#: y pixels are this much larger than x pixels, as real transforms have it
Y_STRETCH = 1.000005
#: a section is made whole in memory; above this it is refused
MEMORY_GB = 8.0


@dataclass(frozen=True)
class Simulation:
    """Size and content of simulated tissue; `InputError` where a value makes no tissue."""

    height_um: float = 480.0
    width_um: float = 800.0
    pixel_um: float = 0.425
    sections: int = 1
    section_um: float = 100.0
    genes: int = 60
    seed: int = 0

    def __post_init__(self) -> None:
        if not all(map(math.isfinite, (self.height_um, self.width_um, self.pixel_um, self.section_um))):
            raise InputError("sizes of simulated tissue must be finite numbers")
        if min(self.height_um, self.width_um) < 60 or not 0.05 <= self.pixel_um <= 2:
            raise InputError(
                f"simulated tissue is at least 60 um a side at 0.05 to 2 um a pixel, got {self.height_um:g} x "
                f"{self.width_um:g} um at {self.pixel_um:g}"
            )
        if self.sections < 1 or self.seed < 0 or self.section_um <= 0:
            raise InputError("sections and section_um must be above 0 and the seed not negative")
        panel(self.genes)
        if self.memory_gb > MEMORY_GB:
            raise InputError(
                f"a section of {self.height_um:g} x {self.width_um:g} um at {self.pixel_um:g} um, {self.genes} genes, "
                f"needs about {self.memory_gb:.0f} GB, at most {MEMORY_GB:g} are allowed: make it smaller or coarser"
            )

    @property
    def pixels(self) -> tuple[int, int]:
        """(height, width) of a section's images."""
        return round(self.height_um / self.pixel_um), round(self.width_um / self.pixel_um)

    @property
    def transcripts_about(self) -> int:
        """Roughly how many transcripts a section gets."""
        return round(0.9 * DENSITY_UM2 * self.height_um * self.width_um)

    @property
    def memory_gb(self) -> float:
        """Roughly the most memory a section takes: its images, the cell-by-gene counts and the transcript table."""
        height, width = self.pixels
        cells = 0.004 * self.height_um * self.width_um
        return (130.0 * height * width + 32.0 * self.genes * cells + 400.0 * self.transcripts_about) / 1e9


def section_name(section: int) -> str:
    return f"section_{section:03d}"


def write_section(simulation: Simulation, section: int, folder: Path) -> None:
    """Simulate one section and write its region folder, whole or not at all."""
    anatomy = Anatomy(simulation.height_um, simulation.width_um, simulation.seed)
    z_um = section * simulation.section_um
    cells = make_cells(anatomy, section, z_um)
    transcripts = make_transcripts(cells, simulation.genes, anatomy, section, z_um)
    images = render(cells, anatomy, section, z_um, simulation.pixel_um)
    with atomic_directory(folder) as partial:
        (partial / "images").mkdir()
        (partial / "truth").mkdir()
        _write_images(simulation, images, partial / "images")
        names = np.array([*panel(simulation.genes), *(f"Blank-{i}" for i in range(1, BLANKS + 1))])
        _write_table(transcripts, names, partial / "detected_transcripts.csv")
        pd.DataFrame({"name": names, "id": [f"SIM{i:06d}" for i in range(len(names))]}).to_csv(
            partial / "codebook_0_simulated.csv", index=False
        )
        cells.drop(columns="kind").to_parquet(partial / "truth" / "cells.parquet")
        tifffile.imwrite(partial / "truth" / "nuclei.tif", images.labels, compression="zlib", tile=(256, 256))


def _write_images(simulation: Simulation, images: Rendered, folder: Path) -> None:
    scale_x, scale_y = 1 / simulation.pixel_um, Y_STRETCH / simulation.pixel_um
    transform = np.array(
        [[scale_x, 0, -ORIGIN_UM[0] * scale_x], [0, scale_y, -ORIGIN_UM[1] * scale_y], [0, 0, 1]], dtype=float
    )
    np.savetxt(folder / "micron_to_mosaic_pixel_transform.csv", transform, fmt="%.18e")
    for stain, plane in (("DAPI", images.dapi), ("PolyT", images.polyt)):
        tifffile.imwrite(folder / f"mosaic_{stain}_z0.tif", plane, tile=(256, 256))
    height, width = images.dapi.shape
    x, y = ORIGIN_UM
    manifest = {
        "microns_per_pixel": simulation.pixel_um,
        "mosaic_width_pixels": width,
        "mosaic_height_pixels": height,
        "bbox_microns": [x, y, x + simulation.width_um, y + simulation.height_um],
        "mosaic_files": [{"stain": s, "z": 0, "file_name": f"mosaic_{s}_z0.tif"} for s in ("DAPI", "PolyT")],
    }
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1))


def _write_table(transcripts: pd.DataFrame, names: np.ndarray, path: Path) -> None:
    gene = transcripts["gene"].to_numpy()
    x = transcripts["x_um"].to_numpy() + ORIGIN_UM[0]
    y = transcripts["y_um"].to_numpy() / Y_STRETCH + ORIGIN_UM[1]
    table = pd.DataFrame(
        {
            "barcode_id": gene,
            "global_x": x.round(4),
            "global_y": y.round(4),
            "global_z": 0.0,
            "x": transcripts["x_um"].round(4),
            "y": transcripts["y_um"].round(4),
            "fov": 0,
            "gene": names[gene],
            "transcript_id": np.char.add("SIM", np.char.zfill(gene.astype(str), 6)),
        }
    )
    table.to_csv(path)


def write_settings(simulation: Simulation, out: Path) -> None:
    """Write `simulation.json`, last: the tissue is whole once it is there."""
    with atomic_file(out / "simulation.json") as partial:
        record = {"format": "simulation", "version": 1, **asdict(simulation), "tera_mind": __version__}
        partial.write_text(json.dumps(record, indent=1))
