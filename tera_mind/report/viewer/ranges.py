"""HTTP byte ranges (RFC 9110, section 14): which bytes of a file a `Range` header asks for."""

from __future__ import annotations

import re


class UnsatisfiableError(Exception):
    """The range lies wholly beyond the file: answer 416."""


def byte_range(header: str | None, size: int) -> tuple[int, int] | None:
    """First byte and one past the last, or None for the whole file.

    One range is served. Several at once, another unit, or words that are no range are ignored, as the RFC allows.
    Raises `UnsatisfiableError` when no byte of the file is meant.
    """
    match = re.fullmatch(r"bytes\s*=\s*([0-9]{0,18})-([0-9]{0,18})\s*", header or "", re.IGNORECASE | re.ASCII)
    if match is None or not any(match.groups()):
        return None
    first, last = match.groups()
    if not first:  # the last so many bytes
        length = int(last)
        if length == 0 or size == 0:
            raise UnsatisfiableError
        return max(0, size - length), size
    if last and int(last) < int(first):
        return None
    if int(first) >= size:
        raise UnsatisfiableError
    return int(first), min(size, int(last) + 1) if last else size
