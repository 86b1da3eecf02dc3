"""JSON records beside the data."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tera_mind.errors import FormatError, TeraMindError


def read_record(path: Path, complaint: str) -> dict[str, Any]:
    """A JSON object. Raises `FormatError`: the file and the `complaint`, which says what was expected."""
    with understanding(path, complaint):
        record = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(record, dict):
        raise FormatError(f"{path} {complaint} (it holds {type(record).__name__}, not an object)")
    return record


@contextmanager
def understanding(path: Path, complaint: str) -> Iterator[None]:
    """Turn what comes of a record whose parts are missing or of other types into a `FormatError`."""
    try:
        yield
    except TeraMindError:
        raise
    except KeyError as error:
        raise FormatError(f"{path} {complaint} (it has no {error})") from None
    except (OSError, ValueError, TypeError, IndexError, AttributeError, OverflowError, RecursionError) as error:
        raise FormatError(f"{path} {complaint} ({error})") from None
