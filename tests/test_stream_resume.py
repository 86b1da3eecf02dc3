"""A run that was interrupted goes on at the exact sample, under Lightning, with other workers and ranks too."""

from __future__ import annotations

import lightning
import pytest
import torch
from tiny_brain import make_brain

from datamodules.pairs import PairsDataModule
from tera_mind.errors import InputError
from tera_mind.formats.shard_plan import plan_shards
from tera_mind.formats.shards import write_shards

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("resume")
    brain = make_brain(folder / "b.zarr", shape=(1, 1, 96, 200), rows=400, stains=("DAPI",))
    plan = plan_shards([brain], train=":,:60%", val=":,60%:", core_px=32, crop_px=32)
    return str(write_shards([brain], folder / "s", plan).folder)


class Recorder(lightning.LightningModule):
    """Learns nothing; keeps the numbers of the samples it was shown, and a checkpoint after every optimiser step."""

    def __init__(self, folder=None):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.folder, self.shown, self.saved, self.at_ends = folder, [], {}, {}

    def training_step(self, batch, index):
        self.shown.append(tuple(batch["number"].tolist()))
        return (self.weight * batch["image"].mean()).sum()

    def on_train_batch_end(self, outputs, batch, index):
        if self.folder is not None and not self.trainer.fit_loop._should_accumulate():
            self.saved[len(self.shown)] = self.folder / f"{len(self.shown)}.ckpt"
            self.trainer.save_checkpoint(self.saved[len(self.shown)])

    def on_train_epoch_end(self):
        if self.folder is not None:
            self.at_ends[len(self.shown)] = self.folder / f"end-{len(self.shown)}.ckpt"
            self.trainer.save_checkpoint(self.at_ends[len(self.shown)])

    def validation_step(self, batch, index):
        assert batch["genes"].shape[1] == 5

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def train(shards, *, folder=None, ckpt=None, workers=0, data=None, **settings):
    module = Recorder(folder)
    made = {"patch_px": 16, "bin_px": 4, "batch_size": 6, "crops_per_slab": 3, "num_workers": workers} | (data or {})
    pairs = PairsDataModule(shards, **made)
    trainer = lightning.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **({"max_epochs": 3, "limit_val_batches": 1, "num_sanity_val_steps": 0} | settings),
    )
    trainer.fit(module, pairs, ckpt_path=ckpt)
    return module


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"accumulate_grad_batches": 2, "val_check_interval": 3},
        {"max_epochs": -1, "max_steps": 13},
        {"limit_train_batches": 4, "num_sanity_val_steps": 1},
        {"data": {"steps_per_epoch": 3}, "max_epochs": 4, "reload_dataloaders_every_n_epochs": 1},
    ],
)
def test_interrupted_at_any_step_the_rest_is_the_same(shards, tmp_path, settings):
    whole = train(shards, folder=tmp_path, **settings)
    assert len(set(whole.shown)) == len(whole.shown) > 10
    assert [number for step in whole.shown for number in step][:18] == list(range(18))
    for done, checkpoint in [*whole.saved.items(), *whole.at_ends.items()]:
        rest = train(shards, ckpt=checkpoint, **settings)
        assert rest.shown == whole.shown[done:], (checkpoint.name, settings)


def test_what_workers_loaded_ahead_is_not_consumed_and_their_number_may_change(shards, tmp_path):
    quick = {"limit_val_batches": 0, "max_epochs": 2}
    whole = train(shards, folder=tmp_path, workers=2, **quick)
    assert whole.shown == train(shards, **quick).shown
    for done, workers in ((2, 0), (5, 1)):
        assert train(shards, ckpt=whole.saved[done], workers=workers, **quick).shown == whole.shown[done:]


def test_an_interrupt_inside_a_step_repeats_that_step(shards, tmp_path):
    class Stops(Recorder):
        def training_step(self, batch, index):
            loss = super().training_step(batch, index)
            if len(self.shown) == 4:
                self.trainer.save_checkpoint(self.folder / "torn.ckpt")
                raise ZeroDivisionError
            return loss

    stopped = Stops(tmp_path)
    pairs = PairsDataModule(shards, patch_px=16, bin_px=4, batch_size=6, crops_per_slab=3)
    trainer = lightning.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_checkpointing=False, max_epochs=1
    )
    with pytest.raises(ZeroDivisionError):
        trainer.fit(stopped, pairs)
    rest = train(shards, ckpt=tmp_path / "torn.ckpt", max_epochs=1)
    assert rest.shown == train(shards, max_epochs=1).shown[3:]


def test_ranks_may_change_when_the_global_batch_stays(shards, tmp_path):
    """Two ranks of three resume what one of six began: together they see its rest."""
    whole = train(shards, folder=tmp_path)
    state = torch.load(whole.saved[3], weights_only=True)["PairsDataModule"]
    assert (state["epoch"], state["step"]) == (0, 3)
    parts = []
    for rank in range(2):
        data = PairsDataModule(shards, patch_px=16, bin_px=4, batch_size=3, crops_per_slab=3)
        data._rank = lambda rank=rank: (rank, 2)
        data.load_state_dict(state)
        parts.append([tuple(batch["number"].tolist()) for batch in data.train_dataloader()])
    steps = len(whole.shown) // 3
    assert [a + b for a, b in zip(*parts, strict=True)] == whole.shown[3:steps]


def test_other_settings_inside_an_epoch_are_refused_and_at_its_end_allowed(shards, tmp_path):
    whole = train(shards, folder=tmp_path, max_epochs=2)
    with pytest.raises(InputError, match=r"inside epoch 0 \(step 2\) of a run with global batch 6.*has global batch 4"):
        train(shards, ckpt=whole.saved[2], data={"batch_size": 4})
    end = len(whole.shown) // 2
    rest = train(shards, ckpt=whole.at_ends[end], data={"batch_size": 4}, max_epochs=2)
    assert len(rest.shown[0]) == 4
