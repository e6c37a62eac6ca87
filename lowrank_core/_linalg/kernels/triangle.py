"""The triangle of a tall matrix: R of its QR factorisation, some rows at a time, so that they stay in a core's cache.

A sequential TSQR (Demmel, Grigori, Hoemmen and Langou, SIAM J. Sci. Comput. 34 (2012) A206, §5): what is left of the
rows so far is factored together with the next ones. Columns lie one after another, so that vectors are filled whatever
their number; a pass for each Householder reflector applies it to the columns while it sums their products with the next
one.
"""

from __future__ import annotations

import math

import numpy as np

from lowrank_core._linalg.kernels import simd
from lowrank_core._linalg.kernels.compiling import Floats, kernel
from lowrank_core._linalg.kernels.simd import NEGLIGIBLE, WIDTH

__all__ = ["triangle"]

# Entries of a few columns that are factored together, 32 KiB, as a core's first cache has them; and new rows for each
# column at least, above which the triangle of the rows before is factored again.
CACHED_ENTRIES = 2**12
MIN_ROWS = 8

# Columns that a pass takes at once: a sum for each, so that an addition need not wait for the one before. With more,
# matrices of few columns would be filled up with as many of zeros.
AT_ONCE = 4


@kernel
def _copy_rows(flat: Floats, start: int, count: int, n: int, A: Floats, apart: int, to: int) -> None:
    """Copy rows of a matrix to columns of A, ``apart``, from entry ``to`` on, and zeros up to a whole vector.

    Of fewer columns than a vector has, several rows are one: the order of rows has no bearing on the triangle.
    """
    together = WIDTH // n if WIDTH % n == 0 else 1
    whole = count - count % (together * WIDTH) if together * n % WIDTH == 0 else 0
    places = np.empty(WIDTH, np.int64)
    for lane in range(WIDTH):
        places[lane] = lane % n * apart + lane // n * (whole // together)
    for i in range(0, whole // together, WIDTH):
        for j in range(0, together * n, WIDTH):
            tile = simd.load_rows(flat, (start + i * together) * n + j, together * n, WIDTH)
            at = j * apart + to + i
            simd.store_rows(A, at, simd.load_column(places, 0, 1, WIDTH), simd.transpose(tile))
    for i in range(whole, count):
        for j in range(n):
            A[j * apart + to + i] = flat[(start + i) * n + j]
    for j in range(n):
        A[j * apart + to + count : j * apart + to + (count + WIDTH - 1) // WIDTH * WIDTH] = 0.0


@kernel
def _add_column(A: Floats, v: int, weight: float, x: int, count: int) -> None:
    """Add a column of A, from v on, times a weight to another one, from x on."""
    for i in range(0, count, WIDTH):
        simd.store(A, x + i, simd.fma(weight, simd.load(A, v + i), simd.load(A, x + i)))


@kernel
def _add_and_sum(A: Floats, v: int, x: int, at: int, apart: int, count: int, w: Floats, p: Floats, column: int) -> None:
    """Add a column times weights w to columns of A, from ``at`` on, and fill p with the products of these with x.

    From the last row to the first, where the triangle of the rows before is: to as large a number, of equal rows each
    addition would be rounded alike.
    """
    weights, sums = simd.load_column(w, column, 1, AT_ONCE), simd.broadcast(0.0, WIDTH, AT_ONCE)
    for i in range(count - WIDTH, -1, -WIDTH):
        tile = simd.fma(weights, simd.load(A, v + i), simd.load_rows(A, at + i, apart, AT_ONCE))
        simd.store_rows(A, at + i, apart, tile)
        sums = simd.fma(tile, simd.load(A, x + i), sums)
    simd.store_rows(p, column, 1, simd.sum_rows(sums))


@kernel
def _factor(A: Floats, rows: int, apart: int, R: Floats, w: Floats, p: Floats) -> None:
    """Fill R with the triangle of columns of A, ``apart``; what is left in A means nothing."""
    n = R.shape[0]
    # Of the column that is next, and of those before and beyond all, it is 0 again.
    w[:] = 0.0
    for first in range(0, n, AT_ONCE):
        _add_and_sum(A, 0, 0, first * apart, apart, rows, w, p, first)
    for k in range(n):
        v = k * apart
        alpha, norm = A[v + k], math.sqrt(p[k])
        added = -norm if alpha < 0.0 else norm
        head = alpha + added
        factor = 1.0 / (norm * abs(head)) if p[k] > NEGLIGIBLE else 0.0
        R[k, k] = -added
        # Rows that are finished take no part any more.
        A[v + k] = 0.0
        for j in range(k + 1, n):
            entry = A[j * apart + k]
            w[j] = -factor * (p[j] + added * entry)
            R[k, j] = entry + head * w[j]
            A[j * apart + k] = 0.0
        following = k + 1
        if following == n:
            return
        start = following // WIDTH * WIDTH
        x = following * apart
        _add_column(A, v + start, w[following], x + start, rows - start)
        w[following] = 0.0
        for first in range(following // AT_ONCE * AT_ONCE, n, AT_ONCE):
            _add_and_sum(A, v + start, x + start, first * apart + start, apart, rows - start, w, p, first)


@kernel
def triangle(matrix: Floats, R: Floats) -> None:
    """Fill R (n, n) with the triangle of a matrix (m, n): Rᵀ R is its Gram matrix."""
    m, n = matrix.shape
    flat = matrix.reshape(m * n)
    columns, top = -(-n // AT_ONCE) * AT_ONCE, -(-n // WIDTH) * WIDTH
    # Whole tiles, of one column too, which takes as many rows as a tile has entries.
    most = -(-max(MIN_ROWS * n, CACHED_ENTRIES // n - top) // WIDTH**2) * WIDTH**2
    # A vector further apart than they are long: at multiples of a large power of two they would share places of the
    # cache.
    apart = top + most + WIDTH
    A, w, p = np.zeros(columns * apart), np.empty(columns), np.empty(columns)
    R[:] = 0.0
    for start in range(0, m, most):
        count = min(m - start, most)
        # Above them is the triangle of the rows before, of which there are none at first.
        for j in range(n):
            A[j * apart : j * apart + top] = 0.0
            for i in range(j + 1):
                A[j * apart + i] = R[i, j]
        _copy_rows(flat, start, count, n, A, apart, top)
        _factor(A, top + -(-count // WIDTH) * WIDTH, apart, R, w, p)
