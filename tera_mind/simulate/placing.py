"""Where cells may stand: a hard-core point process whose outcome at a place depends on a fixed neighbourhood only.

Every bin of a lattice offers at most one candidate. In each of a few rounds, a candidate whose mark is the lowest among
its living competitors stays, and drives away those that are closer than both keep apart; what is undecided at the end
goes. (Matern's type II process is the first round alone; the later ones fill the gaps that it leaves.) After R rounds
the outcome depends on candidates within (2 R - 1) distances, so any window with that margin sees the same cells.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

BIN_UM = 4.0
ROUNDS = 3
#: cells keep the usual distance of their region times a number between these
SOFTNESS = (0.7, 1.2)
LARGEST_CORE_UM = 11.0
#: margin within which the outcome depends on candidates
DEPENDENCE_UM = (2 * ROUNDS - 1) * LARGEST_CORE_UM * SOFTNESS[1]

#: offered and kept candidates, both in units of 1 / (pi core^2), of this process with these rounds; measured
_OFFERED = np.array([0.0, 0.1, 0.2, 0.4, 0.7, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 9.0])
_KEPT = np.array([0.0, 0.094, 0.183, 0.333, 0.537, 0.687, 0.917, 1.079, 1.324, 1.471, 1.69, 1.873])


def offered_um2(kept_um2: NDArray[np.float64], core_um: NDArray[np.float64]) -> NDArray[np.float64]:
    """Candidates per um2 that leave the wanted number of cells, for regions with their cores."""
    disc = np.pi * core_um * core_um
    return np.where(disc > 0, np.interp(kept_um2 * disc, _KEPT, _OFFERED) / np.where(disc > 0, disc, 1.0), 0.0)


def survivors(
    y_um: NDArray[np.float64], x_um: NDArray[np.float64], reach_um: NDArray[np.float64], mark: NDArray[np.float64]
) -> NDArray[np.bool_]:
    """Which candidates stay; `reach_um` is what each keeps (a pair keeps the mean of both), marks are distinct."""
    n = len(mark)
    state = np.zeros(n, np.int8)  # 0 undecided, 1 stays, -1 gone
    if n < 2:
        return np.ones(n, bool)
    points = np.stack([y_um, x_um], axis=1)
    pairs = cKDTree(points).query_pairs(float(reach_um.max()) * 1.001, output_type="ndarray")
    first, second = pairs[:, 0], pairs[:, 1]
    dy, dx = y_um[first] - y_um[second], x_um[first] - x_um[second]
    keep = 0.5 * (reach_um[first] + reach_um[second])
    close = dy * dy + dx * dx < keep * keep
    first, second = first[close], second[close]
    lower = mark[first] < mark[second]
    winner, loser = np.where(lower, first, second), np.where(lower, second, first)
    for _ in range(ROUNDS):
        alive = (state[winner] == 0) & (state[loser] == 0)
        winner, loser = winner[alive], loser[alive]
        beaten = np.zeros(n, bool)
        beaten[loser] = True
        stays = (state == 0) & ~beaten
        state[stays] = 1
        state[loser[stays[winner]]] = -1
    return np.asarray(state == 1)
