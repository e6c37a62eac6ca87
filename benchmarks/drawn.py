"""The largest errors of singular values over all kinds of updates that the strategies draw, against mpmath.

python -m benchmarks.drawn [EXAMPLES]
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import mpmath
import numpy as np
from hypothesis import HealthCheck, Phase, given, seed, settings
from numpy.typing import NDArray

from lowrank_core import LowRankUpdate, spectrum
from lowrank_core.testing import FACTOR_KINDS, KINDS, low_rank_updates, updates

Floats = NDArray[np.float64]

EPS64, EPS32 = 2.0**-52, 2.0**-23
DTYPES = ("float64", "float32", "float16", "bfloat16")
MAX_SIDE = 8
# Where numbers are subnormal, an answer is rounded to float64's own spacing; a few roundings of it are no error.
SPACING = 4 * 2.0**-1074

# The routes, and the unit that the errors of each are counted in.
UNITS = {"direct": EPS64, "gram": EPS32}


def worst(route: str, dtype: str, *, product: bool, examples: int) -> float:
    """Largest |σ̂ᵢ − σᵢ| over eps·σ₁, over as many examples of every kind.

    eps is 2⁻⁵² for direct and 2⁻²³ for gram. For a product by direct, the unit is eps·|γ|·‖B‖·‖A‖, which a product's
    rounding is relative to.
    """
    kinds = FACTOR_KINDS if product else KINDS
    measured = _product_error if product else _dense_error
    return max(_largest(measured, route, dtype, kind, examples) for kind in kinds)


def shortfall(dtype: str, examples: int) -> float:
    """How much of the leading energy krylov misses, over what it may: 1e-4·min(H_k, max(T_k, 1e-6·N²))."""
    return max(_largest(_krylov_shortfall, "krylov", dtype, kind, examples) for kind in KINDS)


def _largest(measured: Callable[[Any, str], float], route: str, dtype: str, kind: str, examples: int) -> float:
    found = [0.0]
    strategy = low_rank_updates if measured is _product_error else updates

    # The same examples every time: a figure that changes is a change of the code's.
    @seed(0)
    @settings(
        max_examples=examples,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy(max_side=MAX_SIDE, dtypes=[dtype], kinds=[kind]))
    def measure(update: Any) -> None:
        found.append(measured(update, route))

    measure()
    return max(found)


def _exact(matrix: Any) -> Floats:
    with mpmath.workdps(50):
        values = mpmath.svd_r(matrix, compute_uv=False)
        return np.array([float(value) for value in values])


def _matrix(array: NDArray[Any]) -> Any:
    return mpmath.matrix(array.astype(np.float64).tolist())


def _over(errors: Floats, unit: float) -> float:
    """Errors over the unit; the spacing of subnormal numbers is forgiven, and matters to nothing else."""
    beyond = float(np.max(np.maximum(errors - SPACING, 0.0), initial=0.0))
    return beyond / unit if beyond else 0.0


def _dense_error(update: NDArray[Any], route: str) -> float:
    exact = _exact(_matrix(update))
    errors = np.abs(spectrum(update, method=route).values - exact)
    return _over(errors, UNITS[route] * exact[0])


def _product_error(update: LowRankUpdate, route: str) -> float:
    with mpmath.workdps(50):
        product = mpmath.mpf(update.scaling) * _matrix(update.B) * _matrix(update.A)
    found = spectrum(update, method=route).values
    exact = _exact(product)[: len(found)]
    sizes = [np.linalg.norm(factor.astype(np.float64)) for factor in (update.B, update.A)]
    rounding = EPS64 * abs(update.scaling) * sizes[0] * sizes[1]
    if route == "direct":
        return _over(np.abs(found - exact), rounding)
    # What has cancelled is known to float64's rounding of its parts, and no better.
    return _over(np.maximum(np.abs(found - exact) - 10 * MAX_SIDE * rounding, 0.0), EPS32 * exact[0])


def _krylov_shortfall(update: NDArray[Any], _: str) -> float:
    exact = _exact(_matrix(update))
    if exact[0] == 0:
        return 0.0
    rank = max(1, len(exact) // 2)
    power = -int(np.frexp(exact[0])[1])
    true = np.ldexp(exact, power) ** 2
    found = np.ldexp(spectrum(update, rank=rank, method="krylov").values, power) ** 2
    owed = 1e-4 * min(np.sum(true[:rank]), max(np.sum(true[rank:]), 1e-6 * np.sum(true)))
    # Rounding, and the spacing of subnormal numbers in these units.
    rounding = 20 * MAX_SIDE * EPS64 + 8 * float(np.ldexp(SPACING, power))
    return max(0.0, float(np.sum(true[:rank]) - np.sum(found)) - rounding) / owed


if __name__ == "__main__":
    count = int(sys.argv[1]) if sys.argv[1:] else 100
    for name in DTYPES:
        for path in UNITS:
            for is_product in (False, True):
                if (name, path) != ("float64", "gram"):
                    figure = worst(path, name, product=is_product, examples=count)
                    print(f"{name}, {path}, {'product' if is_product else 'dense'}: {figure:.2g}")
        print(f"{name}, krylov: {shortfall(name, count):.2g} of what it may miss")
