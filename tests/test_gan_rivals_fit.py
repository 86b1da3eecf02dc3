"""GANs train from their YAML files, within a budget, go on where they were killed, and their checkpoints generate."""

from __future__ import annotations

import json
import math
import signal

import numpy as np
import pytest
import torch
import yaml
from tiny_brain import GENES, make_brain
from tiny_training import ROOT, differences, exit_code, in_child, log_column, tiny_shards, with_callback

from tera_mind.formats.volume import Volume
from tera_mind.geometry import Box
from tera_mind.model.checkpoint import CheckpointInfo, checkpoint_content, load_checkpoint
from tera_mind.model.methods import method_named, parameter_count
from tera_mind.module.gan import PATH_EVERY, R1_EVERY

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
    "data.batch_size": 2, "data.steps_per_epoch": 4,
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


@pytest.mark.parametrize("method", ["ms-pie", pytest.param("sst-editing", marks=pytest.mark.slow)])
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


def test_a_budget_in_time_ends_the_run_with_its_steps_counted(shards, tmp_path):
    """Lightning counts the generator's steps alone, and the clock stops them."""
    out = tmp_path / "run"
    budget = ["--trainer.max_steps=-1", "--trainer.max_time=00:00:00:02", "--data.steps_per_epoch=50"]
    given = [*arguments("sst-editing", shards, out), *budget, "--trainer.val_check_interval=50"]
    assert exit_code(given) == 0
    record, content = json.loads((out / "run.json").read_text()), torch.load(out / "last.ckpt", weights_only=True)
    steps = record["global_step"]
    assert record["status"] == "finished"
    assert content["global_step"] == steps == len(log_column(out, "train/loss")) > 0
    taken = [state["state"][0]["step"].item() for state in content["optimizer_states"]]
    assert taken == [steps + math.ceil(steps / PATH_EVERY), steps + math.ceil(steps / R1_EVERY)]


@pytest.mark.parametrize("setting", ["gradient_clip_val=1.0", "accumulate_grad_batches=2"])
def test_what_steps_by_hand_do_not_take_is_refused_in_a_line(setting, shards, tmp_path, capsys):
    assert exit_code([*arguments("ms-pie", shards, tmp_path / "run"), f"--trainer.{setting}"]) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if "error" in line.lower() or "ms-pie" in line]
    assert any("ms-pie steps its two optimisers by hand" in line for line in said)


#: networks that take milliseconds, patches of 16 or 32 px in bins of 4 px
TINY = {
    "coco-gan": {"patch_px": 32, "latent_channels": 4, "channels": (8, 6, 4, 4), "discriminator_channels": (4, 4),
                 "spade_channels": 4},
    "infinity-gan": {"channels": (8, 6, 4), "local_channels": 4, "style_channels": 6, "mapping_layers": 1},
    "ms-pie": {"channels": (8, 6, 4), "position_channels": 8, "style_channels": 6, "mapping_layers": 1},
    "sst-editing": {"channels": (8, 6, 4), "style_channels": 6, "mapping_layers": 1, "drive_channels": 8},
    "ist-editing": {"channels": (8, 6, 4), "style_channels": 6, "mapping_layers": 1},
}  # fmt: skip


def made(method):
    """A network of random weights, none of them zero, whose images are not all black or white."""
    torch.manual_seed(4)
    kind = method_named(method)
    sizes = {"genes": len(GENES), "gene_sections": 1, "patch_px": 16, "bin_px": 4} | TINY[method]
    network = kind.network(kind.config(**sizes))
    for weight in network.parameters():
        if not weight.any():
            torch.nn.init.normal_(weight, std=0.3)
    return network.eval()


@pytest.mark.parametrize("method", TINY)
def test_a_checkpoint_of_a_gan_generates(method, tmp_path):
    """Through the command, in blocks of one patch and of many: the same where it says so."""
    network = made(method)
    ranges = {"DAPI": (0.0, 255.0), "PolyT": (0.0, 255.0)}
    info = CheckpointInfo(network.config, "x0", GENES, ("DAPI", "PolyT"), 0.4, ranges, method)
    torch.save(checkpoint_content(info, network), tmp_path / "made.ckpt")
    brain = make_brain(tmp_path / "brain.zarr", shape=(2, 1, 128, 128), rows=1500)
    images = []
    for block in (1, 8):
        out = tmp_path / f"{block}.zarr"
        words = ["--checkpoint", tmp_path / "made.ckpt", "--brain", brain.path, "--out", out, "--block", block]
        assert exit_code(["generate", *map(str, words), "--device", "cpu", "--precision", "32"]) == 0
        images.append(Volume.open(out).image().astype(int))
    assert images[0].std() > 3
    apart = np.abs(images[0] - images[1]).max()
    assert apart > 3 if method == "ms-pie" else apart <= 1  # whole patches of the others are the same in any block


@pytest.mark.parametrize("method", TINY)
def test_a_network_in_half_precision_paints_in_float32(method):
    network, bins = made(method), Box(0, 24, 0, 24)
    counts = torch.poisson(torch.full((1, len(GENES), 1, 24, 24), 0.5))
    noise = [torch.randn(1, plane.box.height, plane.box.width) for plane in network.noise_planes(bins)]
    exact = network.paint(counts, noise)
    narrow = network.to(torch.bfloat16).paint(counts, noise)
    assert narrow.dtype == torch.float32
    assert 0 < (narrow - exact).abs().mean() < 0.1 * exact.std()


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
