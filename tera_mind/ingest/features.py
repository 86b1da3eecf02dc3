"""What readers share: names of features and which are no genes, and a check of units."""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from tera_mind.errors import InputError

_NEGATIVE, _BLANK, _UNASSIGNED = "negative control", "blank codeword", "unassigned codeword"
_SYSTEM, _SPIKE, _NAMELESS = "system control", "spike-in control", "no gene name"

#: features that are no genes: vendor -> (pattern of the beginning, without regard to case; reason they are counted
#: under). The patterns spare the genes that begin alike (Negr1, Ercc1), so all of them hold for every vendor.
NO_GENE: dict[str, tuple[tuple[str, str], ...]] = {
    "Vizgen MERSCOPE": ((r"blank", _BLANK),),
    "10x Xenium": (
        (r"negcontrol|antisense|intergenic|genomic[ _]?control", _NEGATIVE),
        (r"unassigned|deprecated", _UNASSIGNED),
    ),
    "NanoString CosMx": (
        (r"negative[-_ ]?\d|negative$|negprb|negprobe|negctrl", _NEGATIVE),
        (r"falsecode", _BLANK),
        (r"system ?control|sysctrl", _SYSTEM),
    ),
    "sequencing": ((r"ercc-\d{5}", _SPIKE), (r"(nan|null|none)$|$", _NAMELESS)),
}
_RULES = tuple((re.compile(pattern), reason) for rules in NO_GENE.values() for pattern, reason in rules)
_PIXEL_RANGE_UM = (0.01, 20.0)


def check_pixel_um(pixel_um: float, path: Path) -> float:
    """A pixel size that a microscope can have; anything else is a matter of units."""
    low, high = _PIXEL_RANGE_UM
    if not low <= pixel_um <= high:
        raise InputError(
            f"{path} gives a pixel of {pixel_um:g} um, expected {low:g} to {high:g}: are its units microns?"
        )
    return pixel_um


def scale_matrix(
    x_um: float, y_um: float, path: Path, corner_um: tuple[float, float] = (0.0, 0.0)
) -> NDArray[np.float64]:
    """3 x 3 from microns to pixels, for pixels of a size, the image's corner at (x, y). Raises as `check_pixel_um`."""
    for size_um in (x_um, y_um):
        check_pixel_um(size_um, path)
    if not np.isfinite(corner_um).all():
        raise InputError(f"{path} gives its corner as {corner_um} um, expected finite numbers; correct its metadata")
    return np.array([[1 / x_um, 0, -corner_um[0] / x_um], [0, 1 / y_um, -corner_um[1] / y_um], [0, 0, 1.0]])


@lru_cache(maxsize=2**17)  # a stream asks for the same names with every batch
def no_gene_reason(name: str) -> str | None:
    """Why a feature is no gene, or None for a gene."""
    lowered = name.strip().lower()
    return next((reason for pattern, reason in _RULES if pattern.match(lowered)), None)


def encode_names(column: Any) -> tuple[NDArray[np.int32], list[str]]:
    """Text, bytes or dictionary column -> int32 codes and the names they stand for, "" where there is none."""
    if isinstance(column, pa.ChunkedArray):
        column = column.unify_dictionaries().combine_chunks()
    if not pa.types.is_dictionary(column.type):
        column = column.dictionary_encode()
    names = column.dictionary.cast(pa.string()).to_pylist()  # old bundles hold bytes
    codes = column.indices
    if codes.null_count:
        codes = pc.fill_null(codes.cast(pa.int32()), len(names))
        names.append(None)
    return np.asarray(codes, np.int32), [name or "" for name in names]
