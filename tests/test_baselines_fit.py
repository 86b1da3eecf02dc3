"""Every baseline trains from its YAML file, goes on where it was stopped, and its checkpoint generates."""

from __future__ import annotations

import importlib
import json
import math
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml
from tiny_brain import GENES, make_brain
from tiny_training import ROOT, differences, exit_code, in_child, log_column, tiny_shards, with_callback

from tera_mind.cli.fit import method_asked
from tera_mind.cli.sweep_check import check_commands, check_metrics
from tera_mind.errors import FormatError, PanelMismatchError
from tera_mind.formats.volume import Volume
from tera_mind.model.checkpoint import CheckpointInfo, checkpoint_content, load_checkpoint
from tera_mind.model.methods import method_named, parameter_count
from tera_mind.module import MODULES
from tera_mind.sweep.definition import read_sweep
from tera_mind.sweep.plan import make_plan

FOLDER = ROOT / "experiments" / "baselines"
SWEEP = FOLDER / "demo" / "compare.yaml"
RECIPES = [path for path in sorted(FOLDER.rglob("*.yaml")) if path.name not in {"compare.yaml", "same_budget.yaml"}]
OWN = ("patch-dm", "sinfusion", "plain-ddpm", "regression")
_UNET = {
    "base_channels": 8, "channel_mult": [1, 2], "res_blocks": 1, "time_channels": 16, "pyramid_channels": [8],
    "attention_px": 8, "dropout": 0.1,
}  # fmt: skip
SHAPES = {
    "patch-dm": _UNET,
    "sinfusion": {"width": 8, "blocks": 4, "time_channels": 16, "pyramid_channels": [8], "halo_px": 20},
    "plain-ddpm": _UNET,
    "regression": _UNET,
}
_TRAINER = {
    "trainer.accelerator": "cpu", "trainer.max_steps": 4, "trainer.log_every_n_steps": 1,
    "trainer.limit_val_batches": 1, "trainer.val_check_interval": 2, "data.patch_px": 16, "data.bin_px": 4,
    "data.batch_size": 2, "data.steps_per_epoch": 2, "model.warmup_steps": 2,
}  # fmt: skip


def arguments(method, shards, out, **more):
    """`fit` with the demo recipe of a method and a network that takes milliseconds."""
    recipe = FOLDER / "demo" / f"{method.replace('-', '_')}.yaml"
    given = _TRAINER | {f"model.{key}": value for key, value in SHAPES[method].items()}
    given |= {"data.shards": shards, "trainer.default_root_dir": out} | more
    return ["fit", "-c", str(recipe), *(f"--{key}={value}" for key, value in given.items())]


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Slabs wide enough to paint validation tissue with a halo."""
    return tiny_shards(tmp_path_factory.mktemp("shards"))


@pytest.fixture(scope="module")
def runs(shards, tmp_path_factory):
    """Finished runs of four steps, by method, that paint what they validate."""
    made = {}

    def run(method):
        if method not in made:
            made[method] = tmp_path_factory.mktemp("run") / method
            paints = {"class_path": "callbacks.sampling.DDIMSampling", "init_args": {"regions": 1, "steps": 2}}
            measures = {"class_path": "callbacks.throughput.Throughput"}
            added = [f"--trainer.callbacks+={json.dumps(one)}" for one in (paints, measures)]
            assert exit_code([*arguments(method, shards, made[method]), *added]) == 0
        return made[method]

    return run


slow = pytest.mark.slow


@pytest.mark.parametrize(
    "method", [pytest.param(name, marks=[slow] if name in {"patch-dm", "plain-ddpm"} else []) for name in OWN]
)
def test_a_baseline_trains_and_its_checkpoint_says_what_it_is(method, runs):
    out = runs(method)
    checkpoint = load_checkpoint(out / "last.ckpt")
    made = method_named(method)
    assert checkpoint.info.method == method
    assert isinstance(checkpoint.network, made.network)
    assert type(checkpoint.info.model) is made.config
    assert checkpoint.info.genes == GENES
    assert checkpoint.info.model.patch_px == (16 if method in {"patch-dm", "sinfusion"} else 32)
    assert not checkpoint.network.training
    record = json.loads((out / "run.json").read_text())
    network = checkpoint.network
    known = {"method": method, "parameters": parameter_count(network), "global_step": 4, "status": "finished"}
    known |= {"tile_exact": network.tile_exact, "halo_px": network.halo_px}
    assert record.items() >= known.items()
    for column, rows in {"train/loss": 4, "val/loss": 2, "train/learning_rate": 4, "train/tflops": 4}.items():
        values = log_column(out, column)
        assert len(values) == rows
        assert all(math.isfinite(value) and value > 0 for value in values)
    assert len(list((out / "samples").glob("step=*.png"))) == 2


@slow
def test_another_method_cannot_go_on_in_a_run(runs, shards, capsys):
    out = runs("sinfusion")
    assert exit_code(arguments("regression", shards, out)) == 2
    assert "method sinfusion there, regression now" in capsys.readouterr().err


def test_weights_of_another_method_are_refused(runs):
    info = load_checkpoint(runs("sinfusion") / "last.ckpt").info
    with pytest.raises(PanelMismatchError, match="holds a regression network, the settings ask for sinfusion"):
        replace(info, method="regression").require_same_inputs(info)


@slow
@pytest.mark.parametrize("method", ["patch-dm", "sinfusion"])
def test_a_killed_run_ends_as_the_uninterrupted_one(method, shards, tmp_path):
    """Killed in the third step; the checkpoint of the second is what the same command goes on from."""
    every = {"trainer.max_steps": 4, "trainer.limit_val_batches": 0, "data.steps_per_epoch": 4}
    recipe = yaml.safe_load((FOLDER / "demo" / f"{method.replace('-', '_')}.yaml").read_text())
    for callback in recipe["trainer"]["callbacks"]:
        if callback["class_path"].endswith("LastCheckpoint"):
            callback["init_args"] = {"every_n_train_steps": 2}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    given = {out: arguments(method, shards, tmp_path / out, **every) for out in ("whole", "killed")}
    for words in given.values():
        words[2] = str(tmp_path / "recipe.yaml")
    assert exit_code(given["whole"]) == 0
    killed = in_child([*given["killed"], with_callback("SignalAt", step=3, number=int(signal.SIGKILL))])
    assert killed == -signal.SIGKILL
    assert torch.load(tmp_path / "killed" / "last.ckpt", weights_only=True)["global_step"] == 2
    assert exit_code(given["killed"]) == 0
    whole, resumed = (torch.load(tmp_path / out / "last.ckpt", weights_only=True) for out in given)
    assert whole["global_step"] == resumed["global_step"] == 4
    for name in ("state_dict", "current_model_state", "optimizer_states", "tera_mind"):
        assert not differences(whole[name], resumed[name], name)


def saved(method, path, **shape):
    """A checkpoint of random weights."""
    torch.manual_seed(0)
    made = method_named(method)
    sizes = {key: tuple(value) if isinstance(value, list) else value for key, value in SHAPES[method].items()}
    config = made.config(**({"genes": len(GENES), "gene_sections": 1, "patch_px": 32, "bin_px": 8} | sizes | shape))
    network = made.network(config)
    for weight in network.parameters():
        if not weight.any():
            torch.nn.init.normal_(weight, std=0.1)
    ranges = {"DAPI": (0.0, 255.0), "PolyT": (0.0, 255.0)}
    prediction = "x0" if method == "regression" else "v"
    info = CheckpointInfo(config, prediction, GENES, ("DAPI", "PolyT"), 0.4, ranges, method)
    torch.save(checkpoint_content(info, network), path)
    return path


@slow
@pytest.mark.parametrize("method", OWN)
def test_a_checkpoint_generates_a_thousand_pixels_in_any_tiles(method, tmp_path):
    """1,024 x 1,024 px through the command; what is exact comes out the same to a grey level whatever the block."""
    brain = make_brain(tmp_path / "brain.zarr", shape=(2, 1, 1024, 1024), rows=20000)
    shape = {"halo_px": 40} if method == "sinfusion" else {}
    path = saved(method, tmp_path / "made.ckpt", **shape)
    images = []
    for block in (3, 32):
        out = tmp_path / f"{block}.zarr"
        words = ["--checkpoint", path, "--brain", brain.path, "--out", out, "--block", block, "--steps", "2"]
        assert exit_code(["generate", *map(str, words), "--device", "cpu", "--precision", "32"]) == 0
        images.append(Volume.open(out).image())
    assert images[0].shape == (2, 1, 1024, 1024)
    assert images[0].std() > 3
    apart = np.abs(images[0].astype(int) - images[1].astype(int))
    assert apart.max() <= 1
    assert (apart > 0).mean() < 1e-3


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: str(path.relative_to(FOLDER)))
def test_every_recipe_of_a_baseline_is_complete(path):
    """Its method, a callback for each of what runs share, and no key that the method does not have."""
    recipe = yaml.safe_load(path.read_text())
    assert recipe["method"] in MODULES
    names = {callback["class_path"].rpartition(".")[2] for callback in recipe["trainer"]["callbacks"]}
    assert names >= {"LastCheckpoint", "NonFiniteGuard", "StopOnSignal", "RunRecord"}
    assert path.parent == FOLDER / "demo" or (FOLDER / "demo" / path.name).is_file()
    assert recipe["trainer"]["default_root_dir"].endswith(path.stem)


@slow
@pytest.mark.parametrize("path", RECIPES, ids=lambda path: str(path.relative_to(FOLDER)))
def test_every_recipe_of_a_baseline_resolves(path, capsys):
    assert exit_code(["fit", "-c", str(path), "--print_config"]) == 0
    printed, written = yaml.safe_load(capsys.readouterr().out), yaml.safe_load(path.read_text())
    assert printed["method"] == written["method"]
    assert printed["model"].items() >= written["model"].items()
    assert printed["data"].items() >= written["data"].items()


@pytest.fixture
def comparison(tmp_path):
    return make_plan(read_sweep(SWEEP, {"recipes": str(FOLDER / "demo")}), tmp_path)


def test_the_comparison_is_of_all_methods_alike(comparison):
    sweep = comparison.sweep
    recipes = [yaml.safe_load((FOLDER / "demo" / f"{point['method']}.yaml").read_text()) for point in sweep.points]
    assert {recipe["method"] for recipe in recipes} == set(MODULES)
    assert len({recipe["data"]["bin_px"] for recipe in recipes}) == 1
    assert len(comparison.of_stage("shards")) == len(comparison.of_stage("brain")) == len(sweep.seeds) == 1
    budget = str(FOLDER / "demo" / "same_budget.yaml")
    for task, recipe in zip(comparison.of_stage("fit"), recipes, strict=True):
        assert [task.words[i + 1] for i, word in enumerate(task.words) if word == "-c"][1:] == [budget]
        assert task.words[2].endswith(f"demo/{recipe['trainer']['default_root_dir'].rpartition('/')[2]}.yaml")
    check_metrics(sweep)


@slow
def test_the_comparison_can_run(comparison):
    for run in comparison.runs:
        check_commands(comparison.of_run(run))


def test_the_method_is_the_last_that_is_asked_for(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text("method: sinfusion\nmodel: {width: 8}\n")
    assert method_asked([], MODULES) == "tera-mind"
    assert method_asked(["-c", str(file)], MODULES) == "sinfusion"
    assert method_asked([f"--config={file}", "--method", "patch-dm"], MODULES) == "patch-dm"
    assert method_asked(["--method=regression", "-c", str(file)], MODULES) == "sinfusion"
    assert method_asked(["-c", "absent.yaml", "--method=coco"], MODULES) == "tera-mind"


@slow
def test_an_unknown_method_is_refused_with_those_there_are(shards, tmp_path, capsys):
    assert exit_code([*arguments("sinfusion", shards, tmp_path), "--method=coco"]) == 2
    said = capsys.readouterr().err
    assert "coco" in said
    assert "plain-ddpm" in said


def test_a_checkpoint_without_a_method_is_tera_minds_and_an_unknown_one_is_refused(tmp_path):
    path = saved("plain-ddpm", tmp_path / "made.ckpt")
    content = torch.load(path, weights_only=True)
    torch.save(content | {"tera_mind": content["tera_mind"] | {"method": "coco"}}, path)
    with pytest.raises(FormatError, match=r"made.ckpt: unknown method 'coco'; this release knows tera-mind, "):
        load_checkpoint(path)
    del content["tera_mind"]["method"]  # as before there were others; these weights are none of Tera-MIND's
    torch.save(content, path)
    with pytest.raises(FormatError, match="do not fit its own description"):
        load_checkpoint(path)


@slow
def test_the_benchmark_measures_every_kind_of_method(capsys, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    baselines = importlib.import_module("baselines")
    kinds = ("tera_mind", "sinfusion", "plain_ddpm", "regression", "coco_gan", "infinity_gan", "ms_pie")
    assert set(baselines.METHODS) == {path.stem for path in RECIPES}
    assert baselines.main(["--tiny", "--device", "cpu", "--methods", *kinds]) == 0
    result = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert result["benchmark"] == "baselines"
    assert result["rows"].keys() == set(kinds)
    for row in result["rows"].values():
        assert min(row["train_s"], row["picture_s"], row["parameters"]) > 0
        assert row["train_gb"] >= 0
    rivals = min(result["rows"][name]["picture_s"] for name in ("sinfusion", "plain_ddpm"))
    assert result["ratio"] == pytest.approx(result["rows"]["tera_mind"]["picture_s"] / rivals)
