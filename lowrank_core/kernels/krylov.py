"""Products of a float32 matrix with a few columns and of its transpose with those, while its rows are in cache.

BLAS packs the matrix anew for every product, which for so few columns takes as long as the multiplications; here its
entries go from cache to every lane as they are, and one read serves both products.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lowrank_core.kernels.compiling import kernel
from lowrank_core.kernels.lanes import SINGLE_WIDTH, fused, load_singles, spread_single, store

__all__ = ["APPLY", "BOTH", "COLUMNS", "PULL", "ROWS", "multiply"]

Singles = NDArray[np.float32]

# Columns multiplied at a time: two registers, so that eight rows fill half of the thirty-two that there are.
COLUMNS = 2 * SINGLE_WIDTH

# Rows whose sums stay in registers.
ROWS = 8

# Columns of the matrix taken at a time: 256 KiB of what multiplies them, which stays in a core's own cache.
STRETCH = 2048

# What to do: multiply by the matrix, by its transpose, or by one after the other.
APPLY, PULL, BOTH = range(3)

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
        x = spread_single(X, r0 + k)
        a0, b0 = fused(x, u, a0), fused(x, v, b0)
        x = spread_single(X, r1 + k)
        a1, b1 = fused(x, u, a1), fused(x, v, b1)
        x = spread_single(X, r2 + k)
        a2, b2 = fused(x, u, a2), fused(x, v, b2)
        x = spread_single(X, r3 + k)
        a3, b3 = fused(x, u, a3), fused(x, v, b3)
        x = spread_single(X, r4 + k)
        a4, b4 = fused(x, u, a4), fused(x, v, b4)
        x = spread_single(X, r5 + k)
        a5, b5 = fused(x, u, a5), fused(x, v, b5)
        x = spread_single(X, r6 + k)
        a6, b6 = fused(x, u, a6), fused(x, v, b6)
        x = spread_single(X, r7 + k)
        a7, b7 = fused(x, u, a7), fused(x, v, b7)
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
        x = spread_single(X, r0 + k)
        u, v = fused(x, a0, u), fused(x, b0, v)
        x = spread_single(X, r1 + k)
        u, v = fused(x, a1, u), fused(x, b1, v)
        x = spread_single(X, r2 + k)
        u, v = fused(x, a2, u), fused(x, b2, v)
        x = spread_single(X, r3 + k)
        u, v = fused(x, a3, u), fused(x, b3, v)
        x = spread_single(X, r4 + k)
        u, v = fused(x, a4, u), fused(x, b4, v)
        x = spread_single(X, r5 + k)
        u, v = fused(x, a5, u), fused(x, b5, v)
        x = spread_single(X, r6 + k)
        u, v = fused(x, a6, u), fused(x, b6, v)
        x = spread_single(X, r7 + k)
        u, v = fused(x, a7, u), fused(x, b7, v)
        store(sums, k * COLUMNS, u)
        store(sums, k * COLUMNS + SINGLE_WIDTH, v)


@kernel
def _multiply_group(
    X: Singles, row: int, n: int, count: int, given: Singles, images: Singles, at: int, sums: Singles, way: int
) -> None:
    """Multiply rows of X, which begin at entry ``row`` and stay in cache from one product to the other."""
    for start in range(0, n if way != PULL else 0, STRETCH):
        for i in range(0, count, ROWS):
            _apply(X, row + i * n, n, start, min(n, start + STRETCH), given, images, at + i * COLUMNS)
    for start in range(0, n if way != APPLY else 0, STRETCH):
        for i in range(0, count, ROWS):
            _pull(X, row + i * n, n, start, min(n, start + STRETCH), images, at + i * COLUMNS, sums)


@kernel
def multiply(X: Singles, given: Singles, images: Singles, sums: Singles, way: int) -> None:
    """Add X · given to images (APPLY), or Xᵀ · images to sums (PULL), or one after the other (BOTH).

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
