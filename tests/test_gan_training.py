"""Training of a GAN: its steps, what a resumed run repeats, two processes, and that it learns."""

from __future__ import annotations

import json
import math
import signal

import lightning
import pytest
import torch
import yaml
from lightning.pytorch.plugins import MixedPrecision
from test_ddp import ONE, TWO, fit_twofold, records
from tiny_training import (
    ROOT,
    differences,
    exit_code,
    fit_arguments,
    in_child,
    log_column,
    tiny_shards,
    with_callback,
)
from torch.utils.flop_counter import FlopCounterMode

from callbacks.guard import NonFiniteGuard
from callbacks.throughput import training_flops
from datamodules.pairs import PairsDataModule
from tera_mind.baselines.ist_editing import IstEditing
from tera_mind.errors import InputError
from tera_mind.model.checkpoint import load_checkpoint
from tera_mind.module.gan import PATH_EVERY, R1_EVERY
from tera_mind.module.ist_editing import IstEditingModule

RECIPES = ROOT / "experiments" / "baselines"
DEMO = RECIPES / "demo" / "ist_editing.yaml"
#: keys of the diffusion networks that `fit_arguments` sets, and what a GAN has instead
SHAPE = {"channels": [8, 6], "style_channels": 8, "mapping_layers": 2, "discriminator_genes": 2, "path_weight": 2.0}
STEPS = 5


def gan_arguments(shards, out, *, recipe=DEMO, **more):
    """Arguments after `fit`: images of 16 px, 2 px bins, crops of 32 px."""
    settings = {
        "data__patch_px": 16,
        "data__bin_px": 2,
        "trainer__max_steps": STEPS,
        "data__steps_per_epoch": 4,  # killed and resumed inside an epoch
        **{f"model__{name}": value for name, value in SHAPE.items()},
    }
    arguments = fit_arguments(shards, out, recipe, **(settings | more))
    known = {f"--model.{name}=" for name in (*SHAPE, "learning_rate", "r1_gamma", "seed")}
    return [one for one in arguments if not one.startswith("--model.") or one.startswith(tuple(known))]


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return tiny_shards(tmp_path_factory.mktemp("shards"))


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    """The demo's with a checkpoint every second step."""
    settings = yaml.safe_load(DEMO.read_text())
    for callback in settings["trainer"]["callbacks"]:
        if callback["class_path"].endswith("LastCheckpoint"):
            callback["init_args"]["every_n_train_steps"] = 2
    file = tmp_path_factory.mktemp("recipe") / "recipe.yaml"
    file.write_text(yaml.safe_dump(settings))
    return file


@pytest.fixture(scope="module")
def whole(shards, recipe, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole")
    assert exit_code(["fit", *gan_arguments(shards, out, recipe=recipe)]) == 0
    return out


@pytest.mark.parametrize("recipe", ["ist_editing", "demo/ist_editing"])
def test_recipes_resolve(recipe, capsys):
    assert exit_code(["fit", "-c", str(RECIPES / f"{recipe}.yaml"), "--print_config"]) == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    written = yaml.safe_load((RECIPES / f"{recipe}.yaml").read_text())
    assert printed["model"].items() >= written["model"].items()
    assert printed["method"] == "ist-editing"


def test_a_step_is_the_generators(whole):
    content = torch.load(whole / "last.ckpt", weights_only=True)
    assert content["global_step"] == STEPS
    steps = [state["state"][0]["step"].item() for state in content["optimizer_states"]]
    assert steps == [STEPS + math.ceil(STEPS / PATH_EVERY), STEPS + math.ceil(STEPS / R1_EVERY)]
    for state, every in zip(content["optimizer_states"], (PATH_EVERY, R1_EVERY), strict=True):
        share = every / (every + 1)
        assert state["param_groups"][0]["lr"] == pytest.approx(2e-3 * share)
        assert state["param_groups"][0]["betas"] == pytest.approx((0, 0.99**share))
    for name in ("loss", "loss_generator", "loss_discriminator", "accuracy_real", "accuracy_fake"):
        assert len(log_column(whole, f"train/{name}")) == STEPS
        assert len(log_column(whole, f"val/{name}")) == 2
    assert all(
        norm > 0 for name in ("generator", "discriminator") for norm in log_column(whole, f"train/gradient_norm_{name}")
    )
    assert len(set(log_column(whole, "train/path_length"))) == math.ceil(STEPS / PATH_EVERY)
    assert log_column(whole, "train/r1")[0] > 0
    assert all(0 <= share <= 1 for share in log_column(whole, "train/accuracy_real"))
    record = json.loads((whole / "run.json").read_text())
    assert (record["method"], record["status"], record["global_step"]) == ("ist-editing", "finished", STEPS)


def test_checkpoint_holds_the_averaged_generator(whole):
    checkpoint = load_checkpoint(whole / "last.ckpt")
    assert isinstance(checkpoint.network, IstEditing)
    assert (checkpoint.info.method, checkpoint.info.model.patch_px, checkpoint.info.model.halo_px) == (
        "ist-editing",
        8,
        8,
    )
    content = torch.load(whole / "last.ckpt", weights_only=True)
    average, raw = content["state_dict"], content["current_model_state"]
    moved = [name for name in average if name.startswith("network.") and not torch.equal(average[name], raw[name])]
    assert "network.synthesis.first.weight" in moved
    for name, value in checkpoint.network.state_dict().items():
        assert torch.equal(value, average[f"network.{name}"])


@pytest.mark.parametrize(("step", "where"), [(3, "batch"), pytest.param(4, "validation", marks=pytest.mark.slow)])
def test_killed_and_resumed_is_bit_equal(step, where, whole, shards, recipe, tmp_path):
    arguments = ["fit", *gan_arguments(shards, tmp_path, recipe=recipe)]
    kill = with_callback("SignalAt", step=step, number=signal.SIGKILL, where=where)
    assert in_child([*arguments, kill]) == -signal.SIGKILL
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] < STEPS
    assert in_child(arguments) == 0
    ends = [torch.load(folder / "last.ckpt", weights_only=True) for folder in (whole, tmp_path)]
    for content in ends:
        content["callbacks"].pop("Timer", None)  # a clock
    assert not differences(*ends)
    logs = [(folder / "log" / "metrics.csv").read_text() for folder in (whole, tmp_path)]
    assert logs[0] == logs[1]


def test_two_processes_do_what_one_does(tmp_path):
    """Minibatch statistics are of a process, so losses differ a little; weights of the two processes not at all."""
    shards, made = tiny_shards(tmp_path), {}
    for ranks, more in ((2, TWO), (1, ONE)):
        out = tmp_path / f"run-{ranks}"
        out.mkdir()
        settings = {"trainer__limit_val_batches": 0, "data__steps_per_epoch": 20}
        arguments = [*gan_arguments(shards, out, **settings, **more), with_callback("StepRecorder", folder=str(out))]
        said, code = fit_twofold(arguments, tmp_path) if ranks == 2 else ("", exit_code(["fit", *arguments]))
        assert code == 0, said
        made[ranks] = records(out, ranks)
    assert [record["world"] for record in made[2]] == [2, 2]
    assert [record["steps"] for record in made[2]] == [STEPS, STEPS]
    assert made[2][0]["weights"] == made[2][1]["weights"]
    assert made[2][0]["losses"] != made[2][1]["losses"]
    mean = torch.tensor([record["losses"] for record in made[2]]).mean(0)
    torch.testing.assert_close(mean, torch.tensor(made[1][0]["losses"]), rtol=0.1, atol=0.0)


def module_of(shards, **settings):
    data = PairsDataModule(str(shards), patch_px=16, bin_px=2, batch_size=4)
    torch.manual_seed(0)
    return data, IstEditingModule(data.inputs, **(SHAPE | settings))


def trained(module, batches, folder, *callbacks, precision="32-true", plugin=None):
    trainer = lightning.Trainer(
        accelerator="cpu", precision=None if plugin else precision, plugins=plugin, max_steps=len(batches),
        logger=False, enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
        default_root_dir=folder, callbacks=list(callbacks),
    )  # fmt: skip
    trainer.fit(module, torch.utils.data.DataLoader(batches, batch_size=None))
    return trainer


def test_a_step_that_is_not_finite_changes_nothing(shards, tmp_path):
    data, module = module_of(shards)
    batch = next(iter(data.train_dataloader()))
    before = {name: value.clone() for name, value in module.state_dict().items()}
    batch["genes"][0, 0, 0, 7, 7] = math.inf  # a fake that is not finite: both networks suffer
    guard = NonFiniteGuard()
    trainer = trained(module, [batch], tmp_path, guard)
    assert trainer.global_step == 1
    changed = {name for name, value in module.state_dict().items() if not torch.equal(value, before[name])}
    assert all(name.startswith("discriminator.") for name in changed)  # its R1 is of the real image: finite
    assert not trainer.optimizers[0].state
    samples = json.loads((tmp_path / "bad_steps" / "step=0-rank=0.json").read_text())["samples"]
    assert samples[0]["loss"] == "nan"
    assert samples[0]["number"] == batch["number"][0]


@pytest.mark.parametrize("precision", [pytest.param("32-true", marks=pytest.mark.slow), "bf16-mixed"])
def test_a_generator_learns_what_its_discriminator_sees(shards, precision, tmp_path):
    """Real images of one grey: the generator must come to paint it, from images that were not."""
    data, module = module_of(shards, r1_gamma=1.0, path_weight=0.0, learning_rate=5e-3)
    batch = next(iter(data.train_dataloader()))
    batch["image"] = torch.full_like(batch["image"], -0.6)
    numbers = torch.arange(4)

    def distance():
        module.eval()
        with torch.no_grad():
            return (module.images(batch["genes"] + 0.5, numbers, 9) + 0.6).abs().mean().item()

    before = distance()
    module.train()
    batches = [batch | {"number": numbers + 4 * step} for step in range(40)]
    trainer = trained(module, batches, tmp_path, precision=precision)
    assert trainer.global_step == 40
    assert all(weight.dtype == torch.float32 for weight in module.parameters())
    assert distance() < 0.5 * before


def test_norms_in_the_log_are_not_multiplied_by_the_scale_of_fp16(shards, tmp_path):
    """As on a GPU: half precision, and a scaler of gradients whose factor is no matter of the log."""
    norms = []
    for plugin in (None, MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=1024.0))):
        data, module = module_of(shards)
        batch = next(iter(data.train_dataloader()))
        seen = []
        update = module.update
        module.update = lambda *given, update=update, seen=seen, **more: seen.append(update(*given, **more)) or seen[-1]
        trained(module, [batch], tmp_path, plugin=plugin)
        norms.append([float(norm) for norm in seen])
    assert len(norms[0]) == 4  # both networks and both regularisers
    assert norms[1] == pytest.approx(norms[0], rel=0.5)


def test_training_draws_are_keyed_by_the_number_of_the_sample(shards):
    data, module = module_of(shards)
    batch = next(iter(data.train_dataloader()))
    counts = batch["genes"]
    all_four = module.images(counts, torch.tensor([7, 8, 9, 10]), 3)
    torch.testing.assert_close(module.images(counts[2:3], torch.tensor([9]), 3), all_four[2:3], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(module.images(counts[2:3], torch.tensor([9]), 4), all_four[2:3], atol=1e-3)
    jitter = module._jitter(batch)
    assert 0 <= jitter.min() < 0.01 < 0.99 < jitter.max() <= 1
    assert abs(jitter.mean() - 0.5) < 0.01


def test_an_image_is_the_middle_of_the_crop(shards):
    data, module = module_of(shards)
    batch = next(iter(data.train_dataloader()))
    real, counts, own = module._pairs(batch, torch.zeros_like(batch["genes"]))
    assert torch.equal(real, batch["image"][:, :, 0, 8:24, 8:24])
    assert torch.equal(counts, batch["genes"])
    assert torch.equal(own, batch["genes"][..., 4:12, 4:12])
    assert module.images(counts, batch["number"], 3).shape == real.shape


def test_crops_without_room_for_the_halo_are_refused(shards):
    data = PairsDataModule(str(shards), patch_px=16, bin_px=4)
    with pytest.raises(InputError, match=r"more than 16 with bins of 4 px, got 16"):
        IstEditingModule(data.inputs, channels=[8, 8, 8])


def test_work_of_a_step_is_counted_from_shapes(shards):
    """Twice the widths, about four times the work; forward and backward of both networks."""
    flops = []
    for width in (16, 32):
        data, module = module_of(shards, channels=[width, width])
        batch = next(iter(data.train_dataloader()))
        flops.append(training_flops(module, batch))
    assert 3 < flops[1] / flops[0] < 4
    counter = FlopCounterMode(display=False)
    with counter:
        module.images(batch["genes"], batch["number"], 3)
    assert flops[1] > 3 * counter.get_total_flops()
