"""A small network, and `tera-mind generate` in a few words, for the tests of generation."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import torch
from tiny_brain import GENES
from tiny_training import exit_code, tiny_config

from tera_mind.model.checkpoint import CheckpointInfo, checkpoint_content
from tera_mind.model.unet import GeneMorphUNet

#: what every command says here
COMMON = ["--device", "cpu", "--precision", "32", "--steps", "2"]
#: a network of few large patches, for volumes of several shards
TALL = {
    "patch_px": 64, "bin_px": 32, "margin_px": 16, "attention_px": 16, "base_channels": 4, "channel_mult": (1, 1, 1),
    "time_channels": 8, "pyramid_channels": (4, 4),
}  # fmt: skip


def save_checkpoint(path: Path, genes=GENES, pixel_um=0.4, **shape) -> Path:
    """A network of random weights, none of them zero, so that genes reach the picture."""
    torch.manual_seed(0)
    config = tiny_config(genes=len(genes), **shape)
    network = GeneMorphUNet(config)
    for weight in network.parameters():
        if not weight.any():
            torch.nn.init.normal_(weight, std=0.1)
    ranges = {"DAPI": (0.0, 255.0), "PolyT": (0.0, 255.0)}
    info = CheckpointInfo(config, "v", tuple(genes), ("DAPI", "PolyT"), pixel_um, ranges)
    torch.save(checkpoint_content(info, network), path)
    return path


def words(brain, checkpoint, out, *more) -> list[str]:
    """What a user types after `tera-mind`."""
    return ["generate", "--checkpoint", str(checkpoint), "--brain", str(brain), "--out", str(out), *COMMON, *more]


def generate(brain, checkpoint, out, *more) -> int:
    """Exit code of the command; `brain` is a store or its path."""
    return exit_code(words(getattr(brain, "path", brain), checkpoint, out, *more))


def forked(monkeypatch) -> None:
    """Let worker processes begin as copies of this one, whose threads sleep: new ones import torch for seconds."""
    context = multiprocessing.get_context("fork")
    monkeypatch.setattr(multiprocessing, "get_context", lambda _method: context)


def refused(tmp_path, capsys, brain, checkpoint, *more) -> str:
    """Run, expect exit code 2, one line and no new file; returns the line."""
    before = sorted(tmp_path.rglob("*"))
    capsys.readouterr()
    assert generate(brain, checkpoint, tmp_path / "v.zarr", *more) == 2
    said = capsys.readouterr()
    lines = said.err.strip().splitlines()
    assert len(lines) == 1, said.err
    assert lines[0].startswith("tera-mind generate: error: ")
    assert sorted(tmp_path.rglob("*")) == before
    return lines[0]


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, by its path."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def pixels(volume: Path) -> dict[str, bytes]:
    """The files that hold a volume's pixels, all levels."""
    return {name: content for name, content in tree(volume).items() if "/c/" in name}
