"""Noise is a function of its key alone: bits against the published test vectors, and the same in any window."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import ndtri

from tera_mind.geometry import Box
from tera_mind.noise import normal, normal_quantile, philox

WIDE = Box(-40, 60, -30, 70)
FROZEN = ["0x1.3b03760000000p+0", "0x1.844cb00000000p-4", "-0x1.b441120000000p-1", "0x1.294b600000000p-2"]


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [  # Random123's known answers for philox4x32-10
        ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
)
def test_philox_known_answers(counter: str, key: str, expected: str) -> None:
    words = tuple(np.array([int(word, 16)], dtype=np.uint64) for word in counter.split())
    k0, k1 = (int(word, 16) for word in key.split())
    assert " ".join(f"{int(word[0]):08x}" for word in philox(words, (k0, k1))) == expected


def test_the_quantile_is_the_normal_one() -> None:
    tails = 2.0 ** -np.arange(1, 54)
    p = np.concatenate([np.linspace(1e-4, 1 - 1e-4, 20_001), tails, 1 - tails[:52], [0.075, 0.925]])
    np.testing.assert_allclose(normal_quantile(p), ndtri(p), rtol=1e-13, atol=1e-15)


def test_the_numbers_stay_what_they_are() -> None:
    """Volumes made by an earlier release, on another machine, must come out again."""
    values = normal(2**40 + 7, 3, 1, 5, Box(-1, 1, 100_000, 100_002))
    assert values.dtype == np.float32
    assert [value.hex() for value in values.astype(float).ravel()] == FROZEN


@settings(deadline=None)
@given(y=st.integers(-40, 58), x=st.integers(-30, 68), height=st.integers(1, 30), width=st.integers(1, 30))
def test_any_window_has_the_same_numbers(y: int, x: int, height: int, width: int) -> None:
    box = Box(y, min(y + height, WIDE.y1), x, min(x + width, WIDE.x1))
    wide = normal(3, 0, 1, 2, WIDE)
    inner = box.shift(-WIDE.y0, -WIDE.x0)
    np.testing.assert_array_equal(normal(3, 0, 1, 2, box), wide[inner.slices()])


def test_every_part_of_the_key_counts() -> None:
    box = Box(0, 64, 0, 64)
    keys = [(0, 0, 0, 0), (1, 0, 0, 0), (2**32, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1), (0, 0, 0, -1)]
    planes = np.stack([normal(*key, box).ravel() for key in keys])
    correlation = np.corrcoef(planes) - np.eye(len(keys))
    assert np.abs(correlation).max() < 0.08, "independent, so of the order of 1/64"


def test_it_is_standard_normal() -> None:
    values = normal(0, 0, 0, 0, Box(0, 512, 0, 512)).astype(np.float64)
    assert abs(values.mean()) < 0.01
    assert abs(values.std() - 1) < 0.01
    assert abs((values**4).mean() - 3) < 0.06
    neighbours = np.corrcoef(values[:, :-1].ravel(), values[:, 1:].ravel())[0, 1]
    assert abs(neighbours) < 0.01
