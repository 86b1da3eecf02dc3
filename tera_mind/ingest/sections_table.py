"""`sections.csv`: the portable registration of a brain, a row a section, from its own coordinates to the canvas.

Columns `section, section_id, z_um, a00, a01, a02, a10, a11, a12, source_unit, canvas_unit` and, if wanted,
`displacement`: x' = a00 x + a01 y + a02 and y' = a10 x + a11 y + a12, from um of the instrument (`um`) or pixels of
the section's image (`px`) to um or pixels of the canvas. A canvas pixel is as large as a pixel of the first section's
image. `displacement` is a path from the table's folder, see `tera_mind.ingest.displacement`.
"""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tera_mind.errors import FormatError, InputError, MissingFileError
from tera_mind.formats.atomic import atomic_file
from tera_mind.ingest.faults import Faults

UNITS = ("um", "px")
_NUMBERS = ("z_um", "a00", "a01", "a02", "a10", "a11", "a12")
COLUMNS = ("section", "section_id", *_NUMBERS, "source_unit", "canvas_unit")
_DISPLACEMENT = "displacement"
#: tissue between a section and its atlas: sides may stretch by so much, and one side against the other by so much
LARGEST_SCALE = 2.0
#: what a pixel can measure in um, as everywhere in ingest
_PIXEL_RANGE_UM = (0.01, 20.0)


@dataclass(frozen=True)
class SectionRow:
    """One section: 3 x 3 affine on (x, y, 1) from `source_unit` to `canvas_unit`, and a path of a displacement."""

    section: str
    section_id: str
    z_um: float
    affine: NDArray[np.float64]
    source_unit: str
    canvas_unit: str
    displacement: Path | None = None


@dataclass(frozen=True)
class SectionsTable:
    """The rows of a `sections.csv`, by ascending z."""

    path: Path
    rows: tuple[SectionRow, ...]

    @property
    def canvas_unit(self) -> str:
        return self.rows[0].canvas_unit

    def named(self, names: Iterable[str]) -> dict[str, SectionRow]:
        """Rows by name: that of `section` if `names` are found there alone, else that of `section_id`."""
        names = set(names)
        by_name, by_id = ({getattr(row, key): row for row in self.rows} for key in ("section", "section_id"))
        return by_name if names & set(by_name) and not names & set(by_id) else by_id

    @staticmethod
    def read(path: Path) -> SectionsTable:
        """Read and check a table. Raises `MissingFileError`, `FormatError`, or for its rows `FaultsError` with all."""
        faults = Faults()
        rows = []
        for line, record in _records(path):
            row = _row(path, line, record, faults)
            if row is not None:
                rows.append((line, row))
        _check_together(path, rows, faults)
        faults.raise_any()
        return SectionsTable(path, tuple(row for _, row in rows))

    def write(self) -> None:
        """Write the table to its path, whole or not at all."""
        with atomic_file(self.path) as partial, partial.open("w", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow([*COLUMNS, _DISPLACEMENT])
            for row in self.rows:
                numbers = [repr(float(value)) for value in (row.z_um, *row.affine[:2].ravel())]
                displacement = "" if row.displacement is None else os.path.relpath(row.displacement, self.path.parent)
                units = [row.source_unit, row.canvas_unit]
                writer.writerow([row.section, row.section_id, *numbers, *units, displacement])


def affine_fault(affine: NDArray[np.float64], *, same_unit: bool) -> str | None:
    """Why no section can lie as an affine says, or None. `same_unit`: from um to um, or pixels to pixels."""
    large, small = np.linalg.svd(affine[:2, :2], compute_uv=False).tolist()
    if small <= 1e-9 * large or not large:
        return "cannot be inverted: it maps the section onto a line"
    if large / small > LARGEST_SCALE:
        return f"stretches one direction {large / small:.3g} times as much as another: no section is sheared like that"
    low, high = (1 / LARGEST_SCALE, LARGEST_SCALE) if same_unit else (_PIXEL_RANGE_UM[0], 1 / _PIXEL_RANGE_UM[0])
    if not (low <= small and large <= high):
        return f"scales by {math.sqrt(large * small):.3g}, expected {low:g} to {high:g}: check source_unit, canvas_unit"
    return None


def _records(path: Path) -> list[tuple[int, dict[str, str]]]:
    """(line of the file, column -> text) of every row that is not empty."""
    if not path.is_file():
        raise MissingFileError(f"expected a table of sections at {path}, nothing is there")
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, strict=True)
            header = [name.strip() for name in next(reader, [])]
            lines = [(reader.line_num, fields) for fields in reader if any(field.strip() for field in fields)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise FormatError(f"{path} cannot be read as CSV ({error})") from None
    missing = [name for name in COLUMNS if name not in header]
    if missing:
        found = ", ".join(filter(None, header)) or "none"
        raise FormatError(f"{path} lacks columns {', '.join(missing)}; it has {found}")
    twice = sorted({name for name in header if header.count(name) > 1 and name in (*COLUMNS, _DISPLACEMENT)})
    if twice:
        raise FormatError(f"{path} has columns {', '.join(twice)} more than once; leave one")
    if not lines:
        raise InputError(f"{path} has no rows, expected one a section")
    return [(line, dict(zip(header, [field.strip() for field in fields], strict=False))) for line, fields in lines]


def _row(path: Path, line: int, record: Mapping[str, str], faults: Faults) -> SectionRow | None:
    """The row, or None where it has faults."""
    before, place = len(faults), f"row {line}"
    missing = [name for name in COLUMNS if name not in record]
    if missing:
        faults.add(path, place, f"ends before column {missing[0]}, expected {len(COLUMNS)} values or more")
        return None
    numbers = {name: _number(record[name]) for name in _NUMBERS}
    for name in (name for name, number in numbers.items() if number is None):
        faults.add(path, f"{place}, column {name}", f"should be a finite number, got {record[name]!r}")
    for name in (name for name in ("section", "section_id") if not record[name]):
        faults.add(path, f"{place}, column {name}", "is empty, every section needs a name")
    for name in (name for name in ("source_unit", "canvas_unit") if record[name] not in UNITS):
        faults.add(path, f"{place}, column {name}", f"should be {' or '.join(UNITS)}, got {record[name]!r}")
    field = record.get(_DISPLACEMENT, "")
    displacement = path.parent / field if field else None
    if displacement is not None and not displacement.exists():
        faults.add(path, f"{place}, column {_DISPLACEMENT}", f"expected a field at {displacement}, nothing is there")
    if len(faults) > before:
        return None
    z_um, *entries = (number for number in numbers.values() if number is not None)
    affine = np.array([*entries, 0.0, 0.0, 1.0]).reshape(3, 3)
    words = affine_fault(affine, same_unit=record["source_unit"] == record["canvas_unit"])
    if words is not None:
        faults.add(path, f"{place}, columns a00 to a12", f"the affine of {record['section_id']!r} {words}")
        return None
    units = record["source_unit"], record["canvas_unit"]
    return SectionRow(record["section"], record["section_id"], z_um, affine, *units, displacement)


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _check_together(path: Path, rows: Sequence[tuple[int, SectionRow]], faults: Faults) -> None:
    """What no row shows alone: names that come twice, sections out of order, canvases in two units."""
    first: dict[tuple[str, str], int] = {}
    for line, row in rows:
        for column, name in (("section", row.section), ("section_id", row.section_id)):
            earlier = first.setdefault((column, name), line)
            if earlier != line:
                faults.add(path, f"row {line}, column {column}", f"{name!r} stands in row {earlier} already")
    for (line, row), (after, following) in pairwise(rows):
        if following.z_um <= row.z_um:
            words = f"{following.z_um:g} does not lie beyond {row.z_um:g} of row {line}: order the rows by z_um"
            faults.add(path, f"row {after}, column z_um", words)
        if following.canvas_unit != row.canvas_unit:
            words = f"{following.canvas_unit} differs from {row.canvas_unit} of row {line}: one canvas has one unit"
            faults.add(path, f"row {after}, column canvas_unit", words)
