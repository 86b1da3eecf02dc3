"""What the tests of COCO-GAN and InfinityGAN share: arguments of `fit`, modules, trainers, seams."""

from __future__ import annotations

import json
import math
import signal

import lightning
import numpy as np
import torch
import yaml
from tiny_training import ROOT, differences, exit_code, in_child, log_column, with_callback

from datamodules.pairs import PairsDataModule
from tera_mind.geometry import Box
from tera_mind.metrics.seam_figures import coherent_step
from tera_mind.metrics.seam_sums import SeamGrid, seam_cell_px, seam_sums

RECIPES = ROOT / "experiments" / "baselines"
STEPS = 4


def rival_arguments(name, shards, out, model, **more):
    """`fit` with the demo recipe of a method, a tiny network and a checkpoint every second step."""
    settings = yaml.safe_load((RECIPES / "demo" / f"{name}.yaml").read_text())
    for callback in settings["trainer"]["callbacks"]:
        if callback["class_path"].endswith("LastCheckpoint"):
            callback["init_args"]["every_n_train_steps"] = 2
    recipe = out.parent / f"{name}.yaml"
    recipe.write_text(yaml.safe_dump(settings))
    given = {
        "trainer.accelerator": "cpu", "trainer.max_steps": STEPS, "trainer.log_every_n_steps": 1,
        "trainer.limit_val_batches": 1, "trainer.val_check_interval": 2, "data.batch_size": 2,
        "data.steps_per_epoch": STEPS, "data.shards": shards, "trainer.default_root_dir": out,
    }  # fmt: skip
    given |= {f"model.{key}": value for key, value in model.items()} | more
    paints = {"class_path": "callbacks.sampling.DDIMSampling", "init_args": {"regions": 1, "steps": 2}}
    callbacks = f"--trainer.callbacks+={json.dumps(paints)}"
    return ["fit", "-c", str(recipe), *(f"--{key}={value}" for key, value in given.items()), callbacks]


def check_recipes(name, capsys):
    """Both files resolve to what is written in them, and belong to the method."""
    for path in (RECIPES / f"{name}.yaml", RECIPES / "demo" / f"{name}.yaml"):
        assert exit_code(["fit", "-c", str(path), "--print_config"]) == 0
        printed, written = yaml.safe_load(capsys.readouterr().out), yaml.safe_load(path.read_text())
        assert printed["method"] == written["method"] == name.replace("_", "-")
        for part in ("model", "data"):
            assert printed[part].items() >= written[part].items()


def check_run(name, shards, folder, model, logged, **more):
    """Trains, logs its health, and a run killed and resumed inside its epoch ends bit-equal; the folder of the run."""
    whole, killed = folder / "whole", folder / "killed"
    assert exit_code(rival_arguments(name, shards, whole, model, **more)) == 0
    for figure in ("loss", "loss_generator", "loss_discriminator", "accuracy_real", "accuracy_fake", *logged):
        assert all(map(math.isfinite, log_column(whole, f"train/{figure}")))
        assert len(log_column(whole, f"train/{figure}")) == STEPS
    for network in ("generator", "discriminator"):
        assert min(log_column(whole, f"train/gradient_norm_{network}")) > 0
    assert log_column(whole, "train/bad_steps") == [0] * STEPS
    assert len(log_column(whole, "val/loss")) == 2
    assert list(whole.rglob("*.png")), "validation paints"
    assert json.loads((whole / "run.json").read_text())["global_step"] == STEPS
    arguments = rival_arguments(name, shards, killed, model, **more)
    kill = with_callback("SignalAt", step=3, number=int(signal.SIGKILL), where="batch")
    assert in_child([*arguments, kill]) == -signal.SIGKILL
    assert torch.load(killed / "last.ckpt", weights_only=True)["global_step"] == 2
    assert in_child(arguments) == 0
    ends = [torch.load(out / "last.ckpt", weights_only=True) for out in (whole, killed)]
    for content in ends:
        content["callbacks"].pop("Timer", None)  # a clock
    assert not differences(*ends)
    return whole


def pairs(shards, patch_px, bin_px, batch_size=4):
    return PairsDataModule(str(shards), patch_px=patch_px, bin_px=bin_px, batch_size=batch_size)


def train(module, batches, folder, *callbacks):
    trainer = lightning.Trainer(
        accelerator="cpu", max_steps=len(batches), logger=False, enable_progress_bar=False, limit_val_batches=0,
        enable_model_summary=False, enable_checkpointing=False, default_root_dir=folder, callbacks=list(callbacks),
    )  # fmt: skip
    trainer.fit(module, torch.utils.data.DataLoader(batches, batch_size=None))
    return trainer


def seam(image, grid_px):
    """The coherent step at the lines of a grid, of an image (y, x) in [-1, 1]."""
    grey = np.clip(np.rint((image.detach().numpy() + 1) * 127.5), 0, 255).astype(np.uint8)
    box = Box(0, grey.shape[0], 0, grey.shape[1])
    grid = SeamGrid(box, grid_px, (0, 0), grid_px, seam_cell_px(box, grid_px))
    return coherent_step(seam_sums(grey, box, box, grid), grid, 100, 0)
