"""Generated volumes: what was written is read in the brain's pixels; misfits, damage and strangers are refused."""

from __future__ import annotations

import dataclasses
import json
import pickle

import numpy as np
import pytest
import zarr
from ome_zarr_models.v05.image import Image

from tera_mind.errors import FormatError, InputError, MissingFileError
from tera_mind.formats.ome import open_level
from tera_mind.formats.volume import Volume, VolumeAttributes, create_volume, is_unfinished, mark_complete
from tera_mind.geometry import Box

ATTRIBUTES = VolumeAttributes(
    stains=("DAPI", "PolyT"), pixel_um=0.425, brain="b.zarr", brain_fingerprint="0123", box=Box(100, 400, 64, 664),
    sections=(3, 4), patch_px=32, checkpoint="ab" * 32, seed=7, steps=15, settings={"sampler": "ddim"},
)  # fmt: skip


@pytest.fixture
def written(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, ATTRIBUTES.shape, dtype=np.uint8)
    return Volume.write(tmp_path / "v.zarr", image, ATTRIBUTES), image


def test_round_trip(written):
    volume, image = written
    assert volume.attributes == ATTRIBUTES
    np.testing.assert_array_equal(volume.image(), image)
    window = volume.image(Box(110, 120, 70, 90), sections=[4])
    np.testing.assert_array_equal(window, image[:, 1:, 10:20, 6:26])
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(volume)).image(), image)
    record = json.loads((volume.path / "zarr.json").read_text())["attributes"]["tera_mind"]
    assert record["synthetic"] is True
    assert record["brain"] == {"name": "b.zarr", "fingerprint": "0123"}


def test_is_valid_ome_zarr(written):
    model = Image.from_zarr(zarr.open_group(written[0].path, mode="r"))
    assert len(model.ome_attributes.multiscales[0].datasets) == 3


@pytest.mark.parametrize(
    ("box", "sections"), [(Box(99, 120, 64, 80), [3]), (Box(110, 120, 64, 80), [5]), (Box(390, 401, 64, 80), [4])]
)
def test_reads_only_what_it_holds(written, box, sections):
    with pytest.raises(InputError, match="asked for sections"):
        written[0].image(box, sections)


def test_misfits_are_refused(tmp_path, written):
    with pytest.raises(InputError, match="was promised"):
        Volume.write(tmp_path / "w.zarr", np.zeros((2, 2, 4, 4), np.uint8), ATTRIBUTES)
    assert not (tmp_path / "w.zarr").exists()
    with pytest.raises(InputError, match="already there"):
        Volume.write(written[0].path, written[1], ATTRIBUTES, overwrite=False)
    with pytest.raises(InputError, match="as measured, shuffled, zeroed"):
        dataclasses.replace(ATTRIBUTES, genes="doubled")


def test_opening_refuses_strangers(tmp_path, written):
    with pytest.raises(MissingFileError, match="tera-mind generate"):
        Volume.open(tmp_path / "absent.zarr")
    path = written[0].path / "zarr.json"
    whole = json.loads(path.read_text())
    for changes, message in (
        ({"version": 2}, "unknown version 2"),
        ({"format": "brain"}, "it is a brain store"),
        ({"box": [0, 8, 0, 8]}, "promises an image"),
        ({"box": [0, 8]}, "malformed"),
    ):
        record = json.loads(json.dumps(whole))
        record["attributes"]["tera_mind"] |= changes
        path.write_text(json.dumps(record))
        with pytest.raises(FormatError, match=message):
            Volume.open(written[0].path)


def test_opens_with_ome_zarr(written):
    """The reference library finds the axes, scales and all pixels of every level."""
    from ome_zarr.io import parse_url
    from ome_zarr.reader import Reader

    volume, image = written
    (node,) = list(Reader(parse_url(volume.path))())
    assert [axis["name"] for axis in node.metadata["axes"]] == ["c", "z", "y", "x"]
    assert node.metadata["coordinateTransformations"][0][0]["scale"] == [1.0, 10.0, 0.425, 0.425]
    assert [level.shape for level in node.data] == [(2, 2, 300, 600), (2, 2, 150, 300), (2, 2, 75, 150)]
    np.testing.assert_array_equal(node.data[0].compute(), image)


def test_one_that_is_not_finished_is_not_opened(tmp_path):
    create_volume(tmp_path / "v.zarr", ATTRIBUTES, "v")
    assert is_unfinished(tmp_path / "v.zarr")
    with pytest.raises(FormatError, match="is not finished: give the command that began it again to go on"):
        Volume.open(tmp_path / "v.zarr")
    mark_complete(tmp_path / "v.zarr")
    assert not is_unfinished(tmp_path / "v.zarr")
    assert not Volume.open(tmp_path / "v.zarr").image().any()
    assert not is_unfinished(tmp_path / "absent.zarr")


def test_float16_reads_as_rounded_pixels_and_is_refused_by_who_needs_bytes(tmp_path):
    attributes = dataclasses.replace(ATTRIBUTES, dtype="float16")
    values = np.random.default_rng(0).uniform(-1.1, 1.1, attributes.shape).astype(np.float16)
    create_volume(tmp_path / "v.zarr", attributes, "v")[...] = values
    mark_complete(tmp_path / "v.zarr")
    volume = Volume.open(tmp_path / "v.zarr")
    np.testing.assert_array_equal(volume.values(), values)
    wanted = [min(255, max(0, round((float(v) + 1) * 127.5))) for v in values[0, 0, 0]]  # plain Python
    assert volume.image()[0, 0, 0].tolist() == wanted
    model = Image.from_zarr(zarr.open_group(volume.path, mode="r"))
    assert model.ome_attributes.omero["channels"][0]["window"]["min"] == -1
    with pytest.raises(FormatError, match="generate it with --dtype uint8 for this use"):
        open_level(volume.path)


def test_regions_in_microns():
    canvas = Box(0, 1000, 0, 2000)
    assert Box.parse("0um:100um,50%:1mm", canvas, 0.5) == Box(0, 200, 1000, 2000)
    with pytest.raises(InputError, match="neither a pixel nor a percentage"):
        Box.parse("0um:100um,:", canvas)
    with pytest.raises(InputError, match="leaves the canvas"):
        Box.parse("0um:501um,:", canvas, 0.5)
