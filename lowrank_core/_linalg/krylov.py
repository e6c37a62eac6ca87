"""The leading singular values and vectors of one large matrix, by block Krylov iteration."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lowrank_core._linalg.gram import ProjectedFactors
from lowrank_core._linalg.narrow_products import TallMatrix, tall_matrix
from lowrank_core._linalg.orthogonal import lq
from lowrank_core._linalg.search_space import CHOLESKY_QR_TOL, SearchSpace, orthonormalised
from lowrank_core._linalg.threads import Team, blas_threads
from lowrank_core._linalg.values import Floats, unscaled_values

__all__ = ["Leading", "krylov_factors"]

# Vectors in a block, and in a block that looks for missed energy.
BLOCK = 32
PROBE = 8

# The difference of energies, relative to the largest, within which as many values as a block has vectors are a cluster.
CLUSTER_WIDTH = 0.25

# The smallest of the values wanted, over the largest, from which a Gram matrix has them to 1e-14·σ₁.
GRAM_ACCURATE_FROM = 0.01

# How much of a residual may be rounding of the product that it comes from, in eps·σ₁²: where there should be none, the
# largest was 3.8 up to 1,500 × 1,024, and half of them were below 0.5.
PRODUCT_ROUNDING = 4.0


class Leading(NamedTuple):
    """Which leading part is wanted: its rank, from how many vectors at most, and the seed of the random ones."""

    rank: int
    max_vectors: int
    seed: int


def krylov_factors(matrix: NDArray[Any], leading: Leading, workers: int) -> ProjectedFactors | None:
    r"""Decompose the leading part of one matrix; None if that takes more than `max_vectors` basis vectors.

    The Krylov space of XᵀX from a Gaussian block is spanned with products in float32 (float64 for float64 input) and
    an orthonormal basis in float64 (Musco and Musco, arXiv:1504.05477, algorithm 2). The answer is X V for the best V
    in that space, or a step beyond it, in float64: each value is attained by a factorisation in hand, so none is
    overstated.
    """
    # Threads of BLAS would go on waiting for work, on the cores that the team needs.
    with blas_threads(1), Team(workers) as team:
        X, estimated_energy = tall_matrix(matrix, team)
        basis = _leading_basis(X, leading, estimated_energy)
        if basis is None:
            return None
        product, energy = X.float64_product(basis)
        values, rotation = _svd_of_tall(product)
        product, basis = product @ rotation, basis @ rotation
    # Rounding must not make the energy of the leading part larger than that of the whole.
    energy = max(energy, float(np.sum(values[::-1] ** 2)))
    unscaled, norm = unscaled_values(values, np.sqrt(np.array(energy)), np.array(X.exponent))
    return ProjectedFactors(unscaled, float(norm), product, basis, X.exponent, X.transposed)


def _svd_of_tall(product: Floats) -> tuple[Floats, Floats]:
    """Return the singular values of a tall matrix, and its right singular vectors as columns."""
    squares, vectors = np.linalg.eigh(product.T @ product)
    if squares[0] >= GRAM_ACCURATE_FROM**2 * squares[-1]:
        return np.sqrt(squares[::-1]), np.ascontiguousarray(vectors[:, ::-1])
    _, values, Wt = np.linalg.svd(product, full_matrices=False)
    return values, Wt.T


def _leading_basis(X: TallMatrix, leading: Leading, energy: float) -> Floats | None:
    """Compute an orthonormal basis (columns, rank) of the leading right singular subspace; None at `max_vectors`."""
    rank, max_vectors = leading.rank, leading.max_vectors
    rng = np.random.default_rng(leading.seed)
    space = SearchSpace(X, capacity=min(max_vectors, 4 * rank) + BLOCK + PROBE)

    def random_block(width: int) -> Floats:
        return orthonormalised(rng.standard_normal((width, X.columns)), space.Q)[0]

    # The first block is a step away from Gaussian: with as many products, the space lacks only its least useful block.
    _, gram_block = X.apply_gram(rng.standard_normal((min(BLOCK, X.columns), X.columns)))
    space.extend(orthonormalised(gram_block, space.Q)[0])
    while space.size < rank:
        if space.size >= max_vectors:
            return None
        space.extend(space.gram_block)
    squares, vectors = space.ritz()
    while not space.is_full:
        tolerance = _energy_tolerance(squares, rank, energy)
        correction, missing = _residual_correction(space, squares, vectors, rank)
        if missing > tolerance:
            if space.size >= max_vectors:
                return None
            space.extend(space.gram_block)
        else:
            basis = vectors[:, :rank].T @ space.Q + correction @ space.gram_block
            if not _has_cluster(squares[:rank]) or not _extend_by_missed(
                space, squares[:rank], tolerance, random_block
            ):
                return _orthonormal_columns(basis)
        squares, vectors = space.ritz()
    return _orthonormal_columns(vectors[:, :rank].T @ space.Q)


def _orthonormal_columns(basis: Floats) -> Floats:
    """Return orthonormal columns that span the rows of a basis."""
    return np.ascontiguousarray(lq(basis, CHOLESKY_QR_TOL)[1].T)


def _has_cluster(squares: Floats) -> bool:
    """Whether as many values as a block has vectors lie close together, so that further copies may have been missed.

    Of a repeated value a Krylov space has at most as many copies as its block has vectors.
    """
    widths = squares[: -BLOCK + 1] - squares[BLOCK - 1 :]
    return bool(np.any(widths <= CLUSTER_WIDTH * squares[: len(widths)]))


def _extend_by_missed(
    space: SearchSpace, squares: Floats, tolerance: float, random_block: Callable[[int], Floats]
) -> bool:
    """Extend the space by random directions if it misses more energy than the tolerance; whether it did.

    The Krylov space of a repeated value leaves no residual that would show further copies: two steps from a few random
    vectors do.
    """
    known = space.size
    space.extend(random_block(PROBE), solve=False)
    if not space.is_full:
        if space.missed_energy(squares, known) <= tolerance:
            return False
        space.extend(space.gram_block)
    if not space.is_full:
        space.extend(random_block(BLOCK))
    return True


def _energy_tolerance(squares: Floats, rank: int, energy: float) -> float:
    """Compute how much of the leading energy a partial method may miss."""
    head = float(np.sum(squares[:rank]))
    return 1e-4 * min(head, max(energy - head, 1e-6 * energy))


def _residual_correction(space: SearchSpace, squares: Floats, vectors: Floats, rank: int) -> tuple[Floats, float]:
    """Return what to add to the leading vectors, in terms of ``gram_block``, and about how much energy they then miss.

    A residual is a product with XᵀX that is there already: added in the proportion that the shift μ says, it turns a
    vector y into (XᵀX − μ) y / (θ − μ), in which a direction of energy λ keeps (λ − μ) / (θ − μ) of what it had. With
    the shift halfway to the largest energy τ outside the space that is at most τ / (2θ − τ), whichever it is.
    """
    width = len(space.coupling)
    residuals = space.coupling.T @ vectors[-width:, :rank]
    sizes = np.linalg.norm(residuals, axis=0)
    # Half a block beyond the last wanted value: energies on either side of it that trade places are not lost.
    following = squares[min(rank + width // 2, len(squares)) - 1]
    # A residual ρ moves an eigenvalue by at most ρ, and by ρ² over the gap where less (Parlett, theorem 11.7.1).
    before = _divided(sizes**2, np.maximum(squares[:rank] - following, sizes))
    # Of a young space the following value says too little: what is outside is about as large as its last block.
    outside = np.minimum(squares[:rank], max(following, space.largest_energy_of_last_block()))
    distances = squares[:rank] - outside / 2
    # A residual is no less rounded than the product that it comes from, whose rounding would be added with it.
    rounding = PRODUCT_ROUNDING * float(np.finfo(space.X.array.dtype).eps) * squares[0]
    after = before * _divided(outside / 2, distances) ** 2 + _divided(rounding**2, distances)
    lengths = np.where(after < before, _divided(1.0, distances), 0.0)
    return (residuals * lengths).T, float(np.sum(np.minimum(before, after)))


def _divided(x: Floats | float, y: Floats) -> Floats:
    """Divide, with 0 where y is not positive."""
    return np.divide(x, y, out=np.zeros_like(y), where=y > 0)
