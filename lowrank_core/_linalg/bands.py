"""Leading eigenvalues and eigenvectors of a positive semidefinite matrix that is a band, but for little beside it."""

from __future__ import annotations

import math

import numpy as np

from lowrank_core._linalg.kernels.sizes import APART, BAND, COLUMNS
from lowrank_core._linalg.threads import Team
from lowrank_core._linalg.two_stage import tridiagonal_eigenvalues
from lowrank_core._linalg.values import Floats

__all__ = ["leading_eigenvalues", "leading_eigenvectors", "norm_beside_band"]

# From this side on a band is less work than a full matrix: 0.6 times LAPACK's for eigenvalues, 0.4 from 500 on.
SMALLEST_SIDE = 256

# How far from orthonormal vectors may be.
ORTHONORMAL = 1e-13


def leading_eigenvalues(matrix: Floats, count: int, negligible: float, team: Team) -> Floats:
    """Compute the largest eigenvalues, so many or all that there are, descending, none below zero.

    What is beside a band is left out where its Frobenius norm is at most `negligible`, which moves the sum of k
    eigenvalues by at most √k times that (Hoffman and Wielandt, Duke Math. J. 20 (1953) 37, theorem 1).
    """
    if not _is_band(matrix, negligible):
        values: Floats = np.maximum(np.linalg.eigvalsh(matrix)[: -count - 1 : -1], 0.0)
        return values
    diagonal, squares, exponent = _chased(matrix, np.empty(0))
    ascending = tridiagonal_eigenvalues(diagonal, squares, min(count, len(matrix)), team)
    return np.ldexp(ascending[::-1], exponent)


def leading_eigenvectors(matrix: Floats, count: int, negligible: float, team: Team) -> Floats:
    """Compute orthonormal eigenvectors for the largest eigenvalues, as columns.

    The sum of their Rayleigh quotients is at most √k · `negligible` below that of as many `leading_eigenvalues`.
    """
    if _is_band(matrix, negligible):
        vectors, total = _vectors_of_band(matrix, count, team)
        lost = total - float(np.vdot(vectors, matrix @ vectors))
        distance = np.max(np.abs(vectors.T @ vectors - np.eye(count)))
        if distance <= ORTHONORMAL and lost <= math.sqrt(count) * negligible:
            return vectors
    return np.ascontiguousarray(np.linalg.eigh(matrix)[1][:, : -count - 1 : -1])


def _is_band(matrix: Floats, negligible: float) -> bool:
    """Whether a matrix is large enough for kernels, and what is beside a band negligible."""
    from lowrank_core._linalg.kernels.compiling import COMPILED

    if not COMPILED or len(matrix) < SMALLEST_SIDE:
        return False
    return norm_beside_band(matrix) <= negligible


def norm_beside_band(matrix: Floats) -> float:
    """Compute the Frobenius norm of what is further than BAND from the diagonal of a symmetric matrix."""
    return math.sqrt(2.0) * float(np.linalg.norm(np.tril(matrix, -BAND - 1)))


def _chased(matrix: Floats, reflectors: Floats) -> tuple[Floats, Floats, int]:
    """Reduce a band to the diagonal and the squares of those beside it, over 2^exponent and its square."""
    from lowrank_core._linalg.kernels.chasing import chase

    size = len(matrix)
    exponent = int(np.frexp(np.max(np.diagonal(matrix)))[1])
    band = np.zeros((size + 3 * BAND) * (APART + 1))
    for below in range(BAND + 1):
        band[below * APART :: APART + 1][: size - below] = np.ldexp(np.diagonal(matrix, -below), -exponent)
    diagonal, squares = np.empty((2, size))
    chase(band, diagonal, squares, reflectors)
    return diagonal, squares, exponent


def _vectors_of_band(matrix: Floats, count: int, team: Team) -> tuple[Floats, float]:
    """Compute the leading eigenvectors of a band, as columns, and the sum of their eigenvalues."""
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
    return np.hstack([*columns])[:size, :count], math.ldexp(float(np.sum(values)), exponent)
