"""Cholesky factors of small Gram matrices and their inverses, one matrix after another.

By rows of the upper triangle (Golub and Van Loan, "Matrix Computations", 4th ed., §4.2.5), so that every pass is along
memory. LAPACK's routines take ten times as long for these sizes, most of it for an inverse that knows no triangle.
"""

from __future__ import annotations

import math

import numpy as np

from lowrank_core._linalg.kernels import simd
from lowrank_core._linalg.kernels.compiling import Floats, kernel
from lowrank_core._linalg.kernels.simd import WIDTH

__all__ = ["cholesky_inverses"]


@kernel
def _factor(A: Floats, n: int, size: int) -> bool:
    """Replace the upper triangle of A (n, size), flattened, by R with A = Rᵀ R; return whether A is definite."""
    for j in range(n):
        pivot = A[j * size + j]
        if not 0.0 < pivot < math.inf:
            return False
        scale, first = 1.0 / math.sqrt(pivot), j // WIDTH * WIDTH
        for k in range(first, size, WIDTH):
            simd.store(A, j * size + k, scale * simd.load(A, j * size + k))
        for i in range(j + 1, n):
            entry = 0.0 - A[j * size + i]
            for k in range(i // WIDTH * WIDTH, size, WIDTH):
                simd.store(A, i * size + k, simd.fma(entry, simd.load(A, j * size + k), simd.load(A, i * size + k)))
    return True


@kernel
def _invert(R: Floats, n: int, size: int, X: Floats) -> None:
    """Fill the upper triangle of X (n, size), flattened, with the inverse of R; what is beside it is not read."""
    for i in range(n - 1, -1, -1):
        scale = 1.0 / R[i * size + i]
        for column in range(i // WIDTH * WIDTH, size, WIDTH):
            total = simd.broadcast(0.0)
            # Rows that begin beyond these columns have zeros in them.
            for k in range(i + 1, min(n, column + WIDTH)):
                total = simd.fma(0.0 - R[i * size + k], simd.load(X, k * size + column), total)
            simd.store(X, i * size + column, scale * total)
        X[i * size + i] = scale
        for k in range(i // WIDTH * WIDTH, i):
            X[i * size + k] = 0.0


@kernel
def _copy_triangle(A: Floats, n: int, size: int, out: Floats) -> float:
    """Copy an upper triangle of A (n, size), flattened; return ‖·‖₁‖·‖_∞ of it, which bounds its ‖·‖₂²."""
    largest, columns = 0.0, np.zeros(n)
    for i in range(n):
        total = 0.0
        for k in range(n):
            entry = A[i * size + k] if k >= i else 0.0
            out[i, k] = entry
            total += abs(entry)
            columns[k] += abs(entry)
        largest = max(largest, total)
    most = 0.0
    for k in range(n):
        most = max(most, columns[k])
    return largest * most


@kernel
def cholesky_inverses(grams: Floats, roots: Floats, inverses: Floats, bounds: Floats) -> None:
    """Fill roots with the upper triangular R of G = RᵀR for Gram matrices (batch, n, n), and inverses with their R⁻¹.

    ``bounds`` (batch,) are at least the squared condition numbers of R, and infinite for a matrix that is not definite,
    whose root and inverse are not filled.
    """
    batch, n, _ = grams.shape
    size = (n + WIDTH - 1) // WIDTH * WIDTH
    R, X = np.zeros(n * size), np.zeros(n * size)
    for matrix in range(batch):
        for i in range(n):
            for k in range(n):
                R[i * size + k] = grams[matrix, i, k]
        bounds[matrix] = math.inf
        if _factor(R, n, size):
            _invert(R, n, size, X)
            bounds[matrix] = _copy_triangle(R, n, size, roots[matrix]) * _copy_triangle(X, n, size, inverses[matrix])
