"""The transcript store: zarr reads what was written, layouts agree, damage is never read as data."""

from __future__ import annotations

import json
import shutil
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import tifffile
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_brain import make_brain, random_transcripts

from tera_mind.errors import FormatError, InputError
from tera_mind.formats import columns
from tera_mind.formats.brain import Brain, Transcripts, create_brain, gene_bins
from tera_mind.formats.sections import SectionTranscripts
from tera_mind.formats.transcripts import SectionWriter, merge_keys, pack_keys, write_section
from tera_mind.geometry import Box

few = settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
HEIGHT, WIDTH, TILES = 700, 900, 3 * 4
CANVAS = Box(0, HEIGHT, 0, WIDTH)


@pytest.fixture
def small_chunks(monkeypatch):
    """Many chunks and shards out of few rows."""
    monkeypatch.setattr(columns, "CHUNK_ROWS", 64)
    monkeypatch.setattr(columns, "SHARD_ROWS", 256)


def some_keys(seed: int, rows: int, genes: int = 300) -> tuple[np.ndarray, np.ndarray]:
    rows = random_transcripts(np.random.default_rng(seed), HEIGHT, WIDTH, rows, genes)
    keys = pack_keys(rows.y.astype(np.int64), rows.x.astype(np.int64), rows.gene, 4)
    return merge_keys(keys, rows.count.astype(np.int64))


def as_keys(rows: Transcripts) -> tuple[np.ndarray, np.ndarray]:
    return merge_keys(pack_keys(rows.y.astype(np.int64), rows.x.astype(np.int64), rows.gene, 4), rows.count.astype(int))


def read_section(folder: Path) -> SectionTranscripts:
    return SectionTranscripts(folder, CANVAS, 1, 2)


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_any_zarr_reader_gets_the_rows(tmp_path, small_chunks):
    keys, counts = some_keys(0, 1500)
    write_section(tmp_path / "s", keys, counts, TILES)
    array = zarr.open_array(tmp_path / "s" / "rows", mode="r")
    assert array.shape == (3, len(keys))
    assert len(list((tmp_path / "s/rows/c/0").iterdir())) > 4
    step, gene, count = np.asarray(array[:])
    position = np.concatenate([np.cumsum(part, dtype=np.uint16) for part in np.split(step, range(64, len(step), 64))])
    starts = np.asarray(zarr.open_array(tmp_path / "s" / "indptr", mode="r")[:])
    tile = np.repeat(np.arange(TILES), np.diff(starts))
    np.testing.assert_array_equal(tile * 2**32 + position.astype(int) * 2**16 + gene, keys.astype(np.int64))
    np.testing.assert_array_equal(count, counts)


@few
@given(seed=st.integers(0, 99), rows=st.integers(0, 1200), cuts=st.lists(st.integers(0, TILES), max_size=4))
def test_pieces_of_a_section_make_the_same_files(tmp_path_factory, small_chunks, seed, rows, cuts):
    folder = tmp_path_factory.mktemp("s")
    keys, counts = some_keys(seed, rows)
    whole = write_section(folder / "whole", keys, counts, TILES)
    writer = SectionWriter(folder / "pieces", TILES)
    edges = np.searchsorted(keys, np.array([0, *sorted(cuts), TILES], np.uint64) << np.uint64(32))
    for first, last in pairwise(edges):
        writer.append(keys[first:last], counts[first:last])
    assert writer.finish() == whole
    assert tree(folder / "pieces") == tree(folder / "whole")
    found = as_keys(read_section(folder / "pieces").window(CANVAS)) if rows else (keys, counts)
    for column, expected in zip(found, (keys, counts), strict=True):
        np.testing.assert_array_equal(column, expected)


@pytest.mark.parametrize("order", [[1, 0], [0, 0]])
def test_tiles_out_of_order_are_refused(tmp_path, order):
    keys = np.array([5, 2**32], np.uint64)
    writer = SectionWriter(tmp_path / "s", TILES)
    writer.append(keys[order[:1]], np.ones(1, np.uint16))
    with pytest.raises(ValueError, match="do not follow tile"):
        writer.append(keys[order[1:]], np.ones(1, np.uint16))


def to_version_1(path: Path) -> None:
    """Rewrite a store as version 1 was: an array a column, no checksums."""
    brain = Brain.open(path)
    tile_columns = -(-brain.shape[3] // 256)
    for section in range(len(brain.sections)):
        rows = brain.transcripts(section, brain.canvas)
        keys, counts = merge_keys(
            pack_keys(rows.y.astype(np.int64), rows.x.astype(np.int64), rows.gene, tile_columns), rows.count.astype(int)
        )
        group = zarr.open_group(path / "transcripts" / str(section))
        shutil.rmtree(path / "transcripts" / str(section) / "rows")
        low = np.array(keys, "<u8").view(np.uint8).reshape(-1, 8)
        for name, column in {"y": low[:, 3], "x": low[:, 2], "gene": low[:, :2].copy().view("<u2")[:, 0]}.items():
            group.create_array(name, data=np.ascontiguousarray(column))
        group.create_array("count", data=counts)
    shutil.rmtree(path / "checksums")
    record = json.loads((path / "zarr.json").read_text())
    record["attributes"]["tera_mind"]["version"] = 1
    (path / "zarr.json").write_text(json.dumps(record))


def test_version_1_is_still_read(tmp_path):
    new = make_brain(tmp_path / "new.zarr", shape=(1, 2, 600, 530), rows=4000, stains=("DAPI",))
    shutil.copytree(new.path, tmp_path / "old.zarr")
    to_version_1(tmp_path / "old.zarr")
    old = Brain.open(tmp_path / "old.zarr")
    rng = np.random.default_rng(0)
    for _ in range(20):
        y, x = rng.integers(-50, 500, 2).tolist()
        box = Box(y, y + int(rng.integers(1, 300)), x, x + int(rng.integers(1, 300)))
        for column in ("y", "x", "gene", "count"):
            found, expected = (getattr(brain.transcripts(1, box), column) for brain in (old, new))
            np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(old.image(old.canvas), new.image(new.canvas))
    assert old.fingerprint != new.fingerprint
    with pytest.raises(InputError, match="version 1, which has no checksums"):
        old.verify()
    shard = next(file for file in (old.path / "transcripts/0/y/c").rglob("*") if file.is_file())
    shard.write_bytes(shard.read_bytes()[:-9])
    with pytest.raises(FormatError, match="damaged"):
        Brain.open(old.path).transcripts(0, old.canvas)


@pytest.fixture(scope="module")
def section(tmp_path_factory):
    folder = tmp_path_factory.mktemp("section") / "s"
    keys, counts = some_keys(1, 5000)
    write_section(folder, keys, counts, TILES)
    return folder, keys, counts


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_shard_is_never_read_as_data(section, tmp_path_factory, data):
    folder, keys, counts = section
    copy = Path(shutil.copytree(folder, tmp_path_factory.mktemp("d") / "s"))
    shard = copy / "rows/c/0/0"
    content = bytearray(shard.read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    change = data.draw(st.sampled_from(["flip", "cut", "insert", "zero"]))
    if change == "flip":
        content[place] ^= 1 << data.draw(st.integers(0, 7))
    elif change == "cut":
        del content[place:]
    elif change == "insert":
        content[place:place] = b"x"
    else:
        content[place : place + 40] = bytes(len(content[place : place + 40]))
    shard.write_bytes(content)
    try:
        found = as_keys(read_section(copy).window(CANVAS))
    except FormatError:
        return
    for column, expected in zip(found, (keys, counts), strict=True):
        np.testing.assert_array_equal(column, expected)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"uint16"', '"uint8"'),
        ('"lz4hc"', '"lz4'),
        ('"blosc"', '"gzip"'),
        ('"endian": "little"', '"endian": "big"'),
        ("2048", "-5"),
        ("2048", "100000000000"),
        ('"shape"', '"form"'),
        ('"node_type"', '"no'),
    ],
)
def test_metadata_of_another_layout_is_refused(section, tmp_path, old, new):
    copy = Path(shutil.copytree(section[0], tmp_path / "s"))
    file = copy / "rows" / "zarr.json"
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new))
    with pytest.raises(FormatError, match="no readable array of columns"):
        read_section(copy)


def test_lost_shard_and_torn_pointers(section, tmp_path):
    copy = Path(shutil.copytree(section[0], tmp_path / "s"))
    (copy / "rows/c/0/0").unlink()
    with pytest.raises(FormatError, match="rows/c/0/0 cannot be read"):
        read_section(copy).window(CANVAS)
    with pytest.raises(FormatError, match="torn"):
        SectionTranscripts(copy, Box(0, 100, 0, 100), 1, 2)


def open_files() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def test_open_files_are_bounded_and_threads_agree(tmp_path, small_chunks):
    keys, counts = some_keys(3, 40_000)
    write_section(tmp_path / "s", keys, counts, TILES)
    reader = read_section(tmp_path / "s")
    assert len(reader._rows.shards) > 100
    before = open_files()
    corners = [(y, x) for y in range(0, HEIGHT, 90) for x in range(0, WIDTH, 90)]

    def read(corner):
        y, x = corner
        return reader.window(Box(y, y + 90, x, x + 90)).count.sum()

    with ThreadPoolExecutor(4) as pool:
        totals = list(pool.map(read, corners))
    assert sum(totals) == counts.sum()
    assert totals == [read(corner) for corner in corners]
    assert open_files() - before <= columns._OPEN_SHARDS


def test_memory_follows_transcripts_and_not_the_panel(tmp_path):
    genes = [f"g{index}" for index in range(20_000)]
    brain = make_brain(tmp_path / "b.zarr", shape=(1, 1, 256, 256), rows=2000, genes=genes, stains=("DAPI",))
    wanted = np.array([7, -1, 19_999, 3])
    expected = gene_bins(brain, [0], brain.canvas, 16)[np.maximum(wanted, 0)]
    expected[1] = 0
    tracemalloc.start()
    found = gene_bins(brain, [0], brain.canvas, 16, wanted)
    brain.transcripts(0, brain.canvas)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    np.testing.assert_array_equal(found, expected)
    assert peak < 2e6  # dense counts of all genes would take 20 MB
    with pytest.raises(InputError, match="asked for twice"):
        gene_bins(brain, [0], brain.canvas, 16, np.array([1, 1]))


def test_size_at_a_real_density(tmp_path):
    """60 transcripts per 100 um2 at 0.108 um, 500 genes of unequal abundance."""
    rng = np.random.default_rng(0)
    side, count = 4096, int(4096**2 * 0.108**2 * 0.6)
    abundance = rng.lognormal(0, 1.2, 500)
    y, x = rng.integers(0, side, (2, count), np.int64)
    keys, counts = merge_keys(pack_keys(y, x, rng.choice(500, count, p=abundance / abundance.sum()), 16))
    write_section(tmp_path / "s", keys, counts, 256)
    assert sum(map(len, tree(tmp_path / "s").values())) <= 2.5 * count


def test_size_of_the_real_tissue(real_data, tmp_path):
    table = pq.read_table(real_data / "xenium_breast_crop" / "transcripts.parquet")
    y, x = (np.floor(table[f"{a}_location"].to_numpy() / 0.2125).astype(np.int32) for a in "yx")
    _, gene = np.unique(table["feature_name"].to_numpy(zero_copy_only=False).astype(str), return_inverse=True)
    raw = np.squeeze(tifffile.imread(real_data / "xenium_breast_crop" / "morphology_mip.ome.tif")).astype(np.float32)
    kept = (y >= 0) & (x >= 0) & (y < raw.shape[0]) & (x < raw.shape[1])
    columns_ = [column[kept].astype(np.int32) for column in (y, x, gene, np.ones_like(y))]
    low, high = np.percentile(raw, [0.5, 99.9])
    image = np.clip((raw - low) / (high - low) * 255, 0, 255).astype(np.uint8)
    brain = create_brain(
        tmp_path / "b.zarr", image=image[None, None], transcripts=[Transcripts(*columns_)],
        genes=[f"g{index}" for index in range(gene.max() + 1)], stains=["DAPI"], pixel_um=0.2125,
    )  # fmt: skip
    assert sum(map(len, tree(brain.path / "transcripts").values())) <= 2.5 * kept.sum()
    assert sum(map(len, tree(brain.path / "images" / "0").values())) <= 0.9 * image.size
    chunk = zarr.open_array(brain.path / "images" / "0", mode="r").chunks[2]
    assert max((start + 127) // chunk - start // chunk + 1 for start in range(1024)) ** 2 <= 4
