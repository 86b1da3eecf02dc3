"""The paper's processed tiles and the Allen deposit: margins are not counted twice, sections come out as they are."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import tifffile
from instruments_more import (
    dropped,
    read_all,
    same_images,
    same_transcripts,
    write_bil,
    write_published,
    write_zarr_zip,
)

from tera_mind.errors import TeraMindError
from tera_mind.geometry import Box
from tera_mind.ingest.bil import BilReader
from tera_mind.ingest.published import PublishedReader
from tera_mind.ingest.published_genes import TileCounts
from tera_mind.ingest.source import known_levels


def test_cores_make_the_brain(tmp_path):
    truths = write_published(tmp_path / "brain")
    sections = pickle.loads(pickle.dumps(PublishedReader(section_step=200.0).sections(tmp_path / "brain", 5.0)))
    assert [section.name for section in sections] == ["brain_00", "brain_01", "brain_02"]
    assert [section.z_um for section in sections] == [5.0, 205.0, 405.0]
    for section, truth in zip(sections, truths, strict=True):
        assert section.panel == ("Gad1", "Slc17a7", "Aqp4")
        same_transcripts(section, truth)
        same_images(section, truth, step=(11, 19))
    assert known_levels(sections) == {"DAPI": (0.0, 255.0), "PolyT": (0.0, 255.0)}


def test_some_sections_and_a_missing_tile(tmp_path):
    truths = write_published(tmp_path / "brain")
    (section,) = PublishedReader(take=("2",)).sections(tmp_path / "brain", 5.0)
    assert (section.name, section.z_um) == ("brain_02", 5.0)
    same_transcripts(section, truths[2])
    (tmp_path / "brain" / "images" / "16_32_32_48_8_40_24_56.zip").unlink()  # nothing but background was there
    (section,) = PublishedReader(take=("2",)).sections(tmp_path / "brain", 5.0)
    assert section.provenance["notices"] == ["1 tiles have genes and no image, the first is 16_32_32_48"]
    window = section.stains[0].plane.read(Box(0, 32, 0, 48))
    assert not window[:16, 16:32].any()
    np.testing.assert_array_equal(window[16:], truths[2].images["DAPI"][16:])


def test_split_reads_every_tile_once(tmp_path, monkeypatch):
    truths = write_published(tmp_path / "brain")
    reader = PublishedReader(split=str(tmp_path / "scratch" / "s"))
    sections = pickle.loads(pickle.dumps(reader.sections(tmp_path / "brain", 0.0)))
    assert not (tmp_path / "scratch").exists()  # headers alone write nothing
    decoded = []
    original = TileCounts.core

    def core(counts, index):
        decoded.append(index)
        return original(counts, index)

    monkeypatch.setattr(TileCounts, "core", core)
    for section, truth in zip(sections, truths, strict=True):
        same_transcripts(section, truth)
    assert decoded == list(range(6))
    path = _first(tmp_path / "brain", "npz")
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(TeraMindError, match="was not made of these tiles"):
        read_all(reader, tmp_path / "brain")


def test_a_split_whose_record_is_damaged_is_refused(tmp_path):
    write_published(tmp_path / "brain", sections=2)
    reader = PublishedReader(split=str(tmp_path / "s"))
    (first, _) = reader.sections(tmp_path / "brain", 0.0)
    assert list(first.batches())
    for damage in ("{", "[]", "\xff"):
        (tmp_path / "s" / "tiles.json").write_bytes(damage.encode("latin-1"))
        with pytest.raises(TeraMindError, match="does not say which tiles it was made of; remove its folder"):
            list(first.batches())


def test_a_split_that_fails_leaves_nothing(tmp_path):
    write_published(tmp_path / "brain")
    max((tmp_path / "brain" / "genes").iterdir()).write_bytes(b"PK")
    reader = PublishedReader(split=str(tmp_path / "scratch" / "s"))
    with pytest.raises(TeraMindError, match="cannot be read as a sparse COO array"):
        read_all(reader, tmp_path / "brain")
    assert [path.name for path in (tmp_path / "scratch").iterdir()] == ["s.lock"]
    (section, *_) = reader.sections(tmp_path / "brain", 0.0)
    assert [fault.file.name for fault in section.batches.faults()] == ["32_48_48_64_24_56_40_72.npz"]


def _first(folder, kind):
    return min((folder / ("genes" if kind == "npz" else "images")).glob(f"*.{kind}"))


def _tile(change):
    """A first gene tile with other arrays."""

    def apply(folder):
        path = _first(folder, "npz")
        arrays = dict(np.load(path))
        arrays.update(change(arrays))
        np.savez_compressed(path, **arrays)

    return apply


def _link_to_nowhere(folder):
    path = _first(folder, "zip")
    path.unlink()
    path.symlink_to("nowhere")


def _renamed(name):
    return lambda folder: _first(folder, "zip").rename(folder / "images" / name)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda folder: _first(folder, "npz").write_bytes(b"PK"), "cannot be read as a sparse COO array"),
        (_tile(lambda arrays: {"coords": arrays["coords"][:2]}), "coordinates of"),
        (_tile(lambda arrays: {"coords": arrays["coords"] + 40}), "coordinates outside its shape"),
        (_tile(lambda arrays: {"fill_value": np.array(1)}), "fill value 0"),
        (_tile(lambda arrays: {"shape": np.array([32, 32, 10])}), "multiple of 3 channels"),
        (_tile(lambda arrays: {"shape": np.array([32, 32])}), "shape of 3 numbers"),
        (lambda folder: _first(folder, "zip").write_bytes(b"no zip"), "zipped zarr"),
        (lambda folder: write_zarr_zip(_first(folder, "zip"), np.zeros((4, 32, 32), np.uint8)), "has 4 channels"),
        (lambda folder: (folder / "genes.txt").write_text("A\nB\nA\n"), "every gene's name once"),
        (_renamed("0_16_0_16_8_40_8_40.zip"), "a core and of the tile"),
        (_link_to_nowhere, "cannot be reached"),
        (_renamed("20_36_16_32_12_44_8_40.zip"), "overlap"),
    ],
)  # fmt: skip
def test_damaged_tiles_are_told_in_one_line(tmp_path, damage, words):
    write_published(tmp_path / "brain")
    damage(tmp_path / "brain")
    with pytest.raises(TeraMindError, match=words) as caught:
        read_all(PublishedReader(), tmp_path / "brain")
    assert "\n" not in str(caught.value)


def test_counts_that_are_none_are_dropped_and_counted(tmp_path):
    truth = write_published(tmp_path / "brain")[0]
    path = _first(tmp_path / "brain", "npz")
    arrays = dict(np.load(path))
    mine = (arrays["coords"][2] == 0) & (arrays["coords"][0] == 11) & (arrays["coords"][1] == 13)
    assert arrays["data"][mine].tolist() == [3]
    np.savez(path, **arrays | {"data": np.where(mine, np.nan, arrays["data"].astype(float))})
    section = PublishedReader().sections(tmp_path / "brain", 0.0)[0]
    assert dropped(section) == {"no count": 1}  # nobody knows how many
    assert sum(int(batch.count.sum()) for batch in section.batches()) == len(truth.gene) - 3


def test_bil_hands_its_sections_to_merscope(tmp_path):
    folders = write_bil(tmp_path / "mouse")
    (tmp_path / "mouse" / "readme").mkdir()
    sections = BilReader(section_step=150.0, stains=("PolyT",)).sections(tmp_path / "mouse", 0.0)
    assert [(section.name, section.z_um) for section in sections] == [("1199650932", 0.0), ("1199650935", 150.0)]
    for section, folder in zip(sections, folders, strict=True):
        image = tifffile.imread(folder / "merfish_output" / "images" / "mosaic_PolyT_z0.tif")
        np.testing.assert_array_equal(section.stains[0].plane.read(Box(0, 120, 0, 140)), image)
        assert sum(len(batch.gene) for batch in section.batches()) == 150
    assert BilReader().sections(folders[1], 0.0)[0].name == "1199650935"
    with pytest.raises(TeraMindError, match=r"expected SECTION/elsewhere\.csv"):
        BilReader(transcripts="elsewhere.csv").sections(tmp_path / "mouse", 0.0)
    (tmp_path / "mouse" / "1199650932" / "old").mkdir()
    (tmp_path / "mouse" / "1199650932" / "old" / "mosaic_DAPI_z0.tif").touch()
    with pytest.raises(TeraMindError, match="expected one folder with mosaic_"):
        BilReader().sections(tmp_path / "mouse", 0.0)
    sections = BilReader(images="merfish_output/images").sections(tmp_path / "mouse", 0.0)
    assert len(sections) == 2
