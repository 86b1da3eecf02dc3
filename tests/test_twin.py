"""`tera_mind.open_twin`: windows painted when they are read are those of the volume, and behave as an array."""

from __future__ import annotations

import pickle
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_generate import save_checkpoint
from tiny_blocks import TinyBlocks, tiny_counts
from tiny_brain import make_brain

import tera_mind
import tera_mind.sampling.twin as twin_module
from tera_mind.errors import InputError, MissingFileError, PanelMismatchError
from tera_mind.formats.ome import mean_pool
from tera_mind.geometry import Box, SectionGroup
from tera_mind.sampling.demand import Demand
from tera_mind.sampling.domain import Domain
from tera_mind.sampling.job import Generation
from tera_mind.sampling.kept import ByteCache
from tera_mind.sampling.plain import SamplerSettings, box_noise, sample_steps, to_uint8
from tera_mind.sampling.wavefront import sweep

CPU = torch.device("cpu")
SETTINGS = {"steps": 3, "stepper": "dpm++", "block": 2, "micro_batch": 2, "device": "cpu", "precision": "32"}


REAL_NETWORK = Generation.network


@pytest.fixture(scope="module", autouse=True)
def small_and_cheap():
    """Chunks of 3 x 3 patches, and a network of a few weights in place of the checkpoint's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(twin_module, "CHUNK_PX", 48)
        patch.setattr(Generation, "network", lambda _job, _device: TinyBlocks(16, 8, 4, torch.float32))
        yield


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A checkpoint that paints two sections at once, and a brain of three; 6 x 9 patches."""
    folder = tmp_path_factory.mktemp("twin")
    brain = make_brain(folder / "brain.zarr", shape=(2, 3, 100, 150), rows=2500)
    return save_checkpoint(folder / "tiny.ckpt", gene_sections=4), brain.path


@pytest.fixture(scope="module")
def twin(files):
    return tera_mind.open_twin(*files, **SETTINGS)


@pytest.fixture(scope="module")
def volume(twin):
    """The whole volume by the wavefront sampler."""
    job, planes = twin.job, []
    for group in job.groups:
        image = np.zeros((4, *twin.shape[2:]), np.uint8)
        parts = (job.counts(group), job.noise(group), job.domain(group), job.settings)
        for box, piece in sweep(job.network(CPU), *parts):
            image[(..., *box.shift(-job.region.y0, -job.region.x0).slices())] = to_uint8(piece).numpy()
        planes.append(image.reshape(2, 2, *twin.shape[2:]))
    return np.concatenate(planes, axis=1)[:, :3]


def items(size):
    bound = st.none() | st.integers(-size - 2, size + 2)
    step = st.none() | st.integers(-9, 9).filter(bool)
    return st.integers(-size, size - 1) | st.builds(slice, bound, bound, step)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_any_basic_index_gives_what_the_volume_holds(twin, volume, data):
    key = tuple(data.draw(items(size)) for size in volume.shape[: data.draw(st.integers(0, 4))])
    if data.draw(st.booleans()):
        at = data.draw(st.integers(0, len(key)))
        key = (*key[:at], ..., *(key[at:] if len(key) == 4 else ()))
    window = twin[key]
    assert window.shape == volume[key].shape
    assert window.dtype == np.uint8
    np.testing.assert_array_equal(window, volume[key])


def test_the_whole_is_the_volume_and_the_plain_samplers_up_to_ties(twin, volume):
    np.testing.assert_array_equal(np.asarray(twin), volume)
    job, group = twin.job, twin.job.groups[0]
    network = job.network(CPU)
    *_, image = sample_steps(network, job.counts(group), job.noise(group), job.domain(group), job.settings)
    plain = to_uint8(image).numpy().reshape(2, 2, *twin.shape[2:])
    apart = np.abs(plain.astype(int) - volume[:, :2])
    assert apart.max() <= 1
    assert (apart > 0).mean() < 1e-3
    assert (volume.std(axis=(2, 3)) > 5).all()  # there is something to compare


@pytest.mark.parametrize(("stepper", "halo_px", "limit"), [("ddim", 4, 0), ("unipc", 12, 60_000), ("ddpm", 4, 10**9)])
def test_windows_in_any_order_are_bit_equal_to_the_wavefront_in_double_precision(stepper, halo_px, limit):
    """With every solver, a wide halo, holes in the domain, and a memory that holds nothing, little or all."""
    network = TinyBlocks(8, halo_px, 2)
    region = Box(16, 16 + 8 * 12, -8, -8 + 8 * 17)
    active = np.ones((12, 17), bool)
    active[3:6, 8:12] = active[9:, 13:] = False
    domain = Domain(region, 8, active)
    single = box_noise(3, SectionGroup((1,), (1,)), 2)
    rest = (network, tiny_counts, lambda step, box: single(step, box).double(), domain)
    chosen = SamplerSettings("epsilon", 3, stepper, 0.0, 3, 4, 2)
    whole = torch.zeros(2, region.height, region.width, dtype=torch.float64)
    for box, piece in sweep(*rest, chosen):
        whole[(..., *box.shift(-region.y0, -region.x0).slices())] = piece
    demand = Demand(*rest, chosen, ByteCache(limit))
    rng = np.random.default_rng(0)
    for _ in range(3):
        (y0, y1), (x0, x1) = (sorted(rng.choice(size + 1, 2, replace=False).tolist()) for size in (12, 17))
        (made,) = demand.make([Box(y0, min(y1, y0 + 4), x0, min(x1, x0 + 5))])
        wanted = whole[:, 8 * y0 : 8 * min(y1, y0 + 4), 8 * x0 : 8 * min(x1, x0 + 5)]
        assert torch.equal(made, wanted)


def test_a_window_costs_what_it_needs_and_its_neighbour_less(files):
    twin = tera_mind.open_twin(*files, **SETTINGS)
    assert twin.blocks_computed == 0  # opening costs nothing
    _ = twin[:, 0, :48, :48]
    first = twin.blocks_computed
    whole = tera_mind.open_twin(*files, **SETTINGS)
    _ = whole[:, 0]
    assert 0 < first < whole.blocks_computed
    _ = twin[1, 1, 3:20, 40]  # of the same chunks: both sections are painted at once
    assert twin.blocks_computed == first
    _ = twin[0, 0, :48, 48:96]
    beside = twin.blocks_computed - first
    other = tera_mind.open_twin(*files, **SETTINGS)
    _ = other[0, 0, :48, 48:96]
    assert 0 < beside < 0.8 * other.blocks_computed


def test_memory_is_bounded_and_what_was_dropped_is_made_again(files, volume):
    limit = 60_000
    twin = tera_mind.open_twin(*files, **SETTINGS, cache_bytes=limit)
    for row in range(2):
        for column in range(3):
            window = np.s_[:, 0, 48 * row : 48 * row + 48, 48 * column : 48 * column + 48]
            np.testing.assert_array_equal(twin[window], volume[window])
            assert 0 < twin.cached_bytes <= limit
    before = twin.blocks_computed
    np.testing.assert_array_equal(twin[:, 0, :48, :48], volume[:, 0, :48, :48])
    assert twin.blocks_computed > before
    none = tera_mind.open_twin(*files, **SETTINGS, cache_bytes=0)
    np.testing.assert_array_equal(none[:, 2, 50:60, 3], volume[:, 2, 50:60, 3])
    assert none.cached_bytes == 0


def test_cache_keeps_the_latest_by_bytes():
    kept = ByteCache(10)
    for key, size in (("a", 4), ("b", 4)):
        kept.put(key, key, size)
    assert kept.get("a") == "a"  # now b is the oldest
    kept.put("c", "c", 4)
    assert (kept.get("a"), kept.get("b"), kept.get("c"), kept.bytes) == ("a", None, "c", 8)
    kept.put("a", "A", 6)
    kept.put("huge", "huge", 11)
    assert (kept.get("a"), kept.get("huge"), kept.bytes, len(kept)) == ("A", None, 10, 2)


@pytest.mark.parametrize(
    ("key", "words"),
    [
        (np.s_[2], "axis stain has positions 0 to 1"),
        (np.s_[0, -4], "axis section has positions 0 to 2"),
        (np.s_[..., 144], "axis x has positions 0 to 143"),
        (np.s_[0, 0, 0, 0, 0], "at most 4 parts"),
        (np.s_[..., 0, ...], "at most one ellipsis"),
        (np.s_[:, [0, 1]], "takes numbers and slices"),
        (np.s_[True], "axis stain has positions"),
        (np.s_[1.0], "takes numbers and slices"),
    ],
)
def test_what_is_no_basic_index_is_refused(twin, key, words):
    with pytest.raises(IndexError, match=words):
        twin[key]


def test_it_looks_like_an_array(twin, volume):
    assert (twin.ndim, twin.dtype, twin.size, len(twin)) == (4, np.uint8, volume.size, 2)
    assert twin.shape == volume.shape == (2, 3, 96, 144)
    assert twin.chunks == (2, 2, 48, 48)
    np.testing.assert_array_equal(np.asarray(twin, dtype=np.float32), volume.astype(np.float32))
    with pytest.raises(ValueError, match="cannot be given without a copy"):
        np.array(twin, copy=False)
    window = twin[0, 0, :5, :5]
    window[:] = 0  # a copy: what is kept stays as it is
    np.testing.assert_array_equal(twin[0, 0, :5, :5], volume[0, 0, :5, :5])


def test_dask_computes_the_same_with_threads(twin, volume):
    import dask.array as da

    lazy = da.from_array(twin, chunks=twin.chunks, asarray=False)
    np.testing.assert_array_equal(
        lazy[:, :, 10:90:7, 30:].compute(scheduler="threads", num_workers=4), volume[:, :, 10:90:7, 30:]
    )
    made = twin.to_dask()
    assert made.chunksize == twin.chunks
    assert made.dtype == np.uint8
    assert float(made[1, 2].mean().compute()) == pytest.approx(volume[1, 2].mean())


def test_pickled_it_is_opened_anew_from_its_files(files, volume):
    twin = tera_mind.open_twin(*files, **SETTINGS, cache_bytes=10**6)
    _ = twin[0, 0, :5, :5]
    pickled = pickle.dumps(twin)
    assert len(pickled) < 4000  # no weights, nothing painted
    again = pickle.loads(pickled)
    assert again is not twin
    assert (again.blocks_computed, again.cache_bytes) == (0, 10**6)
    assert pickle.loads(pickled) is again  # tasks of one worker share what they made
    np.testing.assert_array_equal(again[:, 0, 40:60, 40:60], volume[:, 0, 40:60, 40:60])


def test_another_process_paints_the_same_with_the_checkpoints_own_network(files, tmp_path, monkeypatch):
    monkeypatch.setattr(Generation, "network", REAL_NETWORK)
    settings = SETTINGS | {"steps": 2}
    window = tera_mind.open_twin(*files, **settings)[1, 0, 40:44, 30:34]
    assert window.std() > 1
    (tmp_path / "twin.pickle").write_bytes(pickle.dumps(tera_mind.open_twin(*files, **settings)))
    code = "import pickle, sys; t = pickle.load(open(sys.argv[1], 'rb')); print(t[1, 0, 40:44, 30:34].ravel().tolist())"
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "twin.pickle")], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == str(window.ravel().tolist())


def test_a_changed_checkpoint_is_not_taken_for_the_former(files, tmp_path):
    copy = tmp_path / "copy.ckpt"
    copy.write_bytes(files[0].read_bytes())
    pickled = pickle.dumps(tera_mind.open_twin(copy, files[1], **SETTINGS))
    save_checkpoint(copy, gene_sections=4, base_channels=12)
    with pytest.raises(InputError, match="was changed since the twin was opened"):
        pickle.loads(pickled)


def test_threads_share_it(files, volume):
    twin = tera_mind.open_twin(*files, **SETTINGS)
    windows = [np.s_[:, z, y : y + 40, x : x + 50] for z in (0, 2) for y in (0, 30, 50) for x in (0, 40, 90)]
    with ThreadPoolExecutor(6) as pool:
        for window, made in zip(windows, pool.map(twin.__getitem__, windows), strict=True):
            np.testing.assert_array_equal(made, volume[window])
    alone = tera_mind.open_twin(*files, **SETTINGS)
    for window in windows:
        _ = alone[window]
    _ = alone[:, 1]
    assert twin.blocks_computed <= 2 * alone.blocks_computed  # no chunk was made once a thread


def test_levels_are_those_of_a_volumes_pyramid(twin, volume):
    levels = twin.multiscale(3)
    wanted = volume
    for level in levels:
        assert level.shape == wanted.shape
        np.testing.assert_array_equal(level[..., 5:-3, ::-1], wanted[..., 5:-3, ::-1])
        wanted = mean_pool(wanted)
    with pytest.raises(InputError, match="at least 1 level"):
        twin.multiscale(0)


def test_a_region_lies_where_it_was_asked_for(files, volume):
    whole = tera_mind.open_twin(*files, **SETTINGS, masked=False)
    part = tera_mind.open_twin(*files, **SETTINGS, masked=False, region="16:100,32:130")
    assert part.region == Box(16, 96, 32, 128)
    assert part.shape == (2, 3, 80, 96)
    # the region's edge is felt 3 steps = 40 px deep, not beyond
    apart = part[0, 0, 40:41, 40:56].astype(int) - whole[0, 0, 56:57, 72:88]
    assert np.abs(apart).max() <= 1  # blocks are anchored to the region, so rounding differs
    assert (part[0, 0, 0] != whole[0, 0, 16, 32:128]).any()
    um = tera_mind.open_twin(*files, **SETTINGS, region=":,20um:40um")
    assert um.region == Box(0, 96, 50, 98)


def test_what_cannot_be_opened_is_said(files, tmp_path):
    checkpoint, brain = files
    with pytest.raises(MissingFileError, match="no-such"):
        tera_mind.open_twin(tmp_path / "no-such.ckpt", brain)
    other = save_checkpoint(tmp_path / "other.ckpt", genes=("Xyz1", "Xyz2"))
    with pytest.raises(PanelMismatchError, match="lacks 2 of them"):
        tera_mind.open_twin(other, brain)
    with pytest.raises(InputError, match="cache_bytes must be 0 or more"):
        tera_mind.open_twin(checkpoint, brain, **SETTINGS, cache_bytes=-1)
    with pytest.raises(InputError, match="is no device"):
        tera_mind.open_twin(checkpoint, brain, device="neither")


def test_importing_the_package_stays_light():
    code = (
        "import sys, tera_mind; assert 'open_twin' in dir(tera_mind); "
        "heavy = {'torch', 'zarr', 'dask', 'tera_mind.sampling'} & set(sys.modules); assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="no attribute 'close_twin'"):
        _ = tera_mind.close_twin


def test_what_the_documentation_shows_runs(files, tmp_path, monkeypatch):
    checkpoint, brain = files
    (tmp_path / "main.ckpt").symlink_to(checkpoint)
    (tmp_path / "brain.zarr").symlink_to(brain)
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).resolve().parents[1] / "docs" / "generation.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(blocks) == 3
    names: dict[str, object] = {}
    for block in blocks:
        exec(block, names)  # our own page
    assert names["brightness"].shape == (3,)
    assert (names["brightness"] > 0).all()
    assert [level.shape[3] for level in names["levels"]] == [144, 72, 36]
