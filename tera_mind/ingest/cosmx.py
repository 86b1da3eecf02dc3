"""NanoString CosMx: `*_tx_file.csv`, `*_fov_positions_file.csv` and one TIFF of several channels a field of view.

Every field of view (FOV) has local pixels; the positions file puts the FOVs on the slide. Global y runs upward, image
rows downward. A transcript is placed by its FOV and its local pixel, as the image is, so the two stay together
whatever the export's global origin is. Local y is the image's row in exports of AtoMx and counts from the lower edge
in older ones; the table tells which, since it holds the global y beside it.
Sources: NanoString's flat-file description; the CosMx readers of spatialdata-io and sopa.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from tera_mind.errors import FormatError, InputError, MissingFileError
from tera_mind.ingest.cosmx_images import fov_channels, fov_images
from tera_mind.ingest.faults import Fault
from tera_mind.ingest.features import check_pixel_um, encode_names, no_gene_reason
from tera_mind.ingest.mosaic import MosaicPlane, TurnedPlane
from tera_mind.ingest.selection import Selection
from tera_mind.ingest.small_csv import read_rows
from tera_mind.ingest.source import SectionSource, StainImage, TranscriptBatch, option, pick_stains
from tera_mind.ingest.tables import Table
from tera_mind.ingest.tiff import TiffPlane

#: side of a pixel of the CosMx camera, microns
PIXEL_UM = 0.120280945
_TX, _FOVS, _COUNTS = "_tx_file.csv", "_fov_positions_file.csv", "_exprMat_file.csv"
_LOCAL = ("fov", "x_local_px", "y_local_px")
_GLOBAL = ("x_global_px", "y_global_px")
#: columns of a position by version, and the microns of their unit (None: pixels)
_POSITIONS = (("x_global_px", "y_global_px", None), ("x_global_mm", "y_global_mm", 1e3), ("x_mm", "y_mm", 1e3))
#: local and global pixels of one FOV may disagree by so much (rounding), FOVs by so much of their size
_ROUNDING_PX, _MISPLACED = 2.0, 0.25
_FARTHEST_PX = 2**20


@dataclass(frozen=True)
class CosMxReader:
    """NanoString CosMx flat files (*_tx_file.csv, *_fov_positions_file.csv) and morphology TIFFs a field of view."""

    EXAMPLE: ClassVar[str] = "tera-mind ingest cosmx slide_1 --out brain.zarr --stains DAPI,rRNA --pixel-um 0.24"

    stains: tuple[str, ...] = option((), "stains to take (default: all)", "A,B")
    images: str = option("", "folder of the FOVs' TIFFs in the folder (default: Morphology2D, CellComposite)", "PATH")
    channels: tuple[str, ...] = option((), "names of the images' pages, in order (default: as the files say)", "A,B")
    fov_pixel_um: float = option(PIXEL_UM, "side of a pixel of the FOV images", "UM")
    y_local: str = option("auto", "what y_local_px counts: 'down' or 'up' from the image's edge, or 'auto'", "WAY")
    turned: bool = option(
        default=False, words="turn every FOV image by 180 degrees, as some exports of AtoMx 1.3.2 need"
    )

    def sections(self, folder: Path, z_um: float) -> list[SectionSource]:
        """The section of a folder. Raises `MissingFileError`, `FormatError` or `InputError`, one line each."""
        if not folder.is_dir():
            raise MissingFileError(f"expected a CosMx folder at {folder}, nothing is there")
        if self.y_local not in {"auto", "down", "up"}:
            raise InputError(f"y_local is 'auto', 'down' or 'up', got {self.y_local!r}")
        table, prefix = _transcripts(folder)
        pixel_um = check_pixel_um(self.fov_pixel_um, folder)
        positions = _positions(_beside(table.path, prefix + _FOVS), pixel_um)
        images = fov_images(folder, self.images)
        files = {fov: path for fov, path in images.items() if fov in positions}
        if not files:
            raise InputError(f"no FOV of the positions in {folder} has an image there; are they of one slide?")
        channels = fov_channels(next(iter(files.values())), self.channels)
        stains = pick_stains(list(channels), self.stains, folder)
        planes = {fov: [TiffPlane(path, channels[stain]) for stain in stains] for fov, path in files.items()}
        layout = _layout({fov: own[0].shape for fov, own in planes.items()}, positions)
        way = _way(table, layout, positions) if self.y_local == "auto" else self.y_local
        um_to_px = np.diag([1 / pixel_um, 1 / pixel_um, 1.0])
        return [
            SectionSource(
                name=folder.resolve().name,
                z_um=z_um,
                stains=tuple(
                    StainImage(stain, self._mosaic([own[index] for own in planes.values()], layout), um_to_px)
                    for index, stain in enumerate(stains)
                ),
                batches=_Batches(table, layout, way, pixel_um),
                panel=_panel(table.path, prefix),
                expected_batches=table.expected_batches,
                provenance={
                    "format": "cosmx",
                    "folder": folder.resolve().name,
                    "fields_of_view": len(layout.fovs),
                    "pixel_um": pixel_um,
                    "y_local": way,
                    "slide_px_of_corner": list(layout.corner),
                }
                | _notices(set(images), set(positions)),
            )
        ]

    def _mosaic(self, planes: list[TiffPlane], layout: _Layout) -> MosaicPlane:
        kinds = {plane.dtype.name for plane in planes}
        if len(kinds) != 1:
            raise FormatError(f"FOV images should have one kind of pixel, {planes[0].path.parent} has {sorted(kinds)}")
        tiles = tuple(TurnedPlane(plane) for plane in planes) if self.turned else tuple(planes)
        return MosaicPlane(layout.boxes, tiles, layout.shape, kinds.pop())


def _notices(images: set[int], positions: set[int]) -> dict[str, list[str]]:
    """What is there in part: under the key that reports read."""
    left_out = {"has a position and no image": positions - images, "has an image and no position": images - positions}
    notices = [
        f"{len(fovs)} of {len(images | positions)} FOVs: FOV {min(fovs)} {words}; left out"
        for words, fovs in left_out.items()
        if fovs
    ]
    return {"notices": notices} if notices else {}


@dataclass(frozen=True, eq=False)
class _Layout:
    """FOV numbers, ascending, their boxes `y0, y1, x0, x1` on the mosaic, and the slide pixel (x, y) of its corner."""

    fovs: NDArray[np.int64]
    boxes: NDArray[np.int64]
    corner: tuple[float, float]

    @property
    def shape(self) -> tuple[int, int]:
        return int(self.boxes[:, 1].max()), int(self.boxes[:, 3].max())


def _layout(shapes: Mapping[int, tuple[int, int]], positions: Mapping[int, tuple[float, float]]) -> _Layout:
    """FOVs with an image, put where the slide has them: upper edges by falling y, left edges by rising x."""
    fovs = sorted(shapes)
    x, y = np.array([positions[fov] for fov in fovs]).T
    left, top = np.rint(x - x.min()).astype(np.int64), np.rint(y.max() - y).astype(np.int64)
    if max(left.max(), top.max()) > _FARTHEST_PX:
        raise InputError(
            f"FOVs lie {max(left.max(), top.max())} px apart, at most {_FARTHEST_PX} on a slide: are the positions "
            "in mm or pixels as their columns say?"
        )
    height, width = np.array([shapes[fov] for fov in fovs]).T
    boxes = np.stack([top, top + height, left, left + width], axis=1)
    return _Layout(np.array(fovs, np.int64), boxes, (float(x.min()), float(y.max())))


@dataclass(frozen=True, eq=False)
class _Batches:
    """The stream of a slide's transcripts."""

    table: Table
    layout: _Layout
    way: str
    pixel_um: float

    def __call__(self) -> Iterator[TranscriptBatch]:
        """Positions in microns from the mosaic's upper left corner."""
        for first_row, batch in self.table.batches():
            fov, x, y = _numbers(batch, _LOCAL)
            codes, names = encode_names(batch.column("target"))
            chosen = Selection(len(fov), first_row)
            row = np.clip(np.searchsorted(self.layout.fovs, fov), 0, len(self.layout.fovs) - 1)
            y0, y1, x0, _ = self.layout.boxes[row].T
            x_um = (x0 + x) * self.pixel_um
            y_um = (y0 + y if self.way == "down" else y1 - y) * self.pixel_um
            chosen.drop_lost(x_um, y_um)
            chosen.drop(self.layout.fovs[row] != fov, "field of view without image or position")
            chosen.drop_no_genes(codes, names)
            yield chosen.batch(x_um, y_um, codes, names)

    def faults(self) -> Iterator[Fault]:
        """Every place of the table that cannot be read."""
        yield from self.table.faults()


def _numbers(batch: Any, columns: tuple[str, ...]) -> list[NDArray[np.float64]]:
    return [np.asarray(batch.column(name).to_numpy(zero_copy_only=False), np.float64) for name in columns]


def _transcripts(folder: Path) -> tuple[Table, str]:
    """The table and the prefix of its slide's files."""
    found = sorted(path for path in folder.rglob(f"[!.]*{_TX}*") if path.name.endswith((_TX, _TX + ".gz")))
    if len(found) != 1:
        listed = ", ".join(str(path.relative_to(folder)) for path in found[:4]) or "none"
        message = f"expected one *{_TX} (or .gz) in {folder}, found {listed}; a folder is one slide"
        raise InputError(message) if found else MissingFileError(message)
    table = Table.open(found[0], (*_LOCAL, *_GLOBAL), ("target",), optional=_GLOBAL)
    return table, found[0].name[: found[0].name.index(_TX)]


def _beside(path: Path, name: str) -> Path:
    """A file of the slide, gzipped or not; the plain name where there is none."""
    plain, zipped = path.parent / name, path.parent / (name + ".gz")
    return zipped if zipped.is_file() and not plain.is_file() else plain


def _positions(path: Path, pixel_um: float) -> dict[int, tuple[float, float]]:
    """FOV -> slide pixels (x, y), y upward."""
    rows = read_rows(path, "the FOVs' positions")
    header = [name.strip().lower() for name in (rows[0] if rows else [])]
    known = [kind for kind in _POSITIONS if {"fov", *kind[:2]} <= set(header)]
    if not known:
        ways = " or ".join(f"{x}, {y}" for x, y, _ in _POSITIONS)
        raise FormatError(f"{path} should have columns FOV and {ways}, it has {', '.join(header) or 'none'}")
    x, y, unit_um = known[0]
    scale = 1.0 if unit_um is None else unit_um / pixel_um
    positions: dict[int, tuple[float, float]] = {}
    for number, row in enumerate(rows[1:], start=1):
        try:
            values = [float(row[header.index(name)]) for name in ("fov", x, y)]
        except (ValueError, IndexError):
            raise FormatError(f"{path}, row {number}: expected numbers for FOV, {x} and {y}, got {row}") from None
        if not all(math.isfinite(value) and abs(value) < 1e12 for value in values):
            raise FormatError(f"{path}, row {number}: FOV, {x} and {y} should be finite numbers, got {row}")
        fov, place = int(values[0]), (values[1] * scale, values[2] * scale)
        if positions.setdefault(fov, place) != place:
            raise FormatError(f"{path}, row {number}: FOV {fov} has two positions; a folder is one slide")
    return positions


def _way(table: Table, layout: _Layout, positions: Mapping[int, tuple[float, float]]) -> str:
    """Whether local y counts downward or upward, from the first transcripts; checks them against the positions."""
    if not set(_GLOBAL) <= set(table.numbers):
        raise InputError(
            f"{table.path} has no {' and '.join(_GLOBAL)}, so it does not tell which way y_local_px counts; "
            "say --y-local down (exports of AtoMx) or up (older ones)"
        )
    batch = next((batch for _, batch in table.batches() if batch.num_rows), None)
    if batch is None:
        return "down"  # an empty table is the pipeline's to refuse
    fov, x, y, x_slide, y_slide = _numbers(batch, (*_LOCAL, *_GLOBAL))
    seen = [number for number in np.unique(fov[np.isfinite(fov)]) if number in layout.fovs]
    ways: dict[str, float] = {"down": 0.0, "up": 0.0}
    corners = {}
    for number in seen:
        own = (fov == number) & np.isfinite(x + y + x_slide + y_slide)
        if own.sum() < 3 or np.ptp(y[own]) < 4 * _ROUNDING_PX:
            continue
        sums, differences = y_slide[own] + y[own], y_slide[own] - y[own]
        ways["down"] += _spread(sums)
        ways["up"] += _spread(differences)
        if _spread(x_slide[own] - x[own]) > _ROUNDING_PX:
            raise FormatError(f"{table.path}: x_global_px and x_local_px of FOV {number:.0f} do not run alike")
        corners[int(number)] = (np.median(x_slide[own] - x[own]), np.median(sums), np.median(differences))
    if not corners:
        raise InputError(
            f"{table.path} begins with too few transcripts to tell which way y_local_px counts; say --y-local"
        )
    way = min(ways, key=lambda name: ways[name])
    if ways[way] > _ROUNDING_PX * len(corners):
        raise FormatError(f"{table.path}: y_global_px and y_local_px of a FOV run neither alike nor against each other")
    edge = {number: (x, down if way == "down" else up) for number, (x, down, up) in corners.items()}
    _check_places(table.path, edge, positions, layout)
    return way


def _spread(values: NDArray[np.float64]) -> float:
    """Half the width of the middle 80 percent: a few wrong rows do not count."""
    return float(np.diff(np.quantile(values, [0.1, 0.9]))[0] / 2)


def _check_places(
    path: Path, edges: Mapping[int, tuple[float, float]], positions: Mapping[int, tuple[float, float]], layout: _Layout
) -> None:
    """FOVs lie to each other in the transcripts as in the positions file."""
    first = next(iter(edges))
    size = float(layout.boxes[0, 1] - layout.boxes[0, 0])
    for number, edge in edges.items():
        moved = [edge[axis] - edges[first][axis] - positions[number][axis] + positions[first][axis] for axis in (0, 1)]
        if max(abs(distance) for distance in moved) > _MISPLACED * size:
            raise FormatError(
                f"{path} has FOV {number} {max(moved, key=abs):.0f} px from where the positions file puts it beside "
                f"FOV {first}; are both of one slide and export, and is --fov-pixel-um right?"
            )


def _panel(table: Path, prefix: str) -> tuple[str, ...] | None:
    """Genes that the header of the cells' counts names, None without that file."""
    path = _beside(table, prefix + _COUNTS)
    if not path.is_file():
        return None
    header = next(iter(read_rows(path, "counts of cells", limit=1)), [])
    return tuple(n for n in header if n.lower() not in {"fov", "cell_id", "cell"} and no_gene_reason(n) is None) or None
