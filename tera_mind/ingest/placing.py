"""Sections on one canvas: pixel size, extent, and each section's map onto it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tera_mind.errors import InputError
from tera_mind.geometry import Box
from tera_mind.ingest.displacement import DisplacementField
from tera_mind.ingest.faults import Faults
from tera_mind.ingest.registration import Reals, Registration, pixel_size_um, scaled
from tera_mind.ingest.resampling import inverted
from tera_mind.ingest.sections_table import SectionRow, SectionsTable, affine_fault
from tera_mind.ingest.source import SectionSource, StainImage, TranscriptBatch

MISSING = ("refuse", "empty")
#: pixel sizes of sections that differ by less are one pixel size
_SAME_PIXEL = 1e-3
#: part of a canvas' side that is no reason for another pixel: instruments' pixels differ by as little from their name
_SAME_SIDE = 1e-5
#: no canvas has a longer side: 11 cm at 0.108 um
_LONGEST_PX = 2**20
#: points a side of an image that tell where it lies
_PROBES = 33


@dataclass(frozen=True)
class Located:
    """Canvas pixels of transcripts, which of them are kept, and how many are not, by reason (also 0)."""

    y: NDArray[np.int64]
    x: NDArray[np.int64]
    kept: NDArray[np.bool_]
    dropped: dict[str, int]


@dataclass(frozen=True)
class Placed:
    """A section on the canvas. `shape`: rows and columns of the canvas, from its corner, that the section may cover.

    `missing`: the registration knows the section but there is no data of it; it stays empty (no transcript, zeros).
    """

    source: SectionSource
    registration: Registration
    shape: tuple[int, int]
    missing: bool = False

    def window(self, stain: int, box: Box) -> NDArray[np.float32]:
        """Canvas pixels of a box of a stain: float32 (y, x), 0 outside the section's image."""
        if self.missing:
            return np.zeros((box.height, box.width), np.float32)
        return self.registration.window(self.source.stains[stain], box)

    def locate(self, x_um: Reals, y_um: Reals) -> Located:
        """Transcripts on the canvas; those outside the section's image or the canvas are dropped.

        Reasons: "outside the image" (a fault of the data when many) and "outside the canvas" (the canvas cuts them).
        """
        image = self.source.stains[0]
        y, x = self.registration.pixels(x_um, y_um)
        source_y, source_x = Registration(image.um_to_px).positions(x_um, y_um)
        height, width = image.plane.shape
        imaged = (source_y >= 0) & (source_y < height) & (source_x >= 0) & (source_x < width)
        kept = imaged & (y >= 0) & (y < self.shape[0]) & (x >= 0) & (x < self.shape[1])
        outside = int((~imaged).sum())
        return Located(y, x, kept, {"outside the image": outside, "outside the canvas": int((~kept).sum()) - outside})


@dataclass(frozen=True)
class Canvas:
    """Every section of a brain on one canvas of `shape` (height, width) pixels; `notes`: what the user should know."""

    pixel_um: float
    shape: tuple[int, int]
    sections: tuple[Placed, ...]
    notes: tuple[str, ...] = field(default=())


def place(
    sources: Sequence[SectionSource],
    *,
    pixel_um: float | None = None,
    canvas_um: tuple[float, float] | None = None,
    canvas_px: tuple[int, int] | None = None,
    table: SectionsTable | None = None,
    missing: str = "refuse",
) -> Canvas:
    """Put every section onto the canvas: as a table says, else at its corner with the axes of its first stain's image.

    pixel_um: size of a canvas pixel (default: the first section's own, which without a table all must share).
    canvas_um, or canvas_px: (height, width) of the canvas from its corner; what lies beyond is cut off and noted.
    Default: what holds all sections; if a table's lie left of its corner, the canvas is moved to hold them.
    missing: what to do with sections of the table that are not among the sources, "refuse" or keep them "empty".
    Sections have to come by strictly ascending z.
    Raises `InputError`; several faults of the table against the sources come together as `FaultsError`.
    """
    if not sources:
        raise InputError("a brain needs at least one section, got none")
    if pixel_um is not None and not pixel_um > 0:
        raise InputError(f"a canvas pixel needs a positive size in um, got {pixel_um:g}")
    for size, unit in ((canvas_um, "um"), (canvas_px, "px")):
        if size is not None and not min(size) > 0:
            raise InputError(f"a canvas needs a positive height and width in {unit}, got {size[0]:g}, {size[1]:g}")
    if canvas_um is not None and canvas_px is not None:
        raise InputError("the canvas is given in um and in px; one of them is enough")
    if missing not in MISSING:
        raise InputError(f"missing sections are one of {', '.join(MISSING)}, got {missing!r}")
    if table is None:
        canvas = _side_by_side(sources, pixel_um, canvas_um, canvas_px)
    else:
        canvas = _registered(sources, table, pixel_um, canvas_um, canvas_px, keep_missing=missing == "empty")
    _check_order([section.source for section in canvas.sections])
    return canvas


def _check_order(sources: Sequence[SectionSource]) -> None:
    """Sections follow each other in the store as they lie in the tissue, or neighbours would be none."""
    for source in sources:
        if not np.isfinite(source.z_um):
            raise InputError(f"section {source.name} lies at z {source.z_um:g} um; give a finite position (--z-um)")
    for source, following in pairwise(sources):
        if following.z_um <= source.z_um:
            raise InputError(
                f"section {following.name} at z {following.z_um:g} um does not lie beyond section {source.name} at z "
                f"{source.z_um:g} um, which comes before it: order the folders by z, or correct --z-um, --section-um "
                "or --section-step"
            )


def _side_by_side(
    sources: Sequence[SectionSource],
    pixel_um: float | None,
    canvas_um: tuple[float, float] | None,
    canvas_px: tuple[int, int] | None,
) -> Canvas:
    """Every section at the canvas' corner, its axes those of its first stain's image."""
    target = pixel_size_um(sources[0].stains[0].um_to_px) if pixel_um is None else pixel_um
    placed = []
    for source in sources:
        first = source.stains[0]
        own = pixel_size_um(first.um_to_px)
        factor = own / target
        if abs(factor - 1) < _SAME_PIXEL:
            factor = 1.0  # no resampling for a difference far below a pixel's neighbourhood
        elif pixel_um is None:
            raise InputError(
                f"section {source.name} has pixels of {own:.4g} um, section {sources[0].name} of {target:.4g} um; "
                "choose one size with --pixel-um"
            )
        rows, columns = (max(1, int(np.ceil(size * factor - 1e-6))) for size in first.plane.shape)
        placed.append(Placed(source, Registration(scaled(first.um_to_px, factor)), (rows, columns)))
    height, width = (max(section.shape[axis] for section in placed) for axis in (0, 1))
    return _cut(target, canvas_px or _whole_pixels(canvas_um, target) or (height, width), placed, [])


def _whole_pixels(canvas_um: tuple[float, float] | None, pixel_um: float) -> tuple[int, int] | None:
    """Whole pixels that hold a canvas."""
    if canvas_um is None:
        return None
    height, width = (max(1, int(np.ceil(side / pixel_um * (1 - _SAME_SIDE)))) for side in canvas_um)
    return height, width


def _registered(
    sources: Sequence[SectionSource],
    table: SectionsTable,
    pixel_um: float | None,
    canvas_um: tuple[float, float] | None,
    canvas_px: tuple[int, int] | None,
    *,
    keep_missing: bool,
) -> Canvas:
    """Every section where the table puts it, in the table's order."""
    pairs = _matched(sources, table, keep_missing=keep_missing)
    native = next(pixel_size_um(source.stains[0].um_to_px) for _, source in pairs if source is not None)
    target = native if pixel_um is None else pixel_um
    given = canvas_px or _whole_pixels(canvas_um, target)
    unit_px = 1 / target if table.canvas_unit == "um" else native / target
    bent = [row.section_id for row, _ in pairs if row.displacement is not None]
    if bent and given is None:
        raise InputError(
            f"{table.path} has displacement fields ({', '.join(bent[:3])}{', ...' if len(bent) > 3 else ''}), which "
            "are spread over the canvas: --canvas-um HEIGHT,WIDTH (or --canvas-px) says how large that is"
        )
    faults, maps = Faults(), []
    for row, source in pairs:
        with faults.catching(table.path, f"section {row.section_id}"):
            maps.append((row, source, _map(row, source, unit_px, target, given)))
    faults.raise_any()
    shape, corner = (given, (0, 0)) if given is not None else _bounds(maps, table)
    notes = []
    if corner != (0, 0):
        notes.append(f"the canvas' corner lies at y {corner[0]}, x {corner[1]} px of {table.path.name}, to hold all")
    placed = []
    for row, source, registration in maps:
        moved = _moved(registration, corner)
        absent = source is None
        own = _empty(row.section_id, sources[0]) if source is None else source
        provenance = own.provenance | {"registration": _record(table, row)} | ({"missing": True} if absent else {})
        own = replace(own, provenance=provenance, z_um=row.z_um if absent else own.z_um)
        placed.append(Placed(own, moved, shape, missing=absent))
    mirrored = [row.section_id for row, source, _ in maps if source is not None and np.linalg.det(row.affine) < 0]
    if mirrored:
        notes.append(f"{table.path.name} mirrors {len(mirrored)} section(s): {_some(mirrored)}")
    absentees = [section.source.name for section in placed if section.missing]
    if absentees:
        notes.append(
            f"{len(absentees)} section(s) of {table.path.name} have no folder and stay empty: {_some(absentees)}"
        )
    return _cut(target, shape, placed, notes)


def _matched(
    sources: Sequence[SectionSource], table: SectionsTable, *, keep_missing: bool
) -> list[tuple[SectionRow, SectionSource | None]]:
    """Rows with their sources in the table's order; a folder's z planes follow each other."""
    folders = [str(source.provenance.get("folder", source.name)) for source in sources]
    rows = table.named([*folders, *(source.name for source in sources)])
    found: dict[str, list[SectionSource]] = {}
    unknown = []
    for source, folder in zip(sources, folders, strict=True):
        name = source.name if source.name in rows else folder
        if name in rows:
            found.setdefault(name, []).append(source)
        else:
            unknown.append(source.name)
    if unknown:
        raise InputError(
            f"{table.path} has no row for {_some(unknown)}; its sections are {_some(list(rows))}: correct section_id "
            "or leave the folders out"
        )
    absent = [name for name in rows if name not in found]
    if absent and not keep_missing:
        raise InputError(
            f"{len(absent)} of {len(rows)} sections of {table.path} have no folder ({_some(absent)}): name their "
            "folders too, take out their rows, or keep them as empty sections with --missing empty"
        )
    pairs: list[tuple[SectionRow, SectionSource | None]] = []
    for name, row in rows.items():
        first = found[name][0].z_um if name in found else 0.0
        here = [replace(source, z_um=row.z_um + source.z_um - first) for source in found.get(name, [])]
        pairs += [(row, source) for source in here] or [(row, None)]
    return pairs


def _map(
    row: SectionRow, source: SectionSource | None, unit_px: float, target: float, given: tuple[int, int] | None
) -> Registration:
    """From the section's um to canvas pixels; checks the scale that the units give, and the displacement."""
    first = np.eye(3) if source is None else source.stains[0].um_to_px
    from_um = first if row.source_unit == "px" else np.eye(3)
    um_to_canvas = scaled(row.affine @ from_um, unit_px)
    if source is not None:
        words = affine_fault(scaled(um_to_canvas, target), same_unit=True)
        if words is not None:
            raise InputError(f"from um to um of the canvas, the affine {words}")
    if row.displacement is None or given is None:
        return Registration(um_to_canvas)
    displacement = DisplacementField(row.displacement, given, unit_px)
    displacement.check()
    return Registration(um_to_canvas, displacement)


def _moved(registration: Registration, corner: tuple[int, int]) -> Registration:
    shift = np.array([[1.0, 0.0, -corner[1]], [0.0, 1.0, -corner[0]], [0.0, 0.0, 1.0]])
    return replace(registration, um_to_canvas=shift @ registration.um_to_canvas) if any(corner) else registration


def _bounds(
    maps: Sequence[tuple[SectionRow, SectionSource | None, Registration]], table: SectionsTable
) -> tuple[tuple[int, int], tuple[int, int]]:
    """(shape, corner) of the smallest canvas that holds every image and, unless some lie beyond it, (0, 0)."""
    corners = [_outline(source.stains[0], registration) for _, source, registration in maps if source is not None]
    spans = []
    for axis in (0, 1):
        values = np.concatenate([corner[axis].ravel() for corner in corners])
        spans.append((min(0, int(np.floor(values.min() + 1e-6))), int(np.ceil(values.max() - 1e-6))))
    (top, bottom), (left, right) = spans
    shape = max(1, bottom - top), max(1, right - left)
    if max(shape) > _LONGEST_PX:
        raise InputError(
            f"by {table.path} the canvas would be {shape[0]:,} x {shape[1]:,} px: check its units, or give the canvas "
            "with --canvas-um"
        )
    return shape, (top, left)


def _outline(image: StainImage, registration: Registration) -> tuple[Reals, Reals]:
    """Canvas positions (y, x) of a grid of points that spans an image."""
    height, width = image.plane.shape
    y, x = np.meshgrid(np.linspace(0, height, _PROBES), np.linspace(0, width, _PROBES), indexing="ij")
    return registration.positions(*Registration(inverted(image.um_to_px)).positions(x, y)[::-1])


def _cut(target: float, shape: tuple[int, int], placed: Sequence[Placed], notes: list[str]) -> Canvas:
    """The canvas, every section's shape cut to it; images that reach beyond are noted, those all outside refused."""
    if max(shape) > _LONGEST_PX:
        raise InputError(f"a canvas of {shape[0]:,} x {shape[1]:,} px is too large: at most {_LONGEST_PX:,} px a side")
    sections = []
    for section in placed:
        if section.missing:
            sections.append(section)
            continue
        y, x = _outline(section.source.stains[0], section.registration)
        if y.max() <= 0 or x.max() <= 0 or y.min() >= shape[0] or x.min() >= shape[1]:
            raise InputError(
                f"section {section.source.name} lies outside the canvas of {shape[0]} x {shape[1]} px, at y "
                f"{y.min():.0f}..{y.max():.0f}, x {x.min():.0f}..{x.max():.0f}: check the units and --canvas-um"
            )
        lost = float(((y < -1) | (y > shape[0] + 1) | (x < -1) | (x > shape[1] + 1)).mean())
        if lost:
            notes.append(
                f"section {section.source.name}: about {lost:.1%} of its image lies beyond the canvas, cut off"
            )
        reach = tuple(
            int(np.clip(np.ceil(values.max() - 1e-6), 1, side)) for values, side in zip((y, x), shape, strict=True)
        )
        sections.append(replace(section, shape=(reach[0], reach[1])))
    return Canvas(target, shape, tuple(sections), tuple(notes))


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f", ... ({len(names)})" if len(names) > 5 else "")


def _record(table: SectionsTable, row: SectionRow) -> dict[str, Any]:
    """What the store says about where a section's map comes from."""
    field_name = {} if row.displacement is None else {"displacement": row.displacement.name}
    return {"table": table.path.name, "section_id": row.section_id, **field_name}


@dataclass(frozen=True)
class _NoPixels:
    """The image of a section that is missing."""

    shape: tuple[int, int] = (1, 1)

    def read(self, box: Box) -> NDArray[Any]:
        return np.zeros((box.height, box.width), np.uint8)


@dataclass(frozen=True)
class _NoTranscripts:
    def __call__(self) -> Iterator[TranscriptBatch]:
        return iter(())


def _empty(name: str, like: SectionSource) -> SectionSource:
    """A section without data, of the stains of another."""
    stains = tuple(StainImage(image.name, _NoPixels(), np.eye(3)) for image in like.stains)
    return SectionSource(name, 0.0, stains, _NoTranscripts(), panel=None, expected_batches=0)
