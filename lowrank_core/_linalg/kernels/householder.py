"""Householder bidiagonalisation of one matrix, for kernels of singular values and of vectors.

Golub and Van Loan, "Matrix Computations", 4th ed., §5.4.8, in a pass for each column: both reflectors are applied while
the next column's products with all columns are formed.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from lowrank_core._linalg.kernels import simd
from lowrank_core._linalg.kernels.compiling import Floats, kernel
from lowrank_core._linalg.kernels.simd import NEGLIGIBLE, TILE_COLUMNS, TILE_ROWS, WIDTH

__all__ = ["ROWS", "bidiagonalise", "fill_tall"]

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
def bidiagonalise(
    A: Floats,
    rows: int,
    columns: int,
    size: int,
    w: Floats,
    u: Floats,
    p: Floats,
    d: Floats,
    e: Floats,
    reflectors: Floats,
) -> None:
    """Bidiagonalise A (rows ≥ columns, size), flattened and zero beyond both; fill in the squares d and e.

    Rows are followed by as many of zeros as are taken at once. What is left in A are the reflectors: those from the
    left in columns below the diagonal, those from the right in rows above it; ``reflectors`` has, for each column, v₀
    and c of the one from the left and c of the one from the right.
    """
    first_weights, weights = np.ones(ROWS), np.ones(ROWS)
    first_weights[0] = 0.0
    _first_products(A, rows, size, p)
    for j in range(columns):  # pragma: no branch - the last column returns
        row, after = j * size, j + 1
        d[j], first, factor = _reflector(A[row + j], p[j])
        reflectors[j, 0], reflectors[j, 1] = first, factor
        if after == columns:
            e[j], reflectors[j, 2] = 0.0, 0.0
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
        reflectors[j, 2] = scale
        for k in range(after, size):
            A[row + k] = u[k]
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
def fill_tall(A: Floats, size: int, flat: Floats, start: int, m: int, n: int, scale: float, other_scale: float) -> None:
    """Copy a matrix (m, n), or its transpose where that is taller, to rows of A (rows, size), times two scales."""
    for i in range(m):
        for k in range(n):
            at = i * size + k if m >= n else k * size + i
            A[at] = flat[start + i * n + k] * scale * other_scale
