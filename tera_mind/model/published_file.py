"""Published checkpoint files: reading one, and the shape of the network that its weights and its name tell.

A published file is a Lightning checkpoint whose `state_dict` has names `model.*`, in a folder named like
`638850_64_229_all_4_ours`: brain, small patch (px), genes, which sections, gene sections, variant.
"""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tera_mind.errors import FormatError, InputError, MissingFileError
from tera_mind.geometry import IMAGE_SECTIONS
from tera_mind.model.config import ModelConfig

#: resolution at which every published network attends; the level that attends tells the patch size
ATTENTION_PX = 16
_FIRST = "model.rna_blocks.0.0.down_z.weight"
_QUERY = "model.rna_blocks.0.0.attn.q.weight"
_STEM = "model.input_blocks.0.0.weight"
_HEAD = "model.out.2.weight"
_TIME = "model.time_embed.time_embed.0.weight"


@dataclass(frozen=True)
class PublishedName:
    """What the name of a published folder says."""

    text: str
    brain: str
    patch_px: int
    genes: int
    gene_sections: int
    variant: str

    @staticmethod
    def parse(text: str) -> PublishedName | None:
        """`638850_64_229_all_4_ours` in parts; None where a name is not of this form."""
        match = re.fullmatch(r"([^_]+)_(\d+)_(\d+)_([^_]+)_(\d+)_(.+)", text)
        if match is None:
            return None
        brain, patch, genes, _, sections, variant = match.groups()
        return PublishedName(text, brain, int(patch), int(genes), int(sections), variant)

    @staticmethod
    def of_path(path: Path) -> PublishedName | None:
        """From the file's own name or the nearest folder above it whose name has the form."""
        path = path.resolve()
        found = (PublishedName.parse(name) for name in (path.stem, *(parent.name for parent in path.parents)))
        return next((name for name in found if name is not None), None)

    def require(self, config: ModelConfig) -> None:
        """Raise `FormatError` where the weights are not of the shape that the name tells."""
        pairs = {
            "patch_px": (self.patch_px, config.patch_px),
            "genes": (self.genes, config.genes),
            "gene sections": (self.gene_sections, config.gene_sections),
        }
        wrong = [f"{key} {said}, its weights {are}" for key, (said, are) in pairs.items() if said != are]
        if wrong:
            raise FormatError(
                f"the name {self.text} says {'; '.join(wrong)}: it is another checkpoint's name; "
                "give --name with its own"
            )


def read_published(path: str | Path, *, trust_pickle: bool = False) -> dict[str, Tensor]:
    """The state dict of a published checkpoint, on the CPU.

    Raises `MissingFileError`, or `FormatError` where the file is damaged, holds no `state_dict`, or holds pickled
    Python objects besides weights (hyper-parameters, say) that `trust_pickle` does not allow to be loaded.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingFileError(f"no checkpoint at {path}: give the .ckpt file of a published model")
    content = _load(path, trust_pickle=trust_pickle)
    state = content.get("state_dict") if isinstance(content, dict) else None
    if not isinstance(state, Mapping) or not state or not all(isinstance(v, Tensor) for v in state.values()):
        raise FormatError(f"{path} is no Lightning checkpoint: expected a dictionary of weights under 'state_dict'")
    if "tera_mind" in content:
        raise FormatError(f"{path} is already a checkpoint of tera-mind: use it as it is")
    return dict(state)


def _load(path: Path, *, trust_pickle: bool) -> Any:
    try:
        if not trust_pickle:
            return torch.load(path, map_location="cpu", weights_only=True)
        return torch.load(path, map_location="cpu", weights_only=False)
    except (ImportError, AttributeError) as error:  # a pickled class whose code is not here
        raise FormatError(
            f"{path} holds an object of code that is not installed ({error}): put the published code on PYTHONPATH"
        ) from error
    except (RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError, OSError) as error:
        classes = [] if trust_pickle else _pickled_classes(path)
        if classes:
            raise FormatError(
                f"{path} holds pickled Python objects besides weights ({', '.join(classes[:5])}), and loading such can "
                "run any code: give --trust-pickle if you trust where the file comes from"
            ) from error
        # torch's own words on pickled objects advise to load them all the same
        told = str(error) and not isinstance(error, pickle.UnpicklingError)
        words = str(error).splitlines()[0] if told else "it is damaged, or of another kind"
        raise FormatError(f"{path} cannot be read as a checkpoint ({words}): download it again") from error


def _pickled_classes(path: Path) -> list[str]:
    """Classes and functions that a file would call beyond those of weights; none where it cannot be told."""
    if not zipfile.is_zipfile(path):
        return []
    try:
        return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except (RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError, OSError):
        return []


def published_config(state: Mapping[str, Tensor]) -> ModelConfig:
    """The shape of the network that published weights belong to, from the weights alone.

    Raises `FormatError` where a weight that tells the shape is missing, or the shapes contradict each other.
    """
    lacking = [name for name in (_FIRST, _QUERY, _STEM, _HEAD, _TIME) if name not in state]
    if lacking:
        raise FormatError(f"the checkpoint does not hold a published model's weights: missing {', '.join(lacking)}")
    first, stem, head = state[_FIRST].shape, state[_STEM].shape, state[_HEAD].shape
    features = state[_QUERY].shape[0]
    kernels = {sections // 2 + 1 if sections > 1 else 1: sections for sections in IMAGE_SECTIONS}
    if len(first) != 5 or len(stem) != 5 or len(head) != 5 or first[2] not in kernels or stem[1] != head[0]:
        raise FormatError(
            f"expected 5-D kernels of a published model, got {_FIRST} {tuple(first)}, {_STEM} {tuple(stem)}, "
            f"{_HEAD} {tuple(head)}"
        )
    pyramid = _pyramid(state)
    levels = len(pyramid) + 1
    numbers = {int(match[1]) for name in state if (match := re.match(r"model\.input_blocks\.(\d+)\.", name))}
    res_blocks = len(numbers) // levels - 1
    gene_sections = kernels[first[2]]
    bins = round((features / gene_sections) ** 0.5)
    starts = [f"model.input_blocks.{level * (res_blocks + 1) + 1}" for level in range(levels)]
    kernels_in = [f"{start}.0.in_layers.2.weight" for start in starts]
    if absent := [name for name in kernels_in if name not in state]:
        raise FormatError(f"the checkpoint does not hold a published model's weights: missing {', '.join(absent)}")
    widths = [state[name].shape[0] for name in kernels_in]
    attending = [level for level, start in enumerate(starts) if f"{start}.1.attn.q.weight" in state]
    if len(attending) != 1 or bins < 1 or gene_sections * bins**2 != features:
        raise FormatError(
            f"the shape of the network cannot be told: {len(numbers)} input blocks on {levels} levels, of which "
            f"{len(attending)} attend, {features} gene features from {gene_sections} sections; "
            "expected a published model"
        )
    patch_px = ATTENTION_PX << attending[0]
    try:
        return ModelConfig(
            genes=first[1],
            stains=head[0],
            gene_sections=gene_sections,
            patch_px=patch_px,
            bin_px=patch_px // bins,
            base_channels=stem[0],
            channel_mult=tuple(width // stem[0] for width in widths),
            res_blocks=res_blocks,
            time_channels=state[_TIME].shape[0],
            pyramid_channels=pyramid,
            attention_px=ATTENTION_PX,
        )
    except InputError as error:
        raise FormatError(f"the weights have the shape of no network here: {error}") from error


def _pyramid(state: Mapping[str, Tensor]) -> tuple[int, ...]:
    widths: list[int] = []
    while (name := f"model.rna_blocks.{len(widths) + 1}.1.weight") in state:
        widths.append(state[name].shape[0])
    return tuple(widths)
