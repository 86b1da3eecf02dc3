"""SpatialData (scverse) zarr stores: an image and a points element a section, with their transformations.

Both are taken through the same coordinate system; points keep their own unit, usually microns, so an image's map from
microns is (points -> system) followed by the inverse of (image -> system). Channels are found by name: their order in a
store comes from a set. Needs the extra `spatial`.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.dataset as pads
from numpy.typing import NDArray

from tera_mind.errors import FormatError, InputError, MissingFileError
from tera_mind.formats.scverse import require_spatialdata
from tera_mind.geometry import Box
from tera_mind.ingest.features import check_pixel_um, encode_names, no_gene_reason
from tera_mind.ingest.records import understanding
from tera_mind.ingest.registration import pixel_size_um
from tera_mind.ingest.source import SectionSource, StainImage, TranscriptBatch, by_number, option, pick_stains

BATCH_ROWS = 2**18


@dataclass(frozen=True)
class SpatialDataReader:
    """SpatialData zarr stores (points and images with their transformations); needs the extra `spatial`."""

    EXAMPLE: ClassVar[str] = (
        "tera-mind ingest spatialdata sample.zarr --image morphology_focus --points transcripts --out brain.zarr"
    )

    stains: tuple[str, ...] = option((), "channels to take (default: all)", "A,B")
    image: tuple[str, ...] = option(
        (), "image elements, one a section (default: the only one, or all pairs NAME_image)", "NAME,..."
    )
    points: tuple[str, ...] = option(
        (), "points elements, one an image (default: the only one, or NAME_transcripts)", "NAME,..."
    )
    system: str = option("global", "coordinate system that joins image and points", "NAME")
    gene_column: str = option("", "column of the gene (default: the points' feature key)", "NAME")
    point_um: float = option(1.0, "micrometres that one unit of the points' own coordinates stands for", "UM")
    section_step: float = option(10.0, "distance between sections of one store that does not say where they lie", "UM")
    min_qv: float = option(20.0, "drop transcripts of lower `qv`, where there is that column", "Q")

    def sections(self, folder: Path, z_um: float) -> list[SectionSource]:
        """One section a pair of image and points. Raises `MissingFileError`, `FormatError` or `InputError`."""
        if not folder.is_dir():
            raise MissingFileError(f"expected a SpatialData zarr store at {folder}, nothing is there")
        if not self.point_um > 0:
            raise InputError(f"a unit of the points should stand for a positive number of um, got {self.point_um:g}")
        store = _open(folder)
        images, points = sorted(store.images, key=by_number), sorted(store.points, key=by_number)
        pairs = self._pairs(images, points, folder)
        exported = _Exported.of(store, folder)
        lies = [exported.z_um.get(image, z_um + index * self.section_step) for index, (image, _) in enumerate(pairs)]
        sections = [
            self._section(
                folder, store, image, rows, z, alone=len(pairs) == 1,
                levels=exported.levels if image in exported.z_um else None,
            )
            for (image, rows), z in zip(pairs, lies, strict=True)
        ]  # fmt: skip
        if exported.z_um.keys() >= {image for image, _ in pairs}:
            sections.sort(key=lambda section: section.z_um)
        return sections

    def _pairs(self, images: list[str], points: list[str], folder: Path) -> list[tuple[str, str]]:
        if not images or not points:
            raise InputError(f"{folder} has {len(images)} images and {len(points)} points elements, both are needed")
        for wanted, have, kind in ((self.image, images, "image"), (self.points, points, "points")):
            missing = [name for name in wanted if name not in have]
            if missing:
                raise InputError(f"{folder} has {kind} elements {', '.join(have)}, not {', '.join(missing)}")
        if self.image or self.points:
            chosen, rows = self.image or tuple(images), self.points or tuple(points)
            if len(chosen) != len(rows):
                raise InputError(
                    f"one points element an image: {', '.join(chosen)} against {', '.join(rows)}; name them with "
                    "--image and --points"
                )
            return list(zip(chosen, rows, strict=True))
        if len(images) == len(points) == 1:
            return [(images[0], points[0])]
        named = [
            (image, f"{image.removesuffix('_image')}_transcripts")
            for image in images
            if image.endswith("_image") and f"{image.removesuffix('_image')}_transcripts" in points
        ]
        if not named:
            raise InputError(
                f"{folder} has images {', '.join(images)} and points {', '.join(points)}: say which belong together "
                "with --image and --points"
            )
        return named

    def _section(
        self,
        folder: Path,
        store: Any,
        image: str,
        rows: str,
        z_um: float,
        *,
        alone: bool,
        levels: tuple[float, float] | None,
    ) -> SectionSource:
        um_to_px = np.linalg.inv(_affine(store.images[image], image, self.system, folder)) @ _affine(
            store.points[rows], rows, self.system, folder
        )
        um_to_px = um_to_px @ np.diag([1 / self.point_um, 1 / self.point_um, 1.0])
        check_pixel_um(pixel_size_um(um_to_px), folder)
        shape, channels = _describe(store.images[image], image, folder)
        stains = pick_stains(channels, self.stains, folder)
        column = self.gene_column or str(store.points[rows].attrs.get("spatialdata_attrs", {}).get("feature_key") or "")
        table = _Table(folder / "points" / rows, column, self.point_um, self.min_qv)
        count = table.check()
        stem = folder.resolve().name.removesuffix(".zarr")
        name = stem if alone else image.removesuffix("_image")
        return SectionSource(
            name=name,
            z_um=z_um,
            stains=tuple(
                StainImage(stain, _ChannelPlane(folder, image, channels.index(stain), shape), um_to_px, levels)
                for stain in stains
            ),
            batches=table,
            expected_batches=-(-count // BATCH_ROWS),
            provenance={
                "format": "spatialdata",
                "folder": folder.resolve().name,
                "image": image,
                "points": rows,
                "system": self.system,
                "pixel_um": pixel_size_um(um_to_px),
            },
        )


@dataclass(frozen=True)
class _Exported:
    """What a store that this project exported says: z by image element, and intensities that are 0 and 255 already."""

    z_um: dict[str, float]
    levels: tuple[float, float] | None

    @staticmethod
    def of(store: Any, folder: Path) -> _Exported:
        """Nothing for a store of others. Raises `FormatError`."""
        own = store.attrs.get("tera_mind", {})
        with understanding(folder, "should say in its attribute tera_mind where sections lie (z_um) and the levels"):
            z_um = {f"{name}_image": float(z) for name, z in own.get("z_um", {}).items()}
            low, high = (float(level) for level in own["levels"]) if "levels" in own else (None, None)
            return _Exported(z_um, None if low is None or high is None else (low, high))


@lru_cache(maxsize=4)  # planes of one store in one process share it
def _open(folder: Path) -> Any:
    spatialdata = require_spatialdata()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return spatialdata.read_zarr(folder, selection=("images", "points"))
    except Exception as error:  # noqa: BLE001 (the library raises whatever the libraries below it raise)
        words = " ".join(str(error).split())[:200]
        raise FormatError(f"{folder} is no SpatialData store that can be read ({words}); is it whole?") from None


def _finest(element: Any) -> Any:
    """The full-resolution array of an image, with or without pyramid."""
    if hasattr(element, "children") and element.children:
        return next(iter(next(iter(element.children.values())).ds.data_vars.values()))
    return element


def _affine(element: Any, name: str, system: str, folder: Path) -> NDArray[np.float64]:
    from spatialdata.transformations import get_transformation

    known = get_transformation(element, get_all=True)
    if system not in known:
        raise InputError(
            f"element {name} of {folder} has coordinate systems {', '.join(map(str, known))}, not {system!r}; "
            "name one in --system"
        )
    try:
        matrix = np.asarray(known[system].to_affine_matrix(("x", "y"), ("x", "y")), np.float64)
    except (ValueError, NotImplementedError) as error:
        raise InputError(f"the transformation of {name} of {folder} is no affine of x and y ({error})") from None
    if not np.isfinite(matrix).all() or abs(np.linalg.det(matrix)) < 1e-15:
        raise InputError(f"the transformation of {name} of {folder} to {system!r} cannot be inverted")
    return matrix


def _describe(element: Any, name: str, folder: Path) -> tuple[tuple[int, int], list[str]]:
    array = _finest(element)
    if array.dims != ("c", "y", "x") or array.dtype not in (np.uint8, np.uint16):
        raise FormatError(
            f"image {name} of {folder} should be (c, y, x) uint8 or uint16, is {array.dims} {array.dtype}"
        )
    channels = [str(channel) for channel in array.coords["c"].values]
    if len(set(channels)) != len(channels):
        raise FormatError(f"image {name} of {folder} names a channel twice: {', '.join(channels)}")
    return (int(array.shape[1]), int(array.shape[2])), channels


@dataclass(frozen=True)
class _ChannelPlane:
    """One channel of an image element, read by windows."""

    folder: Path
    image: str
    channel: int
    shape: tuple[int, int]

    def read(self, box: Box) -> NDArray[Any]:
        rows, columns = box.slices()
        try:
            window = _finest(_open(self.folder).images[self.image])[self.channel, rows, columns]
            return np.asarray(window.data.compute(scheduler="synchronous"))
        except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
            raise FormatError(
                f"image {self.image} of {self.folder} is damaged at {box} ({error}); copy it again"
            ) from None


@dataclass(frozen=True)
class _Table:
    """Stream of a points element's Parquet files."""

    folder: Path
    gene_column: str
    point_um: float
    min_qv: float

    def _dataset(self) -> Any:
        path = self.folder / "points.parquet"
        if not path.exists():
            raise MissingFileError(f"expected points at {path}, nothing is there")
        try:
            return pads.dataset(path, format="parquet")
        except (OSError, pa.ArrowException) as error:
            raise FormatError(f"{path} is no readable Parquet ({error}); copy the store again") from None

    def check(self) -> int:
        """Check the columns; number of rows."""
        dataset = self._dataset()
        names = dataset.schema.names
        wanted = ["x", "y", self.gene_column]
        missing = [name or "(no feature key)" for name in wanted if name not in names]
        if missing:
            raise FormatError(
                f"{self.folder} lacks columns {', '.join(missing)}; it has {', '.join(names)} "
                "(--gene-column names the gene's)"
            )
        for name in ("x", "y", *({"qv"} & set(names))):
            kind = dataset.schema.field(name).type
            if not (pa.types.is_floating(kind) or pa.types.is_integer(kind)):
                raise FormatError(f"column {name} of {self.folder} should hold numbers, it holds {kind}")
        try:
            return int(dataset.count_rows())
        except (OSError, pa.ArrowException) as error:
            raise FormatError(f"{self.folder} is damaged ({error}); copy the store again") from None

    def __call__(self) -> Iterator[TranscriptBatch]:
        dataset = self._dataset()
        quality = ["qv"] if "qv" in dataset.schema.names else []
        try:
            for batch in dataset.to_batches(columns=["x", "y", self.gene_column, *quality], batch_size=BATCH_ROWS):
                yield self._batch(batch, has_quality=bool(quality))
        except (OSError, pa.ArrowException) as error:
            raise FormatError(f"{self.folder} is damaged ({error}); copy the store again") from None

    def _batch(self, batch: Any, *, has_quality: bool) -> TranscriptBatch:
        codes, names = encode_names(batch.column(self.gene_column))
        x_um, y_um = (
            np.asarray(batch.column(axis).to_numpy(zero_copy_only=False), np.float64) * self.point_um
            for axis in ("x", "y")
        )
        reasons = [no_gene_reason(name) for name in names]
        kept = np.isfinite(x_um) & np.isfinite(y_um)
        dropped = {"no position": int((~kept).sum())}
        for reason in sorted({reason for reason in reasons if reason}):
            matches = kept & np.array([other == reason for other in reasons])[codes]
            dropped[reason] = int(matches.sum())
            kept &= ~matches
        if has_quality:
            good = np.asarray(batch.column("qv").to_numpy(zero_copy_only=False), np.float64) >= self.min_qv
            dropped[f"qv below {self.min_qv:g}"] = int((kept & ~good).sum())
            kept &= good
        return TranscriptBatch(x_um[kept], y_um[kept], codes[kept], names, dropped)
