"""Intruder dimensions: leading left singular vectors of W + Δ that are near none of W."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lowrank_core import truncate
from lowrank_core.models.norms import one_blas_thread

Floats = NDArray[np.float64]

INTRUDER_BELOW = 0.5
"""The largest |cosine| with a left singular vector of W that an intruder has."""

# Up to here all left vectors of W take less time than steps from the vectors in doubt.
_SMALL = 1024
_STEPS = 48
# A Ritz pair with a residual of so much of its value has converged.
_CONVERGED = 1e-8
# Of the squares of singular values beside the largest, and of what is left of a vector: rounding.
_ZERO = 1e-12


def count_intruders(weight: NDArray[Any], update: NDArray[Any], leading: int) -> int:
    r"""Count the leading left singular vectors of W + Δ of which no |cosine| with one of W reaches ½.

    The definition is that of Shuttleworth et al., "LoRA vs Full Fine-tuning: An Illusion of Equivalence",
    arXiv:2410.21228. Left vectors of zero singular values of W are not determined, and are left out.
    """
    # Rounding to float32 turns no vector by as much as a cosine of ½ could notice, and takes half of the time.
    exact = weight.astype(np.float64) + update
    tuned = exact if weight.dtype == np.float64 else exact.astype(np.float32)
    vectors = left_vectors(tuned, min(leading, *tuned.shape))
    known = 0
    if min(weight.shape) > _SMALL:
        intruder, near = decide_by_steps(weight, vectors)
        known, vectors = int(np.count_nonzero(intruder)), vectors[:, ~(intruder | near)]
    if not vectors.shape[1]:
        return known
    basis = left_vectors(weight, min(weight.shape))
    with one_blas_thread():
        largest = np.max(np.abs(basis.T @ vectors), axis=0, initial=0.0)
    return known + int(np.count_nonzero(largest < INTRUDER_BELOW))


def left_vectors(matrix: NDArray[Any], rank: int) -> Floats:
    """Compute the leading left singular vectors of a matrix, without those of zero values."""
    B: Floats = truncate(matrix, rank).B
    norms = np.linalg.norm(B, axis=0)
    vectors: Floats = B[:, norms > 0] / norms[norms > 0]
    return vectors


def decide_by_steps(weight: NDArray[Any], vectors: Floats, steps: int = _STEPS) -> tuple[NDArray[Any], NDArray[Any]]:
    r"""Return which vectors are surely intruders and which surely are not, from Lanczos steps with W Wᵀ from each.

    The squared cosines of a unit vector y with the left vectors are masses at :math:`\sigma_i^2` of a measure, whose
    Gauss quadrature the steps give. Between two neighbouring nodes there is less mass than their weights together
    (Szegő, "Orthogonal Polynomials", theorem 3.41.1): where that is below ¼ everywhere, no |cosine| reaches ½. And
    where a Ritz pair has converged, its weight is a squared cosine.
    """
    intruder, near = (np.zeros(vectors.shape[1], np.bool_) for _ in range(2))
    alphas, betas = _lanczos(weight.astype(np.float64), vectors, steps)
    for column in range(vectors.shape[1]):
        diagonal, beyond = alphas[:, column], betas[:, column]
        with one_blas_thread():
            nodes, ritz = np.linalg.eigh(np.diag(diagonal) + np.diag(beyond[:-1], 1) + np.diag(beyond[:-1], -1))
        weights = ritz[0] ** 2
        intruder[column] = np.max(weights[:-1] + weights[1:]) < INTRUDER_BELOW**2
        # At zero is what is outside the range of W, where it has no vectors.
        converged = (beyond[-1] * np.abs(ritz[-1]) <= _CONVERGED * nodes) & (nodes > _ZERO * nodes[-1])
        near[column] = bool(np.any(converged & (weights >= INTRUDER_BELOW**2)))
    return intruder, near


def _lanczos(weight: Floats, vectors: Floats, steps: int) -> tuple[Floats, Floats]:
    """Return the diagonals and off-diagonals, (steps, b) each, of Lanczos' tridiagonal matrices from b vectors."""
    alphas, betas = (np.zeros((steps, vectors.shape[1])) for _ in range(2))
    basis = [vectors]
    with one_blas_thread():
        for step in range(steps):
            product = weight @ (weight.T @ basis[-1])
            alphas[step] = np.sum(basis[-1] * product, axis=0)
            # Twice, against all: what rounding brings back of a converged direction would be counted again.
            for earlier in (*basis, *basis):
                product -= earlier * np.sum(earlier * product, axis=0)
            betas[step] = np.linalg.norm(product, axis=0)
            betas[step] *= betas[step] > _ZERO * np.max(alphas, axis=0)
            basis.append(np.divide(product, betas[step], out=np.zeros_like(product), where=betas[step] > 0))
    return alphas, betas
