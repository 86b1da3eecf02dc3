"""Every format of the registry by its command: what the builders drew lies in the store, pixel on pixel."""

from __future__ import annotations

import gzip

import numpy as np
import pytest
import tifffile
from instruments_more import BUILDERS, COSMX_UM, SETTINGS, write_bil, write_cosmx, write_published, write_table

from tera_mind.cli.main import main
from tera_mind.errors import InputError
from tera_mind.formats.brain import Brain
from tera_mind.ingest.pipeline import ingest
from tera_mind.ingest.placing import place
from tera_mind.ingest.registry import READERS
from tera_mind.ingest.table import TableReader


@pytest.fixture(autouse=True)
def _no_fsync(monkeypatch):
    """Stores that nobody keeps need not reach the disk."""
    monkeypatch.setattr("os.fsync", lambda _handle: None)


def cli(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def options(name: str) -> list[object]:
    """The settings of a built input as options of the command line."""
    return [word for key, value in SETTINGS[name].items() for word in ("--" + key.replace("_", "-"), value)]


def places(brain: Brain, section: int = 0) -> list[tuple[str, int, int]]:
    """(gene, y, x) of every transcript."""
    rows = brain.transcripts(section, brain.canvas)
    each = zip(rows.gene, rows.y, rows.x, rows.count, strict=True)
    return sorted((brain.genes[gene], int(y), int(x)) for gene, y, x, count in each for _ in range(count))


def true_places(truth, pixel_um: float) -> list[tuple[str, int, int]]:
    y, x = (np.floor(axis / pixel_um).astype(int).tolist() for axis in (truth.y_um, truth.x_um))
    return sorted(zip(truth.gene, y, x, strict=True))


@pytest.mark.parametrize("older", [False, True])
def test_cosmx(tmp_path, older):
    truth = write_cosmx(tmp_path / "slide", older=older)
    out = tmp_path / "b.zarr"
    assert cli("ingest", "cosmx", tmp_path / "slide", "--out", out, *options("cosmx"), "--range", "DAPI=0:3000",
               "--range", "rRNA=0:4000") == 0  # fmt: skip
    brain = Brain.open(out)
    assert brain.genes == ("Aqp4", "Gad1", "Slc17a7", "Vip")
    assert brain.pixel_um == pytest.approx(COSMX_UM)
    shown = brain.image(brain.canvas)[:, 0]
    for index, stain in enumerate(brain.stains):
        scale = 255 / {"rRNA": 4000, "DAPI": 3000}[stain]
        assert np.abs(shown[index] - truth.images[stain] * scale).max() <= 0.51
    # four decimals of a pixel in the table: a transcript on the very edge of a pixel may fall to either side
    found, wanted = places(brain), true_places(truth, COSMX_UM)
    assert [place[0] for place in found] == sorted(truth.gene)
    assert len(set(found) & set(wanted)) > 0.97 * len(set(wanted))


def test_published_is_not_stretched_again(tmp_path):
    truths = write_published(tmp_path / "brain", sections=2)
    out = tmp_path / "b.zarr"
    assert cli("ingest", "published", tmp_path / "brain", "--out", out, "--section-step", 200) == 0
    brain = Brain.open(out)
    assert brain.intensity_range == {"DAPI": (0.0, 255.0), "PolyT": (0.0, 255.0)}
    assert [section.z_um for section in brain.sections] == [0, 200]
    image = brain.image(brain.canvas)
    for index, truth in enumerate(truths):
        np.testing.assert_array_equal(image[:, index], np.stack([truth.images["DAPI"], truth.images["PolyT"]]))
        assert places(brain, index) == true_places(truth, 0.108)
    assert "not stretched again" in brain.sections[0].source["intensities"]


def test_a_table_whose_genes_have_ensembl_ids_and_cases(tmp_path):
    truth = write_table(tmp_path / "spots")
    path = tmp_path / "spots" / "spots.csv"
    path.write_text(path.read_text().replace("Aqp4", "ENSMUSG00000024411.12").replace("Gad1", "GAD1", 9))
    (tmp_path / "names.tsv.gz").write_bytes(gzip.compress(b"ENSMUSG00000024411\tAqp4\nENSMUSG00000070880\tGad1\n"))
    out = tmp_path / "b.zarr"
    extra = ("--gene-names", tmp_path / "names.tsv.gz", "--drop-genes", "slc.*")
    assert cli("ingest", "table", path, "--out", out, *options("table"), *extra) == 0
    brain = Brain.open(out)
    assert brain.genes == ("Aqp4", "Gad1")
    assert places(brain) == [place for place in true_places(truth, 0.5) if place[0] != "Slc17a7"]
    assert brain.sections[0].dropped["matches slc.*"] == truth.gene.count("Slc17a7")


def test_counts_of_bins_are_transcripts(tmp_path):
    (tmp_path / "S1.gem").write_text("geneID\tx\ty\tMIDCount\n" + "Gad1\t3\t5\t300\nVip\t3\t5\t2\nVip\t30\t12\t1\n")
    tifffile.imwrite(tmp_path / "ssdna.tif", np.arange(20 * 40, dtype=np.uint16).reshape(20, 40) % 251)
    out = tmp_path / "b.zarr"
    words = ("--gene", "geneID", "--count", "MIDCount", "--unit", 0.5, "--image-um", 0.5, "--images", "DAPI=ssdna.tif")
    assert cli("ingest", "table", tmp_path / "S1.gem", "--out", out, *words) == 0
    brain = Brain.open(out)
    assert brain.sections[0].transcripts == 303
    assert places(brain) == sorted([("Gad1", 5, 3)] * 300 + [("Vip", 5, 3)] * 2 + [("Vip", 12, 30)])


@pytest.mark.parametrize("name", BUILDERS)
def test_commands_check_and_explain_every_format(tmp_path, capsys, name):
    assert name in READERS
    paths = BUILDERS[name](tmp_path / "s")
    assert cli("ingest", name, *paths, "--check", *options(name)) == 0
    assert "0 faults" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        cli("ingest", name, "--help")
    assert f"tera-mind ingest {name}" in capsys.readouterr().out


def test_a_mouse_of_the_deposit(tmp_path):
    write_bil(tmp_path / "mouse")
    assert cli("ingest", "bil", tmp_path / "mouse", "--out", tmp_path / "b.zarr", "--section-step", 150) == 0
    brain = Brain.open(tmp_path / "b.zarr")
    assert [(section.name, section.z_um) for section in brain.sections] == [("1199650932", 0), ("1199650935", 150)]
    assert brain.genes == ("A", "B", "C")


def test_an_exported_ome_zarr_is_not_stretched_again(tmp_path):
    write_table(tmp_path / "spots")
    words, one, two = options("table"), tmp_path / "one.zarr", tmp_path / "two.zarr"
    assert cli("ingest", "table", tmp_path / "spots", "--out", one, *words) == 0
    (tmp_path / "spots" / "stains.ome.tif").unlink()
    assert cli("export", one, "--to", "ome-zarr", "--out", tmp_path / "spots" / "stains.zarr") == 0
    assert cli("ingest", "table", tmp_path / "spots", "--out", two, *words) == 0
    before, after = Brain.open(one), Brain.open(two)
    np.testing.assert_array_equal(after.image(after.canvas), before.image(before.canvas))
    assert places(after) == places(before)
    assert after.intensity_range == {"DAPI": (0.0, 255.0), "PolyT": (0.0, 255.0)}
    assert before.intensity_range != after.intensity_range


@pytest.mark.parametrize("bounds", [(-1000.0, 4000.0), (9.0, 9.0), (0.0, np.inf)])
def test_a_range_that_would_paint_what_is_outside_is_refused(tmp_path, bounds):
    write_table(tmp_path / "spots")
    canvas = place(TableReader(**SETTINGS["table"]).sections(tmp_path / "spots", 0.0))
    with pytest.raises(InputError, match="the range of stain DAPI should be 0 <= low < high"):
        ingest(canvas, tmp_path / "b.zarr", ranges={"DAPI": bounds})
    assert [path.name for path in tmp_path.iterdir()] == ["spots"]
