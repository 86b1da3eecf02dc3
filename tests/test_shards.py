"""Shards: what is written is what the brain holds, regions never touch, damage is named."""

from __future__ import annotations

import hashlib
import json
import tarfile
from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_brain import GENES, make_brain

from tera_mind.cli.main import main
from tera_mind.errors import FormatError, InputError, MissingFileError, PanelMismatchError
from tera_mind.formats.shard_plan import _cut, plan_shards, split_regions
from tera_mind.formats.shards import Manifest, write_shards
from tera_mind.formats.slab import corner_box, decode_slab, encode_slab, read_slab, slab_corners
from tera_mind.geometry import Box

SIZES = {"core_px": 48, "crop_px": 32}


@pytest.fixture(scope="module")
def brain(tmp_path_factory):
    return make_brain(tmp_path_factory.mktemp("brain") / "tiny.zarr")


@pytest.fixture(scope="module")
def shards(brain, tmp_path_factory):
    plan = plan_shards([brain], train=":,:60%", val=":,60%:", gene_sections=4, **SIZES)
    out = tmp_path_factory.mktemp("shards") / "tiny"
    return write_shards([brain], out, plan, shard_mb=0.1)


@pytest.fixture
def copy(shards, tmp_path):
    """A copy of the shards that a test may damage."""
    folder = tmp_path / "copy"
    folder.mkdir()
    for file in shards.folder.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


def test_a_slab_survives_its_members(brain):
    slab = read_slab(brain, 3, Box(-8, 71, 150, 230), first_section=-1, gene_sections=4)
    back = decode_slab(encode_slab(slab, Box(-8, 40, 150, 199)), "here")
    assert (back.brain, back.first_section, back.window, back.inside) == (3, -1, slab.window, Box(0, 71, 150, 200))
    assert back.exists == (False, True)
    np.testing.assert_array_equal(back.image, slab.image)
    assert len(back.transcripts) == 4
    for rows, expected in zip(back.transcripts, slab.transcripts, strict=True):
        assert np.all(np.diff(rows.y) >= 0)
        for column in ("y", "x", "gene", "count"):
            np.testing.assert_array_equal(getattr(rows, column), getattr(expected, column))


def test_slabs_hold_what_the_brain_holds(brain, shards):
    assert {name: len(split.samples) for name, split in shards.splits.items()} == {"train": 18, "val": 12}
    assert (shards.genes, shards.stains, shards.pixel_um) == (GENES, ("DAPI", "PolyT"), 0.4)
    assert shards.brains[0]["fingerprint"] == brain.fingerprint
    for name, split in shards.splits.items():
        for number in range(len(split.samples)):
            slab = shards.read(name, number)
            sections = (slab.first_section, slab.first_section + 1)
            np.testing.assert_array_equal(slab.image, brain.image(slab.window, sections))
            for rows, section in zip(slab.transcripts, range(sections[0] - 1, sections[0] + 3), strict=True):
                assert table(rows) == table(brain.transcripts(section, slab.window))
    assert {split.samples[-1].place.first_section for split in shards.splits.values()} == {1}


def table(rows):
    return sorted(zip(rows.y.tolist(), rows.x.tolist(), rows.gene.tolist(), rows.count.tolist(), strict=True))


def test_offsets_and_hashes_point_at_the_samples(shards):
    record = json.loads((shards.folder / "manifest.json").read_text())
    files = [shard for split in record["splits"].values() for shard in split["shards"]]
    assert len(files) > 4
    for name, split in record["splits"].items():
        table = np.load(shards.folder / split["index"]["file"])
        assert len(table) == sum(split["slabs"]) == sum(shard["slabs"] for shard in split["shards"])
        for number, shard in enumerate(split["shards"]):
            data = (shards.folder / shard["file"]).read_bytes()
            assert (len(data), hashlib.sha256(data).hexdigest()) == (shard["bytes"], shard["sha256"])
            with tarfile.open(shards.folder / shard["file"]) as tar:
                members = {info.name: info for info in tar}
            rows = np.flatnonzero(table["shard"] == number)
            assert len(members) == 3 * len(rows) == 3 * shard["slabs"]
            for row in rows.tolist():
                sample, key = dict(zip(table.dtype.names, table[row].item(), strict=True)), f"{name}-{row:07d}"
                end = sample["offset"] + sample["bytes"]
                assert members[f"{key}.image.u8"].offset == sample["offset"]
                assert members[f"{key}.json"].offset_data < end <= len(data)
                facts = json.loads(data[members[f"{key}.json"].offset_data : end].rstrip(b"\0"))
                y, x = sample["y"], sample["x"]
                assert facts["core"] == [y, y + sample["height"], x, x + sample["width"]]
                assert (facts["brain"], facts["first_section"]) == (sample["brain"], sample["section"])
    shards.verify()


def test_a_plain_webdataset_reader_streams_the_shards(brain, shards):
    wds = pytest.importorskip("webdataset")
    urls = sorted(map(str, shards.folder.glob("train-*.tar")))
    samples = list(wds.WebDataset(urls, shardshuffle=False, empty_check=False))
    assert [sample["__key__"] for sample in samples] == [ref.key for ref in shards.splits["train"].samples]
    for sample in samples[:3]:
        slab = decode_slab({name: sample[name] for name in ("image.u8", "rna.bin", "json")}, "stream")
        np.testing.assert_array_equal(
            slab.image, brain.image(slab.window, (slab.first_section, slab.first_section + 1))
        )


@st.composite
def two_regions(draw):
    """A canvas, two regions without a common pixel, a gap, a crop."""
    canvas = Box(0, draw(st.integers(60, 300)), 0, draw(st.integers(60, 300)))
    along_y = draw(st.booleans())
    size = canvas.height if along_y else canvas.width
    cuts = sorted(draw(st.lists(st.integers(0, size), min_size=4, max_size=4, unique=True)))
    parts = [f"{cuts[0]}:{cuts[1]}", f"{cuts[2]}:{cuts[3]}"]
    if draw(st.booleans()):
        parts.reverse()
    texts = [f"{part},:" if along_y else f":,{part}" for part in parts]
    return (
        canvas,
        dict(zip(("train", "val"), texts, strict=True)),
        draw(st.integers(0, 20)),
        draw(st.integers(1, 6)) * 8,
    )


@settings(max_examples=150, deadline=None)
@given(two_regions())
def test_no_crop_crosses_from_training_into_validation(case):
    canvas, texts, gap_px, crop_px = case
    try:
        regions = split_regions(canvas, texts, gap_px)
        areas = {name: corner_box(region, canvas, crop_px) for name, region in regions.items()}
    except InputError:
        return
    for name, other in (("train", "val"), ("val", "train")):
        area = areas[name]
        seen = Box(area.y0, area.y1 - 1 + crop_px, area.x0, area.x1 - 1 + crop_px)
        overhang = crop_px // 4
        assert regions[name].grow(overhang).contains(seen)
        assert regions[name].contains(seen.intersect(canvas))  # it leaves the region only where the canvas ends
        gap = gap_px if name == "train" else 0
        assert seen.intersect(canvas).grow(gap).intersect(regions[other]).is_empty


@settings(max_examples=100, deadline=None)
@given(st.integers(40, 400), st.integers(0, 60), st.integers(4, 16), st.integers(1, 16))
def test_cores_tile_the_corners_of_every_crop_size(size, start, large, small):
    large_px, small_px = 8 * large, 8 * min(small, large)
    canvas, region = Box(0, 500, -99, 140), Box(start, start + size, 0, 40)
    try:
        tiled = corner_box(region, canvas, large_px)
    except InputError:
        return
    full = corner_box(region, canvas, small_px)
    hit = np.zeros(full.height, int)
    for y0, y1 in _cut(tiled.y0, tiled.y1, large_px):
        part = slab_corners(Box(y0, y1, tiled.x0, tiled.x1), tiled, full)
        assert not part.is_empty
        hit[part.y0 - full.y0 : part.y1 - full.y0] += 1
        assert y0 <= part.y0  # inside the slab's window
        assert part.y1 - 1 + small_px <= y1 - 1 + large_px
    assert (hit == 1).all()


def test_overlapping_and_small_regions_are_refused(brain):
    with pytest.raises(InputError, match=r"overlap in 0:120,100:120; choose"):
        plan_shards([brain], train=":,:60%", val=":,50%:", **SIZES)
    with pytest.raises(InputError, match="too small for crops of 32 px"):
        plan_shards([brain], train="10:20,:", **SIZES)
    with pytest.raises(InputError, match="leaves nothing of the training region"):
        plan_shards([brain], train=":,:60%", val=":,60%:", gap_px=150, **SIZES)
    with pytest.raises(InputError, match="core of a slab"):
        plan_shards([brain], core_px=16, crop_px=32)
    with pytest.raises(InputError, match="multiple of 8"):
        plan_shards([brain], crop_px=30)


def test_slabs_without_tissue_can_be_left_out(tmp_path):
    tissue = np.zeros((1, 2, 4), bool)
    tissue[0, 0, 0] = True
    brain = make_brain(tmp_path / "half.zarr", shape=(1, 1, 128, 256), stains=("DAPI",), tissue=tissue)
    everything, kept = (plan_shards([brain], skip_empty=skip, **SIZES).splits["train"].places for skip in (False, True))
    assert 0 < len(kept) < len(everything)
    assert all(not place.window(32).intersect(Box(0, 64, 0, 64)).is_empty for place in kept)
    with pytest.raises(InputError, match="no tissue"):
        plan_shards([brain], train=":,150:", skip_empty=True, **SIZES)


def test_several_brains_share_one_panel(brain, tmp_path):
    other = make_brain(tmp_path / "other.zarr", genes=("Vip", "Sst", "Aqp4"), seed=1)
    with pytest.raises(PanelMismatchError, match=r"Gad2, Mog, Slc17a7, Sst"):
        plan_shards([brain, other], **SIZES)
    plan = plan_shards([brain, other], common_genes=True, **SIZES)
    assert plan.genes == ("Aqp4", "Vip")
    manifest = write_shards([brain, other], tmp_path / "both", plan)
    boxes = [manifest.corners("train", number, 16) for number in range(len(manifest.splits["train"].samples))]
    assert manifest.all_corners("train", 16).tolist() == [[box.y0, box.y1, box.x0, box.x1] for box in boxes]
    for number, sample in enumerate(manifest.splits["train"].samples):
        slab, source = manifest.read("train", number), (brain, other)[sample.place.brain]
        rows = source.transcripts(slab.first_section, slab.window)
        for index, gene in enumerate(plan.genes):
            expected = rows.count[rows.gene == source.genes.index(gene)].sum()
            assert slab.transcripts[0].count[slab.transcripts[0].gene == index].sum() == expected
    with pytest.raises(InputError, match="same stains"):
        plan_shards([brain, make_brain(tmp_path / "c.zarr", stains=("DAPI", "18S"))], **SIZES)
    with pytest.raises(InputError, match="same --pixel-um"):
        plan_shards([brain, make_brain(tmp_path / "d.zarr", pixel_um=0.2)], **SIZES)


def test_a_truncated_or_missing_shard_is_named(copy):
    shard = copy / "val-000000.tar"
    data = shard.read_bytes()
    shard.write_bytes(data[:-1000])
    with pytest.raises(FormatError, match=r"val-000000\.tar should have \d+ bytes, has \d+: truncated"):
        Manifest.open(copy)
    shard.unlink()
    with pytest.raises(FormatError, match=r"val-000000\.tar of the manifest is missing"):
        Manifest.open(copy)


def test_damage_inside_a_shard_is_named_with_its_offset(copy):
    manifest = Manifest.open(copy)
    ref = manifest.splits["train"].samples[1]
    data = bytearray((copy / ref.shard).read_bytes())
    data[ref.offset + 3000] ^= 1
    (copy / ref.shard).write_bytes(data)
    Manifest.open(copy).read("train", 0)
    with pytest.raises(FormatError, match=rf"{ref.shard} at byte {ref.offset} is damaged"):
        manifest.read("train", 1)
    with pytest.raises(FormatError, match=rf"{ref.shard} is damaged: its SHA-256"):
        manifest.verify()
    (copy / ref.shard).write_bytes(data[: ref.offset + 100])
    with pytest.raises(FormatError, match=rf"{ref.shard} at byte {ref.offset} is truncated"):
        manifest.read("train", 1)


@pytest.mark.parametrize("field", ["brain", "section", "y", "x", "height", "width", "shard", "offset"])
def test_a_changed_field_of_the_index_is_named(copy, field):
    path = copy / "train.index.npy"
    table = np.load(path)
    table[field][1] += 1
    np.save(path, table)
    with pytest.raises(FormatError, match=r"train\.index\.npy is damaged: its SHA-256 is not the manifest's"):
        Manifest.open(copy).read("train", 1)


def test_manifests_that_cannot_be_read_are_refused(copy, tmp_path):
    with pytest.raises(MissingFileError, match=r"no manifest\.json"):
        Manifest.open(tmp_path)
    path = copy / "manifest.json"
    record = json.loads(path.read_text())
    for change, message in [
        ({"version": 1}, "unknown version 1, .*write the shards again"),
        ({"version": 7}, "unknown version 7, tera-mind .* reads version 2"),
        ({"format": "brain"}, "no manifest of shards"),
        ({"splits": {"train": {}}}, "malformed"),
        ({"intensity_range": None}, "malformed"),
        ({"intensity_range": {"DAPI": [0, 255]}}, "malformed .*no intensity_range of PolyT"),
        ({"pixel_um": "x"}, r"manifest\.json is malformed .*could not convert"),
        ({"brains": []}, "malformed .*slabs and regions of train are not those of 0 brains"),
    ]:
        path.write_text(json.dumps(record | change))
        with pytest.raises(FormatError, match=message):
            Manifest.open(copy)
    path.write_text(json.dumps(record)[:-5])
    with pytest.raises(FormatError, match="no readable JSON"):
        Manifest.open(copy)


def test_the_command_writes_describes_and_refuses(brain, tmp_path, capsys):
    out = tmp_path / "out"
    command = ["shards", str(brain.path), "--out", str(out), "--core-px", "48", "--crop-px", "32", "--val", ":,60%:"]
    assert main([*command, "--train", ":,:60%", "--dry-run"]) == 0
    assert "train: 27 slabs of tiny.zarr 0:120,0:120" in capsys.readouterr().out
    assert not out.exists()
    assert main([*command, "--train", ":,:60%"]) == 0
    assert len(Manifest.open(out).splits["val"].samples) == 18
    capsys.readouterr()
    assert main([*command, "--train", ":,:60%"]) == 2
    assert "already there; choose another folder or add --overwrite" in capsys.readouterr().err
    assert main([*command, "--overwrite"]) == 0  # only a validation region: nothing to train on
    assert list(Manifest.open(out).splits) == ["val"]
    assert main(["shards", str(tmp_path / "none.zarr"), "--out", str(tmp_path / "x")]) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_an_interrupted_writing_leaves_nothing(brain, tmp_path):
    def stop_after_two(places):
        yield from islice(places, 2)
        raise KeyboardInterrupt

    plan = plan_shards([brain], **SIZES)
    with pytest.raises(KeyboardInterrupt):
        write_shards([brain], tmp_path / "out", plan, progress=stop_after_two)
    assert list(tmp_path.iterdir()) == []
