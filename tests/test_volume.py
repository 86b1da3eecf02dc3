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
from tera_mind.formats.volume import Volume, VolumeAttributes
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
