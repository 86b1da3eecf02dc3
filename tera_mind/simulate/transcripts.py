"""The panel, and the transcripts of a section: negative-binomial counts, placed in nucleus, soma and neuropil."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tera_mind.errors import InputError
from tera_mind.simulate.anatomy import Anatomy
from tera_mind.simulate.cells import NAMES, TYPES

_PANEL, _COUNTS, _FLOOR = 4, 5, 6  # purposes of random keys
_BIOLOGY = 0  # what all brains share is keyed by this, not by the seed of a tissue

#: mean count of a marker in a cell of each type, in the order of `TYPES`; 0.15 where nothing is known
MARKERS: dict[str, tuple[float, ...]] = {
    "Slc17a7": (30, 24, 14, 0.15, 0.15, 0.15, 0.15, 0.15),
    "Slc17a6": (0.15, 1, 0.15, 0.15, 0.15, 0.15, 0.15, 0.15),
    "Gad2": (0.15, 0.15, 0.15, 16, 0.15, 0.15, 0.15, 0.15),
    "Nr4a2": (0.15, 2, 0.15, 0.15, 0.15, 0.15, 0.15, 0.15),
    "Lamp5": (9, 3, 0.15, 3, 0.15, 0.15, 0.15, 0.15),
    "Rorb": (3, 0.15, 0.15, 0.15, 0.15, 0.15, 0.15, 0.15),
    "Rasgrp1": (8, 6, 6, 0.15, 0.15, 0.15, 0.15, 0.15),
    "C1ql3": (7, 5, 9, 0.15, 0.15, 0.15, 0.15, 0.15),
    "Nrn1": (8, 8, 4, 0.15, 0.15, 0.15, 0.15, 0.15),
    "Rgs4": (8, 8, 0.15, 0.15, 0.15, 0.15, 0.15, 0.15),
    "Calb1": (4, 0.15, 8, 0.15, 0.15, 0.15, 0.15, 0.15),
    "Pvalb": (0.15, 0.15, 0.15, 10, 0.15, 0.15, 0.15, 0.15),
    "Vip": (0.15, 0.15, 0.15, 5, 0.15, 0.15, 0.15, 0.15),
    "Slc1a3": (0.15, 0.15, 0.15, 0.15, 18, 0.15, 0.15, 0.15),
    "Aqp4": (0.15, 0.15, 0.15, 0.15, 13, 0.15, 0.15, 0.15),
    "Gja1": (0.15, 0.15, 0.15, 0.15, 14, 0.15, 0.15, 0.15),
    "Tcf7l2": (0.15, 0.15, 0.15, 0.15, 1.5, 0.15, 0.15, 0.15),
    "Sox10": (0.15, 0.15, 0.15, 0.15, 0.15, 6, 0.15, 0.15),
    "Mog": (0.15, 0.15, 0.15, 0.15, 0.15, 11, 0.15, 0.15),
    "St18": (0.15, 0.15, 0.15, 0.15, 0.15, 9, 0.15, 0.15),
    "Ctss": (0.15, 0.15, 0.15, 0.15, 0.15, 0.15, 16, 0.15),
    "Cldn5": (0.15, 0.15, 0.15, 0.15, 0.15, 0.15, 0.15, 14),
}
BLANKS = 5
#: transcripts per um2 of tissue (60 per 100 um2)
DENSITY_UM2 = 0.6
#: share of transcripts that lie in no cell's reach
FLOOR_SHARE = 0.15
MISIDENTIFIED = 0.015
#: shares in nucleus, soma ring and neuropil
NEURON_PLACES, GLIA_PLACES = (0.25, 0.35, 0.40), (0.45, 0.40, 0.15)
DISPERSION = 2.0
NEUROPIL_UM = 4.0


def panel(genes: int) -> tuple[str, ...]:
    """Gene names: the markers first, then `Gene_0001`, ..."""
    if genes < len(MARKERS):
        raise InputError(f"a simulated panel has at least the {len(MARKERS)} marker genes, got {genes}")
    return (*MARKERS, *(f"Gene_{number:04d}" for number in range(1, genes - len(MARKERS) + 1)))


def expression(genes: int) -> NDArray[np.float64]:
    """Mean count of every gene in a cell of every type, (gene, type), before the global factor.

    Genes that are no marker: lognormal (median 0.15, sigma 1.2), raised tenfold in one to three random types. It is the
    same whatever the seed of the tissue: a gene means the same in every simulated brain.
    """
    random = np.random.default_rng([_BIOLOGY, _PANEL])
    others = random.lognormal(np.log(0.15), 1.2, genes - len(MARKERS))[:, None] * np.ones(len(TYPES))
    for row in others:
        row[random.choice(len(TYPES), random.integers(1, 4), replace=False)] *= 10
    return np.concatenate([np.array(list(MARKERS.values())), others])


def nuclear_bias(genes: int) -> NDArray[np.float64]:
    """How strongly each gene's transcripts stay in the nucleus, about 0.45 to 1.7."""
    return np.random.default_rng([_BIOLOGY, _PANEL, 1]).lognormal(0.0, 0.4, genes).clip(0.3, 2.0)


def make_transcripts(cells: pd.DataFrame, genes: int, anatomy: Anatomy, section: int, z_um: float) -> pd.DataFrame:
    """Transcripts of a section: `y_um`, `x_um`, `gene` (index; the last `BLANKS` indices are blank barcodes)."""
    random = np.random.default_rng([anatomy.seed, _COUNTS, section])
    kind = cells["kind"].to_numpy()
    means = expression(genes)[:, kind] * cells["library"].to_numpy()
    step = 10.0
    rows, columns = np.mgrid[step / 2 : anatomy.height_um : step, step / 2 : anatomy.width_um : step]
    tissue_um2 = (anatomy.region(rows, columns, z_um) > 0).mean() * anatomy.height_um * anatomy.width_um
    wanted = DENSITY_UM2 * tissue_um2
    means *= (1 - FLOOR_SHARE) * wanted / max(means.sum(), 1e-9)
    counts = random.poisson(random.gamma(DISPERSION, means / DISPERSION))
    gene, cell = np.nonzero(counts)
    repeats = counts[gene, cell]
    gene, cell = np.repeat(gene, repeats), np.repeat(cell, repeats)
    y, x = _positions(cells, cell, nuclear_bias(genes)[gene], random)
    floor_y, floor_x = _floor(anatomy, section, z_um, round(FLOOR_SHARE * wanted))
    shares = means.sum(axis=1) / max(means.sum(), 1e-9)
    floor_gene = random.choice(genes, len(floor_y), p=shares / shares.sum())
    y, x, gene = np.concatenate([y, floor_y]), np.concatenate([x, floor_x]), np.concatenate([gene, floor_gene])
    wrong = random.random(len(gene)) < MISIDENTIFIED
    gene[wrong] = random.integers(0, genes + BLANKS, wrong.sum())
    inside = (y >= 0) & (y < anatomy.height_um) & (x >= 0) & (x < anatomy.width_um)
    return pd.DataFrame({"y_um": y[inside], "x_um": x[inside], "gene": gene[inside]})


def _positions(
    cells: pd.DataFrame, cell: NDArray[np.int64], bias: NDArray[np.float64], random: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    n = len(cell)
    neuron = np.array([TYPES[k].neuron for k in range(len(NAMES))])[cells["kind"].to_numpy()[cell]]
    places = np.where(neuron[:, None], NEURON_PLACES, GLIA_PLACES)
    nuclear = np.clip(places[:, 0] * bias, 0.02, 0.9)
    rest = places[:, 1] / (places[:, 1] + places[:, 2])
    draw = random.random(n)
    in_nucleus = draw < nuclear
    in_soma = ~in_nucleus & (draw < nuclear + (1 - nuclear) * rest)
    angle = random.uniform(0, 2 * np.pi, n)
    unit = np.sqrt(random.random(n))
    # inside the nucleus: uniform in its ellipse; soma: ring around it; neuropil: exponential fall beyond the soma
    major, minor, turn, soma = (cells[name].to_numpy()[cell] for name in ("major_um", "minor_um", "angle", "soma_um"))
    across, along = np.cos(angle) * major, np.sin(angle) * minor
    edge = np.hypot(across, along)
    reach = np.where(in_soma, edge + np.maximum(soma - edge, 0.5) * unit, soma + random.exponential(NEUROPIL_UM, n))
    radius = np.where(in_nucleus, edge * unit, reach)
    dy, dx = along / edge * radius, across / edge * radius
    y = cells["y_um"].to_numpy()[cell] + dx * np.sin(turn) + dy * np.cos(turn)
    x = cells["x_um"].to_numpy()[cell] + dx * np.cos(turn) - dy * np.sin(turn)
    return y, x


def _floor(anatomy: Anatomy, section: int, z_um: float, count: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    random = np.random.default_rng([anatomy.seed, _FLOOR, section])
    points = random.uniform((0, 0), (anatomy.height_um, anatomy.width_um), (4 * count, 2))
    points = points[anatomy.region(points[:, 0], points[:, 1], z_um) > 0][:count]
    return points[:, 0], points[:, 1]
