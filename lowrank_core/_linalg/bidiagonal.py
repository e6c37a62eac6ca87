"""Singular values and factors of matrices of a medium size, by kernels that reduce them to bidiagonal form."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lowrank_core._linalg.batches import Batching, map_batch
from lowrank_core._linalg.kernels.sizes import WIDTH
from lowrank_core._linalg.machine_code import kernel
from lowrank_core._linalg.powers_of_two import scaled_by, scaled_to_unit
from lowrank_core._linalg.threads import blas_threads
from lowrank_core._linalg.values import Floats, Values, norms_of, unscaled_values

__all__ = ["BidiagonalFactors", "bidiagonal_svd_factors", "bidiagonal_svd_values", "values_of_bidiagonals"]


def bidiagonal_svd_values(stack: NDArray[Any], workers: int) -> Values:
    """Compute singular values and norms of a stack (count, m, n).

    The first kernel takes one matrix at a time, the second one in each SIMD lane: they divide the stack differently.
    """
    count, m, n = stack.shape
    p = min(m, n)
    diagonals, above, values = np.empty((count, p)), np.empty((count, p)), np.empty((count, p))
    exponents = np.empty(count, np.int64)

    def reduce(chunk: slice) -> None:
        copied = np.require(stack[chunk], np.float64, ["C", "W"])
        kernel("bidiagonal", "bidiagonals")(copied, diagonals[chunk], above[chunk], exponents[chunk])

    def solve(chunk: slice) -> None:
        values[chunk] = values_of_bidiagonals(diagonals[chunk], above[chunk])

    # The kernels call no BLAS.
    batching = Batching(one_at_a_time=False, takes_blas_lock=True)
    map_batch(reduce, count, (m, n), workers, batching)
    map_batch(solve, count, (p, p), workers, batching._replace(multiple_of=WIDTH))
    return unscaled_values(values, norms_of(values), exponents)


def values_of_bidiagonals(diagonals: Floats, above: Floats) -> Floats:
    """Compute singular values (batch, n) by the squares of both diagonals, and by LAPACK what does not converge."""
    values = np.empty_like(diagonals)
    if kernel("bidiagonal", "bidiagonal_values")(diagonals, above, values):
        for i in np.flatnonzero(np.isnan(values[:, 0])):
            matrix = np.diag(np.sqrt(diagonals[i])) + np.diag(np.sqrt(above[i, :-1]), 1)
            with blas_threads(1):
                values[i] = np.linalg.svd(matrix, compute_uv=False)
    return values


class BidiagonalFactors(NamedTuple):
    """Factors of the matrices 2^exponent · X of a stack, from right singular vectors of X in rows."""

    values: Floats
    norms: Floats
    matrices: Floats
    vectors: Floats
    exponents: NDArray[np.int64]

    def at(self, rank: int) -> tuple[Floats, Floats]:
        """Return B = U_r Σ_r, which is X V_r, and A = V_rᵀ, for a rank up to the number of vectors."""
        A = np.ascontiguousarray(self.vectors[:, :rank])
        return scaled_by(self.matrices @ A.swapaxes(-1, -2), self.exponents[:, np.newaxis, np.newaxis]), A


def bidiagonal_svd_factors(
    stack: NDArray[Any],
    rank: int | None,
    workers: int,  # noqa: ARG001 - the signature of every route
) -> BidiagonalFactors:
    """Decompose the matrices of a stack, up to a rank, by a kernel, and by LAPACK those that do not converge."""
    count, m, n = stack.shape
    scaled, exponents = scaled_to_unit(stack)
    p = min(m, n)
    values, vectors = np.empty((count, p)), np.empty((count, p if rank is None else rank, n))
    if kernel("vectors", "leading_vectors")(scaled, values, vectors):
        for i in np.flatnonzero(np.isnan(values[:, 0])):
            _, values[i], Vt = np.linalg.svd(scaled[i], full_matrices=False)
            vectors[i] = Vt[: vectors.shape[1]]
    return BidiagonalFactors(*unscaled_values(values, norms_of(values), exponents)[:2], scaled, vectors, exponents)
