"""Norms and differences of stored arrays: in float64, a block of rows at a time."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lowrank_core._dtypes import FLOATS

_SINGLE_PRECISION = tuple(name for name in FLOATS if name != "float64")
# As float64 a megabyte, which fits a core's own cache.
_BLOCK_ENTRIES = 1 << 17


def row_blocks(shape: tuple[int, ...], entries: int = _BLOCK_ENTRIES) -> list[slice]:
    """Return consecutive slices of the first axis, of about so many entries each and at least one row."""
    rows = max(1, entries // max(1, math.prod(shape[1:])))
    return [slice(start, min(start + rows, shape[0])) for start in range(0, shape[0], rows)]


def frobenius_norm(array: NDArray[Any]) -> float:
    """Compute √Σ|x|² of an array of any shape in float64, without overflow or underflow; NaN where it contains NaN."""
    rows = np.atleast_1d(array)
    with np.errstate(invalid="ignore"):  # the conversion of a signalling NaN warns, and the norm says it already
        return math.hypot(*(_vector_norm(rows[block].astype(np.float64).ravel()) for block in row_blocks(rows.shape)))


def difference(base: NDArray[Any], tuned: NDArray[Any]) -> NDArray[Any]:
    """Compute tuned − base in float64, rounded once to float32 where both are stored in float32 or below."""
    single = base.dtype.name in _SINGLE_PRECISION and tuned.dtype.name in _SINGLE_PRECISION
    delta = np.empty(base.shape, np.float32 if single else np.float64)
    finite = True
    with np.errstate(over="ignore", invalid="ignore"):
        for rows in row_blocks(base.shape):
            np.subtract(
                tuned[rows].astype(np.float64), base[rows].astype(np.float64), out=delta[rows], casting="same_kind"
            )
            finite = finite and bool(np.isfinite(delta[rows]).all())
    if not finite:
        raise ValueError(_why_not_finite(base, tuned, delta))
    return delta


def _vector_norm(vector: NDArray[np.float64]) -> float:
    with np.errstate(over="ignore", invalid="ignore"):
        energy = float(np.dot(vector, vector))
    # Within these bounds no square that matters to the sum has overflowed or underflowed.
    if 1e-200 < energy < 1e200:
        return math.sqrt(energy)
    largest = float(np.max(np.abs(vector), initial=0.0))
    if not 0.0 < largest < math.inf:
        return largest
    # ldexp rather than a division: the reciprocal of a subnormal number is infinite.
    exponent = math.frexp(largest)[1]
    return math.ldexp(float(np.linalg.norm(np.ldexp(vector, -exponent))), exponent)


def _why_not_finite(base: NDArray[Any], tuned: NDArray[Any], delta: NDArray[Any]) -> str:
    for name, array in (("base", base), ("tuned", tuned)):
        bad = array.size - np.count_nonzero(np.isfinite(array))
        if bad:
            return f"the {name} checkpoint contains NaN or infinity in {bad} of its {array.size} entries"
    return f"the difference does not fit {delta.dtype}"
