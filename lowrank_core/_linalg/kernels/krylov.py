"""Products of a matrix, and of its transpose, with a few columns, while its rows are in cache.

BLAS packs the matrix anew for every product, which for so few columns takes as long as the multiplications; here one
read of the matrix serves both products.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lowrank_core._linalg.kernels import simd
from lowrank_core._linalg.kernels.compiling import Floats, kernel
from lowrank_core._linalg.kernels.narrow import SUM_ROWS, TERMS, add_product
from lowrank_core._linalg.kernels.simd import TILE_COLUMNS, TILE_ROWS, WIDTH
from lowrank_core._linalg.kernels.sizes import COLUMNS

__all__ = [
    "BOTH",
    "FLOAT64_COLUMNS",
    "PLAIN",
    "ROWS",
    "TRANSPOSED",
    "multiply",
    "multiply_doubles",
    "multiply_in_float64",
]

Singles = NDArray[np.float32]

# Columns that float32 rows are multiplied by at a time in float64: two registers of AVX-512, as COLUMNS are in float32.
# With more, fewer rows of a tile fit.
FLOAT64_COLUMNS = 16

# Rows multiplied at a time, of AVX-512's tile; and the columns of a tile in float32.
ROWS, FLOAT32_TILE_COLUMNS = 8, 2 * TILE_COLUMNS

# Columns of the matrix taken at a time: 256 KiB of what multiplies them, which stays in a core's own cache.
STRETCH = 2048

# Terms of a product summed in float32 before they are added to others: rounding grows with the root of their number.
SUMMED = 256

# Columns of a group of rows converted to float64 at a time: 128 KiB, which stay in that cache.
CONVERTED = 512

# Rows of the matrix taken at a time, of which the second product finds much in that cache.
GROUP = 32

# Which product: with the matrix, with its transpose, or with one after the other.
PLAIN, TRANSPOSED, BOTH = range(3)


@kernel
def _add_product(X: Singles, at: int, n: int, start: int, stop: int, b: Singles, Xb: Singles, to: int) -> None:
    """Add to rows of Xb, from entry ``to`` on, the products of rows of X, from ``at`` on, with some rows of b."""
    for i in range(0, ROWS, TILE_ROWS):
        for j in range(0, COLUMNS, FLOAT32_TILE_COLUMNS):
            place = to + i * COLUMNS + j
            for first in range(start, stop, SUMMED):
                tile = simd.broadcast(np.float32(0.0), FLOAT32_TILE_COLUMNS, TILE_ROWS)
                for k in range(first, min(first + SUMMED, stop)):
                    row = simd.load(b, k * COLUMNS + j, FLOAT32_TILE_COLUMNS)
                    tile = simd.fma(simd.load_column(X, at + i * n + k, n, TILE_ROWS), row, tile)
                total = simd.load_rows(Xb, place, COLUMNS, TILE_ROWS, FLOAT32_TILE_COLUMNS)
                simd.store_rows(Xb, place, COLUMNS, simd.fma(np.float32(1.0), tile, total))


@kernel
def _add_transposed_product(
    X: Singles, at: int, n: int, start: int, stop: int, Xb: Singles, to: int, XtXb: Singles
) -> None:
    """Add to some rows of XtXb the products of columns of eight rows of X with rows of Xb."""
    tile = simd.load_rows(Xb, to, COLUMNS, ROWS, COLUMNS)
    for k in range(start, stop):
        row = simd.load(XtXb, k * COLUMNS, COLUMNS)
        simd.store(XtXb, k * COLUMNS, simd.add_combination(row, simd.load_column(X, at + k, n, ROWS), tile))


@kernel
def multiply(X: Singles, b: Singles, Xb: Singles, XtXb: Singles, which: int) -> None:
    """Add X · b to Xb (PLAIN), or Xᵀ · Xb to XtXb (TRANSPOSED), or one after the other (BOTH).

    X is (m, n); flattened are b and XtXb (n, COLUMNS), and Xb (m, COLUMNS), its rows zero up to a multiple of ROWS.
    """
    m, n = X.shape
    for first in range(0, m, GROUP):
        count, rows, begin = min(GROUP, m - first), X.reshape(m * n), first * n
        if count % ROWS > 0:
            filled = np.zeros(GROUP * n, np.float32)
            filled[: count * n] = rows[begin : begin + count * n]
            rows, begin = filled, 0
        for start in range(0, n if which != TRANSPOSED else 0, STRETCH):
            for i in range(0, count, ROWS):
                stop, to = min(n, start + STRETCH), (first + i) * COLUMNS
                _add_product(rows, begin + i * n, n, start, stop, b, Xb, to)
        for start in range(0, n if which != PLAIN else 0, STRETCH):
            for i in range(0, count, ROWS):
                stop, to = min(n, start + STRETCH), (first + i) * COLUMNS
                _add_transposed_product(rows, begin + i * n, n, start, stop, Xb, to, XtXb)


@kernel
def multiply_doubles(X: Floats, b: Floats, Xb: Floats, XtXb: Floats, which: int) -> None:
    """Do what `multiply` does for a float64 matrix; b and XtXb, too, have rows up to a multiple of ROWS.

    Those of XtXb beyond n mean nothing: a tile of columns goes on in the next row of X.
    """
    m, n = X.shape
    for first in range(0, m, GROUP):
        count, rows, begin = min(GROUP, m - first), X.reshape(m * n), first * n
        if (m - first - count) * n < ROWS:
            # A tile that begins in the last columns would go on beyond the end.
            rows, begin = np.zeros(GROUP * n + ROWS), 0
            rows[: count * n] = X.reshape(m * n)[first * n : (first + count) * n]
        for start in range(0, n if which != TRANSPOSED else 0, TERMS):
            terms = min(TERMS, n - start)
            for i in range(0, count, SUM_ROWS):
                to = (first + i) * COLUMNS
                add_product(rows, begin + i * n + start, 1, n, terms, b, start * COLUMNS, Xb, to)
        for j in range(0, n if which != PLAIN else 0, SUM_ROWS):
            add_product(rows, begin + j, n, 1, count, Xb, first * COLUMNS, XtXb, j * COLUMNS)


@kernel
def _convert(X: Singles, at: int, count: int, converted: Floats, to: int) -> float:
    """Copy a stretch of a row of X, from entry ``at`` on, to float64, and return the sum of its squares."""
    squares = simd.broadcast(0.0, FLOAT64_COLUMNS)
    whole = count - count % FLOAT64_COLUMNS
    for k in range(0, whole, FLOAT64_COLUMNS):
        x = simd.to_float64(simd.load(X, at + k, FLOAT64_COLUMNS))
        squares = simd.fma(x, x, squares)
        simd.store(converted, to + k, x)
    sums = np.empty(FLOAT64_COLUMNS)
    simd.store(sums, 0, squares)
    energy = 0.0
    for lane in range(WIDTH):
        energy += sums[lane] + sums[WIDTH + lane]
    for k in range(whole, count):
        entry = np.float64(X[at + k])
        converted[to + k] = entry
        energy += entry * entry
    return energy


@kernel
def _add_float64_product(converted: Floats, at: int, count: int, b: Floats, start: int, Xb: Floats, to: int) -> None:
    """Add to rows of Xb, from entry ``to`` on, the products of converted rows with rows of b, from ``start`` on."""
    for i in range(0, ROWS, TILE_ROWS):
        for j in range(0, FLOAT64_COLUMNS, TILE_COLUMNS):
            place = to + i * FLOAT64_COLUMNS + j
            tile = simd.load_rows(Xb, place, FLOAT64_COLUMNS, TILE_ROWS, TILE_COLUMNS)
            for k in range(count):
                row = simd.load(b, start + k * FLOAT64_COLUMNS + j, TILE_COLUMNS)
                tile = simd.fma(simd.load_column(converted, at + i * CONVERTED + k, CONVERTED, TILE_ROWS), row, tile)
            simd.store_rows(Xb, place, FLOAT64_COLUMNS, tile)


@kernel
def multiply_in_float64(X: Singles, b: Floats, Xb: Floats) -> float:
    """Add X · b to Xb in float64, and return the sum of the squares of X.

    X is (m, n); flattened are b (panels, n, FLOAT64_COLUMNS) and Xb (panels, m, FLOAT64_COLUMNS), with rows up to a
    multiple of ROWS, of which those beyond m mean nothing.
    """
    m, n = X.shape
    flat = X.reshape(m * n)
    panels, padded = len(b) // (n * FLOAT64_COLUMNS), -(-m // ROWS) * ROWS
    converted, energy = np.zeros(GROUP * CONVERTED), 0.0
    for first in range(0, m, GROUP):
        rows = min(GROUP, m - first)
        for start in range(0, n, CONVERTED):
            count = min(CONVERTED, n - start)
            for i in range(rows):
                energy += _convert(flat, (first + i) * n + start, count, converted, i * CONVERTED)
            for panel in range(panels):
                begin = (panel * n + start) * FLOAT64_COLUMNS
                for i in range(0, rows, ROWS):
                    to = (panel * padded + first + i) * FLOAT64_COLUMNS
                    _add_float64_product(converted, i * CONVERTED, count, b, begin, Xb, to)
    return energy
