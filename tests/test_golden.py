"""`tera-mind verify`: the published model's golden arrays, and what a wrong one looks like."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tiny_model import counts_for, normal, published_state, tiny_config, tiny_network

from tera_mind.cli.main import main
from tera_mind.diffusion.schedule import respace
from tera_mind.geometry import Box
from tera_mind.model.collage import counts_to_patches
from tera_mind.model.published_file import published_config
from tera_mind.sampling.domain import Domain
from tera_mind.sampling.plain import SamplerSettings, sample_steps
from tera_mind.sampling.verify import TOLERANCES, Golden

Arrays = dict[str, NDArray[Any]]


@pytest.fixture(scope="session")
def golden() -> Path:
    """The folder of golden files."""
    root = Path(__file__).resolve().parents[1]
    folder = Path(os.environ.get("TERA_MIND_GOLDEN", root.parent / "shared" / "golden"))
    if not (folder / "golden_1slice.npz").is_file():
        pytest.skip(f"no golden files at {folder}: set TERA_MIND_GOLDEN to the folder that holds golden_1slice.npz")
    return folder


def rows(text: str) -> dict[str, tuple[float, float, str]]:
    """name -> (difference, tolerance, verdict) of the printed table."""
    parts = [line.split() for line in text.splitlines()]
    return {p[0]: (float(p[1]), float(p[2]), p[3]) for p in parts if len(p) == 4 and p[3] in {"ok", "FAIL"}}


@pytest.mark.parametrize("name", ["golden_1slice.npz", "golden_4slices.npz"])
def test_this_is_the_published_model(golden: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(golden / name)]) == 0
    table = rows(capsys.readouterr().out)
    assert table.keys() == TOLERANCES.keys()
    assert {"eps_patch", "eps_boundary", "gene_attention", "sample_final", "timesteps"} <= table.keys()
    for array, (difference, tolerance, verdict) in table.items():
        assert verdict == "ok"
        assert difference <= tolerance <= (1e-3 if array == "sample_final" else 1e-4)


@pytest.mark.parametrize("name", ["golden_1slice.npz", "golden_4slices.npz"])
def test_the_shape_is_told_by_the_published_weights(golden: Path, name: str) -> None:
    file = Golden.read(golden / name)
    assert published_config(file.state) == file.config


def own_golden() -> Arrays:
    """A golden file's content, made by this model itself: small, for what happens when something in it is wrong."""
    config = tiny_config(channel_mult=(1, 1, 2, 2), pyramid_channels=(128, 64, 32), base_channels=2)
    network = tiny_network(config, dtype=torch.float32)
    x, t = normal(8, config.image_channels, 32, 32).float(), torch.tensor([30, 900])
    genes, region_genes = counts_for(config, 2, 4, 4).float(), counts_for(config, 1, 4, 6).float()[0]
    start, path = normal(config.image_channels, 32, 64).float(), respace(1)
    with torch.no_grad():
        counts = counts_to_patches(genes, config.bins)
        patch, boundary = network(x, t, counts)
        features, attention = network.pyramid(counts), network.pyramid.attention(counts)
        region = Golden(config, 1, Box(0, 32, 0, 64), {}, {"sample_genes": region_genes.transpose(0, 1).numpy()})
        settings = SamplerSettings("epsilon", steps=1)
        domain = Domain.whole(region.region, config.patch_px)
        final = next(sample_steps(network, region.region_counts(), lambda _step, _box: start, domain, settings))
    meta = {
        "genes": config.genes, "gene_slices": 1, "image_slices": 1, "stains": 2, "patch_size": 32,
        "gene_bins_per_patch": 2, "base_channels": 2, "channel_mult": [1, 1, 2, 2], "time_embed_channels": 8,
        "res_blocks": 1, "attention_resolution": 16, "steps": 1, "region_patches": [1, 2],
    }  # fmt: skip
    data = {
        "x": x, "t": t, "genes": genes.transpose(1, 2), "eps_patch": patch, "eps_boundary": boundary,
        "gene_attention": attention, "gene_feature_0": features[0], "gene_feature_2": features[2],
        "sample_noise": start[None], "sample_genes": region_genes.transpose(0, 1), "sample_step1": final[None],
        "sample_final": final[None], "timesteps": np.array(path.timesteps), "betas_respaced": path.betas,
    }  # fmt: skip
    return {
        "meta": np.array(json.dumps(meta)),
        **{f"state/{name}": value.numpy() for name, value in published_state(network).items()},
        **{f"data/{name}": np.asarray(value) for name, value in data.items()},
    }


@pytest.fixture(scope="module")
def arrays() -> Arrays:
    return own_golden()


def save(path: Path, arrays: Arrays) -> str:
    np.savez(path, **arrays)
    return str(path)


def test_several_files_are_checked(tmp_path: Path, arrays: Arrays, capsys: pytest.CaptureFixture[str]) -> None:
    file = save(tmp_path / "own.npz", arrays)
    assert main(["verify", file, file]) == 0
    assert capsys.readouterr().out.count("sample_final") == 2


@pytest.mark.parametrize(
    ("changed", "failing"),
    [
        ("data/eps_boundary", {"eps_boundary"}),
        ("data/sample_final", {"sample_final"}),
        ("data/timesteps", {"timesteps"}),
        # another weight of the last convolution shows wherever the network ends, not in the gene branch
        ("state/model.out.2.bias", {"eps_patch", "eps_boundary", "sample_step1", "sample_final"}),
    ],
)
def test_an_array_that_differs_fails(
    tmp_path: Path, arrays: Arrays, changed: str, failing: set[str], capsys: pytest.CaptureFixture[str]
) -> None:
    other = arrays[changed].copy()
    other.flat[0] += 2
    assert main(["verify", save(tmp_path / "perturbed.npz", {**arrays, changed: other})]) == 1
    table = rows(capsys.readouterr().out)
    # a clamped sample may hide the change of a weight, never that of an array
    failed = {name for name, (_, _, verdict) in table.items() if verdict == "FAIL"}
    assert failed <= failing
    assert changed.partition("/")[2] in failed or {"eps_patch", "eps_boundary"} <= failed


@pytest.mark.parametrize("value", [np.zeros((1, 2)), np.full((8, 2, 32, 32), np.nan)])
def test_another_shape_or_no_number_fails(
    tmp_path: Path, arrays: Arrays, value: NDArray[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify", save(tmp_path / "shape.npz", {**arrays, "data/eps_patch": value})]) == 1
    assert rows(capsys.readouterr().out)["eps_patch"][2] == "FAIL"


def damaged(kind: str, folder: Path, arrays: Arrays) -> Path:
    path = folder / "golden.npz"
    if kind == "text":
        path.write_text("not a golden file")
    elif kind == "empty":
        path.touch()
    elif kind == "truncated":
        save(path, arrays)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif kind == "array":
        with path.open("wb") as file:
            np.save(file, np.zeros(3))
    elif kind == "foreign":
        save(path, {"something": np.zeros(3)})
    elif kind == "meta":
        save(path, {**arrays, "meta": np.array("{}")})
    elif kind == "weights":
        save(path, {name: value for name, value in arrays.items() if name != "state/model.out.2.bias"})
    return path


@pytest.mark.parametrize("kind", ["missing", "text", "empty", "truncated", "array", "foreign", "meta", "weights"])
def test_a_file_that_is_no_golden_file_is_one_line(
    tmp_path: Path, arrays: Arrays, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = damaged(kind, tmp_path, arrays)
    assert main(["verify", str(path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("tera-mind verify: error: ")
    assert error.count("\n") == 1
    assert ("model.out.2.bias" if kind == "weights" else str(path)) in error
