"""Parts of one nucleus joined: which neighbouring regions of a segmentation belong together, by what they look like.

Regions are joined pair by pair, the likeliest first, and a joined pair is looked at anew (Salembier and Garrido, IEEE
Trans. Image Process. 9 (2000)).
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from math import log, pi, sqrt
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from skimage.measure import label as components

from tera_mind.metrics.nuclei.basins import Labels, borders, relabel


@dataclass(frozen=True)
class Rule:
    """Log odds that two neighbouring regions are one nucleus: a bias and weights of what is measured of the pair."""

    bias: float
    #: length of their border in diameters of the smaller region (of a disc of its area)
    neck: float
    #: brightness on the border by the dimmer region's mean
    valley: float
    #: difference of the logarithms of their mean brightness
    contrast: float
    #: logarithm of their area together, in areas of a typical nucleus
    together: float


class Border(NamedTuple):
    """Border of two regions: number of contacts of pixels that share a side, and the brightness summed over them."""

    contacts: int
    brightness: float


class Regions:
    """Regions 1 .. n and their borders, as they are joined."""

    def __init__(self, labels: Labels, brightness: Float[np.ndarray, "y x"]) -> None:
        inked = np.flatnonzero(labels)
        bins = int(labels.max(initial=0)) + 1
        flat = brightness.ravel()
        self.area: list[int] = np.bincount(labels.ravel()[inked], minlength=bins).tolist()
        self.brightness: list[float] = np.bincount(labels.ravel()[inked], flat[inked], minlength=bins).tolist()
        self.root = list(range(bins))
        #: raised whenever a region grows, so that what was measured before is known to be out of date
        self.version = [0] * bins
        self.borders: list[dict[int, Border]] = [{} for _ in range(bins)]
        keys, first, second = borders(labels, diagonal=False)
        pairs, where = np.unique(keys, return_inverse=True)
        contacts = np.bincount(where, minlength=len(pairs)).tolist()
        sums = np.bincount(where, (flat[first] + flat[second]) / 2, minlength=len(pairs)).tolist()
        for key, count, total in zip(pairs.tolist(), contacts, sums, strict=True):
            a, b = divmod(key, bins)
            self.borders[a][b] = self.borders[b][a] = Border(count, total)

    def pairs(self) -> list[tuple[int, int]]:
        return [(a, b) for a, others in enumerate(self.borders) for b in others if a < b]

    def features(self, a: int, b: int, typical_px: float) -> tuple[float, float, float, float]:
        """What `Rule` weighs, in its order; `typical_px` is the area of a typical nucleus."""
        contacts, brightness = self.borders[a][b]
        smaller = min(self.area[a], self.area[b])
        mean_a, mean_b = self.brightness[a] / self.area[a], self.brightness[b] / self.area[b]
        # a straight border of random direction has 4 / pi contacts a px of length
        return (
            contacts * (pi / 4) / (2 * sqrt(smaller / pi)),
            brightness / contacts / min(mean_a, mean_b),
            abs(log(mean_a / mean_b)),
            log((self.area[a] + self.area[b]) / typical_px),
        )

    def join(self, a: int, b: int) -> None:
        """Make `b` a part of `a`."""
        self.area[a] += self.area[b]
        self.brightness[a] += self.brightness[b]
        self.root[b] = a
        self.version[a] += 1
        self.version[b] += 1
        del self.borders[a][b], self.borders[b][a]
        for other, border in self.borders[b].items():
            own = self.borders[a].get(other, Border(0, 0.0))
            both = Border(own.contacts + border.contacts, own.brightness + border.brightness)
            self.borders[a][other] = self.borders[other][a] = both
            del self.borders[other][b]
        self.borders[b] = {}


def join_parts(labels: Labels, brightness: Float[np.ndarray, "y x"], typical_px: float, rule: Rule) -> Labels:
    """Join neighbouring labels that `rule` takes for one nucleus; brightness must be above 0 on all of them."""
    regions = Regions(labels, brightness)
    weights = (rule.neck, rule.valley, rule.contrast, rule.together)

    def odds(a: int, b: int) -> float:
        measured = regions.features(a, b, typical_px)
        return rule.bias + sum(weight * value for weight, value in zip(weights, measured, strict=True))

    version = regions.version
    waiting = [(-score, a, b, 0, 0) for a, b in regions.pairs() if (score := odds(a, b)) > 0]
    heapq.heapify(waiting)
    while waiting:
        _, a, b, version_a, version_b = heapq.heappop(waiting)
        if (version[a], version[b]) != (version_a, version_b):
            continue
        regions.join(a, b)
        for other in regions.borders[a]:
            one, two = min(a, other), max(a, other)
            if (score := odds(one, two)) > 0:
                heapq.heappush(waiting, (-score, one, two, version[one], version[two]))
    return relabel(labels, regions.root)


def bright_part(brightness: Float[np.ndarray, "y x"], labels: Labels, share: float) -> Float[np.ndarray, " label"]:
    """The quantile `share` (the lower of two) of each label's brightness; 0 for labels without pixels."""
    inked = np.flatnonzero(labels)
    label, value = labels.ravel()[inked], brightness.ravel()[inked]
    order = np.lexsort((value, label))
    size = np.bincount(label, minlength=int(labels.max(initial=0)) + 1)
    filled = size > 0
    last = np.cumsum(size)[filled]
    top = np.zeros(len(size), brightness.dtype)
    top[filled] = value[order[last - size[filled] + (share * (size[filled] - 1)).astype(np.int64)]]
    return top


def whole(labels: Labels, least_px: float) -> Labels:
    """The largest connected part of each label, if it has `least_px` pixels, numbered 1, 2, ... in raster order."""
    part = components(labels, connectivity=1)
    size = np.bincount(part.ravel())
    owner = np.zeros(len(size), np.int64)
    owner[part.ravel()] = labels.ravel()
    order = np.lexsort((-size, owner))
    kept = np.zeros(len(size), bool)
    kept[order[np.diff(owner[order], prepend=-1) > 0]] = True
    kept &= (size >= least_px) & (owner > 0)
    number = np.where(kept, np.cumsum(kept), 0).astype(np.int32)
    return np.asarray(number[part])
