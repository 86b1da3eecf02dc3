"""Presets: every name is a setting that exists, and an unknown one is refused with those there are."""

from __future__ import annotations

import pytest
from tiny_training import ROOT

from tera_mind.diffusion.schedule import respace
from tera_mind.diffusion.steppers import STEPPERS
from tera_mind.errors import InputError
from tera_mind.sampling.presets import PRESETS, preset


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_a_setting_that_exists(name):
    found = preset(name)
    assert found.stepper in STEPPERS
    assert len(respace(found.steps).timesteps) == found.steps
    assert found.why
    assert "\n" not in found.why


def test_published_is_what_the_paper_used():
    assert (preset("published").stepper, preset("published").steps) == ("ddim", 15)


def test_fast_is_what_the_study_chose():
    """docs/steps.md, as benchmarks/steps.py wrote it, and the preset agree."""
    page = (ROOT / "docs" / "steps.md").read_text()
    words = {"ddim": "DDIM", "dpm++": "DPM-Solver++(2M)", "unipc": "UniPC-2"}
    fast = preset("fast")
    assert f"**The cheapest faithful setting is {words[fast.stepper]} with {fast.steps} steps**" in page


def test_an_unknown_preset_is_refused_with_the_names():
    with pytest.raises(InputError, match=r"no preset 'turbo'; there are published"):
        preset("turbo")
