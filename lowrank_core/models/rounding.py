"""Numbers rounded once to a stored dtype, and the steps between its numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lowrank_core._dtypes import as_dtype
from lowrank_core.rounding_noise import step_exponents

# NumPy converts from float64 to each of these with one rounding.
_ROUNDED_ONCE = ("float64", "float32", "float16")


def rounded(values: NDArray[np.float64], dtype: str) -> NDArray[Any]:
    """Return float64 numbers rounded once to a dtype, to nearest and ties to even; too large ones as its own are.

    ml_dtypes converts float64 by way of float32, which rounds twice: 1 + 2⁻⁸ + 2⁻⁴⁰ would become 1 in bfloat16.
    Rounding to odd on the way keeps which side of a tie a number is on (Boldo and Melquiond, IEEE Trans. Comput. 57
    (2008) 462).
    """
    with np.errstate(over="ignore", invalid="ignore"):
        if dtype in _ROUNDED_ONCE:
            return values.astype(as_dtype(dtype))
        return _to_odd(values).astype(as_dtype(dtype))


def rounded_values(values: NDArray[np.float64], dtype: str) -> NDArray[np.float64]:
    """Return float64 numbers rounded once to a dtype, as float64."""
    return values if dtype == "float64" else rounded(values, dtype).astype(np.float64)


def includes(dtype: str, other: str) -> bool:
    """Whether every number of the other dtype is known to be a number of the first."""
    return dtype in (other, "float64") or (dtype == "float32" and other != "float64")


def ulps_in(values: NDArray[np.float64], dtype: str) -> NDArray[np.float64]:
    """Return the unit in the last place of each number in a dtype, which need not be one of its numbers."""
    return np.ldexp(1.0, step_exponents(values, dtype))


def _to_odd(values: NDArray[np.float64]) -> NDArray[np.float32]:
    """Return float32 numbers: those between two of them as the one whose last bit is 1."""
    nearest = values.astype(np.float32)
    bits = nearest.view(np.uint32)
    bits -= np.abs(nearest) > np.abs(values)
    bits |= nearest != values
    return nearest
