"""Norms and differences of arrays, a block of rows at a time, and of products, which are not formed; in float64."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lowrank_core import KroneckerUpdate, LowRankUpdate, low_rank_sum, spectrum
from lowrank_core._dtypes import FLOATS

Update = LowRankUpdate | KroneckerUpdate | NDArray[Any]
"""What the update of a layer is: factors, a Kronecker product, or a dense array."""

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


def residual_norm(update: Update, stored: LowRankUpdate) -> float:
    """Return ‖Δ − γBA‖ in float64, without cancellation."""
    if isinstance(update, LowRankUpdate):
        return product_norm(low_rank_sum([update, stored], [1.0, -1.0]))
    B, A = stored.scaling * stored.B.astype(np.float64), stored.A.astype(np.float64)
    parts = []
    for rows, block in update_blocks(update):
        residual = B[rows] @ A
        residual -= block
        parts.append(frobenius_norm(residual))
    return math.hypot(*parts)


def update_blocks(update: Update) -> Iterator[tuple[slice, NDArray[Any]]]:
    """Yield consecutive rows of an update, and which they are: of a Kronecker product, those for one row of L."""
    if isinstance(update, np.ndarray):
        yield from ((rows, update[rows]) for rows in row_blocks(update.shape))
        return
    if isinstance(update, LowRankUpdate):
        A = update.A.astype(np.float64)
        for rows in row_blocks(update.shape):
            yield rows, update.scaling * (update.B[rows].astype(np.float64) @ A)
        return
    left, right = (side.to_dense() if isinstance(side, LowRankUpdate) else side for side in (update.left, update.right))
    right = right.astype(np.float64) * update.scaling
    for i, row in enumerate(left.astype(np.float64)):
        yield slice(i * len(right), (i + 1) * len(right)), np.kron(row[np.newaxis], right)


def product_norm(update: LowRankUpdate) -> float:
    r"""Return ‖γBA‖ without forming the product.

    From the Gram matrices of the factors in float64, :math:`\sum_{ij} (B^T B)_{ij} (A A^T)_{ij}`, in a fraction of the
    time of their QR. That errs by at most :math:`(m + n)\,\epsilon\,s^2` with
    :math:`s = \sum_i \lVert b_i \rVert \lVert a_i \rVert`: where the sum is more than 1e-5·s², the norm is
    right to 1e-7 at the very worst for any layer. Where more has cancelled, QR keeps all digits.
    """
    B, A = np.asarray(update.B, dtype=np.float64), np.asarray(update.A, dtype=np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        B_gram, A_gram = B.T @ B, A @ A.T
        energy = float(np.sum(B_gram * A_gram))
        B_squares, A_squares = np.diagonal(B_gram), np.diagonal(A_gram)
        size = float(np.sum(np.sqrt(B_squares * A_squares))) ** 2
        largest = float(max(np.max(B_squares, initial=0.0), np.max(A_squares, initial=0.0)))
    # Within these, no square that matters has overflowed or underflowed.
    if energy > 1e-5 * size and size > 1e-150 and largest < 1e100:
        return abs(update.scaling) * math.sqrt(energy)
    return float(spectrum(update).norm)


def update_norm(update: Update) -> float:
    """Return ‖Δ‖ of an update of any kind."""
    return frobenius_norm(update) if isinstance(update, np.ndarray) else float(spectrum(update).norm)


def weighted_sum(updates: Sequence[Update], weights: Sequence[float]) -> NDArray[np.float64] | LowRankUpdate:
    """Return a weighted sum: factors where all updates are, else a dense array."""
    products = [update for update in updates if isinstance(update, LowRankUpdate)]
    if len(products) == len(updates):
        return low_rank_sum(products, weights)
    total = np.zeros(updates[0].shape)
    for weight, update in zip(weights, updates, strict=True):
        total += weight * (update if isinstance(update, np.ndarray) else update.to_dense())
    return total


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
