"""The benchmark of the wavefront runs, and its rival is checked before anything is timed."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture
def wavefront(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import wavefront

    yield wavefront
    for name in ("wavefront", "wavefront_memory", "wavefront_rival"):
        sys.modules.pop(name, None)


@pytest.mark.slow
def test_it_prints_tables_and_a_line_of_json(wavefront, capsys):
    assert wavefront.main(["--tiny", "--device", "cpu"]) == 0
    said = capsys.readouterr().out
    for part in ("## Memory", "## Plan", "## Disk", "## Time", "## Mask"):
        assert part in said
    result = json.loads(said.splitlines()[-1])
    assert result["benchmark"] == "wavefront"
    assert result["ratio"] > 0
    assert {row["workers"] for row in result["plan"]} == set(wavefront.WORKERS)
    assert result["time"]["published_written_a_voxel"] == 2.0  # one step of float16


def test_plans_are_counted_for_every_number_of_workers(wavefront, capsys):
    rows = wavefront.plans(64, 96, 3)
    assert [row["workers"] for row in rows] == [*wavefront.WORKERS] * 2
    assert all(0 < row["product"] <= row["balance"] <= 1 for row in rows)
    assert "| everything | 8 |" in capsys.readouterr().out


def test_a_rival_that_computes_something_else_is_refused(wavefront, monkeypatch):
    class Other:
        io_s, read, written = 0.0, 0, 0

        def __init__(self, *_: object) -> None: ...

        def run(self) -> np.ndarray:
            return np.zeros((2, 64, 64), np.uint8)

    monkeypatch.setattr(wavefront, "DiskSampler", Other)
    monkeypatch.setattr(wavefront, "wavefront", lambda *_: (np.full((2, 64, 64), 9, np.uint8), 0.0))
    monkeypatch.setattr(wavefront, "Generation", lambda *_, **__: _Job())
    monkeypatch.setattr(wavefront, "default_region", lambda _brain, _patch_px, wanted: wanted)
    with pytest.raises(SystemExit, match="differ by up to 9 grey levels"):
        wavefront.against_published(_Brain(), (64, 64), 1, 1, wavefront.torch.device("cpu"))


class _Job:
    groups = (None,)
    settings = None

    def network(self, _device: object) -> None: ...

    def counts(self, _group: object) -> None: ...

    def noise(self, _group: object) -> None: ...

    def domain(self, _group: object) -> None: ...


class _Brain:
    from tera_mind.geometry import Box

    canvas = Box(0, 640, 0, 640)
