"""ABBA's registration of sections to an atlas, as a `sections.csv`.

ABBA (Aligning Big Brains and Atlases) writes an `ABBA-Transform-<atlas>.json` into the folder of every section: an
`InvertibleRealTransformSequence` from the atlas (mm, x y z) to pixels of the section's image, whose affines are 12
numbers (3 x 4, row by row). The first is applied first. A pixel's centre has whole numbers there, here it has halves.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tera_mind.errors import FormatError, InputError, MissingFileError
from tera_mind.ingest.faults import Faults
from tera_mind.ingest.sections_table import SectionRow, SectionsTable, affine_fault

Reals = NDArray[np.float64]
_PREFIX = "ABBA-Transform-"
_SEQUENCES = ("InvertibleRealTransformSequence", "RealTransformSequence")
#: transforms that hold another one, and under which key
_WRAPPERS = {
    "Wrapped2DTransformAs3D": "wrappedTransform",
    "InvertibleWrapped2DTransformAs3D": "wrappedTransform",
    "WrappedIterativeInvertibleRealTransform": "wrappedTransform",
    "BoundedRealTransform": "realTransform",
}
_UM_A_MM = 1000.0


@dataclass(frozen=True)
class AbbaSections:
    """The table of an ABBA export, and the axes (0, 1, 2) of the atlas that became the canvas' x, y and z."""

    table: SectionsTable
    axes: tuple[int, int, int]


def import_abba(
    folder: Path, out: Path, *, atlas: str | None = None, displacements: Path | None = None
) -> AbbaSections:
    """Read every transform below a folder; the canvas is the atlas in um, seen along the axis the sections follow.

    folder: a QuPath project, or a folder with one folder a section; out: where the table is to be written (it is not
    written here). atlas: which atlas' transforms, if there are those of several. displacements: a folder of fields
    named `<section>.npy` (.zarr, .tif), one for each section whose transform holds a spline; the affine is then what
    is left of the transform without the spline, and the field what the spline adds. Raises `MissingFileError`, or
    `FaultsError` with every fault.
    """
    faults = Faults()
    names, origins, spans = [], [], []
    fields: list[Path | None] = []
    for name, path in _transforms(folder, atlas):
        with faults.catching(path):
            to_pixels, splines = _read(path)
            field = _field(name, displacements) if splines else None
            if splines and field is None:
                raise InputError(
                    f"{path} holds {splines} spline(s), which no affine can stand for: export the deformation as a "
                    f"field named {name}.npy into a folder and pass it with --displacements, or register with affines"
                )
            origin, span = _from_pixels(to_pixels, path)
            names.append(name)
            origins.append(origin)
            spans.append(span)
            fields.append(field)
    faults.raise_any()
    axes = _axes(spans)
    rows = []
    for name, origin, span, field in zip(names, origins, spans, fields, strict=True):
        with faults.catching(folder, f"section {name}"):
            rows.append((name, *_flatten(origin, span, axes), field))
    faults.raise_any()
    rows.sort(key=lambda row: row[1])
    table = SectionsTable(
        out,
        tuple(
            SectionRow(str(index), name, z_um, affine, "px", "um", field)
            for index, (name, z_um, affine, field) in enumerate(rows)
        ),
    )
    for before, after in zip(table.rows, table.rows[1:], strict=False):
        if after.z_um - before.z_um < 1e-3:
            faults.add(folder, f"sections {before.section_id} and {after.section_id}", "lie at the same place in z")
    faults.raise_any()
    return AbbaSections(table, axes)


def _transforms(folder: Path, atlas: str | None) -> Iterator[tuple[str, Path]]:
    """(section, file) of every transform below a folder."""
    if not folder.is_dir():
        raise MissingFileError(f"expected a folder with ABBA's transforms at {folder}, nothing is there")
    paths = sorted(folder.rglob(f"{_PREFIX}*.json"))
    atlases = sorted({path.stem.removeprefix(_PREFIX) for path in paths})
    if not paths:
        raise MissingFileError(
            f"expected files named {_PREFIX}ATLAS.json below {folder}, found none: export the registrations in ABBA"
        )
    if atlas is None and len(atlases) > 1:
        raise InputError(f"{folder} holds transforms of atlases {', '.join(atlases)}: choose one with --atlas")
    if atlas is not None and atlas not in atlases:
        raise InputError(f"{folder} holds transforms of {', '.join(atlases)}, not of {atlas}")
    titles = _qupath_names(folder / "project.qpproj")
    taken: dict[str, Path] = {}
    for path in paths:
        if atlas is not None and path.stem != _PREFIX + atlas:
            continue
        name = titles.get(path.parent.name, path.parent.name)
        if name in taken:
            raise InputError(f"{path} and {taken[name]} are both of section {name!r}: give one another name")
        taken[name] = path
        yield name, path


def _qupath_names(project: Path) -> dict[str, str]:
    """Folder of an entry -> name of its image, of a QuPath project; none where there is no project."""
    if not project.is_file():
        return {}
    record = _json(project)
    try:
        return {str(image["entryID"]): str(image["imageName"]) for image in record["images"]}
    except (KeyError, TypeError) as error:
        raise FormatError(
            f"{project} is no QuPath project ({error!r}), expected images with entryID, imageName"
        ) from None


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FormatError(f"{path} cannot be read as JSON ({error}); export it again") from None


def _read(path: Path) -> tuple[Reals, int]:
    """4 x 4 from mm of the atlas to pixels of the image, and how many splines were left out of it."""
    record = _json(path)
    try:
        matrix, splines = np.eye(4), 0
        for transform in _parts(record):
            if transform.get("type") == "ThinplateSplineTransform" or "srcPts" in transform:
                splines += 1
                continue
            matrix = _affine(transform) @ matrix
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        words = str(error) if isinstance(error, FormatError) else repr(error)
        raise FormatError(f"{path} is no transform as ABBA writes it ({words}); export it again") from None
    return matrix, splines


def _parts(transform: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The simple transforms of a sequence, unwrapped, the one that is applied first at first."""
    kind = transform.get("type")
    if kind in _SEQUENCES:
        for index in range(int(transform["size"])):
            yield from _parts(transform[f"realTransform_{index}"])
    elif kind in _WRAPPERS:
        yield from _parts(transform[_WRAPPERS[kind]])
    else:
        yield transform


def _affine(transform: Mapping[str, Any]) -> Reals:
    if "affinetransform3d" not in transform:
        raise FormatError(f"transform of unknown type {transform.get('type')!r}, expected affines and splines")
    numbers = np.array(transform["affinetransform3d"], np.float64)
    if numbers.shape != (12,) or not np.isfinite(numbers).all():
        raise FormatError(f"an affine should be 12 finite numbers, got {numbers.shape}")
    return np.vstack([numbers.reshape(3, 4), [0.0, 0.0, 0.0, 1.0]])


def _from_pixels(to_pixels: Reals, path: Path) -> tuple[Reals, Reals]:
    """Where the image's corner lies in the atlas (um), and what a pixel along x and along y adds: (3), (3, 2)."""
    scale = np.abs(to_pixels[:3, :3]).max()
    if not scale > 0 or abs(np.linalg.det(to_pixels[:3, :3] / scale)) < 1e-12:
        raise InputError(f"{path} cannot be inverted: its affines map the atlas onto a plane; register it again")
    inverse = np.asarray(np.linalg.inv(to_pixels), np.float64)
    corner = inverse @ [-0.5, -0.5, 0.0, 1.0]
    return _UM_A_MM * corner[:3], np.asarray(_UM_A_MM * inverse[:3, :2], np.float64)


def _axes(spans: Sequence[Reals]) -> tuple[int, int, int]:
    """Axes of the atlas that are x and y of the canvas and z of the sections: those the images lie along most."""
    normals = np.abs([np.cross(span[:, 0], span[:, 1]) / np.linalg.norm(span) ** 2 for span in spans]).sum(axis=0)
    z = int(np.argmax(normals))
    one, two = (axis for axis in range(3) if axis != z)
    along = np.abs([span / np.linalg.norm(span) for span in spans]).sum(axis=0)  # (axis, pixel x or y)
    x, y = (one, two) if along[one, 0] + along[two, 1] >= along[two, 0] + along[one, 1] else (two, one)
    return x, y, z


def _flatten(origin: Reals, span: Reals, axes: tuple[int, int, int]) -> tuple[float, Reals]:
    """(z_um, 3 x 3 from pixels to um); an oblique section's z is that of its plane at the canvas' corner."""
    x, y, z = axes
    affine = np.array([[*span[x], origin[x]], [*span[y], origin[y]], [0.0, 0.0, 1.0]])
    words = affine_fault(affine, same_unit=False)
    if words is not None:
        raise InputError(f"the affine from pixels to um of the atlas {words}; is the atlas in mm?")
    to_corner = -np.linalg.solve(affine[:2, :2], affine[:2, 2])
    return float(origin[z] + span[z] @ to_corner), affine


def _field(name: str, folder: Path | None) -> Path | None:
    if folder is None:
        return None
    return next(
        (folder / f"{name}{end}" for end in (".npy", ".zarr", ".tif") if (folder / f"{name}{end}").exists()), None
    )
