"""Eigenvectors of three diagonals by inverse iteration: orthonormal, with small residuals, of equal eigenvalues too."""

import numpy as np
import pytest

from lowrank_core._linalg.kernels import inverse_iteration
from tests.bounds import EPS64
from tests.compiled import plain

KERNELS = ("_factor", "_solve", "_inner", "eigenvectors")


@pytest.fixture(params=["compiled", "python"], autouse=True)
def kernel(request, monkeypatch):
    if request.param == "python":
        for name in KERNELS:
            monkeypatch.setattr(inverse_iteration, name, plain(getattr(inverse_iteration, name)))


def second_difference(n):
    return np.full(n, 2.0), np.full(n - 1, -1.0)


def wilkinson(n):
    """Pairs of eigenvalues that agree to many digits (Wilkinson, 1965, ch. 5, §45)."""
    return n + np.abs(np.arange(n) - n // 2), np.ones(n - 1)


def equal(n):
    return np.full(n, 3.0), np.zeros(n - 1)


def copies(n):
    """The same block again and again: each eigenvalue three times or more."""
    beside = np.tile([1.0, -2.0, 0.0], n)[: n - 1]
    return np.full(n, 5.0), beside


def zero_diagonal(n):
    """Each step of an elimination without exchanges would divide by what the one before left."""
    return np.zeros(n), np.where(np.arange(n - 1) % 2, 1e-9, 1.0)


def graded(n):
    return np.exp2(-2.0 * np.arange(n)), np.exp2(-2.0 * np.arange(n - 1) - 3)


def zero(n):
    return np.zeros(n), np.zeros(n - 1)


MATRICES = [second_difference, wilkinson, equal, copies, zero_diagonal, graded, zero]


@pytest.mark.parametrize("n", [2, 3, 4, 21, 40])
@pytest.mark.parametrize("make", MATRICES)
def test_vectors_are_orthonormal_and_belong_to_their_eigenvalues(make, n):
    diagonal, beside = (np.array(part, float) for part in make(n))
    T = np.diag(diagonal) + np.diag(beside, 1) + np.diag(beside, -1)
    values = np.linalg.eigvalsh(T)[::-1]
    for count in (1, n // 2 + 1, n):
        vectors = np.random.default_rng(n).standard_normal((count, n))
        inverse_iteration.eigenvectors(diagonal, beside, values[:count].copy(), vectors)
        assert np.max(np.abs(vectors @ vectors.T - np.eye(count))) <= 4 * n * EPS64
        residuals = vectors @ T - values[:count, np.newaxis] * vectors
        assert np.max(np.abs(residuals)) <= 4 * n * EPS64 * np.max(np.abs(values))


def test_rows_are_exchanged_for_the_larger_pivot():
    U, L, swapped = np.full((3, 3), np.nan), np.full(3, np.nan), np.zeros(3, bool)
    inverse_iteration._factor(np.array([1.0, 3.0, 2.0]), np.array([4.0, 1.0]), 0.0, 1e-9, U, L, swapped)
    # [[1, 4, 0], [4, 3, 1], [0, 1, 2]]: the first two rows are exchanged, 4 − 3/4 stays ahead of 1.
    assert np.array_equal(swapped, [True, False, False])
    assert np.allclose(U[0], [4.0, 3.25, 2.0 + 0.25 / 3.25], rtol=1e-15)
    assert np.array_equal(U[1, :2], [3.0, -0.25])
    assert np.array_equal(U[2, :2], [1.0, 0.0])
    assert np.array_equal(L[:2], [0.25, 1 / 3.25])
    x = np.array([5.0, 8.0, 3.0])
    inverse_iteration._solve(U, L, swapped, x)
    assert np.allclose(x, 1.0, rtol=1e-14)


def test_pivots_of_zero_are_replaced():
    U, L, swapped = np.empty((3, 2)), np.empty(2), np.empty(2, bool)
    inverse_iteration._factor(np.zeros(2), np.zeros(1), 0.0, 0.5, U, L, swapped)
    assert np.array_equal(U[0], [0.5, 0.5])
    assert not swapped[0]
