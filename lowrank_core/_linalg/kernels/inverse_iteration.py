"""Eigenvectors of a tridiagonal matrix, by inverse iteration (Peters and Wilkinson, SIAM Rev. 21 (1979) 339)."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from lowrank_core._linalg.kernels import simd
from lowrank_core._linalg.kernels.compiling import Floats, kernel
from lowrank_core._linalg.kernels.sizes import WIDTH

__all__ = ["eigenvectors"]

# Solutions for each vector. With an eigenvalue that is known to rounding, one multiplies the eigenvector's part of the
# start by the inverse of that; another does for starts that have little of it.
ROUNDS = 2

# What takes the place of a smaller pivot, over the largest eigenvalue; and where all eigenvalues are zero.
LEAST_PIVOT, LEAST_OF_ZERO = 2.0**-53, 2.0**-500


@kernel
def _factor(
    diagonal: Floats, beside: Floats, shift: float, least: float, U: Floats, L: Floats, swapped: NDArray[np.bool_]
) -> None:
    """Compute factors of T − shift by Gaussian elimination: three diagonals of U (3, n), and L, a number for each row.

    Rows k and k + 1 are ``swapped`` where the second has the larger pivot. No pivot is below ``least``: otherwise one
    of several vectors for an eigenvalue could grow beyond all digits of the others.
    """
    n = diagonal.size
    pivot, above = diagonal[0] - shift, beside[0]
    for k in range(n - 1):
        below, following = beside[k], diagonal[k + 1] - shift
        second = beside[k + 1] if k + 2 < n else 0.0
        swapped[k] = abs(below) > max(abs(pivot), least)
        if swapped[k]:
            L[k] = pivot / below
            U[0, k], U[1, k], U[2, k] = below, following, second
            pivot, above = above - L[k] * following, -L[k] * second
        else:
            pivot = pivot if abs(pivot) > least else least
            L[k] = below / pivot
            U[0, k], U[1, k], U[2, k] = pivot, above, 0.0
            pivot, above = following - L[k] * above, second
    U[0, n - 1] = pivot if abs(pivot) > least else least


@kernel
def _solve(U: Floats, L: Floats, swapped: NDArray[np.bool_], x: Floats) -> None:
    """Compute the solution for the matrix that `_factor` factored, in place of the right side x."""
    n = x.size
    for k in range(n - 1):
        if swapped[k]:
            x[k], x[k + 1] = x[k + 1], x[k]
        x[k + 1] -= L[k] * x[k]
    x[n - 1] /= U[0, n - 1]
    x[n - 2] = (x[n - 2] - U[1, n - 2] * x[n - 1]) / U[0, n - 2]
    for k in range(n - 3, -1, -1):
        x[k] = (x[k] - U[1, k] * x[k + 1] - U[2, k] * x[k + 2]) / U[0, k]


@kernel
def _inner(x: Floats, y: Floats) -> float:
    whole = x.size - x.size % WIDTH
    total: float = simd.inner(x, y, whole)
    for k in range(whole, x.size):
        total += x[k] * y[k]
    return total


@kernel
def eigenvectors(diagonal: Floats, beside: Floats, values: Floats, vectors: Floats) -> None:
    """Compute orthonormal eigenvectors for eigenvalues, descending, in place of start vectors (count, n), n ≥ 2.

    Each is made orthogonal to those before it, which of eigenvalues that are equal gives a basis; twice, since a
    solution may have much of them. Of many nearly equal eigenvalues a vector may fail to stand out: the caller checks.
    """
    n = diagonal.size
    U, L, swapped = np.empty((3, n)), np.empty(n), np.empty(n, np.bool_)
    for j in range(values.size):
        _factor(diagonal, beside, values[j], max(LEAST_PIVOT * values[0], LEAST_OF_ZERO), U, L, swapped)
        x = vectors[j]
        for _ in range(ROUNDS):
            _solve(U, L, swapped, x)
            # A solution may be as large as the inverse of the smallest pivot.
            x /= np.max(np.abs(x))
            for _ in range(2):
                for i in range(j):
                    x -= _inner(vectors[i], x) * vectors[i]
                x /= math.sqrt(_inner(x, x))
