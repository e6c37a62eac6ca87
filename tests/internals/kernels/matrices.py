"""Stacks of matrices with singular values of every kind."""

import numpy as np

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
