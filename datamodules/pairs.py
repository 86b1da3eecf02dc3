"""Pairs of genes and morphology for training: random crop at any pixel, rotation and flip of both, then binning.

Never bin first: bins of a crop start at the crop's own corner, wherever that is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import lightning
import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from datamodules.slabs import (
    CROP,
    BatchMaker,
    Draw,
    FixedBatches,
    SlabReader,
    TrainingBatches,
    slab_stream,
    validation_draws,
)
from tera_mind.errors import InputError, PanelMismatchError, TeraMindError
from tera_mind.formats.brain import Transcripts, bin_transcripts
from tera_mind.formats.shards import Manifest, Slab
from tera_mind.geometry import Box

#: uint8 intensity -> [-1, 1]
_SIGNED = (np.arange(256) / 127.5 - 1).astype(np.float32)
#: rotations by 90 degrees, with and without a flip
SYMMETRIES = 8

Batch = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Crop:
    """A square window of a slab at full resolution.

    `image` (stain, section, y, x) uint8; `inside` (section, y, x) bool: part of an existing section; `transcripts` of
    every gene section, relative to the corner.
    """

    image: NDArray[np.uint8]
    inside: NDArray[np.bool_]
    transcripts: tuple[Transcripts, ...]

    @property
    def size_px(self) -> int:
        return int(self.image.shape[-1])


def cut_crop(slab: Slab, y: int, x: int, size_px: int) -> Crop:
    """Cut the crop whose corner is canvas pixel (y, x) out of a slab that holds it."""
    box = Box(y, y + size_px, x, x + size_px)
    assert slab.window.contains(box)
    inside = np.zeros((len(slab.exists), size_px, size_px), bool)
    rows, columns = box.intersect(slab.inside).shift(-y, -x).slices()
    inside[np.flatnonzero(slab.exists), rows, columns] = True
    top, left = y - slab.window.y0, x - slab.window.x0
    transcripts = []
    for rows_of_section in slab.transcripts:
        part = slice(*np.searchsorted(rows_of_section.y, [top, top + size_px]))  # sorted by y
        near = rows_of_section.x[part] - np.int32(left)
        kept = (near >= 0) & (near < size_px)
        transcripts.append(
            Transcripts(
                rows_of_section.y[part][kept] - np.int32(top),
                near[kept],
                rows_of_section.gene[part][kept],
                rows_of_section.count[part][kept],
            )
        )
    return Crop(slab.image[..., top : top + size_px, left : left + size_px], inside, tuple(transcripts))


def turn_crop(crop: Crop, symmetry: int) -> Crop:
    """Turn image, mask and transcripts: `symmetry % 4` quarter turns counterclockwise; from 4 on, then x flipped."""
    quarters, flipped = symmetry % 4, symmetry >= 4
    last = np.int32(crop.size_px - 1)

    def turn_pixels(pixels: NDArray[Any]) -> NDArray[Any]:
        turned = np.rot90(pixels, quarters, axes=(-2, -1))
        return turned[..., ::-1] if flipped else turned

    def turn_points(rows: Transcripts) -> Transcripts:
        y, x = rows.y, rows.x
        for _ in range(quarters):
            y, x = last - x, y
        return Transcripts(y, last - x if flipped else x, rows.gene, rows.count)

    return Crop(turn_pixels(crop.image), turn_pixels(crop.inside), tuple(map(turn_points, crop.transcripts)))


def thin_crop(crop: Crop, keep: float, random: np.random.Generator) -> Crop:
    """Keep every transcript with probability `keep`: what a less sensitive experiment would have seen."""
    thinned = (
        Transcripts(rows.y, rows.x, rows.gene, random.binomial(rows.count, keep).astype(np.int32))
        for rows in crop.transcripts
    )
    return Crop(crop.image, crop.inside, tuple(thinned))


def bin_crop(crop: Crop, bin_px: int, genes: int, new_gene: NDArray[np.int32] | None = None) -> NDArray[np.float32]:
    """Counts of a crop, float32 (gene, gene section, y bin, x bin); gene g becomes `new_gene[g]`, -1: left out."""
    layers = []
    for section in crop.transcripts:
        rows = section
        if new_gene is not None:
            kept = new_gene[rows.gene] >= 0
            rows = Transcripts(rows.y[kept], rows.x[kept], new_gene[rows.gene[kept]], rows.count[kept])
        layers.append(bin_transcripts(rows, (crop.size_px, crop.size_px), bin_px, genes))
    return layers[0][:, None] if len(layers) == 1 else np.stack(layers, axis=1)


@dataclass
class PairMaker:
    """Makes batches of draws. All random numbers of a crop are keyed (seed, CROP, number of the draw)."""

    manifest: Manifest
    split: str
    crop_px: int
    bin_px: int
    genes: int
    new_gene: NDArray[np.int32] | None
    augment: bool
    thinning: float
    seed: int

    def __call__(self, drawn: list[tuple[Draw, Slab]]) -> Batch:
        made = [self._pair(draw, slab) for draw, slab in drawn]
        images, genes, inside, positions = zip(*made, strict=True)
        return {
            "image": torch.from_numpy(_SIGNED[np.stack(images)]),
            "genes": torch.from_numpy(np.stack(genes)),
            "inside": torch.from_numpy(np.stack(inside)),
            "position": torch.tensor(positions, dtype=torch.int64),
        }

    def _pair(
        self, draw: Draw, slab: Slab
    ) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.bool_], tuple[int, int, int, int]]:
        random = np.random.default_rng([self.seed, CROP, draw.number])
        area = self.manifest.corners(self.split, draw.slab, self.crop_px)
        corner = (int(random.integers(area.y0, area.y1)), int(random.integers(area.x0, area.x1)))
        y, x = draw.corner or corner
        crop = cut_crop(slab, y, x, self.crop_px)
        if self.augment:
            crop = turn_crop(crop, int(random.integers(SYMMETRIES)))
        if self.thinning:
            crop = thin_crop(crop, 1 - self.thinning * random.random(), random)
        counts = bin_crop(crop, self.bin_px, self.genes, self.new_gene)
        return crop.image, counts, crop.inside, (slab.brain, slab.first_section, y, x)


@dataclass
class PairLoader:
    """Batches of one rank, in an order that does not depend on the number of workers; its length is the same on all.

    Not a torch `DataLoader` itself: Lightning would put its own sampler into one.
    """

    batches: TrainingBatches | FixedBatches
    loader: DataLoader[Any]
    epoch: Callable[[], int] = field(default=lambda: 0)

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Batch]:
        self.batches.set_epoch(self.epoch())
        return self._raise_errors(iter(self.loader))

    @staticmethod
    def _raise_errors(items: Iterator[Any]) -> Iterator[Batch]:
        for item in items:
            if isinstance(item, TeraMindError):
                try:
                    raise item
                finally:
                    # else error and frame hold each other, and workers that the cycle collector frees end by time-out
                    del item, items
            yield item


class PairsDataModule(lightning.LightningDataModule):
    """Batches of gene/morphology pairs from a folder of shards.

    A batch: `image` float32 (b, stain, section, 2 patch_px, 2 patch_px) in [-1, 1], -1 outside the section; `genes`
    float32 (b, gene, gene section, bin, bin), counts; `inside` bool (b, section, y, x); `position` int64 (b, 4): brain,
    first section, y, x of the crop's corner on the canvas before it was turned.
    """

    def __init__(
        self,
        shards: str,
        *,
        patch_px: int = 64,
        bin_px: int = 16,
        batch_size: int = 32,
        val_batch_size: int | None = None,
        num_workers: int = 0,
        crops_per_slab: int = 4,
        steps_per_epoch: int = 500,
        augment: bool = True,
        thinning: float = 0.0,
        genes: Sequence[str] | None = None,
        seed: int = 0,
    ) -> None:
        """Open the manifest; `genes`, `stains`, `pixel_um`, `intensity_range`, `gene_sections` can be read at once.

        Args:
            shards: folder written by `tera-mind shards`.
            patch_px: small patch; a crop has two of them a side.
            bin_px: bin of the gene counts; divides `patch_px`.
            batch_size: pairs a step and rank.
            val_batch_size: the same for validation; default `batch_size`.
            num_workers: loading processes a rank; 0 loads in the training process.
            crops_per_slab: crops cut in a row from a slab once it is read; more saves reading, fewer mixes better.
            steps_per_epoch: batches a rank and epoch.
            augment: turn and flip training crops.
            thinning: training crops keep a fraction of their transcripts that is uniform in [1 - thinning, 1].
            genes: the panel and its order; default all genes of the shards.
            seed: of order, corners, turns and thinning.

        Raises `InputError` for settings that do not fit the shards, `PanelMismatchError` for genes they lack.
        """
        super().__init__()
        self.manifest = Manifest.open(shards)
        self.patch_px, self.bin_px = patch_px, bin_px
        self.batch_size, self.val_batch_size = batch_size, val_batch_size or batch_size
        self.num_workers, self.crops_per_slab, self.steps_per_epoch = num_workers, crops_per_slab, steps_per_epoch
        self.augment, self.thinning, self.seed = augment, thinning, seed
        self._check()
        self.genes: list[str] = list(self.manifest.genes if genes is None else genes)
        self._new_gene = None if genes is None else _panel_map(self.manifest.genes, self.genes)
        self.stains: list[str] = list(self.manifest.stains)
        self.pixel_um: float = self.manifest.pixel_um
        self.intensity_range: dict[str, list[float]] = {
            stain: list(bounds) for stain, bounds in self.manifest.intensity_range.items()
        }
        self.gene_sections: int = self.manifest.gene_sections

    def _check(self) -> None:
        positive = ("patch_px", "bin_px", "batch_size", "val_batch_size", "crops_per_slab", "steps_per_epoch")
        for name in positive:
            if getattr(self, name) < 1:
                raise InputError(f"{name} should be at least 1, got {getattr(self, name)}")
        if self.num_workers < 0 or self.seed < 0:
            raise InputError(f"num_workers and seed cannot be negative, got {self.num_workers} and {self.seed}")
        if self.patch_px % self.bin_px:
            raise InputError(f"patch_px should be a multiple of bin_px, got {self.patch_px} and {self.bin_px}")
        if 2 * self.patch_px > self.manifest.crop_px:
            raise InputError(
                f"crops of two patches have {2 * self.patch_px} px, shards in {self.manifest.folder} allow up to "
                f"{self.manifest.crop_px}; take a smaller patch_px or write shards with --crop-px {2 * self.patch_px}"
            )
        if not 0 <= self.thinning < 1:
            raise InputError(f"thinning should be at least 0 and below 1, got {self.thinning}")

    def train_dataloader(self) -> PairLoader:
        """Endless random crops, `steps_per_epoch` batches of them an epoch."""
        rank, ranks = self._rank()
        batches = TrainingBatches(
            slabs=len(self.manifest.split("train").samples),
            batch_size=self.batch_size,
            steps_per_epoch=self.steps_per_epoch,
            crops_per_slab=self.crops_per_slab,
            seed=self.seed,
            rank=rank,
            ranks=ranks,
        )
        return self._loader(batches, "train", augment=self.augment, thinning=self.thinning)

    def val_dataloader(self) -> PairLoader | list[Any]:
        """Crops side by side over the validation region, the same every time; nothing where there is none."""
        if "val" not in self.manifest.splits:
            return []
        rank, ranks = self._rank()
        draws = validation_draws(self.manifest, "val", 2 * self.patch_px)
        batches = FixedBatches(draws, self.val_batch_size, rank, ranks)
        return self._loader(batches, "val", augment=False, thinning=0.0)

    def _rank(self) -> tuple[int, int]:
        return (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)

    def _loader(
        self, batches: TrainingBatches | FixedBatches, split: str, *, augment: bool, thinning: float
    ) -> PairLoader:
        make_batch: BatchMaker = PairMaker(
            manifest=self.manifest,
            split=split,
            crop_px=2 * self.patch_px,
            bin_px=self.bin_px,
            genes=len(self.genes),
            new_gene=self._new_gene,
            augment=augment,
            thinning=thinning,
            seed=self.seed,
        )
        loader: DataLoader[Any] = DataLoader(
            slab_stream(batches, SlabReader(self.manifest, split), make_batch),
            batch_size=None,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
        )
        trainer = self.trainer
        return PairLoader(batches, loader, epoch=lambda: 0 if trainer is None else trainer.current_epoch)


def _panel_map(have: Sequence[str], want: Sequence[str]) -> NDArray[np.int32]:
    """Index in `want` of every gene of `have`, -1 for those left out."""
    missing = [gene for gene in want if gene not in set(have)]
    if missing:
        raise PanelMismatchError(f"shards lack {len(missing)} of the genes asked for: {', '.join(missing[:10])}")
    if not want or len(set(want)) != len(want):
        raise InputError("the panel should name at least one gene and none twice")
    index = {gene: number for number, gene in enumerate(want)}
    return np.array([index.get(gene, -1) for gene in have], np.int32)
