"""The squares of X − B A for a large float32 matrix X, summed in float64 without an array of the size of X."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lowrank_core._linalg.kernels import simd
from lowrank_core._linalg.kernels.compiling import Floats, kernel
from lowrank_core._linalg.kernels.simd import TILE_COLUMNS, TILE_ROWS

__all__ = ["COLUMNS", "ROWS", "residual_squares"]

Singles = NDArray[np.float32]

# What the sides of X are multiples of.
ROWS, COLUMNS = TILE_ROWS, TILE_COLUMNS

# Rows taken at a time, for each panel of A: more would read A less often, and push X out of a core's own cache.
GROUP = 64


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
