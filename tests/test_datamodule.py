"""Pairs: genes and image stay registered, every sample is drawn once, ranks and workers change nothing."""

from __future__ import annotations

import tracemalloc
from itertools import product

import lightning
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_brain import GENES, make_brain, random_transcripts

from datamodules.complete import complete_batch
from datamodules.crops import SYMMETRIES, Crop, cut_crop, stack_crops, thin_crop
from datamodules.order import Draw, FixedBatches, validation_draws
from datamodules.pairs import PairsDataModule
from datamodules.slabs import SlabReader
from tera_mind.errors import FormatError, InputError, PanelMismatchError
from tera_mind.formats.manifest import Manifest
from tera_mind.formats.shard_plan import plan_shards
from tera_mind.formats.shards import write_shards
from tera_mind.formats.slab import read_slab
from tera_mind.geometry import Box
from tera_mind.model.inputs import Inputs

SMALL = {"patch_px": 16, "bin_px": 4, "batch_size": 6, "steps_per_epoch": 5}


@pytest.fixture(scope="module")
def brain(tmp_path_factory):
    return make_brain(tmp_path_factory.mktemp("brain") / "tiny.zarr")


@pytest.fixture(scope="module")
def shards(brain, tmp_path_factory):
    plan = plan_shards([brain], train=":,:60%", val=":,60%:", gene_sections=4, core_px=48, crop_px=32)
    return write_shards([brain], tmp_path_factory.mktemp("shards") / "tiny", plan, shard_mb=0.1)


def module(shards, **settings):
    return PairsDataModule(str(shards.folder), **(SMALL | settings))


@pytest.fixture(scope="module")
def bright(tmp_path_factory):
    """A brain that is bright exactly where its transcripts are."""
    rng = np.random.default_rng(5)
    rows = random_transcripts(rng, 96, 96, 200, 3)
    image = np.full((1, 1, 96, 96), 1, np.uint8)
    image[0, 0, rows.y, rows.x] = 255
    return make_brain(
        tmp_path_factory.mktemp("bright") / "b.zarr",
        shape=image.shape,
        genes=GENES[:3],
        stains=("DAPI",),
        transcripts=[rows],
        image=image,
    )


def completed(crops, symmetries, **settings):
    zero = torch.zeros(len(crops), dtype=torch.int64)
    batch = stack_crops(crops) | {"position": zero, "number": zero, "symmetry": torch.tensor(symmetries)}
    return complete_batch(batch, **settings)


@pytest.mark.parametrize("symmetry", range(SYMMETRIES))
def test_image_mask_and_transcripts_turn_together(bright, symmetry):
    slab = read_slab(bright, 0, bright.canvas.grow(8), first_section=0, gene_sections=1)
    crop = cut_crop(slab, -5, 60, 40)  # leaves the canvas above and on the right
    other = cut_crop(slab, 3, 7, 40)
    # bins of one pixel show where the transcripts lie
    batch = completed([other, crop], [3, symmetry], genes=3, gene_sections=1, bin_px=1)
    image, lit = batch["image"][1, 0, 0], batch["genes"][1].sum(dim=(0, 1)) > 0
    assert lit.sum() > 10
    assert torch.equal(image == 1, lit)
    assert torch.equal(image > -1, batch["inside"][1, 0])
    # the turn is that of numpy
    box = Box(-5, 35, 60, 100)
    pixels = np.rot90(bright.image(box)[0, 0], symmetry % 4)
    np.testing.assert_array_equal(image > -1, (pixels if symmetry < 4 else pixels[:, ::-1]) > 0)
    # bins by brute force, transcript by transcript
    fine = batch["genes"][1, :, 0].numpy()
    coarse = completed([crop], [symmetry], genes=3, gene_sections=1, bin_px=4)["genes"][0, :, 0].numpy()
    expected = np.zeros((3, 10, 10), np.float32)
    for gene, y, x in zip(*np.nonzero(fine), strict=True):
        expected[gene, y // 4, x // 4] += fine[gene, y, x]
    np.testing.assert_array_equal(coarse, expected)
    rows = bright.transcripts(0, box)
    assert [coarse[gene].sum() for gene in range(3)] == [rows.count[rows.gene == gene].sum() for gene in range(3)]


def test_the_symmetries_are_eight(bright):
    crop = cut_crop(read_slab(bright, 0, bright.canvas, first_section=0, gene_sections=1), 8, 8, 32)
    batch = completed([crop] * 8, list(range(8)), genes=3, gene_sections=1, bin_px=4)
    assert len({image.numpy().tobytes() for image in batch["image"]}) == 8


@pytest.mark.parametrize("augment", [False, True])
def test_a_batch_is_what_the_brain_holds_at_its_position(brain, shards, augment):
    batch = next(iter(module(shards, augment=augment).train_dataloader()))
    assert {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in batch.items()} == {
        "image": (torch.float32, (6, 2, 2, 32, 32)),
        "genes": (torch.float32, (6, 5, 4, 8, 8)),
        "inside": (torch.bool, (6, 2, 32, 32)),
        "position": (torch.int64, (6, 4)),
        "number": (torch.int64, (6,)),
    }
    for image, genes, inside, (number, first, y, x) in zip(
        batch["image"].numpy(), batch["genes"].numpy(), batch["inside"].numpy(), batch["position"].tolist(), strict=True
    ):
        assert number == 0
        box = Box(y, y + 32, x, x + 32)
        pixels = brain.image(box, (first, first + 1)) / np.float32(127.5) - 1
        sections = range(first - 1, first + 3)
        assert genes.sum(axis=(0, 2, 3)).tolist() == [brain.transcripts(s, box).count.sum() for s in sections]
        assert inside.sum() == 2 * box.intersect(brain.canvas).height * box.intersect(brain.canvas).width
        assert (image[:, ~inside] == -1).all()
        if augment:
            assert np.allclose(np.sort(image.ravel()), np.sort(pixels.ravel()), atol=1e-6)
        else:
            np.testing.assert_allclose(image, pixels, atol=1e-6)


def test_crops_reach_every_part_of_their_region_and_no_other(shards):
    data = module(shards, batch_size=100, crops_per_slab=6, steps_per_epoch=6)
    positions = torch.cat([batch["position"] for batch in data.train_dataloader()])
    assert positions[:, 1].unique().tolist() == [0, 1]
    assert (positions[:, 2].min(), positions[:, 2].max()) == (-8, 120 + 8 - 32)  # overhang of a quarter at the canvas
    assert (positions[:, 3].min(), positions[:, 3].max()) == (-8, 120 - 32)  # none at the border to validation
    shares = np.histogram(positions[:, 3], bins=4, range=(-8, 89))[0] / len(positions)
    assert shares.min() > 0.15


def test_smaller_crops_overhang_less(shards):
    data = module(shards, patch_px=8, batch_size=100, crops_per_slab=6, steps_per_epoch=6)
    positions = torch.cat([batch["position"] for batch in data.train_dataloader()])
    assert (positions[:, 2].min(), positions[:, 2].max()) == (-4, 120 + 4 - 16)
    assert (positions[:, 3].min(), positions[:, 3].max()) == (-4, 120 - 16)


def flat(batches):
    return [(name, tensor.numpy().tobytes()) for batch in batches for name, tensor in batch.items()]


def test_workers_change_nothing_and_epochs_go_on(shards):
    inline, loader = (module(shards, thinning=0.5, num_workers=w).train_dataloader() for w in (0, 2))
    first = flat(inline)
    assert flat(loader) == first
    second = flat(loader)  # the living workers hear of the new epoch
    assert second == flat(inline)
    assert len(second) == len(first)
    assert not set(second) & {row for row in first if row[0] == "image"}
    loader.start_at(0, 0)
    assert flat(loader) == first
    assert flat(module(shards, thinning=0.5, seed=1).train_dataloader()) != first


@settings(max_examples=60, deadline=None)
@given(count=st.integers(1, 40), batch_size=st.integers(1, 6), ranks=st.integers(1, 4))
def test_validation_is_shared_out_once_with_equal_steps(count, batch_size, ranks):
    draws = np.stack([np.arange(count) + 5, np.arange(count), -np.arange(count)], axis=1)
    parts = [FixedBatches(draws, batch_size, rank, ranks) for rank in range(ranks)]
    rows = [[len(batch) for batch in part()] for part in parts]
    assert rows == [rows[0]] * ranks
    assert len(rows[0]) == len(parts[0])
    numbers = sorted(draw.number for part in parts for batch in part() for draw in batch)
    assert set(numbers) == set(range(count))
    assert len(numbers) - count < ranks
    first = next(parts[0]())[0]
    assert (first, parts[0].instead(first, 1)) == (
        Draw(0, 5, (0, 0)),
        Draw(0, 5 + 1 % count, (1 % count, -(1 % count))),
    )


@pytest.mark.parametrize("crop_px", [8, 16, 32])
def test_validation_draws_are_the_grid_of_every_slab(shards, crop_px):
    expected = []
    samples = shards.splits["val"].samples
    boxes = [shards.corners("val", slab, crop_px) for slab in range(len(samples))]
    table = validation_draws(shards, "val", crop_px)
    order = list(dict.fromkeys(table[:, 0].tolist()))
    assert order != sorted(order)
    for slab in order:
        area, box = shards.corner_area("val", samples[slab].place.brain, crop_px), boxes[slab]
        points = product(range(area.y0, area.y1, crop_px), range(area.x0, area.x1, crop_px))
        expected += [[slab, y, x] for y, x in points if box.y0 <= y < box.y1 and box.x0 <= x < box.x1]
    assert table.tolist() == expected
    every = [[box.y0, box.y1, box.x0, box.x1] for box in boxes]
    assert shards.all_corners("val", crop_px).tolist() == every


def test_a_long_validation_makes_only_the_draws_asked_for():
    draws = np.zeros((500_000, 3), np.int64)
    tracemalloc.start()
    batch = next(FixedBatches(draws, 32, rank=1, ranks=2)())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [draw.number for draw in batch] == list(range(1, 64, 2))
    assert peak < 1e5


def test_validation_lies_side_by_side_and_stays_the_same(brain, shards):
    data = module(shards, val_batch_size=4)
    batches = list(data.val_dataloader())
    assert (
        flat(data.val_dataloader()) == flat(batches) == flat(module(shards, seed=3, val_batch_size=4).val_dataloader())
    )
    positions = torch.cat([batch["position"] for batch in batches])
    corners = {tuple(row) for row in positions.tolist()}
    assert len(corners) == len(positions) == len(validation_draws(shards, "val", 32))
    assert corners == set(product([0], [0, 1], range(-8, 97, 32), range(120, 177, 32)))
    for batch in batches:  # not turned
        _, first, y, x = batch["position"][0].tolist()
        expected = brain.image(Box(y, y + 32, x, x + 32), (first, first + 1)) / np.float32(127.5) - 1
        np.testing.assert_allclose(batch["image"][0], expected, atol=1e-6)


def test_a_panel_can_be_chosen_and_ordered(shards):
    whole = next(iter(module(shards).train_dataloader()))["genes"]
    data = module(shards, genes=["Vip", "Gad2"])
    assert data.inputs.genes == ("Vip", "Gad2")
    assert torch.equal(next(iter(data.train_dataloader()))["genes"], whole[:, [4, 1]])
    with pytest.raises(PanelMismatchError, match="lack 1 of the 2 genes asked for: Sst"):
        module(shards, genes=["Vip", "Sst"])


def test_thinning_keeps_the_stated_fraction():
    rows = np.stack([*(np.arange(4000, dtype=np.int32) % 32 for _ in range(4)), np.full(4000, 3, np.int32)])
    crop = Crop(np.zeros((1, 1, 32, 32), np.uint8), (0, 32, 0, 32), (True,), rows)
    thinned = thin_crop(crop, 0.25, np.random.default_rng(0)).rows
    assert 0.24 < thinned[4].sum() / rows[4].sum() < 0.26
    np.testing.assert_array_equal(thinned[:4], rows[:4])


def test_facts_are_plain_values_before_setup(shards):
    data = module(shards)
    ranges = {"DAPI": (0.0, 255.0), "PolyT": (0.0, 255.0)}
    assert data.inputs == Inputs(tuple(GENES), ("DAPI", "PolyT"), 0.4, ranges, 4, patch_px=16, bin_px=4)
    assert data.val_batch_size == 6


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"patch_px": 32}, "crops of two patches have 64 px.*allow up to 32.*--crop-px 64"),
        ({"bin_px": 5}, "multiple of bin_px, got 16 and 5"),
        ({"thinning": 1.0}, "thinning should be"),
        ({"batch_size": 0}, "batch_size should be at least 1, got 0"),
        ({"seed": -1}, "cannot be negative"),
    ],
)
def test_settings_that_do_not_fit_are_refused(shards, settings, message):
    with pytest.raises(InputError, match=message):
        module(shards, **settings)


def test_a_pass_shorter_than_one_global_batch_is_refused(shards):
    assert len(module(shards, batch_size=72, steps_per_epoch=None).train_dataloader()) == 1  # 18 slabs, 4 crops each
    with pytest.raises(InputError, match=r"has 72 draws a pass .*global batch needs 73 .*lower batch_size"):
        module(shards, batch_size=73).train_dataloader()


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_shard_damaged_while_training_is_named_in_one_line(shards, tmp_path, num_workers):
    for file in shards.folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    data = PairsDataModule(str(tmp_path), num_workers=num_workers, **SMALL)
    for file in tmp_path.glob("train-*.tar"):
        file.write_bytes(file.read_bytes()[:2000])
    with pytest.raises(FormatError, match=r"train-00000\d\.tar at byte \d+ is truncated") as caught:
        list(data.train_dataloader())
    assert "\n" not in str(caught.value)


def test_memory_for_slabs_is_bounded(shards, monkeypatch):
    fetched = []
    read_many = Manifest.read_many
    monkeypatch.setattr(Manifest, "read_many", lambda *given: fetched.extend(given[2]) or read_many(*given))
    numbers = list(range(len(shards.splits["train"].samples)))
    kept, passing = SlabReader(shards, "train"), SlabReader(shards, "train", cache_mb=0.3)
    for reader, reads, held in ((kept, numbers, len(numbers)), (passing, [*numbers, *numbers[:-1], 3], 2)):
        fetched.clear()
        for first in (*numbers[:-1], *numbers[:-2]):
            assert list(reader([first, first, first + 1])) == [first, first + 1]
        assert sorted(set(fetched)) == numbers
        assert len(fetched) <= len(reads)
        assert len(reader._slabs) <= held


def test_a_split_that_is_not_there_is_named_or_empty(brain, tmp_path):
    plan = plan_shards([brain], train=":,:", core_px=48, crop_px=32)
    only_train = module(write_shards([brain], tmp_path / "train", plan))
    assert only_train.val_dataloader() == []
    plan = plan_shards([brain], val=":,:", core_px=48, crop_px=32)
    with pytest.raises(InputError, match="no split 'train', only val; write them again with --train"):
        module(write_shards([brain], tmp_path / "val", plan)).train_dataloader()


class Listener(lightning.LightningModule):
    """Learns nothing; keeps what it hears."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.heard, self.validated = [], 0

    def training_step(self, batch, index):
        self.heard.append(tuple(batch["position"].flatten().tolist()))
        return (self.weight * batch["image"].mean()).sum()

    def validation_step(self, batch, index):
        self.validated += len(batch["position"])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.filterwarnings("ignore")
def test_lightning_trains_on_new_crops_every_epoch(shards, tmp_path):
    listener, data = Listener(), module(shards)
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_epochs=2,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        default_root_dir=tmp_path,
    )
    trainer.fit(listener, data)
    assert len(set(listener.heard)) == len(listener.heard) == 10
    assert listener.validated == 2 * len(validation_draws(shards, "val", 32))
