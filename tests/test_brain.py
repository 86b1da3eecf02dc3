"""The brain store: windows equal brute force, what was written is read, damage and unknown versions are refused."""

from __future__ import annotations

import json
import multiprocessing
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from ome_zarr_models.v05.image import Image

from tera_mind.errors import FormatError, InputError, MissingFileError
from tera_mind.formats.brain import Brain, Transcripts, bin_transcripts, create_brain, gene_bins
from tera_mind.formats.ome import mean_pool
from tera_mind.formats.transcripts import merge_keys
from tera_mind.geometry import Box

HEIGHT, WIDTH, GENES = 600, 530, 7
few = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
boxes = st.builds(
    lambda y, x, h, w: Box(y, y + h, x, x + w),
    st.integers(-300, 700), st.integers(-300, 700), st.integers(0, 600), st.integers(0, 600),
)  # fmt: skip


def random_transcripts(seed: int, rows: int = 4000) -> Transcripts:
    rng = np.random.default_rng(seed)
    columns = (rng.integers(0, limit, rows, dtype=np.int32) for limit in (HEIGHT, WIDTH, GENES))
    return Transcripts(*columns, count=rng.integers(1, 4, rows, dtype=np.int32))


def make(path: Path) -> tuple[Brain, np.ndarray, list[Transcripts]]:
    image = np.random.default_rng(0).integers(0, 256, (2, 3, HEIGHT, WIDTH), dtype=np.uint8)
    rows = [random_transcripts(seed) for seed in range(3)]
    genes = [f"g{index}" for index in range(GENES)]
    brain = create_brain(
        path, image=image, transcripts=rows, genes=genes, stains=["DAPI", "PolyT"], pixel_um=0.5,
        section_z_um=[0.0, 10.0, 110.5],
    )  # fmt: skip
    return brain, image, rows


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return make(tmp_path_factory.mktemp("brain") / "b.zarr")


def table(rows: Transcripts) -> dict[tuple[int, int, int], int]:
    counts: dict[tuple[int, int, int], int] = {}
    for y, x, gene, count in zip(rows.y, rows.x, rows.gene, rows.count, strict=True):
        counts[int(y), int(x), int(gene)] = counts.get((int(y), int(x), int(gene)), 0) + int(count)
    return counts


def test_round_trip(store):
    brain, image, rows = store
    assert brain.shape == (2, 3, HEIGHT, WIDTH)
    assert brain.canvas == Box(0, HEIGHT, 0, WIDTH)
    assert brain.stains == ("DAPI", "PolyT")
    assert [section.z_um for section in brain.sections] == [0, 10, 110.5]
    assert [section.transcripts for section in brain.sections] == [row.count.sum() for row in rows]
    assert brain.sections[0].affine_um_to_px == ((2.0, 0.0, 0.0), (0.0, 2.0, 0.0))
    np.testing.assert_array_equal(brain.image(brain.canvas), image)
    assert all(table(brain.transcripts(index, brain.canvas)) == table(row) for index, row in enumerate(rows))
    assert brain.tissue(0).all()
    assert brain.tissue(0).shape == (10, 9)
    np.testing.assert_array_equal(brain.overview(1), mean_pool(image))


@few
@given(box=boxes, section=st.integers(-1, 3))
def test_window_equals_brute_force(store, box, section):
    brain, _, rows = store
    window = brain.transcripts(section, box)
    if not 0 <= section < 3:
        assert len(window) == 0
        return
    expected = {
        (y - box.y0, x - box.x0, gene): count
        for (y, x, gene), count in table(rows[section]).items()
        if box.y0 <= y < box.y1 and box.x0 <= x < box.x1
    }
    assert len(window) == len(expected)  # one row a (pixel, gene)
    assert table(window) == expected


@few
@example(box=Box(-5, 20, 500, 540), sections=[-1, 0, 1, 2, 3, 4, 2, 1], fill=9)  # a group beyond both ends
@given(box=boxes, sections=st.lists(st.integers(-2, 4), min_size=1, max_size=5), fill=st.integers(0, 255))
def test_image_window_equals_padded_array(store, box, sections, fill):
    brain, image, _ = store
    padded = np.pad(image, [(0, 0), (2, 2), (1400, 1400), (1400, 1400)], constant_values=fill)
    expected = padded[:, [section + 2 for section in sections]][(..., *box.shift(1400, 1400).slices())]
    np.testing.assert_array_equal(brain.image(box, sections, fill), expected)


@few
@given(y=st.integers(-64, 600), x=st.integers(-64, 530), bins=st.integers(1, 9), bin_px=st.sampled_from([1, 8, 16]))
def test_binned_counts_add_up(store, y, x, bins, bin_px):
    brain, _, _ = store
    box = Box(y, y + bins * bin_px, x, x + 2 * bins * bin_px)
    counts = gene_bins(brain, [-1, 1, 2], box, bin_px)
    assert counts.shape == (GENES, 3, bins, 2 * bins)
    for layer, section in enumerate([-1, 1, 2]):
        window = brain.transcripts(section, box)
        assert counts[:, layer].sum() == window.count.sum()
        by_gene = np.bincount(window.gene, weights=window.count, minlength=GENES)
        np.testing.assert_array_equal(counts[:, layer].sum(axis=(1, 2)), by_gene)
    index = np.array([4, 0])
    np.testing.assert_array_equal(gene_bins(brain, [-1, 1, 2], box, bin_px, index), counts[index])


def test_bin_position_and_whole_bins():
    one = np.array([1], np.int32)
    rows = Transcripts(y=one * 17, x=one * 5, gene=one * 2, count=one * 3)
    counts = bin_transcripts(rows, (32, 16), 16, 4)
    assert counts[2, 1, 0] == 3
    assert counts.sum() == 3
    with pytest.raises(InputError, match="no whole number of bins of 16 px"):
        bin_transcripts(rows, (40, 16), 16, 4)


def test_images_are_valid_ome_zarr(store):
    brain, _, _ = store
    model = Image.from_zarr(zarr.open_group(brain.path / "images", mode="r"))
    multiscale = model.ome_attributes.multiscales[0]
    assert [axis.name for axis in multiscale.axes] == ["c", "z", "y", "x"]
    assert [dataset.path for dataset in multiscale.datasets] == ["0", "1", "2"]
    array = zarr.open_array(brain.path / "images" / "0")
    assert array.chunks == (1, 1, 256, 256)
    assert array.shards == (1, 1, 768, 768)


def test_pickle_and_fork(store):
    brain, image, _ = store
    brain.transcripts(1, brain.canvas)  # zarr's threads run before the fork
    box = Box(5, 25, 7, 27)
    with multiprocessing.get_context("fork").Pool(1) as pool:
        forked = pool.apply_async(brain.image, (box,)).get(timeout=60)
        rows = pool.apply_async(brain.transcripts, (1, box)).get(timeout=60)
    assert table(rows) == table(brain.transcripts(1, box))
    np.testing.assert_array_equal(forked, image[..., 5:25, 7:27])
    again = pickle.loads(pickle.dumps(brain))
    assert again.fingerprint == brain.fingerprint
    assert len(again.transcripts(2, brain.canvas)) == len(brain.transcripts(2, brain.canvas))


def test_fingerprint_follows_contents(store, tmp_path):
    brain, image, rows = store
    same, _, _ = make(tmp_path / "same.zarr")
    assert same.fingerprint == brain.fingerprint
    image = image.copy()
    image[0, 1, 3, 3] ^= 1
    changed = create_brain(
        tmp_path / "changed.zarr", image=image, transcripts=rows, genes=brain.genes, stains=brain.stains,
        pixel_um=0.5, section_z_um=[0.0, 10.0, 110.5],
    )  # fmt: skip
    assert changed.fingerprint != brain.fingerprint


def test_tissue_leaves_the_empty_part_out(tmp_path):
    rng = np.random.default_rng(0)
    image = np.zeros((1, 1, 1024, 1024), np.uint8)
    image[..., :512] = 60
    y, x = rng.integers(0, 1024, 30_000), rng.integers(0, 512, 30_000)
    hole = (abs(y - 512) < 100) & (abs(x - 256) < 100)
    columns = [column[~hole].astype(np.int32) for column in (y, x, y * 0, y * 0 + 1)]
    brain = create_brain(
        tmp_path / "b.zarr",
        image=image,
        transcripts=[Transcripts(*columns)],
        genes=["a"],
        stains=["DAPI"],
        pixel_um=1.0,
    )
    mask = brain.tissue(0)
    assert mask[:, :8].all()  # the hole is filled
    assert not mask[:, 11:].any()


def test_overfull_pixel_is_refused():
    with pytest.raises(InputError, match="one pixel holds 70000 transcripts"):
        merge_keys(np.zeros(2, np.uint64), np.array([30_000, 40_000]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": np.zeros((1, 2, 8, 8), np.uint8)}, "image should be"),
        ({"genes": ["a", "a"]}, "every gene needs its own name"),
        ({"genes": ["a"]}, "have gene in"),
        ({"names": ["one", "two"]}, "as many names"),
    ],
)
def test_parts_that_do_not_fit(tmp_path, change, message):
    rows = Transcripts(*(np.array([1, 2], np.int32) for _ in range(4)))
    parts = {"image": np.zeros((1, 1, 8, 8), np.uint8), "genes": ["a", "b", "c"]} | change
    with pytest.raises(InputError, match=message):
        create_brain(tmp_path / "b.zarr", transcripts=[rows], stains=["DAPI"], pixel_um=1.0, **parts)
    assert not list(tmp_path.iterdir())  # nothing half written


def copy(store, tmp_path) -> Path:
    return Path(shutil.copytree(store[0].path, tmp_path / "copy.zarr"))


def edit(path: Path, **changes: object) -> None:
    record = json.loads((path / "zarr.json").read_text())
    record["attributes"]["tera_mind"] |= changes
    (path / "zarr.json").write_text(json.dumps(record))


def test_opening_refuses_what_is_no_brain(store, tmp_path):
    with pytest.raises(MissingFileError, match="nothing is there"):
        Brain.open(tmp_path / "absent.zarr")
    (tmp_path / "folder").mkdir()
    with pytest.raises(FormatError, match="no readable zarr group"):
        Brain.open(tmp_path / "folder")
    zarr.create_group(tmp_path / "other.zarr")
    with pytest.raises(FormatError, match="not written by tera-mind"):
        Brain.open(tmp_path / "other.zarr")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 99}, "unknown version 99"),
        ({"format": "volume"}, "it is a volume store"),
        ({"stains": ["DAPI"]}, "its images hold"),
        ({"sections": [{"name": "x"}]}, "malformed"),
        ({"genes": ["a", "a"]}, "names a gene twice"),
    ],
)
def test_opening_refuses_wrong_attributes(store, tmp_path, changes, message):
    path = copy(store, tmp_path)
    edit(path, **changes)
    with pytest.raises(FormatError, match=message):
        Brain.open(path)


def test_missing_attribute_array_and_damage(store, tmp_path):
    path = copy(store, tmp_path)
    shutil.rmtree(path / "transcripts" / "1" / "rows")
    with pytest.raises(FormatError, match=r"section 1 .* lacks transcripts/rows"):
        Brain.open(path)
    shutil.rmtree(path / "transcripts")
    shutil.copytree(store[0].path / "transcripts", path / "transcripts")
    for folder in ("images/0/c/0/1", "transcripts/0/rows/c"):
        shard = next(file for file in (path / folder).rglob("*") if file.is_file())
        shard.write_bytes(shard.read_bytes()[: shard.stat().st_size // 2])
    brain = Brain.open(path)
    with pytest.raises(FormatError, match=r"image data .* damaged"):
        brain.image(brain.canvas)
    with pytest.raises(FormatError, match=r"transcripts/0/rows/c/0/0 is damaged"):
        brain.transcripts(0, brain.canvas)
    shutil.rmtree(path / "images")
    with pytest.raises(FormatError, match="expected an image level"):
        Brain.open(path)
