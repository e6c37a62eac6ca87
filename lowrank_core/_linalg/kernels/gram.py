"""Eigenvalues of Gram matrices too large for a lane each: alone to tridiagonal form, then eight at once by dqds.

Householder tridiagonalisation (Golub and Van Loan, "Matrix Computations", 4th ed., §8.3.1), from the last row upwards
along memory, in a pass for each reflector: the last one is applied while the next one's product is formed.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from lowrank_core._linalg.kernels import simd
from lowrank_core._linalg.kernels.compiling import Floats, Integers, kernel
from lowrank_core._linalg.kernels.dqds import N0, STATE, dqds, write_values
from lowrank_core._linalg.kernels.simd import TILE_ROWS, WIDTH

__all__ = ["tridiagonal_values", "tridiagonals"]

# What keeps the factors of a deficient Gram matrix positive is added to its diagonal, as a fraction of the largest
# entry, and subtracted from its eigenvalues: 64 ulp, against some ulp by which rounding takes eigenvalues below zero.
LIFT = 2.0**-46

# Eigenvalues of a Gram matrix are known to an ulp of the largest, no better.
BLUR = 2.0**-4

# Squares below this are negligible, where the largest entry is near 1. A reflector is scaled by about one over its
# square, which is squared in turn, and under 1e-154 would be infinite. No eigenvalue moves by more than 1e-75.
NEGLIGIBLE = 1e-150

# Rows that a pass takes at once: their entries of v, w and x and their sums stay in registers.
ROWS = TILE_ROWS // 2


@kernel
def _update_rows(A: Floats, row: int, size: int, stop: int, v: Floats, w: Floats, x: Floats, p: Floats) -> Any:
    """Apply the last reflector to rows up to a column; add the next one's product to p, and return it for the rows."""
    v_rows, w_rows, x_rows = (
        simd.load_column(v, row, 1, ROWS),
        simd.load_column(w, row, 1, ROWS),
        simd.load_column(x, row, 1, ROWS),
    )
    sums = simd.broadcast(0.0, WIDTH, ROWS)
    for k in range(0, stop, WIDTH):
        v_k, w_k, x_k = simd.load(v, k), simd.load(w, k), simd.load(x, k)
        tile = simd.fma(v_rows, w_k, simd.fma(w_rows, v_k, simd.load_rows(A, row * size + k, size, ROWS)))
        simd.store_rows(A, row * size + k, size, tile)
        sums = simd.fma(tile, x_k, sums)
        simd.store(p, k, simd.add_combination(simd.load(p, k), x_rows, tile))
    return sums


@kernel
def _update_block(A: Floats, first: int, size: int, v: Floats, w: Floats, x: Floats, p: Floats, sums: Floats) -> None:
    """Apply the last reflector to a block on the diagonal; begin the next product with its part and the rows' sums."""
    w_k, v_k, product = simd.load(w, first), simd.load(v, first), simd.broadcast(0.0)
    for i in range(first, first + WIDTH):
        row = simd.fma(v[i], w_k, simd.fma(w[i], v_k, simd.load(A, i * size + first)))
        simd.store(A, i * size + first, row)
        # The block is kept whole, so its columns are its rows.
        product = simd.fma(row, x[i], product)
    simd.store(p, first, simd.add_combination(product, 1.0, simd.transpose(simd.load_rows(sums, 0, WIDTH, WIDTH))))


@kernel
def _tridiagonalise(
    A: Floats, n: int, size: int, v: Floats, w: Floats, x: Floats, p: Floats, sums: Floats, d: Floats, b: Floats
) -> None:
    """Reduce the lower triangle of A (size, size), flattened and zero beyond n, to d and the squares b beside it.

    A pass adds v wᵀ + w vᵀ: w has the opposite of the usual sign, so that no column has to be negated.
    """
    w[:] = 0.0
    for i in range(n - 1, -1, -1):  # pragma: no branch - row 0 returns
        padded = (i // WIDTH + 1) * WIDTH
        for k in range(0, padded, WIDTH):
            simd.store(
                x, k, simd.fma(v[i], simd.load(w, k), simd.fma(w[i], simd.load(v, k), simd.load(A, i * size + k)))
            )
        d[i] = x[i]
        if i == 0:
            return
        x[i:padded] = 0.0
        square = simd.inner(x, x, padded)
        b[i - 1] = square
        norm, alpha = math.sqrt(square), x[i - 1]
        head = alpha - norm if alpha < 0.0 else alpha + norm
        x[i - 1] = head
        scale = 1.0 / (norm * abs(head)) if square > NEGLIGIBLE else 0.0
        blocks = ((i - 1) // WIDTH + 1) * WIDTH
        for first in range(0, blocks, WIDTH):
            for row in range(0, WIDTH, ROWS):
                part = _update_rows(A, first + row, size, first, v, w, x, p)
                simd.store_rows(sums, row * WIDTH, WIDTH, part)
            _update_block(A, first, size, v, w, x, p, sums)
        half = 0.5 * scale * scale * simd.inner(p, x, blocks)
        for k in range(0, blocks, WIDTH):
            x_k = simd.load(x, k)
            simd.store(v, k, x_k)
            simd.store(w, k, simd.fma(half, x_k, -scale * simd.load(p, k)))


@kernel
def _factor(lane: int, n: int, d: Floats, b: Floats, q: Floats, e: Floats) -> float:
    """Factor T + lift·I, of diagonal d and squares b beside it, into a lane; return the lift, −1 if T is indefinite."""
    lift = 0.0
    for i in range(n):
        lift = max(lift, d[i])
    lift *= LIFT
    above = 0.0
    for i in range(n):
        pivot = d[i] + lift - above
        if not 0.0 < pivot < math.inf and lift > 0.0:
            return -1.0
        above = b[i] / pivot if b[i] > 0.0 else 0.0
        q[i * WIDTH + lane], e[i * WIDTH + lane] = pivot, above
    return lift


@kernel
def tridiagonals(grams: Floats, diagonals: Floats, squares: Floats, exponents: Integers) -> None:
    """Reduce Gram matrices (batch, n, n), over 4^exponents, to diagonals and the squares of what is beside them.

    Each is (batch, n), and the last of the squares 0. Over a power, so that what is squared stays in range.
    """
    batch, n, _ = grams.shape
    size = ((n - 1) // WIDTH + 1) * WIDTH
    A = np.zeros(size * size)
    v, w, x, p, sums = np.zeros(size), np.zeros(size), np.zeros(size), np.zeros(size), np.empty(WIDTH * WIDTH)
    for matrix in range(batch):
        largest = 0.0
        for i in range(n):
            largest = max(largest, grams[matrix, i, i])
        half = math.frexp(largest)[1] // 2
        exponents[matrix] = half
        unit = math.ldexp(1.0, -2 * half)
        for i in range(n):
            # The lower triangle, with whole blocks on the diagonal.
            for k in range(min(n, (i // WIDTH + 1) * WIDTH)):
                A[i * size + k] = grams[matrix, i, k] * unit
        squares[matrix, n - 1] = 0.0
        _tridiagonalise(A, n, size, v, w, x, p, sums, diagonals[matrix], squares[matrix])


@kernel
def tridiagonal_values(diagonals: Floats, squares: Floats, values: Floats) -> int:
    """Square roots of the eigenvalues of tridiagonal matrices, as `tridiagonals` fills them, descending, (batch, n).

    NaN for a matrix that did not converge. Returns the number of matrices left at NaN.
    """
    batch, n = diagonals.shape
    size = n * WIDTH
    # Steps look at a row of q beyond the last.
    q, e = np.zeros(size + WIDTH), np.zeros(size)
    q_old, e_old, sigmas = np.empty(size), np.empty(size), np.empty(size)
    state, lifts = np.empty(STATE), np.empty(WIDTH)
    unfinished = 0
    for first in range(0, batch, WIDTH):
        for lane in range(WIDTH):
            # Lanes beyond the last matrix have it again: dqds is slower where lanes have blocks of different rows.
            matrix = min(first + lane, batch - 1)
            lifts[lane] = _factor(lane, n, diagonals[matrix], squares[matrix], q, e)
        dqds(n, q, e, q_old, e_old, sigmas, state, BLUR)
        lift = simd.load(lifts, 0)
        simd.store(state, N0, simd.select(lift < 0.0, 0.0, simd.load(state, N0)))
        for at in range(0, size, WIDTH):
            square = simd.load(q, at) - lift
            simd.store(q, at, simd.select(square > 0.0, square, 0.0))
        unfinished += write_values(first, q, state, values)
    return unfinished
