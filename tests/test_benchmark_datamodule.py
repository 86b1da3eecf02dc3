"""The benchmark of the data module: all ways give the same pairs, a table, one last line of JSON."""

from __future__ import annotations

import importlib.util
import json
import sys

import pytest
from tiny_training import ROOT


@pytest.fixture
def benchmark(monkeypatch):
    spec = importlib.util.spec_from_file_location("benchmark_datamodule", ROOT / "benchmarks" / "datamodule.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "benchmark_datamodule", module)  # its dataclasses look their annotations up there
    spec.loader.exec_module(module)
    monkeypatch.setattr(module.SlabReader.__init__, "__defaults__", module.SlabReader.__init__.__defaults__)
    return module


def test_it_compares_three_ways_and_prints_json(benchmark, capsys):
    assert benchmark.main(["--tiny"]) == 0
    *table, last = capsys.readouterr().out.strip().splitlines()
    result = json.loads(last)
    assert result["benchmark"] == "datamodule"
    assert [row["way"] for row in result["rows"]] == ["stream", "completed", "workers", "store", "tiles"]
    assert result["difference"] == 0
    assert result["ratio"] > 1
    assert 153 < result["h100_needs_pairs_s"] < 154
    assert len(table) >= 8


@pytest.mark.slow
def test_a_way_that_gives_something_else_is_refused(benchmark, monkeypatch):
    from_tile = benchmark.from_tile
    monkeypatch.setattr(benchmark, "from_tile", lambda *a: tuple(part + 1 for part in from_tile(*a)))
    with pytest.raises(SystemExit, match="the ways differ"):
        benchmark.main(["--tiny"])
