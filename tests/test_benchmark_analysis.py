"""The benchmark of read-outs: its convention, and that it refuses rows that are not the network's."""

from __future__ import annotations

import importlib.util
import json

import pytest
import torch
from tiny_training import ROOT


@pytest.fixture(scope="module")
def analysis():
    spec = importlib.util.spec_from_file_location("analysis_benchmark", ROOT / "benchmarks" / "analysis.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_costs_are_a_table_and_a_line_of_json(analysis, capsys):
    assert analysis.main(["--tiny", "--device", "cpu", "--part", "cost"]) == 0
    *table, last = capsys.readouterr().out.strip().splitlines()
    result = json.loads(last)
    assert result["benchmark"] == "analysis"
    assert [row["what"] for row in result["cost"]["rows"]] == ["maps", "maps, pairwise", "maps, partners"]
    for row in result["cost"]["rows"]:
        assert 0 < row["ratio_min"] <= row["ratio"] <= row["ratio_max"]
    assert result["ratio"] == result["cost"]["rows"][0]["ratio"]
    assert any(torch.__version__ in line for line in table)


@pytest.mark.slow
def test_an_intervention_costs_two_generations(analysis, capsys):
    assert analysis.main(["--tiny", "--device", "cpu", "--part", "intervention"]) == 0
    found = json.loads(capsys.readouterr().out.strip().splitlines()[-1])["intervention"]
    assert [row["what"] for row in found["rows"]] == ["genes", "second moments"]
    for row in found["rows"]:
        assert 0 < row["ratio_min"] <= row["ratio"] <= row["ratio_max"]


def test_rows_that_are_not_the_networks_are_refused(analysis, monkeypatch):
    monkeypatch.setattr(analysis.readout, "set_attention", lambda found, genes: found[:, genes][:, :, genes] * 0)
    with pytest.raises(SystemExit, match="differ from the network's attention"):
        analysis.main(["--tiny", "--device", "cpu", "--part", "cost"])


@pytest.mark.slow
def test_areas_against_the_simulator(analysis, capsys):
    assert analysis.main(["--tiny", "--device", "cpu", "--part", "areas"]) == 0
    rows = json.loads(capsys.readouterr().out.strip().splitlines()[-1])["areas"]["main"]
    assert {row["set"] for row in rows if "reason" in row} == {"DOPA"}
    glut = {row["score"]: row for row in rows if row["set"] == "GLUT"}
    assert glut["Slc17a7"]["value"] > 0.7
    assert glut["Slc17a7"]["low"] < glut["Slc17a7"]["value"] < glut["Slc17a7"]["high"]
