"""Products of float64 rows or columns with a few columns, at the speed of products with many.

BLAS packs the matrix anew for every product, which for so few columns takes as long as the multiplications.
"""

from __future__ import annotations

from lowrank_core._linalg.kernels import simd
from lowrank_core._linalg.kernels.compiling import Floats, kernel
from lowrank_core._linalg.kernels.simd import TILE_COLUMNS, TILE_ROWS
from lowrank_core._linalg.kernels.sizes import COLUMNS

__all__ = ["SUM_ROWS", "TERMS", "add_product"]

# The shape of the register tile: half the rows of `simd` and twice the columns, since rows are COLUMNS numbers apart.
SUM_ROWS, SUM_COLUMNS = TILE_ROWS // 2, 2 * TILE_COLUMNS

# Terms that are summed by themselves: a sum of 64 terms, and then of as many sums as there are.
TERMS = 64


@kernel
def add_product(A: Floats, at: int, step: int, apart: int, count: int, x: Floats, j: int, y: Floats, i: int) -> None:
    """Add to SUM_ROWS rows of y (…, COLUMNS) rows of A, ``apart``, with entries a ``step`` apart, times rows of x.

    Summed by themselves first: of equal entries each rounding is the same, and they would add up over all of a row.
    """
    for column in range(0, COLUMNS, SUM_COLUMNS):
        tile = simd.broadcast(0.0, SUM_COLUMNS, SUM_ROWS)
        for k in range(count):
            row = simd.load(x, j + k * COLUMNS + column, SUM_COLUMNS)
            tile = simd.fma(simd.load_column(A, at + k * step, apart, SUM_ROWS), row, tile)
        sums = simd.load_rows(y, i + column, COLUMNS, SUM_ROWS, SUM_COLUMNS)
        simd.store_rows(y, i + column, COLUMNS, sums + tile)
