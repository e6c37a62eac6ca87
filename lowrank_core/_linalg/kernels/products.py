"""Float64 Gram matrices of the narrow factors of a product, in one pass, and their balancing.

BLAS would want a float64 copy of the factors, and is far from its speed where one side is this short.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lowrank_core._linalg.kernels import simd
from lowrank_core._linalg.kernels.compiling import Floats, Integers, kernel
from lowrank_core._linalg.kernels.simd import TILE_ROWS, WIDTH

__all__ = ["balance", "gram_matrices"]

# Vectors converted to float64 at a time: eight columns of them are 4 KiB, of which a core's first cache has several.
BLOCK = 64

# A block is in panels of WIDTH columns, each contiguous: rows of all columns, a power of two apart, would compete for a
# few places in the cache.
PANEL = BLOCK * WIDTH


@kernel
def _add_outer_products(block: Floats, i: int, j: int, stride: int, count: int, out: Floats) -> None:
    """Add Σ x xᵀ over the rows x of a block to a tile of ``out`` that begins in row i and column j."""
    rows, columns = i // WIDTH * PANEL + i % WIDTH, j // WIDTH * PANEL
    tile = simd.load_rows(out, i * stride + j, stride, TILE_ROWS)
    for k in range(0, count * WIDTH, WIDTH):
        tile = simd.fma(simd.load_column(block, rows + k, 1, TILE_ROWS), simd.load(block, columns + k), tile)
    simd.store_rows(out, i * stride + j, stride, tile)


@kernel
def _copy_columns(X: NDArray[Any], first: int, size: int, length: int, count: int, place: int, block: Floats) -> None:
    """Convert some columns of a factor (size, length), from the entry ``first`` on, to panels from ``place`` on."""
    whole = count - count % WIDTH
    for i in range(0, size, WIDTH):
        at, to, converted = first + i * length, place + i * BLOCK, whole if i + WIDTH <= size else 0
        for k in range(0, converted, WIDTH):
            tile = simd.to_float64(simd.load_rows(X, at + k, length, WIDTH))
            simd.store_rows(block, to + k * WIDTH, WIDTH, simd.transpose(tile))
        for lane in range(min(WIDTH, size - i)):
            for k in range(converted, count):
                block[to + k * WIDTH + lane] = X[at + lane * length + k]


@kernel
def _copy_rows(X: NDArray[Any], first: int, size: int, count: int, place: int, block: Floats) -> None:
    """Convert some rows of a factor (length, size), from the entry ``first`` on, to panels from ``place`` on."""
    whole = size - size % WIDTH
    for k in range(count):
        at, to = first + k * size, place + k * WIDTH
        for j in range(0, whole, WIDTH):
            simd.store(block, to + j * BLOCK, simd.to_float64(simd.load(X, at + j)))
        for j in range(whole, size):
            block[to + whole * BLOCK + j - whole] = X[at + j]


@kernel
def _copy(
    X: NDArray[Any],
    of_rows: bool,
    matrix: int,
    size: int,
    length: int,
    start: int,
    count: int,
    place: int,
    block: Floats,
) -> None:
    """Convert some of the ``length`` vectors of a factor to panels from ``place`` on."""
    if of_rows:
        _copy_columns(X, matrix * size * length + start, size, length, count, place, block)
    else:
        _copy_rows(X, (matrix * length + start) * size, size, count, place, block)


@kernel
def gram_matrices(first: NDArray[Any], second: NDArray[Any], of_rows: bool, grams: Floats) -> None:
    """Fill grams (batch, r, r) with Xᵀ X of X = [X₁ X₂], float32 factors (batch, m, r₁) and (batch, m, r₂).

    Of rows, the factors are (batch, r₁, n) and (batch, r₂, n), and the Gram matrix is X Xᵀ. A float32 has a square in
    float64, so that a Gram matrix has a diagonal that is not finite just where X is not.
    """
    size, other = (first.shape[1], second.shape[1]) if of_rows else (first.shape[2], second.shape[2])
    length = first.shape[2] if of_rows else first.shape[1]
    padded, padded_other = (size + WIDTH - 1) // WIDTH * WIDTH, (other + WIDTH - 1) // WIDTH * WIDTH
    stride = padded + padded_other
    flat, flat_other = first.reshape(first.size), second.reshape(second.size)
    # Beyond the last column of each the block stays zero.
    block, sums = np.zeros(BLOCK * stride), np.empty(stride * stride)
    for matrix in range(first.shape[0]):
        sums[:] = 0.0
        for start in range(0, length, BLOCK):
            count = min(BLOCK, length - start)
            _copy(flat, of_rows, matrix, size, length, start, count, 0, block)
            _copy(flat_other, of_rows, matrix, other, length, start, count, padded * BLOCK, block)
            for j in range(0, stride, WIDTH):
                for i in range(j, stride, TILE_ROWS):
                    _add_outer_products(block, i, j, stride, count, sums)
        for i in range(size + other):
            row = i if i < size else padded + i - size
            for j in range(i + 1):
                column = j if j < size else padded + j - size
                grams[matrix, i, j] = grams[matrix, j, i] = sums[row * stride + column]


@kernel
def _scale(gram: Floats, factors: Floats) -> float:
    """Multiply row and column i by a power of two, or zero; return the largest sum of absolute values of a row."""
    bound = 0.0
    for i in range(gram.shape[0]):
        total = 0.0
        for j in range(gram.shape[1]):
            gram[i, j] = gram[i, j] * factors[i] * factors[j]
            total += abs(gram[i, j])
        bound = max(bound, total)
    return bound


@kernel
def balance(B_grams: Floats, A_grams: Floats, exponents: Integers, bounds: Floats) -> None:
    """Balance the components b_i a_i of products, in their two Gram matrices: ‖b_i‖ = ‖a_i‖ up to a power of two.

    Products are then over 2^exponents, their largest components near 1. The largest row sums, ``bounds`` (batch, 2),
    bound ‖B‖₂² and ‖A‖₂² without a decomposition, closely unless columns are many and alike.
    """
    batch, size, _ = B_grams.shape
    B_sizes, A_sizes = np.zeros(size, np.int64), np.zeros(size, np.int64)
    B_factors, A_factors = np.zeros(size), np.zeros(size)
    for item in range(batch):
        B, A = B_grams[item], A_grams[item]
        largest, found = 0, False
        for i in range(size):
            # A component that is zero on one side is zero.
            if B[i, i] > 0.0 and A[i, i] > 0.0:
                B_sizes[i], A_sizes[i] = math.frexp(B[i, i])[1] // 2, math.frexp(A[i, i])[1] // 2
                both = B_sizes[i] + A_sizes[i]
                largest, found = (max(largest, both) if found else both), True
        for i in range(size):
            B_factors[i] = A_factors[i] = 0.0
            if B[i, i] > 0.0 and A[i, i] > 0.0:
                rest = B_sizes[i] + A_sizes[i] - largest
                half = rest // 2
                B_factors[i] = math.ldexp(1.0, int(half - B_sizes[i]))
                A_factors[i] = math.ldexp(1.0, int(rest - half - A_sizes[i]))
        exponents[item] = largest
        bounds[item, 0], bounds[item, 1] = _scale(B, B_factors), _scale(A, A_factors)
