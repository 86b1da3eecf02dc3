"""The whole evaluation on a small brain whose image follows its genes, and its bad inputs."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from tera_mind.cli.main import main
from tera_mind.errors import InputError
from tera_mind.formats.brain import Transcripts, create_brain
from tera_mind.formats.volume import Volume, VolumeAttributes
from tera_mind.geometry import Box
from tera_mind.metrics.evaluate import EvaluateSettings, evaluate
from tera_mind.metrics.plan import covering_windows

SHAPE = (256, 512)
TEST = Box(0, 256, 320, 512)
TRAIN = Box(0, 256, 0, 307)
SETTINGS = EvaluateSettings(window_px=64, bootstrap=200)


def section(seed):
    """Discs of 9 um at 0.5 um a pixel, each full of gene 0; genes 1 and 2 are everywhere."""
    random = np.random.default_rng(seed)
    centres = [(y, x) for y in range(14, 256, 28) for x in range(14, 512, 28) if random.random() < 0.55]
    y, x = np.indices(SHAPE)
    image = np.full(SHAPE, 20.0)
    rows = [random.integers(0, [[256], [512]], (2, 600)), np.zeros((2, 0), int)]
    for cy, cx in centres:
        image[np.hypot(y - cy, x - cx) < 9] = random.uniform(110, 170)
        rows.append(np.rint(random.normal([[cy], [cx]], 4, (2, 30))).astype(int))
    where = np.concatenate(rows, axis=1)
    gene = np.concatenate([random.integers(1, 3, 600), np.zeros(where.shape[1] - 600, int)])
    kept = (where >= 0).all(0) & (where[0] < 256) & (where[1] < 512)
    # the lower right corner has no transcripts
    kept &= (where[0] < 192) | (where[1] < 448)
    image = ndimage.gaussian_filter(image, 1) + random.normal(0, 3, SHAPE)
    columns = (where[0][kept], where[1][kept], gene[kept], np.ones(kept.sum()))
    return np.clip(image, 0, 255).astype(np.uint8), Transcripts(*(c.astype(np.int32) for c in columns))


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluate")
    images, rows = zip(*(section(seed) for seed in (0, 1)), strict=True)
    image = np.stack([np.stack(images), 255 - np.stack(images)])
    brain = create_brain(
        folder / "brain.zarr",
        image=image,
        transcripts=rows,
        genes=["a", "b", "c"],
        stains=["DAPI", "PolyT"],
        pixel_um=0.5,
    )
    real = brain.image(TEST).astype(float)
    random = np.random.default_rng(5)
    attributes = VolumeAttributes(
        stains=brain.stains,
        pixel_um=0.5,
        brain="brain",
        brain_fingerprint=brain.fingerprint,
        box=TEST,
        sections=(0, 1),
        patch_px=32,
        checkpoint="0" * 64,
        seed=0,
        steps=15,
    )
    made = {
        "generated": ndimage.gaussian_filter(real, (0, 0, 0.7, 0.7)) + random.normal(0, 3, real.shape),
        "shuffled": np.roll(real, (64, 96), (2, 3)),
        "zeroed": 60 + random.normal(0, 20, real.shape),
    }
    genes = {"generated": "as measured"}
    volumes = {
        method: Volume.write(
            folder / f"{method}.zarr",
            np.clip(array, 0, 255).astype(np.uint8),
            replace(attributes, genes=genes.get(method, method)),
        )
        for method, array in made.items()
    }
    return folder, brain, volumes


@pytest.fixture(scope="module")
def evaluation(case):
    _, brain, volumes = case
    return evaluate(brain, volumes, TRAIN, SETTINGS)


def test_every_method_has_its_rows(evaluation):
    assert evaluation.methods == [
        "real",
        "generated",
        "shuffled",
        "zeroed",
        "mean_image",
        "ridge",
        "real_neighbour",
        "real_vs_real",
    ]
    for method in evaluation.methods[1:-1]:
        for stain in ("DAPI", "PolyT"):
            for metric in ("psnr", "ssim", "psnr_blur", "ssim_blur", "pearson_blur", "frechet", "seam_index"):
                row = evaluation.row(method, metric, stain)
                assert row is not None, (method, metric)
                assert (row.value is None) == (row.reason is not None)
        assert evaluation.row(method, "nuclei_count_r", "DAPI") is not None
        assert evaluation.row(method, "nuclei_count_r", "PolyT") is None
    for metric in ("frechet", "nucleus_area_wasserstein", "nuclei_count_wasserstein", "nucleus_area_ratio"):
        assert evaluation.row("real_vs_real", metric, "DAPI").value is not None
    # a constant image has no gradient
    assert "gradient" in evaluation.row("mean_image", "seam_index", "DAPI").reason


def test_scores_order_the_methods_as_they_should(evaluation):
    def value(method, metric, stain="DAPI"):
        return evaluation.row(method, metric, stain).value

    for metric in ("psnr", "ssim", "psnr_blur", "ssim_blur", "pearson_blur"):
        assert value("generated", metric) > max(value(m, metric) for m in ("shuffled", "zeroed", "mean_image"))
    # genes mark the nuclei, so the regression explains blurred DAPI
    assert value("ridge", "pearson_blur") > 0.5
    assert value("mean_image", "pearson_blur") == 0
    assert value("generated", "nuclei_count_r") > 0.9
    assert value("generated", "nuclei_count_ratio") == pytest.approx(1, abs=0.1)
    assert value("generated", "nucleus_area_ratio") == pytest.approx(1, abs=0.15)
    assert value("real", "nucleus_area_median") == pytest.approx(np.pi * 4.5**2, rel=0.2)
    assert value("generated", "frechet") < value("zeroed", "frechet")
    paired = {(row.metric, row.control): row for row in evaluation.paired if row.stain == "DAPI"}
    for metric in ("psnr", "nuclei_count_error"):
        assert paired[metric, "shuffled"].low > 0
        assert paired[metric, "zeroed"].difference == pytest.approx(
            (value("generated", metric) - value("zeroed", metric)) * (-1 if metric == "nuclei_count_error" else 1)
        )


def test_patches_without_transcripts_are_left_out_and_counted(evaluation):
    # of 2 x (4 x 3) windows and patches of 64 px, the corner one of each section is empty
    assert evaluation.excluded == {
        "patches": 22,
        "patches_without_transcripts": 2,
        "large_squares": 2,
        "large_squares_without_transcripts": 0,
        "windows": 22,
        "windows_without_transcripts": 2,
    }
    boxes = evaluation.arrays["patch_boxes"]
    assert boxes.shape == (22, 5)
    assert [0, 192, 256, 448, 512] not in boxes.tolist()
    assert evaluation.arrays["psnr/generated/DAPI"].shape == (22,)
    assert evaluation.arrays["window_counts/real"].shape == (22,)


def test_acceptance_names_every_line(evaluation):
    lines = {line.name: line for line in evaluation.acceptance}
    assert lines["psnr DAPI beats shuffled"].passed
    assert lines["nuclei_count_error DAPI beats shuffled"].passed
    assert lines["nuclei_count_r"].passed
    assert lines["frechet PolyT below zeroed"].passed
    assert "seam_index DAPI" in lines


def test_written_files_hold_the_schema(evaluation, tmp_path):
    path = evaluation.write(tmp_path / "out")
    record = json.loads(path.read_text())
    assert (record["format"], record["version"]) == ("metrics", 2)
    assert set(record) == {
        "format",
        "version",
        "settings",
        "methods",
        "table",
        "paired",
        "strata",
        "ensemble",
        "acceptance",
        "excluded",
    }
    assert set(record["table"][0]) == {
        "method",
        "metric",
        "stain",
        "value",
        "low",
        "high",
        "n",
        "unit",
        "better",
        "reason",
    }
    assert {row["better"] for row in record["table"]} == {"higher", "lower", "one", "none"}
    with np.load(tmp_path / "out" / "arrays.npz") as arrays:
        y0, y1, x0, x1 = arrays["preview_box"].tolist()
        assert Box(y0, y1, x0, x1) == TEST
        assert arrays["ridge_preview"].shape == (2, 256, 192)
        assert arrays["ridge_preview"].dtype == np.uint8
        for method in ("real", "generated", "shuffled", "zeroed", "mean_image", "ridge"):
            assert arrays[f"labels/{method}"].shape == (256, 192)
        assert arrays["seam_phase/generated/PolyT"].shape == (32,)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["arrays.npz", "metrics.json"]


def test_workers_do_not_change_the_figures(case, evaluation):
    _, brain, volumes = case
    other = evaluate(brain, volumes, TRAIN, replace(SETTINGS, workers=3), track=iter)
    assert other.to_json() == evaluation.to_json()


def test_command_writes_and_prints(case, tmp_path, capsys):
    folder, _, _ = case
    code = main(
        [
            "evaluate",
            "--brain",
            str(folder / "brain.zarr"),
            "--generated",
            str(folder / "generated.zarr"),
            "--train-region",
            ":,:60%",
            "--out",
            str(tmp_path / "e"),
            "--window-px",
            "64",
            "--bootstrap",
            "20",
        ]
    )
    assert code == 0
    out = capsys.readouterr().out
    assert "psnr" in out
    assert "needs a volume with shuffled genes" in out
    assert json.loads((tmp_path / "e" / "metrics.json").read_text())["methods"][1:3] == ["generated", "mean_image"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stains": ("DAPI", "Cellbound")}, "should have stains"),
        ({"pixel_um": 0.6}, "pixels of 0.6 um"),
        ({"brain_fingerprint": "other"}, "should have brain"),
        ({"box": Box(256, 512, 320, 512)}, "do not overlap"),
        ({"box": Box(0, 256, 256, 448)}, "overlaps the generated box"),
        ({"sections": (0, 7)}, "sections \\[7\\]"),
        ({"patch_px": 128}, "whole patch of 256 px"),
    ],
)
def test_volumes_that_do_not_fit_are_refused(case, changes, message):
    _, brain, volumes = case
    volume = volumes["generated"]
    with pytest.raises(InputError, match=message):
        evaluate(brain, {"generated": Volume(volume.path, replace(volume.attributes, **changes))}, TRAIN, SETTINGS)


def test_controls_of_another_region_are_refused(case):
    _, brain, volumes = case
    moved = Volume(volumes["shuffled"].path, replace(volumes["shuffled"].attributes, box=TEST.shift(-8, 0)))
    with pytest.raises(InputError, match=r"shuffled volume .* should have box"):
        evaluate(brain, {"generated": volumes["generated"], "shuffled": moved}, TRAIN, SETTINGS)


def test_bad_settings_are_one_line(case, tmp_path, capsys):
    folder, _, _ = case
    arguments = ["evaluate", "--brain", str(folder / "brain.zarr"), "--out", str(tmp_path / "e"), "--generated"]
    assert main([*arguments, str(folder / "nothing.zarr")]) == 2
    assert main([*arguments, str(folder / "generated.zarr"), "--window-px", "0"]) == 2
    assert main([*arguments, str(folder / "generated.zarr"), "--train-region", ":,90%:"]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 3
    assert not (tmp_path / "e").exists()


@pytest.mark.parametrize(("height", "width", "side"), [(128, 128, 128), (300, 352, 128), (896, 129, 64), (65, 200, 64)])
def test_windows_cover_everything_and_have_one_size(height: int, width: int, side: int) -> None:
    within = Box(10, 10 + height, 20, 20 + width)
    windows = covering_windows(within, side)
    seen = np.zeros((height, width), int)
    for box in windows:
        assert (box.height, box.width) == (side, side)
        seen[box.shift(-10, -20).slices()] += 1
    assert seen.min() == 1
    assert len(windows) == -(-height // side) * -(-width // side)
    assert covering_windows(Box(0, side - 1, 0, width), side) == []
    # every window belongs to one block
    parts = [window for block in within.tiles(100, 70) for window in covering_windows(within, side, block)]
    assert sorted(parts) == windows
