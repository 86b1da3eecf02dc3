"""What readers share: names of features and which are no genes, and a check of units."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from tera_mind.errors import InputError

#: features that are no genes, by prefix, and the reason they are counted under
_NO_GENE = (
    ("negcontrol", "negative control"),
    ("antisense", "negative control"),
    ("intergenic", "negative control"),
    ("blank", "blank codeword"),
    ("unassigned", "unassigned codeword"),
    ("deprecated", "unassigned codeword"),
)
_PIXEL_RANGE_UM = (0.01, 20.0)


def check_pixel_um(pixel_um: float, path: Path) -> float:
    """A pixel size that a microscope can have; anything else is a matter of units."""
    low, high = _PIXEL_RANGE_UM
    if not low <= pixel_um <= high:
        raise InputError(
            f"{path} gives a pixel of {pixel_um:g} um, expected {low:g} to {high:g}: are its units microns?"
        )
    return pixel_um


def no_gene_reason(name: str) -> str | None:
    """Why a feature is no gene, or None for a gene."""
    lowered = name.lower()
    return next((reason for prefix, reason in _NO_GENE if lowered.startswith(prefix)), None)


def encode_names(column: Any) -> tuple[NDArray[np.int32], list[str]]:
    """Text, bytes or dictionary column -> int32 codes and the names they stand for."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if not pa.types.is_string(column.type):
        column = column.cast(pa.string())  # old bundles hold bytes
    encoded = pc.fill_null(column, "").dictionary_encode()
    if isinstance(encoded, pa.ChunkedArray):
        encoded = encoded.combine_chunks()
    return np.asarray(encoded.indices, np.int32), list(encoded.dictionary.to_pylist())
