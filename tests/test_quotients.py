"""Quotient-difference steps on bidiagonal matrices: what they find, and how many it takes.

As plain Python, whose arithmetic is the same everywhere: the numbers of steps are exact.
"""

import numpy as np
import pytest

from lowrank_core.kernels import lanes, quotients

N = 24
EPS = 2.0**-52
KERNELS = [name for name, held in vars(quotients).items() if callable(held) and held.__module__ == quotients.__name__]


def drawn(seed):
    return np.random.default_rng(seed).random((2, N))


def changed(squares, side, at, value):
    squares[side][at] = value
    return squares


# Squares of the diagonal and of what stands above it; and the steps that they take.
BIDIAGONALS = {
    "drawn": (drawn(0), 120),
    "drawn, larger above": (drawn(1) * [[1.0], [9.0]], 140),
    "drawn, small above": (drawn(2) * [[1.0], [1e-3]], 211),
    "equal": (np.ones((2, N)), 99),
    "nearly diagonal": (np.array([1 + 1e-12 * np.arange(N), np.full(N, 1e-14)]), 119),
    "falling": (np.array([1.0, 0.5])[:, np.newaxis] * 0.25 ** np.arange(N), 50),
    "rising": (np.array([1.0, 0.5])[:, np.newaxis] * 4.0 ** np.arange(N), 77),
    "Wilkinson's": (np.array([np.abs(np.arange(N) - N / 2) + 0.1, np.ones(N)]), 149),
    "nearly split": (changed(drawn(3), 1, N // 2, 1e-20), 179),
    "split": (changed(drawn(4), 1, N // 3, 0.0), 101),
    "nearly singular": (changed(drawn(5), 0, N - 1, 1e-25), 115),
    "singular": (changed(drawn(6), 0, N // 2, 0.0), 115),
    "repeated": (np.array([1.0 + np.arange(N) % 3, np.where(np.arange(N) % 3 == 2, 1e-9, 0.3)]), 116),
}


@pytest.fixture
def steps(monkeypatch):
    """Make the kernels plain, and count the steps."""
    for name in KERNELS:
        monkeypatch.setattr(quotients, name, getattr(getattr(quotients, name), "py_func", getattr(quotients, name)))
    counted, step = [], quotients._step
    monkeypatch.setattr(quotients, "_step", lambda *given: counted.append(None) or step(*given))
    return counted


def converged(squares, blur=0.0):
    """Singular values of up to eight bidiagonal matrices, one a lane."""
    size = (N + 1) * lanes.WIDTH
    q, e = np.zeros(size), np.zeros(size)
    for lane, (diagonal, above) in enumerate(squares):
        q[lane : N * lanes.WIDTH : lanes.WIDTH] = diagonal
        e[lane : (N - 1) * lanes.WIDTH : lanes.WIDTH] = above[:-1]
    state = np.empty(quotients.STATE)
    with np.errstate(all="ignore"):
        quotients.converge(N, q, e, np.empty(size), np.empty(size), np.empty(size), state, blur)
    assert state[quotients.END : quotients.END + lanes.WIDTH].tolist() == [-1] * lanes.WIDTH
    values = np.empty((len(squares), N))
    for lane, row in enumerate(values):
        quotients.descending_roots(lane, q, row)
    return values


def exact(squares):
    diagonal, above = np.sqrt(squares)
    return np.linalg.svd(np.diag(diagonal) + np.diag(above[:-1], 1), compute_uv=False)


@pytest.mark.parametrize("kind", BIDIAGONALS)
def test_values_are_lapacks_in_as_many_steps(kind, steps):
    squares, most = BIDIAGONALS[kind]
    values, right = converged([squares])[0], exact(squares)
    assert np.all(np.diff(values) <= 0)
    assert np.all(np.abs(values - right) <= 4 * N * EPS * right[0])
    assert len(steps) <= most


def test_lanes_take_their_own_steps(steps):
    chosen = [squares for squares, _ in BIDIAGONALS.values()][:8]
    together = converged(chosen)
    count = len(steps)
    alone = []
    for squares, values in zip(chosen, together, strict=True):
        steps.clear()
        assert np.array_equal(converged([squares])[0], values)
        alone.append(len(steps))
    assert count == max(alone)


@pytest.mark.parametrize("kind", BIDIAGONALS)
def test_blurred_squares_are_those_of_the_values(kind, steps):
    squares, _ = BIDIAGONALS[kind]
    blurred, right = converged([squares], 2.0**-4)[0] ** 2, exact(squares) ** 2
    assert np.all(np.abs(blurred - right) <= (2 * 2.0**-51 * 2.0**-2 + 4 * N * EPS) * right[0])
