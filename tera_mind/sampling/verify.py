"""Is this the published model? Golden arrays of the reference implementation against the same ones computed here.

A golden file (.npz) holds a JSON `meta`, a state dict under the published names (`state/model.*`) and arrays under
`data/`, all computed in evaluation mode in float32 on a CPU.
"""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from tera_mind.diffusion.schedule import respace
from tera_mind.errors import FormatError, InputError, MissingFileError
from tera_mind.geometry import Box
from tera_mind.model.collage import counts_to_patches
from tera_mind.model.config import ModelConfig
from tera_mind.model.published import import_state
from tera_mind.model.unet import GeneMorphUNet
from tera_mind.sampling.domain import Domain
from tera_mind.sampling.plain import CountSource, OnBlock, SamplerSettings, sample_steps

#: array -> largest absolute difference allowed: one pass, 15 steps (early ones amplify up to 87 times), the schedule
TOLERANCES = {
    "timesteps": 0.0,
    "betas_respaced": 1e-9,
    "gene_attention": 1e-4,
    "gene_feature_0": 1e-4,
    "gene_feature_2": 1e-4,
    "eps_patch": 1e-4,
    "eps_boundary": 1e-4,
    "sample_step1": 1e-4,
    "sample_final": 1e-3,
}
_INPUTS = ("x", "t", "genes", "sample_noise", "sample_genes")
_META = (
    "genes", "gene_slices", "image_slices", "stains", "patch_size", "gene_bins_per_patch", "base_channels",
    "channel_mult", "time_embed_channels", "res_blocks", "attention_resolution", "steps", "region_patches",
)  # fmt: skip


@dataclass(frozen=True)
class Comparison:
    """One array here against the golden one; the difference is infinite where shapes differ."""

    name: str
    difference: float
    tolerance: float

    @property
    def ok(self) -> bool:
        """Within tolerance; a difference that is not a number is not."""
        return self.difference <= self.tolerance


@dataclass(frozen=True)
class Golden:
    """A golden file in memory."""

    config: ModelConfig
    steps: int
    region: Box
    state: Mapping[str, Tensor]
    data: Mapping[str, NDArray[Any]]

    @staticmethod
    def read(path: str | Path) -> Golden:
        """Raises `MissingFileError`, or `FormatError` where the file is damaged, foreign or lacks arrays."""
        path = Path(path)
        if not path.is_file():
            raise MissingFileError(f"no golden file at {path}: give the .npz files of the reference model")
        arrays = _read_arrays(path)
        wanted = ["meta", *(f"data/{name}" for name in (*_INPUTS, *TOLERANCES))]
        missing = [name for name in wanted if name not in arrays]
        if missing:
            raise FormatError(f"{path} is no golden file: expected arrays {', '.join(missing)} are not in it")
        try:
            meta = json.loads(str(arrays["meta"]))
            rows, columns = meta["region_patches"]
            config = _config({name: meta[name] for name in _META})
        except (ValueError, KeyError, TypeError, ZeroDivisionError, InputError) as error:
            raise FormatError(f"{path}: its meta describes no network of this kind: {error}") from error
        return Golden(
            config=config,
            steps=meta["steps"],
            region=Box(0, rows * config.patch_px, 0, columns * config.patch_px),
            state={k.removeprefix("state/"): torch.from_numpy(v) for k, v in arrays.items() if k.startswith("state/")},
            data={k.removeprefix("data/"): v for k, v in arrays.items() if k.startswith("data/")},
        )

    def tensor(self, name: str) -> Tensor:
        return torch.from_numpy(self.data[name])

    def region_counts(self) -> CountSource:
        """Counts of the sampled region; the array begins half a patch before it."""
        counts: Float[Tensor, "gene section bin_y bin_x"] = self.tensor("sample_genes").transpose(0, 1)

        def source(box: Box) -> Float[Tensor, "gene section bin_y bin_x"]:
            shifted, bin_px = box.shift(self.config.halo_px, self.config.halo_px), self.config.bin_px
            bins = Box(
                shifted.y0 // bin_px, shifted.y1 // bin_px, shifted.x0 // bin_px, shifted.x1 // bin_px
            )  # whole bins: halo and patches are multiples of a bin
            return counts[(..., *bins.slices())]

        return source


def verify(golden: Golden, on_block: OnBlock = lambda: None) -> Iterator[Comparison]:
    """Yield one comparison an array, quick ones first; raises `FormatError` where the weights are not this model's."""
    network = GeneMorphUNet(golden.config)
    network.load_state_dict(import_state(golden.config, golden.state))
    network.eval()

    def compare(name: str, value: NDArray[Any] | Tensor) -> Comparison:
        return Comparison(name, difference(np.asarray(value), golden.data[name]), TOLERANCES[name])

    path = respace(golden.steps)
    yield compare("timesteps", np.array(path.timesteps[::-1]))
    yield compare("betas_respaced", path.betas)
    counts = counts_to_patches(golden.tensor("genes").transpose(1, 2), golden.config.bins)
    with torch.no_grad():
        attention, features = network.pyramid.attention(counts), network.pyramid(counts)
        patch, boundary = network(golden.tensor("x"), golden.tensor("t"), counts)
    yield compare("gene_attention", attention)
    yield compare("gene_feature_0", features[0])
    yield compare("gene_feature_2", features[2])
    yield compare("eps_patch", patch)
    yield compare("eps_boundary", boundary)
    settings = SamplerSettings("epsilon", golden.steps)
    domain = Domain.whole(golden.region, golden.config.patch_px)
    noise = golden.tensor("sample_noise")[0]
    states = list(sample_steps(network, golden.region_counts(), lambda _step, _box: noise, domain, settings, on_block))
    yield compare("sample_step1", states[0][None])
    yield compare("sample_final", states[-1][None])


def difference(value: NDArray[Any], reference: NDArray[Any]) -> float:
    """Largest absolute difference; infinite where shapes differ."""
    if value.shape != reference.shape:
        return float("inf")
    return float(np.abs(value.astype(np.float64) - reference.astype(np.float64)).max(initial=0.0))


def _read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except (
        OSError,
        ValueError,
        EOFError,
        KeyError,
        AttributeError,
        TypeError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        raise FormatError(
            f"{path} cannot be read as a golden file (.npz): {str(error).splitlines()[0] if str(error) else 'empty'}; "
            "copy it again"
        ) from error


def _config(meta: Mapping[str, Any]) -> ModelConfig:
    config = ModelConfig(
        genes=meta["genes"],
        stains=meta["stains"],
        gene_sections=meta["gene_slices"],
        patch_px=meta["patch_size"],
        bin_px=meta["patch_size"] // meta["gene_bins_per_patch"],
        base_channels=meta["base_channels"],
        channel_mult=tuple(meta["channel_mult"]),
        res_blocks=meta["res_blocks"],
        time_channels=meta["time_embed_channels"],
        attention_px=meta["attention_resolution"],
    )
    if config.sections != meta["image_slices"]:
        raise InputError(
            f"{meta['gene_slices']} gene sections give {config.sections} image sections, it says {meta['image_slices']}"
        )
    return config
