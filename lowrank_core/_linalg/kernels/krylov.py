"""Products of a float32 matrix with a few columns and of its transpose with those, while its rows are in cache.

In float32, and for the image of the final basis in float64. BLAS packs the matrix anew for every product, which for so
few columns takes as long as the multiplications; here its entries go from cache to every lane as they are, and one read
serves both products.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lowrank_core._linalg.kernels.compiling import Floats, kernel
from lowrank_core._linalg.kernels.simd import (
    SINGLE_WIDTH,
    WIDTH,
    broadcast,
    broadcast_entry,
    broadcast_single,
    fma,
    load,
    load_singles,
    store,
)

__all__ = ["BOTH", "COLUMNS", "FLOAT64_COLUMNS", "PLAIN", "ROWS", "TRANSPOSED", "multiply", "multiply_float64"]

Singles = NDArray[np.float32]

# Columns multiplied at a time: two registers, so that eight rows fill half of the thirty-two that there are.
COLUMNS = 2 * SINGLE_WIDTH

# Rows whose sums stay in registers.
ROWS = 8

# Columns of the matrix taken at a time: 256 KiB of what multiplies them, which stays in a core's own cache.
STRETCH = 2048

# Columns multiplied at a time in float64, two registers again; and columns of a group of rows that are converted for
# them: 128 KiB, which stay in a core's own cache as what multiplies them does.
FLOAT64_COLUMNS = 2 * WIDTH
CONVERTED = 512

# What to do: multiply by the matrix, by its transpose, or by one after the other.
PLAIN, TRANSPOSED, BOTH = range(3)

# Rows of the matrix taken at a time, of which the second product finds much in that cache.
GROUP = 32


@kernel
def _apply(X: Singles, row: int, stride: int, start: int, stop: int, given: Singles, images: Singles, at: int) -> None:
    """Add the products of eight rows of X, from entry ``row`` on, with some rows of ``given`` to rows of ``images``."""
    r0, r1, r2, r3 = row, row + stride, row + 2 * stride, row + 3 * stride
    r4, r5, r6, r7 = row + 4 * stride, row + 5 * stride, row + 6 * stride, row + 7 * stride
    a0, b0 = load_singles(images, at), load_singles(images, at + SINGLE_WIDTH)
    a1, b1 = load_singles(images, at + 2 * SINGLE_WIDTH), load_singles(images, at + 3 * SINGLE_WIDTH)
    a2, b2 = load_singles(images, at + 4 * SINGLE_WIDTH), load_singles(images, at + 5 * SINGLE_WIDTH)
    a3, b3 = load_singles(images, at + 6 * SINGLE_WIDTH), load_singles(images, at + 7 * SINGLE_WIDTH)
    a4, b4 = load_singles(images, at + 8 * SINGLE_WIDTH), load_singles(images, at + 9 * SINGLE_WIDTH)
    a5, b5 = load_singles(images, at + 10 * SINGLE_WIDTH), load_singles(images, at + 11 * SINGLE_WIDTH)
    a6, b6 = load_singles(images, at + 12 * SINGLE_WIDTH), load_singles(images, at + 13 * SINGLE_WIDTH)
    a7, b7 = load_singles(images, at + 14 * SINGLE_WIDTH), load_singles(images, at + 15 * SINGLE_WIDTH)
    for k in range(start, stop):
        u, v = load_singles(given, k * COLUMNS), load_singles(given, k * COLUMNS + SINGLE_WIDTH)
        x = broadcast_single(X, r0 + k)
        a0, b0 = fma(x, u, a0), fma(x, v, b0)
        x = broadcast_single(X, r1 + k)
        a1, b1 = fma(x, u, a1), fma(x, v, b1)
        x = broadcast_single(X, r2 + k)
        a2, b2 = fma(x, u, a2), fma(x, v, b2)
        x = broadcast_single(X, r3 + k)
        a3, b3 = fma(x, u, a3), fma(x, v, b3)
        x = broadcast_single(X, r4 + k)
        a4, b4 = fma(x, u, a4), fma(x, v, b4)
        x = broadcast_single(X, r5 + k)
        a5, b5 = fma(x, u, a5), fma(x, v, b5)
        x = broadcast_single(X, r6 + k)
        a6, b6 = fma(x, u, a6), fma(x, v, b6)
        x = broadcast_single(X, r7 + k)
        a7, b7 = fma(x, u, a7), fma(x, v, b7)
    store(images, at, a0)
    store(images, at + SINGLE_WIDTH, b0)
    store(images, at + 2 * SINGLE_WIDTH, a1)
    store(images, at + 3 * SINGLE_WIDTH, b1)
    store(images, at + 4 * SINGLE_WIDTH, a2)
    store(images, at + 5 * SINGLE_WIDTH, b2)
    store(images, at + 6 * SINGLE_WIDTH, a3)
    store(images, at + 7 * SINGLE_WIDTH, b3)
    store(images, at + 8 * SINGLE_WIDTH, a4)
    store(images, at + 9 * SINGLE_WIDTH, b4)
    store(images, at + 10 * SINGLE_WIDTH, a5)
    store(images, at + 11 * SINGLE_WIDTH, b5)
    store(images, at + 12 * SINGLE_WIDTH, a6)
    store(images, at + 13 * SINGLE_WIDTH, b6)
    store(images, at + 14 * SINGLE_WIDTH, a7)
    store(images, at + 15 * SINGLE_WIDTH, b7)


@kernel
def _pull(X: Singles, row: int, stride: int, start: int, stop: int, images: Singles, at: int, sums: Singles) -> None:
    """Add the products of eight rows of X, as columns, with rows of ``images`` to some rows of ``sums``."""
    r0, r1, r2, r3 = row, row + stride, row + 2 * stride, row + 3 * stride
    r4, r5, r6, r7 = row + 4 * stride, row + 5 * stride, row + 6 * stride, row + 7 * stride
    a0, b0 = load_singles(images, at), load_singles(images, at + SINGLE_WIDTH)
    a1, b1 = load_singles(images, at + 2 * SINGLE_WIDTH), load_singles(images, at + 3 * SINGLE_WIDTH)
    a2, b2 = load_singles(images, at + 4 * SINGLE_WIDTH), load_singles(images, at + 5 * SINGLE_WIDTH)
    a3, b3 = load_singles(images, at + 6 * SINGLE_WIDTH), load_singles(images, at + 7 * SINGLE_WIDTH)
    a4, b4 = load_singles(images, at + 8 * SINGLE_WIDTH), load_singles(images, at + 9 * SINGLE_WIDTH)
    a5, b5 = load_singles(images, at + 10 * SINGLE_WIDTH), load_singles(images, at + 11 * SINGLE_WIDTH)
    a6, b6 = load_singles(images, at + 12 * SINGLE_WIDTH), load_singles(images, at + 13 * SINGLE_WIDTH)
    a7, b7 = load_singles(images, at + 14 * SINGLE_WIDTH), load_singles(images, at + 15 * SINGLE_WIDTH)
    for k in range(start, stop):
        u, v = load_singles(sums, k * COLUMNS), load_singles(sums, k * COLUMNS + SINGLE_WIDTH)
        x = broadcast_single(X, r0 + k)
        u, v = fma(x, a0, u), fma(x, b0, v)
        x = broadcast_single(X, r1 + k)
        u, v = fma(x, a1, u), fma(x, b1, v)
        x = broadcast_single(X, r2 + k)
        u, v = fma(x, a2, u), fma(x, b2, v)
        x = broadcast_single(X, r3 + k)
        u, v = fma(x, a3, u), fma(x, b3, v)
        x = broadcast_single(X, r4 + k)
        u, v = fma(x, a4, u), fma(x, b4, v)
        x = broadcast_single(X, r5 + k)
        u, v = fma(x, a5, u), fma(x, b5, v)
        x = broadcast_single(X, r6 + k)
        u, v = fma(x, a6, u), fma(x, b6, v)
        x = broadcast_single(X, r7 + k)
        u, v = fma(x, a7, u), fma(x, b7, v)
        store(sums, k * COLUMNS, u)
        store(sums, k * COLUMNS + SINGLE_WIDTH, v)


@kernel
def _multiply_group(
    X: Singles, row: int, n: int, count: int, given: Singles, images: Singles, at: int, sums: Singles, way: int
) -> None:
    """Multiply rows of X, which begin at entry ``row`` and stay in cache from one product to the other."""
    for start in range(0, n if way != TRANSPOSED else 0, STRETCH):
        for i in range(0, count, ROWS):
            _apply(X, row + i * n, n, start, min(n, start + STRETCH), given, images, at + i * COLUMNS)
    for start in range(0, n if way != PLAIN else 0, STRETCH):
        for i in range(0, count, ROWS):
            _pull(X, row + i * n, n, start, min(n, start + STRETCH), images, at + i * COLUMNS, sums)


@kernel
def multiply(X: Singles, given: Singles, images: Singles, sums: Singles, way: int) -> None:
    """Add X · given to images (PLAIN), or Xᵀ · images to sums (TRANSPOSED), or one after the other (BOTH).

    X is (m, n), and the others are flattened: given and sums (n, COLUMNS), images (m, COLUMNS) with its rows filled up
    to a multiple of ROWS with zeros.
    """
    m, n = X.shape
    flat = X.reshape(m * n)
    whole = m - m % ROWS
    for first in range(0, whole, GROUP):
        count = min(GROUP, whole - first)
        _multiply_group(flat, first * n, n, count, given, images, first * COLUMNS, sums, way)
    if whole < m:
        rest = np.zeros(ROWS * n, np.float32)
        rest[: (m - whole) * n] = flat[whole * n :]
        _multiply_group(rest, 0, n, ROWS, given, images, whole * COLUMNS, sums, way)


@kernel
def _converted(X: Singles, row: int, count: int, wide: Floats, at: int) -> float:
    """Copy a stretch of a row of X, from entry ``row`` on, to float64, and give the sum of its squares."""
    a, b = broadcast(0.0), broadcast(0.0)
    whole = count - count % FLOAT64_COLUMNS
    for k in range(0, whole, FLOAT64_COLUMNS):
        x, y = load(X, row + k), load(X, row + k + WIDTH)
        a, b = fma(x, x, a), fma(y, y, b)
        store(wide, at + k, x)
        store(wide, at + k + WIDTH, y)
    sums = np.empty(WIDTH)
    store(sums, 0, a + b)
    energy = 0.0
    for lane in range(WIDTH):
        energy += sums[lane]
    for k in range(whole, count):
        x = np.float64(X[row + k])
        wide[at + k] = x
        energy += x * x
    return energy


@kernel
def _apply_exactly(wide: Floats, row: int, count: int, basis: Floats, start: int, images: Floats, at: int) -> None:
    """Add the products of eight converted rows with rows of ``basis``, from entry ``start`` on, to rows of images."""
    a0, b0 = load(images, at), load(images, at + WIDTH)
    a1, b1 = load(images, at + 2 * WIDTH), load(images, at + 3 * WIDTH)
    a2, b2 = load(images, at + 4 * WIDTH), load(images, at + 5 * WIDTH)
    a3, b3 = load(images, at + 6 * WIDTH), load(images, at + 7 * WIDTH)
    a4, b4 = load(images, at + 8 * WIDTH), load(images, at + 9 * WIDTH)
    a5, b5 = load(images, at + 10 * WIDTH), load(images, at + 11 * WIDTH)
    a6, b6 = load(images, at + 12 * WIDTH), load(images, at + 13 * WIDTH)
    a7, b7 = load(images, at + 14 * WIDTH), load(images, at + 15 * WIDTH)
    for k in range(count):
        u, v = load(basis, start + k * FLOAT64_COLUMNS), load(basis, start + k * FLOAT64_COLUMNS + WIDTH)
        x = broadcast_entry(wide, row + k)
        a0, b0 = fma(x, u, a0), fma(x, v, b0)
        x = broadcast_entry(wide, row + CONVERTED + k)
        a1, b1 = fma(x, u, a1), fma(x, v, b1)
        x = broadcast_entry(wide, row + 2 * CONVERTED + k)
        a2, b2 = fma(x, u, a2), fma(x, v, b2)
        x = broadcast_entry(wide, row + 3 * CONVERTED + k)
        a3, b3 = fma(x, u, a3), fma(x, v, b3)
        x = broadcast_entry(wide, row + 4 * CONVERTED + k)
        a4, b4 = fma(x, u, a4), fma(x, v, b4)
        x = broadcast_entry(wide, row + 5 * CONVERTED + k)
        a5, b5 = fma(x, u, a5), fma(x, v, b5)
        x = broadcast_entry(wide, row + 6 * CONVERTED + k)
        a6, b6 = fma(x, u, a6), fma(x, v, b6)
        x = broadcast_entry(wide, row + 7 * CONVERTED + k)
        a7, b7 = fma(x, u, a7), fma(x, v, b7)
    store(images, at, a0)
    store(images, at + WIDTH, b0)
    store(images, at + 2 * WIDTH, a1)
    store(images, at + 3 * WIDTH, b1)
    store(images, at + 4 * WIDTH, a2)
    store(images, at + 5 * WIDTH, b2)
    store(images, at + 6 * WIDTH, a3)
    store(images, at + 7 * WIDTH, b3)
    store(images, at + 8 * WIDTH, a4)
    store(images, at + 9 * WIDTH, b4)
    store(images, at + 10 * WIDTH, a5)
    store(images, at + 11 * WIDTH, b5)
    store(images, at + 12 * WIDTH, a6)
    store(images, at + 13 * WIDTH, b6)
    store(images, at + 14 * WIDTH, a7)
    store(images, at + 15 * WIDTH, b7)


@kernel
def multiply_float64(X: Singles, basis: Floats, images: Floats) -> float:
    """Add X · basis to images in float64, and give the sum of the squares of X.

    X is (m, n), and the others are flattened: basis (panels, n, FLOAT64_COLUMNS), images (panels, m, FLOAT64_COLUMNS)
    with its rows filled up to a multiple of ROWS, of which the last then mean nothing.
    """
    m, n = X.shape
    flat = X.reshape(m * n)
    panels, padded = len(basis) // (n * FLOAT64_COLUMNS), -(-m // ROWS) * ROWS
    wide, energy = np.zeros(GROUP * CONVERTED), 0.0
    for first in range(0, m, GROUP):
        rows = min(GROUP, m - first)
        for start in range(0, n, CONVERTED):
            count = min(CONVERTED, n - start)
            for i in range(rows):
                energy += _converted(flat, (first + i) * n + start, count, wide, i * CONVERTED)
            for panel in range(panels):
                begin = (panel * n + start) * FLOAT64_COLUMNS
                for i in range(0, rows, ROWS):
                    at = (panel * padded + first + i) * FLOAT64_COLUMNS
                    _apply_exactly(wide, i * CONVERTED, count, basis, begin, images, at)
    return energy
