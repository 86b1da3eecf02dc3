"""The report's parts: each shows its figures where the evaluation has them, and says so where it has not."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from metrics_folder import write_metrics_folder

from tera_mind.report import scorecard, tables, verdict
from tera_mind.report.glossary import GROUPS, METRICS, NUCLEUS, NULLS, QUESTIONS
from tera_mind.report.inputs import Evaluation
from tera_mind.report.plots import ensemble, genes, looks, nuclei, seams, sections, strata
from tera_mind.report.words import DASH, MINUS

RNG_SEED = 3


def row(method: str, metric: str, value: float | None, better: str = "higher", **more: Any) -> dict[str, Any]:
    facts = {"method": method, "metric": metric, "stain": "DAPI", "value": value, "low": None, "high": None, "n": 9}
    return facts | {"unit": "", "better": better, "reason": None} | more


def pair(metric: str, control: str, low: float, high: float) -> dict[str, Any]:
    return {"metric": metric, "stain": "DAPI", "control": control, "difference": (low + high) / 2} | {
        "low": low,
        "high": high,
        "p": 0.01,
        "n": 9,
    }


def evaluation(table: list[dict[str, Any]] | None = None, **parts: Any) -> Evaluation:
    """An evaluation of one stain, out of nothing."""
    facts: dict[str, Any] = {
        "path": Path(),
        "settings": {"stains": ["DAPI"], "nucleus_stain": "DAPI", "window_px": 128, "region_px": 1024},
        "methods": [],
        "table": table or [],
        "paired": [],
        "acceptance": [],
        "excluded": {},
        "arrays": {},
        "strata": [],
        "ensemble": None,
    }
    return Evaluation(**(facts | parts))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Evaluation:
    """The synthetic evaluation of three sections and two stains."""
    return Evaluation.read(write_metrics_folder(tmp_path_factory.mktemp("evaluation")))


def test_every_metric_of_the_evaluation_has_words() -> None:
    """Of the metrics that the evaluation lists, none is shown by its bare name or outside the groups."""
    from tera_mind.metrics.table import METRICS as MEASURED

    assert MEASURED.keys() - METRICS.keys() - NULLS.keys() == set()
    assert NULLS.keys() <= MEASURED.keys()
    assert set(NULLS.values()) <= METRICS.keys()
    assert {words.group for words in METRICS.values()} <= set(GROUPS) == QUESTIONS.keys()
    assert len({words.label for words in METRICS.values()}) == len(METRICS)
    tiles = {name for name in METRICS if name.startswith("tile_")}
    assert all(METRICS[name].sentence and (METRICS[name].blind or name in tiles) for name in METRICS)


def test_nulls_stand_beside_what_they_judge() -> None:
    found = evaluation(
        [
            row("generated", "seam_step", 1.4, "one"),
            row("generated", "seam_step_null", 1.0, "none", low=0.91, high=1.12),
            row("generated", "frechet", None, "lower", reason="too few tiles"),
            row("ridge", "frechet", None, "lower", reason="too few tiles"),
            row("a-method-with-a-name-of-forty-two-letters", "psnr", 20.0),
        ]
    )
    groups = {group.name: group for group in tables.score_groups(found)}
    assert [r.label for r in groups["Seams"].rows] == ["Seam step"]
    assert groups["Seams"].rows[0].cells[0].chance == f"0.910{DASH}1.12"
    assert groups["Overall look"].rows == []
    assert groups["Overall look"].lacking == ["Fréchet distance (DAPI): too few tiles."]
    assert groups["Pixel by pixel"].columns == ["a-method-with-a-name-of-forty-two-letters"]


def test_counted_and_left_out_squares_are_sentences() -> None:
    said = tables.excluded_words({"patches": 1234, "patches_without_transcripts": 5, "windows": 3})
    assert said == "1 234 patches counted, 5 more left out, because they hold no transcript. 3 windows counted."
    assert "none without transcripts" in tables.excluded_words({"patches": 2, "patches_without_transcripts": 0})


def test_p_values_end_where_the_resamples_do() -> None:
    assert tables.p_words(2 / 1001, 1000) == "≤ 0.002"
    assert tables.p_words(0.04, 1000) == "0.040"
    assert tables.p_words(None, 1000) == DASH


def test_the_verdict_says_where_ridge_is_better_and_what_it_lacks() -> None:
    table = [
        row("generated", "psnr", 20.0, unit="dB"),
        row("ridge", "psnr", 22.0, unit="dB"),
        row("generated", "ssim", 0.6, low=0.5, high=0.7),
        row("ridge", "ssim", 0.65, low=0.55, high=0.75),
        row("generated", "spectrum_distance", 2.0, "lower", unit="dB"),
        row("ridge", "spectrum_distance", 19.0, "lower", unit="dB"),
        *(row(m, "nuclei_count", n, "none") for m, n in (("real", 100.0), ("generated", 90.0), ("ridge", 0.0))),
    ]
    said = verdict.verdict(evaluation(table, paired=[pair("psnr", "ridge", -2.5, -1.5)])).rivals
    faults = "it has no nuclei and its texture is 19.0 dB off (generated 2.00, DAPI)"
    assert said == [f"A ridge regression does better in PSNR (DAPI); {faults}."]
    # without its nuclei and its texture measured, nothing is said of them
    assert verdict.rival_sentences(evaluation(table[:2])) == ["A ridge regression does better in PSNR (DAPI)."]
    better = evaluation(table[:2], paired=[pair("psnr", "ridge", 1.5, 2.5)])
    assert verdict.rival_sentences(better) == [
        "None of the simpler methods (ridge) is better in any score beyond its interval."
    ]
    assert verdict.rival_sentences(evaluation([row("generated", "psnr", 20.0)])) == []


def test_a_strip_puts_the_better_to_the_right_and_clips_trivial_methods() -> None:
    table = [
        row("generated", "frechet", 20.0, "lower", low=15.0, high=25.0),
        row("shuffled", "frechet", 40.0, "lower"),
        row("mean_image", "frechet", 900.0, "lower"),
        row("real_vs_real", "frechet", 5.0, "lower"),
    ]
    found = scorecard.strip(evaluation(table, paired=[pair("frechet", "shuffled", 5, 20)]), "frechet", "DAPI")
    assert found is not None
    at = {mark.method: mark.x for mark in found.marks}
    assert at["mean_image"] == 0 < at["shuffled"] < at["generated"] < at["real_vs_real"] < 100
    assert {mark.method for mark in found.marks if mark.clipped} == {"mean_image"}
    assert found.ends == ("40.0", "0")
    assert found.span is not None
    assert found.span[0] < at["generated"] < found.span[0] + found.span[1]
    assert (found.tone, found.finding) == ("better", "ahead of all")
    assert scorecard.strip(evaluation(table), "frechet", "PolyT") is None


def test_a_ratio_is_as_bad_above_one_as_below() -> None:
    table = [row(m, "nuclei_count_ratio", v, "one") for m, v in (("generated", 1.2), ("shuffled", 0.8), ("ridge", 3.0))]
    table[0] |= {"low": 0.9, "high": 1.5}
    found = scorecard.strip(evaluation(table), "nuclei_count_ratio", "DAPI")
    assert found is not None
    at = {mark.method: mark.x for mark in found.marks}
    assert at["generated"] == pytest.approx(at["shuffled"], abs=0.01)
    assert at["ridge"] < at["generated"]
    assert found.span is not None
    assert sum(found.span) == pytest.approx(100)


@pytest.mark.parametrize(
    ("own", "low", "null_high", "tone", "finding"),
    [
        (1.0, 0.9, 1.1, "better", "no seam"),
        (1.5, 1.3, 1.1, "worse", "seam"),
        (1.2, 1.0, 1.1, "undecided", "perhaps a seam"),
        (0.9, 0.8, 1.7, "worse", "off the border"),
    ],
)
def test_a_seam_is_held_against_real_tissue(own: float, low: float, null_high: float, tone: str, finding: str) -> None:
    table = [
        row("generated", "seam_step", own, "one", low=low, high=own + 0.1),
        row("generated", "seam_step_null", 1.0, "none", low=0.9, high=null_high),
        row("real", "seam_step", 1.0, "one", low=0.9, high=1.1),
        row("real", "seam_step_null", 1.0, "none", low=0.9, high=1.1),
    ]
    found = scorecard.strip(evaluation(table), "seam_step", "DAPI")
    assert found is not None
    assert (found.tone, found.finding) == (tone, finding)
    assert found.band is not None


def test_the_scorecard_has_every_question_that_has_scores(folder: Evaluation) -> None:
    groups = {name: strips for name, _, strips in scorecard.scorecard(folder)}
    assert {"Pixel by pixel", "Overall look", "Nuclei", "Nuclei, one by one"} <= groups.keys()
    assert {strip.stain for strip in groups["Pixel by pixel"]} == {"DAPI", "PolyT"}
    assert scorecard.scorecard(evaluation()) == []


def nucleus_arrays(methods: tuple[str, ...] = ("real", "generated", "real_vs_real")) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(RNG_SEED)
    arrays = {f"nucleus_{q}/{m}": rng.gamma(4, 10, 300) for q in NUCLEUS for m in methods}
    arrays |= {f"nucleus_eccentricity/{m}": rng.uniform(0, 1, 300) for m in methods}
    for m in methods[:2]:
        arrays[f"window_counts/{m}"] = rng.poisson(8, 40)
        arrays[f"region_counts/{m}"] = rng.poisson(90, 6)
        arrays |= {f"window_{q}/{m}": rng.uniform(1, 9, 40) for q in NUCLEUS}
    return arrays


def test_nuclei_have_a_histogram_each_with_the_ceiling() -> None:
    table = [row(m, "nucleus_area_ks", v, "lower") for m, v in (("generated", 0.21), ("real_vs_real", 0.05))]
    part = nuclei.distributions(evaluation(table, arrays=nucleus_arrays()))
    assert [plot.name for plot in part.plots] == [*(f"nucleus_{q}" for q in NUCLEUS), "window_counts"]
    assert part.absent == ""
    assert "generated 0.210, real vs real 0.050" in part.plots[0].caption
    assert "real_vs_real" in part.plots[0].alt
    assert part.plots[0].light != part.plots[0].dark
    arrays = {name: array for name, array in nucleus_arrays().items() if "distance" not in name}
    assert nuclei.distributions(evaluation(arrays=arrays)).absent == (
        "Not in this evaluation: distance to the nearest nucleus."
    )
    assert "no nuclei" in nuclei.distributions(evaluation()).absent


def test_whole_numbers_fall_inside_bins_and_shares_into_their_range() -> None:
    counts = nuclei.bin_edges([np.arange(12.0)], nuclei.Axis("n", whole=True))
    np.testing.assert_array_equal(counts[:3], [-0.5, 0.5, 1.5])
    shares = nuclei.bin_edges([np.array([0.4, 0.5])], nuclei.AXES["eccentricity"])
    assert (shares[0], shares[-1]) == (0, 1)


def test_windows_are_compared_one_by_one() -> None:
    part = nuclei.windows(evaluation(arrays=nucleus_arrays()))
    assert [plot.name for plot in part.plots] == ["window_counts_scatter", "region_counts_scatter", "window_medians"]
    arrays = nucleus_arrays()
    r = np.corrcoef(arrays["window_counts/real"], arrays["window_counts/generated"])[0, 1]
    assert f"r = {r:.2f}" in part.plots[0].caption
    assert "no nuclei in windows" in nuclei.windows(evaluation()).absent
    many = {f"window_counts/{m}": np.random.default_rng(1).poisson(9, 4000) for m in ("real", "generated")}
    assert "darker where there are more" in nuclei.windows(evaluation(arrays=many)).plots[0].caption


def test_texture_is_drawn_and_an_empty_picture_is_named() -> None:
    frequency = np.arange(17) / 20
    power = 1e4 / (1 + np.arange(17.0)) ** 2
    levels = np.random.default_rng(2).integers(1, 900, 256)
    one = np.zeros(256, np.int64)
    one[40] = 5000
    arrays = {
        "spectrum_cycles_per_um": frequency,
        "spectrum/real/DAPI": power,
        "spectrum/generated/DAPI": power * 0.8,
        "spectrum/mean_image/DAPI": np.full(17, 1e-9),
        "histogram/real/DAPI": levels,
        "histogram/generated/DAPI": levels[::-1].copy(),
        "histogram/mean_image/DAPI": one,
    }
    table = [row("generated", "spectrum_distance", 1.25, "lower", unit="dB")]
    part = looks.looks(evaluation(table, arrays=arrays))
    assert [plot.name for plot in part.plots] == ["spectrum_DAPI", "levels_DAPI"]
    assert "generated 1.25" in part.plots[0].caption
    assert part.plots[0].caption.endswith("Not drawn, for it has no structure: mean image.")
    absent = looks.looks(evaluation()).absent
    assert "spectrum of DAPI, grey levels of DAPI" in absent


def profile(peak: int) -> seams.Profile:
    mean = np.full(32, 0.99)
    mean[peak] = 1.31
    return seams.Profile(np.arange(32) - 16, mean, np.full(32, 0.01))


def test_a_grid_off_the_border_is_said_beside_the_profile() -> None:
    flat = seams.Profile(np.arange(32) - 16, np.ones(32), np.full(32, 0.01))
    off = seams.seam_profile("s", "DAPI", {"real": flat, "generated": profile(0)})
    assert "peaks 16 px from the border (1.31)" in off.caption
    for quiet in (profile(17), flat):
        assert "Beware" not in seams.seam_profile("s", "DAPI", {"real": flat, "generated": quiet}).caption


def test_seam_measures_stand_beside_their_null() -> None:
    table = [
        row(m, name, v, "one", low=v - 0.1, high=v + 0.1)
        for name in ("seam_index", "seam_step", "seam_spectrum", "tile_seam_step")
        for m, v in (("real", 1.0), ("generated", 1.3))
    ]
    table += [row("generated", "seam_step_null", 1.0, "none", low=0.9, high=1.1), row("ridge", "seam_step", None)]
    part = seams.measures(evaluation(table))
    assert [plot.name for plot in part.plots] == ["seam_measures_patch_DAPI", "seam_measures_tile_DAPI"]
    assert "Seam step 1.30" in part.plots[0].caption
    without = seams.measures(evaluation([r for r in table if not r["metric"].endswith("null")]))
    assert without.plots[0].light != part.plots[0].light
    assert "no measure of seams" in seams.measures(evaluation()).absent


def gene_arrays() -> dict[str, np.ndarray]:
    real = np.linspace(0.8, -0.1, 40)
    generated = 0.7 * real
    generated[3] = -0.5
    return {
        "gene_r/real": real,
        "gene_r/generated": generated,
        "gene_r/ridge": real,
        "genes": np.array([f"G{i}" for i in range(40)]),
    }


def test_genes_are_sorted_by_what_the_real_picture_shows() -> None:
    shares = {"real": 1.0, "generated": 0.66, "ridge": 0.9}
    table = [row(m, "gene_recovery", v, stain="", low=v - 0.1, high=v + 0.1) for m, v in shares.items()]
    found = genes.genes(evaluation(table, arrays=gene_arrays()))
    assert [plot.name for plot in found.part.plots] == ["gene_r", "gene_recovery"]
    counted = int((gene_arrays()["gene_r/real"] >= 0.1).sum())
    assert f"The {counted} genes that the real picture shows" in found.part.plots[0].caption
    assert found.worst[0] == ("G3", "0.731", f"{MINUS}0.500")
    assert "G3" not in [name for name, _, _ in found.best]
    assert all(float(real) >= 0.1 for _, real, _ in found.best + found.worst)
    caption = found.part.plots[1].caption
    assert "generated 66.0 %" in caption
    assert "Ridge reaches more" in caption
    assert "landmark" in caption
    lower = [r | {"value": 0.5} if r["method"] == "ridge" else r for r in table]
    assert "Ridge reaches more" not in genes.genes(evaluation(lower, arrays=gene_arrays())).part.plots[1].caption
    assert "no gene probe" in genes.genes(evaluation()).part.absent


def test_continuity_needs_two_sections() -> None:
    table = [
        row(m, "z_correlation", v, "none", low=v - 0.1, high=v + 0.1) for m, v in (("real", 0.6), ("generated", 0.8))
    ]
    part = sections.continuity(evaluation(table))
    assert part.plots[0].name == "z_continuity"
    assert "DAPI: real 0.600, generated 0.800" in part.plots[0].caption
    unknown = [r | {"value": None} for r in table]
    assert "needs two neighbouring sections" in sections.continuity(evaluation(unknown)).absent


def stratum(groups: list[str], kind: str = "section") -> list[dict[str, Any]]:
    return [
        row(m, "psnr", 18.0 + i % 5, low=17.0, high=24.0) | {"stratum": kind, "group": g}
        for i, g in enumerate(groups)
        for m in ("generated", "ridge")
    ]


def test_strata_are_drawn_where_there_are_two_groups() -> None:
    part = strata.strata(evaluation(strata=stratum(["a", "b"]) + stratum(["low", "middle", "high"], "density")))
    assert [plot.name for plot in part.plots] == ["strata_section", "strata_density"]
    assert part.absent == "Left out: by region of the map (no region map)."
    alone = strata.strata(evaluation(strata=stratum(["only"])))
    assert alone.plots == []
    assert "by section (one section)" in alone.absent
    many = strata.strata(evaluation(strata=stratum([f"section_{i:03d}" for i in range(40)])))
    assert many.plots[0].name == "strata_section"


def test_the_synthetic_folder_is_stratified_by_section(folder: Evaluation) -> None:
    part = strata.strata(folder)
    assert [plot.name for plot in part.plots] == ["strata_section"]
    assert "by density of transcripts" in part.absent


def seeds() -> dict[str, Any]:
    bins = [{"stain": "DAPI", "spread": 4.0 + i, "error": 7.0 + 2 * i, "n": 5} for i in range(10)]
    return {"seeds": [0, 1, 2], "volumes": [], "calibration": bins}


def test_an_ensemble_has_its_calibration_and_maps() -> None:
    boxes = np.array([(s, y, y + 64, x, x + 64) for s in (0, 1) for y in (128, 192) for x in (0, 64, 128)], np.int64)
    values = np.arange(12, dtype=np.float32)
    arrays = {"patch_boxes": boxes, "uncertainty/DAPI": values, "error/DAPI": values * 2}
    table = [row("ensemble_mean", "spread_error_ratio", 0.5), row("ensemble_mean", "spread_skill", 0.62)]
    part = ensemble.ensemble(evaluation(table, arrays=arrays, ensemble=seeds()))
    assert [plot.name for plot in part.plots] == ["calibration", "uncertainty_DAPI"]
    assert "spread by error 0.500 (too sure of itself)" in part.plots[0].caption
    assert "6 patches" in part.plots[1].caption
    assert "one seed was evaluated" in ensemble.ensemble(evaluation()).absent
    assert "No map of the spread for DAPI" in ensemble.ensemble(evaluation(ensemble=seeds())).absent


def test_a_map_has_every_patch_in_its_place() -> None:
    boxes = np.array([(0, 64, 128, 256, 320), (0, 128, 192, 320, 384)], np.int64)
    np.testing.assert_array_equal(ensemble.patch_map(boxes, np.array([5.0, 7.0])), [[5, np.nan], [np.nan, 7]])


def test_the_folder_is_read_as_written(folder: Evaluation) -> None:
    """Every row of the file stands in exactly one group of the tables, nulls aside."""
    content: Mapping[str, Any] = json.loads((folder.path / "metrics.json").read_text())
    shown = sum(bool(cell.value) for g in tables.score_groups(folder) for r in g.rows for cell in r.cells)
    assert shown == sum(r["metric"] not in NULLS for r in content["table"])
