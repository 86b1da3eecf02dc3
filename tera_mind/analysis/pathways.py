"""Named gene sets, shipped and the user's own, and finding genes in a panel."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import yaml
from numpy.typing import NDArray

from tera_mind.analysis.strict_yaml import read_yaml
from tera_mind.errors import FormatError, InputError, MissingFileError, PanelMismatchError

#: the published pathways
SHIPPED = Path(__file__).with_name("pathways.yaml")
_NEAREST = 3


def read_pathways(path: Path = SHIPPED) -> dict[str, tuple[str, ...]]:
    """Gene sets of a YAML file, name -> genes: `GLUT: [Slc17a6, Slc17a7]`.

    Raises `MissingFileError`, or `FormatError` where the file is not a table of lists of gene names.
    """
    try:
        content = read_yaml(path)
    except (FileNotFoundError, IsADirectoryError):
        raise MissingFileError(f"expected a YAML file of gene sets at {path}, no file is there") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        words = " ".join(str(error).split())
        raise FormatError(f"{path} cannot be read as YAML ({words}); write `NAME: [GENE, GENE]`") from None
    if not isinstance(content, dict) or not content:
        raise FormatError(f"{path} should map names to lists of genes (`GLUT: [Slc17a6, Slc17a7]`) and does not")
    for name, genes in content.items():
        if not isinstance(name, str) or not isinstance(genes, list) or not all(isinstance(g, str) for g in genes):
            raise FormatError(f"{path}: {name!r} should be a name with a list of gene names, got {genes!r}")
    return {name: tuple(genes) for name, genes in content.items()}


def choose_pathway(name: str, pathways: dict[str, tuple[str, ...]]) -> tuple[str, ...]:
    """The genes of a named set. Raises `InputError` that lists the names there are."""
    if name not in pathways:
        raise InputError(f"no pathway {name!r}; there are {', '.join(pathways)}; give a file of your own for others")
    return pathways[name]


def gene_positions(genes: Sequence[str], panel: Sequence[str]) -> NDArray[np.int64]:
    """Position of every gene in a panel.

    Raises `PanelMismatchError` that says which are missing and names the nearest of the panel, `InputError` where a
    gene is named twice.
    """
    if len(set(genes)) != len(genes):
        raise InputError(f"every gene of a set is named once, got {', '.join(genes)}")
    position = {gene: number for number, gene in enumerate(panel)}
    missing = [gene for gene in genes if gene not in position]
    if missing:
        words = "; ".join(f"{gene} (nearest: {', '.join(nearest(gene, panel)) or 'none'})" for gene in missing)
        raise PanelMismatchError(f"the checkpoint's panel of {len(panel)} genes lacks {words}")
    return np.array([position[gene] for gene in genes], np.int64)


def nearest(gene: str, panel: Sequence[str]) -> list[str]:
    """At most three names of a panel that are spelled like a gene, whatever their case, the nearest first."""
    lower: dict[str, str] = {}
    for name in panel:
        lower.setdefault(name.lower(), name)
    return [lower[name] for name in difflib.get_close_matches(gene.lower(), list(lower), n=_NEAREST, cutoff=0.5)]


def panel_positions(
    have: Sequence[str], panel: Sequence[str], chosen: Sequence[str], *, allow_missing: bool
) -> NDArray[np.int64]:
    """Position in a brain's genes of every gene of a checkpoint's panel, -1 where the brain lacks it.

    Raises `PanelMismatchError` where genes are missing that may not be: any, or with `allow_missing` those `chosen`.
    """
    position = {gene: number for number, gene in enumerate(have)}
    needed = set(chosen) if allow_missing else set(panel)
    missing = [gene for gene in panel if gene in needed and gene not in position]
    if missing:
        shown = ", ".join(missing[:8]) + (f" and {len(missing) - 8} more" if len(missing) > 8 else "")
        remedy = "choose other genes" if allow_missing else "--allow-missing-genes takes genes outside the set as zero"
        raise PanelMismatchError(f"the brain lacks {len(missing)} of the genes that are needed: {shown}; {remedy}")
    return np.array([position.get(gene, -1) for gene in panel], np.int64)
