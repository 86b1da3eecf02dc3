"""One section at a time: everything that is measured on an image before figures are made of it."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from tera_mind.formats.brain import Brain, Transcripts
from tera_mind.geometry import Box
from tera_mind.metrics import frechet, nuclei, seams
from tera_mind.metrics.controls import tissue_pixels
from tera_mind.metrics.fidelity import patch_scores

Stains = UInt8[np.ndarray, "stain y x"]

#: least share of tissue in a tile of the Frechet distance
MIN_TISSUE = 0.5


@dataclass(frozen=True)
class Layout:
    """What is the same for every section of an evaluation; boxes are in canvas pixels."""

    stains: tuple[str, ...]
    pixel_um: float
    blur_px: float
    test: Box
    ceiling: Box
    preview: Box
    patch_px: int
    window_px: int
    #: index of the stain in which nuclei are sought; None where there is none
    nucleus_stain: int | None
    nucleus: nuclei.NucleusSettings
    #: most tiles of the Frechet distance a section
    tiles: int

    @property
    def whole_px(self) -> int:
        return 2 * self.patch_px


@dataclass(frozen=True)
class SectionView:
    """A section of the real brain: its image, and the places where scores are taken."""

    section: int
    real: Stains
    #: grid of whole patches with transcripts, in pixels of the test box
    patches: list[Box]
    patches_excluded: int
    #: windows that cover the test box, row-major
    windows: list[Box]
    #: which windows hold transcripts
    window_kept: Bool[np.ndarray, " window"]
    windows_excluded: int
    tiles: list[Box]
    ceiling_tiles: list[Box]
    scale: nuclei.Scale | None


@dataclass
class WindowNuclei:
    """Nuclei of one image by the windows of its box."""

    counts: Int[np.ndarray, " window"]
    #: median area, NaN where there is no nucleus
    areas: Float[np.ndarray, " window"]
    area_um2: Float[np.ndarray, " nucleus"]


@dataclass
class Measured:
    """Measurements of one image of one section; keys are stains, or (metric, stain)."""

    scores: dict[tuple[str, str], Float[np.ndarray, " patch"]] = field(default_factory=dict)
    segments: dict[str, seams.Segments] = field(default_factory=dict)
    phases: dict[str, Float[np.ndarray, "phase 4"]] = field(default_factory=dict)
    features: dict[str, frechet.Features] = field(default_factory=dict)
    nuclei: WindowNuclei | None = None
    preview_image: Stains | None = None
    preview_labels: Int[np.ndarray, "y x"] | None = None


def holds_transcripts(rows: Transcripts, boxes: list[Box]) -> Bool[np.ndarray, " box"]:
    """Which boxes, in the pixels of the transcripts' window, hold at least one transcript."""
    if not boxes or not len(rows.y):
        return np.zeros(len(boxes), bool)
    height, width = (max(edges) for edges in zip(*((b.y1, b.x1) for b in boxes), strict=True))
    seen = np.zeros((height + 1, width + 1), np.int64)
    inside = (rows.y < height) & (rows.x < width)
    np.add.at(seen, (rows.y[inside] + 1, rows.x[inside] + 1), 1)
    seen = seen.cumsum(0).cumsum(1)
    y0, y1, x0, x1 = np.array([(b.y0, b.y1, b.x0, b.x1) for b in boxes]).T
    return np.asarray(seen[y1, x1] - seen[y0, x1] - seen[y1, x0] + seen[y0, x0] > 0)


def view_section(brain: Brain, section: int, layout: Layout) -> SectionView:
    """Read the real section and choose the patches, windows and tiles on which images are compared."""
    box = layout.test
    local = Box(0, box.height, 0, box.width)
    real = brain.image(box, [section])[:, 0]
    rows = brain.transcripts(section, box)
    patches = [b for b in local.tiles(layout.whole_px, layout.whole_px) if _is_square(b, layout.whole_px)]
    patch_kept = holds_transcripts(rows, patches)
    windows = covering_windows(box.height, box.width, layout.window_px)
    window_kept = holds_transcripts(rows, windows)
    scale = None
    if layout.nucleus_stain is not None:
        scale = nuclei.calibrate(real[layout.nucleus_stain], layout.pixel_um, layout.nucleus)
    return SectionView(
        section,
        real,
        [b for b, kept in zip(patches, patch_kept, strict=True) if kept],
        int((~patch_kept).sum()),
        windows,
        window_kept,
        int((~window_kept).sum()),
        _tissue_tiles(brain, section, box, layout.tiles),
        _tissue_tiles(brain, section, layout.ceiling, layout.tiles),
        scale,
    )


def _is_square(box: Box, side_px: int) -> bool:
    return (box.height, box.width) == (side_px, side_px)


def _tissue_tiles(brain: Brain, section: int, box: Box, limit: int) -> list[Box]:
    mask = tissue_pixels(brain.tissue(section), box)
    tiles = frechet.tile_boxes(box.height, box.width)
    return frechet.thin([tile for tile in tiles if mask[tile.slices()].mean() >= MIN_TISSUE], limit)


def measure(image: Stains, view: SectionView, layout: Layout, *, real: bool = False, preview: bool = False) -> Measured:
    """Everything about one image of the test box; the real image itself (`real`) gets no paired scores."""
    found = Measured()
    for index, stain in enumerate(layout.stains):
        if not real:
            scores = patch_scores(image[index], view.real[index], view.patches, layout.blur_px)
            found.scores.update({(metric, stain): values for metric, values in scores.items()})
        found.segments[stain] = seams.segments(image[index], layout.patch_px)
        found.phases[stain] = seams.phase_sums(image[index], layout.patch_px)
        found.features[stain] = frechet.image_features(image[index], view.tiles)
    local = layout.preview.shift(-layout.test.y0, -layout.test.x0).slices()
    if preview:
        found.preview_image = image[(slice(None), *local)].copy()
    if layout.nucleus_stain is not None and view.scale is not None:
        cells = nuclei.segment(image[layout.nucleus_stain], layout.pixel_um, view.scale, layout.nucleus)
        found.nuclei = by_window(cells, view.windows)
        if preview:
            found.preview_labels = cells.labels[local].copy()
    return found


def measure_ceiling(image: Stains, view: SectionView, layout: Layout) -> Measured:
    """The real image of the ceiling box, which can only be compared in distribution."""
    found = Measured()
    for index, stain in enumerate(layout.stains):
        found.features[stain] = frechet.image_features(image[index], view.ceiling_tiles)
    if layout.nucleus_stain is not None and view.scale is not None:
        cells = nuclei.segment(image[layout.nucleus_stain], layout.pixel_um, view.scale, layout.nucleus)
        found.nuclei = by_window(cells, covering_windows(image.shape[1], image.shape[2], layout.window_px))
    return found


def covering_windows(height: int, width: int, side_px: int) -> list[Box]:
    """Whole windows, row-major and evenly spaced, that cover a plane; neighbours overlap where they must.

    Tissue at the far edges counts like all other, and every window has the same area. None where the plane is smaller
    than a window.
    """
    if min(height, width) < side_px:
        return []
    ys, xs = (np.linspace(0, size - side_px, -(-size // side_px)).round().astype(int) for size in (height, width))
    return [Box(int(y), int(y) + side_px, int(x), int(x) + side_px) for y in ys for x in xs]


def by_window(cells: nuclei.Nuclei, windows: list[Box]) -> WindowNuclei:
    """Number and median area of the nuclei whose centroid lies in each window; windows may overlap."""
    order = np.argsort(cells.y, kind="stable")
    y, x, area = cells.y[order], cells.x[order], cells.area_um2[order]
    groups = []
    for box in windows:
        rows = slice(*np.searchsorted(y, [box.y0, box.y1]))
        groups.append(area[rows][(x[rows] >= box.x0) & (x[rows] < box.x1)])
    counts = np.array([len(group) for group in groups], dtype=np.int64)
    areas = np.array([np.median(group) if len(group) else np.nan for group in groups])
    return WindowNuclei(counts, areas, cells.area_um2)


def merge(parts: list[Measured]) -> Measured:
    """One image's sections as one, in order; the preview is that of the first."""
    first = parts[0]
    merged = Measured(
        scores={key: np.concatenate([part.scores[key] for part in parts]) for key in first.scores},
        segments={key: np.concatenate([part.segments[key] for part in parts]) for key in first.segments},
        phases={key: np.sum([part.phases[key] for part in parts], axis=0) for key in first.phases},
        features={key: np.concatenate([part.features[key] for part in parts]) for key in first.features},
    )
    cells = [part.nuclei for part in parts if part.nuclei is not None]
    if cells and len(cells) == len(parts):
        merged.nuclei = WindowNuclei(
            np.concatenate([c.counts for c in cells]),
            np.concatenate([c.areas for c in cells]),
            np.concatenate([c.area_um2 for c in cells]),
        )
    merged.preview_image, merged.preview_labels = first.preview_image, first.preview_labels
    return merged
