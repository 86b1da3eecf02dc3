"""`tera-mind inspect`: counts agree with the store, and what is wrong with a brain is said."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy import ndimage
from tiny_training import tiny_shards

from tera_mind.cli.main import main
from tera_mind.formats.brain import Brain, Transcripts, create_brain
from tera_mind.formats.maps import Map, MapAttributes
from tera_mind.geometry import Box
from tera_mind.survey.alignment import measure_alignment
from tera_mind.survey.measure import survey_brain

PIXEL_UM = 0.5
SIDE = 480


def everything(items, description, total=None):
    del description, total
    return items


def nuclei(random, moved=(0, 0), covered=1.0, seed_positions=None):
    """A section of discs of 4 um, and where 30 transcripts a disc lie, moved by pixels; some discs may have none."""
    positions = random.uniform(20, SIDE - 20, (90, 2)) if seed_positions is None else seed_positions
    image = np.zeros((SIDE, SIDE), np.float32)
    rows = []
    yy, xx = np.mgrid[:SIDE, :SIDE]
    for index, (y, x) in enumerate(positions):
        image[np.hypot(yy - y, xx - x) < 8] = 160
        if index < covered * len(positions):
            rows.append(np.array([y, x]) + random.normal(0, 5, (30, 2)) + np.array(moved))
    spots = np.concatenate(rows)
    spots = spots[((spots >= 0) & (spots < SIDE)).all(axis=1)].astype(np.int64)
    image = ndimage.gaussian_filter(image, 1.0) + 20
    return image.clip(0, 255).astype(np.uint8), spots


def brain_of(path, sections, genes=5):
    random = np.random.default_rng([7, 1])
    transcripts = []
    for _, found in sections:
        spots = np.unique(found, axis=0).astype(np.int32)
        gene = random.integers(0, genes, len(spots)).astype(np.int32)
        transcripts.append(
            Transcripts(spots[:, 0], spots[:, 1], gene, random.integers(1, 3, len(spots)).astype(np.int32))
        )
    image = np.stack([image for image, _ in sections])[None]
    return create_brain(
        path,
        image=image,
        transcripts=transcripts,
        genes=[f"G{index}" for index in range(genes)],
        stains=["DAPI"],
        pixel_um=PIXEL_UM,
    )


@pytest.mark.parametrize("moved", [(0, 0), (12, -20), (-31, 7)])
def test_the_offset_of_transcripts_is_found(tmp_path, moved):
    brain = brain_of(tmp_path / "b.zarr", [nuclei(np.random.default_rng(1), moved)])
    found = measure_alignment(brain, 0, 0)
    assert found.related
    assert (found.dy_um, found.dx_um) == pytest.approx((-moved[0] * PIXEL_UM, -moved[1] * PIXEL_UM), abs=0.5)
    assert found.aligned == (moved == (0, 0))


def test_transcripts_of_other_tissue_are_not_related(tmp_path):
    random = np.random.default_rng(2)
    image, _ = nuclei(random)
    _, spots = nuclei(random)
    brain = brain_of(tmp_path / "b.zarr", [(image, spots)])
    found = measure_alignment(brain, 0, 0)
    assert not found.related
    assert any("do not follow the nuclei" in words for words in survey_brain(brain, everything).warnings)


def test_counts_are_those_of_the_store(tmp_path):
    random = np.random.default_rng(3)
    brain = brain_of(tmp_path / "b.zarr", [nuclei(random), nuclei(random)])
    survey = survey_brain(brain, everything)
    for index, section in enumerate(survey.sections):
        rows = brain.transcripts(index, brain.canvas)
        expected = np.zeros(len(brain.genes), np.int64)
        np.add.at(expected, rows.gene, rows.count)
        assert section.gene_counts.tolist() == expected.tolist()
        assert section.density.sum() == rows.count.sum() == brain.sections[index].transcripts
        cell = np.zeros_like(section.density)
        np.add.at(cell, (rows.y // survey.step_px, rows.x // survey.step_px), rows.count)
        assert (cell == section.density).all()


def test_a_good_brain_has_nothing_to_warn_of(tmp_path):
    random = np.random.default_rng(4)
    positions = random.uniform(20, SIDE - 20, (90, 2))
    brain = brain_of(tmp_path / "b.zarr", [nuclei(random, seed_positions=positions + shift) for shift in (0, 2, 4)])
    assert survey_brain(brain, everything).warnings == []


def test_what_is_wrong_is_said(tmp_path):
    random = np.random.default_rng(5)
    bright, spots = nuclei(random)
    half = nuclei(random, covered=0.5)
    nothing = (np.zeros((SIDE, SIDE), np.uint8), np.zeros((0, 2), np.int64))
    corner = np.zeros((SIDE, SIDE), np.uint8)
    corner[330:470, 330:470] = nuclei(random)[0][:140, :140]
    far = np.stack([random.integers(330, 470, 900), random.integers(330, 470, 900)], axis=1)
    sections = [
        (np.where(bright > 100, 255, bright).astype(np.uint8), spots),
        half,
        nothing,
        nuclei(random),
        (corner, far),
    ]
    words = survey_brain(brain_of(tmp_path / "b.zarr", sections, genes=6), everything).warnings
    said = "\n".join(words)
    assert "section_000: " in said
    assert "pixels are saturated" in said
    assert "section_001: " in said
    assert "of the nuclear area has no transcripts around it" in said
    assert "section_002: empty (0 transcripts" in said
    assert "sections section_003 and section_004: tissue overlaps by" in said


def test_real_sections_are_judged_rightly(tmp_path, real_data, monkeypatch, capsys):
    """The Xenium crop is registered. The MERSCOPE sample's transcripts cover another field than its image."""
    monkeypatch.chdir(tmp_path)
    for kind, name in (("xenium", "xenium_breast_crop"), ("merscope", "merscope_sample")):
        assert main(["ingest", kind, str(real_data / name), "--out", f"{kind}.zarr"]) == 0
        capsys.readouterr()
        assert main(["inspect", f"{kind}.zarr", "--json"]) == 0
        survey = json.loads(capsys.readouterr().out)["survey"]
        alignment = survey["sections"][0]["alignment"]
        if kind == "xenium":
            assert survey["warnings"] == []
            assert np.hypot(alignment["dy_um"], alignment["dx_um"]) < 0.5
        else:
            assert survey["sections"][0]["nuclei_without_transcripts"] > 0.2
            assert any("do not follow the nuclei" in words for words in survey["warnings"])


def test_the_command_prints_draws_and_refuses(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(6)
    brain_of(tmp_path / "b.zarr", [nuclei(random), nuclei(random, moved=(0, 30))])
    assert main(["inspect", "b.zarr"]) == 0
    printed = capsys.readouterr()
    assert "figure: b_inspect.png" in printed.out
    assert "warning: section section_001: transcripts lie 14." in printed.err
    assert (tmp_path / "b_inspect.png").stat().st_size > 20_000
    assert main(["inspect", "b.zarr", "--quick"]) == 0
    assert "figure" not in capsys.readouterr().out
    assert main(["inspect", "b.zarr", "--figure", "b.txt"]) == 2
    assert "a figure ends in .png" in capsys.readouterr().err
    assert main(["inspect", "b.zarr", "--quick", "--figure", "b.pdf"]) == 2
    assert not (tmp_path / "b.pdf").exists()
    assert main(["inspect", "b.zarr", "--figure", "b.pdf"]) == 0
    assert (tmp_path / "b.pdf").read_bytes().startswith(b"%PDF")
    assert Brain.open("b.zarr").fingerprint in capsys.readouterr().out


def test_verify_reads_a_brain_against_its_checksums(tmp_path, capsys):
    path = tmp_path / "b.zarr"
    random = np.random.default_rng(8)
    brain = brain_of(path, [nuclei(random), nuclei(random)])
    total = sum(section.transcripts for section in brain.sections)
    assert main(["inspect", str(path), "--verify"]) == 0
    printed = capsys.readouterr()
    assert f"verified: 2 sections, {total:,} transcripts and all images are as" in printed.out
    assert "verifying sections" in printed.err
    assert not list(tmp_path.glob("*.png"))
    assert main(["inspect", str(path), "--verify", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["verified"].startswith("2 sections")
    rows = path / "transcripts" / "1" / "rows" / "c" / "0" / "0"
    data = bytearray(rows.read_bytes())
    data[len(data) // 2] ^= 1
    rows.write_bytes(data)
    assert main(["inspect", str(path), "--verify"]) == 2
    printed = capsys.readouterr()
    assert "verified" not in printed.out
    (error,) = (line for line in printed.err.splitlines() if "verifying" not in line)
    assert "section 1 (section_001)" in error


def test_verify_reads_shards_against_their_checksums(tmp_path, capsys):
    folder = tiny_shards(tmp_path)
    assert main(["inspect", str(folder), "--verify"]) == 0
    size = sum(path.stat().st_size for path in folder.glob("*.tar"))
    assert f"verified: 2 splits, {size:,} bytes of shards are as" in capsys.readouterr().out
    shard = next(folder.glob("train-*.tar"))
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    assert main(["inspect", str(folder), "--verify"]) == 2
    printed = capsys.readouterr()
    assert "verified" not in printed.out
    assert f"{shard} is damaged: its SHA-256 is not the manifest's" in printed.err


def test_what_has_no_checksums_is_not_verified(tmp_path, capsys):
    attributes = MapAttributes(
        name="Uncertainty", unit="", channels=("DAPI",), low=0.0, high=1.0,
        box=Box(0, 32, 0, 64), sections=(0,), step_px=32, pixel_um=0.5,
    )  # fmt: skip
    Map.write(tmp_path / "m.zarr", np.zeros(attributes.shape, np.float32), attributes)
    assert main(["inspect", str(tmp_path / "m.zarr"), "--verify"]) == 2
    assert "--verify needs the checksums of a brain store or shard folder" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main(["inspect", str(tmp_path / "m.zarr"), "--verify", "--quick"])
