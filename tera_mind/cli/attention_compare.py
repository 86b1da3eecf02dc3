"""How much of an attention map its expression maps say already, and how alike two brains' attention is."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from tera_mind.errors import FormatError, MissingFileError
from tera_mind.formats.attention_map import ATTENTION, PRODUCT, UNWEIGHTED
from tera_mind.formats.maps import Map
from tera_mind.metrics.bootstrap import Interval, cell_pearson, drawn_sums, limits

#: side in patches of the squares that are resampled as one; sections compared at most; resamples
CELL_PATCHES, SECTIONS, RESAMPLES = 8, 8, 1000


def _cells(shape: tuple[int, int], layer: int) -> NDArray[np.int64]:
    """Number of each patch's square, (row, column); squares of another section have numbers of their own."""
    rows, columns = (-(-size // CELL_PATCHES) for size in shape)
    y, x = np.indices(shape) // CELL_PATCHES
    return np.asarray((layer * rows + y) * columns + x, np.int64)


def _words(found: Interval) -> str:
    if found.value is None:
        return "unknown"
    return f"{found.value:.3f}" + ("" if found.low is None else f" ({found.low:.3f} to {found.high:.3f})")


def restates(attention: Map, section: int, seed: int) -> list[dict[str, Any]]:
    """Correlation over a section's patches of log attention with log expression: of genes, their sum, their product.

    Intervals (95 %) from resampled squares of 8 x 8 patches.
    """
    own = attention.attributes
    genes = tuple(own.details["genes"])
    expression = {gene: attention.plane(gene, section) for gene in genes}
    expression["sum of expression"] = np.sum(list(expression.values()), axis=0)
    expression[PRODUCT] = attention.plane(PRODUCT, section)
    cells = _cells(attention.shape[2:], 0).ravel()
    rows = []
    for channel in (ATTENTION, UNWEIGHTED):
        level = np.log2(attention.plane(channel, section).ravel() * own.details["panel"] + 1).astype(np.float64)
        for name, values in expression.items():
            found = cell_pearson(level, np.log2(values.ravel() + 1).astype(np.float64), cells, RESAMPLES, seed)
            words = f"{channel} and {name}: r {_words(found)}"
            rows.append({"channel": channel, "with": name, **found._asdict(), "words": words})
    return rows


def check_comparable(folder: Path) -> Map:
    """The attention map of an output folder; its partners' table is read too, where there is one.

    Raises `MissingFileError` where there is no map, `FormatError` where either is damaged or something else.
    """
    path = folder / "attention.zarr"
    if not path.exists():
        raise MissingFileError(f"no attention.zarr in {folder}: --compare takes folders that this command wrote")
    other = Map.open(path)
    if not {"genes", "panel"} <= set(other.attributes.details) or ATTENTION not in other.attributes.channels:
        raise FormatError(f"{path} is no map of attention; --compare takes folders that this command wrote")
    if (folder / "partners.npz").is_file():
        _blocks(folder / "partners.npz")
    return other


def compare(attention: Map, folder: Path, seed: int) -> dict[str, Any]:
    """Reproducibility against an earlier output folder: correlation of maps patch by patch, and of partner rankings.

    Maps are compared where both cover the same box in the same patches: the brains must lie on one canvas. Rankings are
    of the genes that both panels have. Raises `MissingFileError` where the folder holds no attention map.
    """
    other = check_comparable(folder)
    found: dict[str, Any] = {"folder": str(folder), "brain": other.attributes.details.get("brain"), "lines": []}
    ours, theirs = attention.attributes, other.attributes
    if set(ours.details["genes"]) != set(theirs.details["genes"]):
        found["maps"], why = None, "another set of genes"
    elif (ours.box, ours.step_px, len(ours.sections)) != (theirs.box, theirs.step_px, len(theirs.sections)):
        found["maps"], why = None, "other boxes, patches or numbers of sections"
    else:
        found["maps"], why = {}, ""
        for channel in (ATTENTION, UNWEIGHTED, PRODUCT):
            interval = _map_correlation(attention, other, channel, seed)
            found["maps"][channel] = interval._asdict()
            found["lines"].append(f"{channel}, patch by patch with {folder.name}: r {_words(interval)}")
    if why:
        found["lines"].append(f"maps are not compared with {folder.name}: {why}")
    ranking = _rankings(attention.path.parent / "partners.npz", folder / "partners.npz", seed)
    if ranking is not None:
        found["partners"] = ranking._asdict()
        found["lines"].append(f"ranking of partners as in {folder.name}: Spearman {_words(ranking)}")
    return found


def _map_correlation(first: Map, second: Map, channel: str, seed: int) -> Interval:
    layers = np.unique(np.linspace(0, first.shape[1] - 1, min(SECTIONS, first.shape[1])).astype(int))
    values = [
        np.concatenate([one.plane(channel, one.attributes.sections[layer]).ravel() for layer in layers])
        for one in (first, second)
    ]
    cells = np.concatenate([_cells(first.shape[2:], place).ravel() for place in range(len(layers))])
    scales = [1 if channel == PRODUCT else one.attributes.details["panel"] for one in (first, second)]
    x, y = (np.log2(part * scale + 1).astype(np.float64) for part, scale in zip(values, scales, strict=True))
    return cell_pearson(x, y, cells, RESAMPLES, seed)


def _rankings(first: Path, second: Path, seed: int) -> Interval | None:
    """Spearman correlation of the mean attention that a gene pays to others, with blocks of both brains resampled."""
    if not (first.is_file() and second.is_file()):
        return None
    tables = [_blocks(path) for path in (first, second)]
    if tables[0][0] != tables[1][0]:
        return None
    gene = tables[0][0]
    common = [name for name in tables[0][1] if name != gene and name in set(tables[1][1])]
    if len(common) < 3:
        return Interval(None, None, None, len(common))
    sides = [
        np.concatenate([rows[:, [panel.index(name) for name in common]], weight[:, None]], axis=1)
        for _, panel, rows, weight in tables
    ]
    value = float(_spearman(*(side.sum(axis=0)[None] for side in sides))[0])
    if min(len(side) for side in sides) < 2:
        return Interval(value, None, None, len(common))
    # brains are independent, so are their draws
    drawn = [np.concatenate(list(drawn_sums(side, RESAMPLES, seed + k))) for k, side in enumerate(sides)]
    return Interval(value, *limits(_spearman(*drawn)), len(common))


def _blocks(path: Path) -> tuple[str, list[str], NDArray[np.float64], NDArray[np.float64]]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return str(file["gene"]), file["panel"].tolist(), file["block_row"], file["block_weight"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise FormatError(f"{path} cannot be read ({error}); run the command for that brain again") from None


def _spearman(first: NDArray[np.float64], second: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rank correlation by rows of (draw, gene sums and weight)."""
    with np.errstate(invalid="ignore", divide="ignore"):
        ranks = [stats.rankdata(side[:, :-1] / side[:, -1:], axis=1) for side in (first, second)]
        x, y = (rank - rank.mean(axis=1, keepdims=True) for rank in ranks)
        return np.asarray((x * y).sum(1) / np.sqrt((x**2).sum(1) * (y**2).sum(1)), np.float64)
