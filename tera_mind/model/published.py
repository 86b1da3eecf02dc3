"""Weights of the published implementation: their names, mapped onto this model's, extra and missing ones refused."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from tera_mind.errors import FormatError
from tera_mind.model.config import ModelConfig
from tera_mind.model.unet import GeneMorphUNet

RES_BLOCK = {
    "in_layers.0": "norm_in", "in_layers.2": "conv_in", "emb_layers.1": "time", "out_layers.0": "norm_out",
    "out_layers.3": "conv_out", "skip_connection": "skip",
}  # fmt: skip
GENE_ATTENTION = {
    "norm1": "norm_attention", "attn.q": "query", "attn.k": "key", "attn.v": "value", "attn.q_norm": "norm_query",
    "attn.k_norm": "norm_key", "attn.proj": "out", "norm2": "norm_mlp", "mlp.fc1": "mlp.hidden", "mlp.fc2": "mlp.out",
    "adaLN_modulation.1": "modulation",
}  # fmt: skip
GENE_GENE = {
    "attn.q": "query", "attn.v": "value", "attn.q_norm": "norm_query", "attn.proj": "out", "norm2": "norm_mlp",
    "mlp.fc1": "mlp.hidden", "mlp.fc2": "mlp.out",
}  # fmt: skip


def _modules(config: ModelConfig) -> Iterator[tuple[str, str, Mapping[str, str]]]:
    """(published prefix, our prefix, names inside) of every module that holds weights."""
    plain = {"": ""}
    yield "time_embed.time_embed.0", "time.hidden", plain
    yield "time_embed.time_embed.2", "time.out", plain
    yield "rna_blocks.0.0", "pyramid.gene_gene", GENE_GENE
    yield "rna_blocks.0.0.down_z", "pyramid.first", plain
    for i in range(len(config.pyramid_channels)):
        yield f"rna_blocks.{i + 1}.1", f"pyramid.levels.{i}", plain
    yield "input_blocks.0.0", "stem", plain
    number, stage = 1, 0
    for level in range(len(config.channel_mult)):
        if level:
            yield f"input_blocks.{number}.0", f"downs.{level - 1}", RES_BLOCK
            number += 1
        for _ in range(config.res_blocks):
            yield f"input_blocks.{number}.0", f"encoder.{stage}.block", RES_BLOCK
            yield f"input_blocks.{number}.1", f"encoder.{stage}.attention", GENE_ATTENTION
            number, stage = number + 1, stage + 1
    yield "middle_block.0", "middle.block", RES_BLOCK
    yield "middle_block.1", "middle.attention", GENE_ATTENTION
    yield "middle_block.2", "middle.after", RES_BLOCK
    stage = 0
    for level in reversed(range(len(config.channel_mult))):
        attends = config.patch_px // 2**level == config.attention_px
        for _ in range(config.res_blocks + 1):
            yield f"output_blocks.{stage}.0", f"decoder.{stage}.block", RES_BLOCK
            if attends:
                yield f"output_blocks.{stage}.1", f"decoder.{stage}.attention", GENE_ATTENTION
            yield f"output_blocks.{stage}.{1 + attends}", f"decoder.{stage}.after", RES_BLOCK
            stage += 1
    yield "out.0", "norm", plain
    yield "out.2", "head", plain


def published_names(config: ModelConfig) -> dict[str, str]:
    """Name of every weight in this model -> its name in a published state dict (with the `model.` prefix)."""
    wanted = GeneMorphUNet.parameter_shapes(config)
    names: dict[str, str] = {}
    for theirs, ours, inner in _modules(config):
        for their_part, our_part in inner.items():
            for kind in ("weight", "bias"):
                our_name = ".".join(part for part in (ours, our_part, kind) if part)
                if our_name in wanted:
                    names[our_name] = ".".join(part for part in ("model", theirs, their_part, kind) if part)
    assert names.keys() == wanted.keys(), sorted(wanted.keys() ^ names.keys())
    return names


def import_state(config: ModelConfig, published: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A published state dict as one of this model's, float32.

    With one section the published 3x3x3 kernels only ever meet padding in their outer planes, so the central plane
    is kept. Raises `FormatError` listing keys that are extra, missing or of another shape.
    """
    names, shapes = published_names(config), GeneMorphUNet.parameter_shapes(config)
    missing = sorted(set(names.values()) - published.keys())
    extra = sorted(published.keys() - set(names.values()))
    if missing or extra:
        raise FormatError(
            "the checkpoint does not hold this model's weights: "
            f"missing {_some(missing)}; extra {_some(extra)}; check genes, sections, patch size and channels"
        )
    state: dict[str, Tensor] = {}
    wrong: list[str] = []
    for ours, theirs in names.items():
        value, shape = published[theirs].to(torch.float32), shapes[ours]
        if len(shape) == 5 and shape[2] == 1 and value.ndim == 5 and value.shape[2] == 3:
            value = value[:, :, 1:2]
        if value.numel() != shape.numel() or (value.ndim == len(shape) and value.shape != shape):
            wrong.append(f"{theirs} {tuple(value.shape)} (expected {tuple(shape)})")
            continue
        state[ours] = value.reshape(shape).clone()
    if wrong:
        raise FormatError(f"weights of another shape: {_some(wrong)}; check genes, sections, patch size and channels")
    return state


def _some(names: list[str], most: int = 8) -> str:
    if not names:
        return "none"
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
