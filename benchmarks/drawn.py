"""The largest errors of singular values over all kinds of updates that the strategies draw, against mpmath.

And, of matrices too large for mpmath, the energy that Krylov iteration misses where values have many copies.

python -m benchmarks.drawn [EXAMPLES]
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache
from importlib import import_module
from typing import Any, NamedTuple

import mpmath
import numpy as np
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from benchmarks.repeated import missed_over_tolerance, rotated, stepped_values
from lowrank_core import LowRankUpdate, spectrum, truncate
from lowrank_core._validation import as_matrices
from lowrank_core.testing import FACTOR_KINDS, KINDS, low_rank_updates, updates

Floats = NDArray[np.float64]

EPS64, EPS32 = 2.0**-52, 2.0**-23
DTYPES = ("float64", "float32", "float16", "bfloat16")
MAX_SIDE = 8
# Subnormal answers are rounded to float64's own spacing, of which a few roundings are allowed.
SPACING = 4 * 2.0**-1074
# The side of matrices with many copies of values: many blocks of vectors.
SIDE_OF_COPIES = 300


class Route(NamedTuple):
    """A way to singular values: its function, whether it takes products, and the unit of its errors."""

    values: Callable[[Any], Floats]
    product: bool
    unit: str


class Example(NamedTuple):
    """A drawn update, and its singular values by mpmath."""

    update: Any
    values: Floats


def worst(name: str, dtype: str, examples: int) -> float:
    """Return the largest |σ̂ᵢ − σᵢ| by a route, in its unit, over as many examples of every kind.

    For a product in float64 arithmetic the unit is eps64·|γ|·Σ‖bᵢ‖‖aᵢ‖, which a product's rounding is relative to.
    """
    route = ROUTES[name]
    measured = _product_error if route.product else _dense_error
    kinds = FACTOR_KINDS if route.product else KINDS
    drawn = (example for kind in kinds for example in _examples(route.product, dtype, kind, examples))
    return max(measured(example, route) for example in drawn)


def tried(name: str) -> Sequence[str]:
    """Return the dtypes that a route is for: a Gram matrix of float64 data would lose half of its digits."""
    return DTYPES[1:] if "eps32" in ROUTES[name].unit else DTYPES


def shortfall(dtype: str, examples: int) -> float:
    """Return the leading energy that krylov misses, over its tolerance 1e-6·max(T_k, 1e-6·N²)."""
    return max(_krylov_shortfall(example) for kind in KINDS for example in _examples(False, dtype, kind, examples))


def shortfall_of_copies(dtype: str, examples: int) -> float:
    """Return the leading energy that krylov misses, over its tolerance, where values have many copies."""

    def missed(problem: tuple[Floats, int, int]) -> float:
        values, rank, key = problem
        matrix = rotated(values, key, dtype)
        return missed_over_tolerance(matrix, rank, spectrum(matrix, rank=rank, method="krylov", rng=key).values)

    problems = st.tuples(stepped_values(SIDE_OF_COPIES), st.integers(1, SIDE_OF_COPIES // 16), st.integers(0, 2**32))
    return max(missed(problem) for problem in _drawn(problems, examples))


@cache
def _examples(product: bool, dtype: str, kind: str, count: int) -> list[Example]:
    """Return drawn updates of a kind with their singular values, which take longer than any route."""
    strategy = low_rank_updates if product else updates
    exact = _exact_product if product else _exact_dense
    drawn = _drawn(strategy(max_side=MAX_SIDE, dtypes=[dtype], kinds=[kind]), count)
    return [Example(update, exact(update)) for update in drawn]


def _drawn(strategy: st.SearchStrategy[Any], count: int) -> list[Any]:
    drawn = []

    # The same examples every time, so that only a change of the code changes the figure.
    @seed(0)
    @settings(
        max_examples=count,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def keep(example: Any) -> None:
        drawn.append(example)

    keep()
    return drawn


def _exact(matrix: Any) -> Floats:
    """Return singular values, of which mpmath finds none of some matrices without a few digits more."""
    for digits in (50, 60, 80):
        with suppress(RuntimeError), mpmath.workdps(digits):
            return np.array([float(value) for value in mpmath.svd_r(matrix, compute_uv=False)])
    raise RuntimeError("mpmath finds no singular values")


def _exact_dense(update: NDArray[Any]) -> Floats:
    return _exact(_matrix(update))


def _exact_product(update: LowRankUpdate) -> Floats:
    with mpmath.workdps(50):
        product = mpmath.mpf(update.scaling) * _matrix(update.B) * _matrix(update.A)
    return _exact(product)


def _matrix(array: NDArray[Any]) -> Any:
    return mpmath.matrix(array.astype(np.float64).tolist())


def _over(errors: Floats, unit: float) -> float:
    """Return errors over the unit, without the spacing of subnormal numbers, which is far below any other error."""
    beyond = float(np.max(np.maximum(errors - SPACING, 0.0), initial=0.0))
    return beyond / unit if beyond else 0.0


def _found_by(find: str, *arguments: Any) -> Callable[[Any], Floats]:
    """Return a function for values of a dense matrix by one way, whatever `method` would take at its size."""

    def values(update: Any) -> Floats:
        return _engine(find)(as_matrices(update)[0][np.newaxis], *arguments)[0][0]

    return values


def _engine(name: str) -> Any:
    """Import a function of the engine when it is called: asv imports this file beside commits that may not have it."""
    module, function = name.split(".")
    return getattr(import_module(f"lowrank_core._linalg.{module}"), function)


def _values(method: str) -> Callable[[Any], Floats]:
    return lambda update: spectrum(update, method=method).values


def _lengths(method: str) -> Callable[[Any], Floats]:
    """Return a function for values as the lengths of B's columns, from a truncation that keeps all of them."""

    def lengths(update: Any) -> Floats:
        kept = truncate(update, min(update.shape), method=method).B
        power = np.frexp(np.max(np.abs(kept), initial=0.0))[1]
        return np.ldexp(np.linalg.norm(np.ldexp(kept, -power), axis=0), power)

    return lengths


def _by_a_triangle(update: Any) -> Floats:
    tall, of_triangle = _engine("tall.tall_svd_values"), _engine("small.kernel_svd_values")
    return tall(of_triangle, as_matrices(update)[0][np.newaxis], 1)[0][0]


ROUTES = {
    "direct, eight in lanes": Route(_found_by("small.kernel_svd_values", 1), False, "eps64·σ₁"),
    "direct, one column after another": Route(_found_by("bidiagonal.bidiagonal_svd_values", 1), False, "eps64·σ₁"),
    "direct, QR first": Route(_by_a_triangle, False, "eps64·σ₁"),
    "direct, two stages": Route(_found_by("two_stage_svd.two_stage_svd_values", 1), False, "eps64·σ₁"),
    "lapack": Route(_found_by("lapack.lapack_svd_values"), False, "eps64·σ₁"),
    "gram, three diagonals": Route(_found_by("gram.kernel_gram_values", 1), False, "eps32·σ₁"),
    "gram, LAPACK": Route(_found_by("gram.lapack_gram_values"), False, "eps32·σ₁"),
    "truncation, direct": Route(_lengths("direct"), False, "eps64·σ₁"),
    "truncation, gram": Route(_lengths("gram"), False, "eps32·σ₁"),
    "factors, QR": Route(_values("direct"), True, "eps64·γΣ‖bᵢ‖‖aᵢ‖"),
    # Of factors this narrow and no float64, the kernels form and balance the Gram matrices.
    "factors, Gram kernels": Route(_values("gram"), True, "eps32·σ₁"),
    "truncation of factors": Route(_lengths("auto"), True, "eps64·γΣ‖bᵢ‖‖aᵢ‖"),
}


def _dense_error(example: Example, route: Route) -> float:
    update, exact = example
    errors = np.abs(route.values(update) - exact)
    return _over(errors, (EPS32 if "eps32" in route.unit else EPS64) * exact[0])


def _product_error(example: Example, route: Route) -> float:
    update = example.update
    values = route.values(update)
    exact = example.values[: len(values)]
    sizes = np.linalg.norm(update.B.astype(np.float64), axis=0) * np.linalg.norm(update.A.astype(np.float64), axis=1)
    rounding = EPS64 * abs(update.scaling) * float(np.sum(sizes))
    if "eps64" in route.unit:
        return _over(np.abs(values - exact), rounding)
    # A product that cancels is exact to float64's rounding of its parts.
    return _over(np.maximum(np.abs(values - exact) - 10 * MAX_SIDE * rounding, 0.0), EPS32 * exact[0])


def _krylov_shortfall(example: Example) -> float:
    update, exact = example
    if exact[0] == 0:
        return 0.0
    rank = max(1, len(exact) // 2)
    power = -int(np.frexp(exact[0])[1])
    true = np.ldexp(exact, power) ** 2
    energies = np.ldexp(spectrum(update, rank=rank, method="krylov").values, power) ** 2
    tolerance = 1e-6 * max(np.sum(true[rank:]), 1e-6 * np.sum(true))
    # Rounding, and the spacing of subnormal numbers in these units.
    rounding = 20 * MAX_SIDE * EPS64 + 8 * float(np.ldexp(SPACING, power))
    return max(0.0, float(np.sum(true[:rank]) - np.sum(energies)) - rounding) / tolerance


if __name__ == "__main__":
    count = int(sys.argv[1]) if sys.argv[1:] else 100
    for name, route in ROUTES.items():
        for stored in tried(name):
            print(f"{name}, {stored}: {worst(name, stored, count):.2g} {route.unit}")
    for stored in DTYPES:
        print(f"krylov, {stored}: {shortfall(stored, count):.2g} of its tolerance")
    for stored in DTYPES:
        missed = shortfall_of_copies(stored, count)
        print(f"krylov, {SIDE_OF_COPIES} values with many copies, {stored}: {missed:.2g} of its tolerance")
