"""The rivals of `benchmarks/windows.py` read the same transcripts as the store; it ends with a line of JSON."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from tera_mind.geometry import Box


@pytest.fixture(scope="module")
def windows():
    path = Path(__file__).resolve().parents[1] / "benchmarks" / "windows.py"
    spec = importlib.util.spec_from_file_location("windows_benchmark", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_parquet_reads_the_same_and_a_wrong_reader_is_refused(windows, tmp_path):
    brain = windows.make_store(tmp_path / "b.zarr", 600, 500)
    store = windows.store_reader(brain)
    boxes = [Box(y, y + 128, x, x + 128) for y, x in ((0, 0), (200, 200), (250, 472), (472, 130))]
    for name, settings in windows.PARQUET.items():
        parquet = windows.ParquetSections(tmp_path / name, brain, *settings)
        times = windows.measure({"store 500 genes": store, name: parquet}, boxes, slow=1)
        assert times[name].shape == (2, len(boxes))

    def wrong(section, box):
        y, x, gene, count = store(section, box)
        return y, x, np.roll(gene, 1), count

    with pytest.raises(SystemExit, match="read other transcripts"):
        windows.measure({"store 500 genes": store, "wrong": wrong}, boxes, slow=1)


def test_the_larger_panel_has_the_same_transcripts(windows):
    small, large = (windows.make_sections(600, genes) for genes in windows.PANELS)
    for one, other in zip(small, large, strict=True):
        np.testing.assert_array_equal(np.sort(one.y * 600 + one.x), np.sort(other.y * 600 + other.x))
        assert other.gene.max() > 15_000


@pytest.mark.slow
def test_windows_prints_a_table_and_a_line_of_json(windows, capsys):
    pytest.importorskip("spatialdata")
    assert windows.main(["--tiny"]) == 0
    *table, last = capsys.readouterr().out.strip().splitlines()
    result = json.loads(last)
    assert result["benchmark"] == "windows"
    assert result["ratio"] > 1
    assert set(result["median_ms"]) == {"store 500 genes", "store 20,000 genes", "spatialdata", *windows.PARQUET}
    assert len(table) >= 3 + len(result["median_ms"])
