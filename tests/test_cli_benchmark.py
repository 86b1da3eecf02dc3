"""`tera-mind benchmark`: every figure follows from others that are measured, and bad input is one line."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from tiny_brain import make_brain
from tiny_training import tiny_config

from tera_mind.cli import benchmark
from tera_mind.cli.main import COMMANDS, main
from tera_mind.model.checkpoint import CheckpointInfo, checkpoint_content
from tera_mind.model.macs import FLOP_A_MAC, count_macs
from tera_mind.model.unet import GeneMorphUNet
from tera_mind.profiling import cost as costs
from tera_mind.profiling import kernels, peak, summary

PIXEL_UM = 0.4


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A checkpoint, and a brain whose left half alone is tissue."""
    folder = tmp_path_factory.mktemp("benchmark")
    tissue = np.zeros((3, 4, 6), bool)
    tissue[:, :, :2] = True
    brain = make_brain(folder / "brain.zarr", shape=(2, 3, 256, 384), rows=500, tissue=tissue)
    config = tiny_config()
    info = CheckpointInfo(config, "v", brain.genes, brain.stains, PIXEL_UM, dict.fromkeys(brain.stains, (0.0, 1.0)))
    torch.save(checkpoint_content(info, GeneMorphUNet(config)), folder / "model.ckpt")
    return folder


@pytest.fixture(scope="module")
def figures(folder):
    """What the command writes for the tiny network and brain, on three devices."""
    given = ["--checkpoint", str(folder / "model.ckpt"), "--brain", str(folder / "brain.zarr"), "--device", "cpu"]
    own = ["--devices", "2", "--block", "2", "--micro-batch", "2", "--pairs", "2", "--steps", "10", "--quick"]
    assert benchmark.run([*given, *own, "--precision", "32", "--json", str(folder / "figures.json")]) == 0
    return json.loads((folder / "figures.json").read_text())


def test_every_figure_is_there(figures):
    assert {"format", "version", "device", "precision", "threads", "software", "model"} < figures.keys()
    for part, more in (("generation", {"megavoxel_steps_s", "flop_a_patch"}), ("training", {"pairs_s", "flop_a_pair"})):
        found = figures[part]
        assert {"seconds", "flop_s", "peak_flop_s", "mfu", "share", "bottleneck", *more} <= found.keys()
        assert sum(found["share"].values()) == pytest.approx(1)
        assert {"convolution", "normalisation", "elementwise", "attention"} <= found["share"].keys()
        assert found["seconds_range"][0] <= found["seconds"] <= found["seconds_range"][1]
        assert found["mfu"] == pytest.approx(found["flop_s"] / found["peak_flop_s"])
        assert next(iter(found["share"])) in found["bottleneck"]
    assert "I/O" in figures["generation"]["share"]
    assert "optimiser" in figures["training"]["share"]


def test_rates_are_work_over_time(figures):
    """8 patches a pass of 16 px and two stains; FLOP as counted from the shape."""
    made, macs = figures["generation"], count_macs(tiny_config())
    assert made["patches_a_pass"] == 8
    assert made["megavoxel_steps_s"] == pytest.approx(8 * 2 * 16**2 / 1e6 / made["seconds"])
    assert made["flop"] == FLOP_A_MAC * 8 * macs.patch
    trained = figures["training"]
    assert trained["pairs_s"] == pytest.approx(2 / trained["seconds"])
    assert trained["flop"] == FLOP_A_MAC * 2 * macs.training_pair(patch_path=False)


def test_hours_are_work_over_rate(figures):
    """Tissue in 128 of 384 px, dilated by two patches of 16 px, in three groups of one section on two devices."""
    brain = figures["brain"]
    voxels = 3 * (256 // 16) * (128 // 16 + 2) * 2 * 16**2
    assert brain["voxels"] == voxels
    # the third group is cut into two bands: (S - 1) of 16 rows twice, on a third of the work
    assert brain["redundancy"] == pytest.approx(1 + 1 / 3 * (10 - 1) / 16)
    rate = 1e6 * figures["generation"]["megavoxel_steps_s"]
    assert brain["network_hours"] == pytest.approx(voxels * 10 * brain["redundancy"] / rate / 2 / 3600)
    assert brain["io_hours"] == pytest.approx(voxels / 1e6 * figures["io"]["total_s"] / 2 / 3600)
    assert brain["hours"] == pytest.approx(brain["network_hours"] + brain["io_hours"])


def test_the_published_brain_is_the_default():
    """0.77 tera-voxel, from the extent alone."""
    options = benchmark.parser().parse_args(["--model", "published"])
    config = benchmark._config(options, None, None)
    extent = benchmark._extent(options, config, None)
    assert extent.voxels == 25 * 1144 * 1656 * 64**2 * 2 * 2
    assert costs.redundancy(extent.groups, extent.rows, 8, 15) == pytest.approx(1 + 1 / 25 * 7 * 14 / 1144)
    assert costs.redundancy(24, 1144, 8, 15) == 1


def test_text_only_generates(capsys):
    """One part alone, on a size of its own; the table names the classes."""
    sizes = ["--genes", "5", "--base-channels", "4", "--block", "1", "--size-px", "64x96", "--sections", "2"]
    assert benchmark.run(["--quick", "--device", "cpu", "--precision", "32", "--generate", *sizes]) == 0
    text = capsys.readouterr().out
    assert "megavoxel-steps/s" in text
    assert "convolution" in text
    assert "pairs/s" not in text
    assert "brain: 2.458e-05 gigavoxels in 15 steps" in text


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["--size-px", "64"], "HEIGHTxWIDTH"),
        (["--size-px", "16x16"], "less than one patch"),
        (["--steps", "37"], "integer stride"),
        (["--preset", "turbo"], "no preset"),
        (["--devices", "0"], "--devices must be at least 1"),
        (["--pairs", "-1"], "--pairs must be at least 1"),
        (["--checkpoint", "nowhere.ckpt"], "no checkpoint"),
        (["--patch-px", "33"], "multiple of bin_px"),
        (["--checkpoint", "{folder}/model.ckpt", "--genes", "5"], "a checkpoint has its own sizes"),
        (["--brain", "{folder}/brain.zarr", "--sections", "2"], "not both"),
        (["--brain", "{folder}/brain.zarr", "--genes", "7"], "the brain has 5 genes"),
        (["--brain", "{folder}/nowhere.zarr"], "nowhere.zarr"),
    ],
)
def test_bad_input_is_one_line(folder, capsys, monkeypatch, given, words):
    monkeypatch.setitem(COMMANDS, "benchmark", ("benchmark", "measure"))
    assert main(["benchmark", "--device", "cpu", *(part.format(folder=folder) for part in given)]) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert words in captured.err
    assert captured.out == ""


@pytest.mark.parametrize(
    ("chain", "kind"),
    [
        (["aten::mkldnn_convolution", "aten::conv2d"], "convolution"),
        (["aten::mul", "rms_norm"], "normalisation"),
        (["aten::mul", "_RMSNormFunctionBackward"], "normalisation"),
        (["aten::bmm", "aten::_scaled_dot_product_attention_math"], "attention"),
        (["aten::addmm", "aten::linear"], "linear maps"),
        (["aten::addcmul_", "Optimizer.step#AdamW.step"], "optimiser"),
        (["aten::copy_", "aten::to"], "copies"),
        (["aten::silu_"], "elementwise"),
        (["sm90_xmma_fprop_implicit_gemm_bf16bf16_bf16f32_nhwc"], "convolution"),
        (["flash_fwd_kernel<cutlass::bfloat16_t>"], "attention"),
        (["triton_per_fused_mul_pow_rsqrt_0"], "normalisation"),
        (["triton_poi_fused_silu_3"], "elementwise"),
        (["nvjet_tst_128x256_64x4_1x2_h_bz_TNT"], "linear maps"),
        (["Memcpy DtoD (Device -> Device)"], "copies"),
    ],
)
def test_operations_have_their_class(chain, kind):
    assert kernels.classify(chain) == kind


def test_time_is_told_apart():
    """A convolution beside a thousandth of it in other work."""
    image, weight = torch.randn(1, 16, 64, 64), torch.randn(32, 16, 3, 3)

    def run() -> None:
        for _ in range(10):
            torch.nn.functional.conv2d(image, weight)
        torch.randn(10).sigmoid()

    seconds = kernels.time_by_class(run, torch.device("cpu"))
    assert max(seconds, key=seconds.__getitem__) == "convolution"
    assert kernels.scaled({"convolution": 2.0, "copies": 2.0}, 1.0, torch.device("cpu"))["copies"] == 0.5
    assert kernels.scaled({"convolution": 0.25}, 1.0, torch.device("cuda"))["waiting"] == 0.75


def test_peaks_of_gpus_are_by_name():
    assert peak.data_sheet_peak("NVIDIA A100-SXM4-80GB", "bf16").flop_s == 312e12
    assert peak.data_sheet_peak("NVIDIA H100 80GB HBM3", "bf16").flop_s == 989.5e12
    assert peak.data_sheet_peak("NVIDIA H100 PCIe", "bf16").flop_s == 756e12
    assert peak.data_sheet_peak("NVIDIA L40S", "32").flop_s == 183e12
    unknown = peak.data_sheet_peak("Some GPU", "bf16")
    assert unknown.flop_s is None
    assert "Some GPU" in unknown.source
    words = summary.bottleneck({"share": {"copies": 0.6}, "mfu": None})
    assert "copies takes 60 % of the time" in words
    assert "not known" in words
