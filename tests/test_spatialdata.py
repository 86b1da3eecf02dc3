"""SpatialData stores come in: transformations, channels by name, damage, and what was exported comes back."""

from __future__ import annotations

import shutil

import numpy as np
import pandas as pd
import pytest
from instruments_more import write_table
from tiny_brain import make_brain

from tera_mind.cli.main import main
from tera_mind.errors import TeraMindError
from tera_mind.formats.brain import Brain
from tera_mind.geometry import Box
from tera_mind.ingest.spatialdata import SpatialDataReader

spatialdata = pytest.importorskip("spatialdata")

#: image pixels and micron points reach the common system by different roads
IMAGE_TO_GLOBAL = np.array([[2.0, 0.0, 30.0], [0.0, 2.0, -10.0], [0.0, 0.0, 1.0]])
POINTS_TO_GLOBAL = np.array([[0.0, 8.0, 40.0], [8.0, 0.0, 0.0], [0.0, 0.0, 1.0]])


def write_store(path, rows=400, dtype=np.uint16):
    from spatialdata.models import Image2DModel, PointsModel
    from spatialdata.transformations import Affine

    random = np.random.default_rng(3)
    image = random.integers(0, 4000, (2, 90, 130)).astype(dtype)

    def affine(matrix):
        return {"global": Affine(matrix, input_axes=("x", "y"), output_axes=("x", "y"))}

    frame = pd.DataFrame(
        {
            "x": random.uniform(0, 15, rows),
            "y": random.uniform(0, 20, rows),
            "target": pd.Categorical(random.choice(["Mog", "Vip", "NegControlProbe_1"], rows)),
            "qv": random.choice([10.0, 30.0], rows),
        }
    )
    store = spatialdata.SpatialData(
        images={
            "stack": Image2DModel.parse(
                image, dims=("c", "y", "x"), c_coords=["PolyT", "DAPI"], transformations=affine(IMAGE_TO_GLOBAL)
            )
        },
        points={
            "spots": PointsModel.parse(
                frame, coordinates={"x": "x", "y": "y"}, feature_key="target", transformations=affine(POINTS_TO_GLOBAL)
            )
        },
    )
    store.write(path)
    return image, frame


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    path = tmp_path_factory.mktemp("sd") / "sample.zarr"
    return (path, *write_store(path))


def test_points_and_pixels_meet_through_the_common_system(made):
    path, image, frame = made
    (source,) = SpatialDataReader(stains=("dapi", "PolyT")).sections(path, 5.0)
    assert [stain.name for stain in source.stains] == ["DAPI", "PolyT"]
    box = Box(10, 60, 20, 100)
    assert (source.stains[0].plane.read(box) == image[1, 10:60, 20:100]).all()
    batches = list(source.batches())
    x = np.concatenate([batch.x_um for batch in batches])
    good = frame[(frame.qv >= 20) & (frame.target != "NegControlProbe_1")]
    assert np.sort(x) == pytest.approx(np.sort(good.x))
    kept = sum(len(batch.gene) for batch in batches)
    assert kept + sum(sum(batch.dropped.values()) for batch in batches) == len(frame)
    # by hand: global = (8 y + 40, 8 x); pixel = ((global_x - 30) / 2, (global_y + 10) / 2)
    pixel = source.stains[0].um_to_px @ np.array([3.0, 7.0, 1.0])
    assert pixel[:2] == pytest.approx([(8 * 7 + 40 - 30) / 2, (8 * 3 + 10) / 2])


def test_an_exported_brain_comes_back(tmp_path, capsys):
    brain = make_brain(tmp_path / "brain.zarr", shape=(2, 2, 120, 200), rows=500)
    assert main(["export", str(brain.path), "--to", "spatialdata", "--out", str(tmp_path / "sd.zarr")]) == 0
    sources = SpatialDataReader().sections(tmp_path / "sd.zarr", 0.0)
    assert [source.name for source in sources] == ["section_000", "section_001"]
    assert [source.z_um for source in sources] == [section.z_um for section in brain.sections]
    for index, source in enumerate(sources):
        for stain, image in enumerate(source.stains):
            assert (image.plane.read(brain.canvas) == brain.image(brain.canvas, [index])[stain, 0]).all()
            assert image.um_to_px == pytest.approx(np.diag([2.5, 2.5, 1.0]))
        total = sum(len(batch.gene) for batch in source.batches())
        assert total == brain.sections[index].transcripts
    capsys.readouterr()


def test_the_round_trip_keeps_every_pixel_and_the_order(tmp_path, capsys):
    """Sections whose names sort otherwise than they lie; nothing is stretched again, and no range is given."""
    folders = [tmp_path / name for name in ("region_2", "region_10", "Region_2")]
    for number, folder in enumerate(folders):
        write_table(folder, rows=100 + 20 * number)
    words = ["--x", "x_um", "--y", "y_um", "--gene", "symbol", "--z-um", "0,70,200"]
    one, exported, two = (str(tmp_path / name) for name in ("one.zarr", "sd.zarr", "two.zarr"))
    assert main(["ingest", "table", *map(str, folders), "--out", one, *words]) == 0
    assert main(["export", one, "--to", "spatialdata", "--out", exported]) == 0  # names that differ by case
    assert main(["ingest", "spatialdata", exported, "--out", two, "--stains", "DAPI,PolyT"]) == 0
    before, after = Brain.open(one), Brain.open(two)
    assert [section.name for section in after.sections] == ["000_region_2", "001_region_10", "002_Region_2"]
    assert [section.z_um for section in after.sections] == [0, 70, 200]
    assert after.intensity_range == {"DAPI": (0.0, 255.0), "PolyT": (0.0, 255.0)}
    assert (after.image(after.canvas) == before.image(before.canvas)).all()
    for number in range(3):
        rows, again = (brain.transcripts(number, brain.canvas) for brain in (before, after))
        assert all((getattr(rows, name) == getattr(again, name)).all() for name in ("y", "x", "gene", "count"))
    capsys.readouterr()


def test_a_store_of_others_may_hold_any_attribute(made, tmp_path):
    path = shutil.copytree(made[0], tmp_path / "copy.zarr")
    store = spatialdata.read_zarr(path)
    store.attrs["tera_mind"] = {"z_um": {"stack": "deep"}}
    store.write_attrs()
    with pytest.raises(TeraMindError, match="should say in its attribute tera_mind where sections lie"):
        SpatialDataReader().sections(path, 0.0)


@pytest.mark.parametrize(
    ("change", "settings", "words"),
    [
        (shutil.rmtree, {}, "nothing is there"),
        (lambda path: (path / "zarr.json").write_text("{"), {}, "no SpatialData store that can be read"),
        (lambda path: shutil.rmtree(path / "points"), {}, "no SpatialData store that can be read"),
        (lambda path: None, {"image": ("other",)}, "has image elements stack, not other"),
        (lambda path: None, {"system": "aligned"}, "has coordinate systems global, not 'aligned'"),
        (lambda path: None, {"stains": ("GFP",)}, "has stains PolyT, DAPI"),
        (lambda path: None, {"gene_column": "gene"}, "lacks columns gene; it has"),
        (lambda path: None, {"point_um": 0.0}, "positive number of um"),
        (lambda path: None, {"point_um": 1e5}, "are its units microns?"),
    ],
)
def test_faults_are_one_clear_line(made, tmp_path, change, settings, words):
    path = shutil.copytree(made[0], tmp_path / "copy.zarr")
    change(path)
    with pytest.raises(TeraMindError) as raised:
        SpatialDataReader(**settings).sections(path, 0.0)
    assert words in str(raised.value)
    assert len(str(raised.value).splitlines()) == 1
