"""Panels of genes chosen by name: those of a data set, of a file, or a list."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tera_mind.errors import FormatError, InputError, MissingFileError, PanelMismatchError


def read_panel(path: str | Path) -> list[str]:
    """Genes of a text file with one name a line; empty lines and what follows a `#` are left out.

    Raises `MissingFileError` or `FormatError`.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (FileNotFoundError, IsADirectoryError):
        raise MissingFileError(
            f"expected a panel of genes in {path}, no file is there; "
            "give `shared`, a list, or a file with one name a line"
        ) from None
    except UnicodeDecodeError:
        raise FormatError(f"{path} is no text file; a panel has one gene name a line") from None
    return [name for line in lines if (name := line.split("#")[0].strip())]


def choose_panel(genes: str | Sequence[str], have: Sequence[str]) -> list[str]:
    """The panel that `genes` names - `shared`: all of `have`; a file; a list - checked against `have`.

    Raises `PanelMismatchError` for genes that are not there, `InputError` for an empty panel and for repeated names.
    """
    if genes == "shared":
        return list(have)
    want = read_panel(genes) if isinstance(genes, str) else list(genes)
    missing = [gene for gene in want if gene not in set(have)]
    if missing:
        raise PanelMismatchError(
            f"shards lack {len(missing)} of the {len(want)} genes asked for: {', '.join(missing[:10])}"
            f"{', ...' if len(missing) > 10 else ''}; leave them out, or write shards of brains that have them"
        )
    if not want or len(set(want)) != len(want):
        raise InputError("the panel should name at least one gene and none twice")
    return want


def panel_map(have: Sequence[str], panel: Sequence[str]) -> NDArray[np.int32] | None:
    """Index in the panel of every gene of `have`, -1 for those left out; None where the two are the same."""
    if list(have) == list(panel):
        return None
    index = {gene: number for number, gene in enumerate(panel)}
    return np.array([index.get(gene, -1) for gene in have], np.int32)
