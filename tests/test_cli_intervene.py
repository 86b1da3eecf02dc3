"""`tera-mind intervene` from end to end: volumes, locality, effects, and what it refuses."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
import torch
from generate_case import save_checkpoint
from PIL import Image
from tiny_brain import make_brain

from tera_mind.analysis.interventions.edits import Scale
from tera_mind.analysis.interventions.intervention import Intervention, Part
from tera_mind.cli.intervene import run
from tera_mind.errors import TeraMindError
from tera_mind.formats.brain import Brain
from tera_mind.formats.maps import Map
from tera_mind.formats.volume import Volume
from tera_mind.geometry import Box
from tera_mind.model.checkpoint import load_checkpoint
from tera_mind.sampling.job import Generation

MYELIN = """
name: lower Mog
regions:
  corner: {box: '0:40,0:40'}
edits:
  - {kind: scale, genes: [Mog, Vip], factor: 0.0, region: corner}
"""
COMMON = ("--steps", "2", "--device", "cpu", "--precision", "32", "--mask", "none", "--resamples", "20")


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    folder = tmp_path_factory.mktemp("intervene")
    make_brain(folder / "brain.zarr", shape=(2, 1, 160, 224), rows=20000)
    make_brain(folder / "target.zarr", shape=(2, 1, 160, 224), rows=20000, seed=5)
    save_checkpoint(folder / "net.ckpt")
    (folder / "myelin.yaml").write_text(MYELIN)
    return folder


def words(case, *more, name="myelin.yaml", out="out"):
    brain, checkpoint = str(case / "brain.zarr"), str(case / "net.ckpt")
    given = [str(case / name), "--checkpoint", checkpoint, "--brain", brain, "--out", str(case / out)]
    return [*given, *COMMON, *map(str, more)]


@pytest.fixture(scope="module")
def done(case):
    assert run(words(case, "--strengths", "0,0.5,1", "--target", case / "target.zarr", "--null", "1")) == 0
    return case / "out"


def test_volumes_differ_inside_and_nowhere_beyond_the_margin(case, done):
    factual, half, edited = (Volume.open(done / "volumes" / f"strength_{s}.zarr") for s in ("0", "0.5", "1"))
    summary = json.loads((done / "summary.json").read_text())
    side, reach = factual.attributes.patch_px, summary["margin_px"]
    apart = np.abs(factual.image().astype(int) - edited.image())[:, 0].max(axis=0)
    rows, columns = (size // side for size in apart.shape)
    changed = apart.reshape(rows, side, columns, side).max(axis=(1, 3)) > 0
    # a patch can change where 40 px of edited corner lie within the margin around it
    first = np.arange(max(rows, columns)) * side
    may = (first - reach < 40)[:rows, None] & (first - reach < 40)[None, :columns]
    assert changed[0, 0]
    assert not changed[~may].any()
    assert (~may).any()
    assert summary["largest_change_beyond_margin"] == 0
    assert summary["pixels_beyond_margin"] > 0
    middle = np.abs(factual.image().astype(int) - half.image()).mean()
    assert middle > 0
    assert edited.attributes.settings["intervention"]["parts"][0]["edit"]["genes"] == ["Mog", "Vip"]
    assert "intervention" not in factual.attributes.settings


def test_effects_are_written_and_add_up(done, case):
    summary = json.loads((done / "summary.json").read_text())
    assert [dose["strength"] for dose in summary["doses"]] == [0, 0.5, 1]
    for dose in summary["doses"]:
        for row in dose["rows"]:
            if row["before"] is not None and row["after"] is not None:
                assert row["change"]["value"] == pytest.approx(row["after"] - row["before"], abs=1e-9)
    assert all(row["change"]["value"] in (0, None) for row in summary["doses"][0]["rows"])
    change = Map.open(done / "change.zarr")
    factual, edited = (Volume.open(done / "volumes" / f"strength_{s}.zarr") for s in "01")
    side = factual.attributes.patch_px
    apart = (edited.image().astype(float) - factual.image())[0, 0]
    tiles = apart.reshape(apart.shape[0] // side, side, apart.shape[1] // side, side).mean(axis=(1, 3))
    np.testing.assert_allclose(change.values()[0, 0], tiles, atol=1e-4)
    assert len(summary["null"]["pixels"]["null"]) == 1
    assert 1 / 2 <= summary["null"]["pixels"]["p"] <= 1
    assert set(summary["latent"]) == {"edited to source", "source to target", "edited to target"}
    assert {row["quantity"] for row in summary["towards_target"]} == {"number", "area", "intensity"}
    with Image.open(done / "film.gif") as film:
        assert film.n_frames == 4  # forth and back
    with Image.open(done / "filmstrip.png") as strip:
        assert strip.width > 2.5 * strip.height


def test_the_same_command_again_keeps_what_is_finished(done, case):
    path = done / "volumes" / "strength_1.zarr" / "zarr.json"
    before = path.stat().st_mtime_ns
    assert run(words(case, "--strengths", "0,1")) == 0
    assert path.stat().st_mtime_ns == before


def test_workers_are_sent_the_intervention(case):
    brain, checkpoint = Brain.open(case / "brain.zarr"), load_checkpoint(case / "net.ckpt")
    model = checkpoint.info.model
    own = Intervention(
        "x", (Part(Scale(("Mog",), 3.0)),), checkpoint.info.genes, model.patch_px, model.bin_px, brain.pixel_um
    )
    box = Box(0, 2 * model.patch_px, 0, 2 * model.patch_px)
    job = Generation(checkpoint, brain, box, (0,), edit=own)
    again = pickle.loads(pickle.dumps(job))
    plain = Generation(checkpoint, brain, box, (0,))
    mog = checkpoint.info.genes.index("Mog")
    before, after = (each.counts(each.groups[0])(box) for each in (plain, again))
    assert torch.equal(after[mog], 3 * before[mog])
    cpu = torch.device("cpu")
    assert again.facts(cpu) == job.facts(cpu) != plain.facts(cpu)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("edits: [{kind: scale, genes: [Absent], factor: 2}]", "lacks Absent"),
        ("edits: [{kind: scale, genes: [Mog], factor: -2}]", "edit 1 \\(scale\\): a gene's factor"),
        ("edits: [{kind: scale, genes: [Mog], fcator: 2}]", "'fcator' is none of these"),
        ("edits: [{kind: scale, genes: [Mog]}]", "factor is missing"),
        ("edits: [{kind: scale, genes: Mog, factor: 2}]", "genes should be list"),
        ("edits: [{kind: grow}]", "needs a kind"),
        ("edits: []", "should hold a list `edits`"),
        ("[1, 2]", "mapping of names"),
        ("edits: [{kind: scale, genes: [Mog], factor: 2, region: x}]", "no region 'x'"),
        ("edits: [{kind: match, population: a, target: b}]", "no population 'a'"),
        ("regions: {x: {labels: truth}}\nedits: [{kind: scale, genes: [Mog], factor: 2}]", "both labels"),
        ("regions: {x: {box: '0:9999,:'}}\nedits: [{kind: scale, genes: [Mog], factor: 2, region: x}]", "leaves"),
        ("regions: {x: {sections: [7]}}\nedits: [{kind: scale, genes: [Mog], factor: 2, region: x}]", "section 7"),
        (
            "regions: {x: {labels: nowhere, names: [a]}}\nedits: [{kind: scale, genes: [Mog], factor: 2, region: x}]",
            "no region map at",
        ),
        ("populations: {a: {file: no.npz}}\nedits: [{kind: self_scale, population: a, factor: 2}]", "no population at"),
        ("edits: [{kind: replace, pattern: dots}]", "a pattern is one of"),
        ("edits: [{kind: function, function: 'no_such:f'}]", "cannot be imported"),
        ("edits: [{kind: scale, genes: [Mog], factor: true}]", "factor should be"),
        ("edits: {", "cannot be read as YAML"),
    ],
)
def test_faults_of_an_experiment_are_one_line(case, text, said):
    (case / "fault.yaml").write_text(text)
    with pytest.raises(TeraMindError, match=said) as error:
        run(words(case, "--dry-run", name="fault.yaml", out="fault"))
    assert len(error.value.lines) == 1
    assert not (case / "fault").exists()


def test_options_that_do_not_fit_are_refused(case):
    for more, said in (
        (("--strengths", "0.5,1"), "from 0"), (("--strengths", "a"), "numbers from 0 to 1"),
        (("--null", "-1"), "--null"),
        (("--sections", "x"), "--sections"), (("--region", "100:160,100:200"), "touch nothing"),
    ):  # fmt: skip
        with pytest.raises(TeraMindError, match=said):
            run(words(case, "--dry-run", *more, out="fault"))


def test_a_dry_run_writes_nothing(case, capsys):
    assert run(words(case, "--dry-run", out="dry")) == 0
    said = capsys.readouterr().out
    assert "margin: " in said
    assert "nothing was written" in said
    assert not (case / "dry").exists()
