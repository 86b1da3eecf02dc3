"""MS-PIE and SST-editing train from their YAML files, go on where they were killed, and their checkpoints generate."""

from __future__ import annotations

import json
import math
import signal

import pytest
import torch
import yaml
from tiny_brain import make_brain
from tiny_training import ROOT, differences, exit_code, in_child, log_column, tiny_shards, with_callback

from tera_mind.formats.volume import Volume
from tera_mind.model.checkpoint import load_checkpoint
from tera_mind.model.methods import method_named, parameter_count

RECIPES = ROOT / "experiments" / "baselines"
METHODS = ("ms-pie", "sst-editing")
STEPS = 5
_GAN = {"style_channels": 8, "mapping_layers": 2, "discriminator_genes": 2, "path_weight": 2.0, "channels": [8, 8, 6]}
SHAPES = {
    "ms-pie": _GAN | {"position_channels": 8, "head_bins": [2, 4, 8]},
    "sst-editing": _GAN | {"drive_channels": 8, "drive_layers": 3},
}
_TRAINER = {
    "trainer.accelerator": "cpu", "trainer.max_steps": STEPS, "trainer.log_every_n_steps": 1,
    "trainer.limit_val_batches": 1, "trainer.val_check_interval": 2, "data.patch_px": 16, "data.bin_px": 4,
    "data.batch_size": 2, "data.steps_per_epoch": 2,
}  # fmt: skip


def arguments(method, shards, out):
    """`fit` with the demo recipe of a method, a checkpoint every second step, and networks that take milliseconds."""
    recipe = yaml.safe_load((RECIPES / "demo" / f"{method.replace('-', '_')}.yaml").read_text())
    for callback in recipe["trainer"]["callbacks"]:
        if callback["class_path"].endswith("LastCheckpoint"):
            callback["init_args"]["every_n_train_steps"] = 2
    file = shards.parent / f"{method}.yaml"
    file.write_text(yaml.safe_dump(recipe))
    given = _TRAINER | {f"model.{key}": value for key, value in SHAPES[method].items()}
    given |= {"data.shards": shards, "trainer.default_root_dir": out}
    return ["fit", "-c", str(file), *(f"--{key}={value}" for key, value in given.items())]


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return tiny_shards(tmp_path_factory.mktemp("shards"))


@pytest.fixture(scope="module")
def runs(shards, tmp_path_factory):
    """Finished runs, by method."""
    made = {}

    def run(method):
        if method not in made:
            made[method] = tmp_path_factory.mktemp("run") / method
            assert exit_code(arguments(method, shards, made[method])) == 0
        return made[method]

    return run


@pytest.mark.parametrize("method", METHODS)
def test_a_rival_trains_and_its_checkpoint_says_what_it_is(method, runs):
    out = runs(method)
    checkpoint, made = load_checkpoint(out / "last.ckpt"), method_named(method)
    assert checkpoint.info.method == method
    assert isinstance(checkpoint.network, made.network)
    assert type(checkpoint.info.model) is made.config
    assert checkpoint.info.model.patch_px == (16 if method == "ms-pie" else 32)
    record = json.loads((out / "run.json").read_text())
    known = {"method": method, "parameters": parameter_count(checkpoint.network), "global_step": STEPS}
    assert record.items() >= (known | {"status": "finished", "tile_exact": False, "halo_px": 0}).items()
    for name in ("loss", "loss_discriminator", "accuracy_real", "accuracy_fake", "gradient_norm_generator"):
        values = log_column(out, f"train/{name}")
        assert len(values) == STEPS
        assert all(math.isfinite(value) for value in values)
    assert all(value > 0 for value in log_column(out, "train/path_length"))


@pytest.mark.parametrize("method", METHODS)
def test_a_killed_run_ends_as_the_uninterrupted_one(method, runs, shards, tmp_path):
    given = arguments(method, shards, tmp_path / "run")
    assert in_child([*given, with_callback("SignalAt", step=3, number=int(signal.SIGKILL))]) == -signal.SIGKILL
    assert torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)["global_step"] < STEPS
    assert in_child(given) == 0
    whole, resumed = (torch.load(out / "last.ckpt", weights_only=True) for out in (runs(method), tmp_path / "run"))
    for name in ("state_dict", "current_model_state", "optimizer_states", "tera_mind", "global_step"):
        assert not differences(whole[name], resumed[name], name)
    losses = [log_column(out, "train/loss_discriminator") for out in (runs(method), tmp_path / "run")]
    assert losses[0] == losses[1]


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_a_trained_rival_generates_a_thousand_pixels(method, runs, tmp_path):
    brain = make_brain(tmp_path / "brain.zarr", shape=(2, 1, 1024, 1024), rows=20000)
    words = ["--checkpoint", runs(method) / "last.ckpt", "--brain", brain.path, "--out", tmp_path / "volume.zarr"]
    assert exit_code(["generate", *map(str, words), "--block", "64", "--device", "cpu", "--precision", "32"]) == 0
    image = Volume.open(tmp_path / "volume.zarr").image()
    assert image.shape == (2, 1, 1024, 1024)
    assert image.std() > 0.5


@pytest.mark.parametrize("method", METHODS)
def test_published_recipe_trains_with_the_published_losses(method):
    recipe = yaml.safe_load((RECIPES / f"{method.replace('-', '_')}.yaml").read_text())
    assert recipe["method"] == method
    published = {"learning_rate": 2e-3, "r1_gamma": 10.0, "path_weight": 2.0, "style_channels": 512}
    assert recipe["model"].items() >= published.items()
    sizes = {"channels": 6, "mapping_layers": 8}
    assert len(recipe["model"]["channels"]) == sizes["channels"]
    assert recipe["model"]["mapping_layers"] == sizes["mapping_layers"]
