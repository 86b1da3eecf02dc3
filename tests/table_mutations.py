"""Damage for tables of transcripts: columns and rows of a CSV or Parquet file, and the lines of a CSV."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

Random = np.random.Generator
Mutator = Callable[[Path, Random], None]

# tables


def read_table(path: Path) -> pd.DataFrame:
    return pd.read_parquet(path) if path.suffix.lower() == ".parquet" else pd.read_csv(path)


def write_table(frame: pd.DataFrame, path: Path) -> None:
    if path.suffix != ".parquet":
        frame.to_csv(path, index=False)
        return
    mixed = frame.columns.duplicated().any()
    if mixed:  # pandas refuses to write what other software writes
        arrays = [pa.array(frame.iloc[:, index]) for index in range(frame.shape[1])]
        pq.write_table(pa.Table.from_arrays(arrays, names=[str(name) for name in frame.columns]), path)
    else:
        frame.to_parquet(path, index=False)


def on_table(change: Callable[[pd.DataFrame, Random], pd.DataFrame]) -> Mutator:
    def mutator(path: Path, rng: Random) -> None:
        write_table(change(read_table(path), rng), path)

    mutator.__name__ = change.__name__
    return mutator


def some_column(frame: pd.DataFrame, rng: Random, kind: str = "") -> str:
    numeric = [name for name in frame.columns if pd.api.types.is_numeric_dtype(frame[name])]
    names = {"": list(frame.columns), "number": numeric, "text": [n for n in frame.columns if n not in numeric]}[kind]
    names = names or list(frame.columns)
    return str(names[int(rng.integers(len(names)))])


def with_values(frame: pd.DataFrame, column: str, rows: np.ndarray, value: Any) -> pd.DataFrame:
    values = frame[column].astype(object).to_numpy(copy=True)
    values[rows] = value
    series = pd.Series(list(values))
    return frame.assign(**{column: series.infer_objects() if not isinstance(value, str) else series.astype(str)})


def some_rows(frame: pd.DataFrame, rng: Random) -> np.ndarray:
    start = int(rng.integers(0, max(1, len(frame))))
    return np.arange(start, min(len(frame), start + int(rng.integers(1, 30))))


def drop_column(frame, rng):
    return frame.drop(columns=some_column(frame, rng))


def rename_column(frame, rng):
    return frame.rename(columns={some_column(frame, rng): "renamed"})


def duplicate_column(frame, rng):
    name = some_column(frame, rng)
    return pd.concat([frame, frame[[name]]], axis=1)


def swap_columns(frame, rng):
    one, two = some_column(frame, rng, "number"), some_column(frame, rng, "text")
    return frame.rename(columns={one: two, two: one})


def swap_numbers(frame, rng):
    one, two = some_column(frame, rng, "number"), some_column(frame, rng, "number")
    return frame.rename(columns={one: two, two: one})


def reorder_columns(frame, rng):
    return frame[[str(name) for name in rng.permutation(frame.columns)]]


def text_for_numbers(frame, rng):
    return with_values(frame, some_column(frame, rng, "number"), some_rows(frame, rng), "abc")


def text_column(frame, rng):
    return with_values(frame, some_column(frame, rng, "number"), np.arange(len(frame)), "x1")


def number_column(frame, rng):
    return frame.assign(**{some_column(frame, rng, "text"): 3})


def not_a_number(frame, rng):
    return with_values(frame, some_column(frame, rng, "number"), some_rows(frame, rng), np.nan)


def all_not_a_number(frame, rng):
    return frame.assign(**{some_column(frame, rng, "number"): np.nan})


def infinite(frame, rng):
    return with_values(frame, some_column(frame, rng, "number"), some_rows(frame, rng), np.inf)


def minus_infinite(frame, rng):
    return with_values(frame, some_column(frame, rng, "number"), some_rows(frame, rng), -np.inf)


def negative(frame, rng):
    name = some_column(frame, rng, "number")
    return frame.assign(**{name: -frame[name]})


def negative_rows(frame, rng):
    return with_values(frame, some_column(frame, rng, "number"), some_rows(frame, rng), -12.5)


def huge(frame, rng):
    return with_values(
        frame, some_column(frame, rng, "number"), some_rows(frame, rng), float(rng.choice([1e12, 1e300]))
    )


def all_huge(frame, rng):
    return frame.assign(**{some_column(frame, rng, "number"): 1e18})


def long_integers(frame, rng):
    return frame.assign(**{some_column(frame, rng, "number"): 2**62})


def null_texts(frame, rng):
    return with_values(frame, some_column(frame, rng, "text"), some_rows(frame, rng), None)


def all_null_texts(frame, rng):
    return frame.assign(**{some_column(frame, rng, "text"): None})


def blank_texts(frame, rng):
    return with_values(frame, some_column(frame, rng, "text"), some_rows(frame, rng), "  ")


def odd_texts(frame, rng):
    odd = str(rng.choice(["naïve ☃", 'a "quoted", name', "two\nlines", "x" * 5000, "../../up", "nan"]))
    return with_values(frame, some_column(frame, rng, "text"), some_rows(frame, rng), odd)


def new_names(frame, rng):
    name = some_column(frame, rng, "text")
    return frame.assign(**{name: [f"new{index}" for index in range(len(frame))]})


def no_rows(frame, _rng):
    return frame.iloc[:0]


def one_row(frame, _rng):
    return frame.iloc[:1]


def repeated_rows(frame, rng):
    return pd.concat([frame, frame.iloc[some_rows(frame, rng)]])


def shuffled_rows(frame, rng):
    return frame.iloc[rng.permutation(len(frame))]


TABLE = tuple(
    on_table(change)
    for change in (
        drop_column, rename_column, duplicate_column, swap_columns, swap_numbers, reorder_columns, text_for_numbers,
        text_column, number_column, not_a_number, all_not_a_number, infinite, minus_infinite, negative, negative_rows,
        huge, all_huge, long_integers, null_texts, all_null_texts, blank_texts, odd_texts, new_names, no_rows, one_row,
        repeated_rows, shuffled_rows,
    )
)  # fmt: skip

# lines of a CSV


def extra_field(path: Path, rng: Random) -> None:
    lines = path.read_text().splitlines()
    at = int(rng.integers(len(lines)))
    lines[at] += ",7"
    path.write_text("\n".join(lines))


def missing_field(path: Path, rng: Random) -> None:
    lines = path.read_text().splitlines()
    at = int(rng.integers(len(lines)))
    lines[at] = lines[at].rpartition(",")[0]
    path.write_text("\n".join(lines))


def other_separator(path: Path, _rng: Random) -> None:
    path.write_text(path.read_text().replace(",", ";"))


def decimal_commas(path: Path, _rng: Random) -> None:
    path.write_text(path.read_text().replace(".", ","))


def no_header(path: Path, _rng: Random) -> None:
    path.write_text("\n".join(path.read_text().splitlines()[1:]))


def blank_lines(path: Path, _rng: Random) -> None:
    path.write_text(path.read_text().replace("\n", "\n\n"))


def windows_lines(path: Path, _rng: Random) -> None:
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))


def byte_order_mark(path: Path, _rng: Random) -> None:
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())


def other_encoding(path: Path, _rng: Random) -> None:
    path.write_bytes(path.read_text().encode("utf-16"))


LINES = (
    extra_field, missing_field, other_separator, decimal_commas, no_header, blank_lines, windows_lines,
    byte_order_mark, other_encoding,
)  # fmt: skip
