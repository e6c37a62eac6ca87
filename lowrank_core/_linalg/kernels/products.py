"""Float64 Gram matrices of the narrow factors of a product, in one pass, and their balancing.

BLAS would want the factors copied to float64 as a whole, and is far from its speed where one side is this short.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lowrank_core._linalg.kernels.compiling import Floats, Integers, kernel
from lowrank_core._linalg.kernels.simd import WIDTH, broadcast_entry, fma, load, store, transpose

__all__ = ["balance", "gram_matrices"]

# Vectors converted to float64 at a time: with rank 64, 32 KiB, which stays in a core's first cache.
BLOCK = 64


@kernel
def _tile(X: Floats, i: int, j: int, stride: int, length: int, out: Floats, at: int) -> None:
    """Add Σ x xᵀ over the rows x of X to a block of eight rows, from i on, and eight columns, from j on.

    The arrays are flattened, their rows a stride apart. Sums stay in registers while the rows go by.
    """
    a0, a1 = load(out, at), load(out, at + stride)
    a2, a3 = load(out, at + 2 * stride), load(out, at + 3 * stride)
    a4, a5 = load(out, at + 4 * stride), load(out, at + 5 * stride)
    a6, a7 = load(out, at + 6 * stride), load(out, at + 7 * stride)
    for k in range(length):
        row, x = load(X, k * stride + j), k * stride + i
        a0, a1 = fma(broadcast_entry(X, x), row, a0), fma(broadcast_entry(X, x + 1), row, a1)
        a2, a3 = fma(broadcast_entry(X, x + 2), row, a2), fma(broadcast_entry(X, x + 3), row, a3)
        a4, a5 = fma(broadcast_entry(X, x + 4), row, a4), fma(broadcast_entry(X, x + 5), row, a5)
        a6, a7 = fma(broadcast_entry(X, x + 6), row, a6), fma(broadcast_entry(X, x + 7), row, a7)
    store(out, at, a0)
    store(out, at + stride, a1)
    store(out, at + 2 * stride, a2)
    store(out, at + 3 * stride, a3)
    store(out, at + 4 * stride, a4)
    store(out, at + 5 * stride, a5)
    store(out, at + 6 * stride, a6)
    store(out, at + 7 * stride, a7)


@kernel
def _copy_columns(X: NDArray[Any], first: int, size: int, whole: int, length: int, stride: int, block: Floats) -> None:
    """Convert the first columns of a factor (r, n), which begins at ``first`` of X, to the rows of a block."""
    square = length - length % WIDTH
    for i in range(0, size, WIDTH):
        tall = i + WIDTH <= size
        at = first + i * whole
        if tall:
            for k in range(0, square, WIDTH):
                columns = transpose(
                    load(X, at + k),
                    load(X, at + whole + k),
                    load(X, at + 2 * whole + k),
                    load(X, at + 3 * whole + k),
                    load(X, at + 4 * whole + k),
                    load(X, at + 5 * whole + k),
                    load(X, at + 6 * whole + k),
                    load(X, at + 7 * whole + k),
                )
                store(block, k * stride + i, columns[0])
                store(block, (k + 1) * stride + i, columns[1])
                store(block, (k + 2) * stride + i, columns[2])
                store(block, (k + 3) * stride + i, columns[3])
                store(block, (k + 4) * stride + i, columns[4])
                store(block, (k + 5) * stride + i, columns[5])
                store(block, (k + 6) * stride + i, columns[6])
                store(block, (k + 7) * stride + i, columns[7])
        for lane in range(min(WIDTH, size - i)):
            for k in range(square if tall else 0, length):
                block[k * stride + i + lane] = X[at + lane * whole + k]


@kernel
def _copy_rows(X: NDArray[Any], first: int, size: int, length: int, stride: int, block: Floats) -> None:
    """Convert the first rows of a factor (m, r), which begins at ``first`` of X, to those of a block."""
    wide = size - size % WIDTH
    for k in range(length):
        at, to = first + k * size, k * stride
        for j in range(0, wide, WIDTH):
            store(block, to + j, load(X, at + j))
        for j in range(wide, size):
            block[to + j] = X[at + j]


@kernel
def gram_matrices(factors: NDArray[Any], of_rows: bool, grams: Floats) -> None:
    """Fill grams (batch, r, r) with X Xᵀ of float32 factors (batch, r, n), or with Xᵀ X of (batch, m, r).

    A float32 has a square in float64, so that a Gram matrix has a diagonal that is not finite just where X is not.
    """
    size = grams.shape[1]
    stride = ((size - 1) // WIDTH + 1) * WIDTH
    if stride % (4 * WIDTH) == 0:
        # Rows that lie a power of two apart would share a few places of the cache.
        stride += WIDTH
    whole = factors.shape[2] if of_rows else factors.shape[1]
    flat = factors.reshape(factors.size)
    # Beyond column r the block stays zero.
    block, sums = np.zeros(BLOCK * stride), np.empty(stride * stride)
    for matrix in range(factors.shape[0]):
        sums[:] = 0.0
        for start in range(0, whole, BLOCK):
            length = min(BLOCK, whole - start)
            if of_rows:
                _copy_columns(flat, matrix * size * whole + start, size, whole, length, stride, block)
            else:
                _copy_rows(flat, (matrix * whole + start) * size, size, length, stride, block)
            for i in range(0, size, WIDTH):
                for j in range(0, i + 1, WIDTH):
                    _tile(block, i, j, stride, length, sums, i * stride + j)
        for i in range(size):
            for j in range(i + 1):
                grams[matrix, i, j] = grams[matrix, j, i] = sums[i * stride + j]


@kernel
def _row_bound(gram: Floats) -> float:
    """Give the largest sum of absolute values of a row."""
    bound = 0.0
    for i in range(gram.shape[0]):
        total = 0.0
        for j in range(gram.shape[1]):
            total += abs(gram[i, j])
        bound = max(bound, total)
    return bound


@kernel
def _scale(gram: Floats, factors: Floats) -> None:
    """Multiply row and column i by a power of two; a component whose factor is zero drops out."""
    for i in range(gram.shape[0]):
        for j in range(gram.shape[1]):
            gram[i, j] = gram[i, j] * factors[i] * factors[j]


@kernel
def balance(B_grams: Floats, A_grams: Floats, exponents: Integers, bounds: Floats) -> None:
    """Share the size of each component b_i a_i between two Gram matrices, in place: ‖b_i‖ = ‖a_i‖ up to a power of two.

    The product is over 2^exponents, so that its largest component is near 1. Fills ``bounds`` (batch, 2) with the
    largest row sums, which bound ‖B‖₂² and ‖A‖₂² without a decomposition, closely unless columns are many and alike.
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
        _scale(B, B_factors)
        _scale(A, A_factors)
        exponents[item] = largest
        bounds[item, 0], bounds[item, 1] = _row_bound(B), _row_bound(A)
