"""Gaussian numbers that are a function of (seed, step, stain, section, y, x) alone.

Counter-based bits (Philox 4x32-10, Salmon 2011) and an own normal transform built from exactly rounded operations
only (+, -, *, /, sqrt and powers of two), so that the same place has the same number on every machine, library
version, tiling and order. The transform inverts the normal distribution by Wichura's AS 241 (1988), accurate to
about 1e-16.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tera_mind.geometry import Box

_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (0x9E3779B9, 0xBB67AE85)
_LOW = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)

#: numbers made at once, with some twenty temporaries of 8 bytes each: few enough for a processor's cache
_AT_ONCE = 2**14
#: memory that making noise takes beside the result, however large the window (of up to 16,384 columns)
WORKING_BYTES = 20 * 8 * _AT_ONCE

# coefficients of AS 241's three rational approximations, highest power first
_CENTRAL = (
    (2509.0809287301226727, 33430.575583588128105, 67265.770927008700853, 45921.953931549871457,
     13731.693765509461125, 1971.5909503065514427, 133.14166789178437745, 3.387132872796366608),
    (5226.495278852545925, 28729.085735721942674, 39307.89580009271061, 21213.794301586595867,
     5394.1960214247511077, 687.1870074920579083, 42.313330701600911252, 1.0),
)  # fmt: skip
_MIDDLE = (
    (7.7454501427834140764e-4, 0.0227238449892691845833, 0.24178072517745061177, 1.27045825245236838258,
     3.64784832476320460504, 5.7694972214606914055, 4.6303378461565452959, 1.42343711074968357734),
    (1.05075007164441684324e-9, 5.475938084995344946e-4, 0.0151986665636164571966, 0.14810397642748007459,
     0.68976733498510000455, 1.6763848301838038494, 2.05319162663775882187, 1.0),
)  # fmt: skip
_FAR = (
    (2.01033439929228813265e-7, 2.71155556874348757815e-5, 0.0012426609473880784386, 0.026532189526576123093,
     0.29656057182850489123, 1.7848265399172913358, 5.4637849111641143699, 6.6579046435011037772),
    (2.04426310338993978564e-15, 1.4215117583164458887e-7, 1.8463183175100546818e-5, 7.868691311456132591e-4,
     0.0148753612908506148525, 0.13692988092273580531, 0.59983220655588793769, 1.0),
)  # fmt: skip


def philox(counter: tuple[NDArray[np.uint64], ...], key: tuple[int, int]) -> tuple[NDArray[np.uint64], ...]:
    """Philox 4x32-10: four words of 32 bits (held in uint64) from four counter words and two key words."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        product0, product1 = _MULTIPLIERS[0] * c0, _MULTIPLIERS[1] * c2
        c0, c1, c2, c3 = (
            (product1 >> _SHIFT) ^ c1 ^ np.uint64(k0),
            product1 & _LOW,
            (product0 >> _SHIFT) ^ c3 ^ np.uint64(k1),
            product0 & _LOW,
        )
        k0, k1 = (k0 + _WEYL[0]) & 0xFFFFFFFF, (k1 + _WEYL[1]) & 0xFFFFFFFF
    return c0, c1, c2, c3


def _ratio(r: NDArray[np.float64], coefficients: tuple[tuple[float, ...], tuple[float, ...]]) -> NDArray[np.float64]:
    top, bottom = np.zeros_like(r), np.zeros_like(r)
    for a, b in zip(*coefficients, strict=True):
        top, bottom = top * r + a, bottom * r + b
    return top / bottom


def _log(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Natural logarithm by exactly rounded operations: x = m 2^e, log m = 2 atanh((m - 1) / (m + 1))."""
    mantissa, exponent = np.frexp(x)
    low = mantissa < 0.7071067811865476
    mantissa, exponent = np.where(low, mantissa * 2.0, mantissa), exponent - low
    s = (mantissa - 1.0) / (mantissa + 1.0)
    square, total = s * s, np.zeros_like(s)
    for k in range(23, 0, -2):
        total = total * square + 1.0 / k
    return 2.0 * s * total + exponent * 0.6931471805599453


def normal_quantile(p: NDArray[np.float64]) -> NDArray[np.float64]:
    """Quantile of the standard normal distribution for p in (0, 1), AS 241 (PPND16)."""
    q = p - 0.5
    out = q * _ratio(0.180625 - q * q, _CENTRAL)
    tail = np.abs(q) > 0.425
    if tail.any():
        r = np.sqrt(-_log(np.minimum(p[tail], 1.0 - p[tail])))
        value = np.where(r <= 5.0, _ratio(r - 1.6, _MIDDLE), _ratio(r - 5.0, _FAR))
        out[tail] = np.copysign(value, q[tail])
    return out


def normal(seed: int, step: int, stain: int, section: int, box: Box) -> NDArray[np.float32]:
    """Standard normal numbers of a window (y, x) in the brain's pixels; positions may be negative.

    `step` 0 is the starting noise x_T; samplers that add noise use 1, 2, ... .
    """
    out = np.empty((box.height, box.width), np.float32)
    rows = max(1, _AT_ONCE // max(1, box.width))
    for part in box.tiles(rows, max(1, box.width)):
        out[part.y0 - box.y0 : part.y1 - box.y0] = _normal(seed, step, stain, section, part)
    return out


def _normal(seed: int, step: int, stain: int, section: int, box: Box) -> NDArray[np.float32]:
    y = np.arange(box.y0, box.y1, dtype=np.int64).astype(np.uint64) & _LOW
    x = np.arange(box.x0, box.x1, dtype=np.int64).astype(np.uint64) & _LOW
    c0, c1 = np.broadcast_arrays(y[:, None], x[None, :])
    c2 = np.full_like(c0, (section & 0xFFFFFF) << 8 | (stain & 0xFF))
    c3 = np.full_like(c0, step & 0xFFFFFFFF)
    high, low, _, _ = philox((c0, c1, c2, c3), (seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF))
    bits = (high << np.uint64(20)) | (low >> np.uint64(12))  # 52 bits, so that p is never 0 or 1
    p = (bits.astype(np.float64) + 0.5) * 2.0**-52
    return normal_quantile(p).astype(np.float32)
