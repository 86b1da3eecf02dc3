"""Delete-a-group jackknife: intervals of distances between sets of tiles.

Tiles overlap and neighbours look alike, so spatial groups of tiles, not tiles, are left out, one at a time. Not a
bootstrap: a resample holds tiles twice, which shrinks what a set spans, so every resampled distance is drawn upwards
and the interval may not even hold the estimate. Leaving out a group changes the number of tiles alike for all groups,
so a bias that depends on the number cancels in the spread. Busing, Meijer and van der Leeden, Stat. Comput. 9 (1999),
for groups of unequal size; limits by Student's t with one degree of freedom less than groups.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from scipy import stats

from tera_mind.metrics.bootstrap import Difference, Interval

#: spatial groups of tiles: enough for a t interval, few enough that groups are larger than what neighbours share
GROUPS = 20

Groups = Int[np.ndarray, " tile"]
#: (which tiles of the first set are kept, which of the second) -> statistic
Statistic = Callable[[Bool[np.ndarray, " tile"], Bool[np.ndarray, " other"]], float]


class Jackknife(NamedTuple):
    """A statistic of `n` tiles, and its values without each group.

    sample: 0 for a group that was left out of the first set (and, where sets are paired, of the second as well), 1 for
    one of the second set alone; share: the group's share of the tiles of its set.
    """

    value: float
    without: Float[np.ndarray, " group"]
    sample: Int[np.ndarray, " group"]
    share: Float[np.ndarray, " group"]
    n: int

    def error(self) -> tuple[float, int]:
        """Standard error, and its degrees of freedom; NaN and 0 where a set has fewer than two groups."""
        variance, freedom = 0.0, []
        for sample in np.unique(self.sample):
            own = self.sample == sample
            count, times = int(own.sum()), 1 / self.share[own]
            if count < 2:
                return float("nan"), 0
            pseudo = times * self.value - (times - 1) * self.without[own]
            estimate = count * self.value - ((1 - self.share[own]) * self.without[own]).sum()
            variance += float(np.mean((pseudo - estimate) ** 2 / (times - 1)))
            freedom.append(count - 1)
        return float(np.sqrt(variance)), min(freedom)

    def interval(self, lowest: float = -np.inf) -> Interval:
        """The statistic with its 95 % interval, cut at the `lowest` value that is possible."""
        error, freedom = self.error()
        if not np.isfinite(self.value):
            return Interval(None, None, None, self.n)
        if not np.isfinite(error):
            return Interval(self.value, None, None, self.n)
        reach = float(stats.t.ppf(0.975, freedom)) * error
        return Interval(self.value, max(lowest, self.value - reach), max(lowest, self.value + reach), self.n)


def spatial_groups(boxes: Int[np.ndarray, "tile 4"], count: int = GROUPS) -> Groups:
    """Compact groups of tiles (y0, y1, x0, x1), numbered from 0 and equal in size but for one tile.

    The plane is halved again and again across its longer side. Tiles at one place of several sections fall into one
    group: neighbouring sections show the same tissue.
    """
    groups = np.zeros(len(boxes), np.int64)
    centres = np.stack([boxes[:, 0] + boxes[:, 1], boxes[:, 2] + boxes[:, 3]], axis=1)
    waiting = [(np.arange(len(boxes)), 0, max(1, min(count, len(boxes))))]
    while waiting:
        members, first, parts = waiting.pop()
        if parts == 1:
            groups[members] = first
            continue
        at = centres[members]
        order = members[np.argsort(at[:, int(np.argmax(np.ptp(at, axis=0)))], kind="stable")]
        left = parts // 2
        cut = round(len(order) * left / parts)
        waiting += [(order[:cut], first, left), (order[cut:], first + left, parts - left)]
    return groups


def jackknife(statistic: Statistic, groups: Groups, other: Int[np.ndarray, " other"] | None = None) -> Jackknife:
    """Leave out each group in turn.

    `groups` are those of the first set of tiles; `other` those of the second. Without `other` the sets are paired:
    tile by tile the same places, left out of both. Otherwise each group is left out of its own set alone.
    """
    sets = [groups] if other is None else [groups, other]
    everything = [np.ones(len(labels), bool) for labels in sets]

    def value(keep: list[NDArray[np.bool_]]) -> float:
        return statistic(keep[0], keep[-1])

    without, sample, share = [], [], []
    for index, labels in enumerate(sets):
        found, sizes = np.unique(labels, return_counts=True)
        # a set of one group cannot do without it
        for group, size in zip(found, sizes, strict=True) if len(found) > 1 else ():
            keep = list(everything)
            keep[index] = labels != group
            without.append(value(keep))
            sample.append(index)
            share.append(size / len(labels))
        if len(found) < 2:
            without.append(np.nan)
            sample.append(index)
            share.append(1.0)
    n = min(len(labels) for labels in sets)
    return Jackknife(value(everything), np.array(without), np.array(sample, np.int64), np.array(share), n)


def difference(first: Jackknife, second: Jackknife) -> Difference:
    """`first` minus `second`, both over the same groups of the same places; p by Student's t, for no difference."""
    apart = first._replace(value=first.value - second.value, without=first.without - second.without)
    value, low, high, n = apart.interval()
    error, freedom = apart.error()
    if value is None or low is None:
        return Difference(value, None, None, None, n)
    if error == 0:
        return Difference(value, low, high, 1.0 if value == 0 else 0.0, n)
    return Difference(value, low, high, float(2 * stats.t.sf(abs(value) / error, freedom)), n)
