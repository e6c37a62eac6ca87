"""The leading singular values and vectors of one large matrix, by block Krylov iteration."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lowrank_core._linalg.certificate import ENERGY_ROUNDING, bound_outside, lost_to_rounding, missed_energy
from lowrank_core._linalg.gram import ProjectedFactors
from lowrank_core._linalg.kernels.sizes import COLUMNS
from lowrank_core._linalg.narrow_products import TallMatrix, tall_matrix
from lowrank_core._linalg.orthogonal import lq
from lowrank_core._linalg.search_space import CHOLESKY_QR_TOL, SearchSpace, orthonormalised
from lowrank_core._linalg.threads import Team, blas_threads
from lowrank_core._linalg.values import Floats, unscaled_values

__all__ = ["Leading", "krylov_factors"]

# Vectors in a block: as many as the kernels of products take at a time.
BLOCK = COLUMNS

# The probability with which an answer may miss more energy than its tolerance.
FAILURE_PROBABILITY = 1e-9

# The bound of energies outside a space that is expected before there is one, over the middle Ritz value: about half of
# the Ritz values have converged, so that the largest energy outside is about that of the middle one. A bound that is
# not small enough costs more than a block does: at 2,048², 1/√i and rank 64 1.7 takes two thirds of the time of 1.5.
EXPECTED_OUTSIDE = 1.7

# What a further block divides missed energies by, at the least: 30 to 100 on falling spectra.
FALL = 30.0

# The fraction of the energy that the tail counts for at least: a tolerance of less is lost in the rounding of products.
LEAST_TAIL = {"float32": 1e-6, "float64": 1e-12}

# The relative accuracy of the difference of two energies that are summed in float64.
DIFFERENCE_ROUNDING = 1e-14

# The smallest of the values wanted, over the largest, from which a Gram matrix has them to 1e-14·σ₁.
GRAM_ACCURATE_FROM = 0.01


class Leading(NamedTuple):
    """Which leading part is wanted: its rank, how well, from how many vectors at most, and the seed of random ones.

    Where more than `expected_vectors` are likely to be needed, the iteration ends early.
    """

    rank: int
    tolerance: float
    max_vectors: int
    expected_vectors: int
    seed: int


class LeadingBasis(NamedTuple):
    """Orthonormal columns that span a leading right singular subspace, and a bound of the energy that they miss."""

    vectors: Floats
    missed: float


def krylov_factors(matrix: NDArray[Any], leading: Leading, workers: int) -> ProjectedFactors | None:
    r"""Decompose the leading part of one matrix; None if the method cannot show that it misses little enough.

    The Krylov space of XᵀX from a Gaussian block is spanned with products in float32 (float64 for float64 input) and
    an orthonormal basis in float64 (Musco and Musco, arXiv:1504.05477, algorithm 2). The answer is X V in float64 for
    the leading Ritz vectors V: each value is attained by a factorisation in hand, so none is overstated. The factors
    are those of a stack of one matrix.
    """
    # Threads of BLAS would go on waiting for work, on the cores that the team needs.
    with blas_threads(1), Team(workers) as team:
        X, energy = tall_matrix(matrix, team)
        if not math.isfinite(energy):
            return _not_finite(X, leading.rank)
        basis = _leading_basis(X, leading, energy)
        if basis is None:
            return None
        product, energy = X.float64_product(basis.vectors)
        values, rotation = _svd_of_tall(product)
        product, vectors = product @ rotation, basis.vectors @ rotation
    head = float(np.sum(values[::-1] ** 2))
    # What is left is all that can be missed. A bound of less than the rounding of float64 may come out below 0.
    left = energy - head + DIFFERENCE_ROUNDING * energy
    missed = max(0.0, min(basis.missed, left)) / (_least_tail(X, head, energy) or 1.0)
    if missed > leading.tolerance:
        return None
    # Rounding must not make the energy of the leading part larger than that of the whole.
    exponents = np.array([X.exponent])
    unscaled = unscaled_values(values[np.newaxis], np.sqrt(np.array([max(energy, head)])), exponents)[:2]
    return ProjectedFactors(*unscaled, product[np.newaxis], vectors[np.newaxis], exponents, X.transposed, missed)


def _not_finite(X: TallMatrix, rank: int) -> ProjectedFactors:
    """Return factors of NaN: the energy has shown already that an entry is not finite."""
    products, bases = np.full((1, X.rows, rank), np.nan), np.full((1, X.columns, rank), np.nan)
    return ProjectedFactors(products[:, 0], products[:, 0, 0], products, bases, np.zeros(1, np.int64), X.transposed)


def _least_tail(X: TallMatrix, head: float, energy: float) -> float:
    """Return the energy beyond a leading part of about `head`, which a tolerance is a fraction of."""
    return max(energy - head, LEAST_TAIL[X.array.dtype.name] * energy)


def _svd_of_tall(product: Floats) -> tuple[Floats, Floats]:
    """Return the singular values of a tall matrix, and its right singular vectors as columns."""
    squares, vectors = np.linalg.eigh(product.T @ product)
    if squares[0] >= GRAM_ACCURATE_FROM**2 * squares[-1]:
        return np.sqrt(squares[::-1]), np.ascontiguousarray(vectors[:, ::-1])
    _, values, Wt = np.linalg.svd(product, full_matrices=False)
    return values, Wt.T


def _leading_basis(X: TallMatrix, leading: Leading, energy: float) -> LeadingBasis | None:
    """Compute an orthonormal basis (columns, rank) of the leading right singular subspace; None if that fails.

    The space grows until a bound of what lies outside shows that its leading Ritz vectors miss little enough.
    """
    rank, rng, may_give_up = leading.rank, np.random.default_rng(leading.seed), leading.max_vectors < X.columns
    space = SearchSpace(X, capacity=min(leading.max_vectors, 4 * rank) + 2 * BLOCK)
    # The first block is a step away from Gaussian: with as many products, the space lacks only its least useful block.
    _, gram_block = X.apply_gram(rng.standard_normal((min(BLOCK, X.columns), X.columns)))
    further = orthonormalised(gram_block, space.Q)[0]
    outside, failure, blocks_to_go = math.inf, FAILURE_PROBABILITY, 0
    heads: list[float] = []
    while space.size < leading.max_vectors:
        space.extend(further)
        further = space.gram_block
        blocks_to_go -= 1
        if not space.is_full and (space.size < rank or blocks_to_go > 0):
            continue
        squares = np.maximum(np.linalg.eigvalsh(space.projection)[::-1], 0.0)
        heads.append(float(np.sum(squares[:rank])))
        lost = lost_to_rounding(space, squares, rank)
        if space.is_full or energy - heads[-1] <= ENERGY_ROUNDING * X.eps * energy:
            # What is left is too little to be bounded here: it is known after a product in float64.
            return LeadingBasis(_leading_ritz_vectors(space, rank), lost if space.is_full else math.inf)
        tolerated = leading.tolerance * _least_tail(X, heads[-1], energy)
        if lost > tolerated:
            return None
        expected = EXPECTED_OUTSIDE * float(squares[space.size // 2])
        missed = missed_energy(space, squares, rank, min(outside, expected))
        if missed <= tolerated and expected < outside:
            failure /= 2
            certificate = bound_outside(space, energy, rng, failure)
            outside = min(outside, certificate.bound)
            missed = missed_energy(space, squares, rank, outside)
            if may_give_up and missed == math.inf:
                # Outside are values as large as those wanted: copies, of which each certificate would find a block.
                return None
            if missed > tolerated:
                further = orthonormalised(np.concatenate([further, certificate.leading]), space.Q)[0]
        if missed <= tolerated:
            return LeadingBasis(_leading_ritz_vectors(space, rank), missed)
        if may_give_up and missed == math.inf and _falls_slowly(space.size, heads, tolerated, leading):
            return None
        blocks_to_go = int(math.log(missed / tolerated, FALL)) if missed < math.inf else 0
    return None


def _falls_slowly(size: int, heads: list[float], tolerated: float, leading: Leading) -> bool:
    """Whether the leading energy that blocks add falls so slowly that a full decomposition is likely to be cheaper."""
    if len(heads) < 3:
        return False
    before, last = heads[-2] - heads[-3], heads[-1] - heads[-2]
    if last <= tolerated:
        # Nothing is added, and yet the values wanted do not stand out: they have copies, or are zero.
        return before <= tolerated
    if last >= before:
        return True
    further_blocks = math.log(last / tolerated) / math.log(before / last)
    return size + BLOCK * further_blocks > max(leading.expected_vectors, 4 * (leading.rank + BLOCK))


def _leading_ritz_vectors(space: SearchSpace, rank: int) -> Floats:
    """Compute the leading Ritz vectors, as orthonormal columns (columns, rank)."""
    _, vectors = np.linalg.eigh(space.projection)
    rows = vectors[:, : -rank - 1 : -1].T @ space.Q
    return np.ascontiguousarray(lq(rows, CHOLESKY_QR_TOL)[1].T)
