"""Householder factors of a panel of columns at a time, I − V T Vᵀ, so that the rest is products of matrices."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lowrank_core._linalg.kernels.sizes import BAND
from lowrank_core._linalg.machine_code import kernel
from lowrank_core._linalg.values import Floats

__all__ = ["factor_panel", "triangle_by_panels", "whole_panels"]


def whole_panels(columns: int) -> int:
    """Return the number of columns with those that fill the last panel."""
    return -(-columns // BAND) * BAND


def factor_panel(V: Floats) -> tuple[Floats, Floats]:
    """Replace a panel (rows, BAND) by V of its factor I − V T Vᵀ, and return T and its triangle R."""
    T, R = np.zeros((2, BAND, BAND))
    kernel("band", "factor_panel")(V, R)
    kernel("band", "accumulate")(V, T)
    return T, R


def triangle_by_panels(matrix: NDArray[Any], rows_per_column: int | None = None) -> Floats:
    """Compute the triangle R (n, n) of a matrix (m, n), m ≥ n; not finite where an entry is not.

    If given, columns have so many rows more each, and zeros below. Reflectors I − V T Vᵀ turn A into A − V Yᵀ, where
    Y = Aᵀ V T. The pass for the next panel's Aᵀ V subtracts that.
    """
    m, n = matrix.shape
    rows, size = whole_panels(m), whole_panels(n)
    A, R = np.zeros((rows, size + BAND)), np.zeros((size, size))
    A[:m, :n] = matrix
    V, Y = np.zeros((rows, BAND)), np.zeros((size, BAND))
    left, right = np.zeros(rows * BAND), np.zeros(size * BAND)
    # The caller sees by R what overflows or is not finite.
    with np.errstate(over="ignore", invalid="ignore"):
        for k in range(0, size, BAND):  # pragma: no branch - the last panel leaves
            j = k + BAND
            end = rows if rows_per_column is None else min(rows, rows_per_column * j)
            np.subtract(A[k:end, k:j], V[k:end] @ Y[k:j].T, out=V[k:end])
            T, R[k:j, k:j] = factor_panel(V[k:end])
            if j == size:
                break
            below, x = left[: end * BAND], V[:end].reshape(-1)
            kernel("band", "update_and_multiply_columns")(A[:end], k, j, size, below, right, x, Y.reshape(-1))
            Y[j:] = Y[j:] @ T
            R[k:j, j:] = A[k:j, j:size] - V[k:j] @ Y[j:].T
            np.negative(x, out=below)
            kernel("band", "pack")(Y.reshape(-1), j, right, 0)
    return R[:n, :n]
