"""What a generated volume has to beat: the mean image, and a ridge regression from genes to blurred stain.

Both see only the training region. The regression is linear in log1p of binned counts of a bin and its 8 neighbours,
after the panel is reduced to its leading principal components; its penalty is chosen on held-out blocks of training
bins. All sums are accumulated tile by tile, so memory does not grow with the region. Counts stay sparse, so that it
grows with the transcripts of a tile and not with the genes; only for the components of a large panel are the tables of
several tiles held at once, `MAX_ENTRIES` at the most.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, UInt8
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse.linalg import LinearOperator, eigsh

from tera_mind.errors import InputError
from tera_mind.formats.brain import Brain
from tera_mind.geometry import Box
from tera_mind.metrics.fidelity import blur

#: side of a bin in microns: about half a nucleus
BIN_UM = 3.4
#: most principal components of the panel
MAX_COMPONENTS = 96
#: panels up to here have a table of genes by genes, of 8 MB at the most
FEW_GENES = 1024
#: most nonzero counts that the components of a larger panel are taken from, of 16 bytes each
MAX_ENTRIES = 2**25
#: bins along a tile that is read at once
TILE_BINS = 64
#: most tiles that are read for a fit: 1.6 million bins leave no doubt about a few hundred weights
MAX_TILES = 400
#: bins along a block of the held-out pattern; every fifth block is held out
BLOCK_BINS = 16
PENALTIES = tuple(10.0**power for power in range(-4, 3))
#: side of a cell of the brain's tissue mask
_TISSUE_PX = 64

Bins = Float[np.ndarray, "bin feature"]
#: scipy sparse (bin, gene)
Levels = sparse.csr_array


@dataclass(frozen=True)
class Ridge:
    """A fitted regression: `axes` (gene, component), `weights` (9 * component + 1, stain), the last row constant."""

    bin_px: int
    axes: Float[np.ndarray, "gene component"]
    weights: Float[np.ndarray, "feature stain"]
    #: chosen penalty, relative to the mean variance of a feature
    penalty: float
    #: share of the held-out variance explained, a stain
    held_out_r2: tuple[float, ...]
    bins: int


def neighbourhood(layers: Float[np.ndarray, "component y x"]) -> Bins:
    """Features of the inner bins: 3 x 3 neighbours of every layer and a constant, (bin, 9 * component + 1)."""
    _, height, width = layers.shape
    parts = [layers[:, y : y + height - 2, x : x + width - 2] for y in range(3) for x in range(3)]
    features = np.concatenate([*parts, np.ones((1, height - 2, width - 2))]).astype(np.float64)
    return features.reshape(len(features), -1).T


def solve_ridge(
    gram: Float[np.ndarray, "feature feature"], moment: Float[np.ndarray, "feature stain"], penalty: float
) -> Float[np.ndarray, "feature stain"]:
    """Minimise |y - x w|^2 + lambda |w|^2 from x^T x and x^T y; the last feature, the constant, goes unpenalised.

    lambda is `penalty` times the mean of the diagonal of x^T x.
    """
    scale = np.trace(gram[:-1, :-1]) / max(len(gram) - 1, 1)
    ridge = np.full(len(gram), max(penalty * scale, 1e-12))
    ridge[-1] = 0
    return np.asarray(np.linalg.solve(gram + np.diag(ridge), moment))


def mean_image(brain: Brain, sections: Sequence[int], box: Box) -> Float[np.ndarray, " stain"]:
    """Mean of each stain over the tissue of a region, 0 to 255; over the whole region where it holds no tissue.

    Of a large region evenly spread tiles are used.
    """
    total, pixels = np.zeros(len(brain.stains)), 0
    whole, area = np.zeros(len(brain.stains)), 0
    for section in sections:
        tissue = brain.tissue(section)
        tiles = list(box.tiles(1024, 1024))
        most = min(len(tiles), max(1, MAX_TILES // len(sections)))
        for tile in (tiles[round(float(index))] for index in np.linspace(0, len(tiles) - 1, most)):
            image = brain.image(tile, [section])[:, 0]
            inside = tissue_pixels(tissue, tile)
            total += image[:, inside].sum(axis=1, dtype=np.float64)
            pixels += int(inside.sum())
            whole += image.sum(axis=(1, 2), dtype=np.float64)
            area += inside.size
    return total / pixels if pixels else whole / area


def tissue_pixels(tissue: Bool[np.ndarray, "row column"], box: Box, step_px: int = 1) -> Bool[np.ndarray, "y x"]:
    """The tissue mask at every `step_px`-th pixel of a box inside the canvas."""
    rows, columns = (
        np.minimum(np.arange(a, b, step_px) // _TISSUE_PX, size - 1)
        for (a, b), size in zip(((box.y0, box.y1), (box.x0, box.x1)), tissue.shape, strict=True)
    )
    return np.asarray(tissue[np.ix_(rows, columns)])


def fit_ridge(
    brain: Brain, sections: Sequence[int], box: Box, blur_px: float, genes: NDArray[np.int64] | None = None
) -> Ridge:
    """Fit on the tissue bins of a training region, on the brain's `genes` (default: all).

    Of a large region evenly spread tiles are used. Raises `InputError` when it holds too few bins.
    """
    bin_px = max(1, round(BIN_UM / brain.pixel_um))
    axes = _gene_axes(brain, sections, box, bin_px, genes)
    width, stains = 9 * axes.shape[1] + 1, len(brain.stains)
    # row 0 of each sum is for fitting, row 1 is held out
    gram, moment = np.zeros((2, width, width)), np.zeros((2, width, stains))
    square, total, count = np.zeros((2, stains)), np.zeros((2, stains)), np.zeros(2, int)
    for section, tile in _tiles(sections, box, bin_px):
        features = neighbourhood(_layers(brain, section, tile, bin_px, axes, genes))
        target = _target(brain, section, tile, box, bin_px=bin_px, blur_px=blur_px)
        kept, held_out = _folds(brain, section, tile, box, bin_px)
        for fold in (0, 1):
            chosen = kept & (held_out == bool(fold))
            x, y = features[chosen], target[chosen]
            gram[fold] += x.T @ x
            moment[fold] += x.T @ y
            square[fold] += np.square(y).sum(axis=0)
            total[fold] += y.sum(axis=0)
            count[fold] += int(chosen.sum())
    if count.min() < 10:
        raise InputError(
            f"the ridge control needs tissue in the training region {box}, it has {count.sum()} bins of {bin_px} px: "
            "choose a larger --train-region"
        )
    variance = np.maximum(square[1] - total[1] ** 2 / count[1], 1e-9)
    scores = []
    for penalty in PENALTIES:
        weights = solve_ridge(gram[0], moment[0], penalty)
        error = square[1] - 2 * (weights * moment[1]).sum(axis=0) + np.einsum("fs,fg,gs->s", weights, gram[1], weights)
        scores.append(1 - error / variance)
    best = int(np.argmax([score.mean() for score in scores]))
    weights = solve_ridge(gram.sum(axis=0), moment.sum(axis=0), PENALTIES[best])
    return Ridge(bin_px, axes, weights, PENALTIES[best], tuple(float(r) for r in scores[best]), int(count.sum()))


def predict_ridge(
    brain: Brain, section: int, box: Box, within: Box, ridge: Ridge, genes: NDArray[np.int64] | None = None
) -> UInt8[np.ndarray, "stain y x"]:
    """The regression's image of a box: bins upsampled linearly to pixels, cut to 0..255.

    Bins start at the corner of `within`, which holds the box, so that any boxes of it fit together.
    """
    step = ridge.bin_px
    # a bin's value belongs to its middle
    at, bounds = [], []
    for low, high, start, stop in (
        (box.y0, box.y1, within.y0, within.y1),
        (box.x0, box.x1, within.x0, within.x1),
    ):
        places = np.clip((np.arange(low, high) - start + 0.5) / step - 0.5, 0, -(-(stop - start) // step) - 1)
        first, last = int(places[0]), int(np.ceil(places[-1])) + 1
        at.append(places - first)
        bounds += [first, last]
    bins = Box(*bounds)
    image = np.zeros((ridge.weights.shape[1], bins.height, bins.width))
    for tile in bins.tiles(TILE_BINS, TILE_BINS):
        area = Box(*(edge * step for edge in (tile.y0, tile.y1, tile.x0, tile.x1))).shift(within.y0, within.x0)
        values = neighbourhood(_layers(brain, section, area, step, ridge.axes, genes)) @ ridge.weights
        image[(slice(None), *tile.shift(-bins.y0, -bins.x0).slices())] = values.T.reshape(-1, tile.height, tile.width)
    smooth = np.stack([_bilinear(layer, at[0], at[1]) for layer in image])
    return np.asarray(np.clip(np.rint(smooth), 0, 255), np.uint8)


def _bilinear(
    layer: Float[np.ndarray, "row column"], y: Float[np.ndarray, " y"], x: Float[np.ndarray, " x"]
) -> Float[np.ndarray, "y x"]:
    """Linear interpolation on a grid of places, one axis after the other."""
    for axis, places in ((0, y), (1, x)):
        low = np.minimum(places.astype(np.int64), layer.shape[axis] - 1)
        high = np.minimum(low + 1, layer.shape[axis] - 1)
        share = np.expand_dims(places - low, 1 - axis)
        layer = np.take(layer, low, axis) * (1 - share) + np.take(layer, high, axis) * share
    return np.asarray(layer)


def _tiles(sections: Sequence[int], box: Box, bin_px: int) -> Iterator[tuple[int, Box]]:
    """Tiles of whole bins inside the box, at most `MAX_TILES`; a rest narrower than a bin is left out."""
    whole = Box(box.y0, box.y1 - box.height % bin_px, box.x0, box.x1 - box.width % bin_px)
    for section in sections:
        tiles = list(whole.tiles(TILE_BINS * bin_px, TILE_BINS * bin_px))
        most = min(len(tiles), max(1, MAX_TILES // len(sections)))
        for index in np.linspace(0, len(tiles) - 1, most):
            yield section, tiles[round(float(index))]


def _gene_axes(
    brain: Brain, sections: Sequence[int], box: Box, bin_px: int, genes: NDArray[np.int64] | None
) -> Float[np.ndarray, "gene component"]:
    """Leading principal components of log1p counts a bin, over the training region.

    By the covariance where genes are few, else by Lanczos iterations on tables that are held sparse.
    """
    if min(box.height, box.width) < bin_px:
        raise InputError(f"the training region {box} is smaller than one bin of {bin_px} px: choose a larger one")
    panel = len(brain.genes) if genes is None else len(genes)
    places = list(_tiles(sections, box, bin_px))
    if panel <= FEW_GENES:
        return _few_components((_levels(brain, section, tile, bin_px, genes) for section, tile in places), panel)
    held, step = list[Levels](), 1
    for number, (section, tile) in enumerate(places):
        if number % step == 0:
            held.append(_levels(brain, section, tile, bin_px, genes))
            while sum(table.nnz for table in held) > MAX_ENTRIES and len(held) > 1:
                held, step = held[::2], 2 * step  # still evenly spread
    # a gene that is nowhere has no part in any component
    seen = np.unique(np.concatenate([np.unique(table.indices) for table in held]))
    held = [table[:, seen] for table in held]
    found = _few_components(held, len(seen)) if len(seen) <= FEW_GENES else _many_components(held, len(seen))
    axes = np.zeros((panel, found.shape[1]))
    axes[seen] = found
    return axes


def _few_components(tables: Iterable[Levels], genes: int) -> Float[np.ndarray, "gene component"]:
    """Leading eigenvectors of the covariance over all bins, a table of genes by genes."""
    product, total, bins = np.zeros((genes, genes)), np.zeros(genes), 0
    for table in tables:
        product += (table.T @ table).toarray()
        total += table.sum(axis=0)
        bins += table.shape[0]
    mean = total / bins
    _, vectors = np.linalg.eigh(product / bins - np.outer(mean, mean))
    return vectors[:, ::-1][:, :MAX_COMPONENTS]


def _many_components(tables: Sequence[Levels], genes: int) -> Float[np.ndarray, "gene component"]:
    """The same eigenvectors, to rounding and up to their signs, from products of the tables with vectors only.

    Implicitly restarted Lanczos (Lehoucq, Sorensen and Yang, ARPACK Users' Guide, 1998) from a fixed vector; the mean
    is taken off the products, so that the tables stay sparse.
    """
    bins = sum(table.shape[0] for table in tables)
    mean = sum((table.sum(axis=0) for table in tables), np.zeros(genes)) / bins

    def covariance(vector: NDArray[np.float64]) -> NDArray[np.float64]:
        products = (table.T @ (table @ vector) for table in tables)
        return np.asarray(sum(products, np.zeros(genes)) / bins - mean * (mean @ vector))

    # fewer bins than components span fewer
    count = max(1, min(MAX_COMPONENTS, bins - 1))
    start = np.random.default_rng([0, genes]).normal(size=genes)
    operator = LinearOperator((genes, genes), matvec=covariance, dtype=np.float64)
    _, vectors = eigsh(operator, count, v0=start, tol=0)
    return np.asarray(vectors[:, ::-1])


def _levels(brain: Brain, section: int, box: Box, bin_px: int, genes: NDArray[np.int64] | None) -> Levels:
    """log1p counts of the bins of a box, row by row: as large as the box's transcripts, however many genes there are.

    `box` is a whole number of bins and may leave the canvas.
    """
    found = brain.transcripts(section, box)
    rows, columns = box.height // bin_px, box.width // bin_px
    index = (found.y // bin_px).astype(np.int64) * columns + found.x // bin_px
    shape = (rows * columns, len(brain.genes))
    counts = sparse.coo_array((found.count.astype(np.float32), (index, found.gene)), shape=shape).tocsr()
    chosen = counts if genes is None else counts[:, genes]
    return chosen.log1p().astype(np.float64)


def _layers(
    brain: Brain,
    section: int,
    box: Box,
    bin_px: int,
    axes: Float[np.ndarray, "gene component"],
    genes: NDArray[np.int64] | None,
) -> Float[np.ndarray, "component y x"]:
    """Components of log1p counts in the bins of a box and one bin around it."""
    around = box.grow(bin_px)
    layers = _levels(brain, section, around, bin_px, genes) @ axes
    return np.asarray(layers.T.reshape(-1, around.height // bin_px, around.width // bin_px))


def _target(
    brain: Brain, section: int, tile: Box, box: Box, *, bin_px: int, blur_px: float
) -> Float[np.ndarray, "bin stain"]:
    """Mean of the blurred stains in each bin; the blur sees a margin around the tile, but nothing outside the box."""
    seen = tile.grow(int(np.ceil(3 * blur_px))).intersect(box)
    image = brain.image(seen, [section])[:, 0]
    inner = tile.shift(-seen.y0, -seen.x0).slices()
    rows, columns = tile.height // bin_px, tile.width // bin_px
    means = [blur(layer, blur_px)[inner].reshape(rows, bin_px, columns, bin_px).mean(axis=(1, 3)) for layer in image]
    return np.stack(means, axis=-1).reshape(rows * columns, -1).astype(np.float64)


def _folds(
    brain: Brain, section: int, tile: Box, box: Box, bin_px: int
) -> tuple[Bool[np.ndarray, " bin"], Bool[np.ndarray, " bin"]]:
    """Which bins of a tile lie in tissue, and which are held out: blocks, since neighbours look alike."""
    kept = tissue_pixels(brain.tissue(section), tile, bin_px)
    row, column = (
        (np.arange(a, b, bin_px) - origin) // (bin_px * BLOCK_BINS)
        for a, b, origin in ((tile.y0, tile.y1, box.y0), (tile.x0, tile.x1, box.x0))
    )
    held_out = (row[:, None] + 2 * column[None]) % 5 == 0
    return kept.ravel(), held_out.ravel()
