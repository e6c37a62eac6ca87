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


def triangle_by_panels(matrix: NDArray[Any]) -> Floats:
    """Compute the triangle R (n, n) of a matrix (m, n), m ≥ n; not finite where an entry is not.

    Reflectors I − V T Vᵀ turn A into A − V Yᵀ, where Y = Aᵀ V T. The pass for the next panel's Aᵀ V subtracts that.
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
            np.subtract(A[k:, k:j], V[k:] @ Y[k:j].T, out=V[k:])
            T, R[k:j, k:j] = factor_panel(V[k:])
            if j == size:
                break
            kernel("band", "update_and_multiply_columns")(A, k, j, size, left, right, V.reshape(-1), Y.reshape(-1))
            Y[j:] = Y[j:] @ T
            R[k:j, j:] = A[k:j, j:size] - V[k:j] @ Y[j:].T
            np.negative(V.reshape(-1), out=left)
            kernel("band", "pack")(Y.reshape(-1), j, right, 0)
    return R[:n, :n]
