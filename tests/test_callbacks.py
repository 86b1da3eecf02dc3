"""What callbacks paint, score and measure during training, and that they leave training as it is."""

from __future__ import annotations

import csv

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_brain import make_brain
from tiny_training import exit_code, fit_arguments, log_column, tiny_shards

from callbacks.morphometrics import Morphometrics
from callbacks.regions import Region
from callbacks.sampling import side_by_side
from callbacks.throughput import training_flops
from datamodules.pairs import PairsDataModule
from tera_mind.formats.shard_plan import plan_shards
from tera_mind.formats.shards import write_shards
from tera_mind.formats.slab import Slab
from tera_mind.geometry import Box, section_window
from tera_mind.metrics.fidelity import psnr

CALLBACKS = [
    "callbacks.sampling.DDIMSampling",
    "callbacks.morphometrics.Morphometrics",
    "callbacks.steps.StepsAblation",
    "callbacks.throughput.Throughput",
]


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return tiny_shards(tmp_path_factory.mktemp("callbacks"), shape=(2, 2, 160, 256))


def with_callbacks(arguments):
    more = []
    for name in CALLBACKS:
        more.append(f"--trainer.callbacks+={name}")
        if "Throughput" in name:
            more.append("--trainer.callbacks.peak_tflops=0.5")
        else:
            more += ["--trainer.callbacks.regions=2", "--trainer.callbacks.every_n_validations=1"]
            more += ["--trainer.callbacks.steps=[2,3]" if "Steps" in name else "--trainer.callbacks.steps=2"]
    return [*arguments, *more]


@pytest.fixture(scope="module")
def runs(shards, tmp_path_factory):
    """The same training without and with all callbacks."""
    folder = tmp_path_factory.mktemp("runs")
    for name, adds in (("plain", list), ("watched", with_callbacks)):
        arguments = fit_arguments(shards, folder / name)
        assert exit_code(["fit", *adds(arguments)]) == 0
    return folder


def test_pictures_tables_and_figures_are_there(runs):
    watched = runs / "watched"
    pictures = sorted(path.name for path in (watched / "samples").iterdir())
    assert pictures == [f"step={step:06d}-{index}.png" for step in (2, 4) for index in (0, 1)]
    picture = np.asarray(Image.open(watched / "samples" / pictures[0]))
    assert picture.shape[0] > 2 * 16
    with (watched / "morphometrics" / "step=000004.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["metric"] for row in rows} >= {"psnr", "ssim"}
    assert {row["stain"] for row in rows} == {"DAPI", "PolyT"}
    with (watched / "steps" / "step=000004.csv").open() as file:
        assert [row["steps"] for row in csv.DictReader(file)] == ["2", "2", "3", "3"]
    for name in ("val/psnr/DAPI", "val/ssim/PolyT", "val/psnr_3_steps/DAPI"):
        assert len(log_column(watched, name)) == 2
    by_section = [float(row["value"]) for row in rows if (row["metric"], row["stain"]) == ("psnr", "DAPI")]
    assert min(by_section) - 1e-4 <= log_column(watched, "val/psnr/DAPI")[-1] <= max(by_section) + 1e-4


def test_watching_changes_nothing(runs):
    plain, watched = (torch.load(runs / name / "last.ckpt", weights_only=False) for name in ("plain", "watched"))
    for key, value in plain["state_dict"].items():
        assert torch.equal(value, watched["state_dict"][key]), key
    assert log_column(runs / "plain", "train/loss") == log_column(runs / "watched", "train/loss")


@pytest.mark.parametrize(
    ("plan", "more", "said"),
    [
        ({}, {}, "write them with --val, or remove"),
        ({"val": ":,60%:"}, {"trainer__limit_val_batches": 0}, "limit_val_batches is 0"),
    ],
)
def test_nothing_to_paint_is_said_before_the_first_step(plan, more, said, tmp_path, capsys):
    made = make_brain(tmp_path / "brain.zarr", shape=(2, 2, 96, 128), rows=500)
    plan = plan_shards([made], train=":,:60%", gene_sections=1, core_px=32, crop_px=32, **plan)
    shards = write_shards([made], tmp_path / "shards", plan, shard_mb=1.0).folder
    arguments = fit_arguments(shards, tmp_path / "run", **more)
    capsys.readouterr()
    assert exit_code(["fit", *arguments, f"--trainer.callbacks+={CALLBACKS[0]}"]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert said in lines[-1]
    assert sum("tera-mind" in line for line in lines) == 1
    assert not (tmp_path / "run" / "last.ckpt").exists()


def test_the_same_noise_and_regions_at_every_validation(runs):
    """The upper half of a picture is real tissue: it does not change; the lower one does, since the weights do."""
    first, later = (np.asarray(Image.open(runs / "watched" / "samples" / f"step={step:06d}-0.png")) for step in (2, 4))
    half = first.shape[0] // 2
    assert (first[:half] == later[:half]).all()
    assert (first[half + 4 :] != later[half + 4 :]).any()


def test_throughput_is_logged(runs):
    watched = runs / "watched"
    assert all(value > 0 for value in log_column(watched, "train/pairs_per_second"))
    assert all(0 <= value <= 1 for value in log_column(watched, "train/data_wait_share"))
    tflops, mfu = (log_column(watched, f"train/{name}") for name in ("tflops", "mfu"))
    assert mfu == pytest.approx([value / 0.5 for value in tflops])


def test_work_is_counted_right(shards, monkeypatch):
    """Convolutions and matrix products of a forward pass by hand; the way back costs twice as much."""
    from test_fit import module_of

    module = module_of(shards, patch_weight=1.0)
    batch = next(iter(PairsDataModule(str(shards), patch_px=16, bin_px=4, batch_size=2).train_dataloader()))
    forward = []

    def noted(function):
        def call(x, weight, *more, **settings):
            out = function(x, weight, *more, **settings)
            forward.append(2 * out.numel() * weight[0].numel())  # input channels of a group times the kernel
            return out

        return call

    for name in ("conv2d", "conv3d", "linear"):
        monkeypatch.setattr(torch.nn.functional, name, noted(getattr(torch.nn.functional, name)))
    module.loss(batch, torch.zeros(2, dtype=torch.int64))
    monkeypatch.undo()
    counted = training_flops(module, batch)
    assert 2.6 * sum(forward) < counted < 3.3 * sum(forward)


def region_of(real, exists=(True,), box=None):
    side = real.shape[-1]
    window = Box(0, side, 0, side)
    none = np.zeros(0, np.uint16)
    slab = Slab(
        brain=0, first_section=3, window=window, inside=box or window, exists=exists, image=real, gene_sections=1,
        y=none, x=none, gene=none, count=none, section=np.zeros(0, np.uint8), line=np.zeros(0, np.int32),
    )  # fmt: skip
    return Region(slab, 0, window, section_window(3, 1), None, 1, 4, 32)


def discs(side, places, radius):
    image = np.full((side, side), 20, np.uint8)
    y, x = np.mgrid[:side, :side]
    for row, column in places:
        image[np.hypot(y - row, x - column) < radius] = 200
    return image


def test_morphometrics_of_known_pictures(shards):
    from test_fit import module_of

    module = module_of(shards)
    module.info = type(module.info)(**{**module.info.__dict__, "pixel_um": 0.5, "stains": ("DAPI",)})
    places = [(24, 24), (24, 70), (70, 24), (90, 90)]
    real = discs(128, places, 8)[None, None]
    generated = discs(128, places[:3], 8)[None, None]
    scores = {score.metric: score for score in Morphometrics()._scores(module, region_of(real), generated)}
    assert scores["nuclei_count_ratio"].value == pytest.approx(0.75)
    assert scores["nuclei_f1"].value == pytest.approx(2 * 3 / 7)
    assert scores["nuclei_area_ratio"].value == pytest.approx(1.0)
    assert scores["psnr"].section == 3
    blocks = [(slice(y, y + 32), slice(x, x + 32)) for y in range(0, 128, 32) for x in range(0, 128, 32)]
    by_hand = psnr(np.stack([generated[0, 0][b] for b in blocks]), np.stack([real[0, 0][b] for b in blocks])).mean()
    assert scores["psnr"].value == pytest.approx(by_hand)
    absent = list(Morphometrics()._scores(module, region_of(real, exists=(False,)), generated))
    assert absent == []


def test_side_by_side_has_every_plane():
    real = np.arange(2 * 3 * 4 * 5, dtype=np.uint8).reshape(2, 3, 4, 5)
    picture = side_by_side(real, 255 - real)
    assert picture.shape == (2 * 4 + 4, 6 * 5 + 5 * 4)
    assert (picture[:4, 9:14] == real[0, 1]).all()
    assert (picture[8:, 9:14] == 255 - real[0, 1]).all()
