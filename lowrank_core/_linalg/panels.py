"""Householder factors of a panel of columns at a time, I − V T Vᵀ, so that the rest is products of matrices."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lowrank_core._linalg.kernels.sizes import BAND
from lowrank_core._linalg.machine_code import kernel
from lowrank_core._linalg.values import Floats

__all__ = ["factored_panel", "triangle_by_panels", "whole_panels"]


def whole_panels(columns: int) -> int:
    """Return the number of columns with those that fill the last panel."""
    return -(-columns // BAND) * BAND


def factored_panel(panel: Floats) -> tuple[Floats, Floats, Floats]:
    """Return V, T and the triangle R of a panel (rows, BAND), with which it is (I − V T Vᵀ) R."""
    V, (T, R) = np.array(panel, order="C"), np.zeros((2, BAND, BAND))
    kernel("band", "factor_panel")(V, R, T)
    return V, T, R


def triangle_by_panels(matrix: NDArray[Any]) -> Floats:
    """Compute the triangle R (n, n) of a matrix (m, n), m ≥ n; not finite where an entry is not."""
    n = matrix.shape[1]
    size = whole_panels(n)
    A, R = np.zeros((max(len(matrix), size), size)), np.zeros((size, size))
    A[: len(matrix), :n] = matrix
    start = 0
    # The caller sees by R what overflows or is not finite.
    with np.errstate(over="ignore", invalid="ignore"):
        while start < size:
            end = start + whole_panels((size - start) // 2)
            T = _reduce(A[start:, start:end], R[start:end, start:end])
            _apply(A[start:, start:end], T, A[start:, end:], R[start:end, end:])
            start = end
    return R[:n, :n]


def _reduce(A: Floats, R: Floats) -> Floats:
    """Replace A (rows, n) by V of its factor I − V T Vᵀ, fill in its triangle R, and return T.

    Halves of the columns, one after the other: products with many columns are faster than products with few (Elmroth
    and Gustavson, IBM J. Res. Dev. 44 (2000) 605).
    """
    n = A.shape[1]
    if n == BAND:
        A[:], T, R[:] = factored_panel(A)
        return T
    half = whole_panels(n // 2)
    left, right, T = A[:, :half], A[:, half:], np.zeros((n, n))
    T[:half, :half] = _reduce(left, R[:half, :half])
    _apply(left, T[:half, :half], right, R[:half, half:])
    T[half:, half:] = _reduce(right[half:], R[half:, half:])
    T[:half, half:] = -T[:half, :half] @ (left.T @ right) @ T[half:, half:]
    return T


def _apply(V: Floats, T: Floats, A: Floats, R: Floats) -> None:
    """Apply (I − V T Vᵀ)ᵀ to the columns A beside V, and move their first rows, which are done, to R."""
    A -= V @ (T.T @ (V.T @ A))
    R[:], A[: len(R)] = A[: len(R)], 0.0
