"""Singular values of large float64 matrices: reduced in two stages, to an upper band and to bidiagonal form."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from lowrank_core._linalg.batches import Batching, values_in_chunks
from lowrank_core._linalg.bidiagonal import values_of_bidiagonals
from lowrank_core._linalg.kernels.sizes import BAND, WIDE_APART
from lowrank_core._linalg.lapack import lapack_svd_values
from lowrank_core._linalg.panels import factor_panel, whole_panels
from lowrank_core._linalg.powers_of_two import scaled_to_unit
from lowrank_core._linalg.threads import Team, blas_threads
from lowrank_core._linalg.values import Floats, Values, norms_of, unscaled_values

__all__ = ["two_stage_svd_values", "upper_band"]

# Rows or columns that a thread takes at a time.
PER_TASK = 128


def two_stage_svd_values(stack: NDArray[Any], workers: int) -> Values:
    """Compute singular values and norms of a stack (count, m, n), one matrix after another, each on all workers."""
    from lowrank_core._linalg.kernels.compiling import COMPILED

    if not COMPILED:
        return values_in_chunks(lapack_svd_values, Batching(one_at_a_time=True), stack, workers)
    from lowrank_core._linalg.kernels.chasing import chase_bidiagonal

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
    both sides they turn A into A − V Yᵀ − X Wᵀ, where Y = Aᵀ V T and X = (A − V Yᵀ) W S (Bischof and Van Loan, SIAM J.
    Sci. Stat. Comput. 8 (1987) s2). The pass for the next panel's Aᵀ V subtracts that. Panels are
    factored in place, in V and in W.
    """
    from lowrank_core._linalg.kernels.band import DEPTH, multiply_rows, pack, update_and_multiply_columns

    rows, size = (whole_panels(length) for length in matrix.shape)
    # Rows begin BAND numbers further apart: at multiples of a large power of two they would share places of the cache.
    A = np.zeros((rows, size + BAND))
    A[: matrix.shape[0], : matrix.shape[1]] = matrix
    band = np.zeros((size + 3 * BAND) * (WIDE_APART + 1))
    blocks = as_strided(
        band, (size, size + BAND, BAND, BAND), np.multiply(band.itemsize, (WIDE_APART, 1, WIDE_APART, 1))
    )
    left, right = np.zeros((rows, DEPTH)), np.zeros(size * DEPTH)
    V, X = np.zeros((2, rows, BAND))
    W, Y = np.zeros((2, size, BAND))

    def apply_from_left(start: int) -> None:
        columns = slice(start, min(start + PER_TASK, size))
        update_and_multiply_columns(A, k, start, columns.stop, left.reshape(-1), right, V.reshape(-1), Y.reshape(-1))
        Y[columns] = Y[columns] @ T
        W[columns] = (A[k:j, columns] - V[k:j] @ Y[columns].T).T

    def apply_from_right(start: int) -> None:
        chosen = slice(start, min(start + PER_TASK, rows))
        multiply_rows(A, j, size, start, chosen.stop, W.reshape(-1), X.reshape(-1))
        X[chosen] = (X[chosen] - V[chosen] @ YW) @ S
        left[chosen, :BAND], left[chosen, BAND:] = -V[chosen], -X[chosen]
        V[chosen] = A[chosen, following] + left[chosen] @ due

    V[:] = A[:, :BAND]
    for k in range(0, size, BAND):  # pragma: no branch - the last panel leaves
        j = k + BAND
        T, blocks[k, k] = factor_panel(V[k:])
        if j == size:
            break
        team.map(apply_from_left, range(j, size, PER_TASK))
        S, triangle = factor_panel(W[j:])
        blocks[k, j] = triangle.T
        YW, following = Y[j:].T @ W[j:], slice(j, j + BAND)
        due = np.hstack([Y[following], W[following]]).T
        team.map(apply_from_right, range(j, rows, PER_TASK))
        pack(Y.reshape(-1), j, right, 0)
        pack(W.reshape(-1), j, right, BAND)
    return band
