"""Steps that are not finite: written down, left out, and the end of the run when there are too many."""

from __future__ import annotations

import json

import lightning
import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision
from tiny_training import exit_code, fit_arguments, log_column, tiny_recipe, tiny_shards, with_callback

from callbacks.guard import NonFiniteGuard
from tera_mind.errors import TeraMindError


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return tiny_shards(tmp_path_factory.mktemp("shards"))


def test_bad_steps_are_left_out_and_at_last_end_the_run(shards, tmp_path, capsys):
    recipe, out = tiny_recipe(tmp_path, NonFiniteGuard={"max_bad_steps": 1}), tmp_path / "run"
    arguments = fit_arguments(shards, out, recipe, trainer__max_steps=9, trainer__limit_val_batches=0)
    assert exit_code(["fit", *arguments, with_callback("BadBatch", steps=[1, 3, 4, 5])]) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert "2 steps in a row, up to step 4" in said
    file = out / "bad_steps" / "step=4-rank=0.json"
    assert str(file) in said
    samples = json.loads(file.read_text())["samples"]
    assert [sample["number"] for sample in samples] == [8, 9]
    assert samples[0].keys() == {"number", "brain", "section", "y", "x", "t", "loss"}
    assert samples[0]["loss"] == "nan"
    assert {path.name for path in (out / "bad_steps").iterdir()} == {f"step={step}-rank=0.json" for step in (1, 3, 4)}
    assert log_column(out, "train/bad_steps") == [0, 1, 1, 2]
    assert json.loads((out / "run.json").read_text())["status"] == "failed"


class Line(lightning.LightningModule):
    """One weight w, 2 at first; the loss is slope * (w - 2)."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor([2.0]))

    def training_step(self, batch, batch_idx):
        return ((self.weight - 2) * batch["slope"]).sum()

    def training_timesteps(self, numbers):
        return 10 * numbers

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=0.5)


def train(folder, slopes, max_bad_steps, plugin=None, **more):
    batches = [
        {"slope": torch.tensor([slope]), "number": torch.tensor([i]), "position": torch.tensor([[0, 1, 2, i]])}
        for i, slope in enumerate(slopes)
    ]
    model = Line()
    trainer = lightning.Trainer(
        accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=folder, callbacks=[NonFiniteGuard(max_bad_steps)],
        plugins=plugin, **more,
    )  # fmt: skip
    trainer.fit(model, torch.utils.data.DataLoader(batches, batch_size=None))
    return model, trainer


def test_a_step_left_out_changes_nothing(tmp_path):
    inf, nan = float("inf"), float("nan")
    skipped, trainer = train(tmp_path, [1.0, nan, 3.0, inf, -2.0], 1, gradient_clip_val=1.0)
    plain, _ = train(tmp_path / "plain", [1.0, 3.0, -2.0], 1, gradient_clip_val=1.0)
    assert torch.equal(skipped.weight, plain.weight)
    assert trainer.global_step == 5
    assert trainer.optimizers[0].state_dict()["state"][0]["step"] == 3
    (sample,) = json.loads((tmp_path / "bad_steps" / "step=3-rank=0.json").read_text())["samples"]
    assert sample == {"number": 3, "brain": 0, "section": 1, "y": 2, "x": 3, "t": 30, "loss": "-inf"}
    with pytest.raises(TeraMindError, match=r"2 steps in a row, up to step 3;.*step=3-rank=0"):
        train(tmp_path / "end", [1.0, 1.0, nan, inf], 1)


def test_a_gradient_scaler_keeps_its_own_business(tmp_path):
    """Gradients that overflow lower the scale and are nothing bad; a loss that is not finite is."""
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**120)
    train(tmp_path, [1e9, 1.0], 0, MixedPrecision("16-mixed", "cpu", scaler))
    assert scaler.get_scale() < 2.0**120
    assert not (tmp_path / "bad_steps").exists()
    with pytest.raises(TeraMindError, match="1 steps in a row, up to step 1"):
        train(tmp_path, [1.0, float("nan")], 0, MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu")))


class TwoLines(lightning.LightningModule):
    """Two weights, each with an optimiser: a batch holds the slope of either loss; the second steps last."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.weights = torch.nn.ParameterList([torch.tensor([2.0]), torch.tensor([2.0])])

    def training_step(self, batch, batch_idx):
        for optimizer, weight, slope in zip(self.optimizers(), self.weights, batch["slopes"], strict=True):
            optimizer.zero_grad()
            self.manual_backward((weight * slope).sum())
            if weight is self.weights[0]:  # as of a discriminator: no step of the trainer's count
                counting = optimizer._on_before_step, optimizer._on_after_step
                optimizer._on_before_step = optimizer._on_after_step = lambda: None
                optimizer.step()
                optimizer._on_before_step, optimizer._on_after_step = counting
            else:
                optimizer.step()

    def training_timesteps(self, numbers):
        return numbers

    def configure_optimizers(self):
        return [torch.optim.SGD([weight], lr=1.0) for weight in self.weights]


def train_two(folder, slopes, max_bad_steps):
    batches = [
        {"slopes": torch.tensor(pair), "number": torch.tensor([i]), "position": torch.tensor([[0, 0, 0, i]])}
        for i, pair in enumerate(slopes)
    ]
    model, guard = TwoLines(), NonFiniteGuard(max_bad_steps)
    trainer = lightning.Trainer(
        accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=folder, callbacks=[guard],
    )  # fmt: skip
    trainer.fit(model, torch.utils.data.DataLoader(batches, batch_size=None))
    return model, guard


def test_a_step_of_two_optimisers_is_bad_if_either_is_and_counts_once(tmp_path):
    nan = float("nan")
    model, guard = train_two(tmp_path, [(nan, 1.0), (1.0, nan), (nan, nan), (1.0, 1.0), (nan, 1.0)], 3)
    assert guard.state_dict() == {"in_a_row": 1, "total": 4}
    assert [weight.item() for weight in model.weights] == [0.0, -1.0]  # each took its own good steps
    files = sorted((tmp_path / "bad_steps").iterdir())
    assert [file.name for file in files] == [f"step={step}-rank=0.json" for step in (0, 1, 2, 4)]
    samples = [json.loads(file.read_text())["samples"] for file in files]
    assert [[(one["optimizer"], one["number"]) for one in of_step] for of_step in samples] == [
        [(0, 0)], [(1, 1)], [(0, 2), (1, 2)], [(0, 4)],
    ]  # fmt: skip
    with pytest.raises(TeraMindError, match="3 steps in a row, up to step 2"):
        train_two(tmp_path / "end", [(nan, 1.0)] * 4, 2)
