"""What is exported opens in other libraries and holds the same pixels and transcripts."""

from __future__ import annotations

import numpy as np
import pytest
import tifffile
import zarr
from tiny_brain import make_brain

from tera_mind.cli.main import main
from tera_mind.formats.volume import Volume, VolumeAttributes
from tera_mind.geometry import Box


@pytest.fixture(scope="module")
def brain(tmp_path_factory):
    return make_brain(tmp_path_factory.mktemp("export") / "brain.zarr", shape=(2, 3, 1101, 1303), rows=2000)


@pytest.fixture(scope="module")
def volume(tmp_path_factory):
    random = np.random.default_rng(1)
    attributes = VolumeAttributes(
        stains=("DAPI", "PolyT"),
        pixel_um=0.4,
        brain="b",
        brain_fingerprint="f",
        box=Box(64, 264, 128, 378),
        sections=(1, 2),
        patch_px=32,
        checkpoint="c",
        seed=0,
        steps=2,
    )
    image = random.integers(1, 256, attributes.shape).astype(np.uint8)
    return Volume.write(tmp_path_factory.mktemp("export") / "volume.zarr", image, attributes)


def pooled(image):
    """2 x 2 means, rounded half up, an odd last row or column counted twice: by hand."""
    image = np.pad(image.astype(int), [(0, 0), (0, image.shape[1] % 2), (0, image.shape[2] % 2)], mode="edge")
    quads = image[:, ::2, ::2] + image[:, 1::2, ::2] + image[:, ::2, 1::2] + image[:, 1::2, 1::2]
    return (quads + 2) // 4


def test_ome_tiff_has_pixels_pyramid_and_names(brain, tmp_path):
    assert main(["export", str(brain.path), "--to", "ome-tiff", "--out", str(tmp_path / "q"), "--sections", "0,2"]) == 0
    names = sorted(path.name for path in (tmp_path / "q").iterdir())
    assert names == ["section_000.ome.tif", "section_002.ome.tif"]
    with tifffile.TiffFile(tmp_path / "q" / "section_002.ome.tif") as tif:
        assert tif.is_ome
        assert tif.is_bigtiff
        levels = tif.series[0].levels
        expected = brain.image(brain.canvas, [2])[:, 0]
        for level in levels:
            assert level.axes == "CYX"
            assert (level.asarray() == expected).all()
            assert level.pages[0].is_tiled
            expected = pooled(expected)
        assert len(levels) == 3
        metadata = tifffile.xml2dict(tif.ome_metadata)["OME"]["Image"]["Pixels"]
        assert metadata["PhysicalSizeX"] == pytest.approx(0.4)
        assert [channel["Name"] for channel in metadata["Channel"]] == ["DAPI", "PolyT"]


def test_a_region_of_a_volume_as_one_tiff_and_as_zarr(volume, tmp_path):
    box = Box(100, 181, 140, 300)
    source = ["export", str(volume.path), "--sections", "2", "--region", str(box).replace("Box", "")]
    assert main([*source, "--to", "ome-tiff", "--out", str(tmp_path / "s.ome.tif")]) == 0
    assert (tifffile.imread(tmp_path / "s.ome.tif") == volume.image(box, [2])[:, 0]).all()
    assert b"synthetic" in (tmp_path / "s.ome.tif").read_bytes()
    assert main([*source, "--to", "ome-zarr", "--out", str(tmp_path / "s.zarr")]) == 0
    group = zarr.open_group(tmp_path / "s.zarr", mode="r")
    assert (np.asarray(group["0"][:]) == volume.image(box, [2])).all()
    from ome_zarr_models.v05.image import Image

    image = Image.from_zarr(group)  # raises where the metadata is not OME-NGFF 0.5
    assert [axis.name for axis in image.attributes.ome.multiscales[0].axes] == ["c", "z", "y", "x"]


def test_spatialdata_opens_it_and_finds_the_same(brain, volume, tmp_path):
    spatialdata = pytest.importorskip("spatialdata")
    assert main(["export", str(brain.path), "--to", "spatialdata", "--out", str(tmp_path / "b.zarr")]) == 0
    store = spatialdata.read_zarr(tmp_path / "b.zarr")
    assert sorted(store.images) == [f"section_00{n}_image" for n in range(3)]
    image = store.images["section_001_image"]
    assert (np.asarray(image) == brain.image(brain.canvas, [1])[:, 0]).all()
    assert [str(name) for name in image.coords["c"].values] == ["DAPI", "PolyT"]
    frame = store.points["section_001_transcripts"].compute()
    rows = brain.transcripts(1, brain.canvas)
    expected = sorted(
        (int(y), int(x), brain.genes[gene])
        for y, x, gene, count in zip(rows.y, rows.x, rows.gene, rows.count, strict=True)
        for _ in range(count)
    )
    found = sorted(
        zip(
            (frame.y / 0.4 - 0.5).round().astype(int),
            (frame.x / 0.4 - 0.5).round().astype(int),
            frame.gene,
            strict=True,
        )
    )
    assert found == expected
    box = spatialdata.bounding_box_query(
        store, min_coordinate=[40.0, 20.0], max_coordinate=[120.0, 100.0], axes=("x", "y"),
        target_coordinate_system="global",
    )  # fmt: skip
    inside = brain.transcripts(1, Box(50, 250, 100, 300))
    assert len(box.points["section_001_transcripts"]) == inside.count.sum()
    assert main(["export", str(volume.path), "--to", "spatialdata", "--out", str(tmp_path / "v.zarr")]) == 0
    painted = spatialdata.read_zarr(tmp_path / "v.zarr")
    extent = spatialdata.get_extent(painted.images["section_002_image"])
    assert extent["x"] == pytest.approx((128 * 0.4, 378 * 0.4))
    assert extent["y"] == pytest.approx((64 * 0.4, 264 * 0.4))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--to", "ome-tiff", "--out", "x.tif", "--sections", "0"], "named NAME.ome.tif"),
        (["--to", "ome-tiff", "--out", "x.ome.tif"], "holds one section, 3 are chosen"),
        (["--to", "ome-zarr", "--out", "x.zarr", "--sections", "7"], "has sections 0..2, asked for 7"),
        (["--to", "ome-zarr", "--out", "x.zarr", "--region", "0:9999,:"], "leaves the canvas"),
        (["--to", "ome-zarr", "--out", "taken"], "is already there"),
    ],
)
def test_bad_requests_are_one_line(brain, tmp_path, monkeypatch, capsys, arguments, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").mkdir()
    assert main(["export", str(brain.path), *arguments]) == 2
    error = capsys.readouterr().err.strip()
    assert words in error
    assert len(error.splitlines()) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["taken"]


def test_dry_run_writes_nothing_and_full_disks_are_said(brain, tmp_path, monkeypatch, capsys):
    arguments = ["export", str(brain.path), "--to", "ome-zarr", "--out", str(tmp_path / "x.zarr")]
    assert main([*arguments, "--dry-run"]) == 0
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("usage", (), {"free": 1000})())
    assert main(arguments) == 2
    assert "0.0 GB are free" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
