"""Leading eigenvalues and eigenvectors of a positive semidefinite matrix that is a band, but for little beside it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from lowrank_core._linalg.kernels.sizes import APART, BAND, COLUMNS
from lowrank_core._linalg.threads import Team
from lowrank_core._linalg.two_stage import tridiagonal_eigenvalues
from lowrank_core._linalg.values import Floats

__all__ = ["leading_eigenvalues", "leading_eigenvectors", "left_out"]

# From this side on a band is less work than a full matrix: 0.6 times LAPACK's for eigenvalues, 0.4 from 500 on.
SMALLEST_SIDE = 256

# How far from orthonormal vectors may be, and their residuals from what is left out, over the largest eigenvalue.
ROUNDING = 1e-13


def left_out(matrix: Floats, most: float) -> float | None:
    """Return the largest norm of a column of what is beside a band; or None if that is above `most`.

    None, too, where a matrix is too small for a band to be less work.
    """
    from lowrank_core._linalg.kernels.compiling import COMPILED

    if not COMPILED or len(matrix) < SMALLEST_SIDE:
        return None
    lower = np.tril(matrix, -BAND - 1) ** 2
    norm = math.sqrt(np.max(np.sum(lower, axis=0) + np.sum(lower, axis=1)))
    return norm if norm <= most else None


def leading_eigenvalues(matrices: Sequence[Floats], count: int, *, are_bands: bool, team: Team) -> list[Floats]:
    """Compute the largest eigenvalues of matrices, so many or all that there are, descending, none below zero.

    Of bands, what is beside the band is left out.
    """
    if not are_bands:
        return [np.maximum(np.linalg.eigvalsh(matrix)[: -count - 1 : -1], 0.0) for matrix in matrices]
    values = []
    for diagonal, squares, exponent in team.map(_chased, matrices):
        ascending = tridiagonal_eigenvalues(diagonal, squares, min(count, len(diagonal)), team)
        values.append(np.ldexp(ascending[::-1], exponent))
    return values


def leading_eigenvectors(matrix: Floats, count: int, beside: float | None, team: Team) -> Floats:
    """Compute orthonormal eigenvectors for the largest eigenvalues, as columns.

    Of a band what is `beside` it is left out, as `left_out` returns it: residuals are at most twice that, and rounding.
    """
    if beside is not None:
        values, vectors = _of_band(matrix, count, team)
        distance = np.max(np.abs(vectors.T @ vectors - np.eye(count)))
        residuals = np.linalg.norm(matrix @ vectors - values * vectors, axis=0)
        if distance <= ROUNDING and np.max(residuals) <= max(2.0 * beside, ROUNDING * values[0]):
            return vectors
    return np.ascontiguousarray(np.linalg.eigh(matrix)[1][:, : -count - 1 : -1])


def _chased(matrix: Floats, reflectors: Floats | None = None) -> tuple[Floats, Floats, int]:
    """Reduce a band to the diagonal and the squares of those beside it, over 2^exponent and its square."""
    from lowrank_core._linalg.kernels.chasing import chase

    size = len(matrix)
    exponent = int(np.frexp(np.max(np.diagonal(matrix)))[1])
    band = np.zeros((size + 3 * BAND) * (APART + 1))
    for below in range(BAND + 1):
        band[below * APART :: APART + 1][: size - below] = np.ldexp(np.diagonal(matrix, -below), -exponent)
    diagonal, squares = np.empty((2, size))
    chase(band, diagonal, squares, np.empty(0) if reflectors is None else reflectors)
    return diagonal, squares, exponent


def _of_band(matrix: Floats, count: int, team: Team) -> tuple[Floats, Floats]:
    """Compute the largest eigenvalues of a band, descending, and their eigenvectors as columns."""
    from lowrank_core._linalg.kernels.chasing import apply_reflectors
    from lowrank_core._linalg.kernels.inverse_iteration import eigenvectors

    size = len(matrix)
    counts = -(-np.arange(size - 1, 0, -1) // BAND)
    reflectors = np.empty(BAND * int(np.sum(counts)))
    diagonal, squares, exponent = _chased(matrix, reflectors)
    firsts = reflectors[BAND * (np.cumsum(counts) - counts)]
    values = tridiagonal_eigenvalues(diagonal, squares, count, team)[::-1].copy()
    vectors = np.random.default_rng(0).standard_normal((count, size))
    eigenvectors(diagonal, np.copysign(np.sqrt(squares[:-1]), -firsts), values, vectors)
    columns = np.zeros((-(-count // COLUMNS), size + BAND, COLUMNS))
    for start, panel in zip(range(0, count, COLUMNS), columns, strict=True):
        chosen = vectors[start : start + COLUMNS]
        panel[:size, : len(chosen)] = chosen.T
    team.map(lambda panel: apply_reflectors(reflectors, size, panel.reshape(-1)), [*columns])
    return np.ldexp(values, exponent), np.hstack([*columns])[:size, :count]
