"""The HTML report: self-contained, complete, honest about what is synthetic; bad input ends in one clear error."""

from __future__ import annotations

import json
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import Browser, find_chromium
from PIL import Image

from tera_mind.cli import report as command
from tera_mind.cli.main import main
from tera_mind.errors import FormatError, InputError, MissingFileError
from tera_mind.formats.brain import Brain, Transcripts, create_brain
from tera_mind.formats.volume import Volume, VolumeAttributes
from tera_mind.geometry import Box
from tera_mind.report import pictures, provenance, tables, tissue
from tera_mind.report.glossary import METRICS
from tera_mind.report.html import write_report
from tera_mind.report.inputs import METRICS_VERSION, Evaluation, read_losses

SIZE, BOX = 192, Box(0, 192, 64, 192)
METHODS = ("real", "generated", "shuffled", "ridge", "real_vs_real")


class Page(HTMLParser):
    """Collects tags, with their attributes, and text; fails on tags that do not close."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in {"img", "meta", "source", "link", "br"}:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def rows() -> list[dict[str, Any]]:
    table = []
    for metric, stain, better, unit in (
        ("psnr", "DAPI", "higher", "dB"),
        ("psnr", "PolyT", "higher", "dB"),
        ("nuclei_count", "DAPI", "none", ""),
        ("nucleus_area_ratio", "DAPI", "one", ""),
        ("nucleus_area_wasserstein", "DAPI", "lower", "um^2"),
        ("frechet", "DAPI", "lower", ""),
        ("seam_index", "DAPI", "one", ""),
    ):
        for number, method in enumerate(METHODS):
            value = None if (metric, method) == ("frechet", "ridge") else 1.5 + number
            table.append(
                {"method": method, "metric": metric, "stain": stain, "value": value, "low": 1.0, "high": 9.0, "n": 12}
                | {"unit": unit, "better": better, "reason": "too few patches" if value is None else None}
            )
    return table


def pair(difference: float, low: float, high: float, control: str = "shuffled") -> dict[str, Any]:
    return {"metric": "psnr", "stain": "DAPI", "control": control, "difference": difference, "low": low, "high": high}


@pytest.fixture(scope="module")
def brain(tmp_path_factory: pytest.TempPathFactory) -> Brain:
    rng = np.random.default_rng(1)
    image = rng.integers(0, 200, (2, 1, SIZE, SIZE)).astype(np.uint8)
    y = np.concatenate([rng.integers(0, SIZE, 500), rng.integers(128, 160, 500)])  # dense in rows 128 .. 160
    x = np.concatenate([rng.integers(0, SIZE, 500), rng.integers(96, 128, 500)])
    point = Transcripts(y.astype(np.int32), x.astype(np.int32), np.zeros(1000, np.int32), np.ones(1000, np.int32))
    return create_brain(
        tmp_path_factory.mktemp("data") / "tiny.zarr",
        image=image,
        transcripts=[point],
        genes=["a", "b"],
        stains=["DAPI", "PolyT"],
        pixel_um=1.0,
    )


def attributes(brain: Brain, **changes: Any) -> VolumeAttributes:
    facts: dict[str, Any] = {
        "stains": brain.stains,
        "pixel_um": brain.pixel_um,
        "brain": brain.path.name,
        "brain_fingerprint": brain.fingerprint,
        "box": BOX,
        "sections": (0,),
        "patch_px": 32,
        "checkpoint": "abcdef0123456789",
        "seed": 7,
        "steps": 15,
        "genes": "as measured",
        "settings": {"sampler": "ddim"},
    }
    return VolumeAttributes(**(facts | changes))


@pytest.fixture(scope="module")
def volumes(brain: Brain) -> dict[str, Volume]:
    made = {}
    for number, method in enumerate(("generated", "shuffled")):
        image = np.random.default_rng(number).integers(0, 200, (2, 1, BOX.height, BOX.width)).astype(np.uint8)
        made[method] = Volume.write(brain.path.parent / f"{method}.zarr", image, attributes(brain))
    return made


def write_evaluation(folder: Path, *, nuclei: bool = True, **changes: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        "format": "metrics",
        "version": METRICS_VERSION,
        "settings": {
            "pixel_um": 1.0,
            "stains": ["DAPI", "PolyT"],
            "test_box": [0, 192, 64, 192],
            "preview_section": 0,
            "window_px": 32,
        },
        "methods": list(METHODS),
        "table": rows(),
        "paired": [pair(0.4, 0.1, 0.7), pair(-0.2, -0.3, -0.1, "ridge"), pair(0.1, -0.1, 0.3, "mean_image")],
        "strata": [],
        "ensemble": None,
        "acceptance": [
            {"name": "nuclei r", "value": 0.61, "target": ">= 0.5", "passed": True},
            {"name": "seam", "value": None, "target": "<= 1.1", "passed": False},
        ],
        "excluded": {"patches": 12, "patches_without_transcripts": 3},
    }
    (folder / "metrics.json").write_text(json.dumps(content | changes))
    rng = np.random.default_rng(5)
    labels = np.zeros((96, 96), np.int32)
    labels[10:20, 10:20], labels[30:44, 50:60] = 1, 2
    arrays: dict[str, Any] = {"preview_box": np.array([0, 96, 80, 176])}
    if nuclei:
        for method in ("real", "generated"):
            arrays[f"labels/{method}"] = labels
            arrays[f"nucleus_area/{method}"] = rng.gamma(4, 10, 200)
            arrays[f"window_counts/{method}"] = rng.poisson(8, 24)
    np.savez(folder / "arrays.npz", **arrays)
    return folder


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory, brain: Brain, volumes: dict[str, Volume]) -> Path:
    folder = tmp_path_factory.mktemp("report")
    log = folder / "metrics.csv"
    log.write_text("epoch,step,train/loss,val/loss\n0,1,0.9,\n0,2,0.5,\n0,2,,0.6\n")
    evaluation = write_evaluation(folder / "evaluation")
    return write_report(folder / "report.html", evaluation, brain, volumes, log, title="A <tiny> brain")


def test_the_page_is_well_formed_and_needs_nothing_else(written: Path) -> None:
    text = written.read_text(encoding="utf-8")
    page = Page(text)
    assert "http://" not in text
    assert "https://" not in text
    assert page.all("script") == page.all("link") == page.all("iframe") == []
    assert len(page.all("img")) > 20
    for image in page.all("img"):
        assert str(image["src"]).startswith("data:image/")
        assert len(str(image["alt"])) > 10
    assert all(str(source["srcset"]).startswith("data:image/") for source in page.all("source"))
    assert "A &lt;tiny&gt; brain" in text


def test_every_metric_row_and_the_verdict_are_there(written: Path) -> None:
    text = written.read_text(encoding="utf-8")
    for row in rows():
        assert METRICS[row["metric"]].label in text
        assert METRICS[row["metric"]].sentence.split(",")[0].split("'")[0] in text
        assert METRICS[row["metric"]].blind.split(",")[0] in text
    assert "1 of 2 acceptance targets are met" in text
    assert "too few patches" in text  # the reason of the dash
    assert all(mark in text for mark in ("✓ better", "✗ worse", "○ undecided"))
    assert "abcdef0123456789" in text  # provenance
    assert "does not record which region was used for training" in text


@pytest.mark.parametrize(("train", "words"), [([0, 192, 0, 64], "was not used"), ([0, 192, 0, 80], "overlaps")])
def test_the_page_says_whether_the_region_was_trained_on(
    train: list[int], words: str, tmp_path: Path, brain: Brain, volumes: dict[str, Volume]
) -> None:
    settings = {"test_box": [0, 192, 64, 192], "preview_section": 0, "train_box": train}
    evaluation = Evaluation.read(write_evaluation(tmp_path / "evaluation", settings=settings))
    assert words in provenance.unseen_words(evaluation, tissue.Scene.build(evaluation, brain, volumes))


def test_generated_pictures_are_stamped_in_their_pixels(
    written: Path, brain: Brain, volumes: dict[str, Volume]
) -> None:
    """The corner of every generated picture is not what the volume holds; of a real one it is."""
    folder = written.parent / "figures"
    evaluation = Evaluation.read(written.parent / "evaluation")
    scene = tissue.Scene.build(evaluation, brain, volumes)
    box = tissue.zoom_boxes(scene)[0][3]
    for method, stamped in (("real", False), ("generated", True), ("shuffled", True)):
        saved = np.asarray(Image.open(folder / f"zoom_A_close_{method}.png"))
        plain = pictures.resize(scene.shown(scene.reader(method)(box)), tissue.ZOOM_PX)
        corner = (slice(saved.shape[0] * 9 // 10, None), slice(saved.shape[1] * 2 // 3, None))
        assert saved.shape == plain.shape
        assert (not np.array_equal(saved[corner], plain[corner])) == stamped
    names = {path.name for path in folder.iterdir()}
    assert {"region_real.png", "region_generated.png", "nuclei_generated.png", "loss.png", "seams_DAPI.png"} <= names


def test_absent_parts_are_said_to_be_absent(tmp_path: Path, brain: Brain, volumes: dict[str, Volume]) -> None:
    evaluation = write_evaluation(tmp_path / "evaluation", nuclei=False, paired=[], acceptance=[])
    out = write_report(tmp_path / "report.html", evaluation, brain, {"generated": volumes["generated"]})
    words = " ".join(" ".join(Page(out.read_text(encoding="utf-8")).words).split())
    assert "no training log was given" in words
    assert "Genes shuffled, Genes zeroed" in words
    assert "the evaluation holds no nuclei" in words
    assert "the evaluation holds no controls" in words
    assert "No acceptance targets were evaluated" in words


def test_best_is_the_best_competitor_and_one_means_closest_to_one() -> None:
    evaluation = Evaluation(Path(), {}, list(METHODS), rows(), [], [], {}, {})
    best = {
        (row.label, row.stain): [name for name, cell in zip(group.columns, row.cells, strict=True) if cell.best]
        for group in tables.score_groups(evaluation)
        for row in group.rows
    }
    assert best["PSNR", "DAPI"] == ["Ridge"]  # real_vs_real is higher and does not compete
    assert best["Nucleus area, ratio", "DAPI"] == ["Generated"]
    assert best["Nucleus area, distance", "DAPI"] == ["Generated"]
    assert best["Nuclei", "DAPI"] == []


def test_places_follow_transcript_density(brain: Brain) -> None:
    boxes = tissue.pick_boxes(brain, 0, BOX, 32, (1.0, 0.5, 0.1))
    assert boxes[0] == Box(128, 160, 96, 128)
    assert all(a.intersect(b).is_empty for a in boxes for b in boxes if a != b)
    assert all(BOX.contains(box) for box in boxes)
    assert boxes == tissue.pick_boxes(brain, 0, BOX, 32, (1.0, 0.5, 0.1))


def test_seam_profile_peaks_at_the_border_only_when_there_is_one() -> None:
    image = np.random.default_rng(0).integers(60, 160, (128, 128)).astype(np.uint8)
    tiled = image.copy()
    tiled[(np.indices(tiled.shape) // 16).sum(0) % 2 == 0] += 60
    for values, seam in ((image, False), (tiled, True)):
        found = tissue.profile(values[5:, 9:], 5, 9, 16)
        border = found.mean[found.offset_px == 0][0]
        assert (border > 1.3) == seam
        assert found.mean.mean() == pytest.approx(1)


def test_scale_bar_and_reduction() -> None:
    assert pictures.bar_length_um(430.0) == 100
    assert pictures.bar_length_um(79.0) == 10
    image = np.arange(2 * 50 * 70, dtype=np.uint32).reshape(2, 50, 70).astype(np.uint8)
    small, factor = pictures.read_reduced(lambda b: image[(slice(None), *b.slices())], Box(0, 50, 0, 70), 24)
    assert (factor, small.shape) == (3, (2, 16, 23))
    assert small[1, 2, 3] == np.rint(image[1, 6:9, 9:12].mean())


def test_losses_are_read_from_a_lightning_log(tmp_path: Path) -> None:
    log = tmp_path / "metrics.csv"
    log.write_text("epoch,lr,step,train/loss_epoch,train/loss_step,val/loss\n0,1,4,,0.5,\n0,,9,0.4,,\n0,,9,,,0.3\n")
    assert read_losses(log) == {"train/loss_step": ([4], [0.5]), "val/loss": ([9], [0.3])}
    for content in ("epoch,step\n0,1\n", "step,train/loss\nx,0.1\n"):
        log.write_text(content)
        with pytest.raises(FormatError, match="loss"):
            read_losses(log)


@pytest.mark.parametrize(
    ("damage", "error"),
    [
        (lambda e: (e / "metrics.json").unlink(), MissingFileError),
        (lambda e: (e / "arrays.npz").unlink(), MissingFileError),
        (lambda e: (e / "arrays.npz").write_bytes(b"PK\x03\x04torn"), FormatError),
        (lambda e: (e / "metrics.json").write_text("{"), FormatError),
        (lambda e: (e / "metrics.json").write_text('{"format": "metrics", "version": 99}'), FormatError),
        (lambda e: (e / "metrics.json").write_text('{"format": "metrics", "version": 1}'), FormatError),
        (lambda e: write_evaluation(e, settings={"preview_section": 3}), InputError),
        (lambda e: write_evaluation(e, settings={"test_box": [0, 9, 0, 9]}), InputError),
    ],
)
def test_bad_evaluations_are_refused_and_leave_nothing(
    damage: Callable[[Path], Any],
    error: type[Exception],
    tmp_path: Path,
    brain: Brain,
    volumes: dict[str, Volume],
) -> None:
    evaluation = write_evaluation(tmp_path / "evaluation")
    damage(evaluation)
    with pytest.raises(error):
        write_report(tmp_path / "out" / "report.html", evaluation, brain, volumes)
    assert not (tmp_path / "out").exists()


def test_a_volume_of_another_brain_is_refused(tmp_path: Path, brain: Brain) -> None:
    image = np.zeros((2, 1, BOX.height, BOX.width), np.uint8)
    other = Volume.write(tmp_path / "other.zarr", image, attributes(brain, brain_fingerprint="0" * 16))
    with pytest.raises(InputError, match="not from"):
        write_report(tmp_path / "r.html", write_evaluation(tmp_path / "e"), brain, {"generated": other})


def test_command_line(
    tmp_path: Path, brain: Brain, volumes: dict[str, Volume], capsys: pytest.CaptureFixture[str]
) -> None:
    evaluation = write_evaluation(tmp_path / "evaluation")
    out = tmp_path / "page.html"
    arguments = ["--evaluation", str(evaluation), "--brain", str(brain.path), "--out", str(out)]
    arguments += ["--generated", str(volumes["generated"].path)]
    assert command.run(arguments) == 0
    assert str(out) in capsys.readouterr().out
    assert out.is_file()
    assert main(["report", *arguments, "--log", str(tmp_path / "none.csv")]) == 2
    assert "none.csv" in capsys.readouterr().err


@pytest.mark.skipif(find_chromium() is None, reason="no Chromium found: install chromium")
def test_the_page_fits_wide_and_narrow_screens_in_light_and_dark(
    tmp_path: Path, brain: Brain, volumes: dict[str, Volume]
) -> None:
    long = "a-rival-whose-name-is-much-longer-than-any-column-of-a-table-can-be"
    table = [*rows(), *(row | {"method": long} for row in rows() if row["method"] == "ridge")]
    evaluation = write_evaluation(tmp_path / "evaluation", table=table, methods=[*METHODS, long])
    out = write_report(tmp_path / "report.html", evaluation, brain, {"generated": volumes["generated"]})
    seen = {}
    with Browser(1400, 900) as browser:
        for scheme in ("light", "dark"):
            browser.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
            for width in (1400, 420):
                browser.resize(width, 900)
                browser.open("about:blank")
                browser.open(out.as_uri())
                browser.wait(
                    "document.readyState === 'complete' && document.querySelector('.lane .m-generated') !== null"
                )
                assert browser.run("document.querySelectorAll('details').forEach(d => d.open = true)") is None
                assert browser.run("document.documentElement.scrollWidth") <= width
                assert browser.run("[...document.images].every(i => i.complete && i.naturalWidth > 0)")
            seen[scheme] = browser.run("document.querySelector('.plot img').currentSrc")
        assert browser.problems == []
    assert seen["light"] != seen["dark"]
