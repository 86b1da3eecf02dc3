"""Training: recipes load, overrides arrive, checkpoints hold all of it, interrupted runs go on, the loss falls."""

from __future__ import annotations

import functools
import json

import lightning
import pytest
import torch
import wandb
import yaml
from lightning.pytorch.callbacks import Timer
from tiny_brain import GENES
from tiny_training import ROOT, SHAPE, exit_code, fit_arguments, in_child, log_column, tiny_config, tiny_shards

import tera_mind
from callbacks.checkpoint import BestCheckpoints, LastCheckpoint
from callbacks.ema import WarmupEMA
from datamodules.pairs import PairsDataModule
from tera_mind.errors import InputError
from tera_mind.model.checkpoint import CheckpointInfo, checkpoint_content, load_checkpoint
from tera_mind.model.unet import GeneMorphUNet
from tera_mind.module import GeneMorphModule

PAPER = ROOT / "experiments" / "paper"
ELSEWHERE = {ROOT / "experiments" / "ablations", ROOT / "experiments" / "baselines"}
#: files given together, later ones on top; sweeps are read by another command, baselines have a test of their own
#: sweeps and what they put on top of recipes: tests/test_comparison.py
ELSEWHERE |= set((ROOT / "experiments").glob("comparison*.yaml"))
RECIPES = {path.stem: [path] for path in sorted((ROOT / "experiments").glob("*.yaml")) if path not in ELSEWHERE}
RECIPES |= {"main": [PAPER / "main.yaml"]}
RECIPES |= {path.stem: [PAPER / "main.yaml", path] for path in sorted(PAPER.glob("supp*.yaml"))}


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return tiny_shards(tmp_path_factory.mktemp("shards"))


@pytest.fixture(scope="module")
def large_shards(tmp_path_factory):
    """Crops of 128 px, for the recipes as they stand."""
    from tiny_brain import make_brain

    from tera_mind.formats.shard_plan import plan_shards
    from tera_mind.formats.shards import write_shards

    folder = tmp_path_factory.mktemp("large")
    brain = make_brain(folder / "brain.zarr", shape=(2, 4, 160, 160), rows=100)
    return write_shards([brain], folder / "shards", plan_shards([brain], gene_sections=4, core_px=128)).folder


@pytest.fixture(scope="module")
def run(shards, tmp_path_factory):
    """A finished run of two epochs of two steps."""
    out = tmp_path_factory.mktemp("run") / "first"
    assert exit_code(["fit", *fit_arguments(shards, out, model__decay="constant")]) == 0
    return out


def module_of(shards, **settings):
    data = PairsDataModule(str(shards), patch_px=16, bin_px=4, batch_size=1)
    return GeneMorphModule(data.inputs, **(SHAPE | {"dropout": 0.0} | settings))


def test_no_recipe_is_left_out():
    listed = {path for paths in RECIPES.values() for path in paths}
    found = {path for path in (ROOT / "experiments").rglob("*.yaml") if not ELSEWHERE & {path, *path.parents}}
    assert listed == found


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_loads_and_instantiates(recipe, large_shards, tmp_path, capsys, monkeypatch):
    assert yaml.safe_load(RECIPES[recipe][-1].read_text())["trainer"]["default_root_dir"].endswith(recipe)
    arguments = [part for path in RECIPES[recipe] for part in ("-c", str(path))]
    arguments += [f"--data.shards={large_shards}", f"--trainer.default_root_dir={tmp_path}"]
    assert exit_code(["fit", *arguments, "--print_config"]) == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    written = yaml.safe_load(RECIPES[recipe][0].read_text())
    assert printed["model"].items() >= {k: v for k, v in written["model"].items() if k != "init_from"}.items()
    logger = printed["trainer"]["logger"][0]["init_args"]
    assert str(tmp_path) in {logger["save_dir"], printed["trainer"]["default_root_dir"]}

    seen = {}

    @functools.wraps(lightning.Trainer.fit)  # the command line reads its options off the signature
    def fit(self, model, **more):
        seen.update(trainer=self, model=model)

    monkeypatch.setattr(lightning.Trainer, "fit", fit)
    arguments += ["--trainer.accelerator=cpu", "--trainer.precision=32-true"]
    with torch.device("meta"):  # no memory, no initial weights
        assert exit_code(["fit", *arguments]) == 0
    assert seen["model"].info.model.genes == len(GENES)
    assert seen["model"].info.model.gene_sections == 4
    assert any(isinstance(callback, LastCheckpoint) for callback in seen["trainer"].callbacks)


def test_a_run_leaves_checkpoint_log_and_settings(run, shards):
    checkpoint = load_checkpoint(run / "last.ckpt")
    data = PairsDataModule(str(shards), patch_px=16, bin_px=4)
    info = checkpoint.info
    assert info.genes == data.inputs.genes
    assert info.stains == ("DAPI", "PolyT")
    assert (info.pixel_um, info.prediction) == (0.4, "v")
    assert info.intensity_range == data.inputs.intensity_range
    assert info.model == tiny_config(dropout=0.0, count_transform="log1p", gene_residual=True)
    assert len(log_column(run, "train/loss")) == 4
    assert len(log_column(run, "val/loss")) == 2
    assert log_column(run, "train/learning_rate") == pytest.approx([0.0005, 0.001, 0.001, 0.001])
    saved = yaml.safe_load((run / "log" / "config.yaml").read_text())
    assert saved["data"]["patch_px"] == 16


def test_a_run_says_what_it_was_made_with(run, shards):
    record = json.loads((run / "run.json").read_text())
    manifest = PairsDataModule(str(shards), patch_px=16, bin_px=4).manifest
    known = {
        "format": "run",
        "version": 1,
        "method": "tera-mind",
        "sections": 1,
        "patch_px": 16,
        "steps": 4,
        "genes": 5,
    }
    known |= {"seed": 0, "status": "finished", "global_step": 4, "data_fingerprint": manifest.fingerprint}
    assert record.items() >= known.items()
    assert record["code_version"].startswith(tera_mind.__version__)
    assert record["started"] <= record["ended"]
    logged = yaml.safe_load((run / "log" / "hparams.yaml").read_text())
    assert logged["data_fingerprint"] == manifest.fingerprint


def test_checkpoint_holds_the_average_and_the_raw_weights(run):
    content = torch.load(run / "last.ckpt", weights_only=True)
    average, raw = content["state_dict"], content["current_model_state"]
    assert content["global_step"] == 4
    assert average.keys() == raw.keys()
    assert any(not torch.equal(average[name], raw[name]) for name in average)
    loaded = load_checkpoint(run / "last.ckpt").network.state_dict()
    for name, value in loaded.items():
        torch.testing.assert_close(value, average[f"network.{name}"], rtol=0, atol=0)


def test_an_override_reaches_logger_and_checkpoint(shards, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "elsewhere"
    assert exit_code(["fit", *fit_arguments(shards, out, trainer__max_steps=1, trainer__limit_val_batches=0)]) == 0
    assert (out / "last.ckpt").is_file()
    assert (out / "log" / "metrics.csv").is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["elsewhere"]


class Descent(lightning.LightningModule):
    """One weight, 0 at first, that falls by one a step."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))

    def training_step(self, batch, batch_idx):
        return self.weight.sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1.0)

    def train_dataloader(self):
        return [0] * 6


def test_average_warms_up_as_stated(tmp_path):
    model = Descent()
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_steps=6,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[WarmupEMA(decay=0.3), LastCheckpoint(dirpath=str(tmp_path))],
    )
    trainer.fit(model)
    content = torch.load(tmp_path / "last.ckpt", weights_only=True)
    average = -1.0  # the first update copies the weight after the first step
    for n in range(1, 6):
        decay = min(0.3, (1 + n) / (10 + n))  # 2/11, 3/12, then 0.3
        average = decay * average + (1 - decay) * -(n + 1)
    assert content["state_dict"]["weight"].item() == pytest.approx(average, rel=1e-12)
    assert content["current_model_state"]["weight"].item() == -6
    assert model.weight.item() == pytest.approx(average, rel=1e-12)


class Noted(Descent):
    """Remembers the weight that validation sees; validation gets better, then worse."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def validation_step(self, batch, batch_idx):
        self.seen.append(self.weight.item())
        self.log("val/score", [3.0, 1.0, 2.0][len(self.seen) - 1], batch_size=1)

    def val_dataloader(self):
        return [0]


def test_validation_sees_the_average_and_the_best_are_kept(tmp_path):
    model, kept = Noted(), BestCheckpoints("val/score", top_k=2)
    trainer = lightning.Trainer(
        accelerator="cpu", max_steps=6, logger=False, enable_progress_bar=False, enable_model_summary=False,
        num_sanity_val_steps=0, val_check_interval=2, default_root_dir=tmp_path,
        callbacks=[WarmupEMA(decay=0.3), LastCheckpoint(), kept],
    )  # fmt: skip
    trainer.fit(model)
    average, expected = -1.0, {1: -1.0}
    for n in range(1, 6):
        decay = min(0.3, (1 + n) / (10 + n))
        average = decay * average + (1 - decay) * -(n + 1)
        expected[n + 1] = average
    assert model.seen == pytest.approx([expected[2], expected[4], expected[6]])
    assert {path.name for path in (tmp_path / "best").iterdir()} == {"step=4.ckpt", "step=6.ckpt"}
    content = torch.load(tmp_path / "best" / "step=4.ckpt", weights_only=True)
    assert content["current_model_state"]["weight"].item() == -4
    assert content["state_dict"]["weight"].item() == pytest.approx(expected[4])


def test_loss_falls_on_one_crop(shards):
    """One picture, bright in one stain and dark in the other: both paths must come to say it."""
    module = module_of(shards, prediction="x0", patch_weight=1.0, learning_rate=5e-3)
    (batch,) = PairsDataModule(str(shards), patch_px=16, bin_px=4, batch_size=1, steps_per_epoch=1).train_dataloader()
    batch = {name: torch.cat([value] * 4) for name, value in batch.items()}
    batch["image"] = torch.tensor([0.6, -0.8])[:, None, None, None].expand(batch["image"].shape).contiguous()
    optimizer = module.configure_optimizers()
    losses = []
    for _ in range(40):
        loss = module.loss(batch, torch.tensor([125, 375, 625, 875]))
        optimizer.zero_grad()
        loss.total.backward()
        optimizer.step()
        losses.append((loss.parts["patch"].item(), loss.parts["boundary"].item()))
    for first, last in zip(losses[0], losses[-1], strict=True):
        assert last < 0.2 * first, losses


def test_patch_weight_leaves_the_patch_path_out(shards, monkeypatch):
    batch = next(iter(PairsDataModule(str(shards), patch_px=16, bin_px=4, batch_size=2).train_dataloader()))
    torch.manual_seed(0)
    module, t = module_of(shards, patch_weight=0.5), torch.tensor([200, 700])
    both = module.loss(batch, t)
    assert both.total.item() == pytest.approx(0.5 * both.parts["patch"].item() + both.parts["boundary"].item())
    torch.manual_seed(0)
    alone, decoded = module_of(shards, patch_weight=0.0), []
    decode = alone.network.decode
    monkeypatch.setattr(alone.network, "decode", lambda *given: decoded.append(1) or decode(*given))
    one = alone.loss(batch, t)
    assert len(decoded) == 1
    assert one.parts.keys() == {"boundary"}
    assert one.total.item() == pytest.approx(both.parts["boundary"].item(), rel=1e-5)


@pytest.fixture
def trained_batch(shards):
    return next(iter(PairsDataModule(str(shards), patch_px=16, bin_px=4, batch_size=2).train_dataloader()))


def test_activation_checkpointing_keeps_less_and_gives_the_same_gradients(shards, trained_batch):
    made, kept = {}, {}
    for recompute in (False, True):
        torch.manual_seed(0)
        module = module_of(shards, activation_checkpointing=recompute)
        for weight in module.parameters():  # zero weights would hide half of the network
            if not weight.any():
                torch.nn.init.normal_(weight, std=0.02)
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x, sizes=sizes: sizes.append(x.nbytes) or x, lambda x: x):
            loss = module.loss(trained_batch, torch.tensor([200, 700])).total
        kept[recompute] = sum(sizes)
        loss.backward()
        made[recompute] = {name: p.grad for name, p in module.named_parameters()}
    assert made[True].keys() == made[False].keys()
    for name, value in made[False].items():
        assert torch.equal(made[True][name], value), name
    assert kept[True] < 0.5 * kept[False]


@pytest.mark.parametrize(
    "options",
    [
        {
            "trainer__precision": "bf16-mixed",
            "trainer__accumulate_grad_batches": 2,
            "model__activation_checkpointing": True,
        },
        pytest.param({"trainer__gradient_clip_val": 0.01, "model__dropout": 0.1}, marks=pytest.mark.slow),
    ],
    ids="-".join,
)
def test_options_of_training(options, run, shards, tmp_path):
    """Each runs, learns, and leaves a checkpoint with the same names as any other."""
    settings = {"model__decay": "constant", "trainer__limit_val_batches": 0} | options
    assert exit_code(["fit", *fit_arguments(shards, tmp_path, **settings)]) == 0
    (plain, made) = (torch.load(folder / "last.ckpt", weights_only=True) for folder in (run, tmp_path))
    assert made["global_step"] == 4
    assert made["state_dict"].keys() == plain["state_dict"].keys()


def test_rate_schedule(shards):
    cosine = module_of(shards, warmup_steps=4, decay="cosine", decay_share=0.5)
    assert [cosine.rate_factor(step, 0.0) for step in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert cosine.rate_factor(100, 0.5) == 1
    assert cosine.rate_factor(100, 0.75) == pytest.approx(0.505)
    assert cosine.rate_factor(100, 1.0) == pytest.approx(0.01)
    late = [cosine.rate_factor(100, used / 20) for used in range(10, 21)]
    assert late == sorted(late, reverse=True)
    constant = module_of(shards)
    assert [constant.rate_factor(step, 1.0) for step in (0, 100)] == [1, 1]
    with pytest.raises(InputError, match="decay_share"):
        module_of(shards, decay_share=0.0)


def test_budget_is_steps_or_time_whichever_is_further(shards, monkeypatch):
    module, timer = module_of(shards), Timer(duration={"seconds": 100})
    monkeypatch.setattr(timer, "time_elapsed", lambda *_: 30.0)
    monkeypatch.setattr(timer, "time_remaining", lambda *_: 70.0)

    class Trainer:
        max_steps, global_step, callbacks = 10, 2, [timer]

    monkeypatch.setattr(GeneMorphModule, "trainer", Trainer)
    monkeypatch.setattr(GeneMorphModule, "global_step", 2)
    assert module.budget_used() == pytest.approx(0.3)
    monkeypatch.setattr(GeneMorphModule, "global_step", 5)
    assert module.budget_used() == pytest.approx(0.5)
    Trainer.max_steps = -1
    assert module.budget_used() == pytest.approx(0.3)


def test_wandb_works_offline(shards, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    extra = tmp_path / "wandb.yaml"
    logger = {
        "class_path": "lightning.pytorch.loggers.WandbLogger",
        "init_args": {"project": "tera-mind", "offline": True, "save_dir": str(tmp_path / "run")},
    }
    extra.write_text(yaml.safe_dump({"trainer": {"logger": [logger]}}))
    (tmp_path / "run").mkdir()
    arguments = fit_arguments(shards, tmp_path / "run", trainer__max_steps=1, trainer__limit_val_batches=0)
    assert exit_code(["fit", *arguments[:2], "-c", str(extra), *arguments[2:]]) == 0
    assert list((tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb"))
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert wandb.run.config["data_fingerprint"] == record["data_fingerprint"]
    wandb.finish()
    assert in_child(["fit", *arguments[:2], "-c", str(extra), *arguments[2:], "--trainer.max_steps=2"]) == 0
    made = {path.name.rpartition("-")[2] for path in (tmp_path / "run" / "wandb").glob("offline-run-*")}
    assert made == {record["wandb_id"]}


def test_init_from_starts_from_those_weights(run, shards):
    start = load_checkpoint(run / "last.ckpt").network.state_dict()
    module = module_of(
        shards, init_from=str(run / "last.ckpt"), count_transform="log1p", gene_residual=True, prediction="v"
    )
    for name, value in module.network.state_dict().items():
        assert torch.equal(value, start[name]), name


def test_init_from_another_panel_is_refused(shards, tmp_path, capsys):
    config = tiny_config(genes=3)
    info = CheckpointInfo(config, "v", ("Aqp4", "Gad2", "Xyz"), ("DAPI", "PolyT"), 0.4, {"DAPI": (0.0, 1.0)})
    torch.save(checkpoint_content(info, GeneMorphUNet(config)), tmp_path / "other.ckpt")
    arguments = fit_arguments(shards, tmp_path / "run", model__init_from=tmp_path / "other.ckpt")
    assert exit_code(["fit", *arguments]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert "missing Mog, Slc17a7, Vip" in said[-1]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ({"data__shards": "no-such-folder"}, "no-such-folder"),
        ({"model__channel_mult": [1, 2, 4]}, "pyramid_channels needs one width less"),
        ({"model__no_such_key": 1}, "no_such_key"),
        ({"model__patch_px": 16}, "patch_px"),
        ({"ckpt_path": "no-such.ckpt"}, "no-such.ckpt"),
    ],
)
def test_bad_settings_end_with_code_2(override, words, shards, tmp_path, capsys):
    assert exit_code(["fit", *fit_arguments(shards, tmp_path / "run", **override)]) == 2
    said = capsys.readouterr().err
    assert words in said
    assert "Traceback" not in said
    assert not (tmp_path / "run").exists()
