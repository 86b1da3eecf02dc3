"""Whether genes tell anything: a classifier of cell types and a ridge regression to a blurred stain, in numpy."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from tera_mind.geometry import Box
from tera_mind.simulate.transcripts import TranscriptRows
from tera_mind.simulate.windows import VirtualBrain

_BIN_PX = 8


def classifier_accuracy(brain: VirtualBrain, windows: list[tuple[int, Box]]) -> float:
    """Share of held-out cells whose type a naive Bayes classifier (Poisson) names from what was read in their
    nucleus and soma; half of the cells are held out."""
    genes, data = len(brain.genes), []
    for section, box in windows:
        rows = brain.transcripts(section, box)
        cells = brain.cells_near(section, box, 0.0)
        own = rows.take((rows.cell > 0) & (rows.place < 2) & (rows.gene < genes))
        index = np.searchsorted(cells.cell, own.cell)
        good = (index < len(cells)) & (cells.cell[np.minimum(index, len(cells) - 1)] == own.cell)
        counts = np.zeros((len(cells), genes))
        np.add.at(counts, (index[good], own.gene[good]), 1)
        data.append((counts, cells.kind.astype(int)))
    counts, kind = (np.concatenate(part) for part in zip(*data, strict=True))
    held = np.random.default_rng(0).random(len(kind)) < 0.5
    train_x, train_y, test_x, test_y = counts[~held], kind[~held], counts[held], kind[held]
    kinds = np.unique(train_y)
    scores = []
    for number in kinds:
        own = train_x[train_y == number]
        share = own.sum(axis=0) + 0.5
        # of a cell's total, the share of each gene; the total itself varies with the library
        scores.append(test_x @ np.log(share / share.sum()) + np.log(len(own) / len(train_y)))
    return float((kinds[np.argmax(scores, axis=0)] == test_y).mean())


def ridge_r2(brain: VirtualBrain, penalty: float = 30.0) -> dict[str, list[float]]:
    """R2 of ridge regression from smoothed counts to both stains, blurred, on the right half: genes "as measured",
    with patches of genes "shuffled" over the tissue, and with "labels" of genes shuffled among transcripts.
    """
    window = brain.window(0, brain.canvas)
    rows = window.transcripts.take(window.transcripts.gene < len(brain.genes))
    targets = [ndimage.gaussian_filter(window.images[stain, 0].astype(float), _BIN_PX) for stain in (0, 1)]
    labels = np.random.default_rng(0).permutation(rows.gene)
    ways = {"as measured": (rows.gene, False), "shuffled": (rows.gene, True), "labels": (labels, False)}
    return {
        name: [_r2(brain, rows, gene, target, penalty, moved) for target in targets]
        for name, (gene, moved) in ways.items()
    }


def _r2(
    brain: VirtualBrain, rows: TranscriptRows, gene: np.ndarray, target: np.ndarray, penalty: float, moved: bool
) -> float:
    s = brain.settings
    shape = tuple(side // _BIN_PX for side in s.pixels)
    y, x = ((part / s.pixel_um).astype(int) // _BIN_PX for part in (rows.y_um, rows.x_um))
    kept = (y < shape[0]) & (x < shape[1])
    counts = np.zeros((len(brain.genes), *shape), np.float32)
    np.add.at(counts, (gene[kept], y[kept], x[kept]), 1)
    if moved:
        counts = _move_patches(counts)
    features = ndimage.gaussian_filter(counts, (0, 1.2, 1.2)).reshape(len(counts), -1).T
    features = np.concatenate([features, np.ones((len(features), 1), np.float32)], axis=1).astype(np.float64)
    value = (
        target[: shape[0] * _BIN_PX, : shape[1] * _BIN_PX].reshape(shape[0], _BIN_PX, shape[1], _BIN_PX).mean((1, 3))
    )
    left = np.broadcast_to(np.arange(shape[1]) < shape[1] // 2, shape).ravel()
    train, test = features[left], features[~left]
    weights = np.linalg.solve(train.T @ train + penalty * np.eye(train.shape[1]), train.T @ value.ravel()[left])
    truth = value.ravel()[~left]
    return float(1 - np.square(truth - test @ weights).sum() / np.square(truth - truth.mean()).sum())


def _move_patches(counts: np.ndarray, side: int = 8) -> np.ndarray:
    """Patches of `side` bins in random order."""
    genes, rows, columns = counts.shape[0], counts.shape[1] // side, counts.shape[2] // side
    cut = counts[:, : rows * side, : columns * side].reshape(genes, rows, side, columns, side).transpose(1, 3, 0, 2, 4)
    flat = cut.reshape(rows * columns, genes, side, side)[np.random.default_rng(0).permutation(rows * columns)]
    out = counts.copy()
    moved = flat.reshape(rows, columns, genes, side, side).transpose(2, 0, 3, 1, 4)
    out[:, : rows * side, : columns * side] = moved.reshape(genes, rows * side, columns * side)
    return out
