"""Benchmarks keep their convention: both ways compute the same, a table, one last line of JSON."""

from __future__ import annotations

import importlib.util
import json

import pytest
import torch
from tiny_training import ROOT

from tera_mind.model import layers


@pytest.fixture(scope="module")
def train_step():
    spec = importlib.util.spec_from_file_location("train_step", ROOT / "benchmarks" / "train_step.py")
    module = importlib.util.module_from_spec(spec)
    import sys

    sys.modules["train_step"] = module  # its dataclasses look their annotations up there
    spec.loader.exec_module(module)
    yield module
    del sys.modules["train_step"]


def test_train_step_prints_a_table_and_a_line_of_json(train_step, capsys):
    assert train_step.main(["--tiny", "--device", "cpu"]) == 0
    *table, last = capsys.readouterr().out.strip().splitlines()
    result = json.loads(last)
    assert result["benchmark"] == "train_step"
    assert result["ratio"] > 0
    cases = [(row["sections"], row["precision"]) for row in result["rows"]]
    assert cases == [(1, "float32"), (1, "bf16"), (2, "float32"), (2, "bf16")]
    for row in result["rows"]:
        assert row["ratio_min"] <= row["ratio"] <= row["ratio_max"]
        assert row["difference"] <= train_step.TOLERANCE[row["precision"]]
    assert result["threads"] == torch.get_num_threads()
    assert any(torch.__version__ in line for line in table)


def test_the_rival_is_plain(train_step, monkeypatch):
    """One section: cubes whose outer planes are zero, nothing of ours that is fused, the same function of x."""
    config = train_step.ModelConfig(**train_step.SHAPES["tiny"], gene_sections=1, dropout=0.0)
    network = train_step.GeneMorphUNet(config)
    plain = train_step.plain_network(network)
    kinds = {type(module) for module in plain.modules()}
    assert not kinds & {train_step.RMSNorm, train_step.SectionConv, train_step.ResBlock}
    cubes = [m for m in plain.modules() if isinstance(m, torch.nn.Conv3d) and m.kernel_size == (3, 3, 3)]
    blocks = [m for m in network.modules() if isinstance(m, train_step.ResBlock)]
    assert len(cubes) == 2 * len(blocks)
    assert sum(p.numel() for p in plain.parameters()) > sum(p.numel() for p in network.parameters())
    x, t = torch.randn(4, 2, 16, 16), torch.tensor([7])
    counts = torch.poisson(torch.ones(4, 5, 1, 4, 4))
    results = [network(x, t, counts)]
    with monkeypatch.context() as patch:
        patch.setattr(layers, "norm_silu", lambda *_: pytest.fail("the rival runs our fused norm"))
        patch.setattr(layers, "plane_products", lambda *_: pytest.fail("the rival runs our plane products"))
        results.append(plain(x, t, counts))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-5)


def test_a_rival_that_computes_something_else_is_refused(train_step, monkeypatch):
    def wrong(network):
        plain = train_step.copy.deepcopy(network)
        torch.nn.init.zeros_(plain.head.weight)
        return plain

    monkeypatch.setattr(train_step, "plain_network", wrong)
    with pytest.raises(SystemExit, match="the two ways differ"):
        train_step.main(["--tiny", "--device", "cpu"])


def test_cost_of_the_virtual_brain_is_measured(capsys):
    spec = importlib.util.spec_from_file_location("simulate_cost", ROOT / "benchmarks" / "simulate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.main(["--tiny"]) == 0
    *table, last = capsys.readouterr().out.strip().splitlines()
    result = json.loads(last)
    assert result["benchmark"] == "simulate"
    assert result["megapixels_s"] > 0
    assert result["transcripts_s"] > 0
    assert len(table) == 2 + len(result["rows"])
