"""Source, edited and target tissue in the network's own features: distances, scores, what is out of bounds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from tera_mind.analysis.latents import USUAL, Spread, eigenvalue_score
from tera_mind.effects.zones import INSIDE, Zones
from tera_mind.geometry import Box, SectionGroup
from tera_mind.metrics.tiles.frechet import MIN_TILES, distance, gaussian
from tera_mind.model.collage import counts_to_patches, to_patches
from tera_mind.sums import Sums

#: patches a side of what is encoded at once
_PATCHES = 8
#: the edit is flagged where more than this share of its patches is beyond what `USUAL` of the reference stay within
FLAGGED_SHARE = 0.05

#: counts of a section group over a box
GroupCounts = Callable[[SectionGroup, Box], Float[Tensor, "gene section bin_y bin_x"]]
#: image of a section group over a box, [-1, 1], channel = stain * sections + section
GroupImage = Callable[[SectionGroup, Box], Float[Tensor, "channel y x"]]
#: counts of patches, and where a `GroupImage` is given their images, to features (patch, feature)
Features = Callable[..., Float[np.ndarray, "b feature"]]


def rows_of(
    counts: GroupCounts,
    features: Features,
    groups: Sequence[SectionGroup],
    zones: Zones,
    *,
    inside: bool,
    image: GroupImage | None = None,
) -> Iterator[Float[np.ndarray, "b feature"]]:
    """Features of the region's patches that hold transcripts, a block at a time; `inside`: only edited patches."""
    side, region = zones.patch_px, zones.region
    kept = zones.patches(INSIDE)
    for group in groups:
        planes = [plane for plane, section in enumerate(zones.sections) if section in group.image]
        wanted = np.asarray(kept[planes].any(axis=0)) if inside else np.ones(kept.shape[1:], bool)
        for box in region.tiles(side * _PATCHES, side * _PATCHES):
            place = box.shift(-region.y0, -region.x0)
            own = wanted[place.y0 // side : place.y1 // side, place.x0 // side : place.x1 // side].ravel()
            if not own.any():
                continue
            patches = counts_to_patches(counts(group, box)[None], side // zones.bin_px)
            there = torch.from_numpy(own) & (patches.sum((1, 2, 3, 4)) > 0)
            if there.any():
                seen = () if image is None else (to_patches(image(group, box)[None], side)[there],)
                yield features(patches[there], *seen)


def sums_of(rows: Iterator[NDArray[np.float32]]) -> Sums | None:
    """Streamed float64 sums; None where there is no row."""
    total: Sums | None = None
    for part in rows:
        total = Sums.of(part) if total is None else total.merge(Sums.of(part))
    return total


def frechet(first: Sums | None, second: Sums | None) -> float | None:
    """Squared Frechet distance of two populations of features; None with fewer than `MIN_TILES` patches."""
    if first is None or second is None or min(first.n, second.n) < MIN_TILES:
        return None
    return distance(gaussian(first), gaussian(second))


def scores(populations: Mapping[str, Sums | None]) -> dict[str, Any]:
    """Frechet distance and latent eigenvalue score of every pair (population, reference) among those given."""
    found: dict[str, Any] = {}
    for reference in ("source", "target"):
        for name in populations:
            own, other = populations[name], populations.get(reference)
            if name in {reference, "target"} or other is None or own is None:
                continue
            found[f"{name} to {reference}"] = {
                "frechet": frechet(own, other),
                "gilea": {str(k): v for k, v in eigenvalue_score(own.eigenvalues, other.eigenvalues).items()},
                "patches": own.n,
            }
    return found


@dataclass(frozen=True)
class Strange:
    """How far edited genes leave what a reference brain holds.

    usual: distance that 99.5 % of the reference's patches stay within; share_before, share_after: of the edited patches
    beyond it, before and after the edit; flagged: after is above 5 % and above before.
    """

    usual: float
    median_before: float
    median_after: float
    share_before: float
    share_after: float

    @property
    def flagged(self) -> bool:
        return self.share_after > max(FLAGGED_SHARE, self.share_before)


def spread_of(rows: Callable[[], Iterator[NDArray[np.float32]]]) -> Spread | None:
    """The spread of a reference, in two streamed passes; None where it has fewer than two patches."""
    sums = sums_of(rows())
    if sums is None or sums.n < 2:
        return None
    spread = Spread(sums)
    far = np.concatenate([spread.distances(part) for part in rows()])
    return replace(spread, usual=float(np.quantile(far, USUAL)))


def strangeness(
    spread: Spread, before: Iterator[NDArray[np.float32]], after: Iterator[NDArray[np.float32]]
) -> Strange | None:
    """Edited patches against the spread; None where there is none."""
    far = [[spread.distances(part) for part in rows] for rows in (before, after)]
    if not all(far):
        return None
    both = [np.concatenate(parts) for parts in far]
    shares = [float((each > spread.usual).mean()) for each in both]
    return Strange(spread.usual, *(float(np.median(each)) for each in both), *shares)
