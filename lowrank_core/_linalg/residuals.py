"""The energy of a large matrix, and of what a product leaves of it, without cancellation and without forming B A."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lowrank_core._linalg.threads import in_threads
from lowrank_core._linalg.values import Floats

__all__ = ["matrix_energy", "residual_energy"]

# Rows that a thread takes at a time; their energies are added in their order, so that no bit depends on the threads.
ROWS_PER_TASK = 512


def matrix_energy(X: NDArray[Any]) -> float:
    """Compute ‖X‖_F² in float64, of float32 by a kernel, without a copy; infinity or 0 where squares do not fit."""
    from lowrank_core._linalg.kernels.compiling import COMPILED
    from lowrank_core._linalg.kernels.residual import squares

    if X.dtype == np.float32 and COMPILED:
        return float(squares(np.ascontiguousarray(X).reshape(-1)))
    entries = X.astype(np.float64, copy=False)
    with np.errstate(over="ignore", under="ignore"):
        return float(np.vdot(entries, entries))


def residual_energy(X: NDArray[np.float32], B: Floats, A: Floats, workers: int) -> float | None:
    """Compute ‖X − B A‖_F² in float64 by a kernel; None where kernels are not compiled."""
    from lowrank_core._linalg.kernels.compiling import COMPILED
    from lowrank_core._linalg.kernels.residual import COLUMNS, ROWS, residual_squares

    if not COMPILED:
        return None
    rank, n = A.shape
    columns = -(-n // COLUMNS) * COLUMNS
    padded = _padded(A, rank, columns)
    panels = np.ascontiguousarray(padded.reshape(rank, columns // COLUMNS, COLUMNS).swapaxes(0, 1)).ravel()

    def energy_of(start: int) -> float:
        rows, factor = X[start : start + ROWS_PER_TASK], B[start : start + ROWS_PER_TASK]
        count = -(-len(rows) // ROWS) * ROWS
        return float(residual_squares(_padded(rows, count, columns), _padded(factor, count, rank).ravel(), panels))

    return math.fsum(in_threads(energy_of, range(0, len(X), ROWS_PER_TASK), workers))


def _padded(matrix: NDArray[Any], rows: int, columns: int) -> NDArray[Any]:
    """Return a matrix in C order with zeros up to a size, and no copy of one that is so already."""
    if matrix.shape == (rows, columns):
        return np.ascontiguousarray(matrix)
    padded = np.zeros((rows, columns), matrix.dtype)
    padded[: matrix.shape[0], : matrix.shape[1]] = matrix
    return padded
