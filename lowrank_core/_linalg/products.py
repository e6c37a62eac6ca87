"""The singular values of a product γBA of two factors through an r × r core; B·A is never formed."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lowrank_core._linalg import thresholds
from lowrank_core._linalg.dense import Decomposition, gram_matrix, map_batch, row_factors
from lowrank_core._linalg.powers_of_two import scaled_to_squares, scaled_to_unit, unscaled_by
from lowrank_core._linalg.threads import in_threads
from lowrank_core._validation import as_stack, check_finite
from lowrank_core.updates import LowRankUpdate

__all__ = ["check_product", "decompose_product", "product_values"]

Floats = NDArray[np.float64]

PRODUCT_METHODS = ("auto", "direct", "gram")

# Factors are made orthonormal by Cholesky's method where their rows are this long, and where the first time leaves no
# entry of the Gram matrix further from orthonormal than this: it leaves about eps·κ², which holds κ to about twenty,
# and the digits that the inverse loses to κ far below the 10·max(m, n)·eps of QR.
LONG_ROWS = 512
WELL_CONDITIONED = 1e-13


def check_product(update: LowRankUpdate, method: str) -> None:
    """Raise a ValueError if a factor has an entry that is not finite, or the method is not one for products."""
    _check_method(method)
    _check_factors(update)


def _check_method(method: str) -> None:
    if method not in PRODUCT_METHODS:
        raise ValueError(f"method {method!r} is not for a LowRankUpdate; accepted are {', '.join(PRODUCT_METHODS)}.")


def _check_factors(update: LowRankUpdate) -> None:
    if update.rank:
        check_finite(update.B, "B")
        check_finite(update.A, "A")


def product_values(update: LowRankUpdate, method: str, workers: int) -> tuple[Floats, Floats]:
    """Find singular values (..., min(r, m, n)) and norms (...) of γBA through an r × r core; B·A is never formed.

    Raises
    ------
    ValueError
        If the method is krylov, an entry is not finite, or a value does not fit float64.
    """
    *batch, m, n = update.shape
    rank = update.rank
    B = _stack_of(update.B, batch)
    A = _stack_of(update.A, batch)
    _check_method(method)
    # With a rank beyond both sides the r × r core would be larger than the factors themselves; QR's is m × n.
    gram = (method == "gram" or (method == "auto" and update.dtype != "float64")) and rank <= max(m, n)
    if not (gram and len(B) and _is_narrow(update.B, rank) and _is_narrow(update.A, rank)):
        _check_factors(update)
    wanted = min(rank, m, n)
    values = np.zeros((len(B), wanted))
    exponents = np.zeros((len(B), 1), dtype=np.int64)

    # A lone product has two sides to share out, which must be worth two threads that wait for each other.
    lone = len(B) == 1 and rank <= thresholds.LARGE and (m + n) * rank**2 >= 16 * thresholds.THREAD_WORTHY
    sides = workers if lone else 1

    def fill(chunk: slice) -> None:
        if gram:
            grams = _gram_matrices(B[chunk], A[chunk], sides)
            # Of narrow factors these are looked at instead, which saves a pass over what they are made of.
            if not all(np.isfinite(side).all() for side, _ in grams):
                _check_factors(update)
            values[chunk], exponents[chunk] = _gram_core_values(B[chunk], A[chunk], wanted, *grams)
        else:
            values[chunk], exponents[chunk] = _qr_core_values(B[chunk], A[chunk], wanted)

    if rank and len(B):
        map_batch(fill, len(B), (m + n, rank), workers)
    scale, scale_exponent = math.frexp(abs(update.scaling))
    values *= scale
    exponents += scale_exponent
    norms = np.sqrt((values[:, ::-1] ** 2).sum(axis=-1))
    return (
        unscaled_by(values, exponents, "a singular value of the update").reshape(*batch, wanted),
        unscaled_by(norms, exponents[:, 0], "the norm of the update").reshape(batch),
    )


def _qr_core_values(B: NDArray[Any], A: NDArray[Any], wanted: int) -> tuple[Floats, NDArray[np.int64]]:
    B_scaled, B_exponents = scaled_to_unit(B)
    A_scaled, A_exponents = scaled_to_unit(A)
    R_B = np.linalg.qr(B_scaled, mode="r")
    R_A = np.linalg.qr(np.swapaxes(A_scaled, -1, -2), mode="r")
    core, core_exponents = scaled_to_unit(R_B @ np.swapaxes(R_A, -1, -2))
    values = np.linalg.svd(core, compute_uv=False)[..., :wanted].astype(np.float64, copy=False)
    return values, (B_exponents + A_exponents + core_exponents)[:, np.newaxis]


def _stack_of(factor: NDArray[Any], batch: list[int]) -> NDArray[Any]:
    """Broadcast a factor to a batch, and flatten that to one axis."""
    core = factor.shape[-2:]
    return as_stack(factor if factor.shape[:-2] == tuple(batch) else np.broadcast_to(factor, (*batch, *core)), 2)


def _is_narrow(factor: NDArray[Any], rank: int) -> bool:
    """Tell whether a factor is one for the kernel, whose Gram matrix is finite just where the factor is."""
    return rank <= thresholds.NARROW_FACTOR and factor.dtype != np.float64


def _gram_matrices(B: NDArray[Any], A: NDArray[Any], workers: int) -> list[tuple[Floats, NDArray[np.int64]]]:
    """Form the Gram matrices of both factors of a stack, of each over 4^exponents."""

    def gram_of(of_rows: bool) -> tuple[Floats, NDArray[np.int64]]:
        factor, rank = (A if of_rows else B), B.shape[-1]
        if _is_narrow(factor, rank):
            return _narrow_grams(factor, rank, of_rows=of_rows), np.zeros(len(factor), dtype=np.int64)
        unit, exponents = scaled_to_squares(factor)
        return gram_matrix(unit, of_rows=of_rows), exponents

    return in_threads(gram_of, [False, True], workers)


def _narrow_grams(factors: NDArray[Any], rank: int, *, of_rows: bool) -> Floats:
    from lowrank_core._linalg.kernels.products import gram_matrices

    held = np.ascontiguousarray(factors, dtype=np.float32).view()
    held.flags.writeable = (
        False  # Numba would compile the kernel once for what may be written and once for what may not
    )
    grams = np.empty((len(factors), rank, rank))
    gram_matrices(held, of_rows, grams)
    return grams


def _gram_core_values(
    B: NDArray[Any],
    A: NDArray[Any],
    wanted: int,
    B_side: tuple[Floats, NDArray[np.int64]],
    A_side: tuple[Floats, NDArray[np.int64]],
) -> tuple[Floats, NDArray[np.int64]]:
    from lowrank_core._linalg.kernels.products import balance

    (B_core, B_exponents), (A_core, A_exponents) = B_side, A_side
    largest, bounds = np.empty(len(B), dtype=np.int64), np.empty((len(B), 2))
    # Unbalanced columns would drown the small ones (49 eps32·σ₁, balanced 1e-8).
    balance(B_core, A_core, largest, bounds)
    S = _root_of(A_core)
    core = S.swapaxes(-1, -2) @ B_core @ S
    values = np.ascontiguousarray(np.sqrt(np.maximum(np.linalg.eigvalsh(core), 0.0))[..., ::-1][..., :wanted])
    exponents = (largest + B_exponents + A_exponents)[:, np.newaxis]
    for i in _cancelled(values[..., 0], bounds[:, 0] * bounds[:, 1]).nonzero()[0]:
        if _cancelled(values[i, 0], bounds[i, 0] * np.linalg.eigvalsh(A_core[i])[-1]):
            # The difference of two near-equal adapters: a Gram matrix keeps half the digits, QR keeps them all.
            one = slice(i, i + 1)
            values[one], exponents[one] = _qr_core_values(B[one], A[one], wanted)
    return values, exponents


def _cancelled(largest: Any, bound_squared: Any) -> Any:
    return (largest < thresholds.CANCELLED * np.sqrt(bound_squared)) & (bound_squared > 0)


def _root_of(grams: Floats) -> Floats:
    """Give an S with G = S Sᵀ for each Gram matrix of a stack."""
    try:
        return np.asarray(np.linalg.cholesky(grams), dtype=np.float64)
    except np.linalg.LinAlgError:
        # Factors may be deficient or padded with zeros: by eigenvectors, one by one, so that a batch changes nothing.
        if len(grams) > 1:
            return np.concatenate([_root_of(grams[i : i + 1]) for i in range(len(grams))])
        squares, vectors = np.linalg.eigh(grams)
        return np.asarray(vectors * np.sqrt(np.maximum(squares, 0.0))[..., np.newaxis, :], dtype=np.float64)


def decompose_product(B: NDArray[Any], A: NDArray[Any], scaling: float) -> Decomposition:
    """Decompose one γBA through QR of both factors and an SVD of the core, with its vectors."""
    B_scaled, B_exponents = scaled_to_unit(B)
    A_scaled, A_exponents = scaled_to_unit(A)
    Q_B, L_B = _row_factors(np.ascontiguousarray(B_scaled.T))
    Q_A, L_A = _row_factors(A_scaled)
    core, core_exponents = scaled_to_unit(L_B.T @ L_A)
    scale, scale_exponent = np.frexp(scaling)
    exponent = int(B_exponents + A_exponents + core_exponents) + int(scale_exponent)
    U, values, Vt = np.linalg.svd(core * scale, full_matrices=False)
    return Decomposition(
        unscaled_by(values, exponent, "a singular value of the update"),
        float(unscaled_by(np.sqrt(np.sum(values[::-1] ** 2)), exponent, "the norm of the update")),
        lambda r: (np.ldexp(Q_B.T @ (U[:, :r] * values[:r]), exponent), Vt[:r] @ Q_A),
    )


def _row_factors(block: Floats) -> tuple[Floats, Floats]:
    return row_factors(block, WELL_CONDITIONED if block.shape[1] >= LONG_ROWS else 0.0)
