"""The tutorial of docs/interventions.md, its own words and files, run at a small size."""

from __future__ import annotations

import importlib
import json
import re
import shlex

import pytest
from tiny_training import ROOT

from tera_mind.errors import PanelMismatchError

TEXT = (ROOT / "docs" / "interventions.md").read_text()
#: what makes a command small; the last of an option given twice counts
SMALL = {
    "simulate": [],
    "attention": ["--region", "384:512,640:800", "--workers", "1"],
    "intervene": shlex.split("--steps 1 --region 256:384,576:736 --resamples 20 --device cpu --precision 32"),
}


def test_the_tutorial_runs_as_it_stands(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    part = TEXT.split("## Tutorial")[1].split("## The file")[0]
    for name, content in re.findall(r"`(\w+\.yaml)`:\n\n```yaml\n(.*?)```", part, re.DOTALL):
        (tmp_path / name).write_text(content)
    lines = [line for block in re.findall(r"```sh\n(.*?)```", part, re.DOTALL) for line in block.strip().splitlines()]
    assert len(lines) == 5
    commands = []
    for line in lines:
        _, command, *words = shlex.split(line.replace("tera_mind/weights", str(ROOT / "tera_mind" / "weights")))
        words = ["1" if before == "--null" else word for before, word in zip(["", *words], words, strict=False)]
        assert importlib.import_module(f"tera_mind.cli.{command}").run([*words, *SMALL[command]]) == 0
        commands.append((command, words))
    summary = json.loads((tmp_path / "myelin" / "summary.json").read_text())
    assert summary["largest_change_beyond_margin"] == 0
    assert summary["doses"][-1]["pixels"]["inside"][0] > 0
    # other genes of equal expression do something too, and the lesion is a true change of the tissue
    assert summary["null"]["pixels"]["null"][0] > 0
    number = next(row for row in summary["towards_target"] if row["quantity"] == "number")
    assert number["true_change"]["value"] < 0
    matched = json.loads((tmp_path / "matched" / "summary.json").read_text())["latent"]
    assert 0 < matched["edited to target"]["gilea"]["1"] < 100
    dopa = ["DOPA" if word == "GLUT" else word for word in commands[2][1]]
    with pytest.raises(PanelMismatchError, match="Th"):
        importlib.import_module("tera_mind.cli.attention").run([*dopa, "--out", "dopa"])
