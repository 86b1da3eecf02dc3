"""`tera-mind compare` and runs that cannot be compared: one line that says why, and no half-written output."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from metrics_folder import write_metrics_folder, write_runs

from tera_mind.cli import compare as command
from tera_mind.cli.main import main
from tera_mind.errors import FormatError
from tera_mind.report.comparison import text
from tera_mind.report.comparison.places import Aligned
from tera_mind.report.comparison.runs import load_entries
from tera_mind.report.comparison.scores import Comparison


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_runs(tmp_path_factory.mktemp("runs"))


def compared(runs: list[str]) -> Comparison:
    entries = load_entries(runs)
    return command.measure(entries, command.find_reference(entries, None), Aligned(entries), 100, 0)


def folder(tmp_path: Path, **changes: Any) -> str:
    return str(write_metrics_folder(tmp_path / "bad", **changes))


def with_array(run: str, name: str, change: Callable[[np.ndarray], np.ndarray]) -> str:
    path = Path(run) / "arrays.npz"
    with np.load(path) as file:
        arrays = {key: file[key] for key in file.files}
    np.savez(path, **(arrays | {name: change(arrays[name])}))
    return run


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (lambda f, t: [str(t / "none")], "no metrics.json in"),
        (lambda f, t: [f"{f}/ours:nope"], "has no method 'nope', it has"),
        (lambda f, t: [], "give at least one RUN"),
        (lambda f, t: [f"{f}/ours:real"], "only real tissue"),
        (lambda f, t: [f"{f}/ours", f"{f}/rival", "--names", "A"], "got 1 names for 2 runs"),
        (lambda f, t: [f"{f}/ours", f"{f}/rival", "--names", "A", "A"], "two lines would be called A"),
        (lambda f, t: [f"{f}/ours", f"{f}/ours"], "two lines would be called"),
        (lambda f, t: [f"{f}/ours", f"{f}/rival", "--reference", "X"], "no line 'X' to be the reference"),
        (lambda f, t: [f"{f}/ours", "--format", "docx"], "--format takes"),
        (lambda f, t: ["--group", "A"], "--group needs NAME=RUN"),
        (lambda f, t: ["--group", f"A={f}/ours,{f}/ours"], "names a run twice"),
        (lambda f, t: ["--group", f"A={f}/ours,{f}/rival:ridge"], "of one method"),
        (lambda f, t: [f"{f}/ours", folder(t, change={"version": 1})], "evaluate again"),
        (lambda f, t: [f"{f}/ours", folder(t, change={"table": [{"method": "generated"}]})], "row 0 of table lacks"),
        (
            lambda f, t: [f"{f}/ours", folder(t, settings={"pixel_um": 0.85})],
            "pixel_um is 0.425 in ours but 0.85",
        ),
        (lambda f, t: [f"{f}/ours", folder(t, settings={"brain_fingerprint": "0" * 16})], "brain_fingerprint is"),
        (lambda f, t: [f"{f}/ours", folder(t, settings={"brain_fingerprint": None})], "which brain it is of"),
        (lambda f, t: [f"{f}/ours", folder(t, settings={"patch_px": 32})], "--patch-px"),
        (lambda f, t: [f"{f}/ours", folder(t, settings={"window_px": 64})], "--window-px"),
        (
            lambda f, t: [f"{f}/ours", folder(t, settings={"nuclei": {"diameter_um": 6}})],
            "nuclei.diameter_um is 8.0 in ours but 6 in bad: evaluate all with the same segmenter",
        ),
        (lambda f, t: [f"{f}/ours", folder(t, stains=("Membrane",))], "nucleus_stain is DAPI"),
        (lambda f, t: [f"{f}/ours", folder(t, test_box=(0, 512, 4096, 4864))], "no patch in common"),
        (lambda f, t: [f"{f}/ours", folder(t, test_box=(64, 576, 1088, 1856))], "no patch in common"),
        (
            lambda f, t: [f"{f}/ours", with_array(folder(t), "psnr/generated/DAPI", lambda a: a[:-1])],
            "psnr/generated/DAPI should have 72 values",
        ),
        (
            lambda f, t: [f"{f}/ours", with_array(folder(t), "patch_boxes", lambda a: a[:, :4])],
            "patch_boxes should be (n, 5)",
        ),
        (
            lambda f, t: [f"{f}/ours", with_array(folder(t), "window_counts/real", lambda a: a + 1)],
            "measured the same real tissue differently",
        ),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    arguments: Callable[[Path, Path], list[str]],
    words: str,
    folders: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["compare", *arguments(folders, tmp_path), "--resamples", "20", "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out" / "comparison.json").exists()


def test_nan_scores_are_dashes_and_nan_patches_are_left_out(folders: Path, tmp_path: Path) -> None:
    def some(values: np.ndarray) -> np.ndarray:
        return np.where(np.arange(len(values)) < 12, np.nan, values).astype(np.float32)

    bad = with_array(folder(tmp_path), "psnr/generated/DAPI", some)
    content = json.loads((Path(bad) / "metrics.json").read_text())
    for row in content["table"]:
        if row["metric"] == "ssim":
            row["value"] = float("nan")
    (Path(bad) / "metrics.json").write_text(json.dumps(content))
    result = compared([str(folders / "ours"), bad])
    test, score = result.test("bad", "psnr", "DAPI"), result.score("bad", "ssim", "DAPI")
    assert test is not None
    assert test.n == 60
    assert score is not None
    assert (score.value, score.rank) == (None, 0)
    assert "NaN" not in text.to_json(result)
    assert "\N{EN DASH}" in text.markdown(result)


def test_an_unwritable_folder_is_said_before_anything_is_computed(
    folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert main(["compare", str(folders / "ours"), "--out", str(tmp_path / "file" / "out")]) == 2
    assert "cannot write into" in capsys.readouterr().err


def test_a_damaged_array_is_a_format_error(tmp_path: Path) -> None:
    run = write_metrics_folder(tmp_path / "run")
    path = run / "arrays.npz"
    data = bytearray(path.read_bytes())
    at = data.index(b"psnr/generated/DAPI") + 400
    data[at : at + 64] = bytes(64)
    path.write_bytes(bytes(data))
    with pytest.raises(FormatError, match="cannot be read"):
        compared([str(run)])
