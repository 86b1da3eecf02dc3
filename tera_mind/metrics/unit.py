"""Measuring one unit, a block of one section: every method's image against the real one, as arrays that merge.

A unit reads its block and a halo, less where the test box ends, so what it measures does not depend on the blocks.
Keys are `<what>/<method>/<stain>`; see `tera_mind.metrics.partial` for how they merge.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8
from numpy.typing import NDArray

from tera_mind.formats.brain import Brain, Transcripts
from tera_mind.geometry import Box
from tera_mind.metrics import spectra
from tera_mind.metrics.ensemble import ensemble_scores
from tera_mind.metrics.fidelity import blur_halo, large_scores, patch_scores
from tera_mind.metrics.nuclei.segmenters import Scale, Segmenter
from tera_mind.metrics.nuclei.table import measure_nuclei
from tera_mind.metrics.plan import CEILING, NEIGHBOUR, REAL, Boxes, Plan, Unit, covering_windows
from tera_mind.metrics.seam_sums import HALO_PX, seam_sums
from tera_mind.metrics.sources import Sources
from tera_mind.metrics.tiles.features import FeatureExtractor, image_features
from tera_mind.metrics.tiles.probe import tile_counts
from tera_mind.metrics.zcontinuity import section_correlations

Arrays = dict[str, NDArray[Any]]
Image = UInt8[np.ndarray, "stain y x"]
Places = Int[np.ndarray, "box 5"]

#: methods without an image of their own in the following section
_NO_NEXT = frozenset({NEIGHBOUR, "mean_image"})


@dataclass(frozen=True)
class Measurer:
    """What all units share; called with a unit, it measures it. Picklable."""

    plan: Plan
    sources: Sources
    segmenter: Segmenter
    #: brightness scale of the real image, by (role, section)
    scales: Mapping[tuple[str, int], Scale]
    #: the first is the gene probe's
    extractors: tuple[FeatureExtractor, ...]

    @property
    def halo_px(self) -> int:
        tiles = max(extractor.tile_px for extractor in self.extractors)
        nuclei = 0 if self.plan.nucleus_stain is None else self.segmenter.halo_px
        return max(blur_halo(self.plan.blur_px), HALO_PX, tiles, nuclei)

    def __call__(self, unit: Unit) -> Arrays:
        return _TestUnit(self, unit).measure() if unit.role == "test" else _ReferenceUnit(self, unit).measure()


def transcripts_in(rows: Transcripts, origin: Box, boxes: list[Box]) -> Int[np.ndarray, " box"]:
    """Transcripts in canvas boxes; `rows` were read from `origin`, which holds the boxes."""
    totals = np.zeros((origin.height + 1, origin.width + 1), np.int64)
    np.add.at(totals, (rows.y + 1, rows.x + 1), rows.count)
    totals = totals.cumsum(0).cumsum(1)
    places = np.array([(b.y0, b.y1, b.x0, b.x1) for b in boxes], np.int64).reshape(-1, 4)
    y0, y1, x0, x1 = (places - [origin.y0, origin.y0, origin.x0, origin.x0]).T
    return np.asarray(totals[y1, x1] - totals[y0, x1] - totals[y1, x0] + totals[y0, x0])


def places(section: int, boxes: list[Box]) -> Places:
    """Boxes as rows of section, y0, y1, x0, x1."""
    return np.array([(section, b.y0, b.y1, b.x0, b.x1) for b in boxes], np.int64).reshape(-1, 5)


def whole_squares(block: Box, within: Box, side_px: int) -> list[Box]:
    """Squares of the grid that starts at the block's corner, those that fit into `within`."""
    return [
        b for b in block.tiles(side_px, side_px) if (b.height, b.width) == (side_px, side_px) and within.contains(b)
    ]


def _put(arrays: Arrays, name: str, parts: Mapping[str, NDArray[Any]]) -> None:
    arrays.update({f"{name}/{part}": array for part, array in parts.items()})


@dataclass
class _Unit:
    """The parts that test and reference units share."""

    measurer: Measurer
    unit: Unit
    arrays: Arrays = field(default_factory=dict)

    @property
    def plan(self) -> Plan:
        return self.measurer.plan

    def look(self, method: str, image: Image, at: Box, kept: list[Box], cells: Int[np.ndarray, " patch"]) -> None:
        """Spectrum and histogram over the kept squares."""
        boxes = [box.shift(-at.y0, -at.x0) for box in kept]
        for index, stain in enumerate(self.plan.stains):
            power = spectra.power_sums(image[index], boxes, cells, self.plan.whole_px)
            _put(self.arrays, f"spectrum/{method}/{stain}", power._asdict())
            _put(
                self.arrays, f"histogram/{method}/{stain}", spectra.histogram_sums(image[index], boxes, cells)._asdict()
            )

    def tiles(self, side_px: int) -> Boxes:
        return self.plan.tiles[side_px, self.unit.name]

    def features(self, method: str, image: Image, at: Box) -> None:
        for extractor in self.measurer.extractors:
            local = self.tiles(extractor.tile_px) - [at.y0, at.y0, at.x0, at.x0]
            for index, stain in enumerate(self.plan.stains):
                found = image_features(image[index], local, extractor)
                self.arrays[f"features/{extractor.name}/{method}/{stain}"] = found

    def genes(self, brain: Brain, chosen: NDArray[np.int64]) -> None:
        """Where tiles lie, and which transcripts those of the gene probe hold: a sparse table in three arrays."""
        section = self.unit.section
        for extractor in self.measurer.extractors:
            tiles = self.tiles(extractor.tile_px)
            self.arrays[f"tiles/{extractor.name}"] = np.insert(tiles, 0, section, axis=1)
        tiles = self.tiles(self.measurer.extractors[0].tile_px)
        area = (
            Box(*(int(f(tiles[:, i])) for i, f in enumerate((np.min, np.max) * 2))) if len(tiles) else Box(0, 0, 0, 0)
        )
        rows = brain.transcripts(section, area)
        local = tiles - [area.y0, area.y0, area.x0, area.x0]
        counts = tile_counts(rows, local, len(brain.genes))[:, chosen]
        counts.sort_indices()
        parts = {"data": counts.data, "gene": counts.indices.astype(np.int64), "length": np.diff(counts.indptr)}
        _put(self.arrays, "tile_counts", parts)

    def nuclei(
        self,
        method: str,
        image: Image,
        at: Box,
        rows: Transcripts,
        reference: Int[np.ndarray, "y x"] | None = None,
    ) -> Int[np.ndarray, "y x"] | None:
        """Segment, measure and keep the nuclei of the block; returns the labels of the whole image.

        `rows` are in pixels of the image; `reference` are the labels of the real image.
        """
        stain = self.plan.nucleus_stain
        if stain is None:
            return None
        scale = self.measurer.scales[self.unit.role, self.unit.section]
        labels = self.measurer.segmenter.segment(np.ascontiguousarray(image[stain]), scale)
        table = measure_nuclei(
            labels,
            image[stain],
            self.plan.pixel_um,
            at,
            self.unit.block,
            rows,
            section=self.unit.section,
            reference=reference,
        )
        _put(self.arrays, f"nuclei/{method}", table.arrays())
        return labels


class _TestUnit(_Unit):
    def measure(self) -> Arrays:
        plan, (_, section, block) = self.plan, self.unit
        brain, at = self.measurer.sources.brain, block.grow(self.measurer.halo_px).intersect(plan.test)
        # windows and regions belong to the block of their corner and may reach far out of it
        far = max(plan.window_px, plan.region_px)
        reach = Box(at.y0, max(at.y1, block.y1 + far), at.x0, max(at.x1, block.x1 + far))
        origin = reach.intersect(plan.test)
        rows = brain.transcripts(section, origin)
        patches, cells = self._patches(rows, origin)
        large = self._kept("large", whole_squares(block, plan.test, plan.large_px), rows, origin)
        for name, side in (("window", plan.window_px), ("region", plan.region_px)):
            inside = covering_windows(plan.test, side, block)
            self.arrays[f"{name}_places"] = places(section, inside)
            self.arrays[f"{name}_transcripts"] = transcripts_in(rows, origin, inside)
        self.genes(brain, self.measurer.sources.reference.own_genes)
        following = plan.following(section)
        z_patches = patches if following is None else self._both(patches, following)
        self.arrays["z_boxes"] = places(section, z_patches if following is not None else [])
        real = self.measurer.sources.image(REAL, section, at)
        real_labels: Int[np.ndarray, "y x"] | None = None
        for method in plan.images:
            image = real if method == REAL else self.measurer.sources.image(method, section, at)
            if method != REAL:
                self._paired(method, image, real, at, patches, large)
            self._seams(method, image, at)
            self.look(method, image, at, patches, cells)
            self.features(method, image, at)
            if method not in _NO_NEXT:
                self._continuity(method, image, at, following, z_patches)
            labels = self.nuclei(method, image, at, rows, real_labels)
            real_labels = labels if method == REAL else real_labels
            self._preview(method, image, labels, at)
        self._ensemble(real, at, patches)
        return self.arrays

    def _kept(self, name: str, boxes: list[Box], rows: Transcripts, origin: Box) -> list[Box]:
        """Squares with transcripts; the others are counted."""
        found = transcripts_in(rows, origin, boxes)
        kept = [box for box, count in zip(boxes, found.tolist(), strict=True) if count]
        self.arrays[f"{name}_boxes"] = places(self.unit.section, kept)
        self.arrays[f"{name}_transcripts"] = found[found > 0]
        self.arrays[f"sum:{name}_excluded"] = np.array([(found == 0).sum()], np.int64)
        return kept

    def _patches(self, rows: Transcripts, origin: Box) -> tuple[list[Box], Int[np.ndarray, " patch"]]:
        boxes = whole_squares(self.unit.block, self.plan.test, self.plan.whole_px)
        kept = self._kept("patch", boxes, rows, origin)
        return kept, self.plan.cells(self.arrays["patch_boxes"])

    def _both(self, patches: list[Box], following: int) -> list[Box]:
        """Patches that hold transcripts in the following section as well."""
        rows = self.measurer.sources.brain.transcripts(following, self.unit.block)
        found = transcripts_in(rows, self.unit.block, patches)
        return [box for box, count in zip(patches, found.tolist(), strict=True) if count]

    def _paired(self, method: str, image: Image, real: Image, at: Box, patches: list[Box], large: list[Box]) -> None:
        local, local_large = ([box.shift(-at.y0, -at.x0) for box in boxes] for boxes in (patches, large))
        for index, stain in enumerate(self.plan.stains):
            scores = patch_scores(image[index], real[index], local, self.plan.blur_px)
            scores |= large_scores(image[index], real[index], local_large)
            for metric, values in scores.items():
                self.arrays[f"{metric}/{method}/{stain}"] = values.astype(np.float32)

    def _seams(self, method: str, image: Image, at: Box) -> None:
        for name, grid in self.plan.seam_grids.items():
            for index, stain in enumerate(self.plan.stains):
                found = seam_sums(np.ascontiguousarray(image[index]), at, self.unit.block, grid)
                _put(self.arrays, f"{name}/{method}/{stain}", found._asdict())

    def _continuity(self, method: str, image: Image, at: Box, following: int | None, patches: list[Box]) -> None:
        local = [box.shift(-at.y0, -at.x0) for box in patches]
        after = None if following is None or not local else self.measurer.sources.image(method, following, at)
        for index, stain in enumerate(self.plan.stains):
            found = np.zeros(0)
            if after is not None:
                found = section_correlations(image[index], after[index], local, self.plan.blur_px)
            self.arrays[f"z/{method}/{stain}"] = found.astype(np.float32)

    def _preview(self, method: str, image: Image, labels: Int[np.ndarray, "y x"] | None, at: Box) -> None:
        """This block's part of the preview, which the first section has."""
        part = self.plan.preview.intersect(self.unit.block)
        if part.is_empty or self.unit.section != self.plan.sections[0]:
            return
        inner = part.shift(-at.y0, -at.x0).slices()
        self.arrays["only:preview_box"] = np.array([part.y0, part.y1, part.x0, part.x1], np.int64)
        if labels is not None:
            self.arrays[f"only:labels/{method}"] = labels[inner].astype(np.int32)
        if method == "ridge":
            self.arrays["only:ridge_preview"] = image[(slice(None), *inner)]

    def _ensemble(self, real: Image, at: Box, patches: list[Box]) -> None:
        if not self.measurer.sources.ensemble:
            return
        members = self.measurer.sources.members(self.unit.section, at)
        local = [box.shift(-at.y0, -at.x0) for box in patches]
        for index, stain in enumerate(self.plan.stains):
            for name, values in ensemble_scores(members[:, index], real[index], local, self.plan.blur_px).items():
                self.arrays[f"{name}/{stain}"] = values.astype(np.float32)


class _ReferenceUnit(_Unit):
    """Real tissue of the training region, compared in distribution only."""

    def measure(self) -> Arrays:
        plan, (_, section, block) = self.plan, self.unit
        brain = self.measurer.sources.reference.brain
        at = block.grow(self.measurer.halo_px).intersect(plan.ceiling)
        far = max(plan.window_px, plan.region_px)
        reach = Box(at.y0, max(at.y1, block.y1 + far), at.x0, max(at.x1, block.x1 + far))
        origin = reach.intersect(plan.ceiling)
        rows = brain.transcripts(section, origin)
        image = brain.image(at, [section])[:, 0]
        squares = whole_squares(block, block, plan.whole_px)
        found = transcripts_in(rows, origin, squares)
        kept = [box for box, count in zip(squares, found.tolist(), strict=True) if count]
        self.look(CEILING, image, at, kept, plan.cells(places(section, kept), plan.ceiling))
        self.genes(brain, self.measurer.sources.reference.genes)
        self.features(CEILING, image, at)
        for name, side in (("window", plan.window_px), ("region", plan.region_px)):
            windows = (
                covering_windows(plan.ceiling, side, block) if plan.reference_whole else covering_windows(block, side)
            )
            self.arrays[f"{name}_places"] = places(section, windows)
            self.arrays[f"{name}_transcripts"] = transcripts_in(rows, origin, windows)
        self.nuclei(CEILING, image, at, rows)
        self.arrays["sum:area_px"] = np.array([block.height * block.width], np.int64)
        return self.arrays
