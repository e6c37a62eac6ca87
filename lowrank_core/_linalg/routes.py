"""Which algorithm decomposes which matrix: chosen here, and nowhere else.

The route depends on shape and dtype alone, never on the batch or the workers, and it fixes the BLAS threads: that keeps
the bits of a matrix the same in any batch. A further route is a file with its functions and an entry in `METHODS`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lowrank_core._linalg import thresholds
from lowrank_core._linalg.batches import Batching, values_in_chunks
from lowrank_core._linalg.bidiagonal import bidiagonal_svd_factors, bidiagonal_svd_values
from lowrank_core._linalg.gram import gram_factors, kernel_gram_values, lapack_gram_values
from lowrank_core._linalg.krylov import Failure, Leading, krylov_factors
from lowrank_core._linalg.lapack import lapack_svd_factors, lapack_svd_values
from lowrank_core._linalg.products import CoreValues, gram_core_values, qr_core_values
from lowrank_core._linalg.small import kernel_svd_values
from lowrank_core._linalg.tall import tall_svd_values
from lowrank_core._linalg.two_stage import two_stage_gram_values
from lowrank_core._linalg.two_stage_svd import two_stage_svd_values
from lowrank_core._linalg.values import Factors, LeadingFactors, Values
from lowrank_core._validation import check_choice

__all__ = [
    "METHODS",
    "PRODUCT_METHODS",
    "CrossingRoute",
    "Problem",
    "ProductRoute",
    "Route",
    "check_structured_method",
    "choose_crossing_route",
    "choose_product_route",
    "choose_route",
]


# The fraction of the energy beyond the rank that a partial method may miss, by the precision of its products: as little
# as products in float32 can show, and in float64 so little that the leading values have the digits of an SVD.
TOLERANCES = {"float32": 1e-6, "float64": 1e-12}

# The fraction of the energy that what is beyond the rank counts for at least: less than a tolerance of it is lost in
# the rounding of products.
LEAST_TAILS = {"float32": 1e-6, "float64": 1e-12}


class Problem(NamedTuple):
    """What is to be decomposed: matrices of a shape and stored dtype; how many values (None: all), and how well.

    `tolerance` is the fraction of the energy beyond the rank that a partial method may miss, or None for its default.
    """

    dtype: str
    shape: tuple[int, int]
    rank: int | None = None
    tolerance: float | None = None
    rng: Any = 0

    @property
    def smaller_side(self) -> int:
        """Number of singular values."""
        return min(self.shape)

    @property
    def batching(self) -> Batching:
        """How a stack is divided for LAPACK: BLAS's own threads pay for large matrices only."""
        return Batching(one_at_a_time=min(self.shape) > thresholds.LARGE)


class Route(NamedTuple):
    """One way to decompose matrices of a stack (count, m, n), on workers: their values, or their factors up to a rank.

    `batching` says how a stack is divided for its factors, of which a part at a time is given, and no rank (None) means
    all; `name` is what the documentation calls the route. A route that does not need finite entries, for its values or
    for its factors, returns NaN for matrices with others.
    """

    name: str
    values: Callable[[NDArray[Any], int], Values]
    factors: Callable[[NDArray[Any], int | None, int], Factors]
    batching: Batching
    needs_finite: bool = True
    factors_need_finite: bool = True


class ProductRoute(NamedTuple):
    """One way to the values of products of two factors, and how a stack of them is divided."""

    core_values: CoreValues
    batching: Batching


class CrossingRoute(NamedTuple):
    """How two products are crossed: whether a kernel computes Gram matrices of factors, and what decomposes cores."""

    by_kernel: bool
    core_factors: Callable[[NDArray[Any], int | None, int], Factors]
    batching: Batching


def choose_route(method: str, problem: Problem) -> Route:
    """Return the route for dense matrices by a method; a ValueError if there is no such method, or not for this."""
    check_choice(method, "method", METHODS)
    return METHODS[method](problem)


def choose_product_route(method: str, dtype: str, shape: tuple[int, int], rank: int) -> ProductRoute:
    """Return the route for products of factors of a rank; a ValueError if the method is not one for products."""
    check_structured_method(method, "a LowRankUpdate")
    batching = Batching(one_at_a_time=min(sum(shape), rank) > thresholds.LARGE)
    return ProductRoute(PRODUCT_METHODS[method](dtype, shape, rank), batching)


def choose_crossing_route(dtype: str, shape: tuple[int, int], ranks: tuple[int, int]) -> CrossingRoute:
    """Return the route for two products of factors of these ranks, whose widest dtype this is."""
    rank = sum(ranks)
    by_kernel = dtype != "float64" and rank <= thresholds.NARROW_FACTOR
    return CrossingRoute(
        by_kernel,
        bidiagonal_svd_factors if max(ranks) <= thresholds.LARGE else lapack_svd_factors,
        # The kernel makes no float64 copy of the factors: what there is of a pair are a few matrices of its ranks.
        Batching(one_at_a_time=min(sum(shape), rank) > thresholds.LARGE, entries=4 * rank**2 if by_kernel else None),
    )


def check_structured_method(method: str, update: str) -> None:
    """Check that a method decomposes updates that are not dense."""
    if method not in PRODUCT_METHODS:
        raise ValueError(f"method {method!r} is not for {update}; accepted are {', '.join(PRODUCT_METHODS)}.")


def _lapack(problem: Problem) -> Route:
    batching = problem.batching
    return Route("lapack", partial(values_in_chunks, lapack_svd_values, batching), lapack_svd_factors, batching)


def _direct(problem: Problem) -> Route:
    if _is_small(problem):
        return _direct_by(problem, kernel_svd_values)
    if max(problem.shape) >= thresholds.TALL * problem.smaller_side:
        square = _direct(problem._replace(shape=(problem.smaller_side,) * 2))
        return _direct_by(problem, partial(tall_svd_values, square.values))._replace(needs_finite=False)
    if problem.smaller_side < thresholds.TWO_STAGES_SVD:
        return _direct_by(problem, bidiagonal_svd_values)
    return _direct_by(problem, two_stage_svd_values)


def _direct_by(problem: Problem, values: Callable[[NDArray[Any], int], Values]) -> Route:
    by_kernel = problem.smaller_side <= thresholds.LARGE
    return Route("direct", values, bidiagonal_svd_factors if by_kernel else lapack_svd_factors, problem.batching)


def _gram(problem: Problem) -> Route:
    values: Callable[[NDArray[Any], int], Values]
    if problem.smaller_side <= thresholds.LARGE:
        values = kernel_gram_values
    elif problem.smaller_side < thresholds.TWO_STAGES:
        values = partial(values_in_chunks, lapack_gram_values, problem.batching)
    else:
        values = two_stage_gram_values
    return Route("gram", values, gram_factors, problem.batching)


def _krylov(problem: Problem) -> Route:
    if problem.rank is None:
        raise ValueError("method 'krylov' finds leading singular values only; give rank=k, or use 'auto'.")
    leading = _wanted(problem, problem.rank)
    return _leading("krylov", problem, leading, leading)


def _auto(problem: Problem) -> Route:
    if problem.rank is None or not _is_leading_part(problem, problem.rank):
        return _all_values(problem)
    side, precision = problem.smaller_side, _precision(problem)
    leading = _wanted(problem, problem.rank)
    most, expected = (int(fraction * side) for fraction in thresholds.KRYLOV_GIVES_UP[precision])
    route = _leading(
        f"krylov, or {'direct' if problem.dtype == 'float64' else 'gram'} where that is cheaper",
        problem,
        leading._replace(max_vectors=most, expected_vectors=expected),
        # All singular vectors take several times as long as all values.
        leading._replace(max_vectors=side - 1, dense_from=int(thresholds.KRYLOV_DENSE_FROM[precision] * side)),
    )
    if side >= thresholds.KRYLOV_SMALLEST_SIDE:
        return route
    return _all_values(problem)._replace(
        factors=route.factors, batching=route.batching, factors_need_finite=route.factors_need_finite
    )


def _all_values(problem: Problem) -> Route:
    if problem.dtype == "float64":
        # A Gram matrix squares the condition number: values under 1e-8·σ₁ are lost, which float32 data had lost before.
        return _direct(problem)
    if _is_small(problem):
        return _direct(problem)
    gram = _gram(problem)
    if problem.smaller_side <= thresholds.LARGE and max(problem.shape) < thresholds.GRAM_FACTORS * problem.smaller_side:
        return gram._replace(factors=_direct(problem).factors)
    return gram


# In the order in which messages list them.
METHODS: dict[str, Callable[[Problem], Route]] = {
    "auto": _auto,
    "lapack": _lapack,
    "direct": _direct,
    "gram": _gram,
    "krylov": _krylov,
}


def _is_small(problem: Problem) -> bool:
    return problem.shape[0] * problem.shape[1] <= thresholds.SMALL_ENTRIES


def _is_leading_part(problem: Problem, rank: int) -> bool:
    """Whether so few factors are wanted of so large a matrix that an iteration is faster than a full decomposition."""
    return (
        problem.tolerance != 0.0
        and problem.smaller_side >= thresholds.KRYLOV_FACTORS_SMALLEST_SIDE[_precision(problem)]
        and rank <= thresholds.KRYLOV_LARGEST_FRACTION * problem.smaller_side
    )


def _precision(problem: Problem) -> str:
    """Return the precision that tolerances of an iteration are for."""
    return "float64" if problem.dtype == "float64" else "float32"


def _wanted(problem: Problem, rank: int) -> Leading:
    """Return what is wanted of an iteration, from as many vectors as there are."""
    seed = int(np.random.default_rng(problem.rng).integers(2**63))
    precision, side = _precision(problem), problem.smaller_side
    tolerance = TOLERANCES[precision] if problem.tolerance is None else problem.tolerance
    return Leading(
        max(1, rank),
        tolerance,
        LEAST_TAILS[precision],
        precision="float32",
        max_vectors=side,
        expected_vectors=None,
        dense_from=side,
        seed=seed,
    )


def _leading(name: str, problem: Problem, of_values: Leading, of_factors: Leading) -> Route:
    """Return the route by block Krylov iteration, or by a full decomposition where that cannot show what it misses."""
    full = _direct(problem) if problem.dtype == "float64" else _gram(problem)
    # An iteration divides its products among the workers itself.
    batching = Batching(one_at_a_time=True, takes_blas_lock=True)
    values, factors = partial(_leading_values, of_values, full), partial(_leading_factors, of_factors, full)
    return Route(name, values, factors, batching, needs_finite=False, factors_need_finite=False)


def _leading_values(leading: Leading, full: Route, stack: NDArray[Any], workers: int) -> Values:
    values, norms, missed = np.empty((len(stack), leading.rank)), np.empty(len(stack)), np.zeros(len(stack))
    for i, matrix in enumerate(stack):
        factors = krylov_factors(matrix, leading, workers)
        if factors is Failure.ROUNDING and matrix.dtype == np.float64:
            factors = krylov_factors(matrix, leading._replace(precision="float64"), workers)
        if isinstance(factors, Failure):
            whole = full.values(stack[i : i + 1], workers)
            values[i], norms[i] = whole.values[0, : leading.rank], whole.norms[0]
        else:
            values[i], norms[i], missed[i] = factors.values[0, : leading.rank], factors.norms[0], factors.missed
    return Values(values, norms, missed)


def _leading_factors(
    leading: Leading,
    full: Route,
    stack: NDArray[Any],
    rank: int | None,  # noqa: ARG001 - the signature of every route
    workers: int,
) -> Factors:
    (matrix,) = stack
    factors = krylov_factors(matrix, leading, workers)
    if factors is Failure.ROUNDING:
        leading = leading._replace(precision="float64")
        if matrix.dtype != np.float64:
            tolerance = min(leading.tolerance, TOLERANCES["float64"])
            leading = leading._replace(tolerance=tolerance, least_tail=LEAST_TAILS["float64"])
        factors = krylov_factors(matrix, leading, workers)
    if not isinstance(factors, Failure):
        return factors
    with full.batching.blas_lock():
        decomposed = full.factors(stack, leading.rank, workers)
        return LeadingFactors(decomposed.values, decomposed.norms, *decomposed.at(leading.rank))


def _qr_core(dtype: str, shape: tuple[int, int], rank: int) -> CoreValues:  # noqa: ARG001 - as every entry
    return qr_core_values


def _gram_core(dtype: str, shape: tuple[int, int], rank: int) -> CoreValues:  # noqa: ARG001 - as every entry
    # With a rank beyond both sides the r × r core would be larger than the factors themselves; QR's is m × n.
    if rank > max(shape):
        return qr_core_values
    return partial(gram_core_values, kernel_rank=thresholds.NARROW_FACTOR)


def _auto_core(dtype: str, shape: tuple[int, int], rank: int) -> CoreValues:
    return qr_core_values if dtype == "float64" else _gram_core(dtype, shape, rank)


PRODUCT_METHODS: dict[str, Callable[[str, tuple[int, int], int], CoreValues]] = {
    "auto": _auto_core,
    "lapack": _qr_core,
    "direct": _qr_core,
    "gram": _gram_core,
}
