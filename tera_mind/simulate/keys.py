"""Random numbers that are functions of (seed, purpose, section, place) alone, and draws from distributions by table.

Counter-based bits (Philox 4x32-10, `tera_mind.noise`). A draw looks its bits up in a table of a distribution's
quantiles, so it is one indexing: equal for equal keys whatever the window, the order or the size of the arrays.
`np.exp` and the like are kept out of what windows must agree on, since their last bit may depend on where in an array
a value stands; tables are made once, whole.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from tera_mind.geometry import Box
from tera_mind.noise import philox

_LOW = np.uint64(0xFFFFFFFF)
_HIGH16, _LOW16 = np.uint64(16), np.uint64(0xFFFF)
#: sets these keys apart from those of the sampler's noise
_DOMAIN = 0x51B1A1
#: entries of a table of quantiles
LEVELS = 2**16

Words = tuple[NDArray[np.uint64], NDArray[np.uint64], NDArray[np.uint64], NDArray[np.uint64]]
Reals = NDArray[np.float64]

# purposes: what a number is for
PLACE, SHAPE, COUNTS, COPIES, FLOOR, PIXELS, FIELD, SECTION, STEPS = range(1, 10)


def words(seed: int, purpose: int, section: int, a: NDArray[np.int64], b: NDArray[np.int64], draw: int = 0) -> Words:
    """Four words of 32 random bits for every pair (a, b) of integers (equal shapes), which may be negative."""
    c0, c1 = a.astype(np.uint64) & _LOW, b.astype(np.uint64) & _LOW
    c2 = np.full_like(c0, (section & 0xFFFFFF) << 8 | (draw & 0xFF))
    c3 = np.full_like(c0, purpose)
    return philox((c0, c1, c2, c3), (seed & 0xFFFFFFFF, ((seed >> 32) & 0xFFFFFFFF) ^ _DOMAIN))  # type: ignore[return-value]


def section_numbers(seed: int, purpose: int, section: int, count: int) -> Reals:
    """`count` uniform numbers in (0, 1) for a section."""
    index = np.arange(count, dtype=np.int64)
    return uniform(words(seed, SECTION, section, index, np.full_like(index, purpose))[0])


def uniform(word: NDArray[np.uint64]) -> Reals:
    """Uniform in (0, 1) from 32 bits."""
    return (word.astype(np.float64) + 0.5) * 2.0**-32


def halves(word: NDArray[np.uint64]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Two indices below `LEVELS` from 32 bits."""
    return (word >> _HIGH16).astype(np.intp), (word & _LOW16).astype(np.intp)


@cache
def quantiles(name: str, first: float = 0.0, second: float = 1.0) -> Reals:
    """Table of a distribution's `LEVELS` quantiles: see `_QUANTILES` for names and parameters."""
    table = _QUANTILES[name](np.arange(LEVELS) / LEVELS + 0.5 / LEVELS, first, second)
    table.flags.writeable = False
    return table


_QUANTILES: dict[str, Callable[[Reals, float, float], Reals]] = {
    "normal": lambda p, mean, sd: mean + sd * ndtri(p),
    "lognormal": lambda p, mu, sigma: np.exp(mu + sigma * ndtri(p)),
    "exponential": lambda p, mean, most: np.minimum(-mean * np.log1p(-p), most),
    "cosine": lambda p, _a, _b: np.cos(2 * np.pi * p),
    "sine": lambda p, _a, _b: np.sin(2 * np.pi * p),
    # 0.41 of a gene's transcripts inside its cell lie in the nucleus (5-95 %: 0.19-0.71)
    "logistic normal": lambda p, mu, sigma: 1 / (1 + np.exp(-(mu + sigma * ndtri(p)))),
}


@cache
def poisson_table(mean: float) -> NDArray[np.int64]:
    """Quantiles of the Poisson distribution."""
    from scipy.stats import poisson

    return poisson.ppf(np.arange(LEVELS) / LEVELS + 0.5 / LEVELS, mean).astype(np.int64)


@cache
def _falling(kind: str) -> NDArray[np.float32]:
    """exp(-t) or 1 / (1 + exp(t)) on a fine grid of t."""
    if kind == "exp":
        return np.exp(-np.arange(2**14 + 1) / 2**10).astype(np.float32)
    return (1 / (1 + np.exp((np.arange(2**14 + 1) - 2**13) / 2**10))).astype(np.float32)


def fast_exp(t: NDArray[np.float32]) -> NDArray[np.float32]:
    """exp(-t) for t >= 0 (0 beyond 16), good to 1e-3, the same for the same t."""
    return np.asarray(_falling("exp")[np.minimum(t * np.float32(2**10), np.float32(2**14)).astype(np.int32)])


def fast_sigmoid(t: NDArray[np.float32]) -> NDArray[np.float32]:
    """1 / (1 + exp(t)), saturated beyond 8 on either side, good to 1e-3, the same for the same t."""
    index = np.clip((t + np.float32(8)) * np.float32(2**10), np.float32(0), np.float32(2**14))
    return np.asarray(_falling("sigmoid")[index.astype(np.int32)])


@cache
def _normal_32() -> NDArray[np.float32]:
    return quantiles("normal").astype(np.float32)


def pixel_normals(seed: int, section: int, channel: int, box: Box) -> NDArray[np.float32]:
    """Standard normal numbers of a window (y, x) of a section's own pixels; eight of 16 bits from each Philox call."""
    first, last = box.x0 // 8, -(-box.x1 // 8)
    y, x = np.meshgrid(np.arange(box.y0, box.y1), np.arange(first, last), indexing="ij")
    drawn = words(seed, PIXELS, section, y, x, channel)
    out = np.empty((box.height, last - first, 8), np.float32)
    table = _normal_32()
    for index, word in enumerate(drawn):
        out[:, :, 2 * index] = table[(word >> _HIGH16).astype(np.intp)]
        out[:, :, 2 * index + 1] = table[(word & _LOW16).astype(np.intp)]
    left = box.x0 - 8 * first
    return out.reshape(box.height, -1)[:, left : left + box.width]
