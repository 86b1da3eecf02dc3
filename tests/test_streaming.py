"""An evaluation in blocks: the same figures for any blocks and any workers, and again after a kill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from tissue_case import attributes_of, disc_section, make_case, make_tissue, paint

from tera_mind.cli.main import main
from tera_mind.errors import InputError
from tera_mind.formats.brain import Brain, Transcripts, create_brain
from tera_mind.formats.maps import Map
from tera_mind.formats.volume import Volume
from tera_mind.geometry import Box
from tera_mind.metrics.evaluate import EvaluateSettings, evaluate
from tera_mind.metrics.partial import PartialStore
from tera_mind.metrics.regions import RegionMap

SETTINGS = EvaluateSettings(window_px=64, region_px=128, bootstrap=50, tile_px=64, tiles=48)
TEST, TRAIN = Box(0, 320, 192, 512), Box(0, 320, 0, 192)
SMALL_TEST, SMALL_TRAIN = Box(0, 192, 192, 384), Box(0, 192, 0, 192)


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    return make_case(tmp_path_factory.mktemp("streaming"), 320, 512, TEST, TRAIN)


@pytest.fixture(scope="module")
def whole(case):
    """One block holds everything."""
    return evaluate(case.brain, case.volumes, TRAIN, SETTINGS)


@pytest.fixture(scope="module")
def blocks(case):
    """Blocks of 192 px."""
    return evaluate(case.brain, case.volumes, TRAIN, replace(SETTINGS, block_px=192))


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A smaller piece, for what does not depend on blocks."""
    return make_case(tmp_path_factory.mktemp("small"), 192, 384, SMALL_TEST, SMALL_TRAIN)


def generated(case):
    return {"generated": case.volumes["generated"]}


def arguments(case, out, *more):
    volumes = [part for method in case.volumes for part in (f"--{method}", str(case.folder / f"{method}.zarr"))]
    train = f"{case.train.y0}:{case.train.y1},{case.train.x0}:{case.train.x1}"
    given = ["--brain", str(case.folder / "brain.zarr"), *volumes, "--train-region", train, "--out", str(out)]
    sizes = [
        "--window-px",
        "64",
        "--region-px",
        "128",
        "--bootstrap",
        "50",
        "--tile-px",
        "64",
        "--block-px",
        "192",
        "--tiles",
        "48",
    ]
    return ["evaluate", *given, *sizes, *more]


def alive(pid):
    """Whether a process runs; one that has ended but was not waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in {"Z", "X"}
    except FileNotFoundError:
        return False


def figures(evaluation):
    return {(r.method, r.metric, r.stain): (r.value, r.low, r.high, r.n) for r in evaluation.table}


def assert_alike(first, second):
    """Equal to 1e-6, None where None."""
    assert first.keys() == second.keys()
    for key, values in first.items():
        for one, other in zip(values, second[key], strict=True):
            assert (one is None) == (other is None), key
            if one is not None:
                assert one == pytest.approx(other, rel=1e-6, abs=1e-6), key


def test_blocks_give_the_figures_of_the_whole(blocks, whole):
    assert_alike(figures(blocks), figures(whole))
    assert blocks.excluded == whole.excluded
    for name in ("labels/generated", "ridge_preview", "nucleus_distance/real", "window_counts/generated"):
        assert blocks.arrays[name].shape == whole.arrays[name].shape
    np.testing.assert_array_equal(blocks.arrays["labels/real"] > 0, whole.arrays["labels/real"] > 0)
    np.testing.assert_array_equal(blocks.arrays["ridge_preview"], whole.arrays["ridge_preview"])
    np.testing.assert_allclose(blocks.arrays["nucleus_distance/real"], whole.arrays["nucleus_distance/real"])


@pytest.mark.slow  # a killed evaluation that goes on with another number of workers proves it as well
def test_one_worker_and_four_agree_bit_by_bit(case, blocks):
    four = evaluate(case.brain, case.volumes, TRAIN, replace(SETTINGS, block_px=192, workers=4))
    assert blocks.to_json() == four.to_json()
    assert list(blocks.arrays) == list(four.arrays)
    for name, array in blocks.arrays.items():
        np.testing.assert_array_equal(array, four.arrays[name], err_msg=name)


def test_every_kind_of_figure_is_there(whole):
    found = {row.metric for row in whole.table if row.value is not None and row.method == "generated"}
    assert {"psnr", "ms_ssim", "frechet", "kernel", "spectrum_distance", "histogram_wasserstein"} <= found
    assert {"seam_index", "seam_step", "tile_seam_index", "tile_seam_step", "z_correlation"} <= found
    assert {"nuclei_f1", "nucleus_eccentricity_ks", "nucleus_transcripts_r", "region_count_r", "gene_r"} <= found
    assert whole.row("real_neighbour", "psnr", "DAPI").value < whole.row("generated", "psnr", "DAPI").value
    assert {row.stratum for row in whole.strata} == {"section", "density"}
    assert {row.metric for row in whole.strata} >= {"psnr", "nuclei_count_error"}
    assert all(row.p is None or 0 < row.p <= 1 for row in whole.paired)


def test_killed_evaluation_goes_on(case, blocks, tmp_path):
    out = tmp_path / "out"
    command = [sys.executable, "-m", "tera_mind.cli.main"]
    process = subprocess.Popen([*command, *arguments(case, out, "--workers", "2")])
    deadline = time.monotonic() + 120
    while len(list(out.glob("blocks/*/*.npz"))) < 2:
        assert process.poll() is None, "ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert children
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (out / "metrics.json").exists()
    # workers of a killed evaluation end with it
    workers = [int(pid) for pid in children]
    while any(map(alive, workers)):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    torn, damaged = sorted(out.glob("blocks/*/*.npz"))[:2]
    torn.write_bytes(torn.read_bytes()[:1000])
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    assert main(arguments(case, out, "--workers", "1")) == 0
    assert sorted(p.name for p in out.iterdir()) == ["arrays.npz", "metrics.json"]
    undisturbed = json.loads(json.dumps(blocks.to_json()))
    assert json.loads((out / "metrics.json").read_text()) == undisturbed
    with np.load(out / "arrays.npz") as arrays:
        assert arrays.files == list(blocks.arrays)
        for name in arrays.files:
            np.testing.assert_array_equal(arrays[name], blocks.arrays[name], err_msg=name)


def test_finished_units_are_not_measured_again(small, tmp_path):
    work = tmp_path / "work"
    evaluate(small.brain, generated(small), SMALL_TRAIN, SETTINGS, work=work)
    before = {path.name: path.stat().st_mtime_ns for path in work.glob("*/*.npz")}
    assert before
    evaluate(small.brain, generated(small), SMALL_TRAIN, replace(SETTINGS, bootstrap=10), work=work)
    assert before == {path.name: path.stat().st_mtime_ns for path in work.glob("*/*.npz")}


def test_partial_results_of_another_evaluation_are_removed(tmp_path):
    store = PartialStore(tmp_path / "w", {"a": 1})
    store.prepare()
    store.write("unit", {"x": np.ones(3)})
    assert PartialStore(tmp_path / "w", {"a": 1}).has("unit")
    (tmp_path / "w" / "thesis.txt").write_text("not ours")
    other = PartialStore(tmp_path / "w", {"a": 2})
    other.prepare()
    assert not other.has("unit")
    assert not store.folder.exists()
    assert (tmp_path / "w" / "thesis.txt").exists()
    # a straggler of the first evaluation writes where nobody looks
    store.folder.mkdir()
    store.write("unit", {"x": np.ones(3)})
    assert not other.has("unit")


def test_windows_may_be_wider_than_regions(small):
    wide = replace(SETTINGS, window_px=180, region_px=64, block_px=192)
    found = evaluate(small.brain, generated(small), SMALL_TRAIN, wide)
    assert found.row("generated", "nuclei_count_error", "DAPI").n == 8


def test_reference_may_be_another_brain_with_other_genes(small, tmp_path):
    other = make_tissue(tmp_path / "other.zarr", 192, 256, sections=1, seed=40, genes="xca")
    box = Box(0, 192, 0, 256)
    found = evaluate(small.brain, generated(small), box, SETTINGS, reference_brain=other)
    assert found.settings["reference_brain"] == str(other.path)
    assert found.arrays["genes"].tolist() == ["a", "c"]
    assert found.row("real_vs_real", "frechet", "DAPI").value is not None
    stranger = make_tissue(tmp_path / "stranger.zarr", 128, 128, sections=1, genes="xyz")
    with pytest.raises(InputError, match="share no gene"):
        evaluate(small.brain, generated(small), Box(0, 128, 0, 128), SETTINGS, reference_brain=stranger)


def test_ensemble_has_its_mean_spread_and_map(small, tmp_path, capsys):
    seeds = [paint(small.brain, SMALL_TEST, tmp_path / f"s{n}.zarr", noise_seed=n, seed=n).path for n in (1, 2)]
    out = tmp_path / "e"
    assert main(arguments(small, out, "--workers", "1", "--ensemble", *map(str, seeds))) == 0
    record = json.loads((out / "metrics.json").read_text())
    assert record["ensemble"]["seeds"] == [0, 1, 2]
    assert sum(part["n"] for part in record["ensemble"]["calibration"] if part["stain"] == "DAPI") == 16
    rows = {(r["method"], r["metric"], r["stain"]): r["value"] for r in record["table"]}
    assert rows["ensemble_mean", "psnr", "DAPI"] > rows["generated", "psnr", "DAPI"]
    assert rows["ensemble_mean", "spread_error_ratio", "DAPI"] is not None
    spread = Map.open(out / "uncertainty.zarr")
    assert spread.attributes.channels == ("DAPI", "PolyT")
    assert spread.attributes.step_px == 64
    values = spread.values()
    with np.load(out / "arrays.npz") as arrays:
        section, y0, _, x0, _ = arrays["patch_boxes"][0]
        at = values[0, section, (y0 - SMALL_TEST.y0) // 64, (x0 - SMALL_TEST.x0) // 64]
        assert at == pytest.approx(arrays["uncertainty/DAPI"][0], abs=spread.attributes.high / 200)


def test_ensembles_that_are_none_are_refused(case, tmp_path):
    same = paint(case.brain, TEST, tmp_path / "same.zarr", seed=0)
    with pytest.raises(InputError, match="seeds of their own"):
        evaluate(case.brain, case.volumes, TRAIN, SETTINGS, ensemble=[same])
    other = Volume(same.path, replace(same.attributes, seed=1, steps=4))
    with pytest.raises(InputError, match="only the seed may differ"):
        evaluate(case.brain, case.volumes, TRAIN, SETTINGS, ensemble=[other])


def test_regions_give_strata(small, tmp_path):
    labels = np.zeros((24, 48), np.uint8)
    labels[:, 24:32], labels[:8, 32:] = 1, 2
    np.save(tmp_path / "regions.npy", labels)
    (tmp_path / "regions.json").write_text('{"1": "left", "2": "corner"}')
    regions = RegionMap.open(tmp_path / "regions.npy", small.brain)
    found = evaluate(small.brain, generated(small), SMALL_TRAIN, SETTINGS, regions=regions)
    names = {row.group for row in found.strata if row.stratum == "region"}
    assert names == {"left", "corner"}
    boxes, labelled = found.arrays["patch_boxes"], found.arrays["patch_region"]
    assert set(labelled[boxes[:, 3] < 256].tolist()) == {1}
    scores = found.arrays["psnr/generated/DAPI"]
    wanted = ("left", "psnr", "DAPI", "generated")
    left = next(r for r in found.strata if (r.group, r.metric, r.stain, r.method) == wanted)
    assert left.value == pytest.approx(scores[labelled == 1].mean(), rel=1e-6)


def test_truth_of_a_simulated_brain_is_a_region_map(tmp_path):
    code = main(
        [
            "simulate",
            "--size",
            "tiny",
            "--layout",
            "store",
            "--workers",
            "1",
            "--sections",
            "2",
            "--out",
            str(tmp_path / "b.zarr"),
        ]
    )
    assert code == 0
    brain = Brain.open(tmp_path / "b.zarr")
    regions = RegionMap.open(tmp_path / "b.truth", brain)
    assert regions.names[4] == "layer 2/3"
    cells = pd.read_parquet(tmp_path / "b.truth" / "section_001" / "cells.parquet")
    y, x = (cells[name].to_numpy() / brain.pixel_um for name in ("y_um", "x_um"))
    inside = (y >= 2) & (x >= 2) & (y < brain.canvas.height - 2) & (x < brain.canvas.width - 2)
    boxes = np.stack([np.ones(len(y)), y, y + 1, x, x + 1], axis=1).astype(np.int64)[inside]
    boxes[:, 2], boxes[:, 4] = boxes[:, 1] + 1, boxes[:, 3] + 1
    named = np.array([regions.names[label] for label in regions.at(boxes).tolist()])
    # a cell of the map is as wide as a nucleus: borders may differ
    assert (named == cells["region"].to_numpy()[inside]).mean() > 0.9


@pytest.mark.parametrize("labels", [np.zeros((3, 4), np.uint8), np.zeros((52, 80)), np.zeros((5, 52, 80), int)])
def test_region_maps_that_do_not_fit_are_refused(case, tmp_path, labels, capsys):
    np.save(tmp_path / "r.npy", labels)
    assert main(arguments(case, tmp_path / "e", "--regions", str(tmp_path / "r.npy"))) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
    assert not (tmp_path / "e").exists()


def test_dry_run_measures_nothing(case, tmp_path, capsys):
    assert main(arguments(case, tmp_path / "e", "--dry-run")) == 0
    out = capsys.readouterr().out
    assert "blocks" in out
    assert "nothing was measured" in out
    assert not (tmp_path / "e").exists()


def test_tiles_must_be_whole_patches(case, tmp_path, capsys):
    assert main([*arguments(case, tmp_path / "e"), "--tile-px", "50"]) == 2
    assert "whole patches of 32 px" in capsys.readouterr().err


def test_attributes_are_those_of_the_case(case):
    assert case.volumes["generated"].attributes == attributes_of(case.brain, TEST)


def test_a_region_without_tissue_has_reasons_instead_of_figures(tmp_path):
    image, rows = disc_section(3, 192, 448)
    image[:, 256:] = 0
    kept = rows.x < 256
    empty = Transcripts(*(column[kept] for column in (rows.y, rows.x, rows.gene, rows.count)))
    brain = create_brain(
        tmp_path / "b.zarr",
        image=image[None, None],
        transcripts=[empty],
        genes=list("abc"),
        stains=["DAPI"],
        pixel_um=0.5,
    )
    test = Box(0, 192, 320, 448)
    found = evaluate(brain, {"generated": paint(brain, test, tmp_path / "g.zarr")}, Box(0, 192, 0, 256), SETTINGS)
    assert found.excluded["patches"] == 0
    assert found.excluded["patches_without_transcripts"] == 6
    for metric, stain in (("psnr", "DAPI"), ("frechet", "DAPI"), ("gene_recovery", ""), ("nuclei_count_r", "DAPI")):
        row = found.row("generated", metric, stain)
        assert row.value is None
        assert row.reason
    found.write(tmp_path / "out")


def test_a_region_of_one_patch_is_evaluated(small, tmp_path):
    test = Box(0, 64, 256, 320)
    volume = paint(small.brain, test, tmp_path / "g.zarr")
    found = evaluate(small.brain, {"generated": volume}, SMALL_TRAIN, SETTINGS)
    assert found.row("generated", "psnr", "DAPI").n == 2
    assert found.row("generated", "psnr", "DAPI").low is None
    assert "fits into" in found.row("generated", "ms_ssim", "DAPI").reason
