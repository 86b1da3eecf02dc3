"""Registration: points forward and images backward are one map, whatever window is asked for."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import tifffile
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from tera_mind.errors import FormatError, InputError, MissingFileError
from tera_mind.geometry import Box
from tera_mind.ingest import resampling
from tera_mind.ingest.displacement import DisplacementField
from tera_mind.ingest.registration import Registration
from tera_mind.ingest.resampling import resample
from tera_mind.ingest.source import StainImage

CANVAS = (240, 300)


@dataclass
class ArrayPlane:
    array: np.ndarray
    reads: list[Box] = field(default_factory=list)

    @property
    def shape(self) -> tuple[int, int]:
        return self.array.shape

    def read(self, box: Box) -> np.ndarray:
        self.reads.append(box)
        return self.array[box.slices()]


def affine(degrees: float, scale: float, shift: tuple[float, float], mirror: bool = False) -> np.ndarray:
    turn = np.deg2rad(degrees)
    linear = scale * np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    linear = linear @ np.diag([-1.0 if mirror else 1.0, 1.0])
    return np.array([[*linear[0], shift[0]], [*linear[1], shift[1]], [0, 0, 1.0]])


def bend(folder: Path, seed: int = 0, size: float = 12.0, cells: tuple[int, int] = (8, 10)) -> DisplacementField:
    """A smooth field, saved: displacements of up to `size` px in cells of 30 px."""
    noise = np.random.default_rng([seed, 1]).normal(size=(2, *cells))
    smooth = ndimage.gaussian_filter(noise, (0, 1.2, 1.2))
    path = folder / f"field_{seed}.npy"
    np.save(path, (smooth * (size / np.abs(smooth).max())).astype(np.float32))
    return DisplacementField(path, CANVAS)


# the field


@given(seed=st.integers(0, 1000), size=st.floats(0.5, 14.0))
@settings(max_examples=25, deadline=None)
def test_forward_undoes_inverse(tmp_path_factory, seed, size):
    displacement = bend(tmp_path_factory.mktemp("fields"), seed, size)
    displacement.check()
    points = np.random.default_rng(seed).uniform([[-40], [-40]], [[CANVAS[0] + 40], [CANVAS[1] + 40]], (2, 400))
    assert np.abs(np.stack(displacement.forward(*displacement.inverse(*points))) - points).max() < 0.05
    assert np.abs(np.stack(displacement.inverse(*displacement.forward(*points))) - points).max() < 0.05


def test_the_field_lies_where_the_table_says(tmp_path):
    """At the cells' centres the file's values, half way between them their mean, towards the edge linear."""
    values = np.array([[[1, 3], [5, 7.0]], [[0, 0], [4, 4]]], np.float32)
    np.save(tmp_path / "f.npy", values)
    displacement = DisplacementField(tmp_path / "f.npy", (40, 60), 0.5)  # cells of 20 x 30 px, half a pixel a unit
    y, x = np.array([10.0, 10, 30, 20, 0, -50]), np.array([15.0, 45, 45, 30, 15, 15])
    dy, dx = displacement.at(y, x)
    np.testing.assert_allclose(dy, np.array([1, 3, 7, 4, -1, -1]) / 2)
    np.testing.assert_allclose(dx, np.array([0, 0, 4, 2, -2, -2]) / 2)


def test_a_field_of_any_format_is_the_same(tmp_path):
    displacement = bend(tmp_path)
    values = np.load(displacement.path)
    zarr.create_array(tmp_path / "f.zarr", data=values)
    tifffile.imwrite(tmp_path / "f.tif", values)
    points = np.array([[3.0, 100, 239]]), np.array([[7.0, 200, 299]])
    for name in ("f.zarr", "f.tif"):
        np.testing.assert_array_equal(DisplacementField(tmp_path / name, CANVAS).at(*points), displacement.at(*points))


FIELDS = {
    "folds": (lambda f: f * 8, InputError, "folds the section onto itself around y"),
    "too steep": (lambda f: np.cumsum(np.full_like(f, 29.0), axis=2) - 150, InputError, "px a pixel around y"),
    "not finite": (lambda f: np.where(np.arange(10) == 4, np.nan, f), InputError, "first at (0, 0, 4)"),
    "other canvas": (lambda f: f[:, :4], InputError, "expected (2, 240 / s, 300 / s)"),
    "one component": (lambda f: f[:1], FormatError, "should be float32 (2, rows, columns)"),
    "other type": (lambda f: f.astype(np.float64), FormatError, "float64"),
}


@pytest.mark.parametrize("fault", FIELDS)
def test_a_field_that_cannot_be_used_is_refused_with_its_place(tmp_path, fault):
    change, kind, words = FIELDS[fault]
    displacement = bend(tmp_path)
    changed = change(np.load(displacement.path))
    np.save(tmp_path / "bad.npy", changed if fault == "other type" else changed.astype(np.float32))
    with pytest.raises(kind) as caught:
        DisplacementField(tmp_path / "bad.npy", CANVAS).check()
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_place_of_a_fold_is_its_place(tmp_path):
    values = np.zeros((2, 24, 30), np.float32)
    values[1, 5, 20], values[1, 5, 21] = 6, -6  # pixels of 10 px cells change places around y 55, x 210
    np.save(tmp_path / "fold.npy", values)
    with pytest.raises(InputError, match=r"around y (50|60), x 210 px .*determinant -0\.2"):
        DisplacementField(tmp_path / "fold.npy", CANVAS).check()


def test_a_file_that_is_no_field(tmp_path):
    (tmp_path / "f.npy").write_bytes(b"nothing")
    with pytest.raises(FormatError, match="cannot be read"):
        DisplacementField(tmp_path / "f.npy", CANVAS).check()
    with pytest.raises(MissingFileError, match="nothing is there"):
        DisplacementField(tmp_path / "g.npy", CANVAS).check()


# images


def scene(y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """A smooth image whose value is known everywhere."""
    return 2000 + 900 * np.sin(x / 9) * np.cos(y / 7) + 500 * np.sin((x + 2 * y) / 23)


@pytest.mark.parametrize("bent", [False, True])
@pytest.mark.parametrize(
    "to_canvas",
    [
        affine(17, 1.0, (60, -20)),
        affine(-30, 0.35, (40, 120)),
        affine(0, 0.5, (20, 10)),
        affine(5, 1.6, (-80, -60)),
        affine(10, 0.9, (260, 0), mirror=True),
        np.array([[0.4, 0, 30], [0, 0.3, 30], [0, 0, 1.0]]),
    ],
)
def test_pixels_are_means_over_their_area(tmp_path, to_canvas, bent):
    """Against the scene itself, averaged over 4 x 4 points of every pixel that are carried back by the inverse map."""
    displacement = bend(tmp_path) if bent else None
    y, x = np.mgrid[:400, :500] + 0.5
    plane = ArrayPlane(np.rint(scene(y, x)).astype(np.uint16))
    box = Box(30, 150, 40, 190)
    canvas = resample(plane, to_canvas, box, displacement)
    blocks = (box.height, 4, box.width, 4)
    rows, columns = np.meshgrid(
        box.y0 + (np.arange(4 * box.height) + 0.5) / 4, box.x0 + (np.arange(4 * box.width) + 0.5) / 4, indexing="ij"
    )
    there = (rows, columns) if displacement is None else displacement.inverse(rows, columns)
    source = np.linalg.inv(to_canvas) @ np.stack([there[1].ravel(), there[0].ravel(), np.ones(rows.size)])
    inside = ((source[:2] >= 1) & (source[:2] < np.array([[499], [399]]))).all(axis=0)
    expected = scene(source[1], source[0]).reshape(blocks).mean(axis=(1, 3))
    whole = inside.reshape(blocks).all(axis=(1, 3))
    assert whole.sum() > 3000
    error = np.abs(canvas - expected)[whole]
    assert error.mean() < 6
    assert error.max() < 60  # of 2800: bilinear samples of a curved scene
    far = ~ndimage.binary_dilation(inside.reshape(blocks).any(axis=(1, 3)), iterations=8)
    assert (canvas[far] == 0).all()


@pytest.mark.parametrize("bent", [False, True])
@pytest.mark.parametrize(
    "to_canvas", [affine(0, 0.5, (10, 5)), affine(23, 0.6, (80, 10)), affine(180, 1.2, (290, 200))]
)
def test_any_window_is_a_part_of_the_whole_and_reads_little(tmp_path, monkeypatch, to_canvas, bent):
    displacement = bend(tmp_path) if bent else None
    image = np.random.default_rng(0).integers(1, 60_000, (400, 500)).astype(np.uint16)
    box = Box(0, CANVAS[0], 0, CANVAS[1])
    whole = resample(ArrayPlane(image), to_canvas, box, displacement)
    monkeypatch.setattr(resampling, "_SOURCE_PIXELS", 4000)
    plane = ArrayPlane(image)
    strips = resample(plane, to_canvas, box, displacement)
    np.testing.assert_allclose(strips, whole, atol=0.01)
    assert len(plane.reads) > 10
    assert max(read.height * read.width for read in plane.reads) <= 4000
    for window in box.tiles(97, 113):
        np.testing.assert_allclose(resample(plane, to_canvas, window, displacement), whole[window.slices()], atol=40)


def test_fine_stripes_do_not_alias():
    """Stripes of one pixel, shrunk eightfold and turned, are grey everywhere."""
    image = np.zeros((640, 640), np.uint16)
    image[:, ::2] = 1000
    canvas = resample(ArrayPlane(image), affine(12, 1 / 8, (20, 5)), Box(20, 70, 25, 75))
    assert canvas.mean() == pytest.approx(500, abs=5)
    assert canvas.std() < 30


def test_the_edge_of_an_image_is_not_dimmed():
    image = np.full((100, 120), 1000, np.uint16)
    canvas = resample(ArrayPlane(image), affine(20, 0.7, (60, 20)), Box(0, 150, 0, 200))
    assert set(np.unique(np.rint(canvas)).tolist()) == {0.0, 1000.0}


@pytest.mark.parametrize("bent", [False, True])
def test_points_lie_where_their_image_does(tmp_path, bent):
    """Dots at known micrometres, in two stains with maps of their own: the canvas shows them where the points are."""
    registration = Registration(affine(-12, 0.8, (50, 90)), bend(tmp_path) if bent else None)
    um_to_px = [np.array([[1.7, 0, 4], [0, 1.70001, -6], [0, 0, 1.0]]), affine(40, 2.1, (200, 10))]
    dots_um = np.random.default_rng(3).uniform([[60], [10]], [[180], [170]], (2, 40))
    keep = [i for i in range(40) if (np.hypot(*(dots_um[:, :i] - dots_um[:, i : i + 1])) > 22).all()]
    x_um, y_um = dots_um[:, keep]
    y, x = registration.positions(x_um, y_um)
    pixels = registration.pixels(x_um, y_um)
    assert (np.floor(y) == pixels[0]).all()
    assert (np.floor(x) == pixels[1]).all()
    for to_px in um_to_px:
        rows, columns = np.mgrid[:420, :520] + 0.5
        px = to_px @ np.stack([x_um, y_um, np.ones_like(x_um)])
        dots = [np.exp(-((rows - py) ** 2 + (columns - px) ** 2) / 8) for px, py in px[:2].T]
        stain = StainImage("DAPI", ArrayPlane((np.sum(dots, axis=0) * 40_000).astype(np.uint16)), to_px)
        canvas = registration.window(stain, Box(0, CANVAS[0], 0, CANVAS[1]))
        seen = 0
        for at_y, at_x, py, px_ in zip(y, x, px[1], px[0], strict=True):
            if not (8 < at_y < CANVAS[0] - 8 and 8 < at_x < CANVAS[1] - 8 and 8 < py < 412 and 8 < px_ < 512):
                continue
            top, left = int(at_y) - 5, int(at_x) - 5
            window = canvas[top : top + 11, left : left + 11]
            centre = ndimage.center_of_mass(window)
            assert np.hypot(centre[0] + top + 0.5 - at_y, centre[1] + left + 0.5 - at_x) < 0.25
            seen += 1
        assert seen > 8
