"""The benchmark of ingest keeps the convention: the ways agree, a table, one last line of JSON."""

from __future__ import annotations

import importlib.util
import json

import pytest
from tiny_training import ROOT


@pytest.fixture(scope="module")
def benchmark_ingest():
    spec = importlib.util.spec_from_file_location("benchmark_ingest", ROOT / "benchmarks" / "ingest.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow  # spatialdata-io takes long to start
def test_a_tiny_section(benchmark_ingest, capsys, tmp_path):
    assert benchmark_ingest.main(["--tiny", "--work", str(tmp_path), "--workers", "1"]) == 0
    *table, last = capsys.readouterr().out.strip().splitlines()
    result = json.loads(last)
    assert result["benchmark"] == "ingest"
    assert result["transcripts"] == result["spatialdata_rows"] == 20_000
    assert set(result["peak_gb"]) == {"pandas", "ours", "spatialdata", "whole"}
    assert result["ratio_min"] <= result["ratio"] <= result["ratio_max"]
    assert result["under_3_gb"]
    assert any("pyarrow" in line for line in table)


def test_another_count_is_refused(benchmark_ingest):
    benchmark_ingest.same_genes("ours", {"A": 3, "B": 0}, {"A": 3})
    with pytest.raises(SystemExit, match="the two ways differ"):
        benchmark_ingest.same_genes("ours", {"A": 3, "B": 1}, {"A": 3})
