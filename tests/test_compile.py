"""`model.compile` through `tera-mind fit`, in a process of its own: pytest's shape checks are nothing to trace."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from tiny_training import fit_arguments, tiny_shards


@pytest.mark.slow
@pytest.mark.parametrize("patch_weight", [0.0, 1.0])
def test_a_compiled_run_is_the_plain_one(tmp_path, patch_weight):
    """The same names and, to rounding, the same weights."""
    shards = tiny_shards(tmp_path)
    states = []
    for compiled in (False, True):
        out = tmp_path / str(compiled)
        settings = {"model__compile": compiled, "model__patch_weight": patch_weight, "model__decay": "constant"}
        arguments = fit_arguments(shards, out, trainer__limit_val_batches=0, **settings)
        command = [sys.executable, "-m", "tera_mind.cli.main", "fit", *arguments]
        subprocess.run(command, check=True, capture_output=True)
        states.append(torch.load(out / "last.ckpt", weights_only=True))
    plain, made = states
    assert made["global_step"] == plain["global_step"] == 4
    assert made["state_dict"].keys() == plain["state_dict"].keys()
    for name, value in plain["current_model_state"].items():
        torch.testing.assert_close(made["current_model_state"][name], value, rtol=1e-3, atol=1e-4)
