"""A small brain and a checkpoint that sees four sections at a time: enough to read attention from."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from tiny_brain import make_brain
from tiny_model import tiny_config, tiny_network

from tera_mind.formats.brain import Brain
from tera_mind.model.checkpoint import Checkpoint, CheckpointInfo, checkpoint_content, load_checkpoint

PANEL = ("Mog", "Slc17a6", "Slc17a7", "Aqp4", "Cldn5", "Vip")
BRAIN_GENES = ("Slc17a7", "Vip", "Mog", "Extra", "Cldn5", "Aqp4", "Slc17a6")


class Case(NamedTuple):
    folder: Path
    brain: Brain
    checkpoint: Checkpoint


def write_checkpoint(path: Path, panel=PANEL, **changes) -> Checkpoint:
    config = tiny_config(**{"genes": len(panel), "gene_sections": 4} | changes)
    network = tiny_network(config, dtype=torch.float32)
    with torch.no_grad():  # attention that is not nearly uniform
        network.pyramid.gene_gene.norm_query.weight.mul_(2.5)
    ranges = {"DAPI": (0.0, 255.0), "PolyT": (0.0, 255.0)}
    info = CheckpointInfo(config, "epsilon", tuple(panel), ("DAPI", "PolyT"), 0.4, ranges)
    torch.save(checkpoint_content(info, network), path)
    return load_checkpoint(path)


def make_case(folder: Path, shape=(2, 5, 300, 410), rows=9000, **changes) -> Case:
    brain = make_brain(folder / "brain.zarr", shape=shape, rows=rows, genes=BRAIN_GENES)
    return Case(folder, brain, write_checkpoint(folder / "net.ckpt", **changes))
