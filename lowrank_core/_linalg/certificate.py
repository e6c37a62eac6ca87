"""Bounds of what a search space misses, with a stated probability that they do not hold."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from lowrank_core._linalg.bands import leading_eigenvalues, left_out
from lowrank_core._linalg.narrow_products import rows_of
from lowrank_core._linalg.search_space import SearchSpace, orthonormalised
from lowrank_core._linalg.values import Floats

__all__ = [
    "Outside",
    "RitzVectors",
    "bound_outside",
    "lost_to_rounding",
    "missed_energy",
    "outside_bound",
    "ritz_values",
]

# Gaussian vectors of a certificate, and blocks of their Krylov space: with two the bound is up to 4.2 times the energy,
# with three 1.3 to 1.8 times, and with six 1.1 times.
DIRECTIONS = 32
LEAST_BLOCKS, MOST_BLOCKS = 2, 6

# How much of the residual of a Ritz vector may be rounding of the products that it comes from, in eps·σ₁√θ: where there
# should be none, the largest was 2.4 at 4,096 × 4,096.
PRODUCT_ROUNDING = 4.0

# What may be left out of a projection beside a band, in eps of its largest entry: it was up to 3.3, of 500 vectors of a
# graded matrix and of 3,000 of 4,096 × 4,096.
LEFT_OUT = 8.0

# How far the energy of a space, from its products, may be from exact, in eps·‖X‖_F².
ENERGY_ROUNDING = 4.0


class Outside(NamedTuple):
    """What lies outside a space: a bound of ‖X v‖² for its unit vectors v, and combinations of a basis."""

    bound: float
    combinations: Floats
    basis: Floats

    @property
    def leading(self) -> Floats:
        """Return the unit vectors found with the largest ‖X v‖."""
        return self.combinations @ self.basis


def bound_outside(
    space: SearchSpace,
    energy: float,
    rng: np.random.Generator,
    failure: float,
    limit: float,
    suffices: Callable[[float], bool],
) -> Outside:
    """Bound the largest energy ‖X v‖² of unit vectors outside the space, except with probability `failure`.

    A block Krylov space of XᵀX, deflated by the space, is spanned from Gaussian vectors that are independent of it. It
    grows until its bound suffices, or its largest Ritz value, which no bound is below, reaches a limit; or until it has
    all directions outside.
    """
    X = space.X
    rest = max(energy - float(np.trace(space.projection)), 0.0) + ENERGY_ROUNDING * X.eps * energy
    left = X.columns - space.size
    block = orthonormalised(rng.standard_normal((min(DIRECTIONS, left), X.columns)), space.basis)[0]
    basis: list[Floats] = [block]
    products: list[Floats] = []
    while True:
        products.append(X.apply(block))
        blocks, left = len(basis), left - len(block)
        if blocks >= LEAST_BLOCKS or left == 0:
            rows = np.concatenate(products)
            squares, vectors = np.linalg.eigh(rows @ rows.T)
            largest = (math.sqrt(max(float(squares[-1]), 0.0)) + PRODUCT_ROUNDING * X.eps * math.sqrt(energy)) ** 2
            failure /= 2
            bound = outside_bound(largest, rest, DIRECTIONS, blocks, failure) if left > 0 else largest
            if left == 0 or blocks == MOST_BLOCKS or largest >= limit or suffices(bound):
                return Outside(bound, vectors[:, : -DIRECTIONS - 1 : -1].T, np.concatenate(basis))
        gram_block = X.T.apply(products[-1])
        own_basis = rows_of(np.concatenate(basis, dtype=X.array.dtype), X.team)
        block = orthonormalised(gram_block[:left], space.basis, own_basis)[0]
        basis.append(block)


def outside_bound(largest: float, trace: float, directions: int, blocks: int, failure: float) -> float:
    r"""Bound the largest eigenvalue λ of a matrix by the largest Ritz value θ of a Krylov space, and by its trace.

    The space is spanned by Ω, MΩ, …, M^{j−1}Ω for j ≥ 2 `blocks` and a Gaussian Ω of b `directions`. One combination of
    its columns has the component χ_b along the leading eigenvector and independent Gaussian components g_i elsewhere.
    If θ < aλ, the Rayleigh quotient of that combination times p(M), for p(x) = x U_{j−2}(2x/(aλ) − 1), gives

    .. math:: (1 - a)\, \frac{4 U_{j-2}(2/a - 1)^2}{a^2}\, \chi_b^2 < \frac{1}{\lambda} \sum_i \lambda_i g_i^2,

    since (a − x) x U² ≤ a²/4 on [0, a] for the Chebyshev polynomial of the second kind. The left side is as small as
    its quantile with half of the probability of failure, and the right side as large as D = d + 2√(dx) + 2x, with
    d = trace/λ and x = log(2/failure) (Laurent and Massart, Ann. Statist. 28 (2000) 1302, lemma 1), with the other.
    The bound is the least λ for which they contradict each other. As in Kuczyński and Woźniakowski (SIAM J. Matrix
    Anal. Appl. 13 (1992) 1094), but with the trace in place of the dimension and b directions in place of one.
    """
    quantile, log_failure = _chi_squared_quantile(directions, failure / 2), math.log(2 / failure)

    def is_refuted(eigenvalue: float) -> bool:
        a, dimension = largest / eigenvalue, trace / eigenvalue
        angle = math.acosh(2 / a - 1)
        gain = 4 * (math.sinh((blocks - 1) * angle) / math.sinh(angle)) ** 2 / a**2
        spread = dimension + 2 * math.sqrt(dimension * log_failure) + 2 * log_failure
        return (1 - a) * gain * quantile >= spread

    if largest <= 0.0:
        return trace
    lower, upper = largest, 2 * largest
    while not is_refuted(upper):
        lower, upper = upper, 2 * upper
    while upper > 1.01 * lower:
        middle = math.sqrt(lower * upper)
        lower, upper = (lower, middle) if is_refuted(middle) else (middle, upper)
    return min(upper, trace)


def _chi_squared_quantile(degrees: int, probability: float) -> float:
    """Return what a χ² variable of even degrees of freedom stays below with a small probability, or a little less."""
    lower, upper = 0.0, float(degrees)
    while upper - lower > 1e-3 * upper:
        middle = (lower + upper) / 2
        # P(χ² ≤ 2y) is that of at least degrees/2 events of a Poisson process of mean y; the terms fall for small y.
        y, term, total = middle / 2, 1.0, 0.0
        for i in range(1, degrees // 2 + 1):
            term *= y / i
        i = degrees // 2
        while term > 1e-17 * total:
            total += term
            i += 1
            term *= y / i
        lower, upper = (middle, upper) if math.exp(-y) * total <= probability else (lower, middle)
    return lower


class RitzVectors(NamedTuple):
    """The leading Ritz vectors of a space: those wanted, and how many an exact product separates from the others.

    `beside` is the norm of columns of the projection that are left out beside a band; None if it is no band.
    """

    rank: int
    separated: int
    beside: float | None

    @classmethod
    def of(cls, space: SearchSpace, rank: int, further: int) -> RitzVectors:
        """Return so many of a space, with as many further ones as there are."""
        most = LEFT_OUT * space.X.eps * float(np.max(np.diagonal(space.projection)))
        return cls(rank, min(rank + further, space.size), left_out(space.projection, most))


def ritz_values(space: SearchSpace, vectors: RitzVectors, count: int, gap: float) -> tuple[Floats, float]:
    r"""Compute the largest eigenvalues of the projection, and a bound of what leading ones of XᵀX sum to beyond theirs.

    XᵀX is [[M, C], [Cᵀ, R]] in the space and outside, with R ⪯ μ. For every δ = `gap` > 0 it is at most
    diag(M + C Cᵀ/δ, (μ + δ) I), whose leading eigenvalues sum to at least its own (Ky Fan):

    .. math:: \sum_{i \le k} \lambda_i(X^T X) \le \sum_{i \le k} \max(\lambda_i(M + C C^T / \delta), \mu + \delta).

    The bound is for the vectors wanted, and for energies outside of up to the last Ritz value of these less δ.
    """
    matrices = [space.projection] if gap <= 0.0 else [space.projection, _coupled(space, gap)]
    squares, *bounded = leading_eigenvalues(matrices, count, are_bands=vectors.beside is not None, team=space.X.team)
    return squares, float(np.sum(bounded[0][: vectors.rank] - squares[: vectors.rank])) if bounded else math.inf


def missed_energy(space: SearchSpace, vectors: RitzVectors, squares: Floats, outside: float) -> float:
    """Bound how much more energy than the leading Ritz vectors any vectors have, given that of unit vectors outside.

    It is the bound of `ritz_values` for δ = θ_k − μ, the last Ritz value of the vectors wanted less `outside`, and what
    is lost to rounding.
    """
    gap = squares[vectors.rank - 1] - outside
    if gap <= 0.0:
        return math.inf
    (bounded,) = leading_eigenvalues(
        [_coupled(space, gap)], vectors.rank, are_bands=vectors.beside is not None, team=space.X.team
    )
    return float(np.sum(bounded - squares[: vectors.rank])) + lost_to_rounding(vectors, squares, space.X.eps, outside)


def _coupled(space: SearchSpace, gap: float) -> Floats:
    """Compute M + C Cᵀ/δ."""
    width = len(space.coupling)
    matrix = space.projection.copy()
    matrix[-width:, -width:] += space.coupling @ space.coupling.T / gap
    return matrix


def lost_to_rounding(vectors: RitzVectors, squares: Floats, eps: float, outside: float = 0.0) -> float:
    """Bound the energy lost to rounding and to what is left out, as if both were residuals of the leading Ritz vectors.

    A residual ρ moves an eigenvalue by at most ρ, and by ρ² over the gap where that is less (Parlett, "The symmetric
    eigenvalue problem", theorem 11.7.1): the gap to what an exact product does not separate from the vectors.
    """
    wanted, rounding = squares[: vectors.rank], PRODUCT_ROUNDING * eps
    residuals = rounding * squares[0] * np.maximum(np.sqrt(wanted / (squares[0] or 1.0)), rounding)
    residuals += vectors.beside or 0.0
    following = max(outside, float(squares[vectors.separated]) if vectors.separated < len(squares) else 0.0)
    gaps = np.maximum(wanted - following, residuals)
    return float(np.sum(np.divide(residuals**2, gaps, out=np.zeros(vectors.rank), where=gaps > 0)))
