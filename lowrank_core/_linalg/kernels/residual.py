"""Squares of a large float32 matrix X, and of X − B A, summed in float64 without an array of the size of X."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lowrank_core._linalg.kernels import simd
from lowrank_core._linalg.kernels.compiling import Floats, kernel
from lowrank_core._linalg.kernels.simd import TILE_COLUMNS, TILE_ROWS

__all__ = ["COLUMNS", "ROWS", "residual_squares", "squares"]

Singles = NDArray[np.float32]

# What the sides of X are multiples of.
ROWS, COLUMNS = TILE_ROWS, TILE_COLUMNS

# Rows taken at a time, for each panel of A: more would read A less often, but a processor reads so few rows of X ahead.
GROUP = 8

# Vectors of sums at a time: as many additions as a processor has under way.
SUMS = 4


@kernel
def squares(x: Singles) -> float:
    """Compute the sum of the squares of x."""
    total = simd.broadcast(0.0, COLUMNS, SUMS)
    whole = x.size - x.size % (SUMS * COLUMNS)
    for k in range(0, whole, SUMS * COLUMNS):
        part = simd.to_float64(simd.load_rows(x, k, COLUMNS, SUMS, COLUMNS))
        total = simd.fma(part, part, total)
    sums = np.empty(SUMS * COLUMNS)
    simd.store_rows(sums, 0, COLUMNS, total)
    for k in range(whole, x.size):
        sums[k - whole] += np.float64(x[k]) * np.float64(x[k])
    return np.sum(sums)


@kernel
def residual_squares(X: Singles, B: Floats, A: Floats) -> float:
    """Compute the sum of the squares of X − B A, for X (m, n).

    Flattened are B (m, r) and A by panels of columns (n / COLUMNS, r, COLUMNS).
    """
    m, n = X.shape
    rank, flat = len(B) // m, X.reshape(m * n)
    sums = np.zeros(ROWS * COLUMNS)
    for first in range(0, m, GROUP):
        for j in range(0, n, COLUMNS):
            for i in range(first, min(m, first + GROUP), ROWS):
                tile = simd.broadcast(0.0, COLUMNS, ROWS)
                for k in range(rank):
                    row = simd.load(A, j * rank + k * COLUMNS, COLUMNS)
                    tile = simd.fma(simd.load_column(B, i * rank + k, rank, ROWS), row, tile)
                tile = tile - simd.to_float64(simd.load_rows(flat, i * n + j, n, ROWS, COLUMNS))
                simd.store_rows(sums, 0, COLUMNS, simd.fma(tile, tile, simd.load_rows(sums, 0, COLUMNS, ROWS, COLUMNS)))
    return np.sum(sums)
