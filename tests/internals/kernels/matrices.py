"""Stacks of matrices with singular values of every kind, and how large the entries of a band may be."""

import numpy as np

from lowrank_core._linalg.kernels.sizes import BAND

KINDS = {
    "zero": np.zeros,
    "equal": np.ones,
    "clustered": lambda p: 1 + 1e-12 * np.arange(p),
    "close": lambda p: np.linspace(1.0, 1.001, p),
    "repeated": lambda p: 1.0 + np.arange(p) % 3,
    "graded": lambda p: np.exp2(-np.linspace(0, 1000, p)),
    "deficient": lambda p: 1.0 * (np.arange(p) < (p + 1) // 3),
    "one above noise": lambda p: np.where(np.arange(p), 1e-9, 1.0),
    "drawn": lambda p: np.random.default_rng(p).random(p),
}


def with_values(count, m, n, values):
    rng = np.random.default_rng([m, n])
    left, right = (np.linalg.qr(rng.standard_normal((count, side, min(m, n))))[0] for side in (m, n))
    return np.ascontiguousarray(left * values @ np.swapaxes(right, 1, 2))


def whole_numbers(rng, *shape):
    """Small enough that every sum of products of them is exact, in any order."""
    return rng.integers(-3, 4, shape).astype(float)


# How large the entries of a band are, by their row and how far from the diagonal they stand.
BANDS = {
    "drawn": lambda *_: 1.0,
    "falling": lambda row, _: np.exp2(-2.0 * row),
    "rising": lambda row, _: np.exp2(2.0 * row),
    "diagonal": lambda _, below: below == 0,
    "three": lambda _, below: below <= 1,
    "nearly": lambda _, below: np.where(below <= 1, 1.0, 1e-9),
    "hollow": lambda _, below: below != 1,
    "far": lambda _, below: below == BAND,
    "tiny": lambda _, below: np.where(below == 0, 1.0, 1e-150),
    "zero": lambda *_: 0.0,
}
