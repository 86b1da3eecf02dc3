"""Small tables beside the data - positions, names, headers - read whole."""

from __future__ import annotations

import csv
import gzip
from itertools import islice
from pathlib import Path

from tera_mind.errors import FormatError, MissingFileError


def read_rows(path: Path, what: str, limit: int | None = None) -> list[list[str]]:
    """Rows, without empty ones, of a CSV or, where the first line has a tab, TSV; gzipped by its suffix.

    `limit`: only the first lines. Raises `MissingFileError` or `FormatError`; `what` names the table in their words.
    """
    if not path.is_file():
        raise MissingFileError(f"expected {what} at {path}, nothing is there")
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            lines = [
                line.decode("utf-8-sig" if not number else "utf-8") for number, line in enumerate(islice(file, limit))
            ]
        rows = csv.reader(lines, delimiter="\t" if lines and "\t" in lines[0] else ",")
        return [row for row in rows if row]
    except (OSError, EOFError, UnicodeDecodeError, csv.Error) as error:
        raise FormatError(f"{path} cannot be read as {what} ({error}); copy it again") from None
