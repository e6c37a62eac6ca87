"""Singular values of matrices too large for a lane each: alone to bidiagonal form, then eight at once by dqds.

Householder bidiagonalisation (Golub and Van Loan, "Matrix Computations", 4th ed., §5.4.8) in a pass for each column:
both reflectors are applied while the next column's products with all columns are formed.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from lowrank_core._linalg.kernels import simd
from lowrank_core._linalg.kernels.compiling import Floats, Integers, kernel
from lowrank_core._linalg.kernels.dqds import STATE, dqds, write_values
from lowrank_core._linalg.kernels.simd import NEGLIGIBLE, TILE_COLUMNS, TILE_ROWS, WIDTH

__all__ = ["bidiagonal_values", "bidiagonals"]

# Rows that a pass takes at once: their entries and their sums stay in registers.
ROWS, LANES = TILE_ROWS, TILE_COLUMNS // 2


@kernel
def _reflector(alpha: float, rest: float) -> Any:
    """Return ‖x‖², v₀ and c for which I − c v vᵀ maps x to a multiple of e₁; v is x but for its first entry, v₀.

    x begins with α, and ``rest`` is the sum of the other entries' squares; c is 0 where x is negligible.
    """
    square = alpha * alpha + rest
    norm = math.sqrt(square)
    first = alpha - norm if alpha < 0.0 else alpha + norm
    return square, first, 1.0 / (norm * abs(first)) if square > NEGLIGIBLE else 0.0


@kernel
def _first_products(A: Floats, rows: int, size: int, p: Floats) -> None:
    """Fill p with the products of the first column with all columns, without their first row."""
    p[:] = 0.0
    for i in range(1, rows):
        x = A[i * size]
        for k in range(0, size, WIDTH):
            simd.store(p, k, simd.fma(x, simd.load(A, i * size + k), simd.load(p, k)))


@kernel
def _bidiagonalise(
    A: Floats, rows: int, columns: int, size: int, w: Floats, u: Floats, p: Floats, d: Floats, e: Floats
) -> None:
    """Bidiagonalise A (rows ≥ columns, size), flattened and zero beyond both; fill in the squares d and e.

    Rows are followed by as many of zeros as are taken at once.
    """
    first_weights, weights = np.ones(ROWS), np.ones(ROWS)
    first_weights[0] = 0.0
    _first_products(A, rows, size, p)
    for j in range(columns):  # pragma: no branch - the last column returns
        row, after = j * size, j + 1
        d[j], first, factor = _reflector(A[row + j], p[j])
        if after == columns:
            e[j] = 0.0
            return
        start = after // WIDTH * WIDTH
        for k in range(start, size, WIDTH):
            entry = simd.load(A, row + k)
            product = factor * simd.fma(first, entry, simd.load(p, k))
            simd.store(w, k, 0.0 - product)
            simd.store(u, k, entry - first * product)
            simd.store(p, k, simd.broadcast(0.0))
        alpha = u[after]
        w[start:after] = 0.0
        u[start : after + 1] = 0.0
        rest = simd.broadcast(0.0)
        for k in range(start, size, WIDTH):
            rest = simd.fma(simd.load(u, k), simd.load(u, k), rest)
        e[j], u[after], scale = _reflector(alpha, simd.sum_pairs(rest))
        _reflect_rows(A, after * size, size, j, start, w, u, p, scale, simd.load_column(first_weights, 0, 1, ROWS))
        for i in range(after + ROWS, rows, ROWS):
            _reflect_rows(A, i * size, size, j, start, w, u, p, scale, simd.load_column(weights, 0, 1, ROWS))


@kernel
def _reflect_rows(
    A: Floats, row: int, size: int, column: int, start: int, w: Floats, u: Floats, p: Floats, scale: float, weights: Any
) -> None:
    """Apply both reflectors to some rows, and add their part to the next column's products, times a weight each."""
    v, sums = simd.load_column(A, row + column, size, ROWS), simd.broadcast(0.0, LANES, ROWS)
    for k in range(start, size, LANES):
        tile = simd.fma(v, simd.load(w, k, LANES), simd.load_rows(A, row + k, size, ROWS, LANES))
        sums = simd.fma(tile, simd.load(u, k, LANES), sums)
    z = (0.0 - scale) * simd.sum_rows(sums)
    after = column + 1
    x = simd.load_column(A, row + after, size, ROWS)
    x = weights * simd.fma(z, simd.load_entry(u, after), simd.fma(v, simd.load_entry(w, after), x))
    for k in range(start, size, LANES):
        tile = simd.fma(v, simd.load(w, k, LANES), simd.load_rows(A, row + k, size, ROWS, LANES))
        tile = simd.fma(z, simd.load(u, k, LANES), tile)
        simd.store_rows(A, row + k, size, tile)
        simd.store(p, k, simd.add_combination(simd.load(p, k, LANES), x, tile))


@kernel
def bidiagonals(matrices: Floats, diagonals: Floats, above: Floats, exponents: Integers) -> None:
    """Reduce matrices (batch, m, n), each over 2^exponent, to the squares of a diagonal and of what is above it.

    Each is (batch, min(m, n)), and the last of those above it 0.
    """
    batch, m, n = matrices.shape
    rows, columns = max(m, n), min(m, n)
    size = ((columns - 1) // WIDTH + 1) * WIDTH
    A, w, u, p = np.zeros((rows + ROWS) * size), np.zeros(size), np.zeros(size), np.zeros(size)
    flat = matrices.reshape(matrices.size)
    for matrix in range(batch):
        exponents[matrix] = exponent = simd.exponent_of(flat, matrix * m * n, m * n)
        # In two factors, because 1/2^e alone need not be a float64.
        half = math.ldexp(1.0, -(exponent // 2))
        other = math.ldexp(1.0, exponent // 2 - exponent)
        for i in range(m):
            for k in range(n):
                at = i * size + k if m >= n else k * size + i
                A[at] = flat[(matrix * m + i) * n + k] * half * other
        _bidiagonalise(A, rows, columns, size, w, u, p, diagonals[matrix], above[matrix])


@kernel
def bidiagonal_values(diagonals: Floats, above: Floats, values: Floats) -> int:
    """Singular values of bidiagonal matrices, as `bidiagonals` fills in their squares, descending, (batch, n).

    NaN for a matrix that did not converge. Returns the number of matrices left at NaN.
    """
    batch, n = diagonals.shape
    size = n * WIDTH
    # Steps look at a row of q beyond the last.
    q, e = np.zeros(size + WIDTH), np.zeros(size)
    q_old, e_old, sigmas, state = np.empty(size), np.empty(size), np.empty(size), np.empty(STATE)
    unfinished = 0
    for first in range(0, batch, WIDTH):
        for lane in range(WIDTH):
            # Lanes beyond the last matrix have it again: dqds is slower where lanes have blocks of different rows.
            matrix = min(first + lane, batch - 1)
            for i in range(n):
                q[i * WIDTH + lane], e[i * WIDTH + lane] = diagonals[matrix, i], above[matrix, i]
        dqds(n, q, e, q_old, e_old, sigmas, state, 0.0)
        unfinished += write_values(first, q, state, values)
    return unfinished
