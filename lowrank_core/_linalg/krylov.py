"""The leading singular values and vectors of one large matrix, by block Krylov iteration."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from enum import Enum, auto
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lowrank_core._linalg.bands import leading_eigenvalues, leading_eigenvectors, norm_beside_band
from lowrank_core._linalg.certificate import (
    ENERGY_ROUNDING,
    bound_outside,
    left_out,
    lost_to_rounding,
    missed_energy,
)
from lowrank_core._linalg.gram import ProjectedFactors
from lowrank_core._linalg.kernels.sizes import COLUMNS
from lowrank_core._linalg.narrow_products import TallMatrix, tall_matrix
from lowrank_core._linalg.orthogonal import lq
from lowrank_core._linalg.search_space import CHOLESKY_QR_TOL, SearchSpace, orthonormalised
from lowrank_core._linalg.threads import Team, blas_threads
from lowrank_core._linalg.values import Floats, unscaled_values

__all__ = ["Failure", "Leading", "krylov_factors"]

# Vectors in a block: as many as the kernels of products take at a time.
BLOCK = COLUMNS

# The probability with which an answer may miss more energy than its tolerance.
FAILURE_PROBABILITY = 1e-9

# The bound of energies outside a space that is expected before there is one, over the middle Ritz value: about half of
# the Ritz values have converged, so that the largest energy outside is about that of the middle one. A bound that is
# not small enough costs more than a block does: at 2,048², 1/√i and rank 64 1.7 takes two thirds of the time of 1.5.
EXPECTED_OUTSIDE = 1.7

# The fraction of the tolerated energy that the entries of a projection may be worth for which it is taken for a band.
MOST_LEFT_OUT = 0.5

# What a further block is expected to divide missed energies by: as much as those before it, within these. It is 8 to 11
# on noise, and 30 to 100 on falling spectra.
LEAST_FALL, FALL = 8.0, 30.0

# The fraction of the energy that the tail counts for at least: a tolerance of less is lost in the rounding of products.
LEAST_TAIL = {"float32": 1e-6, "float64": 1e-12}

# The relative accuracy of the difference of two energies that are summed in float64.
DIFFERENCE_ROUNDING = 1e-14

# The smallest of the values wanted, over the largest, from which a Gram matrix has them to 1e-14·σ₁.
GRAM_ACCURATE_FROM = 0.01


class Leading(NamedTuple):
    """Which leading part is wanted: its rank, how well, from how many vectors at most, and the seed of random ones.

    With fewer of them than columns the iteration ends early: where more than `expected_vectors` are likely to be
    needed (None: whatever is likely), or where more than `dense_from` do not show that the values wanted stand out.
    """

    rank: int
    tolerance: float
    max_vectors: int
    expected_vectors: int | None
    dense_from: int
    seed: int


class Failure(Enum):
    """Why an iteration ends without an answer: its products are too inexact, or the values wanted are too dense."""

    ROUNDING = auto()
    DENSE = auto()


class LeadingBasis(NamedTuple):
    """Orthonormal columns that span a leading right singular subspace, and a bound of the energy that they miss."""

    vectors: Floats
    missed: float


class Check(NamedTuple):
    """What a space of a size has: the energy of its leading Ritz vectors, and a bound of what that may miss."""

    size: int
    head: float
    missed: float


def krylov_factors(matrix: NDArray[Any], leading: Leading, workers: int) -> ProjectedFactors | Failure:
    r"""Decompose the leading part of one matrix; or say why the method cannot show that it misses little enough.

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
        if isinstance(basis, Failure):
            return basis
        product, energy = X.float64_product(basis.vectors)
        values, rotation = _svd_of_tall(product)
        product, vectors = product @ rotation, basis.vectors @ rotation
    head = float(np.sum(values[::-1] ** 2))
    # What is left is all that can be missed. A bound of less than the rounding of float64 may come out below 0.
    left = energy - head + DIFFERENCE_ROUNDING * energy
    missed = max(0.0, min(basis.missed, left)) / (_least_tail(X, head, energy) or 1.0)
    if missed > leading.tolerance:
        return Failure.ROUNDING
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


def _leading_basis(X: TallMatrix, leading: Leading, energy: float) -> LeadingBasis | Failure:
    """Compute an orthonormal basis (columns, rank) of the leading right singular subspace.

    The space grows until a bound of what lies outside shows that its leading Ritz vectors miss little enough.
    """
    rank, rng, may_give_up = leading.rank, np.random.default_rng(leading.seed), leading.max_vectors < X.columns
    space = SearchSpace(X, capacity=min(leading.max_vectors, 4 * rank) + 2 * BLOCK)
    # The first block is a step away from Gaussian: with as many products, the space lacks only its least useful block.
    _, gram_block = X.apply_gram(rng.standard_normal((min(BLOCK, X.columns), X.columns)))
    further = orthonormalised(gram_block)[0]
    outside, failure, blocks_to_go = math.inf, FAILURE_PROBABILITY, 0
    checks: list[Check] = []
    while space.size < leading.max_vectors:
        space.extend(further)
        further = space.gram_block
        blocks_to_go -= 1
        if not space.is_full and (space.size < rank or blocks_to_go > 0):
            continue
        tail = energy - (checks[-1].head if checks else float(np.trace(space.projection)))
        negligible = norm_beside_band(space.projection)
        if left_out(negligible, rank) > MOST_LEFT_OUT * leading.tolerance * tail:
            negligible = 0.0
        squares = leading_eigenvalues(space.projection, max(rank + 1, space.size // 2 + 1), negligible, X.team)
        head = float(np.sum(squares[:rank]))
        lost = lost_to_rounding(space, squares, rank)
        if space.is_full or energy - head <= ENERGY_ROUNDING * X.eps * energy:
            # What is left is too little to be bounded here: it is known after a product in float64.
            return LeadingBasis(_leading_ritz_vectors(space, rank, 0.0), lost if space.is_full else math.inf)
        tolerated = leading.tolerance * _least_tail(X, head, energy)
        if lost > tolerated:
            return Failure.ROUNDING
        missed_beside = partial(missed_energy, space, squares, rank, negligible=negligible)
        missed = missed_beside(outside)
        expected = EXPECTED_OUTSIDE * float(squares[space.size // 2])
        if missed > tolerated and expected < outside:
            missed = missed_beside(expected)
            if missed <= tolerated:
                failure /= 2
                suffices = partial(_suffices, missed_beside, tolerated)
                certificate = bound_outside(space, energy, rng, failure, float(squares[rank - 1]), suffices)
                outside = min(outside, certificate.bound)
                missed = missed_beside(outside)
                if missed == math.inf:
                    # Outside may be values as large as those wanted: copies, of which each certificate finds a block.
                    if may_give_up:
                        return Failure.DENSE
                    further = orthonormalised(np.concatenate([further, certificate.leading]), space.basis)[0]
        if missed <= tolerated:
            return LeadingBasis(_leading_ritz_vectors(space, rank, negligible), missed)
        checks.append(Check(space.size, head, missed))
        if may_give_up and missed == math.inf and _falls_slowly(checks, tolerated, leading):
            return Failure.DENSE
        blocks_to_go = _further_blocks(checks, tolerated)
    return Failure.DENSE


def _suffices(missed_beside: Callable[[float], float], tolerated: float, outside: float) -> bool:
    """Whether a bound of energies outside the space shows that its leading Ritz vectors miss little enough."""
    return missed_beside(outside) <= tolerated


def _further_blocks(checks: Sequence[Check], tolerated: float) -> int:
    """Return how many blocks a space is likely to need at the least, by how fast missed energies fell before."""
    last = checks[-1]
    if last.missed == math.inf:
        return 0
    fall = FALL
    if len(checks) > 1 and checks[-2].missed < math.inf:
        before = checks[-2]
        fall = (before.missed / last.missed) ** (BLOCK / (last.size - before.size))
    return int(math.log(last.missed / tolerated, min(max(fall, LEAST_FALL), FALL)))


def _falls_slowly(checks: Sequence[Check], tolerated: float, leading: Leading) -> bool:
    """Whether the leading energy that blocks add falls so slowly that a full decomposition is likely to be cheaper."""
    size = checks[-1].size
    if len(checks) < 3 or size > leading.dense_from:
        return size > leading.dense_from
    heads = [check.head for check in checks[-3:]]
    before, last = heads[1] - heads[0], heads[2] - heads[1]
    if last <= tolerated:
        # Nothing is added, and yet the values wanted do not stand out: they have copies, or are zero.
        return before <= tolerated
    if leading.expected_vectors is None:
        return False
    if last >= before:
        return True
    further_blocks = math.log(last / tolerated) / math.log(before / last)
    return size + BLOCK * further_blocks > max(leading.expected_vectors, 4 * (leading.rank + BLOCK))


def _leading_ritz_vectors(space: SearchSpace, rank: int, negligible: float) -> Floats:
    """Compute the leading Ritz vectors, as orthonormal columns (columns, rank)."""
    rows = leading_eigenvectors(space.projection, rank, negligible, space.X.team).T @ space.Q
    return np.ascontiguousarray(lq(rows, CHOLESKY_QR_TOL)[1].T)
