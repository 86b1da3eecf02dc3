"""The reference of all settings is the one that the code generates, and it is true of every method."""

from __future__ import annotations

import json
import re

import pytest
import yaml
from tiny_training import ROOT, exit_code

from tera_mind.cli.reference import reference
from tera_mind.model.methods import TERA_MIND
from tera_mind.module import MODULES


@pytest.fixture(scope="module")
def page():
    return reference()


def test_reference_is_up_to_date(page):
    written = (ROOT / "docs" / "configuration.md").read_text()
    assert written == page, "run: python -m tera_mind.cli.reference > docs/configuration.md"
    for key in ("`dropout`", "`activation_checkpointing`", "`shards`", "`max_bad_steps`", "`val_check_interval`"):
        assert f"| {key} |" in page
    assert "required |  |" not in page


def section(page, title):
    """What stands between a heading and the next."""
    return re.split(r"\n##+ ", page.partition(f"# `{title}`\n")[2])[0]


def listed(page, title):
    """Setting -> default, of the rows of a section."""
    rows = re.findall(r"^\| `(\w+)` \| `.*?` \| (.*?) \| .+ \|$", section(page, title), re.MULTILINE)
    return {name: json.loads(default) for name, default in rows}


@pytest.mark.parametrize("method", MODULES)
def test_the_page_lists_what_a_method_takes(method, page, capsys):
    shown = listed(page, "model" if method == TERA_MIND else method)
    same = re.search(r"^As for `model`, with the same defaults: (.*)\.$", section(page, method), re.MULTILINE)
    if same:
        shown |= {name: listed(page, "model")[name] for name in same[1].replace("`", "").split(", ")}
    assert exit_code(["fit", "--method", method, "--print_config"]) == 0
    assert shown == yaml.safe_load(capsys.readouterr().out)["model"]
