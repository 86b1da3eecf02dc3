"""`tera-mind intervene` with the checkpoint of another method, and after a kill."""

from __future__ import annotations

import json
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from generate_case import save_checkpoint
from test_ms_pie import config as pie_config
from tiny_brain import GENES, make_brain

from tera_mind.baselines.ms_pie import MsPie
from tera_mind.cli.attention import run as attention
from tera_mind.cli.intervene import run
from tera_mind.errors import InputError
from tera_mind.formats.volume import Volume
from tera_mind.model.checkpoint import CheckpointInfo, checkpoint_content

EDIT = (
    "regions: {corner: {box: '0:32,0:32'}}\nedits: [{kind: scale, genes: [Mog, Vip], factor: 1.0e+6, region: corner}]\n"
)


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rivals")
    make_brain(folder / "brain.zarr", shape=(2, 1, 128, 352), rows=12000)
    (folder / "edit.yaml").write_text(EDIT)
    save_checkpoint(folder / "net.ckpt")
    torch.manual_seed(0)
    config = pie_config(gene_sections=1)
    ranges = {"DAPI": (0.0, 255.0), "PolyT": (0.0, 255.0)}
    info = CheckpointInfo(config, "x0", GENES, ("DAPI", "PolyT"), 0.4, ranges, "ms-pie")
    torch.save(checkpoint_content(info, MsPie(config)), folder / "pie.ckpt")
    return folder


def words(case, checkpoint, out):
    given = [str(case / "edit.yaml"), "--checkpoint", str(case / checkpoint), "--brain", str(case / "brain.zarr")]
    more = "--steps 2 --device cpu --precision 32 --mask none --resamples 9"
    return [*given, "--out", str(out), *more.split()]


def test_a_method_that_sees_its_whole_block_reaches_a_block_and_no_farther(case, tmp_path, capsys):
    """MS-PIE takes its style from the mean of all genes of what it paints at once: 6 of the 11 patches across."""
    assert run(words(case, "pie.ckpt", tmp_path / "out")) == 0
    said = capsys.readouterr().out
    assert "for one pass" in said
    assert "latent scores: none, a ms-pie network" in said
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["margin_px"] == 5 * 32
    assert summary["largest_change_beyond_margin"] == 0
    assert summary["pixels_beyond_margin"] > 0
    volumes = [Volume.open(tmp_path / "out" / "volumes" / f"strength_{s}.zarr").image()[:, 0].astype(int) for s in "01"]
    apart = np.abs(volumes[1] - volumes[0]).max(axis=0)
    assert apart[96:, :192].any()  # far beyond the halo, which is 0, within the block
    assert not apart[:, 192:].any()


def test_attention_is_read_of_this_method_alone(case, tmp_path):
    asked = ["--checkpoint", str(case / "pie.ckpt"), "--brain", str(case / "brain.zarr"), "--genes", "Mog,Vip"]
    with pytest.raises(InputError, match="holds a ms-pie network"):
        attention([*asked, "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_killed_run_goes_on(case, tmp_path):
    """Killed with the second volume half done; the first is kept as it is, and all ends as without a kill."""
    script = (
        "import os, sys\n"
        "from tera_mind.cli import intervene\n"
        "from tera_mind.sampling import launch\n"
        "made, volumes = launch.generate, []\n"
        "def generate(job, out, *more):\n"
        "    volumes.append(out)\n"
        "    if len(volumes) == 2:\n"
        "        launch.prepare(job, out, more[0])\n"
        "        os.kill(os.getpid(), 9)\n"
        "    return made(job, out, *more)\n"
        "launch.generate = generate\n"
        "intervene.run(sys.argv[1:])\n"
    )
    line = words(case, "net.ckpt", tmp_path / "out")
    killed = subprocess.run([sys.executable, "-c", script, *line], capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL
    first = tmp_path / "out" / "volumes" / "strength_0.zarr" / "zarr.json"
    stamp = first.stat().st_mtime_ns
    assert not (tmp_path / "out" / "summary.json").exists()
    assert run(line) == 0
    assert first.stat().st_mtime_ns == stamp
    assert run(words(case, "net.ckpt", tmp_path / "whole")) == 0
    both = [json.loads((tmp_path / name / "summary.json").read_text()) for name in ("out", "whole")]
    assert both[0] == both[1]
