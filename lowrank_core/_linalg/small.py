"""Singular values of small matrices, by a kernel that decomposes one in each SIMD lane."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lowrank_core._linalg.batches import Batching, values_in_chunks
from lowrank_core._linalg.kernels.sizes import WIDTH
from lowrank_core._linalg.machine_code import kernel
from lowrank_core._linalg.threads import blas_threads
from lowrank_core._linalg.values import Values, norms_of, unscaled_values

__all__ = ["kernel_svd_values"]


def kernel_svd_values(stack: NDArray[Any], workers: int) -> Values:
    """Compute singular values and norms of a stack (count, m, n), and by LAPACK those that do not converge."""
    # The kernel calls no BLAS: the lock would take a fifth of the time of a lone matrix.
    batching = Batching(one_at_a_time=False, multiple_of=WIDTH, takes_blas_lock=True)
    return values_in_chunks(_values_of_chunk, batching, stack, workers)


def _values_of_chunk(matrices: NDArray[Any]) -> Values:
    copied = np.require(matrices, np.float64, ["C", "W"])
    values = np.empty((len(copied), min(copied.shape[1:])))
    exponents = np.empty(len(copied), dtype=np.int64)
    if kernel("small", "small_values")(copied, values, exponents):
        left = np.flatnonzero(np.isnan(values[:, 0]))
        scaled = np.ldexp(copied[left], -exponents[left, np.newaxis, np.newaxis])
        with blas_threads(1):
            values[left] = np.linalg.svd(scaled, compute_uv=False)
    return unscaled_values(values, norms_of(values), exponents)
