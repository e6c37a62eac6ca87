"""Singular values of matrices too large for a lane each: alone to bidiagonal form, then eight at once by dqds."""

from __future__ import annotations

import math

import numpy as np

from lowrank_core._linalg.kernels import simd
from lowrank_core._linalg.kernels.compiling import Floats, Integers, kernel
from lowrank_core._linalg.kernels.dqds import STATE, dqds, write_values
from lowrank_core._linalg.kernels.householder import ROWS, bidiagonalise, fill_tall
from lowrank_core._linalg.kernels.simd import WIDTH

__all__ = ["bidiagonal_values", "bidiagonals"]


@kernel
def bidiagonals(matrices: Floats, diagonals: Floats, above: Floats, exponents: Integers) -> None:
    """Reduce matrices (batch, m, n), each over 2^exponent, to the squares of a diagonal and of what is above it.

    Each is (batch, min(m, n)), and the last of those above it 0.
    """
    batch, m, n = matrices.shape
    rows, columns = max(m, n), min(m, n)
    size = ((columns - 1) // WIDTH + 1) * WIDTH
    A, w, u, p = np.zeros((rows + ROWS) * size), np.zeros(size), np.zeros(size), np.zeros(size)
    reflectors = np.empty((columns, 3))
    flat = matrices.reshape(matrices.size)
    for matrix in range(batch):
        exponents[matrix] = exponent = simd.exponent_of(flat, matrix * m * n, m * n)
        # In two factors, because 1/2^e alone need not be a float64.
        half = math.ldexp(1.0, -(exponent // 2))
        other = math.ldexp(1.0, exponent // 2 - exponent)
        fill_tall(A, size, flat, matrix * m * n, m, n, half, other)
        bidiagonalise(A, rows, columns, size, w, u, p, diagonals[matrix], above[matrix], reflectors)


@kernel
def bidiagonal_values(diagonals: Floats, above: Floats, values: Floats) -> int:
    """Singular values of bidiagonal matrices, as `bidiagonals` fills in their squares, descending, (batch, n).

    NaN for a matrix that did not converge. Returns the number of matrices left at NaN.
    """
    batch, n = diagonals.shape
    size = n * WIDTH
    # Steps look at a row of q beyond the last.
    q, e = np.zeros(size + WIDTH), np.zeros(size)
    q_old, e_old, sigmas, state = np.empty(size), np.empty(size), np.empty(size), np.empty(STATE)
    unfinished = 0
    for first in range(0, batch, WIDTH):
        for lane in range(WIDTH):
            # Lanes beyond the last matrix have it again: dqds is slower where lanes have blocks of different rows.
            matrix = min(first + lane, batch - 1)
            for i in range(n):
                q[i * WIDTH + lane], e[i * WIDTH + lane] = diagonals[matrix, i], above[matrix, i]
        dqds(n, q, e, q_old, e_old, sigmas, state, 0.0)
        unfinished += write_values(first, q, state, values)
    return unfinished
