"""Pairs of genes and morphology for training: the LightningDataModule over a folder of shards."""

from __future__ import annotations

from typing import Any

import lightning
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch.utils.data import DataLoader

from datamodules.complete import complete_batch
from datamodules.crops import Batch, PairMaker
from datamodules.loader import PairLoader
from datamodules.order import FixedBatches, SlabOrder, TrainingBatches, brain_visits, named_weights, validation_draws
from datamodules.slabs import OnBadShard, SlabReader, slab_stream
from tera_mind.errors import InputError
from tera_mind.formats.manifest import Manifest
from tera_mind.formats.panel import choose_panel, panel_map
from tera_mind.model.inputs import Inputs


class PairsDataModule(lightning.LightningDataModule):
    """Batches of gene/morphology pairs from a folder of shards.

    A batch: `image` float32 (b, stain, section, 2 patch_px, 2 patch_px) in [-1, 1], -1 outside the section; `genes`
    float32 (b, gene, gene section, bin, bin), counts; `inside` bool (b, section, y, x); `position` int64 (b, 4): brain,
    first section, y, x of the crop's corner on the canvas before it was turned; `number` int64 (b,): the sample's
    number in the whole training, the same whatever ranks and workers there are.

    Under a Trainer, batches leave the loader with uint8 pixels and a row a transcript, and `on_after_batch_transfer`
    completes them on the device; whoever takes batches from `trainer.train_dataloader` or `trainer.val_dataloaders`
    calls `complete`. Loaders made without a Trainer hand out complete batches.
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
        steps_per_epoch: int | None = None,
        brain_weights: dict[str, float] | list[float] | None = None,
        augment: bool = True,
        thinning: float = 0.0,
        genes: str | list[str] = "shared",
        on_bad_shard: OnBadShard = "stop",
        seed: int = 0,
    ) -> None:
        """Open the manifest; `inputs`, which a network is made for, can be read at once.

        Args:
            shards: folder written by `tera-mind shards`, or the URL of one (https://, s3://, ...).
            patch_px: small patch; a crop has two of them a side.
            bin_px: bin of the gene counts; divides `patch_px`.
            batch_size: pairs a step and rank.
            val_batch_size: the same for validation; default `batch_size`.
            num_workers: loading processes a rank; 0 loads in the training process.
            crops_per_slab: crops cut in a row from a slab once it is read; more saves reading, fewer mixes better.
            steps_per_epoch: batches a rank and epoch; null: all slabs once, `crops_per_slab` crops each.
            brain_weights: shares of the draws, by brain name or in the order of the shards; null: by slabs.
            augment: turn and flip training crops.
            thinning: training crops keep a fraction of their transcripts that is uniform in [1 - thinning, 1].
            genes: the panel and its order: `shared` for all genes of the shards, a file with a name a line, or a list.
            on_bad_shard: `stop` at a slab that cannot be read, or `skip` it: log it, draw the next of the order.
            seed: of order, corners, turns and thinning.

        Raises `InputError` for settings that do not fit the shards, `PanelMismatchError` for genes they lack.
        """
        super().__init__()
        self.manifest = Manifest.open(shards, check_shards=on_bad_shard == "stop")
        self.patch_px, self.bin_px = patch_px, bin_px
        self.batch_size, self.val_batch_size = batch_size, val_batch_size or batch_size
        self.num_workers, self.crops_per_slab, self.steps_per_epoch = num_workers, crops_per_slab, steps_per_epoch
        self.augment, self.thinning, self.seed = augment, thinning, seed
        self.on_bad_shard: OnBadShard = on_bad_shard
        self._check()
        self._weights = named_weights([str(brain["name"]) for brain in self.manifest.brains], brain_weights)
        self.inputs = Inputs(
            genes=tuple(choose_panel(genes, self.manifest.genes)),
            stains=tuple(self.manifest.stains),
            pixel_um=self.manifest.pixel_um,
            intensity_range={
                stain: (float(low), float(high)) for stain, (low, high) in self.manifest.intensity_range.items()
            },
            gene_sections=self.manifest.gene_sections,
            patch_px=patch_px,
            bin_px=bin_px,
        )
        self._training: PairLoader | None = None
        self._state: dict[str, Any] = {}

    def _check(self) -> None:
        positive = ("patch_px", "bin_px", "batch_size", "val_batch_size", "crops_per_slab", "steps_per_epoch")
        for name in positive:
            if getattr(self, name) is not None and getattr(self, name) < 1:
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
        """Random crops; every epoch is a new pass over the slabs (see `steps_per_epoch`)."""
        rank, ranks = self._rank()
        slabs = self.manifest.split("train").slabs
        order = SlabOrder(slabs, tuple(brain_visits(slabs, self._weights)), self.seed)
        batches = TrainingBatches(order, self.batch_size, self.crops_per_slab, self.steps_per_epoch, rank, ranks)
        if batches.pass_draws < batches.global_batch:
            raise InputError(
                f"the training split has {batches.pass_draws} draws a pass ({len(order)} slabs x "
                f"{self.crops_per_slab} crops_per_slab), one global batch needs {batches.global_batch} "
                f"({self.batch_size} x {ranks} ranks); lower batch_size or raise crops_per_slab"
            )
        rank_zero_info(
            f"a pass over the slabs: {len(order)} visits of {self.crops_per_slab} crops in {batches.pass_steps} steps "
            f"of {batches.global_batch}, {batches.repeated} draws repeated to fill the last; "
            f"an epoch has {len(batches)} steps"
        )
        before = self._training
        self._training = self._loader(batches, "train", augment=self.augment, thinning=self.thinning)
        self._training.settings = {
            "global batch": batches.global_batch,
            "steps an epoch": len(batches),
            "crops a slab": self.crops_per_slab,
            "visits of the brains": list(order.visits),
            "seed": self.seed,
            "shards": self.manifest.fingerprint,
        }
        self._training.trained_on = self._trained_on
        if self._state:
            self._training.load_state_dict(self._state)
            self._state = {}  # another fit begins at the beginning
        elif before is not None and self.trainer is not None and self.trainer.current_epoch > 0:
            self._training.start_at(*before.upcoming)  # made again by reload_dataloaders_every_n_epochs
        return self._training

    def val_dataloader(self) -> PairLoader | list[Any]:
        """Crops side by side over the validation region, the same every time; nothing where there is none."""
        if "val" not in self.manifest.splits:
            return []
        rank, ranks = self._rank()
        draws = validation_draws(self.manifest, "val", 2 * self.patch_px)
        batches = FixedBatches(draws, self.val_batch_size, rank, ranks)
        return self._loader(batches, "val", augment=False, thinning=0.0)

    def complete(self, batch: Batch) -> Batch:
        """The batch as the network takes it (see the class), on the device where it is; complete ones stay."""
        genes, gene_sections = len(self.inputs.genes), self.inputs.gene_sections
        return complete_batch(batch, genes=genes, gene_sections=gene_sections, bin_px=self.bin_px)

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        del dataloader_idx
        return self.complete(batch)

    def state_dict(self) -> dict[str, Any]:
        """Position of the training stream, for the checkpoint."""
        return {} if self._training is None else self._training.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Kept until the loader is made: Lightning does not restore loaders themselves at the end of an epoch."""
        self._state = state_dict
        if self._training is not None:
            self._training.load_state_dict(state_dict)

    def _rank(self) -> tuple[int, int]:
        return (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)

    def _trained_on(self) -> tuple[int, float] | None:
        """Batches of this epoch whose step is done, of how many; a batch in flight does not count."""
        if self.trainer is None:
            return None
        done = self.trainer.fit_loop.epoch_loop.batch_progress.current.state_dict()["processed"]
        return int(done), float(self.trainer.num_training_batches)

    def _loader(
        self, batches: TrainingBatches | FixedBatches, split: str, *, augment: bool, thinning: float
    ) -> PairLoader:
        make_batch = PairMaker(
            manifest=self.manifest,
            split=split,
            crop_px=2 * self.patch_px,
            new_gene=panel_map(self.manifest.genes, list(self.inputs.genes)),
            augment=augment,
            thinning=thinning,
            seed=self.seed,
        )
        reader = SlabReader(self.manifest, split)
        loader: DataLoader[Any] = DataLoader(
            slab_stream(batches, reader, make_batch, self.on_bad_shard),
            batch_size=None,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
        )
        return PairLoader(batches, loader, finish=(lambda batch: batch) if self.trainer else self.complete)
