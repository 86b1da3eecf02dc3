"""Settings that make `tera-mind fit` take seconds, and what the tests of training share."""

from __future__ import annotations

import csv
import json
import os
import sys
import traceback
from pathlib import Path

import torch
import yaml
from tiny_brain import make_brain

from tera_mind.cli.main import main
from tera_mind.formats.shard_plan import plan_shards
from tera_mind.formats.shards import write_shards
from tera_mind.model.config import ModelConfig

ROOT = Path(__file__).resolve().parents[1]
RECIPE = ROOT / "experiments" / "demo.yaml"
#: the network of the tests: 16 px patches, two levels
SHAPE = {
    "base_channels": 8,
    "channel_mult": [1, 2],
    "res_blocks": 1,
    "time_channels": 16,
    "pyramid_channels": [8],
    "attention_px": 8,
    "gene_rank": 4,
    "margin_px": 4,
}
_OVERRIDES = {
    "trainer.accelerator": "cpu",
    "trainer.precision": "32-true",
    "trainer.max_steps": 4,
    "trainer.log_every_n_steps": 1,
    "trainer.limit_val_batches": 1,
    "trainer.val_check_interval": 2,
    "data.patch_px": 16,
    "data.bin_px": 4,
    "data.batch_size": 2,
    "data.steps_per_epoch": 2,
    "model.warmup_steps": 2,
    **{f"model.{name}": value for name, value in SHAPE.items()},
}


def tiny_shards(folder: Path, **brain) -> Path:
    """Shards of a random brain: training on the left, validation on the right."""
    made = make_brain(folder / "brain.zarr", **({"shape": (2, 2, 96, 128), "rows": 1500} | brain))
    plan = plan_shards([made], train=":,:60%", val=":,60%:", gene_sections=1, core_px=48, crop_px=32)
    return write_shards([made], folder / "shards", plan, shard_mb=1.0).folder


def fit_arguments(shards: Path, out: Path, recipe: Path = RECIPE, **more) -> list[str]:
    """Arguments after `fit`; keywords override settings, `__` for a dot."""
    given = _OVERRIDES | {"data.shards": shards, "trainer.default_root_dir": out}
    given |= {key.replace("__", "."): value for key, value in more.items()}
    return ["-c", str(recipe), *(f"--{key}={value}" for key, value in given.items())]


def tiny_recipe(folder: Path, **callbacks) -> Path:
    """The recipe with other settings for some callbacks, by the name of their class."""
    settings = yaml.safe_load(RECIPE.read_text())
    for callback in settings["trainer"]["callbacks"]:
        name = callback["class_path"].rpartition(".")[2]
        callback["init_args"] = callbacks.get(name, callback.get("init_args", {}))
    (folder / "recipe.yaml").write_text(yaml.safe_dump(settings))
    return folder / "recipe.yaml"


def exit_code(arguments: list[str]) -> int:
    """What the shell would see."""
    try:
        return main(arguments)
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else int(error.code is not None)


def log_column(folder: Path, name: str) -> list[float]:
    """Values of one column of the CSV log, empty cells left out."""
    with (folder / "log" / "metrics.csv").open() as file:
        return [float(row[name]) for row in csv.DictReader(file) if row[name]]


def tiny_config(**more) -> ModelConfig:
    """The network of the tests for the genes and stains of `make_brain`."""
    shape = {key: tuple(value) if isinstance(value, list) else value for key, value in SHAPE.items()}
    return ModelConfig(**({"genes": 5, "stains": 2, "gene_sections": 1, "patch_px": 16, "bin_px": 4} | shape | more))


def in_child(arguments: list[str]) -> int:
    """Run the command in a forked process, without a second start of Python; its exit code, or minus the signal."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        code = 70
        try:
            code = exit_code(arguments)
        except BaseException:  # noqa: BLE001 (the child must not run the parent's tests; the test sees the code)
            traceback.print_exc()
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def with_callback(name: str, **init_args) -> str:
    """Argument that adds a callback of `step_recorder`."""
    return f"--trainer.callbacks+={json.dumps({'class_path': f'step_recorder.{name}', 'init_args': init_args})}"


def differences(one, other, path="") -> list[str]:
    """Where two checkpoints differ, bit by bit, in anything but paths and clocks."""
    if isinstance(one, dict) and isinstance(other, dict):
        if one.keys() != other.keys():
            return [f"{path}: keys {sorted(map(str, one.keys() ^ other.keys()))}"]
        return [line for key in one for line in differences(one[key], other[key], f"{path}/{key}")]
    if isinstance(one, list | tuple) and isinstance(other, list | tuple) and len(one) == len(other):
        pairs = enumerate(zip(one, other, strict=True))
        return [line for i, (a, b) in pairs for line in differences(a, b, f"{path}/{i}")]
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return [] if torch.equal(one, other) else [f"{path}: tensors"]
    return [] if one == other else [f"{path}: {one!r} and {other!r}"]
