"""Published checkpoints become ours, weight for weight; anything else is refused with one line."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from tiny_brain import make_brain
from tiny_model import counts_for, normal, published_state, tiny_config, tiny_network
from torch import Tensor

from tera_mind.cli.main import main
from tera_mind.errors import FormatError, MissingFileError
from tera_mind.model.checkpoint import VERSION, load_checkpoint
from tera_mind.model.config import ModelConfig
from tera_mind.model.published import published_names
from tera_mind.model.published_file import PublishedName, published_config
from tera_mind.model.unet import GeneMorphUNet

NAME = "638850_32_5_all_1_ours"
GENES = ("Aqp4", "Gad2", "Mog", "Slc17a7", "Vip")


def published(folder: Path, name: str = NAME, **more: Any) -> tuple[Path, GeneMorphUNet]:
    """A published checkpoint of a tiny network, in a folder of the published form."""
    network = tiny_network(tiny_config(), dtype=torch.float32)
    path = folder / name / "checkpoints" / "last.ckpt"
    path.parent.mkdir(parents=True)
    content: dict[str, Any] = {"epoch": 3, "state_dict": published_state(network), "pytorch-lightning_version": "2.1"}
    torch.save(content | more, path)
    return path, network


def genes_file(folder: Path, genes: tuple[str, ...] = GENES) -> Path:
    path = folder / "genes.txt"
    path.write_text("\n".join(genes) + "\n\n")
    return path


def run(checkpoint: Path, folder: Path, *more: str) -> int:
    genes = [] if "--genes" in more else ["--genes", str(genes_file(folder))]
    return main(["import-checkpoint", str(checkpoint), "--out", str(folder / "ours.ckpt"), *genes, *more])


def refused(capsys: pytest.CaptureFixture[str], folder: Path) -> str:
    """The one line of a refusal, which has left nothing behind."""
    error = capsys.readouterr().err
    assert error.startswith("tera-mind import-checkpoint: error: ")
    assert error.count("\n") == 1
    assert not [path.name for path in folder.iterdir() if "ours.ckpt" in path.name]
    return error


@torch.no_grad()
def test_an_imported_checkpoint_is_the_same_function(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, network = published(tmp_path)
    assert run(path, tmp_path) == 0
    words = capsys.readouterr().out
    assert f"{sum(p.numel() for p in network.parameters()):,} parameters" in words
    assert NAME in words
    ours = load_checkpoint(tmp_path / "ours.ckpt")
    assert ours.info.model == network.config
    assert ours.info.genes == GENES
    assert ours.info.stains == ("DAPI", "PolyT")
    assert ours.info.pixel_um == 0.108
    assert ours.info.prediction == "epsilon"
    assert ours.info.intensity_range == {"DAPI": (0.0, 255.0), "PolyT": (0.0, 255.0)}
    x, t, counts = normal(4, 2, 32, 32).float(), torch.tensor([321]), counts_for(network.config, 4, 2, 2).float()
    for a, b in zip(ours.network(x, t, counts), network(x, t, counts), strict=True):
        assert torch.equal(a, b)


def test_genes_come_from_a_brain_too(tmp_path: Path) -> None:
    brain = make_brain(tmp_path / "brain.zarr", genes=GENES)
    path, _ = published(tmp_path)
    more = ("--genes", str(brain.path), "--stains", "A, B", "--pixel-um", "0.5")
    assert run(path, tmp_path, *more) == 0
    info = load_checkpoint(tmp_path / "ours.ckpt").info
    assert (info.genes, info.stains, info.pixel_um) == (GENES, ("A", "B"), 0.5)


def shaped(config: ModelConfig) -> dict[str, Tensor]:
    """Weights of the published names and shapes, without memory."""
    shapes = GeneMorphUNet.parameter_shapes(config)
    return {theirs: torch.empty(shapes[ours], device="meta") for ours, theirs in published_names(config).items()}


@pytest.mark.parametrize("gene_sections", [1, 4, 8, 16])
@pytest.mark.parametrize("patch_px", [32, 64, 128])
def test_the_shape_is_read_from_the_weights(gene_sections: int, patch_px: int) -> None:
    config = ModelConfig(
        genes=9, gene_sections=gene_sections, patch_px=patch_px, bin_px=16, base_channels=4, time_channels=12, stains=3
    )
    assert published_config(shaped(config)) == config
    other = tiny_config(gene_sections=gene_sections, res_blocks=3)
    assert published_config(shaped(other)) == other


def test_names_of_the_published_form() -> None:
    name = PublishedName.parse("638850_64_229_all_4_ours")
    assert name == PublishedName("638850_64_229_all_4_ours", "638850", 64, 229, 4, "ours")
    assert PublishedName.parse("last") is None
    assert PublishedName.of_path(Path("/runs/638850_64_229_all_4_ours/version_0/last.ckpt")) == name
    assert PublishedName.of_path(Path("/runs/638850_64_229_all_4_ours.ckpt")) == name
    assert PublishedName.of_path(Path("/runs/last.ckpt")) is None


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("638850_64_5_all_1_ours", "patch_px 64, its weights 32"),
        ("638850_32_229_all_1_ours", "genes 229, its weights 5"),
        ("638850_32_5_all_4_ours", "gene sections 4, its weights 1"),
    ],
)
def test_a_name_that_contradicts_the_weights_is_refused(
    tmp_path: Path, name: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path, _ = published(tmp_path, name)
    assert run(path, tmp_path) == 2
    assert words in refused(capsys, tmp_path)
    assert run(path, tmp_path, "--name", NAME) == 0


def test_extra_and_missing_keys_are_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = published_state(tiny_network(tiny_config(), dtype=torch.float32))
    del state["model.middle_block.0.in_layers.2.bias"]
    path, _ = published(tmp_path, state_dict=state | {"model.extra.weight": torch.zeros(2)})
    assert run(path, tmp_path) == 2
    error = refused(capsys, tmp_path)
    assert "missing model.middle_block.0.in_layers.2.bias; extra model.extra.weight" in error


@pytest.mark.parametrize(
    "key", ["model.rna_blocks.0.0.down_z.weight", "model.input_blocks.1.0.in_layers.2.weight", "model.out.2.weight"]
)
def test_a_missing_weight_that_tells_the_shape_is_named(
    tmp_path: Path, key: str, capsys: pytest.CaptureFixture[str]
) -> None:
    state = published_state(tiny_network(tiny_config(), dtype=torch.float32))
    del state[key]
    path, _ = published(tmp_path, state_dict=state)
    assert run(path, tmp_path) == 2
    assert key in refused(capsys, tmp_path)


def test_a_weight_of_another_shape_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = published_state(tiny_network(tiny_config(), dtype=torch.float32))
    state["model.out.2.bias"] = torch.zeros(3)
    path, _ = published(tmp_path, state_dict=state)
    assert run(path, tmp_path) == 2
    assert "model.out.2.bias (3,) (expected (2,))" in refused(capsys, tmp_path)


@pytest.mark.parametrize("kind", ["missing", "empty", "text", "truncated", "no weights", "ours"])
def test_a_file_that_is_no_published_checkpoint_is_one_line(
    tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path, _ = published(tmp_path)
    if kind == "missing":
        path.unlink()
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_text("not a checkpoint")
    elif kind == "truncated":
        path.write_bytes(path.read_bytes()[:20_000])
    elif kind == "no weights":
        torch.save({"epoch": 3}, path)
    else:
        torch.save({"tera_mind": {}, "state_dict": {"network.norm.weight": torch.zeros(1)}}, path)
    assert run(path, tmp_path) == 2
    error = refused(capsys, tmp_path)
    assert str(path) in error
    assert "trust" not in error, "a damaged file is no reason to run its code"


def test_pickled_objects_need_trust(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, _ = published(tmp_path, hyper_parameters=argparse.Namespace(lr=2e-5))
    assert run(path, tmp_path) == 2
    error = refused(capsys, tmp_path)
    assert "--trust-pickle" in error
    assert "argparse.Namespace" in error
    assert run(path, tmp_path, "--trust-pickle") == 0


def test_objects_of_code_that_is_not_here_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = ModuleType("published_code")
    module.Settings = type("Settings", (), {"__module__": "published_code"})  # type: ignore[attr-defined]
    with monkeypatch.context() as context:
        context.setitem(sys.modules, "published_code", module)
        path, _ = published(tmp_path, hyper_parameters=module.Settings())
    assert run(path, tmp_path, "--trust-pickle") == 2
    error = refused(capsys, tmp_path)
    assert "published_code" in error
    assert "PYTHONPATH" in error


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--stains", "DAPI"), "has 2 stains"),
        (("--stains", "DAPI,DAPI"), "has 2 stains"),
        (("--pixel-um", "0"), "--pixel-um must be above 0"),
        (("--name", "ours"), "--name is like"),
        (("--genes", "no-such-file.txt"), "no genes at no-such-file.txt"),
    ],
)
def test_what_cannot_be_true_is_refused(
    tmp_path: Path, more: tuple[str, ...], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path, _ = published(tmp_path)
    assert run(path, tmp_path, *more) == 2
    assert words in refused(capsys, tmp_path)


@pytest.mark.parametrize(
    ("genes", "words"),
    [(GENES[:4], "trained on 5 genes"), ((*GENES[:4], "Aqp4"), "names genes twice: Aqp4")],
)
def test_a_wrong_panel_is_refused(
    tmp_path: Path, genes: tuple[str, ...], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path, _ = published(tmp_path)
    panel = tmp_path / "panel.txt"
    panel.write_text("\n".join(genes))
    assert run(path, tmp_path, "--genes", str(panel)) == 2
    assert words in refused(capsys, tmp_path)


def test_an_existing_checkpoint_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, _ = published(tmp_path)
    (tmp_path / "ours.ckpt").write_text("precious")
    assert run(path, tmp_path) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert (tmp_path / "ours.ckpt").read_text() == "precious"
    assert run(path, tmp_path, "--overwrite") == 0
    assert load_checkpoint(tmp_path / "ours.ckpt").info.genes == GENES


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"not a checkpoint", "cannot be read as a checkpoint"),
        (b"", "cannot be read as a checkpoint"),
        ({"state_dict": {}}, "import-checkpoint"),
        ({"tera_mind": {"version": VERSION + 1}, "state_dict": {}}, f"version {VERSION + 1}"),
    ],
)
def test_generation_reads_only_our_checkpoints(tmp_path: Path, content: Any, words: str) -> None:
    path = tmp_path / "last.ckpt"
    with pytest.raises(MissingFileError, match="no checkpoint at"):
        load_checkpoint(path)
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(FormatError, match=words):
        load_checkpoint(path)
