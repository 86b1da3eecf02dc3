"""`tera-mind attention` refuses before it replaces, and ends well where there is little to read."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from attention_case import BRAIN_GENES, make_case
from generate_case import tree
from tiny_brain import make_brain, random_transcripts

from tera_mind.cli.attention import run
from tera_mind.cli.attention_compare import compare
from tera_mind.errors import TeraMindError
from tera_mind.formats.attention_map import ATTENTION
from tera_mind.formats.maps import Map
from tera_mind.report.attention import page

GLUT = ("Slc17a6", "Slc17a7")


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    folder = tmp_path_factory.mktemp("refusals")
    made = make_case(folder, shape=(2, 2, 96, 130), rows=900)
    # no transcript of Slc17a6, the last gene, and none at all right of 64 px
    random = np.random.default_rng(0)
    rows = [random_transcripts(random, 96, 64, 500, len(BRAIN_GENES) - 1) for _ in range(2)]
    make_brain(folder / "lacking.zarr", shape=(2, 2, 96, 130), genes=BRAIN_GENES, transcripts=rows)
    return made


def words(case, out, *more, brain="brain.zarr"):
    given = ("--checkpoint", case.checkpoint.path, "--brain", case.folder / brain, "--out", out, "--workers", "1")
    return [*map(str, given), *map(str, more)]


@pytest.fixture(scope="module")
def done(case):
    """A finished folder; drawing takes most of a small run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(page, "write_figures", lambda *_: [])
        more = ("--pathway", "GLUT", "--partners", "Slc17a7", "--permutations", "9")
        assert run(words(case, case.folder / "done", *more)) == 0
    return case.folder / "done"


def refused(folder, said, arguments):
    before = tree(folder)
    with pytest.raises(TeraMindError, match=said) as caught:
        run(arguments)
    assert len(caught.value.lines) == 1
    after = tree(folder)
    assert {name: content for name, content in after.items() if ".work" not in name} == before


def test_what_is_refused_leaves_the_earlier_outputs(case, done, tmp_path):
    """Each was refused once only after map, tables and summary had been replaced or removed."""
    again = ("--pathway", "GLUT", "--overwrite")
    (tmp_path / "empty").mkdir()
    refused(done, "no attention.zarr in", words(case, done, *again, "--compare", tmp_path / "empty"))
    refused(done, "no attention.zarr in", words(case, done, *again, "--compare", tmp_path / "empty", "--dry-run"))
    refused(done, "--seed", words(case, done, *again, "--seed", "-1"))
    shutil.copytree(done, tmp_path / "torn")
    (tmp_path / "torn" / "partners.npz").write_bytes((done / "partners.npz").read_bytes()[:900])
    refused(done, "partners.npz cannot be read", words(case, done, *again, "--compare", tmp_path / "torn"))
    lacking = ("--genes", "Mog,Vip", "--overwrite", "--partners", "Slc17a6", "--permutations", "9")
    refused(done, "Slc17a6 has no transcript", words(case, done, *lacking, brain="lacking.zarr"))


def test_nothing_of_another_kind_is_replaced(case, tmp_path):
    for name, said in (
        ("attention.zarr", "store of format brain .*expected map"), ("summary.json", "no summary of this command"),
        ("maps.png", "is a folder where a file is written"),
    ):  # fmt: skip
        out = tmp_path / name.replace(".", "-")
        out.mkdir()
        if name == "summary.json":
            (out / name).write_text('{"format": "intervention"}')
        else:
            shutil.copytree(case.folder / "lacking.zarr", out / name)
        refused(out, said, words(case, out, "--pathway", "GLUT", "--overwrite"))


@pytest.mark.parametrize("more", [("--region", "0:96,64:130"), ("--sections", "0", "--pairwise")])
def test_little_to_read_is_no_reason_to_fail(case, tmp_path, more):
    """Glass alone; a section without the one before, with a gene of the set that is nowhere."""
    assert run(words(case, tmp_path / "out", "--pathway", "GLUT", *more, brain="lacking.zarr")) == 0
    record = json.loads((tmp_path / "out" / "summary.json").read_text())
    unknown = [row["with"] for row in record["restates"] if row["value"] is None]
    assert "Slc17a6" in unknown
    assert "maps.png" in record["figures"]


def test_regions_are_given_in_micrometres_too(case, tmp_path, monkeypatch):
    monkeypatch.setattr(page, "write_figures", lambda *_: [])
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "neighbours.png").write_bytes(b"of an earlier run")
    assert run(words(case, tmp_path / "out", "--pathway", "GLUT", "--region", "0um:25.6um,0:64")) == 0
    assert Map.open(tmp_path / "out" / "attention.zarr").shape[2:] == (2, 2)
    assert not (tmp_path / "out" / "neighbours.png").exists()


def test_maps_of_two_panels_are_each_taken_against_their_own(case, done, tmp_path):
    """Attention is a share of all genes of its own panel: levels are log2(A G + 1) with that panel's G."""
    other = Map.open(done / "attention.zarr")
    folder = tmp_path / "wide"
    folder.mkdir()
    values, own = other.values(), other.attributes
    place = own.channels.index(ATTENTION)
    values[place] /= 10  # ten times the genes, a tenth of the attention
    details = {**own.details, "panel": 10 * own.details["panel"]}
    wide = Map.write(folder / "attention.zarr", values, own.__class__(**{**vars(own), "details": details}))
    assert compare(wide, done, 0)["maps"][ATTENTION]["value"] == pytest.approx(1, abs=1e-6)
