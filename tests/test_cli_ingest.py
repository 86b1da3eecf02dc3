"""`tera-mind ingest` on the command line: every format has its options, --check and --dry-run write nothing."""

from __future__ import annotations

import dataclasses
import inspect
import shlex
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile
from instruments import write_merscope, write_xenium

from tera_mind.cli import ingest_options
from tera_mind.cli.ingest_options import build_parser, settings_of
from tera_mind.cli.main import main
from tera_mind.formats.brain import Brain
from tera_mind.ingest.registry import READERS
from tera_mind.ingest.source import option


def cli(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


@pytest.mark.parametrize("name", READERS)
def test_every_format_has_its_options_with_words_and_a_working_example(name, capsys):
    with pytest.raises(SystemExit) as ended:
        cli("ingest", name, "--help")
    assert ended.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    reader = READERS[name]
    assert inspect.getdoc(reader).partition("\n")[0].rstrip(".") in text
    plain = settings_of(build_parser().parse_args([name, "folder", "--out", "b.zarr"]))
    assert plain == {field.name: field.default for field in dataclasses.fields(reader)}
    for line in reader.EXAMPLE.splitlines():
        assert " ".join(line.split()) in text
        example = shlex.split(line)
        assert example[:3] == ["tera-mind", "ingest", name]
        settings = settings_of(build_parser().parse_args(example[2:]))
        assert set(settings) == set(plain)
        reader(**settings)  # as the command makes it


def test_types_and_a_name_that_is_taken(monkeypatch):
    @dataclasses.dataclass(frozen=True)
    class Reader:
        """A format for this test."""

        EXAMPLE = "tera-mind ingest mine folder --out b.zarr"
        depth: int = option(3, "how deep", "N")
        flip: bool = option(default=False, words="upside down")
        names: tuple[str, ...] = option(("a", "b"), "names", "A,B")
        genes: str = option("g.csv", "a file of its own", "PATH")

    monkeypatch.setattr(ingest_options, "READERS", {"mine": Reader})
    parse = build_parser().parse_args
    assert settings_of(parse(["mine", "f", "--out", "b"])) == {
        "depth": 3, "flip": False, "names": ("a", "b"), "genes": "g.csv",
    }  # fmt: skip
    arguments = ["mine", "f", "--out", "b", "--depth", "5", "--flip", "--names", "x, y", "--mine-genes", "h.csv"]
    options = parse([*arguments, "--genes", "all"])
    assert settings_of(options) == {"depth": 5, "flip": True, "names": ("x", "y"), "genes": "h.csv"}
    assert options.genes == "all"
    with pytest.raises(SystemExit):
        parse(["mine", "f", "--out", "b", "--depth", "many"])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--canvas-um", "100"], "argument --canvas-um: invalid"),
        (["--canvas-px", "1.5,2"], "argument --canvas-px: invalid"),
        (["--canvas-px", "10,20", "--canvas-um", "1,2"], "not allowed with argument"),
        (["--canvas-um", "100,-3"], "a canvas needs a positive height and width in um, got 100, -3"),
        (["--missing", "perhaps"], "invalid choice"),
        (["--workers", "0"], "--workers must be at least 1"),
        (["--sections", "none.csv"], "none.csv, nothing is there"),
        (["--sections", "none.csv", "--z-um", "3"], "leave --z-um out"),
        (["--gene-names", "none.csv"], "none.csv"),
        (["--drop-genes", "("], "'(' is no regular expression"),
        (["--range", "DAPI"], "argument --range: invalid"),
        (["--range", "DAPI=-1000:4000"], "raw intensities begin at 0, got DAPI=-1000:4000"),
        (["--range", "DAPI=0:inf"], "argument --range: invalid"),
    ],
)
def test_options_that_make_no_sense(tmp_path, options, words, capsys):
    folder = write_xenium(tmp_path / "s")
    try:
        code = cli("ingest", "xenium", folder, "--out", tmp_path / "b.zarr", *options)
    except SystemExit as ended:
        code = ended.code
    assert code == 2
    assert words in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


def test_out_may_be_left_out_with_check_alone(tmp_path, capsys):
    folder = write_xenium(tmp_path / "s")
    with pytest.raises(SystemExit):
        cli("ingest", "xenium", folder)
    assert "--out BRAIN.zarr is required" in capsys.readouterr().err
    assert cli("ingest", "xenium", folder, "--check") == 0
    out = capsys.readouterr().out
    assert "canvas of 200 x 160 px of 0.5 um, 1 sections" in out
    assert "0 faults" in out
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


def test_check_lists_faults_of_folders_and_table_in_one_go(tmp_path, capsys):
    good, bad = write_merscope(tmp_path / "good"), write_merscope(tmp_path / "bad")
    (bad / "images" / "mosaic_DAPI_z0.tif").write_bytes(b"no image")
    (bad / "images" / "micron_to_mosaic_pixel_transform.csv").write_text("9 0 1\n")
    table = tmp_path / "sections.csv"
    pd.DataFrame({"section": [0, 1], "section_id": ["good", "bad"], "z_um": ["x", "y"]}).to_csv(table, index=False)
    assert cli("ingest", "merscope", good, bad, "--check", "--sections", table) == 1
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("fault:")]
    assert any("sections.csv lacks columns a00" in line for line in lines)
    assert any("mosaic_DAPI_z0.tif" in line for line in lines)
    assert any("micron_to_mosaic" in line for line in lines)
    assert {path.name for path in tmp_path.iterdir()} == {"good", "bad", "sections.csv"}


def test_check_says_what_a_table_and_its_folders_do_not_share(tmp_path, capsys):
    folder = write_xenium(tmp_path / "s")
    table = tmp_path / "sections.csv"
    row = dict(zip(("a00", "a01", "a02", "a10", "a11", "a12"), (1, 0, 0, 0, 1, 0), strict=True))
    units = {"source_unit": "um", "canvas_unit": "um"}
    pd.DataFrame([{"section": 0, "section_id": "other", "z_um": 0, **row, **units}]).to_csv(table, index=False)
    assert cli("ingest", "xenium", folder, "--check", "--sections", table) == 1
    assert "has no row for s; its sections are other" in capsys.readouterr().out


def test_dry_run_says_what_it_would_do(tmp_path, capsys):
    folders = [write_xenium(tmp_path / name) for name in ("one", "two")]
    assert cli("ingest", "xenium", *folders, "--out", tmp_path / "b.zarr", "--z-um", "5,150", "--dry-run") == 0
    out = capsys.readouterr().out
    assert "2 sections of 200 x 160 px at 0.5 um" in out
    assert "two  z 150 um  about 600 transcripts  to be read" in out
    assert "about 1,200 transcripts in all" in out
    assert "GB free" in out
    assert {path.name for path in tmp_path.iterdir()} == {"one", "two"}


def test_gene_names_and_dropped_genes(tmp_path):
    ids = ["ENSMUSG00000000001.4", "ENSMUSG00000000002", "Sox9"]
    folder = write_xenium(tmp_path / "s", genes=[ids[index % 3] for index in range(600)])
    names = tmp_path / "features.tsv"
    names.write_text("ENSMUSG00000000001\tGnai3\nENSMUSG00000000002\tPbsn\n")
    out = tmp_path / "b.zarr"
    assert cli("ingest", "xenium", folder, "--out", out, "--gene-names", names, "--drop-genes", "sox.*") == 0
    brain = Brain.open(out)
    assert brain.genes == ("Gnai3", "Pbsn")
    assert sum(brain.sections[0].dropped.values()) == 200


def test_warnings_are_counted_at_the_end(tmp_path, capsys):
    x_um = np.linspace(1, 79, 600)
    x_um[:30], x_um[30:37] = 500, np.nan
    one = write_xenium(tmp_path / "one", x_um=x_um, genes=["A", "B", "C"] * 200)
    two = write_xenium(tmp_path / "two", genes=["A", "B", "D"] * 200)
    out = tmp_path / "b.zarr"
    assert cli("ingest", "xenium", one, two, "--out", out, "--genes", "all") == 0
    warnings = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
    assert any("5% of the transcripts of section one lie outside its image" in line for line in warnings)
    assert any("7 transcripts left out: no position, first in one" in line for line in warnings)
    assert any("section two has no transcript of 1 of the brain's genes" in line for line in warnings)
    assert not any("outside" in line and "two" in line for line in warnings)
    assert cli("ingest", "xenium", one, two, "--out", out, "--genes", "shared", "--overwrite") == 0
    assert "section two: 200 transcripts of genes that not all sections have" in capsys.readouterr().err


@pytest.mark.slow
def test_several_processes_write_the_same_store(tmp_path):
    folder = write_merscope(tmp_path / "s")
    for workers in (1, 2):
        out = tmp_path / f"{workers}.zarr"
        assert cli("ingest", "merscope", folder, "--out", out, "--workers", workers) == 0
    one, two = (Brain.open(tmp_path / f"{workers}.zarr") for workers in (1, 2))
    assert one.fingerprint == two.fingerprint


def test_a_rotated_mosaic_is_read_by_windows(tmp_path, monkeypatch):
    """A section turned by 30 degrees, with a limit on what is read at a time: no read is larger."""
    from tera_mind.ingest import resampling, tiff

    sizes: list[int] = []
    read = tiff.TiffPlane.read

    def counted(plane: tiff.TiffPlane, box):
        sizes.append(box.height * box.width)
        return read(plane, box)

    image = np.random.default_rng(0).integers(100, 900, (400, 420)).astype(np.uint16)
    folder = write_xenium(tmp_path / "s", image=image)
    tifffile.imwrite(folder / "morphology_mip.ome.tif", image, tile=(64, 64), metadata=None)
    table = Path(tmp_path / "t.csv")
    table.write_text(
        "section,section_id,z_um,a00,a01,a02,a10,a11,a12,source_unit,canvas_unit\n"
        "0,s,0,0.866,-0.5,110,0.5,0.866,0,um,um\n"
    )
    arguments = ["ingest", "xenium", folder, "--sections", table, "--workers", "1", "--out"]
    assert cli(*arguments, tmp_path / "whole.zarr") == 0
    monkeypatch.setattr(tiff.TiffPlane, "read", counted)
    monkeypatch.setattr(resampling, "_SOURCE_PIXELS", 10_000)
    assert cli(*arguments, tmp_path / "parts.zarr") == 0
    assert max(sizes) <= 10_000
    assert sum(sizes) > image.size  # all of it, with the windows' overlap
    whole, parts = (Brain.open(tmp_path / f"{name}.zarr") for name in ("whole", "parts"))
    np.testing.assert_array_equal(whole.image(whole.canvas), parts.image(parts.canvas))
