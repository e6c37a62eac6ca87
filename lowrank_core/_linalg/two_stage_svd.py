"""Singular values of large float64 matrices: reduced in two stages, to an upper band and to bidiagonal form."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from lowrank_core._linalg.batches import Batching, values_in_chunks
from lowrank_core._linalg.bidiagonal import values_of_bidiagonals
from lowrank_core._linalg.kernels.sizes import BAND
from lowrank_core._linalg.lapack import lapack_svd_values
from lowrank_core._linalg.panels import factored_panel, whole_panels
from lowrank_core._linalg.powers_of_two import scaled_to_unit
from lowrank_core._linalg.threads import Team, blas_threads
from lowrank_core._linalg.values import Floats, Values, norms_of, unscaled_values

__all__ = ["two_stage_svd_values", "upper_band"]

# Columns of V and X together that are subtracted at once.
DEPTH = 256

# Rows or columns that a thread takes at a time.
PER_TASK = 128


def two_stage_svd_values(stack: NDArray[Any], workers: int) -> Values:
    """Compute singular values and norms of a stack (count, m, n), one matrix after another, each on all workers."""
    from lowrank_core._linalg.kernels.compiling import COMPILED

    if not COMPILED:
        return values_in_chunks(lapack_svd_values, Batching(one_at_a_time=True), stack, workers)
    from lowrank_core._linalg.kernels.band import chase_bidiagonal

    count, m, n = stack.shape
    size = min(m, n)
    values, exponents = np.empty((count, size)), np.empty(count, np.int64)
    # Zero columns that fill the last panel add zeros to the values.
    diagonal, above = np.empty((2, 1, whole_panels(size)))
    # Threads of BLAS would go on waiting for work, on the cores that the team needs.
    with blas_threads(1), Team(workers) as team:
        for i, matrix in enumerate(stack):
            scaled, exponents[i] = scaled_to_unit(matrix if m >= n else matrix.T)
            chase_bidiagonal(upper_band(scaled, team), diagonal[0], above[0])
            values[i] = values_of_bidiagonals(diagonal, above)[0, :size]
    return unscaled_values(values, norms_of(values), exponents)


def upper_band(matrix: Floats, team: Team) -> Floats:
    """Reduce a matrix with rows ≥ columns to an upper band with the same singular values, for `chase_bidiagonal`.

    Reflectors I − V T Vᵀ reduce each panel of columns to a triangle, and I − W S Wᵀ the panel of rows beside it. From
    both sides they turn A into A − V Y − X Wᵀ, where Y = Tᵀ Vᵀ A and X = (A − V Y) W S (Bischof and Van Loan, SIAM J.
    Sci. Stat. Comput. 8 (1987) s2). That is subtracted for several panels at once: a product with as many columns is
    faster, and until then A is what is stored without ``left @ right``.
    """
    from lowrank_core._linalg.kernels.band import WIDE_APART

    size = whole_panels(matrix.shape[1])
    A = np.zeros((max(matrix.shape[0], size), size))
    A[: matrix.shape[0], : matrix.shape[1]] = matrix
    band = np.zeros((size + 3 * BAND) * (WIDE_APART + 1))
    blocks = as_strided(
        band, (size, size + BAND, BAND, BAND), np.multiply(band.itemsize, (WIDE_APART, 1, WIDE_APART, 1))
    )
    left, right, beside, depth = np.zeros((len(A), DEPTH)), np.zeros((DEPTH, size)), np.zeros((size, BAND)), 0

    def apply_from_left(start: int) -> None:
        columns, next_depth = slice(start, start + PER_TASK), depth + BAND
        product = V.T @ A[k:, columns] - VL @ right[:depth, columns]
        np.matmul(T.T, product, out=right[depth:next_depth, columns])
        beside[columns] = (A[k:j, columns] - left[k:j, :next_depth] @ right[:next_depth, columns]).T

    def apply_from_right(start: int) -> None:
        rows = slice(start, start + PER_TASK)
        left[rows, depth : depth + BAND] = A[rows, j:] @ WS - left[rows, :depth] @ RWS

    def subtract(start: int) -> None:
        rows = slice(start, start + PER_TASK)
        A[rows, j:] -= left[rows] @ right[:, j:]

    for k in range(0, size, BAND):  # pragma: no branch - the last panel leaves
        j = k + BAND
        V, T, blocks[k, k] = factored_panel(A[k:, k:j] - left[k:, :depth] @ right[:depth, k:j])
        if j == size:
            break
        VL = V.T @ left[k:, :depth]
        left[k:, depth : depth + BAND] = V
        team.map(apply_from_left, range(j, size, PER_TASK))
        depth += BAND

        W, S, triangle = factored_panel(beside[j:])
        blocks[k, j] = triangle.T
        WS = W @ S
        RWS = right[:depth, j:] @ WS
        right[depth : depth + BAND, j:] = W.T
        team.map(apply_from_right, range(j, len(A), PER_TASK))
        depth += BAND

        if depth == DEPTH:
            team.map(subtract, range(j, len(A), PER_TASK))
            depth = 0
    return band
