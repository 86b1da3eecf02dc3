"""Ingest: image and transcripts stay together, planes and panels are as asked, real folders are read."""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tifffile
from instruments import PIXEL_UM, write_merscope, write_xenium

from tera_mind.cli.main import main
from tera_mind.errors import FormatError, InputError
from tera_mind.formats.brain import Brain, Transcripts, create_brain
from tera_mind.formats.volume import Volume, VolumeAttributes
from tera_mind.geometry import Box
from tera_mind.ingest.panel import SectionGenes, common_panel
from tera_mind.ingest.pipeline import ingest
from tera_mind.ingest.placing import place
from tera_mind.ingest.registration import resample
from tera_mind.ingest.source import SectionSource, StainImage, TranscriptBatch
from tera_mind.ingest.tiff import TiffPlane


class ArrayPlane:
    def __init__(self, array: np.ndarray) -> None:
        self.array, self.shape = array, array.shape

    def read(self, box: Box) -> np.ndarray:
        return self.array[box.slices()]


@dataclass(frozen=True)
class Batches:
    batches: tuple[TranscriptBatch, ...]

    def __call__(self):
        return iter(self.batches)


def cli(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


# the real folders


@pytest.mark.parametrize("pixel_um", [None, 0.425])
def test_real_xenium_image_and_transcripts_agree(real_data, tmp_path, pixel_um, capsys):
    folder, out = real_data / "xenium_breast_crop", tmp_path / "b.zarr"
    options = [] if pixel_um is None else ["--pixel-um", pixel_um]
    assert cli("ingest", "xenium", folder, "--out", out, *options) == 0
    assert "146,855" in capsys.readouterr().out
    brain = Brain.open(out)
    size = (1800, 1792) if pixel_um is None else (900, 896)
    assert brain.shape == (1, 1, *size)
    assert len(brain.genes) == 313
    table = pq.read_table(folder / "transcripts.parquet").to_pandas()
    (a, b, c), (d, e, f) = brain.sections[0].affine_um_to_px
    x_um, y_um = table.x_location.to_numpy(float), table.y_location.to_numpy(float)
    x, y = np.floor(a * x_um + b * y_um + c).astype(int), np.floor(d * x_um + e * y_um + f).astype(int)
    inside = (y < size[0]) & (x < size[1])
    dapi = brain.image(brain.canvas)[0, 0]
    brightness, nuclear = dapi[y[inside], x[inside]], table.overlaps_nucleus.to_numpy()[inside] == 1
    assert brightness[nuclear].mean() > 2 * brightness[~nuclear].mean()
    # and the store's transcripts lie where the table's do
    stored = brain.transcripts(0, brain.canvas)
    assert stored.count.sum() == inside.sum() == brain.sections[0].transcripts
    assert np.average(dapi[stored.y, stored.x], weights=stored.count) == pytest.approx(brightness.mean(), rel=1e-9)
    counts = pd.Series(table.feature_name[inside]).value_counts()
    assert np.bincount(stored.gene, stored.count, 313).tolist() == [counts[gene] for gene in brain.genes]


def test_real_merscope_sample(real_data, tmp_path, capsys):
    folder, out = real_data / "merscope_sample", tmp_path / "b.zarr"
    assert cli("ingest", "merscope", folder, "--out", out, "--stains", "dapi,cellbound1") == 0
    assert "warning: 44% of the transcripts" in capsys.readouterr().err
    brain = Brain.open(out)
    assert brain.stains == ("DAPI", "Cellbound1")
    assert brain.shape == (2, 1, 512, 512)
    assert brain.pixel_um == pytest.approx(1 / 9.25957, rel=1e-5)
    planes = [tifffile.imread(folder / f"images/mosaic_DAPI_z{plane}.tif") for plane in range(7)]
    low, high = brain.intensity_range["DAPI"]
    expected = np.clip(np.rint((np.max(planes, axis=0) - low) * (255 / (high - low))), 0, 255)
    assert np.abs(brain.image(brain.canvas)[0, 0] - expected).max() <= 1  # float32 rounding
    table = pd.read_csv(folder / "detected_transcripts.csv")
    x, y = np.floor(9.2595901489 * table.global_x - 125.4944916), np.floor(9.2595415115 * table.global_y + 121.5537033)
    kept = (x >= 0) & (x < 512) & (y >= 0) & (y < 512) & ~table.gene.str.startswith("Blank")
    assert brain.sections[0].transcripts == kept.sum()
    gene = brain.genes.index("Comt")
    stored = brain.transcripts(0, brain.canvas)
    own = kept & (table.gene == "Comt")
    found = sorted(zip(stored.y[stored.gene == gene], stored.x[stored.gene == gene], strict=True))
    assert found == sorted(zip(y[own].astype(int), x[own].astype(int), strict=True))


# geometry


def rotation(angle: float, scale: float, shift: tuple[float, float]) -> np.ndarray:
    cos, sin = scale * np.cos(angle), scale * np.sin(angle)
    return np.array([[cos, -sin, shift[0]], [sin, cos, shift[1]], [0, 0, 1.0]])


@pytest.mark.parametrize("pixel_um", [0.5, 0.8, 0.3])
def test_fiducials_stay_under_their_transcripts(tmp_path, pixel_um):
    """Dots drawn in two images with different affines (one rotated) appear where the transcripts went."""
    maps = [rotation(0, 2.0, (7, -3)), rotation(0.3, 2.4, (80, 20))]
    dots_um = np.array([[20.0, 30.0], [60.0, 25.0], [35.0, 70.0], [72.0, 64.0]])
    stains = []
    for name, affine in zip(["DAPI", "PolyT"], maps, strict=True):
        image = np.full((260, 300), 50, np.uint16)
        for x, y, _ in (affine @ [*dot, 1.0] for dot in dots_um):
            image[int(y) - 1 : int(y) + 2, int(x) - 1 : int(x) + 2] = 4000
        stains.append(StainImage(name, ArrayPlane(image), affine))
    batch = TranscriptBatch(dots_um[:, 0], dots_um[:, 1], np.zeros(4, np.int32), ["A"])
    source = SectionSource("s", 0.0, tuple(stains), Batches((batch,)))
    ranges = {"DAPI": (0.0, 4000.0), "PolyT": (0.0, 4000.0)}
    brain = ingest(place([source], pixel_um=pixel_um), tmp_path / "b.zarr", ranges=ranges)
    rows = brain.transcripts(0, brain.canvas)
    assert len(rows) == 4
    (a, _, c), (_, e, f) = brain.sections[0].affine_um_to_px
    np.testing.assert_allclose([a, e, c, f], np.array([2, 2, 7, -3]) * 0.5 / pixel_um)
    for stain in range(2):
        for y, x in zip(rows.y.tolist(), rows.x.tolist(), strict=True):
            window = brain.image(Box(y - 6, y + 7, x - 6, x + 7))[stain, 0].astype(float)
            window -= np.median(window)
            centre = (window.sum(axis=1) @ np.arange(13), window.sum(axis=0) @ np.arange(13)) / window.sum()
            assert np.abs(centre - 6).max() < max(1, 0.5 + 0.25 / pixel_um)  # half a pixel of either side


def test_area_resampling():
    image = np.random.default_rng(0).integers(0, 1000, (60, 84)).astype(np.uint16)
    plane = ArrayPlane(image)
    halved = resample(plane, np.diag([0.5, 0.5, 1]), Box(0, 30, 0, 42))
    np.testing.assert_allclose(halved, image.reshape(30, 2, 42, 2).mean(axis=(1, 3)), rtol=1e-5)
    doubled = resample(plane, np.diag([2.0, 2.0, 1]), Box(0, 120, 0, 168))
    np.testing.assert_array_equal(doubled, image.repeat(2, axis=0).repeat(2, axis=1))
    uneven = np.diag([0.7, 0.6, 1.0])
    whole = resample(plane, uneven, Box(0, 36, 0, 58))
    assert whole.mean() == pytest.approx(image.mean(), rel=0.01)
    for box in Box(0, 36, 0, 58).tiles(17, 23):  # any window is a part of the whole
        np.testing.assert_allclose(resample(plane, uneven, box), whole[box.slices()], rtol=1e-5)
    outside = resample(plane, np.eye(3), Box(-2, 3, 80, 90))
    np.testing.assert_array_equal(outside[2:, :4], image[:3, 80:])
    assert outside[:2].sum() == outside[:, 4:].sum() == 0


@pytest.mark.parametrize("how", [{}, {"tile": (32, 16)}, {"compression": "zlib", "rowsperstrip": 7}])
def test_tiff_windows_equal_the_whole(tmp_path, how):
    image = np.random.default_rng(0).integers(0, 60_000, (100, 90)).astype(np.uint16)
    tifffile.imwrite(tmp_path / "i.tif", image, **how)
    plane = TiffPlane(tmp_path / "i.tif")
    assert plane.shape == (100, 90)
    for box in Box(0, 100, 0, 90).tiles(33, 41):
        np.testing.assert_array_equal(plane.read(box), image[box.slices()])


# formats


def test_xenium_drops_what_is_no_gene(tmp_path):
    names = [b"A", b"A", b"B", b"NegControlProbe_1", b"BLANK_7", b"antisense_X", b"UnassignedCodeword_2", b"B"]
    folder = write_xenium(tmp_path / "s", x_um=np.arange(8) + 1.2, y_um=np.arange(8) + 3.1)
    table = {"feature_name": pa.array(names), "qv": [40.0, 19.9, 20, 40, 40, 40, 10, None]}
    table |= {axis: pa.array(np.arange(8) + 1.2, pa.float32()) for axis in ("x_location", "y_location")}
    pq.write_table(pa.table(table), folder / "transcripts.parquet")
    assert cli("ingest", "xenium", folder, "--out", tmp_path / "b.zarr") == 0
    brain = Brain.open(tmp_path / "b.zarr")
    section = brain.sections[0]
    assert brain.genes == ("A", "B")
    assert section.dropped == {
        "blank codeword": 1, "negative control": 2, "unassigned codeword": 1, "qv below 20": 2,
    }  # fmt: skip
    rows = brain.transcripts(0, brain.canvas)
    assert rows.gene.tolist() == [0, 1]
    assert rows.y.tolist() == rows.x.tolist() == [int(1.2 / PIXEL_UM), int(3.2 / PIXEL_UM)]


def test_xenium_focus_folder_gives_one_stain_a_file(tmp_path):
    folder = write_xenium(tmp_path / "s")
    (folder / "morphology_mip.ome.tif").unlink()
    (folder / "morphology_focus").mkdir()
    for index, name in enumerate(["ch0000_dapi", "ch0001_18s"]):
        image = np.full((200, 160), 100 + index, np.uint16)
        image[50:90, 50:90] = 1000 * (index + 1)
        tifffile.imwrite(folder / "morphology_focus" / f"{name}.ome.tif", image, tile=(64, 64), metadata=None)
    assert cli("ingest", "xenium", folder, "--out", tmp_path / "b.zarr", "--stains", "18s,DAPI") == 0
    brain = Brain.open(tmp_path / "b.zarr")
    assert brain.stains == ("18S", "DAPI")
    assert brain.intensity_range == {"18S": (101.0, 2000.0), "DAPI": (100.0, 1000.0)}


def test_merscope_planes(tmp_path):
    folder = write_merscope(tmp_path / "r", planes=(0, 2, 4))
    images = [tifffile.imread(folder / f"images/mosaic_DAPI_z{plane}.tif").astype(int) for plane in (0, 2, 4)]
    wanted = {"max": [np.max(images, axis=0)], "2": [images[1]], "0,4": [images[0], images[2]], "each": images}
    for planes, expected in wanted.items():
        out = tmp_path / f"{planes}.zarr"
        options = ("--planes", planes, "--range", "DAPI=0:25500", "--plane-um", 1.5)
        assert cli("ingest", "merscope", folder, "--out", out, *options) == 0
        brain = Brain.open(out)
        assert brain.shape == (2, len(expected), 120, 140)
        assert brain.genes == ("A", "B", "C")
        assert np.abs(brain.image(brain.canvas)[0] - np.rint(np.divide(expected, 100))).max() <= 1
        total = sum(section.transcripts for section in brain.sections)
        assert total == 450 if len(expected) in (1, 3) else total == 300
    each = Brain.open(tmp_path / "each.zarr")
    assert [section.z_um for section in each.sections] == [0, 3, 6]
    assert [section.name for section in each.sections] == ["r_z0", "r_z2", "r_z4"]
    assert each.sections[0].dropped["other plane"] == 400


def test_sections_share_a_canvas_and_keep_their_positions(tmp_path):
    large = write_xenium(tmp_path / "large")
    small = write_xenium(tmp_path / "small", image=np.random.default_rng(2).integers(9, 99, (90, 80)).astype(np.uint16))
    out = tmp_path / "b.zarr"
    assert cli("ingest", "xenium", large, small, "--out", out, "--z-um", "5,217.5") == 0
    brain = Brain.open(out)
    assert brain.shape == (1, 2, 200, 160)
    assert [section.z_um for section in brain.sections] == [5, 217.5]
    image = brain.image(brain.canvas)
    assert image[0, 1, :90, :80].any()
    assert not image[0, 1, 90:].any()
    assert not brain.tissue(1)[3].any()


def test_panels_that_differ(tmp_path, capsys):
    one = write_xenium(tmp_path / "one")
    two = write_xenium(tmp_path / "two", genes=["A", "B", "D"] * 200)
    out = tmp_path / "b.zarr"
    assert cli("ingest", "xenium", one, two, "--out", out) == 2
    assert "section one lacks 1 genes that other sections have (D)" in capsys.readouterr().err
    assert not out.exists()
    assert cli("ingest", "xenium", one, two, "--out", out, "--genes", "shared") == 0
    assert Brain.open(out).genes == ("A", "B")
    assert Brain.open(out).sections[1].dropped == {"gene not in the panel": 200}
    assert cli("ingest", "xenium", one, two, "--out", out, "--genes", "all", "--overwrite") == 0
    assert Brain.open(out).genes == ("A", "B", "C", "D")


def test_a_rare_gene_is_no_difference_unless_declared():
    one = SectionGenes("one", {"A": 1000, "rare": 3}, None)
    two = SectionGenes("two", {"A": 900}, None)
    assert common_panel([one, two], "same") == ["A", "rare"]
    with pytest.raises(InputError, match=r"two lacks 1 genes .* \(rare\)"):
        common_panel([one, SectionGenes("two", {"A": 900}, ("A",))], "same")


# inspect


def test_inspect_brain_and_volume(tmp_path, capsys):
    rows = Transcripts(*(np.array([1, 2, 3], np.int32) for _ in range(4)))
    image = np.zeros((1, 1, 64, 64), np.uint8)
    genes = ["A", "B", "C", "D"]
    brain = create_brain(
        tmp_path / "b.zarr", image=image, transcripts=[rows], genes=genes, stains=["DAPI"], pixel_um=0.5
    )
    assert cli("inspect", brain.path, "--quick") == 0
    assert "brain store, version 2" in capsys.readouterr().out
    assert cli("inspect", brain.path, "--json", "--quick") == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["genes"] == genes
    assert facts["fingerprint"] == brain.fingerprint
    attributes = VolumeAttributes(
        stains=("DAPI",), pixel_um=0.5, brain="b.zarr", brain_fingerprint=brain.fingerprint, box=Box(0, 64, 0, 64),
        sections=(0,), patch_px=32, checkpoint="00", seed=11, steps=2, genes="shuffled",
    )  # fmt: skip
    Volume.write(tmp_path / "v.zarr", image, attributes)
    assert cli("inspect", tmp_path / "v.zarr") == 0
    text = capsys.readouterr().out
    assert "synthetic" in text
    assert "shuffled" in text


def test_inspect_shards_and_checkpoint(tmp_path, capsys):
    import torch

    (tmp_path / "shards").mkdir()
    manifest = {"format": "shards", "version": 1, "genes": ["A", "B"], "samples": 12}
    (tmp_path / "shards" / "manifest.json").write_text(json.dumps(manifest))
    assert cli("inspect", tmp_path / "shards") == 0
    assert "training shards, version 1" in capsys.readouterr().out
    checkpoint = {"state_dict": {"w": torch.zeros(3, 4)}, "epoch": 2, "tera_mind": {"genes": ["A"], "patch_px": 32}}
    torch.save(checkpoint, tmp_path / "last.ckpt")
    assert cli("inspect", tmp_path / "last.ckpt", "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["numbers"] == 12
    assert facts["tera_mind"]["patch_px"] == 32


def test_inspect_refuses_strangers(tmp_path, capsys):
    from tera_mind.cli.inspect import describe

    (tmp_path / "manifest.json").write_text('{"format": "other"}')
    (tmp_path / "bad.ckpt").write_bytes(b"nothing")
    (tmp_path / "sub").mkdir()
    for path, words in (
        (tmp_path, "no manifest"),
        (tmp_path / "bad.ckpt", "no checkpoint"),
        (tmp_path / "sub", "is no"),
    ):
        with pytest.raises(FormatError, match=words):
            describe(path)
    assert cli("inspect", tmp_path / "absent") == 2
    assert "nothing is at" in capsys.readouterr().err
