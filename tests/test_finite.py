"""A network that gives no numbers ends the work in one line; nothing of it is taken for a volume."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from generate_case import generate, pixels, save_checkpoint
from tiny_baselines import tiny
from tiny_blocks import TinyBlocks, tiny_counts
from tiny_brain import make_brain

from tera_mind.cli import status
from tera_mind.errors import FormatError
from tera_mind.formats.volume import Volume
from tera_mind.geometry import Box, SectionGroup
from tera_mind.model.fast import FastNetwork
from tera_mind.sampling.demand import Demand
from tera_mind.sampling.domain import Domain
from tera_mind.sampling.finite import NotFiniteError
from tera_mind.sampling.kept import ByteCache
from tera_mind.sampling.ledger import Ledger
from tera_mind.sampling.oneshot import keyed_planes, paint
from tera_mind.sampling.plain import SamplerSettings, box_noise
from tera_mind.sampling.wavefront import sweep

REGION = Box(0, 16, 0, 96)
DOMAIN = Domain.whole(REGION, 8)
SETTINGS = SamplerSettings("x0", 3, "ddim", 0.0, 2, 2)
NOISE = box_noise(0, SectionGroup((0,), (0,)), 2)


class Overflows(TinyBlocks):
    """One value is no number in pass number `at` of the second step."""

    def __init__(self, at: int, value: float) -> None:
        super().__init__(dtype=torch.float32)
        self.left, self.value = at, value

    def predict(self, window, t, counts):
        out = super().predict(window, t, counts)
        self.left -= int(t[0]) == SETTINGS.solver.path.timesteps[1]
        if not self.left:
            out[0, 1, 3, 5] = self.value
        return out


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_sweep_ends_before_it_yields_what_is_no_number(value):
    """Infinities too, which clamping makes look like plain pixels."""
    good = list(sweep(TinyBlocks(dtype=torch.float32), tiny_counts, NOISE, DOMAIN, SETTINGS))
    made = sweep(Overflows(4, value), tiny_counts, NOISE, DOMAIN, SETTINGS)
    yielded = []
    with pytest.raises(NotFiniteError, match=r"step 2 of 3 at pixels .*--precision 32") as caught:
        yielded.extend(made)
    assert 0 < len(yielded) < len(good)
    for (box, piece), (other, expected) in zip(yielded, good, strict=False):
        assert box == other
        np.testing.assert_array_equal(piece, expected)
    assert str(caught.value).count("\n") == 0


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_window_on_demand_too(value):
    demand = Demand(Overflows(1, value), tiny_counts, NOISE, DOMAIN, SETTINGS, ByteCache(0))
    with pytest.raises(NotFiniteError, match="step 2 of 3"):
        demand.make([Box(0, 2, 4, 5)])


def test_a_method_of_one_pass_too():
    painter = tiny("regression")
    counts = lambda box: torch.ones(5, 1, box.height // 4, box.width // 4)  # noqa: E731
    planes = keyed_planes(0, SectionGroup((0,), (0,)))
    assert paint(painter, counts, planes, Box(0, 32, 0, 32)).isfinite().all()
    with torch.no_grad():
        for weight in painter.parameters():
            weight.fill_(torch.nan)
    with pytest.raises(NotFiniteError, match="step 1 of 1"):
        paint(painter, counts, planes, Box(0, 32, 0, 32))


def test_the_command_stops_and_publishes_nothing(tmp_path, monkeypatch, capsys):
    brain = make_brain(tmp_path / "b.zarr", shape=(2, 2, 32, 48), rows=500)
    checkpoint, out, real, passes = save_checkpoint(tmp_path / "c.ckpt"), tmp_path / "v.zarr", FastNetwork.predict, []

    def predict(self, window, t, counts):
        passes.append(1)
        found = real(self, window, t, counts)
        return found * torch.inf if len(passes) == 2 else found

    more = ["--block", "1", "--threads", "1", "--mask", "none"]
    with monkeypatch.context() as patch:
        patch.setattr(FastNetwork, "predict", predict)
        assert generate(brain, checkpoint, out, *more) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert len(lines) == 1
    assert "unit-000000 (sections 0, rows 0 to 32): the network gave values that are no finite numbers" in lines[0]
    assert "--precision 32" in lines[0]
    assert len(passes) < 10  # it did not go on with the next unit
    assert not pixels(out)
    assert not Ledger.open(out).rows()
    with pytest.raises(FormatError, match="is not finished"):
        Volume.open(out)
    assert status.run([str(out)]) == 0
    assert "failed     unit-000000" in capsys.readouterr().out
    assert generate(brain, checkpoint, out, *more) == 0
