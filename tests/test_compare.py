"""`tera-mind compare`: aligned, tested, tabled and drawn; checked against scipy and with planted differences."""

from __future__ import annotations

import csv
import itertools
import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from metrics_folder import boxes, write_metrics_folder, write_runs
from PIL import Image
from scipy import stats

from tera_mind.cli import compare as command
from tera_mind.cli.main import main
from tera_mind.errors import InputError
from tera_mind.metrics.compare import estimate, holm, paired_test, rank_biserial, spatial_cells
from tera_mind.report.comparison import figures, latex, morphology, text
from tera_mind.report.comparison.places import Aligned, common_places
from tera_mind.report.comparison.runs import load_entries, short_names, split_run
from tera_mind.report.comparison.scores import Comparison, printed
from tera_mind.report.glossary import GROUPS


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_runs(tmp_path_factory.mktemp("runs"))


def compared(runs: list[str], groups: dict[str, list[str]] | None = None, **options: Any) -> tuple[Comparison, Aligned]:
    entries = load_entries(runs, groups, **options)
    aligned = Aligned(entries)
    return command.measure(entries, command.find_reference(entries, None), aligned, 500, 0), aligned


def group(folders: Path, steps: int) -> list[str]:
    return [str(folders / f"steps{steps}_{seed}") for seed in range(3)]


# ---- the tests themselves


def test_means_are_tested_as_scipy_tests_them() -> None:
    random = np.random.default_rng(0)
    first, second = random.normal(0.4, 1, (1, 40)), random.normal(0, 1, (1, 40))
    found = paired_test(first, second, np.arange(40), better="higher", resamples=4000)
    expected = stats.wilcoxon(first[0] - second[0])
    assert found.p == pytest.approx(expected.pvalue)
    assert found.difference == pytest.approx((first - second).mean())
    moved = first[0] - second[0]
    ranks = stats.rankdata(abs(moved))
    assert found.effect == pytest.approx((ranks[moved > 0].sum() - ranks[moved < 0].sum()) / ranks.sum())
    boot = stats.bootstrap((moved,), np.mean, n_resamples=4000, method="percentile", rng=1).confidence_interval
    assert found.low == pytest.approx(boot.low, abs=0.05)
    assert found.high == pytest.approx(boot.high, abs=0.05)
    worse = paired_test(first, second, np.arange(40), better="lower", resamples=500)
    assert worse.difference == pytest.approx(-moved.mean())


def test_correlations_are_averaged_over_seeds_and_resampled() -> None:
    random = np.random.default_rng(1)
    real = random.normal(50, 10, 200)
    close, far = (real + random.normal(0, spread, (3, 200)) for spread in (3, 12))
    cells = np.repeat(np.arange(50), 4)
    found = paired_test(close, far, cells, real, better="higher", resamples=2000)
    expected = [np.mean([np.corrcoef(real, row)[0, 1] for row in rows]) for rows in (close, far)]
    assert found.difference == pytest.approx(expected[0] - expected[1])
    assert found.low is not None
    assert found.high is not None
    assert 0 < found.low < found.difference < found.high
    assert (found.test, found.cells, found.n) == ("bootstrap", 50, 200)
    interval, spread = estimate(far, cells, real, resamples=500)
    assert interval.value == pytest.approx(expected[1])
    assert spread == pytest.approx(np.std([np.corrcoef(real, row)[0, 1] for row in far], ddof=1))


def test_methods_of_different_numbers_of_seeds_are_tested_by_their_means() -> None:
    random = np.random.default_rng(4)
    three, one = random.normal(0.5, 1, (3, 30)), random.normal(0, 1, (1, 30))
    found = paired_test(three, one, np.arange(30), better="higher", resamples=200)
    expected = paired_test(three.mean(axis=0)[None], one, np.arange(30), better="higher", resamples=200)
    assert (found.difference, found.p) == pytest.approx((expected.difference, expected.p))


def test_neighbours_that_repeat_each_other_do_not_make_a_difference_surer() -> None:
    """Sixteen copies of every place: resampled one by one the interval would shrink by four."""
    random = np.random.default_rng(2)
    gain = random.normal(0.1, 1, 64)
    many, cells = np.repeat(gain, 16)[None], np.repeat(np.arange(64), 16)
    alone = paired_test(gain[None], np.zeros((1, 64)), np.arange(64), better="higher", resamples=3000)
    copied = paired_test(many, np.zeros((1, 1024)), cells, better="higher", resamples=3000)
    assert copied.p == pytest.approx(alone.p)
    assert (copied.low, copied.high) == pytest.approx((alone.low, alone.high))


def test_cells_are_squares_of_neighbours() -> None:
    places = boxes([0, 1], (0, 2048, 0, 4096), 64)
    cells = spatial_cells(places)
    assert 100 <= len(np.unique(cells)) < 400
    for cell in np.unique(cells)[::7]:
        inside = places[cells == cell]
        assert len(np.unique(inside[:, 0])) == 1
        assert np.ptp(inside[:, 1]) == np.ptp(inside[:, 3]) <= 7 * 64
    few = boxes([0], (0, 256, 0, 256), 64)
    assert len(np.unique(spatial_cells(few))) == len(few)


def test_holm_and_rank_biserial() -> None:
    assert holm([0.01, None, 0.04, 0.03]) == pytest.approx([0.03, None, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert rank_biserial(np.array([1.0, 2.0, 3.0])) == 1.0
    assert rank_biserial(np.array([0.0, -3.0, 1.0, 2.0])) == 0.0


def test_nothing_to_test_is_said() -> None:
    nan = np.full((1, 4), np.nan)
    found = paired_test(nan, nan, np.arange(4), better="higher")
    assert (found.difference, found.p, found.n) == (None, None, 0)
    assert found.reason
    flat = paired_test(np.ones((1, 4)), np.ones((1, 4)), np.arange(4), np.arange(4.0), better="higher", resamples=50)
    assert flat.reason == "not defined: one side is constant"
    same = paired_test(np.ones((1, 4)), np.ones((1, 4)), np.arange(4), better="higher", resamples=50)
    assert (same.difference, same.p, same.effect) == (0.0, 1.0, 0.0)


# ---- runs and places


def test_runs_are_found_and_named(folders: Path, tmp_path: Path) -> None:
    ours = folders / "ours" / "evaluation"
    assert (
        split_run(str(folders / "ours"))
        == split_run(str(ours))
        == split_run(str(ours / "metrics.json"))
        == (ours, None)
    )
    assert split_run(f"{folders / 'ours'}:shuffled") == (ours, "shuffled")
    paths = [tmp_path / "a" / "x" / "evaluation", tmp_path / "b" / "x", tmp_path / "b" / "y"]
    assert short_names([(path, None) for path in paths]) == ["a/x", "b/x", "y"]
    assert short_names([(paths[2], None), (paths[2], "ridge")]) == ["y", "y:ridge"]


def test_one_run_compares_its_methods(folders: Path) -> None:
    entries = load_entries([str(folders / "ours")])
    assert [e.method for e in entries if e.competes] == ["generated", "shuffled", "zeroed", "mean_image", "ridge"]
    assert [e.name for e in entries if not e.competes] == ["Real", "Real vs real"]


def test_places_are_matched_whatever_their_order() -> None:
    places = boxes([0, 2], (0, 256, 0, 512), 64)
    shuffled = np.random.default_rng(3).permutation(len(places))
    part = places[shuffled][: len(places) // 2]
    common, orders = common_places([places, part])
    assert sorted(map(tuple, common.tolist())) == sorted(map(tuple, part.tolist()))
    assert np.array_equal(places[orders[0]], common)
    assert np.array_equal(part[orders[1]], common)
    assert len(common_places([places, part + 1])[0]) == 0


def test_partial_overlap_uses_the_common_patches_and_says_how_many(folders: Path, tmp_path: Path) -> None:
    other = write_metrics_folder(tmp_path / "other", quality=-0.8, seed=3, test_box=(0, 512, 1280, 2048))
    result, aligned = compared([str(folders / "ours"), str(other)])
    assert len(aligned.boxes["patch_boxes"]) == 3 * 4 * 4
    assert any("48 of up to 72 patches" in note for note in result.notes)
    run = aligned.entries[0].runs[0]
    inside = run.arrays["patch_boxes"][:, 3] >= 1280
    score = result.score("ours", "psnr", "DAPI")
    assert score is not None
    assert score.value == pytest.approx(run.arrays["psnr/generated/DAPI"][inside].astype(float).mean())
    assert score.n == 48
    test = result.test("other", "psnr", "DAPI")
    assert test is not None
    assert test.n == 48


# ---- scores, ranks, tests together


def test_a_planted_difference_is_found_and_none_is_not(folders: Path) -> None:
    result, _ = compared([str(folders / name) for name in ("ours", "rival", "twin")])
    for metric, stain in (("psnr", "DAPI"), ("ssim", "PolyT"), ("nuclei_count_error", "DAPI")):
        rival, twin = (result.test(name, metric, stain) for name in ("rival", "twin"))
        assert rival is not None
        assert twin is not None
        assert (rival.verdict, twin.verdict) == ("worse", "undecided")
        assert rival.p_holm is not None
        assert rival.p is not None
        assert rival.p_holm >= rival.p
    psnr = [result.score(name, "psnr", "DAPI") for name in ("ours", "rival", "twin")]
    values = [score.value for score in psnr if score and score.value is not None]
    ranks = [score.rank for score in psnr if score]
    assert sorted(ranks) == [0, 1, 2]
    assert ranks[int(np.argmax(values))] == 1
    assert ranks[int(np.argmin(values))] == 0
    ceiling = result.score("Real vs real", "frechet", "DAPI")
    assert ceiling is not None
    assert (ceiling.rank, ceiling.value) == (0, 22.0)  # lowest, and does not compete


def test_seeds_become_mean_and_spread(folders: Path) -> None:
    result, aligned = compared([], {"5": group(folders, 5), "15": group(folders, 15)})
    runs = aligned.entries[0].runs
    for metric, array in (("psnr", "psnr/generated/DAPI"), ("frechet", None)):
        score = result.score("5", metric, "DAPI")
        rows = [next(r for r in run.table if (r["method"], r["metric"]) == ("generated", metric)) for run in runs]
        values = [row["value"] for row in rows]
        if array:
            values = [float(run.arrays[array].astype(float).mean()) for run in runs]
        assert score is not None
        assert score.value == pytest.approx(np.mean(values))
        assert score.spread == pytest.approx(np.std(values, ddof=1))
        assert (score.low is not None) == bool(array)
        assert score.seeds == 3
    assert [(name, places) for name, places in figures.varied(result)] == [("steps", {"5": 5.0, "15": 15.0})]
    # other networks have other sizes and steps, which nobody varied
    aligned.entries[1].runs[0].settings["generation"]["method"] = "rival"
    assert figures.varied(result) == []


def test_every_figure_is_drawn(folders: Path) -> None:
    result, aligned = compared([], {"5": group(folders, 5), "15": group(folders, 15)})
    drawings = {drawing.name: drawing for drawing in figures.draw_all(result, aligned)}
    assert set(drawings) == {
        *("fidelity", "nuclei_real_against_generated", "nuclei_distributions", "nuclei_correlations"),
        *("nuclei_by_section", "ablation_steps", "sections_fidelity", "sections_nuclei"),
    }
    assert drawings["fidelity"].png.startswith(b"\x89PNG")
    assert drawings["fidelity"].pdf.startswith(b"%PDF")
    assert "72 patches" in drawings["fidelity"].caption


def test_figures_that_have_nothing_to_show_are_left_out(tmp_path: Path) -> None:
    run = write_metrics_folder(tmp_path / "one", sections=(0,), change={"strata": []})
    with np.load(run / "arrays.npz") as file:
        kept = {name: file[name] for name in file.files if not name.startswith(("window", "region", "nucleus"))}
    np.savez(run / "arrays.npz", **kept)
    result, aligned = compared([str(run)])
    assert [d.name for d in figures.draw_all(result, aligned)] == ["fidelity", "nuclei_correlations"]
    assert morphology.scatter(result, aligned, result.entries) is None


@pytest.mark.parametrize(
    ("value", "half", "words"),
    [
        (18.514, 0.42, ("18.51", "0.42")),
        (0.5701, 0.0178, ("0.570", "0.018")),
        (-3.21, 0.5, ("\N{MINUS SIGN}3.21", "0.50")),
        (990.0, None, ("990", "")),
        (1.0021, None, ("1.002", "")),
        (None, None, ("\N{EN DASH}", "")),
    ],
)
def test_numbers_have_the_digits_they_deserve(value: float | None, half: float | None, words: tuple[str, str]) -> None:
    assert printed(value, half) == words


# ---- files


@pytest.fixture(scope="module")
def written(folders: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out") / "comparison"
    arguments = ["compare", *(str(folders / name) for name in ("ours", "rival")), f"{folders / 'ours'}:ridge"]
    names = ["--names", "Ours_1 & 50%", "Rival|#2", "Ridge"]
    assert main([*arguments, *names, "--resamples", "300", "--out", str(out)]) == 0
    return out


def test_the_files_are_there_and_agree(written: Path) -> None:
    assert {path.name for path in written.iterdir()} == {
        *("compare.md", "compare.csv", "compare.tex", "comparison.json", "figures")
    }
    content = json.loads((written / "comparison.json").read_text(encoding="utf-8"))
    assert (content["format"], content["version"], content["reference"]) == ("comparison", 1, "Ours_1 & 50%")
    with (written / "compare.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(content["scores"])
    assert tuple(rows[0]) == text.COLUMNS
    for row, score in zip(rows, content["scores"], strict=True):
        assert (row["name"], row["metric"], row["stain"]) == (score["entry"], score["metric"], score["stain"])
        assert float(row["value"]) == score["value"]
    tested = [row for row in rows if row["p"]]
    assert len(tested) == len(content["tests"])
    assert {row["name"] for row in tested} == {"Rival|#2", "Ridge"}
    page = (written / "compare.md").read_text(encoding="utf-8")
    for path in re.findall(r"\]\((figures/[^)]+)\)", page):
        with Image.open(written / path) as image:
            assert min(image.size) > 200
        assert (written / path).with_suffix(".pdf").read_bytes().startswith(b"%PDF")
    assert "Holm" in page
    tables = [line for line in page.splitlines() if line.startswith("| PSNR")]
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in tables[:2]}) == 1


def test_latex_is_balanced_and_escaped(written: Path) -> None:
    source = (written / "compare.tex").read_text(encoding="utf-8")
    begun, ended = (re.findall(rf"\\{word}{{(\w+\*?)}}", source) for word in ("begin", "end"))
    assert sorted(begun) == sorted(ended)
    assert len(begun) >= 6
    body = source.split("\n", 1)[1]
    assert not re.search(r"(?<!\\)[#%]", body)
    assert body.replace(r"\{", "").replace(r"\}", "").count("{") == body.replace(r"\{", "").replace(r"\}", "").count(
        "}"
    )
    assert len(re.findall(r"(?<!\\)\$", body)) % 2 == 0
    assert all(ord(letter) < 128 for letter in body)
    for columns, rows in re.findall(r"\\begin{tabular}{(\w+)}(.*?)\\end{tabular}", source, re.DOTALL):
        lines = [line for line in rows.splitlines() if line.endswith(r"\\")]
        assert len(lines) > 1
        assert {len(re.findall(r"(?<!\\)&", line)) + 1 for line in lines} == {len(columns)}
        assert rows.count(r"\toprule") == rows.count(r"\midrule") == rows.count(r"\bottomrule") == 1
    assert r"Ours\_1 \& 50\% & Rival\textbar{}\#2 & Ridge" in source
    assert r"\textbf{" in source
    assert r"\underline{" in source
    assert r"{\tiny$\pm$" in source
    assert latex.escape("a_b ~^\\{} 3 µm² < \N{MINUS SIGN}1") == (
        r"a\_b \textasciitilde{}\textasciicircum{}\textbackslash{}\{\} 3 $\mu$m$^2$ \textless{} $-$1"
    )


def test_the_same_command_gives_the_same_files(tmp_path: Path) -> None:
    small = {"stains": ("DAPI",), "sections": (0, 1), "faults": {"generated": 0.0}}
    runs = [str(write_metrics_folder(tmp_path / name, seed=seed, **small)) for seed, name in enumerate(("one", "two"))]
    contents = []
    for name in ("a", "b"):
        arguments = [*runs, "--resamples", "50", "--out", str(tmp_path / name)]
        assert command.run(arguments) == 0
        files = sorted(path for path in (tmp_path / name).rglob("*") if path.is_file())
        contents.append([(path.name, path.read_bytes()) for path in files])
    assert contents[0] == contents[1]


def test_formats_dry_run_and_terminal(
    folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(figures, "draw_all", lambda *_: [])  # drawn by other tests
    base = ["compare", str(folders / "ours"), str(folders / "rival"), "--resamples", "50", "--out", str(tmp_path / "o")]
    assert main([*base, "--dry-run"]) == 0
    words = capsys.readouterr().out
    assert "72 patches" in words
    assert "(reference)" in words
    assert not (tmp_path / "o").exists()
    assert main([*base, "--format", "csv", "--reference", "rival"]) == 0
    assert {path.name for path in (tmp_path / "o").iterdir()} == {"compare.csv", "comparison.json", "figures"}
    words = capsys.readouterr().out
    assert "▲" in words  # ours is better than its rival
    assert "against rival" in words
    table = words[words.index("metric") :].splitlines()
    assert len({len(line) for line in table if line.startswith("│")}) == 1  # a file's table is not broken into lines
    one = ["compare", str(folders / "ours"), "--reference", "ridge", "--resamples", "50", "--format", "md"]
    assert main([*one, "--out", str(tmp_path / "p")]) == 0
    assert "against Ridge" in capsys.readouterr().out


@pytest.mark.slow
def test_wandb_offline(folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logged: list[dict[str, Any]] = []
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    log = wandb.sdk.wandb_run.Run.log
    monkeypatch.setattr(
        wandb.sdk.wandb_run.Run, "log", lambda self, data, *rest, **more: (logged.append(data), log(self, data))[1]
    )
    arguments = [str(folders / "ours"), str(folders / "rival"), "--resamples", "50", "--wandb", "test"]
    assert command.run([*arguments, "--out", str(tmp_path / "o")]) == 0
    assert len(list((tmp_path / "o" / "wandb").glob("offline-run-*/*.wandb"))) == 5  # summary, two runs, real, ceiling
    assert {"compare/scores", "compare/tests", "compare/fidelity"} <= logged[0].keys()
    assert logged[1]["compare/psnr/DAPI"] == pytest.approx(18.5, abs=1)
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(InputError, match="pip install wandb"):
        command.run([*arguments, "--out", str(tmp_path / "p")])


def test_rows_keep_the_order_of_groups(folders: Path) -> None:
    result, _ = compared([str(folders / "ours")])
    groups = [group for group, _ in result.rows()]
    assert groups == [group for group in GROUPS if group in groups]
    assert groups[0] == "Pixel by pixel"
    pairs = list(itertools.chain.from_iterable(pairs for _, pairs in result.rows()))
    assert pairs.index(("psnr", "DAPI")) < pairs.index(("psnr", "PolyT")) < pairs.index(("ssim", "DAPI"))
