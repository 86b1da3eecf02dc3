"""The tutorial of docs/attention.md, its own commands, with seconds of training instead of minutes."""

from __future__ import annotations

import importlib
import importlib.util
import json
import re
import shlex

import pytest
from tiny_training import ROOT

from tera_mind.cli.main import main

TEXT = (ROOT / "docs" / "attention.md").read_text()
#: what makes a command small; the last of an option given twice counts
SMALL = {
    "simulate": ["--scale", "0.1", "--sections", "1"], "shards": ["--core-px", "128"],
    "fit": ["--trainer.max_steps", "3", "--trainer.accelerator", "cpu"],
    "attention": ["--workers", "1", "--permutations", "9"],
}  # fmt: skip


@pytest.mark.slow
def test_the_tutorial_runs_as_it_stands(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    part = TEXT.split("## Tutorial")[1].split("## What may not")[0]
    lines = [line for block in re.findall(r"```sh\n(.*?)```", part, re.DOTALL) for line in block.strip().splitlines()]
    assert len(lines) == 8
    for line in lines[:-1]:
        _, command, *words = shlex.split(line.replace("experiments/", f"{ROOT}/experiments/"))
        assert main([command, *words, *SMALL[command]]) == 0
    record = json.loads((tmp_path / "dopa-seen" / "summary.json").read_text())
    assert record["genes"] == ["Nr4a2", "Th"]
    found = record["reproducibility"][0]
    for interval in (found["maps"]["attention"], found["partners"]):
        assert interval["low"] <= interval["value"] <= interval["high"]
    capsys.readouterr()
    _, path, *words = shlex.split(lines[-1])
    spec = importlib.util.spec_from_file_location("analysis_benchmark", ROOT / path)
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    assert benchmark.main([*words, "--tiny", "--device", "cpu"]) == 0
    rows = json.loads(capsys.readouterr().out.strip().splitlines()[-1])["areas"]["unseen"]
    dopa = {row["score"]: row for row in rows if row["set"] == "DOPA"}
    assert dopa["Th"]["positives"] > 0
    assert dopa["Th"]["value"] > 0.7  # what the simulator puts there
    assert set(dopa) == {
        "attention",
        "attention, unweighted",
        "Nr4a2",
        "Th",
        "sum of expression",
        "product of expression",
    }
