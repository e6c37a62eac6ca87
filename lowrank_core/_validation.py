"""Checks of the public API's arguments, and the messages about those that are refused."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from lowrank_core._arrays import ACCEPTED, as_array
from lowrank_core._dtypes import FLOATS, coarsest
from lowrank_core._processors import usable_processors

__all__ = [
    "REAL_NUMBERS",
    "all_finite",
    "as_alpha",
    "as_dtype_name",
    "as_factors",
    "as_finite",
    "as_fraction",
    "as_matrices",
    "as_noise",
    "as_pair",
    "as_positive",
    "as_rank",
    "as_ranks",
    "as_ratio",
    "as_real",
    "as_shape",
    "as_singular_values",
    "as_stack",
    "as_tolerance",
    "as_whole_numbers",
    "as_workers",
    "broadcast_batches",
    "check_choice",
    "check_finite",
    "check_one_axis",
    "check_scalar",
]

# What multiplies an update as a number.
REAL_NUMBERS = (int, float, np.integer, np.floating)

# By the kind of a dtype that is refused.
_ADVICE = {
    "c": "Pass its .real or its .imag",
    "V": "Pass one of its fields, or numpy.lib.recfunctions.structured_to_unstructured(...) of them",
}


def as_matrices(update: Any, name: str = "update") -> tuple[NDArray[Any], str]:
    """Return an update as an array (..., m, n), not copied where NumPy can view it, and the dtype it is stored in."""
    matrices, dtype = _as_real(update, name)
    _check_matrices(matrices, name)
    return matrices, dtype


def as_pair(base: Any, tuned: Any) -> tuple[tuple[NDArray[Any], str], tuple[NDArray[Any], str]]:
    """Return two finite matrices of one shape, as :func:`as_matrices` returns each."""
    before, after = as_matrices(base, "base"), as_matrices(tuned, "tuned")
    if before[0].ndim != 2 or before[0].shape != after[0].shape:
        raise ValueError(
            f"base has shape {before[0].shape} and tuned {after[0].shape}; two matrices of one shape (m, n) are "
            "needed. Pass the matrices of a stack one by one."
        )
    check_finite(before[0], "base")
    check_finite(after[0], "tuned")
    return before, after


def as_factors(B: Any, A: Any) -> tuple[NDArray[Any], NDArray[Any], tuple[int, ...], str]:
    """Return B (..., m, r), A (..., r, n), the shape (..., m, n) of their product, and the coarser of their dtypes."""
    (left, left_dtype), (right, right_dtype) = _as_factor(B, "B"), _as_factor(A, "A")
    if left.shape[-1] != right.shape[-2]:
        raise ValueError(
            f"B of shape {left.shape} has rank {left.shape[-1]} but A of shape {right.shape} has rank "
            f"{right.shape[-2]}; B is (..., m, r) and A is (..., r, n) with the same r."
        )
    m, n = left.shape[-2], right.shape[-1]
    if 0 in (m, n):
        raise ValueError(
            f"B of shape {left.shape} and A of shape {right.shape} make empty matrices; m and n must be at least 1."
        )
    batch = broadcast_batches({"B": left.shape[:-2], "A": right.shape[:-2]})
    return left, right, (*batch, m, n), coarsest(left_dtype, right_dtype)


def broadcast_batches(batches: dict[str, tuple[int, ...]]) -> tuple[int, ...]:
    """Return the batch axes that those of named arrays broadcast to."""
    try:
        return np.broadcast_shapes(*batches.values())
    except ValueError:
        described = " and ".join(f"{name} {batch}" for name, batch in batches.items())
        raise ValueError(f"the batch axes of {described} do not broadcast; pass all with the same.") from None


def _as_factor(factor: Any, name: str) -> tuple[NDArray[Any], str]:
    """Return a factor as :func:`as_matrices` returns an update; its rank may be 0."""
    matrices, dtype = _as_real(factor, name)
    if matrices.ndim < 2 or max(matrices.shape[-2:]) == 0 or min(matrices.shape[-2:]) > 0:
        _check_matrices(matrices, name)
    return matrices, dtype


def _check_matrices(matrices: NDArray[Any], name: str) -> None:
    if matrices.ndim < 2:
        raise ValueError(
            f"{name} has shape {matrices.shape}; a matrix (m, n) or a stack (..., m, n) is needed. "
            "Reshape a vector to one row or one column."
        )
    if 0 in matrices.shape[-2:]:
        raise ValueError(f"{name} has shape {matrices.shape}: its matrices are empty; m and n must be at least 1.")


def as_real(numbers: Any, name: str) -> NDArray[np.float64]:
    """Return real numbers of any shape as float64."""
    return _as_real(numbers, name)[0].astype(np.float64, copy=False)


def as_singular_values(values: ArrayLike, largest: int) -> NDArray[np.float64]:
    """Return singular values (..., p) in any order as float64; p is at most `largest`, that is min(m, n)."""
    sigma = as_real(values, "values")
    if sigma.ndim == 0 or sigma.shape[-1] > largest:
        raise ValueError(f"values have shape {sigma.shape}; (..., p) with p at most min(m, n) = {largest} is needed.")
    if not np.all(np.isfinite(sigma) & (sigma >= 0)):
        raise ValueError("values must be finite and not negative: they are singular values.")
    return sigma


def _as_real(numbers: Any, name: str) -> tuple[NDArray[Any], str]:
    """Return an array of a dtype in the table, and its name.

    Integers are returned as float64, tensors of a dtype that NumPy lacks as float32.
    """
    array, dtype = as_array(numbers, name)
    if array.dtype.kind in "iub":
        return array.astype(np.float64), "float64"
    if dtype not in FLOATS:
        advice = _ADVICE.get(array.dtype.kind, "Convert it with .astype('float64')")
        raise ValueError(f"{name} has unsupported dtype {dtype}; {ACCEPTED}. {advice}.")
    # LAPACK and the kernels read the machine's order of bytes.
    return array.astype(array.dtype.newbyteorder("="), copy=False), dtype


def as_dtype_name(dtype: DTypeLike) -> str:
    """Return the name of a dtype that updates may be stored in; a name, because NumPy alone has no bfloat16."""
    name = dtype if isinstance(dtype, str) else np.dtype(dtype).name
    if name not in FLOATS:
        raise ValueError(f"unsupported dtype {name}; accepted are {', '.join(FLOATS)}.")
    return name


def as_whole_numbers(numbers: ArrayLike, name: str) -> NDArray[np.int64]:
    """Return non-negative whole numbers, of any numeric dtype but bool, as int64."""
    given = np.asarray(numbers)
    if given.size == 0 and given.ndim > 0:
        return np.zeros(given.shape, dtype=np.int64)
    if given.dtype.kind not in "iuf":
        raise ValueError(f"{name} must be a whole number or an array of them; got {numbers!r}.")
    whole = (given >= 0) & (given < 2.0**62)
    if given.dtype.kind == "f":
        whole &= given == np.floor(given)
    if not whole.all():
        bad = given[~whole].flat[0]
        raise ValueError(f"{name} must be a whole number of at least 0; got {bad}.")
    return given.astype(np.int64)


def as_ranks(ranks: ArrayLike, largest: int | None = None, known: int | None = None) -> NDArray[np.int64]:
    """Return ranks as int64: at most `largest`, that is min(m, n), and at most the `known` number of values."""
    whole = as_whole_numbers(ranks, "rank")
    if largest is not None and whole.size and whole.max() > largest:
        raise ValueError(
            f"rank {whole.max()} is beyond min(m, n) = {largest}; accepted are 0 to {largest}. "
            f"Clamp it first, for example with numpy.minimum(ranks, {largest})."
        )
    if known is not None and whole.size and whole.max() > known:
        raise ValueError(
            f"rank {whole.max()} is beyond the {known} leading values of this spectrum; "
            f"ask for them with spectrum(update, rank={whole.max()})."
        )
    return whole


def as_rank(rank: ArrayLike, largest: int) -> int:
    """Return one rank from 0 to `largest`, that is min(m, n)."""
    ranks = as_ranks(rank, largest)
    check_scalar(ranks, "one rank is needed, for example the largest", rank)
    return int(ranks)


def as_shape(rows: int, columns: int) -> tuple[int, int]:
    """Return the shape of one matrix, of at least one row and one column."""
    m, n = (int(size) for size in as_whole_numbers([rows, columns], "a size"))
    if m < 1 or n < 1:
        raise ValueError(f"an update needs at least one row and one column; got {m} × {n}.")
    return m, n


def as_workers(workers: int | None) -> int:
    """Return the number of workers, the caller included; None is every core that this process may use."""
    if workers is None:
        return usable_processors()
    count = int(as_whole_numbers(workers, "workers"))
    if count < 1:
        raise ValueError(f"workers must be at least 1, or None for all cores; got {workers}.")
    return count


def as_alpha(alpha: ArrayLike) -> NDArray[np.float64]:
    """Return alpha as float64, finite and positive."""
    given = np.asarray(alpha)
    if given.dtype.kind not in "iuf" or not ((given > 0) & (given < np.inf)).all():
        raise ValueError(
            f"alpha must be finite and positive; got {alpha!r}. Common choices are 16, the rank, or twice it."
        )
    return given.astype(np.float64)


def as_fraction(fraction: ArrayLike, name: str) -> NDArray[np.float64]:
    """Return fractions as float64, between 0 and 1."""
    given = np.asarray(fraction)
    if given.dtype.kind not in "iuf" or not np.all((given >= 0) & (given <= 1)):
        raise ValueError(f"{name} must lie between 0 and 1; got {fraction!r}. Write 95 % as 0.95.")
    return given.astype(np.float64)


def as_tolerance(tolerance: float | None) -> float | None:
    """Return the tolerance of a partial method, a number from 0 to 1; None is that of the dtype."""
    if tolerance is None:
        return None
    if type(tolerance) is float and 0.0 <= tolerance <= 1.0:  # the checks of arrays cost a lone small spectrum 5 %
        return tolerance
    fraction = as_fraction(tolerance, "tolerance")
    check_scalar(fraction, "tolerance must be one number", tolerance)
    return float(fraction)


def as_noise(noise: ArrayLike) -> NDArray[np.float64]:
    """Return standard deviations as float64, finite and at least 0."""
    given = np.asarray(noise)
    if given.dtype.kind not in "iuf" or not np.all(np.isfinite(given) & (given >= 0)):
        raise ValueError(
            f"noise must be finite and at least 0; got {noise!r}. "
            "It is the standard deviation of each entry, 0 where there is none."
        )
    return given.astype(np.float64)


def as_finite(numbers: ArrayLike, name: str) -> NDArray[np.float64]:
    """Return finite numbers as float64."""
    given = np.asarray(numbers, dtype=np.float64)
    if not np.all(np.isfinite(given)):
        raise ValueError(f"{name} must be finite; got {numbers!r}.")
    return given


def as_positive(number: float, name: str) -> float:
    """Return one finite, positive number."""
    if not (np.isfinite(number) and number > 0):
        raise ValueError(f"{name} must be finite and positive; got {number}.")
    return float(number)


def as_ratio(beta: float) -> float:
    """Return a ratio of the sides of a matrix, 0 < β ≤ 1."""
    if not 0 < beta <= 1:
        raise ValueError(f"beta must lie in 0 < beta <= 1; got {beta!r}. It is min(m, n) / max(m, n).")
    return float(beta)


def check_choice(choice: str, name: str, accepted: Iterable[str]) -> None:
    """Check that a choice is among the accepted ones."""
    if choice not in accepted:
        raise ValueError(f"unknown {name} {choice!r}; accepted are {', '.join(accepted)}.")


def check_scalar(numbers: NDArray[Any], requirement: str, given: Any) -> None:
    """Check that there is one number and no axis."""
    if numbers.ndim:
        raise ValueError(f"{requirement}; got {given!r}.")


def check_one_axis(numbers: NDArray[Any], name: str) -> None:
    """Check that there is exactly one axis."""
    if numbers.ndim != 1:
        raise ValueError(f"{name} must be one-dimensional, such as [2, 4, 8]; got shape {numbers.shape}.")


def all_finite(matrices: NDArray[Any]) -> bool:
    """Whether no entry of a stack that is not empty is NaN or infinite."""
    # Extremes rather than a mask: no array of the update's size is made.
    if matrices.dtype.itemsize <= 2:
        return _all_finite_by_bits(matrices)
    # NaN passes through both.
    return bool(np.isfinite(matrices.max()) and np.isfinite(matrices.min()))


def _all_finite_by_bits(matrices: NDArray[Any]) -> bool:
    """Whether the bits of numbers of 16 or 8 bits, which are ordered as their sizes are, are below those of infinity.

    NumPy compares such numbers one at a time: that takes eighty times as long as to compare integers.
    """
    signed = np.dtype(f"i{matrices.dtype.itemsize}").newbyteorder(matrices.dtype.byteorder)
    unsigned = np.dtype(f"u{matrices.dtype.itemsize}").newbyteorder(matrices.dtype.byteorder)
    # Of a dtype without infinity this is NaN, its only number that is not finite.
    infinity = int(np.array(np.inf, matrices.dtype).view(unsigned)[()] & np.iinfo(signed).max)
    # As signed integers positive numbers are the largest, as unsigned ones negative numbers are.
    negative_infinity = infinity | 1 << (8 * matrices.dtype.itemsize - 1)
    return bool(matrices.view(signed).max() < infinity and matrices.view(unsigned).max() < negative_infinity)


def check_finite(matrices: NDArray[Any], name: str = "the update") -> None:
    """Check that every entry is finite; the message names the first matrix with one that is not, and the entry."""
    # Over everything first: an extreme of each matrix alone takes ten times as long where they are small.
    if not matrices.size or all_finite(matrices):
        return
    axes = (-2, -1)
    with np.errstate(invalid="ignore"):  # ml_dtypes warns of the very NaN that is looked for
        finite = np.isfinite(matrices.max(axis=axes)) & np.isfinite(matrices.min(axis=axes))
    bad = as_stack(matrices, 2)[int(np.argmin(finite))]
    row, column = (int(i) for i in np.argwhere(~np.isfinite(bad))[0])
    raise ValueError(
        f"{name}{_first_bad_index(np.asarray(finite))} contains {bad[row, column]} at row {row}, column {column}; "
        "every entry must be finite. Look for a diverged layer or an overflow of the stored dtype."
    )


def _first_bad_index(finite: NDArray[np.bool_]) -> str:
    """Return `` at batch index (0, 3)`` for the first flag that is False, or nothing without batch axes."""
    if finite.ndim == 0:
        return ""
    position = np.unravel_index(int(np.argmin(finite)), finite.shape)
    return f" at batch index {tuple(int(i) for i in position)}"


def as_stack(array: NDArray[Any], core: int) -> NDArray[Any]:
    """Flatten the leading axes to one, keeping the last `core`; with sizes of 0 too, where -1 would be ambiguous."""
    split = array.ndim - core
    return array.reshape(math.prod(array.shape[:split]), *array.shape[split:])
