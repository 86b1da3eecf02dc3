"""Crops of slabs, and batches of them as they leave a loading process.

Nothing is binned, turned or normalised here: pixels stay uint8 and counts stay a row a transcript, since at 500 genes
the dense counts would be most of what is moved. `datamodules.complete` does the rest where the network is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from datamodules.order import CROP, Draw
from tera_mind.formats.manifest import Manifest
from tera_mind.formats.slab import Slab
from tera_mind.geometry import Box
from tera_mind.noise import philox

#: rotations by 90 degrees, with and without a flip
SYMMETRIES = 8

Batch = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Crop:
    """A square window of a slab at full resolution, not copied where that can be avoided.

    `image` (stain, section, y, x) uint8; `inside` y0, y1, x0, x1 relative to the corner: the part on the canvas;
    `exists`: whether the brain has each image section; `rows` int32 (5, n): gene, gene section, y, x, count, relative
    to the corner.
    """

    image: NDArray[np.uint8]
    inside: tuple[int, int, int, int]
    exists: tuple[bool, ...]
    rows: NDArray[np.int32]


def cut_crop(slab: Slab, y: int, x: int, size_px: int, new_gene: NDArray[np.int32] | None = None) -> Crop:
    """Cut the crop whose corner is canvas pixel (y, x) out of a slab that holds it.

    Gene g becomes `new_gene[g]`, or is left out where that is negative.
    """
    window, canvas = slab.window, slab.inside
    top, left = y - window.y0, x - window.x0
    assert top >= 0 <= left
    assert y + size_px <= window.y1
    assert x + size_px <= window.x1
    # rows are sorted by section, then y: those of the crop's lines are one stretch a section
    firsts = np.arange(top, top + slab.gene_sections * window.height, window.height, dtype=np.int32)
    starts, stops = (slab.line.searchsorted(firsts + np.int32(edge)).tolist() for edge in (0, size_px))
    near = np.concatenate([np.arange(start, stop) for start, stop in zip(starts, stops, strict=True)])
    column = slab.x[near] - np.uint16(left)  # what lies left of the crop wraps round to large numbers
    kept = column < size_px
    near = near[kept]
    rows = np.empty((5, len(near)), np.int32)
    rows[0] = slab.gene[near] if new_gene is None else new_gene[slab.gene[near]]
    rows[1] = slab.section[near]
    rows[2] = slab.y[near] - np.uint16(top)
    rows[3] = column[kept]
    rows[4] = slab.count[near]
    if new_gene is not None:
        rows = rows[:, rows[0] >= 0]
    image = slab.image[..., top : top + size_px, left : left + size_px]
    inside = [min(max(edge, 0), size_px) for edge in (canvas.y0 - y, canvas.y1 - y, canvas.x0 - x, canvas.x1 - x)]
    return Crop(image, (inside[0], inside[1], inside[2], inside[3]), slab.exists, rows)


def thin_crop(crop: Crop, keep: float, random: np.random.Generator) -> Crop:
    """Keep every transcript with probability `keep`: what a less sensitive experiment would have seen."""
    rows = crop.rows.copy()
    rows[4] = random.binomial(rows[4], keep)
    return Crop(crop.image, crop.inside, crop.exists, rows)


def stack_crops(crops: Sequence[Crop]) -> Batch:
    """A batch that `complete_batch` completes.

    `image` uint8 (b, stain, section, y, x); `bounds` int32 (b, 4) and `exists` bool (b, section) as in `Crop`; `rows`
    int32 (6, n): sample, gene, gene section, y, x and count of every transcript row of the batch.
    """
    images = np.empty((len(crops), *crops[0].image.shape), np.uint8)
    rows = np.empty((6, sum(crop.rows.shape[1] for crop in crops)), np.int32)
    at = 0
    for number, crop in enumerate(crops):
        images[number] = crop.image
        end = at + crop.rows.shape[1]
        rows[0, at:end], rows[1:, at:end] = number, crop.rows
        at = end
    return {
        "image": torch.from_numpy(images),
        "rows": torch.from_numpy(rows),
        "bounds": torch.tensor([crop.inside for crop in crops], dtype=torch.int32),
        "exists": torch.tensor([crop.exists for crop in crops]),
    }


@dataclass
class PairMaker:
    """Makes batches of draws. All random numbers of a crop are keyed (seed, CROP, number of the draw).

    Beside the keys of `stack_crops`: `position` (b, 4), `number` (b,) and, with `augment`, `symmetry` (b,), all int64.
    """

    manifest: Manifest
    split: str
    crop_px: int
    new_gene: NDArray[np.int32] | None
    augment: bool
    thinning: float
    seed: int
    _corners: dict[int, Box] = field(default_factory=dict)

    def __call__(self, drawn: list[tuple[Draw, Slab]]) -> Batch:
        numbers = np.array([draw.number for draw, _ in drawn], np.int64)
        words = self._random_words(numbers)
        self._corners = {
            slab: self._corners.get(slab) or self.manifest.corners(self.split, slab, self.crop_px)
            for slab in {draw.slab for draw, _ in drawn}
        }
        crops, positions = [], []
        for (draw, slab), (word_y, word_x, _, word_keep) in zip(drawn, words.tolist(), strict=True):
            area = self._corners[draw.slab]
            y, x = draw.corner or (_below(area.y0, area.y1, word_y), _below(area.x0, area.x1, word_x))
            crop = cut_crop(slab, y, x, self.crop_px, self.new_gene)
            if self.thinning:
                random = np.random.default_rng([self.seed, CROP, draw.number])
                crop = thin_crop(crop, 1 - self.thinning * word_keep / 2**32, random)
            crops.append(crop)
            positions.append((slab.brain, slab.first_section, y, x))
        batch = stack_crops(crops)
        batch["position"] = torch.tensor(positions, dtype=torch.int64)
        batch["number"] = torch.from_numpy(numbers)
        if self.augment:
            batch["symmetry"] = torch.from_numpy((words[:, 2] % SYMMETRIES).astype(np.int64))
        return batch

    def _random_words(self, numbers: NDArray[np.int64]) -> NDArray[np.uint64]:
        """Four random words of 32 bits for every draw: y, x, symmetry, thinning."""
        counter = numbers.astype(np.uint64)
        low, high, zero = counter & np.uint64(0xFFFFFFFF), counter >> np.uint64(32), np.zeros_like(counter)
        key = (self.seed & 0xFFFFFFFF, (self.seed >> 32) & 0xFFFFFFFF)
        return np.stack(philox((low, high, zero + np.uint64(CROP), zero), key), axis=1)


def _below(start: int, stop: int, word: int) -> int:
    """A number in [start, stop) from 32 random bits."""
    return start + (word * (stop - start) >> 32)
