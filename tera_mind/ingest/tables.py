"""Tables of transcripts, CSV (also gzipped) or Parquet: checked headers, streamed batches, faults with row ranges.

Rows are counted from 1, the header not among them.
"""

from __future__ import annotations

import csv
import gzip
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from tera_mind.errors import FormatError, MissingFileError
from tera_mind.ingest.faults import Fault, Faults

#: of a CSV that is parsed at once, and of a Parquet file that is decoded at once
BLOCK_BYTES, BATCH_ROWS = 2**24, 2**18
_UNREADABLE = (OSError, pa.ArrowException, UnicodeError, EOFError)
_NUMBER = (  # also what pandas and R write for a missing one
    r"^\s*([+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|[+-]?([nN][aA][nN]|[iI][nN][fF](inity)?)|#N/A|N/A|NA|NULL|null)?\s*$"
)


@dataclass(frozen=True)
class Table:
    """A table whose needed columns are there: made by `Table.open`, streamed by `batches`."""

    path: Path
    numbers: tuple[str, ...]
    texts: tuple[str, ...]
    flags: tuple[str, ...] = ()

    @staticmethod
    def open(
        path: Path,
        numbers: Sequence[str],
        texts: Sequence[str],
        flags: Sequence[str] = (),
        *,
        optional: Sequence[str] = (),
        hint: str = "",
    ) -> Table:
        """Check the header of a table; columns that are `optional` and absent are left out.

        Raises `MissingFileError` or `FormatError`; several faults come as one `FaultsError`.
        """
        if not path.is_file():
            raise MissingFileError(f"expected transcripts at {path}, nothing is there{hint}")
        types = _types(path)
        wanted = [*numbers, *texts, *flags]
        names = [name for name, _ in types]
        missing = [name for name in wanted if name not in names and name not in optional]
        faults = Faults()
        if missing:
            there = ", ".join(filter(None, names)) or "no columns"
            with faults.catching(path):
                raise FormatError(f"{path} lacks columns {', '.join(missing)}; it has {there}")
        for name in (name for name in wanted if name in names):
            expected = "numbers" if name in numbers else "text" if name in texts else "true and false"
            fault = _column_fault(name, [kind for other, kind in types if other == name], expected)
            if fault:
                with faults.catching(path, f"column {name}"):
                    raise FormatError(f"{path}, column {name}: {fault}")
        faults.raise_any()
        kept = (tuple(name for name in kind if name in names) for kind in (numbers, texts, flags))
        return Table(path, *kept)

    def without(self, column: str) -> Table:
        """The same table, one column of numbers left unread: parsing is most of the work."""
        return replace(self, numbers=tuple(name for name in self.numbers if name != column))

    @property
    def columns(self) -> list[str]:
        """Numbers, then texts, then flags."""
        return [*self.numbers, *self.texts, *self.flags]

    @property
    def expected_batches(self) -> int | None:
        """Batches to come; None where only reading tells."""
        if self.path.name.endswith(".gz"):
            return None
        if _is_parquet(self.path):
            with pq.ParquetFile(self.path) as file:
                return max(1, math.ceil(int(file.metadata.num_rows) / BATCH_ROWS))
        return max(1, math.ceil(self.path.stat().st_size / BLOCK_BYTES))

    def batches(self) -> Iterator[tuple[int, Any]]:
        """(number of its first row, Arrow record batch): numbers as they are in Parquet, float64 in a CSV.

        Raises `FormatError` where the file is damaged, `MissingFileError` where it is gone, or is not on this machine.
        """
        row = 1
        try:
            for batch in self._stream():
                yield row, batch
                row += batch.num_rows
        except FileNotFoundError:
            raise MissingFileError(
                f"expected transcripts at {self.path}, nothing is there for the worker that reads it: do all machines "
                "see this path?"
            ) from None
        except _UNREADABLE as error:
            raise FormatError(
                f"{self.path} is damaged or its columns hold other things than they should, at row {row} or later "
                f"({error}); export or copy it again, --check lists every place"
            ) from None

    def faults(self) -> Iterator[Fault]:
        """Every place that `batches` cannot read: slow, for when it failed."""
        yield from self._damaged_row_groups() if _is_parquet(self.path) else self._damaged_lines()

    def _stream(self) -> Iterator[Any]:
        if _is_parquet(self.path):
            with pq.ParquetFile(self.path) as file:
                yield from file.iter_batches(batch_size=BATCH_ROWS, columns=self.columns)
            return
        # few texts, many rows: numbered while they are parsed
        text = pa.dictionary(pa.int32(), pa.string())
        types = dict.fromkeys(self.numbers, pa.float64()) | dict.fromkeys(self.texts, text)
        yield from _csv_batches(self.path, self.columns, types | dict.fromkeys(self.flags, pa.bool_()))

    def _damaged_row_groups(self) -> Iterator[Fault]:
        row = 1
        with pq.ParquetFile(self.path) as file:
            for group in range(file.metadata.num_row_groups):
                last = row + file.metadata.row_group(group).num_rows - 1
                for column in self.columns:
                    try:
                        file.read_row_group(group, columns=[column])
                    except _UNREADABLE as error:
                        place = f"column {column}, rows {row}-{last}"
                        yield Fault(self.path, place, f"cannot be decoded ({error}); copy the file again")
                row = last + 1

    def _damaged_lines(self) -> Iterator[Fault]:
        spans: dict[str, _Span] = {}
        odd: list[Any] = []

        def skip(line: Any) -> str:
            odd.append(line)
            return "skip"

        row = 1
        try:
            for batch in _csv_batches(self.path, self.columns, dict.fromkeys(self.columns, pa.string()), skip):
                for name in self.numbers:
                    column = batch.column(name)
                    wrong = pc.invert(pc.fill_null(pc.match_substring_regex(column, _NUMBER), fill_value=True))
                    for index in pc.indices_nonzero(wrong).to_pylist():
                        spans.setdefault(name, _Span(str(column[index]))).add(row + index)
                row += batch.num_rows
        except _UNREADABLE as error:
            yield Fault(self.path, f"rows from {row}", f"cannot be read as CSV ({error}); export or copy it again")
        for name, span in spans.items():
            words = f"{span.count} values are no numbers, such as {span.example!r}; export the table again"
            yield Fault(self.path, f"column {name}, {span.words}", words)
        if odd:
            first, count = odd[0], f"{len(odd)} lines have" if len(odd) > 1 else "a line has"
            words = f"{count} {first.actual_columns} columns instead of {first.expected_columns}: {first.text[:60]!r}"
            yield Fault(self.path, f"line {first.number}" if first.number else "", f"{words}; is the file cut short?")


class _Span:
    """First, last and number of rows, and the first value."""

    def __init__(self, example: str) -> None:
        self.example, self.first, self.last, self.count = example, 0, 0, 0

    def add(self, row: int) -> None:
        self.first, self.last, self.count = self.first or row, row, self.count + 1

    @property
    def words(self) -> str:
        return f"row {self.first}" if self.first == self.last else f"rows {self.first}-{self.last}"


def _csv_batches(path: Path, columns: list[str], types: dict[str, Any], skip: Any = None) -> Iterator[Any]:
    convert = pacsv.ConvertOptions(include_columns=columns, column_types=types, strings_can_be_null=skip is None)
    delimiter, comments = _dialect(path)
    reading = pacsv.ReadOptions(block_size=BLOCK_BYTES, use_threads=skip is None, skip_rows=comments)
    parsing = pacsv.ParseOptions(delimiter=delimiter, invalid_row_handler=skip)
    with pa.input_stream(str(path), compression="detect") as stream:
        yield from pacsv.open_csv(stream, reading, parsing, convert)


def _text(path: Path) -> Any:
    opened: Any = gzip.open if path.suffix == ".gz" else open
    return opened(path, "rt", newline="", encoding="utf-8-sig")


def _dialect(path: Path) -> tuple[str, int]:
    """Delimiter of a CSV, TSV or semicolon table by its header, and the lines of comment (#) before that."""
    comments = 0
    with _text(path) as file:
        for line in file:
            if not line.startswith("#"):
                return next((mark for mark in ("\t", ",", ";") if mark in line), ","), comments
            comments += 1
    return ",", comments


def _is_parquet(path: Path) -> bool:
    return path.suffix == ".parquet"


def _types(path: Path) -> list[tuple[str, Any]]:
    """Columns and, for Parquet, their types."""
    if _is_parquet(path):
        try:
            return [(field.name, field.type) for field in pq.read_schema(path)]
        except _UNREADABLE as error:
            raise FormatError(f"{path} is no readable Parquet file ({error}); copy it again") from None
    try:
        delimiter, comments = _dialect(path)
        with _text(path) as file:
            return [(name, None) for name in next(csv.reader(islice(file, comments, None), delimiter=delimiter), [])]
    except (OSError, EOFError, ValueError, csv.Error) as error:
        raise FormatError(f"{path} cannot be read as CSV ({error}); copy it again") from None


_KINDS = {
    "numbers": (pa.types.is_integer, pa.types.is_floating),
    "text": (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_large_binary),
    "true and false": (pa.types.is_boolean,),
}


def _column_fault(name: str, kinds: list[Any], expected: str) -> str:
    if len(kinds) > 1:
        return f"it comes {len(kinds)} times; which {name} is meant? Leave one"
    kind = kinds[0]
    if kind is None:  # a CSV's are known when they are read
        return ""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return "" if any(check(kind) for check in _KINDS[expected]) else f"expected {expected}, got {kind}; write it again"
