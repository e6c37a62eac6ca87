"""The leading singular values and vectors of one large matrix, by block Krylov iteration."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from enum import Enum, auto
from functools import cache, partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lowrank_core._linalg.bands import leading_eigenvalues, leading_eigenvectors
from lowrank_core._linalg.certificate import (
    ENERGY_ROUNDING,
    RitzVectors,
    bound_outside,
    lost_to_rounding,
    missed_energy,
    ritz_values,
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

# A float64 matrix is rounded to float32 if so many times what that loses of a first block is tolerated: more is lost of
# values that follow, since gaps between them are smaller.
SPARE = 4.0

# How many times as large a gap must be for missed energies to be bounded by it, too, beside that of the check before.
LOOSE = 2.0

# What a further block is expected to divide missed energies by: as much as those before it, within these. It is 8 to 11
# on noise, and 30 to 600 on falling spectra; a block too many takes longer than a check.
LEAST_FALL, FALL = 8.0, 100.0

# The relative accuracy of the difference of two energies that are summed in float64.
DIFFERENCE_ROUNDING = 1e-14

# Ritz vectors beside those wanted that a rounded matrix is multiplied by exactly, too: rounding mixes the last of those
# wanted with the next, which the exact product separates.
BESIDE = BLOCK

# The smallest of the values wanted, over the largest, from which a Gram matrix has them to 1e-14·σ₁.
GRAM_ACCURATE_FROM = 0.01


class Leading(NamedTuple):
    """Which leading part is wanted: its rank, how well, from how many vectors at most, and the seed of random ones.

    `tolerance` is the fraction of the energy beyond the rank that may be missed, which counts for at least `least_tail`
    of the whole; `precision` is that of the products. With fewer vectors than columns the iteration ends early: where
    more than `expected_vectors` are likely to be needed (None: whatever is likely), or where more than `dense_from` do
    not show that the values wanted stand out.
    """

    rank: int
    tolerance: float
    least_tail: float
    precision: str
    max_vectors: int
    expected_vectors: int | None
    dense_from: int
    seed: int


class Failure(Enum):
    """Why an iteration ends without an answer: products in float32 are too inexact, or no finer ones would help.

    Those wanted are too dense among the values then, or what they leave is lost in the rounding of float64, too.
    """

    ROUNDING = auto()
    DENSE = auto()


class LeadingBasis(NamedTuple):
    """Orthonormal columns that span a leading right singular subspace, and a bound of the energy that they miss."""

    vectors: Floats
    missed: float


class Check(NamedTuple):
    """What a space of a size has: the energy of its leading Ritz vectors, and a bound of what that may miss.

    `last` is the smallest Ritz value of those vectors, and `middle` the middle one of all.
    """

    size: int
    head: float
    last: float
    middle: float
    missed: float


def krylov_factors(matrix: NDArray[Any], leading: Leading, workers: int) -> ProjectedFactors | Failure:
    r"""Decompose the leading part of one matrix; or say why the method cannot show that it misses little enough.

    The Krylov space of XᵀX from a Gaussian block is spanned with products and a basis in a precision (Musco and Musco,
    arXiv:1504.05477, algorithm 2). The answer is X V in float64 for the leading Ritz vectors V, orthonormal in float64:
    each value is attained by a factorisation in hand, so none is overstated. The factors are those of a stack of one
    matrix.
    """
    # Threads of BLAS would go on waiting for work, on the cores that the team needs.
    with blas_threads(1), Team(workers) as team:
        X, energy = tall_matrix(matrix, team)
        if not math.isfinite(energy):
            return _not_finite(X, leading.rank)
        rng, finest = np.random.default_rng(leading.seed), np.promote_types(leading.precision, X.array.dtype).name
        space = _first_space(X.in_precision(finest), leading, rng)
        if leading.precision != finest and _serves(leading.precision, space, leading, energy):
            space.multiply_by(X.in_precision(leading.precision))
        basis = _leading_basis(space, leading, energy, rng, BESIDE if space.X.eps > X.eps else 0)
        if isinstance(basis, Failure):
            return basis
        product, energy = X.float64_product(basis.vectors)
        values, rotation = _svd_of_tall(product, leading.rank)
        product, vectors = product @ rotation, basis.vectors @ rotation
    head = float(np.sum(values[::-1] ** 2))
    # What is left is all that can be missed. A bound of less than the rounding of float64 may come out below 0.
    left = energy - head + DIFFERENCE_ROUNDING * energy
    missed = max(0.0, min(basis.missed, left)) / (_tail(leading, head, energy) or 1.0)
    if missed > leading.tolerance:
        return _rounding_of(space.X)
    # Rounding must not make the energy of the leading part larger than that of the whole.
    exponents = np.array([X.exponent])
    unscaled = unscaled_values(values[np.newaxis], np.sqrt(np.array([max(energy, head)])), exponents)[:2]
    return ProjectedFactors(*unscaled, product[np.newaxis], vectors[np.newaxis], exponents, X.transposed, missed)


def _not_finite(X: TallMatrix, rank: int) -> ProjectedFactors:
    """Return factors of NaN: the energy has shown already that an entry is not finite."""
    products, bases = np.full((1, X.rows, rank), np.nan), np.full((1, X.columns, rank), np.nan)
    return ProjectedFactors(products[:, 0], products[:, 0, 0], products, bases, np.zeros(1, np.int64), X.transposed)


def _rounding_of(X: TallMatrix) -> Failure:
    """Return why products are not exact enough: those in float32 are too inexact, or there are no finer ones."""
    return Failure.ROUNDING if X.array.dtype == np.float32 else Failure.DENSE


def _tail(leading: Leading, head: float, energy: float) -> float:
    """Return the energy beyond a leading part of about `head`, which a tolerance is a fraction of."""
    return max(energy - head, leading.least_tail * energy)


def _tolerated(leading: Leading, head: float, energy: float) -> float:
    """Return the energy that may be missed beside a leading part of about `head`."""
    return leading.tolerance * _tail(leading, head, energy)


def _svd_of_tall(product: Floats, rank: int) -> tuple[Floats, Floats]:
    """Return the leading singular values of a tall matrix, and its right singular vectors as columns."""
    squares, vectors = np.linalg.eigh(product.T @ product)
    if squares[-rank] >= GRAM_ACCURATE_FROM**2 * squares[-1]:
        return np.sqrt(squares[: -rank - 1 : -1]), np.ascontiguousarray(vectors[:, : -rank - 1 : -1])
    _, values, Wt = np.linalg.svd(product, full_matrices=False)
    return values[:rank], Wt[:rank].T


def _first_space(X: TallMatrix, leading: Leading, rng: np.random.Generator) -> SearchSpace:
    """Return a space of a block, a step away from Gaussian: with as many products, it lacks only the least useful."""
    space = SearchSpace(X, capacity=min(leading.max_vectors, 4 * leading.rank) + 2 * BLOCK)
    _, gram_block = X.apply_gram(rng.standard_normal((min(BLOCK, X.columns), X.columns)))
    space.extend(orthonormalised(gram_block)[0])
    return space


def _leading_basis(
    space: SearchSpace, leading: Leading, energy: float, rng: np.random.Generator, further_vectors: int
) -> LeadingBasis | Failure:
    """Compute an orthonormal basis of the leading right singular subspace, and so many further vectors, as columns.

    The space grows until a bound of what lies outside shows that its leading Ritz vectors miss little enough.
    """
    X, rank, may_give_up = space.X, leading.rank, leading.max_vectors < space.X.columns
    further, blocks = space.gram_block, -(-(rank - space.size) // BLOCK)
    outside, failure = math.inf, FAILURE_PROBABILITY
    checks: list[Check] = []
    while not checks or space.size < leading.max_vectors:
        for _ in range(blocks):
            if space.size < max(rank, leading.max_vectors):
                space.extend(further)
                further = space.gram_block
        supposed = EXPECTED_OUTSIDE * checks[-1].middle if checks and outside == math.inf else outside
        gap = checks[-1].last - supposed if checks else 0.0
        vectors, squares, added = _ritz(space, leading, energy, RitzVectors.of(space, rank, further_vectors), gap)
        head, last, middle = float(np.sum(squares[:rank])), float(squares[rank - 1]), float(squares[space.size // 2])
        lost, tolerated = lost_to_rounding(vectors, squares, X.eps), _tolerated(leading, head, energy)
        if space.is_full or energy - head <= ENERGY_ROUNDING * X.eps * energy:
            # What is left is too little to be bounded here: it is known after a product in float64.
            return LeadingBasis(_leading_ritz_vectors(space, vectors), lost if space.is_full else math.inf)
        if lost > tolerated:
            return _rounding_of(X)
        missed = added + lost_to_rounding(vectors, squares, X.eps, supposed)
        missed_beside = cache(partial(missed_energy, space, vectors, squares))
        expected = EXPECTED_OUTSIDE * middle
        if missed > tolerated and expected < outside and (supposed == outside or last - expected > LOOSE * gap):
            supposed, missed = expected, missed_beside(expected)
        if missed <= tolerated and supposed < outside:
            failure /= 2
            suffices = partial(_suffices, missed_beside, tolerated)
            certificate = bound_outside(space, energy, rng, failure, last, suffices)
            outside = min(outside, certificate.bound)
            missed = missed_beside(outside)
            if missed == math.inf:
                # Outside may be values as large as those wanted: copies, of which each certificate finds a block.
                if may_give_up:
                    return Failure.DENSE
                further = orthonormalised(np.concatenate([further, certificate.leading]), space.basis)[0]
        if missed <= tolerated:
            return LeadingBasis(_leading_ritz_vectors(space, vectors), missed)
        checks.append(Check(space.size, head, last, middle, missed))
        if may_give_up and missed == math.inf and _falls_slowly(checks, tolerated, leading):
            return Failure.DENSE
        blocks = max(1, _further_blocks(checks, tolerated))
    return Failure.DENSE


def _ritz(
    space: SearchSpace, leading: Leading, energy: float, vectors: RitzVectors, gap: float
) -> tuple[RitzVectors, Floats, float]:
    """Compute Ritz values, and what a gap adds to them: of the whole projection where a band would lose too much."""
    squares, added = ritz_values(space, vectors, max(vectors.separated, space.size // 2) + 1, gap)
    lost = lost_to_rounding(vectors, squares, space.X.eps)
    if vectors.beside and lost > _tolerated(leading, float(np.sum(squares[: vectors.rank])), energy):
        return _ritz(space, leading, energy, vectors._replace(beside=None), gap)
    return vectors, squares, added


def _serves(precision: str, space: SearchSpace, leading: Leading, energy: float) -> bool:
    """Whether products in a precision are likely to be exact enough, by what their rounding loses of a first block."""
    (squares,) = leading_eigenvalues([space.projection], space.size, are_bands=False, team=space.X.team)
    vectors = RitzVectors(min(leading.rank, space.size), separated=space.size, beside=None)
    lost = lost_to_rounding(vectors, squares, float(np.finfo(precision).eps))
    return SPARE * lost <= _tolerated(leading, float(np.sum(squares[: vectors.rank])), energy)


def _suffices(missed_beside: Callable[[float], float], tolerated: float, outside: float) -> bool:
    """Whether a bound of energies outside the space shows that its leading Ritz vectors miss little enough."""
    return missed_beside(outside) <= tolerated


def _further_blocks(checks: Sequence[Check], tolerated: float) -> int:
    """Return how many blocks a space is likely to need, by how fast missed energies fell before.

    At the least, where that is not known: a check of so small a space takes less time than a block.
    """
    last = checks[-1]
    if last.missed == math.inf:
        return 0
    if len(checks) < 2 or checks[-2].missed == math.inf:
        return int(math.log(last.missed / tolerated, FALL))
    before = checks[-2]
    fall = (before.missed / last.missed) ** (BLOCK / (last.size - before.size))
    return round(math.log(last.missed / tolerated, min(max(fall, LEAST_FALL), FALL)))


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


def _leading_ritz_vectors(space: SearchSpace, vectors: RitzVectors) -> Floats:
    """Compute the leading Ritz vectors, as orthonormal columns."""
    combinations = leading_eigenvectors(space.projection, vectors.separated, vectors.beside, space.X.team)
    rows = space.basis.T.apply(combinations.T)
    return np.ascontiguousarray(lq(rows, CHOLESKY_QR_TOL)[1].T)
