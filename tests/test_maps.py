"""Maps: values come back within half a step, holes stay holes at every level, misfits are refused."""

from __future__ import annotations

import dataclasses
import pickle
import shutil

import numpy as np
import pytest
import zarr
from ome_zarr_models.v05.image import Image

from tera_mind.errors import FormatError, InputError, MissingFileError
from tera_mind.formats.maps import Map, MapAttributes, known_mean, value_range, writing_map
from tera_mind.formats.ome import open_level
from tera_mind.geometry import Box

ATTRIBUTES = MapAttributes(
    name="Uncertainty", unit="grey levels", channels=("DAPI", "PolyT"), low=-2.0, high=6.0,
    box=Box(64, 64 + 290 * 32 - 5, 0, 300 * 32), sections=(4, 1), step_px=32, pixel_um=0.5,
)  # fmt: skip


@pytest.fixture
def written(tmp_path):
    values = np.random.default_rng(0).uniform(-2, 6, ATTRIBUTES.shape).astype(np.float32)
    values[:, :, :40, :50] = np.nan
    return Map.write(tmp_path / "m.zarr", values, ATTRIBUTES), values


def test_round_trip(written):
    opened, values = written
    assert opened.shape == (2, 2, 290, 300)
    assert opened.attributes == ATTRIBUTES
    np.testing.assert_array_equal(np.isnan(opened.values()), np.isnan(values))
    assert np.nanmax(np.abs(opened.values() - values)) <= 8 / 254 / 2 + 1e-5
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(opened)).values(), opened.values())


def test_values_beyond_the_bounds_are_clipped_and_infinite_ones_unknown(tmp_path):
    attributes = dataclasses.replace(ATTRIBUTES, channels=("DAPI",), sections=(0,), box=Box(0, 32, 0, 128))
    values = np.array([[[[-9.0, 99.0, np.inf, 2.0]]]], np.float32)
    np.testing.assert_allclose(
        Map.write(tmp_path / "m", values, attributes).values(), [[[[-2, 6, np.nan, 2]]]], atol=1e-5
    )


def test_is_valid_ome_zarr(written):
    model = Image.from_zarr(zarr.open_group(written[0].path, mode="r"))
    scale = model.ome_attributes.multiscales[0].datasets[0].coordinateTransformations[0].scale
    assert scale[2:] == [16.0, 16.0]


def test_coarse_levels_average_what_is_known(written):
    fine, coarse = (np.asarray(open_level(written[0].path, level)[0, 0]) for level in (0, 1))
    assert coarse.shape == (145, 150)
    for y, x in np.ndindex(coarse.shape):  # brute force
        known = [int(v) for v in fine[2 * y : 2 * y + 2, 2 * x : 2 * x + 2].ravel() if v]
        expected = 0 if not known else int(np.floor(np.mean(known) + 0.5))
        assert coarse[y, x] == expected


def test_an_odd_edge_is_averaged_alone():
    np.testing.assert_array_equal(
        known_mean(np.array([[10, 20, 40], [0, 0, 0], [8, 0, 0]], np.uint8)), [[15, 40], [8, 0]]
    )


def test_value_range():
    assert value_range(np.array([[[[np.nan, 1.0, 3.0]]]], np.float32)) == (1.0, 3.0)
    low, high = value_range(np.full((1, 1, 2, 2), 5.0, np.float32))
    assert low == 5.0 < high
    with pytest.raises(InputError, match="at least one finite"):
        value_range(np.full((1, 1, 2, 2), np.nan, np.float32))


def test_misfits_are_refused(written, tmp_path):
    opened, values = written
    with pytest.raises(InputError, match="was promised"):
        Map.write(tmp_path / "other", values[:1], ATTRIBUTES)
    with pytest.raises(InputError, match="already there"):
        Map.write(opened.path, values, ATTRIBUTES, overwrite=False)
    assert not (tmp_path / "other").exists()
    for change, words in (
        ({"low": 6.0}, "low < high"), ({"high": float("inf")}, "finite bounds"), ({"step_px": 0}, "at least 1 px"),
        ({"sections": (1, 1)}, "every section"), ({"channels": ("A", "A")}, "every channel"),
        ({"channels": ()}, "needs channels"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=words):
            dataclasses.replace(ATTRIBUTES, **change)


def test_strangers_and_damage_are_refused(written, tmp_path):
    path = written[0].path
    with pytest.raises(MissingFileError):
        Map.open(tmp_path / "absent")
    group = zarr.open_group(path, mode="r+")
    record = dict(group.attrs)["tera_mind"]
    for change, words in (
        ({"format": "volume"}, "it is a volume store"), ({"version": 9}, "unknown version 9"),
        ({"box": [0, 5, 0, 5]}, "promises a map of"), ({"low": "x"}, "malformed"),
    ):  # fmt: skip
        group.attrs["tera_mind"] = record | change
        with pytest.raises(FormatError, match=words):
            Map.open(path)


def exact(attributes=ATTRIBUTES):
    return dataclasses.replace(attributes, ranges=((-2.0, 6.0), (0.0, 1.0)), exact=True, details={"by": [1, "two"]})


def test_an_exact_map_has_its_numbers_and_channels_their_own_colours(tmp_path):
    attributes = exact()
    values = np.random.default_rng(0).uniform(0, 1, attributes.shape).astype(np.float32)
    values[1, 0, 3] = np.nan
    opened = Map.write(tmp_path / "m", values, attributes)
    assert opened.attributes == attributes
    np.testing.assert_array_equal(opened.values(), values)
    np.testing.assert_array_equal(opened.plane("PolyT", 1, Box(2, 9, 0, 4)), values[1, 1, 2:9, :4])
    colours = np.asarray(open_level(opened.path)[1])  # a range of its own: 254 steps over 0 to 1
    known = np.isfinite(values[1])
    assert np.abs((colours[known] - 1.0) / 254 - values[1][known]).max() <= 0.5 / 254 + 1e-6
    for channel, section in (("None", 4), ("DAPI", 9)):
        with pytest.raises(InputError, match="has channels DAPI, PolyT"):
            opened.plane(channel, section)
    with pytest.raises(InputError, match="one range a channel"):
        dataclasses.replace(attributes, ranges=((0.0, 1.0),))


def test_a_map_written_by_windows_is_the_same_and_none_at_all_when_that_fails(written, tmp_path):
    opened, values = written
    with writing_map(tmp_path / "m", ATTRIBUTES) as writer:
        for box in writer.windows:
            for at in np.ndindex(2, 2):
                writer.write(*at, box, values[(*at, *box.slices())])
    np.testing.assert_array_equal(Map.open(tmp_path / "m").values(), opened.values())
    with pytest.raises(RuntimeError, match="enough"), writing_map(tmp_path / "n", ATTRIBUTES):
        raise RuntimeError("enough")
    assert [path.name for path in tmp_path.iterdir() if path.name not in {"m", "m.zarr"}] == []


def test_maps_of_version_1_are_read(written):
    opened, _ = written
    before = opened.values()
    group = zarr.open_group(opened.path, mode="r+")
    record = {k: v for k, v in dict(group.attrs)["tera_mind"].items() if k not in {"ranges", "exact", "details"}}
    group.attrs["tera_mind"] = record | {"version": 1}
    np.testing.assert_array_equal(Map.open(opened.path).values(), before)


def test_lost_numbers_are_an_error(tmp_path):
    attributes = exact()
    opened = Map.write(tmp_path / "m", np.zeros(attributes.shape, np.float32), attributes)
    shutil.rmtree(opened.path / "values")
    with pytest.raises(FormatError, match="expected the values of a map"):
        Map.open(opened.path)
