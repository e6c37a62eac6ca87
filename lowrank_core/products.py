"""The singular values of a product γBA of two factors through an r × r core; B·A is never formed."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lowrank_core import thresholds
from lowrank_core.arrays import as_stack, check_finite, scaled_to_unit, unscaled_by
from lowrank_core.dense import Decomposition, gram_matrix, map_batch, unit_range
from lowrank_core.factors import LowRankUpdate
from lowrank_core.threads import in_threads

__all__ = ["check_product", "decompose_product", "product_values"]

Floats = NDArray[np.float64]

PRODUCT_METHODS = ("auto", "direct", "gram")


def check_product(update: LowRankUpdate, method: str) -> None:
    """Raise a ValueError if a factor has an entry that is not finite, or the method is not one for products."""
    if method not in PRODUCT_METHODS:
        raise ValueError(f"method {method!r} is not for a LowRankUpdate; accepted are {', '.join(PRODUCT_METHODS)}.")
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
    B = as_stack(np.broadcast_to(update.B, (*batch, m, rank)), 2)
    A = as_stack(np.broadcast_to(update.A, (*batch, rank, n)), 2)
    check_product(update, method)
    # With a rank beyond both sides the r × r core would be larger than the factors themselves; QR's is m × n.
    gram = (method == "gram" or (method == "auto" and update.dtype != "float64")) and rank <= max(m, n)
    wanted = min(rank, m, n)
    values = np.zeros((len(B), wanted))
    exponents = np.zeros((len(B), 1), dtype=np.int64)

    # A lone product has two sides to share out, which must be worth two threads that wait for each other.
    lone = len(B) == 1 and rank <= thresholds.LARGE and (m + n) * rank**2 >= 16 * thresholds.THREAD_WORTHY
    sides = workers if lone else 1

    def fill(chunk: slice) -> None:
        if gram:
            values[chunk], exponents[chunk] = _gram_core_values(B[chunk], A[chunk], wanted, sides)
        else:
            values[chunk], exponents[chunk] = _qr_core_values(B[chunk], A[chunk], wanted)

    if rank and len(B):
        map_batch(fill, len(B), (m + n, rank), workers)
    scale, scale_exponent = np.frexp(abs(update.scaling))
    values *= scale
    exponents += int(scale_exponent)
    norms = np.sqrt(np.sum(values[:, ::-1] ** 2, axis=-1))
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
    return values, (B_exponents + A_exponents + core_exponents)[..., 0]


def _gram_core_values(B: NDArray[Any], A: NDArray[Any], wanted: int, workers: int) -> tuple[Floats, NDArray[np.int64]]:
    def gram_of(of_rows: bool) -> tuple[Floats, NDArray[np.int64]]:
        unit, exponents = unit_range(A if of_rows else B)
        return gram_matrix(unit, of_rows=of_rows), exponents

    (B_gram, B_exponents), (A_gram, A_exponents) = in_threads(gram_of, [False, True], workers)
    # ‖b_i‖ = ‖a_i‖ up to a power of two: unbalanced columns would drown the small ones (49 eps32·σ₁, balanced 1e-8).
    # A component that is zero on one side is zero.
    B_squares = np.diagonal(B_gram, axis1=-2, axis2=-1)
    A_squares = np.diagonal(A_gram, axis1=-2, axis2=-1)
    lives = (B_squares > 0) & (A_squares > 0)
    B_sizes = np.where(lives, np.frexp(B_squares)[1] // 2, 0)
    A_sizes = np.where(lives, np.frexp(A_squares)[1] // 2, 0)
    largest = np.max(B_sizes + A_sizes, axis=-1, keepdims=True)
    half = (B_sizes + A_sizes - largest) // 2
    B_core = _rescaled(B_gram, half - B_sizes, lives)
    A_core = _rescaled(A_gram, (B_sizes + A_sizes - largest - half) - A_sizes, lives)
    S = _root_of(A_core)
    core = np.swapaxes(S, -1, -2) @ B_core @ S
    values = np.sqrt(np.maximum(np.linalg.eigvalsh(core), 0.0))[..., ::-1][..., :wanted]
    exponents = largest + (B_exponents + A_exponents)[..., np.newaxis]
    values, exponents = np.ascontiguousarray(values), np.ascontiguousarray(exponents)
    # The largest row sum bounds ‖B‖₂² without another decomposition, and closely unless the columns are many and alike.
    B_bounds, A_bounds = (np.max(np.sum(np.abs(side), axis=-1), axis=-1) for side in (B_core, A_core))
    for i in np.flatnonzero(_cancelled(values[..., 0], B_bounds * A_bounds)):
        if _cancelled(values[i, 0], B_bounds[i] * np.linalg.eigvalsh(A_core[i])[-1]):
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


def _rescaled(gram: Floats, shifts: NDArray[Any], lives: NDArray[np.bool_]) -> Floats:
    """Multiply row and column i of a Gram matrix by 2^shift_i; components that are zero drop out."""
    both = lives[..., :, np.newaxis] & lives[..., np.newaxis, :]
    shifted: Floats = np.where(both, np.ldexp(gram, shifts[..., :, np.newaxis] + shifts[..., np.newaxis, :]), 0.0)
    return shifted


def decompose_product(B: NDArray[Any], A: NDArray[Any], scaling: float) -> Decomposition:
    """Decompose one γBA through QR of both factors and an SVD of the core, with its vectors."""
    B_scaled, B_exponents = scaled_to_unit(B)
    A_scaled, A_exponents = scaled_to_unit(A)
    Q_B, R_B = np.linalg.qr(B_scaled)
    Q_A, R_A = np.linalg.qr(A_scaled.T)
    core, core_exponents = scaled_to_unit(R_B @ R_A.T)
    scale, scale_exponent = np.frexp(scaling)
    exponent = int((B_exponents + A_exponents + core_exponents)[0, 0]) + int(scale_exponent)
    U, values, Vt = np.linalg.svd(core * scale, full_matrices=False)
    return Decomposition(
        unscaled_by(values, exponent, "a singular value of the update"),
        float(unscaled_by(np.sqrt(np.sum(values[::-1] ** 2)), exponent, "the norm of the update")),
        lambda r: (np.ldexp(Q_B @ (U[:, :r] * values[:r]), exponent), Vt[:r] @ Q_A.T),
    )
