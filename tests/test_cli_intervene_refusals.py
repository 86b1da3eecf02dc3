"""What `tera-mind intervene` refuses, in one line, before it has painted, measured or replaced anything."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from generate_case import save_checkpoint, tree
from tiny_brain import GENES, make_brain
from tiny_training import exit_code

from tera_mind.analysis.latents import bottleneck_features, eigenvalue_score
from tera_mind.cli.intervene import run
from tera_mind.errors import TeraMindError
from tera_mind.formats.brain import Brain, gene_bins
from tera_mind.formats.volume import Volume
from tera_mind.geometry import Box
from tera_mind.model.checkpoint import load_checkpoint
from tera_mind.sums import Sums

SCALE = "edits: [{kind: scale, genes: [Mog], factor: 0.0, region: corner}]\nregions: {corner: {box: '0:40,0:40'}}\n"
OTHER = SCALE.replace("Mog", "Vip")
MATCH = (
    "populations: {here: {}, there: {brain: target.zarr}}\nedits: [{kind: match, population: here, target: there}]\n"
)
SHAPE = (2, 1, 128, 160)


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    folder = tmp_path_factory.mktemp("refused")
    make_brain(folder / "brain.zarr", shape=SHAPE, rows=8000)
    make_brain(folder / "target.zarr", shape=SHAPE, rows=8000, seed=5)
    make_brain(folder / "few.zarr", shape=SHAPE, rows=8000, genes=GENES[:4])
    make_brain(folder / "stained.zarr", shape=SHAPE, rows=8000, stains=("Nissl", "PolyT"))
    make_brain(folder / "swapped.zarr", shape=SHAPE, rows=8000, stains=("PolyT", "dapi"), seed=5,
               image=np.random.default_rng(5).integers(1, 256, size=SHAPE).astype(np.uint8)[::-1])  # fmt: skip
    save_checkpoint(folder / "net.ckpt")
    for name, text in (("scale", SCALE), ("other", OTHER), ("match", MATCH)):
        (folder / f"{name}.yaml").write_text(text)
    return folder


def words(case, name="scale", *more, brain="brain", out="out"):
    given = [case / f"{name}.yaml", "--checkpoint", case / "net.ckpt", "--brain", case / f"{brain}.zarr"]
    small = ("--steps", 2, "--device", "cpu", "--precision", 32, "--mask", "none", "--resamples", 9)
    return [*map(str, given), "--out", str(case / out), *map(str, small), *map(str, more)]


@pytest.fixture(scope="module")
def done(case):
    assert run(words(case, "scale", "--target", case / "target.zarr")) == 0
    return case / "out"


def refused(case, said, arguments):
    """Raises in one line that matches, and no file of the folder is another one afterwards."""
    before = tree(case)
    with pytest.raises(TeraMindError, match=said) as caught:
        run(arguments)
    assert len(caught.value.lines) == 1
    assert tree(case) == before


@pytest.mark.usefixtures("done")
def test_a_folder_of_another_edit_is_refused_before_a_volume_is_painted(case):
    """The factual volume and that of strength 0.5 could be made, and strength 1 is there of another edit."""
    refused(case, "intervention .* give --overwrite", words(case, "other", "--strengths", "0,0.5,1"))
    assert not (case / "out" / "volumes" / "strength_0.5.zarr").exists()


def test_options_that_would_fail_after_hours_fail_at_once(case):
    few, stained, target = case / "few.zarr", case / "stained.zarr", case / "target.zarr"
    for said, arguments in (
        ("both given", words(case, "scale", "--strengths", "0,nan,1", out="new")),
        ("six digits", words(case, "scale", "--strengths", "0,0.12345671,0.12345672,1", out="new")),
        ("--target: .*lacks 1 of them: Vip", words(case, "scale", "--target", few, out="new")),
        ("stain DAPI of --brain, --target has Nissl", words(case, "scale", "--target", stained, out="new")),
        ("stain Nissl of --brain, the checkpoint has", words(case, brain="stained", out="new")),
        ("--null: .*kind scale alone", words(case, "match", "--null", 3, "--target", target, out="new")),
        ("brain lacks Vip, so there is nothing to scale",
         words(case, "other", "--allow-missing-genes", brain="few", out="new")),
    ):  # fmt: skip
        refused(case, said, arguments)


def test_nothing_of_another_kind_is_replaced(case, tmp_path):
    for name, put, said in (
        ("volumes/strength_1.zarr", "brain", "store of format brain .*expected volume"),
        ("change.zarr", "brain", "store of format brain .*expected map"),
        ("summary.json", '{"format": "attention"}', "no summary of this command"),
        ("film.gif", None, "is a folder where a file is written"),
        ("volumes", "text", "is a file where a folder is needed"),
    ):
        path = tmp_path / "out" / name
        path.parent.mkdir(parents=True)
        if put == "brain":
            shutil.copytree(case / "few.zarr", path)
        elif put is None:
            path.mkdir()
        else:
            path.write_text(put)
        before = tree(tmp_path)
        with pytest.raises(TeraMindError, match=said):
            run(words(case, "scale", "--overwrite", out=tmp_path / "out"))
        assert tree(tmp_path) == before
        shutil.rmtree(tmp_path / "out")


def test_a_population_of_another_place_is_not_replaced(case):
    assert run(words(case, "match", "--dry-run", out="pop")) == 0
    assert not (case / "pop").exists()
    (case / "wrong.yaml").write_text(MATCH.replace("]\n", ", {kind: scale, genes: [Absent], factor: 2}]\n"))
    refused(case, "lacks Absent", words(case, "wrong", out="pop"))  # measured, and not kept of a refused command
    assert run(words(case, "match", out="pop")) == 0
    (case / "moved.yaml").write_text(MATCH.replace("here: {}", "here: {region: r}") + "regions: {r: {box: '0:64,:'}}\n")
    refused(case, "populations/here.npz is of another place", words(case, "moved", out="pop"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("populations: {a/b: {}}\nedits: [{kind: self_scale, population: a/b, factor: 2}]", "a name without /"),
        ("populations: {..: {}}\nedits: [{kind: self_scale, population: .., factor: 2}]", "a name without /"),
        ("edits: [{kind: replace, pattern: noise, genes: []}]", "one name or more"),
        ("edits: [{kind: scale, genes: [Mog], factor: 2, factor: 3}]", "'factor' is given twice, line 1"),
        ("edits: [{kind: scale, genes: [Mog], factor: 2, [1]: 3}]", "cannot be read as YAML|mapping of names"),
        ("edits: [{kind: function, function: 'a:b', arguments: {when: 2020-01-01}}]", "should be numbers, text"),
        ("edits: [{kind: function, function: 'torn:f'}]", "'torn:f' cannot be imported \\(SyntaxError"),
        ("edits: [{kind: function, function: 'itertools:chain'}]", "without a Python source"),
    ],
)
def test_faults_of_an_experiment_are_one_line(case, text, said):
    (case / "torn.py").write_text("def f(:\n")
    (case / "fault.yaml").write_text(text)
    refused(case, said, words(case, "fault", out="fault"))


def test_the_command_line_says_it_in_one_line(case, capsys):
    assert exit_code(["intervene", *words(case, "scale", "--strengths", "0,nan,1", out="new")]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_a_function_beside_the_experiment_is_found(case, capsys):
    (case / "beside_the_file.py").write_text("def f(counts, window):\n    return counts * 2\n")
    (case / "own.yaml").write_text("edits: [{kind: function, function: 'beside_the_file:f'}]\n")
    assert run(words(case, "own", "--dry-run", out="own")) == 0
    assert "nothing was written" in capsys.readouterr().out


def test_a_target_is_read_by_the_names_of_its_stains(case, done):
    """The same target with its stains in another order says the same."""
    first = json.loads((done / "summary.json").read_text())["towards_target"]
    assert run(words(case, "scale", "--target", case / "swapped.zarr")) == 0
    again = json.loads((done / "summary.json").read_text())
    assert again["towards_target"] == first
    assert any(row["true_change"]["value"] for row in again["towards_target"])


def test_bottleneck_features_are_those_of_genes_and_generated_image(case, done):
    assert run(words(case, "scale", "--features", "bottleneck", "--target", case / "target.zarr")) == 0
    summary = json.loads((done / "summary.json").read_text())
    assert summary["features"] == "bottleneck"
    own = load_checkpoint(case / "net.ckpt")
    side, bin_px = own.info.model.patch_px, own.info.model.bin_px
    reach = 48  # the corner of 40 px lies in 3 x 3 patches
    assert reach == 3 * side
    panel = np.arange(5)
    sums = []
    for name, source in (("brain", Volume.open(done / "volumes" / "strength_1.zarr")), ("target", None)):
        brain = Brain.open(case / f"{name}.zarr")
        box = Box(0, reach, 0, reach)
        counts = gene_bins(brain, (0,), box, bin_px, panel)
        if source is not None:
            counts[2, :, : 40 // bin_px, : 40 // bin_px] = 0  # Mog
        image = torch.from_numpy((source or brain).image(box, [0])[:, 0].astype(np.float32)) / 127.5 - 1
        rows = []
        for y in range(0, reach, side):
            for x in range(0, reach, side):
                part = counts[:, :, y // bin_px : (y + side) // bin_px, x // bin_px : (x + side) // bin_px]
                picture = image[None, :, y : y + side, x : x + side]
                rows.append(bottleneck_features(own.gene_morph, picture, torch.from_numpy(part)[None]))
        sums.append(Sums.of(np.concatenate(rows)))
    expected = eigenvalue_score(sums[0].eigenvalues, sums[1].eigenvalues)
    found = summary["latent"]["edited to target"]["gilea"]
    assert found["1"] == pytest.approx(expected[1], rel=1e-3)
    assert found["3"] == pytest.approx(expected[3], rel=1e-3)


def test_genes_that_the_brain_lacks_are_zero_everywhere(case):
    """In the population, in the counts and in the null's expression."""
    (case / "self.yaml").write_text(
        "populations: {here: {}}\nedits: [{kind: self_scale, population: here, factor: 0.2}]\n"
    )
    more = ("--allow-missing-genes", "--region", "0:64,0:64")
    assert run(words(case, "self", *more, brain="few", out="few")) == 0
    assert run(words(case, "scale", *more, "--null", 1, brain="few", out="few-null")) == 0
    summary = json.loads((case / "few-null" / "summary.json").read_text())
    assert len(summary["null"]["pixels"]["null"]) == 1
