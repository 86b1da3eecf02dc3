"""Simulated patches beside real nuclei: pictures, and Frechet distances of each to the other."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import tifffile
from PIL import Image

from tera_mind.geometry import Box
from tera_mind.metrics.tiles.features import EfficientNetLite0, image_features
from tera_mind.metrics.tiles.frechet import components_for, feature_space, frechet_distance
from tera_mind.simulate.brains import Settings
from tera_mind.simulate.windows import VirtualBrain

#: windows of the virtual brain: name, section, (y, x) in um of the canvas
PLACES = (("cortex, layer 2/3", "layer 2/3"), ("dentate gyrus", "dentate gyrus"), ("cerebellum", "CB granule"))


def to_bytes(image: np.ndarray) -> np.ndarray:
    """The ingest's rule: 1st percentile to 0, 99.9th to 255."""
    low, high = np.percentile(image, (1, 99.9))
    return np.clip(np.rint((image.astype(float) - low) * 255 / (high - low)), 0, 255).astype(np.uint8)


def simulated(pixel_um: float, side: int, wanted: str) -> np.ndarray:
    """DAPI and PolyT of a window that a region fills most, (2, side, side) uint8."""
    from tera_mind.simulate.regions import INDEX

    brain = VirtualBrain(Settings.of("main", "brain", pixel_um=pixel_um, misregister=0.0))
    best = (-1.0, 0, 0, 0)
    half = side * pixel_um / 2
    for section in range(4, 50, 6):
        y, x = (
            np.arange(half, brain.settings.height_um - half, 120.0),
            np.arange(half, brain.settings.width_um - half, 120.0),
        )
        here = brain.regions_at(section, y[:, None], x[None, :]) == INDEX[wanted]
        for row, column in np.argwhere(here)[:: max(1, int(here.sum()) // 12)]:
            near = [np.linspace(c - half * 0.9, c + half * 0.9, 12) for c in (y[row], x[column])]
            inside = (brain.regions_at(section, near[0][:, None], near[1][None, :]) == INDEX[wanted]).mean()
            if inside > best[0]:
                best = (float(inside), section, int((y[row] - half) / pixel_um), int((x[column] - half) / pixel_um))
    _, section, top, left = best
    images = brain.window(section, Box(top, top + side, left, left + side)).images[:, 0]
    return np.stack([to_bytes(image) for image in images])


def draw_sections(path: Path, pixel_um: float = 2.0, step: int = 12) -> None:
    """Eight whole sections of the main brain, DAPI above PolyT, rendered coarsely and averaged over `step` pixels."""
    brain = VirtualBrain(Settings.of("main", "brain", pixel_um=pixel_um, genes=30, misregister=0.0, bits=8))
    rows: list[list[np.ndarray]] = [[], [], [], []]
    for index, section in enumerate((1, 10, 19, 27, 34, 41, 44, 48)):
        small = np.zeros((2, brain.canvas.height // step, brain.canvas.width // step))
        for box in brain.canvas.tiles(80 * step, 80 * step):
            image = brain.window(section, box).images[:, 0]
            height, width = (side // step for side in image.shape[1:])
            cut = image[:, : height * step, : width * step].reshape(2, height, step, width, step)
            top, left = box.y0 // step, box.x0 // step
            small[:, top : top + height, left : left + width] = cut.mean((2, 4))
        for stain, white in enumerate((70.0, 110.0)):
            rows[2 * (index // 4) + stain].append(255 * (np.clip((small[stain] - 8) / (white - 8), 0, 1)) ** 0.7)
    page = np.concatenate([np.concatenate(row, axis=1) for row in rows])
    image = Image.fromarray(page.astype(np.uint8))
    image.resize((1400, 1400 * image.height // image.width)).save(path, quality=78)


def tile_features(image: np.ndarray, limit: int = 60) -> np.ndarray:
    """Features of overlapping tiles of 128 px, evenly thinned, float64."""
    height, width = image.shape
    corners = [(y, x) for y in range(0, height - 127, 32) for x in range(0, width - 127, 32)]
    kept = [corners[round(i)] for i in np.linspace(0, len(corners) - 1, min(limit, len(corners))).tolist()]
    tiles = np.array([(y, y + 128, x, x + 128) for y, x in kept])
    return image_features(image, tiles, EfficientNetLite0()).astype(np.float64)


def compare(real: Path, pictures: Path | None) -> tuple[list[str], dict[str, float]]:
    """Lines of a table with distances, and the distances; pictures are written where a folder is given."""
    merscope = to_bytes(tifffile.imread(real / "merscope_sample" / "images" / "mosaic_DAPI_z3.tif"))
    xenium = to_bytes(tifffile.imread(real / "xenium_breast_crop" / "morphology_mip.ome.tif"))
    fine = {name: simulated(0.108, 512, region) for name, region in PLACES}
    coarse = simulated(0.2125, 1024, "layer 2/3")
    crop = xenium[:1024, :1024]
    sets = {
        "MERSCOPE sample, real (0.108 um)": (merscope[:, :256], merscope[:, 256:]),
        "virtual cortex (0.108 um)": (fine[PLACES[0][0]][0][:, :256], fine[PLACES[0][0]][0][:, 256:]),
        "Xenium breast crop, real (0.2125 um)": (crop[:, :512], crop[:, 512:]),
        "virtual cortex (0.2125 um)": (coarse[0][:, :512], coarse[0][:, 512:]),
    }
    features = {}
    for name, halves in sets.items():
        features[name] = [tile_features(np.ascontiguousarray(half)) for half in halves]
    lines, found = ["| tiles of 128 px, DAPI | Frechet distance |", "|---|---|"], {}
    for real_name, own in (tuple(sets)[:2], tuple(sets)[2:]):
        space = feature_space(np.concatenate(features[real_name]), components_for(len(features[real_name][0])))
        for first, second, label in (
            (features[real_name][0], features[real_name][1], f"{real_name}: left half to right half"),
            (features[own][0], features[own][1], f"{own}: left half to right half"),
            (features[own][0], features[real_name][0], f"{own} to {real_name}"),
        ):
            found[label] = round(frechet_distance(first, second, space), 2)
            lines.append(f"| {label} | {found[label]:.1f} |")
    if pictures is not None:
        row = [merscope, *(fine[name][0] for name, _ in PLACES)]
        lower = [crop[:512, :512], coarse[0][:512, :512], fine[PLACES[0][0]][1], fine[PLACES[2][0]][1]]
        gap = np.full((512, 8), 255, np.uint8)
        sheet = [
            np.concatenate([part for image in images for part in (image, gap)][:-1], axis=1) for images in (row, lower)
        ]
        page = np.concatenate([sheet[0], np.full((8, sheet[0].shape[1]), 255, np.uint8), sheet[1]])
        image = Image.fromarray(page)
        image.resize((image.width // 2, image.height // 2), Image.Resampling.LANCZOS).save(
            pictures / "simulator_patches.jpg", quality=85
        )
    return lines, found
