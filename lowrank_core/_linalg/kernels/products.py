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

# Vectors converted to float64 at a time: with rank 64, 32 KiB, which stays in a core's first cache.
BLOCK = 64


@kernel
def _add_outer_products(X: Floats, i: int, j: int, stride: int, count: int, out: Floats) -> None:
    """Add Σ x xᵀ over the rows x of X, ``stride`` apart, to a tile of ``out`` that begins in row i and column j."""
    tile = simd.load_rows(out, i * stride + j, stride, TILE_ROWS)
    for k in range(0, count * stride, stride):
        tile = simd.fma(simd.load_column(X, k + i, 1, TILE_ROWS), simd.load(X, k + j), tile)
    simd.store_rows(out, i * stride + j, stride, tile)


@kernel
def _copy_columns(X: NDArray[Any], first: int, size: int, length: int, count: int, stride: int, block: Floats) -> None:
    """Convert some columns of a factor (size, length), of which the first begins at ``first``, to rows of a block."""
    whole = count - count % WIDTH
    for i in range(0, size, WIDTH):
        at, converted = first + i * length, whole if i + WIDTH <= size else 0
        for k in range(0, converted, WIDTH):
            tile = simd.to_float64(simd.load_rows(X, at + k, length, WIDTH))
            simd.store_rows(block, k * stride + i, stride, simd.transpose(tile))
        for lane in range(min(WIDTH, size - i)):
            for k in range(converted, count):
                block[k * stride + i + lane] = X[at + lane * length + k]


@kernel
def _copy_rows(X: NDArray[Any], first: int, size: int, count: int, stride: int, block: Floats) -> None:
    """Convert some rows of a factor (length, size), of which the first begins at ``first``, to rows of a block."""
    whole = size - size % WIDTH
    for k in range(count):
        at, to = first + k * size, k * stride
        for j in range(0, whole, WIDTH):
            simd.store(block, to + j, simd.to_float64(simd.load(X, at + j)))
        for j in range(whole, size):
            block[to + j] = X[at + j]


@kernel
def gram_matrices(factors: NDArray[Any], of_rows: bool, grams: Floats) -> None:
    """Fill grams (batch, r, r) with X Xᵀ of float32 factors (batch, r, n), or with Xᵀ X of (batch, m, r).

    A float32 has a square in float64, so that a Gram matrix has a diagonal that is not finite just where X is not.
    """
    size = grams.shape[1]
    stride = ((size - 1) // WIDTH + 1) * WIDTH
    if stride % (4 * WIDTH) == 0:
        # Rows a power of two apart would compete for a few places in the cache.
        stride += WIDTH
    length = factors.shape[2] if of_rows else factors.shape[1]
    flat = factors.reshape(factors.size)
    # Beyond column r the block stays zero.
    block, sums = np.zeros(BLOCK * stride), np.empty(stride * stride)
    for matrix in range(factors.shape[0]):
        sums[:] = 0.0
        for start in range(0, length, BLOCK):
            count = min(BLOCK, length - start)
            if of_rows:
                _copy_columns(flat, matrix * size * length + start, size, length, count, stride, block)
            else:
                _copy_rows(flat, (matrix * length + start) * size, size, count, stride, block)
            for i in range(0, size, TILE_ROWS):
                for j in range(0, i + 1, WIDTH):
                    _add_outer_products(block, i, j, stride, count, sums)
        for i in range(size):
            for j in range(i + 1):
                grams[matrix, i, j] = grams[matrix, j, i] = sums[i * stride + j]


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
