"""Scaling by powers of two, which rounds nothing, into the range where float64 can square."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["Scaled", "scaled_by", "scaled_to_squares", "scaled_to_unit", "unscaled_by"]

# The largest power of two is 2^1023.
LARGEST_EXPONENT = 1023


class Scaled(NamedTuple):
    """Matrices (..., m, n), each divided by 2^exponent; exponents of shape (...)."""

    array: NDArray[Any]
    exponents: NDArray[np.int64]


def scaled_to_unit(matrices: NDArray[Any]) -> Scaled:
    """Copy finite matrices to float64 in C order, each scaled so that its largest entry lies in [½, 1).

    Squares of what is left neither overflow nor, where they matter, underflow.
    """
    copy = np.array(matrices, dtype=np.float64, order="C")
    axes = (-2, -1)
    largest = np.maximum(copy.max(axis=axes, initial=0.0), -copy.min(axis=axes, initial=0.0))
    exponents = np.frexp(largest)[1].astype(np.int64)
    return Scaled(scaled_by(copy, -exponents[..., np.newaxis, np.newaxis], out=copy), exponents)


def scaled_by(
    numbers: NDArray[np.float64], exponents: NDArray[np.int64], out: NDArray[np.float64] | None = None
) -> NDArray[np.float64]:
    """Multiply by 2^exponents, from −1074 on, and round at most once: `np.ldexp` calls a function for each number."""
    # In two steps where the reciprocal of a subnormal number is more than the largest power.
    beyond = np.maximum(exponents - LARGEST_EXPONENT, 0)
    scaled: NDArray[np.float64] = np.multiply(numbers, np.ldexp(1.0, exponents - beyond), out=out)
    return np.multiply(scaled, np.ldexp(1.0, beyond), out=scaled) if beyond.any() else scaled


def scaled_to_squares(matrices: NDArray[Any]) -> Scaled:
    """Return matrices whose squares fit float64: float64 ones scaled to unit, the others as they are."""
    if matrices.dtype != np.float64:
        # Squares of float32 and below always fit, so only float64 pays for a scaled copy.
        return Scaled(matrices, np.zeros(matrices.shape[:-2], dtype=np.int64))
    return scaled_to_unit(matrices)


def unscaled_by(
    numbers: NDArray[np.floating[Any]], exponents: NDArray[np.signedinteger[Any]] | int, what: str
) -> NDArray[np.float64]:
    """Multiply by 2^exponents; a ValueError where the result does not fit float64."""
    with np.errstate(over="ignore", under="ignore"):
        result: NDArray[np.float64] = np.ldexp(numbers, exponents)
    if not np.isfinite(result).all():
        raise ValueError(f"{what} does not fit float64 (beyond 1.8e308); divide the update by a power of two first.")
    return result
