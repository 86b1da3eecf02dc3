"""The tissue pictures of a report: whole region, zooms chosen by transcript density, nuclei outlines, controls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from tera_mind.errors import InputError
from tera_mind.formats.brain import Brain
from tera_mind.formats.volume import Volume
from tera_mind.geometry import Box
from tera_mind.report import pictures
from tera_mind.report.inputs import Evaluation
from tera_mind.report.pictures import Picture, Range, Reader
from tera_mind.report.plots.seams import Profile
from tera_mind.report.words import MINUS, TIMES, method_label

WIDE_UM, CLOSE_UM = 220.0, 55.0
NUCLEI_UM = 110.0
HERO_PX, ZOOM_PX, NUCLEI_PX = 1280, 512, 768
CELLS = 4  # a candidate box is this many density cells a side


@dataclass(frozen=True)
class Strip:
    """Pictures that belong side by side, with what is to be said about them."""

    title: str
    words: str
    pictures: list[Picture]


@dataclass(frozen=True)
class Scene:
    """Real and generated tissue of one section in one box of the brain's canvas (px), shown in the same ranges."""

    brain: Brain
    volumes: Mapping[str, Volume]
    section: int
    box: Box

    @classmethod
    def build(cls, evaluation: Evaluation, brain: Brain, volumes: Mapping[str, Volume]) -> Scene:
        """Check that volumes and brain belong together.

        Raises `InputError` for a volume of another brain, without a section or stain in common, or outside the region.
        """
        settings = evaluation.settings
        for method, volume in volumes.items():
            attributes = volume.attributes
            if attributes.brain_fingerprint != brain.fingerprint:
                raise InputError(
                    f"the {method} volume {volume.path} was generated from brain {attributes.brain} "
                    f"({attributes.brain_fingerprint}), not from {brain.path} ({brain.fingerprint}): "
                    f"give the brain it was generated from"
                )
            if unknown := [stain for stain in attributes.stains if stain not in brain.stains]:
                raise InputError(
                    f"the {method} volume {volume.path} has stains {unknown}; the brain has {brain.stains}"
                )
        common = set.intersection(*(set(v.attributes.sections) for v in volumes.values())) & set(
            range(len(brain.sections))
        )
        section = int(settings.get("preview_section", min(common, default=-1)))
        if section not in common:
            raise InputError(
                f"the evaluation shows section {section} of the brain, the volumes hold {sorted(common)}: "
                f"give the volumes that were evaluated"
            )
        box = brain.canvas
        if settings.get("test_box"):
            box = box.intersect(Box(*settings["test_box"]))
        for volume in volumes.values():
            box = box.intersect(volume.box)
        if box.is_empty:
            raise InputError(
                "the volumes share no pixel with the evaluated region: give the volumes that were evaluated"
            )
        return cls(brain, volumes, section, box)

    @property
    def stains(self) -> tuple[str, ...]:
        """Stains that the brain and every volume have, in the order of the generated volume."""
        sets = [set(v.attributes.stains) for v in self.volumes.values()]
        return tuple(s for s in self.volumes["generated"].attributes.stains if all(s in have for have in sets))

    @property
    def main_stain(self) -> int:
        """The stain that differences are shown in: DAPI where there is one."""
        return self.stains.index("DAPI") if "DAPI" in self.stains else 0

    @property
    def pixel_um(self) -> float:
        return self.brain.pixel_um

    @property
    def patch_px(self) -> int:
        return int(self.volumes["generated"].attributes.patch_px)

    def reader(self, method: str) -> Reader:
        """Reads (stain, y, x) of the shown section; "real" is the brain."""
        source = self.brain if method == "real" else self.volumes[method]
        have = self.brain.stains if method == "real" else self.volumes[method].attributes.stains
        index = [list(have).index(stain) for stain in self.stains]

        def read(box: Box) -> NDArray[np.uint8]:
            return source.image(box, [self.section])[index, 0]

        return read

    @cached_property
    def overview(self) -> dict[str, tuple[NDArray[np.uint8], int]]:
        return {m: pictures.read_reduced(self.reader(m), self.box, HERO_PX) for m in ("real", "generated")}

    @cached_property
    def ranges(self) -> list[Range]:
        return pictures.display_ranges(self.overview["real"][0])

    def shown(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return pictures.composite(image, self.stains, self.ranges)

    def where(self, box: Box) -> str:
        size = f"{box.width * self.pixel_um:.0f} {TIMES} {box.height * self.pixel_um:.0f} µm"
        return f"{size}, pixels y {box.y0}:{box.y1}, x {box.x0}:{box.x1}"


def transcript_cells(brain: Brain, section: int, box: Box, cell_px: int) -> NDArray[np.int64]:
    """Transcripts per cell (y, x) of `cell_px`; whole cells only, read in bands."""
    rows, columns = box.height // cell_px, box.width // cell_px
    cells = np.zeros((rows, columns), np.int64)
    whole = Box(box.y0, box.y0 + rows * cell_px, box.x0, box.x0 + columns * cell_px)
    band_rows = max(1, 256 // cell_px)
    for number, band in enumerate(whole.tiles(band_rows * cell_px, max(1, whole.width))):
        found = brain.transcripts(section, band)
        flat = (found.y // cell_px + number * band_rows) * columns + found.x // cell_px
        cells += np.bincount(flat, weights=found.count, minlength=cells.size).astype(np.int64).reshape(cells.shape)
    return cells


def pick_boxes(brain: Brain, section: int, box: Box, side_px: int, shares: Sequence[float]) -> list[Box]:
    """Boxes of `side_px` at given ranks of transcript density (1 densest, 0.5 typical, ...), none overlapping.

    Candidates lie a quarter side apart and hold transcripts; a rank is filled by the nearest candidate still free,
    so the choice depends on the data alone. Fewer boxes come back where there is no room.
    """
    side = min(side_px, box.height, box.width)
    cell = max(1, side // CELLS)
    side = cell * min(CELLS, box.height // cell, box.width // cell)
    sums = np.pad(transcript_cells(brain, section, box, cell).cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    n = side // cell
    density = sums[n:, n:] - sums[:-n, n:] - sums[n:, :-n] + sums[:-n, :-n]
    y, x = np.nonzero(density) if density.any() else np.nonzero(density == 0)
    order = np.argsort(density[y, x], kind="stable")
    found: list[Box] = []
    for share in shares:
        target = share * (order.size - 1)
        for rank in sorted(range(order.size), key=lambda rank: (abs(rank - target), rank)):
            y0, x0 = box.y0 + int(y[order[rank]]) * cell, box.x0 + int(x[order[rank]]) * cell
            candidate = Box(y0, y0 + side, x0, x0 + side)
            if all(candidate.intersect(other).is_empty for other in found):
                found.append(candidate)
                break
    return found


def zoom_boxes(scene: Scene) -> list[tuple[str, str, Box, Box]]:
    """(letter, what kind of place, wide box, close-up inside it): dense, typical and sparse tissue."""
    # small regions get smaller boxes, so that three fit without overlap
    room_px = min(scene.box.height, scene.box.width) / 2.6
    wide_px = max(1, round(min(WIDE_UM / scene.pixel_um, room_px)))
    close_px = round(CLOSE_UM / scene.pixel_um)
    kinds = ("densest tissue", "typical tissue", "sparse tissue")
    boxes = pick_boxes(scene.brain, scene.section, scene.box, wide_px, (1.0, 0.5, 0.1))
    places = []
    for letter, kind, wide in zip("ABC", kinds, boxes, strict=False):
        close = pick_boxes(scene.brain, scene.section, wide, min(close_px, max(1, wide.height // 2)), (1.0,))[0]
        places.append((letter, kind, wide, close))
    return places


def hero(scene: Scene, places: Sequence[tuple[str, str, Box, Box]]) -> Strip:
    """The whole region, real beside generated, with the zooms' places framed."""
    shown = []
    for method, (image, factor) in scene.overview.items():
        marks = [
            (letter, Box(*(edge // factor for edge in (b.y0, b.y1, b.x0, b.x1))))
            for letter, _, wide, _ in places
            for b in [wide.shift(-scene.box.y0, -scene.box.x0)]
        ]
        factor_um = scene.pixel_um * factor
        rgb = scene.shown(image)
        zoom = max(1, round(HERO_PX / 2 / max(rgb.shape[:2])))
        rgb = pictures.frames(
            rgb.repeat(zoom, 0).repeat(zoom, 1),
            [(letter, Box(b.y0 * zoom, b.y1 * zoom, b.x0 * zoom, b.x1 * zoom)) for letter, b in marks],
        )
        alt = f"{method_label(method)} tissue, whole region, {', '.join(scene.stains)}"
        synthetic = method != "real"
        shown.append(
            pictures.finish(f"region_{method}", rgb, factor_um / zoom, method_label(method), alt, synthetic=synthetic)
        )
    return Strip("The whole region", scene.where(scene.box), shown)


def _zoom(scene: Scene, name: str, box: Box, marks: Sequence[tuple[str, Box]]) -> list[Picture]:
    images = {m: scene.reader(m)(box) for m in ("real", "generated", "shuffled") if m == "real" or m in scene.volumes}
    main = scene.main_stain
    rgbs = {m: scene.shown(image) for m, image in images.items()}
    rgbs["difference"] = pictures.difference(images["generated"][main], images["real"][main], scene.ranges[main])
    shown = []
    for method, small in rgbs.items():
        rgb = pictures.resize(small, ZOOM_PX)
        scale = rgb.shape[0] // small.shape[0]
        if method != "difference":
            framed = [(text, Box(b.y0 * scale, b.y1 * scale, b.x0 * scale, b.x1 * scale)) for text, b in marks]
            rgb = pictures.frames(rgb, framed)
        label = f"Generated {MINUS} real, {scene.stains[main]}" if method == "difference" else method_label(method)
        alt = f"{label}, {scene.where(box)}"
        um = scene.pixel_um / scale
        shown.append(pictures.finish(f"{name}_{method}", rgb, um, label, alt, synthetic=method != "real"))
    return shown


def zooms(scene: Scene, places: Sequence[tuple[str, str, Box, Box]]) -> list[Strip]:
    """For each place the wide view and the close-up: real, generated, genes shuffled, difference."""
    strips = []
    for letter, kind, wide, close in places:
        mark = [("", close.shift(-wide.y0, -wide.x0))]
        strips.append(Strip(f"{letter} · {kind}", scene.where(wide), _zoom(scene, f"zoom_{letter}_wide", wide, mark)))
        strips.append(
            Strip(f"{letter} · close-up", scene.where(close), _zoom(scene, f"zoom_{letter}_close", close, []))
        )
    return strips


def _busiest(labels: NDArray[np.int32], side: int) -> tuple[int, int]:
    """Corner of the square of `side` that holds the most labelled pixels (steps of a quarter side)."""
    sums = np.pad((labels > 0).cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    density = sums[side:, side:] - sums[:-side, side:] - sums[side:, :-side] + sums[:-side, :-side]
    step = max(1, side // 4)
    y, x = np.unravel_index(np.argmax(density[::step, ::step]), density[::step, ::step].shape)
    return int(y) * step, int(x) * step


def outlines(scene: Scene, evaluation: Evaluation) -> Strip | None:
    """Segmented nuclei over their own picture where the real section has most; None without label images."""
    labels = {m: a for m, a in evaluation.per_method("labels").items() if m == "real" or m in scene.volumes}
    if "preview_box" not in evaluation.arrays or not {"real", "generated"} <= labels.keys():
        return None
    preview = Box(*(int(edge) for edge in evaluation.arrays["preview_box"]))
    side = min(round(NUCLEI_UM / scene.pixel_um), preview.height, preview.width)
    y, x = _busiest(labels["real"], side)
    box = Box(preview.y0 + y, preview.y0 + y + side, preview.x0 + x, preview.x0 + x + side)
    factor, shown = max(1, round(NUCLEI_PX / side)), []
    for method in ("real", "generated", "shuffled"):
        if method not in labels:
            continue
        cut = labels[method][y : y + side, x : x + side].astype(np.int32)
        n = np.unique(cut[cut > 0]).size
        rgb = pictures.outline(scene.shown(scene.reader(method)(box)), cut, factor)
        label, um = f"{method_label(method)} · {n} nuclei", scene.pixel_um / factor
        alt = f"{label} outlined by the same watershed segmentation"
        shown.append(pictures.finish(f"nuclei_{method}", rgb, um, label, alt, synthetic=method != "real"))
    return Strip("Nuclei as segmented", scene.where(box), shown)


def controls(scene: Scene, evaluation: Evaluation) -> Strip | None:
    """One place as every method paints it; None when there is no control to show."""
    ridge = evaluation.arrays.get("ridge_preview")
    names = [m for m in ("shuffled", "zeroed") if m in scene.volumes]
    if (ridge is None and not names) or "preview_box" not in evaluation.arrays:
        return None
    preview = Box(*(int(edge) for edge in evaluation.arrays["preview_box"]))
    side = min(ZOOM_PX // 2, preview.height, preview.width)
    box = pick_boxes(scene.brain, scene.section, preview, side, (0.8,))[0]
    images = {m: scene.reader(m)(box) for m in ("real", "generated", *names)}
    if ridge is not None and ridge.shape[0] == len(scene.stains):
        images["ridge"] = ridge[(slice(None), *box.shift(-preview.y0, -preview.x0).slices())]
    shown = []
    for method, image in images.items():
        rgb = pictures.resize(scene.shown(image), ZOOM_PX)
        um, label = scene.pixel_um * image.shape[1] / rgb.shape[0], method_label(method)
        alt = f"{label}, {scene.where(box)}"
        shown.append(pictures.finish(f"controls_{method}", rgb, um, label, alt, synthetic=method != "real"))
    return Strip("One place, every method", scene.where(box), shown)


def seam_profiles(scene: Scene, stain: int, limit_px: int = 2048) -> dict[str, Profile]:
    """Mean |gradient| by position within the patch grid, a method each, over at most `limit_px` squared."""
    height, width = (min(size, limit_px) for size in (scene.box.height, scene.box.width))
    box = Box(scene.box.y0, scene.box.y0 + height, scene.box.x0, scene.box.x0 + width)
    grid = scene.volumes["generated"].box
    methods = ["real", *(m for m in ("generated", "shuffled") if m in scene.volumes)]
    return {
        m: profile(scene.reader(m)(box)[stain], box.y0 - grid.y0, box.x0 - grid.x0, scene.patch_px) for m in methods
    }


def profile(image: NDArray[np.uint8], y0: int, x0: int, patch_px: int) -> Profile:
    """Profile of one stain (y, x) whose corner lies at (y0, x0) of the patch grid.

    The step between pixels i - 1 and i belongs to position i mod patch; position 0 crosses the border. The standard
    error is over bands one patch wide, in both directions.
    """
    bands = []
    for values, across, along in ((image, x0, y0), (image.T, y0, x0)):
        steps = np.abs(np.diff(values.astype(np.float32), axis=1))
        position = (np.arange(1, values.shape[1]) + across) % patch_px
        band = (np.arange(values.shape[0]) + along) // patch_px
        for number in np.unique(band):
            columns = steps[band == number].mean(0)
            total = np.bincount(position, columns, patch_px)
            seen = np.bincount(position, minlength=patch_px)
            bands.append(np.where(seen > 0, total / np.maximum(seen, 1), np.nan))
    rows = np.asarray(bands, np.float64)
    rows = rows[np.isfinite(rows).all(1)]
    if not rows.size or rows.mean() == 0:
        flat = np.zeros(patch_px)
        return Profile(np.arange(patch_px) - patch_px // 2, flat, flat)
    rows = np.roll(rows / rows.mean(), patch_px // 2, axis=1)
    mean = rows.mean(0)
    # a ratio's error: bright and dark bands differ in level, only their departure from the common shape counts
    departure = rows - rows.mean(1, keepdims=True) * mean
    error = departure.std(0, ddof=min(1, len(rows) - 1)) / np.sqrt(len(rows))
    return Profile(np.arange(patch_px) - patch_px // 2, mean, error)
