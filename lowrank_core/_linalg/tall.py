"""Singular values of tall matrices, or wide ones: those of the triangle of a QR factorisation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lowrank_core._linalg.batches import Batching, map_batch
from lowrank_core._linalg.machine_code import kernel
from lowrank_core._linalg.panels import triangle_by_panels
from lowrank_core._linalg.powers_of_two import scaled_to_unit
from lowrank_core._linalg.values import Floats, Values, read_only, unscaled_values

__all__ = ["tall_svd_values", "triangles"]

# Entries that a thread takes at a time, and rows for each column: the triangles of the parts are factored once more.
PART_ENTRIES = 2**17
PART_ROWS = 8

# What the number of more parts than these is a multiple of, so that threads have as much to do.
TASKS = 4

# Up to so many columns a kernel keeps rows in a core's own cache; panels of columns are faster beyond. LAPACK's QR, as
# fast on one core, is run by NumPy in one thread at a time.
NARROW = 96

# Largest entries of a triangle between which no square has left the range of float64 where that would matter.
UNSCALED = (1e-100, 1e100)


def tall_svd_values(square_values: Callable[[NDArray[Any], int], Values], stack: NDArray[Any], workers: int) -> Values:
    """Compute singular values and norms of a stack (count, m, n) by those of square matrices; NaN if not finite."""
    tall = stack if stack.shape[-2] >= stack.shape[-1] else stack.swapaxes(-1, -2)
    R, exponents = triangles(tall, workers), np.zeros(len(tall), np.int64)
    largest = np.abs(R).max(axis=(-2, -1))
    for i in np.flatnonzero(~((largest > UNSCALED[0]) & (largest < UNSCALED[1]))):
        if not np.isfinite(tall[i]).all():
            return Values(np.full(R.shape[:2], np.nan), np.full(len(R), np.nan))
        scaled, exponents[i] = scaled_to_unit(tall[i])
        R[i] = triangles(scaled[np.newaxis], workers)[0]
    values, norms, _ = square_values(R, workers)
    return unscaled_values(values, norms, exponents)


def triangles(stack: NDArray[Any], workers: int, rows_per_column: int | None = None) -> Floats:
    """Compute triangles R (count, n, n) of tall matrices (count, m, n): Rᵀ R is the Gram matrix of each.

    A TSQR with one level (Demmel, Grigori, Hoemmen and Langou, SIAM J. Sci. Comput. 34 (2012) A206): rows are divided
    by shape alone, and the triangles of the parts are factored together. Not finite where an entry is not. If given,
    columns have so many rows more each, and zeros below.
    """
    count, m, n = stack.shape
    parts = max(1, m // max(PART_ROWS * n, PART_ENTRIES // n))
    parts -= parts % TASKS if parts > TASKS else 0
    ends = np.linspace(0, m, parts + 1).astype(int)
    of_parts = np.empty((count * parts, n, n))

    def reduce(chunk: slice) -> None:
        for task in range(chunk.start, chunk.stop):
            matrix, part = divmod(task, parts)
            of_parts[task] = _triangle(stack[matrix, ends[part] : ends[part + 1]], rows_per_column)

    map_batch(reduce, count * parts, (m // parts, n), workers, Batching(one_at_a_time=False))
    if parts == 1:
        return of_parts
    # First the first rows of all triangles, then the second: the last rows have entries in the last columns alone.
    together = of_parts.reshape(count, parts, n, n).swapaxes(1, 2).reshape(count, parts * n, n)
    return triangles(together, workers, rows_per_column=parts)


def _triangle(rows: NDArray[Any], rows_per_column: int | None) -> Floats:
    """Compute the triangle R (n, n) of at least n rows."""
    n = rows.shape[1]
    if n > NARROW:
        return triangle_by_panels(rows, rows_per_column)
    R = np.empty((n, n))
    kernel("triangle", "triangle")(read_only(np.ascontiguousarray(rows, np.float64)), R)
    return R
