"""Norms and differences of arrays, a block of rows at a time, and of products, which are not formed; in float64."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lowrank_core import KroneckerUpdate, LowRankUpdate, low_rank_sum, spectrum
from lowrank_core._dtypes import FLOATS
from lowrank_core._linalg import blas_threads, largest_singular_value, matrix_energy, residual_energy
from lowrank_core._validation import as_workers

Update = LowRankUpdate | KroneckerUpdate | NDArray[Any]
"""What the update of a layer is: factors, a Kronecker product, or a dense array."""

NOT_FINITE = "contains NaN or infinity"
"""What is said of a tensor that is not finite, in every message."""

_SINGLE_PRECISION = tuple(name for name in FLOATS if name != "float64")
# As float64 a megabyte, which fits a core's own cache.
BLOCK_ENTRIES = 1 << 17
# From so many entries on energies are computed by a kernel, which takes longer to load than smaller ones to compute.
_KERNEL_ENTRIES = 1 << 20
# Up to this smaller side all singular values of a weight are had in the time that the largest alone takes.
_ALL_VALUES = 512
# Energies between which no square that matters has overflowed or underflowed float64.
_SAFE_ENERGIES = (1e-200, 1e200)


def one_blas_thread() -> AbstractContextManager[None]:
    """Return a context in which BLAS has one thread.

    The products of models are too small for more, which would wait for each other, and layers are on threads already.
    """
    return blas_threads(1)


def row_blocks(shape: tuple[int, ...], entries: int = BLOCK_ENTRIES) -> list[slice]:
    """Return consecutive slices of the first axis, of about so many entries each and at least one row."""
    rows = max(1, entries // max(1, math.prod(shape[1:])))
    return [slice(start, min(start + rows, shape[0])) for start in range(0, shape[0], rows)]


def frobenius_norm(array: NDArray[Any]) -> float:
    """Compute √Σ|x|² of an array of any shape in float64, without overflow or underflow; NaN where it contains NaN."""
    rows = np.atleast_1d(array)
    # The conversion of a signalling NaN warns, and the norm says it already.
    with one_blas_thread(), np.errstate(invalid="ignore"):
        return math.hypot(*(_vector_norm(rows[block].astype(np.float64).ravel()) for block in row_blocks(rows.shape)))


def block_norm(block: NDArray[Any], entries: int) -> float:
    """Compute the Frobenius norm of a block of an array with so many entries, of a large float32 array by a kernel."""
    if block.dtype != np.float32 or entries < _KERNEL_ENTRIES:
        return frobenius_norm(block)
    return math.sqrt(matrix_energy(block))  # no square of a float32 number leaves float64


def ratio(part: float, whole: float) -> float:
    """Return how large a norm is beside another: 0 of zero beside zero, and infinity of anything else beside zero."""
    return part / whole if whole else (math.inf if part else 0.0)


def check_finite(what: str, array: NDArray[Any]) -> None:
    """Check that an array has neither NaN nor infinity."""
    rows = np.atleast_1d(array)
    reason = _not_finite(what, (rows[block] for block in row_blocks(rows.shape)))
    if reason:
        raise ValueError(reason)


def difference(base: NDArray[Any], tuned: NDArray[Any]) -> NDArray[Any]:
    """Compute tuned − base, rounded once to float64, or to float32 where both are stored in float32 or below."""
    blocks = ((base[rows], tuned[rows]) for rows in row_blocks(base.shape))
    delta = difference_of_blocks(blocks, base.shape, base.dtype.name, tuned.dtype.name)
    if delta is None:
        raise ValueError(why_not_finite([base], [tuned], base.dtype.name, tuned.dtype.name))
    return delta


def difference_of_blocks(
    blocks: Iterable[tuple[NDArray[Any], NDArray[Any]]], shape: tuple[int, ...], base_dtype: str, tuned_dtype: str
) -> NDArray[Any] | None:
    """Compute tuned − base from consecutive rows of both, each of a shape; None where an entry is not finite."""
    delta = np.empty(shape, difference_dtype(base_dtype, tuned_dtype))
    return delta if all(is_finite for _, _, is_finite in subtracted(blocks, delta.dtype, delta)) else None


def difference_dtype(base_dtype: str, tuned_dtype: str) -> np.dtype[Any]:
    """Return the dtype of a difference: float32 where both are stored in float32 or below, else float64.

    Subtraction is rounded once, and float32 has every number of the dtypes below it. So to subtract in float32 is to
    subtract in float64 and to round that to float32 (Figueroa, SIGNUM Newsl. 30 (1995) 21: 53 ≥ 2·24 + 2 bits).
    """
    return np.dtype(np.float32 if {base_dtype, tuned_dtype} <= set(_SINGLE_PRECISION) else np.float64)


def subtracted(
    blocks: Iterable[tuple[NDArray[Any], NDArray[Any]]], dtype: np.dtype[Any], out: NDArray[Any] | None = None
) -> Iterator[tuple[NDArray[Any], NDArray[Any], bool]]:
    """Yield rows of the base and tuned − base in a dtype, from consecutive rows of both, and whether all are finite.

    Differences are rows of `out`. Other memory is used again for the next rows: to give it back to the system and to
    get it again takes several times as long as to subtract.
    """
    start, base_memory, memory = 0, np.empty(0, dtype), np.empty(0, dtype)
    for before, after in blocks:
        if base_memory.size < before.size:
            base_memory = np.empty(before.size, dtype)
            memory = np.empty(before.size if out is None else 0, dtype)
        base = base_memory[: before.size].reshape(before.shape)
        delta = memory[: after.size].reshape(after.shape) if out is None else out[start : start + len(after)]
        with np.errstate(over="ignore", invalid="ignore"):
            base[...], delta[...] = before, after
            np.subtract(delta, base, out=delta)
        # While they are in cache: where a weight is not finite, neither is the difference.
        yield base, delta, bool(np.isfinite(delta).all())
        start += len(after)


def why_not_finite(
    base: Iterable[NDArray[Any]], tuned: Iterable[NDArray[Any]], base_dtype: str, tuned_dtype: str
) -> str:
    """Return why a difference of two weights, given as consecutive rows of each, is not finite."""
    for name, blocks in (("base", base), ("tuned", tuned)):
        reason = _not_finite(f"the {name} checkpoint", blocks)
        if reason:
            return reason
    single = {base_dtype, tuned_dtype} <= set(_SINGLE_PRECISION)
    return f"the difference does not fit {'float32' if single else 'float64'}"


def residual_norm(update: Update, stored: LowRankUpdate) -> float:
    """Return ‖Δ − γBA‖ in float64, without cancellation."""
    if isinstance(update, LowRankUpdate):
        return product_norm(low_rank_sum([update, stored], [1.0, -1.0]))
    B, A = stored.scaling * stored.B.astype(np.float64), stored.A.astype(np.float64)
    if isinstance(update, np.ndarray) and update.dtype == np.float32 and update.size >= _KERNEL_ENTRIES:
        energy = residual_energy(update, B, A, as_workers(None))
        if energy is not None and _SAFE_ENERGIES[0] < energy < _SAFE_ENERGIES[1]:
            return math.sqrt(energy)
    parts = []
    for rows, block in update_blocks(update):
        with one_blas_thread():
            residual = B[rows] @ A
        residual -= block
        parts.append(frobenius_norm(residual))
    return math.hypot(*parts)


def spectral_norm(weight: NDArray[Any]) -> float:
    """Return ‖W‖₂; of a large weight from below, and proven to be at most 5 % too small but for a chance of 1e-9."""
    if min(weight.shape) <= _ALL_VALUES:
        return float(spectrum(weight).values[0])
    return largest_singular_value(weight, as_workers(None))


def update_blocks(update: Update) -> Iterator[tuple[slice, NDArray[Any]]]:
    """Yield consecutive rows of an update, and which they are: of a Kronecker product, those for one row of L."""
    if isinstance(update, np.ndarray):
        yield from ((rows, update[rows]) for rows in row_blocks(update.shape))
        return
    if isinstance(update, LowRankUpdate):
        A = update.A.astype(np.float64)
        for rows in row_blocks(update.shape):
            with one_blas_thread():
                block = update.B[rows].astype(np.float64) @ A
            block *= update.scaling
            yield rows, block
        return
    left, right = map(dense, (update.left, update.right))
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
    with one_blas_thread(), np.errstate(over="ignore", invalid="ignore"):
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
        total += weight * dense(update)
    return total


def dense(update: Update) -> NDArray[Any]:
    """Return an update of any kind as a dense array."""
    if isinstance(update, np.ndarray):
        return update
    with one_blas_thread():
        return update.to_dense()


def _not_finite(what: str, blocks: Iterable[NDArray[Any]]) -> str:
    """Return what is said of an array, given as blocks of it, that is not finite; nothing of one that is."""
    bad = size = 0
    for block in blocks:
        bad += block.size - int(np.count_nonzero(np.isfinite(block)))
        size += block.size
    return f"{what} {NOT_FINITE} in {bad} of its {size} entries" if bad else ""


def _vector_norm(vector: NDArray[np.float64]) -> float:
    with np.errstate(over="ignore", invalid="ignore"):
        energy = float(np.dot(vector, vector))
    if _SAFE_ENERGIES[0] < energy < _SAFE_ENERGIES[1]:
        return math.sqrt(energy)
    largest = float(np.max(np.abs(vector), initial=0.0))
    if not 0.0 < largest < math.inf:
        return largest
    # ldexp rather than a division: the reciprocal of a subnormal number is infinite.
    exponent = math.frexp(largest)[1]
    return math.ldexp(float(np.linalg.norm(np.ldexp(vector, -exponent))), exponent)
