"""The reference of all settings is the one that the code generates."""

from __future__ import annotations

from tiny_training import ROOT

from tera_mind.cli.reference import reference


def test_reference_is_up_to_date():
    page = reference()
    written = (ROOT / "docs" / "configuration.md").read_text()
    assert written == page, "run: python -m tera_mind.cli.reference > docs/configuration.md"
    for key in ("`dropout`", "`activation_checkpointing`", "`shards`", "`max_bad_steps`", "`val_check_interval`"):
        assert f"| {key} |" in page
    assert "required |  |" not in page
