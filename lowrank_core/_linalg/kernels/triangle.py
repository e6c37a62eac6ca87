"""The triangle of a tall matrix: R of its QR factorisation, some rows at a time, so that they stay in a core's cache.

A sequential TSQR (Demmel, Grigori, Hoemmen and Langou, SIAM J. Sci. Comput. 34 (2012) A206, §5): what is left of the
rows so far is factored together with the next ones. A pass for each Householder reflector applies it to the columns
while it sums their products with the next one.
"""

from __future__ import annotations

import math

import numpy as np

from lowrank_core._linalg.kernels import simd
from lowrank_core._linalg.kernels.compiling import Floats, kernel
from lowrank_core._linalg.kernels.simd import NEGLIGIBLE, WIDTH

__all__ = ["triangle"]

# Entries that are factored together, 32 KiB, as a core's first cache has them; and rows for each column at least, of
# which one is what the rows before left.
CACHED_ENTRIES = 2**12
MIN_ROWS = 8

# Rows that a pass takes at once: a sum for each, so that an addition need not wait for the one before.
ROWS = 2


@kernel
def _apply_and_sum(A: Floats, first: int, rows: int, size: int, v: Floats, w: Floats, x: Floats, p: Floats) -> None:
    """Add v wᵀ to rows of A from ``first`` on, in the columns of w, and fill p with their products with x."""
    for k in range(0, w.size, WIDTH):
        weights, sums = simd.load(w, k), simd.broadcast(0.0, WIDTH, ROWS)
        for i in range(first, rows, ROWS):
            at = i * size + size - w.size + k
            tile = simd.fma(simd.load_column(v, i, 1, ROWS), weights, simd.load_rows(A, at, size, ROWS))
            simd.store_rows(A, at, size, tile)
            sums = simd.fma(simd.load_column(x, i, 1, ROWS), tile, sums)
        simd.store(p, k, simd.sum_pairs(sums))


@kernel
def _factor(A: Floats, rows: int, size: int, v: Floats, x: Floats, w: Floats, p: Floats) -> None:
    """Reduce A (rows, size), flattened, to a triangle, and leave below it what is not part of it.

    The number of rows is one of those that are taken at once, the size one of vectors.
    """
    v[:], w[:], x[0] = 0.0, 0.0, 0.0
    for i in range(1, rows):
        x[i] = A[i * size]
    _apply_and_sum(A, 0, rows, size, v, w, x, p)
    for k in range(size):
        row = k * size
        alpha = A[row + k]
        square = alpha * alpha + p[k]
        norm = math.sqrt(square)
        head = alpha - norm if alpha < 0.0 else alpha + norm
        factor = 1.0 / (norm * abs(head)) if square > NEGLIGIBLE else 0.0
        for j in range(k, size):
            w[j] = -factor * (head * A[row + j] + p[j])
            A[row + j] += head * w[j]
        following = k + 1
        if following == size:
            return
        after = following // WIDTH * WIDTH
        w[after:following] = 0.0
        v, x = x, v
        x[: following + 1] = 0.0
        for i in range(following + 1, rows):
            x[i] = A[i * size + following] + v[i] * w[following]
        _apply_and_sum(A, following // ROWS * ROWS, rows, size, v, w[after:], x, p[after:])


@kernel
def triangle(matrix: Floats, R: Floats) -> None:
    """Fill R (n, n) with the triangle of a matrix (m, n): Rᵀ R is its Gram matrix."""
    m, n = matrix.shape
    size = ((n - 1) // WIDTH + 1) * WIDTH
    rows = max(MIN_ROWS * n, CACHED_ENTRIES // size) // ROWS * ROWS
    A, v, x, w, p = np.zeros(rows * size), np.empty(rows), np.empty(rows), np.empty(size), np.empty(size)
    for start in range(0, m, rows - n):
        # Below the triangle of the rows before, of which there are none at first.
        count = min(m - start, rows - n)
        for i in range(count):
            at = (n + i) * size
            for k in range(n):
                A[at + k] = matrix[start + i, k]
        A[(n + count) * size :] = 0.0
        _factor(A, rows, size, v, x, w, p)
        for i in range(1, n):
            A[i * size : i * size + i] = 0.0
    for i in range(n):
        for k in range(n):
            R[i, k] = A[i * size + k]
