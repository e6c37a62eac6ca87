"""Leading eigenvalues and eigenvectors of a positive semidefinite matrix that is a band, but for little beside it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from lowrank_core._linalg.kernels.sizes import APART, BAND, COLUMNS
from lowrank_core._linalg.threads import Team
from lowrank_core._linalg.two_stage import tridiagonal_eigenvalues
from lowrank_core._linalg.values import Floats

__all__ = ["leading_eigenvalues", "leading_eigenvectors"]

# From this side on a band is less work than a full matrix: 0.6 times LAPACK's for eigenvalues, 0.4 from 500 on.
SMALLEST_SIDE = 256

# How far from orthonormal vectors may be.
ORTHONORMAL = 1e-13

# How large the residual of a vector may be, over the largest norm of a column of what is left out.
RESIDUAL = 2.0


def leading_eigenvalues(matrices: Sequence[Floats], count: int, negligible: float, team: Team) -> list[Floats]:
    """Compute the largest eigenvalues of matrices, so many or all that there are, descending, none below zero.

    What is beside a band is left out where no column of it has a norm beyond `negligible`: eigenvectors of the band
    have residuals of about that.
    """
    if not all(_is_band(matrix, negligible) for matrix in matrices):
        return [np.maximum(np.linalg.eigvalsh(matrix)[: -count - 1 : -1], 0.0) for matrix in matrices]
    values = []
    for diagonal, squares, exponent in team.map(_chased, matrices):
        ascending = tridiagonal_eigenvalues(diagonal, squares, min(count, len(diagonal)), team)
        values.append(np.ldexp(ascending[::-1], exponent))
    return values


def leading_eigenvectors(matrix: Floats, count: int, negligible: float, team: Team) -> Floats:
    """Compute orthonormal eigenvectors for the largest eigenvalues, as columns, with residuals of `negligible`."""
    if _is_band(matrix, negligible):
        values, vectors = _of_band(matrix, count, team)
        distance = np.max(np.abs(vectors.T @ vectors - np.eye(count)))
        residuals = np.linalg.norm(matrix @ vectors - values * vectors, axis=0)
        if distance <= ORTHONORMAL and np.max(residuals) <= RESIDUAL * negligible:
            return vectors
    return np.ascontiguousarray(np.linalg.eigh(matrix)[1][:, : -count - 1 : -1])


def _is_band(matrix: Floats, negligible: float) -> bool:
    """Whether a matrix is large enough for kernels, and what is beside a band negligible."""
    from lowrank_core._linalg.kernels.compiling import COMPILED

    if not COMPILED or len(matrix) < SMALLEST_SIDE:
        return False
    lower = np.tril(matrix, -BAND - 1) ** 2
    return math.sqrt(np.max(np.sum(lower, axis=0) + np.sum(lower, axis=1))) <= negligible


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
