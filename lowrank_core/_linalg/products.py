"""Singular values and factors of a product γBA of two factors, through an r × r core; B·A is never formed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lowrank_core._linalg.gram import gram_matrix
from lowrank_core._linalg.machine_code import kernel
from lowrank_core._linalg.orthogonal import lq
from lowrank_core._linalg.powers_of_two import Scaled, scaled_by, scaled_to_squares, scaled_to_unit
from lowrank_core._linalg.threads import in_threads
from lowrank_core._linalg.values import Floats, norms_of, unscaled_values
from lowrank_core._validation import all_finite

__all__ = ["CoreValues", "ProductFactors", "gram_core_values", "kernel_gram", "product_factors", "qr_core_values"]

# Factors are made orthonormal by Cholesky QR where their rows are this long, and where after the first time no entry of
# the Gram matrix is further than this from orthonormal: it leaves about eps·κ², which bounds κ by about twenty, and the
# digits that the inverse loses to κ far below the 10·max(m, n)·eps of Householder QR.
LONG_ROWS = 512
CHOLESKY_QR_TOL = 1e-13

# A product with σ₁ under this fraction of ‖B‖₂‖A‖₂ has cancelled. The Gram route errs by 1.5e-8·‖B‖₂‖A‖₂ where a
# singular value is zero, so that from 0.125 on it stays within eps32·σ₁; independent factors lie near ½.
CANCELLED = 0.125

# Values (count, min(r, m, n)) of stacks B (count, m, r) and A (count, r, n), on so many workers, over 2^exponents
# (count,); None if an entry is not finite.
CoreValues = Callable[[NDArray[Any], NDArray[Any], int], tuple[Floats, NDArray[np.int64]] | None]


def qr_core_values(
    B: NDArray[Any],
    A: NDArray[Any],
    workers: int,  # noqa: ARG001 - the signature of every core
) -> tuple[Floats, NDArray[np.int64]] | None:
    """Compute values of products by QR of both factors and LAPACK's SVD of R_B R_Aᵀ, as `CoreValues`."""
    if not (all_finite(B) and all_finite(A)):
        return None
    return _qr_core_values(B, A)


def _qr_core_values(B: NDArray[Any], A: NDArray[Any]) -> tuple[Floats, NDArray[np.int64]]:
    B_scaled, B_exponents = scaled_to_unit(B)
    A_scaled, A_exponents = scaled_to_unit(A)
    R_B = np.asarray(np.linalg.qr(B_scaled, mode="r"))
    R_A = np.asarray(np.linalg.qr(np.swapaxes(A_scaled, -1, -2), mode="r"))
    core, core_exponents = scaled_to_unit(R_B @ np.swapaxes(R_A, -1, -2))
    values = np.linalg.svd(core, compute_uv=False).astype(np.float64, copy=False)
    values = _without_rounding(values, R_B, R_A, core_exponents, max(B.shape[-2], *A.shape[-2:]))
    return values, B_exponents + A_exponents + core_exponents


def gram_core_values(
    B: NDArray[Any], A: NDArray[Any], workers: int, *, kernel_rank: int
) -> tuple[Floats, NDArray[np.int64]] | None:
    """Compute values of products by the Gram matrices of both factors, as `CoreValues`.

    Those of narrow factors up to rank `kernel_rank` are computed by a kernel.
    """
    grams = _gram_matrices(B, A, workers, kernel_rank)
    if grams is None:
        return None
    (B_gram, B_exponents), (A_gram, A_exponents) = grams
    largest, bounds = np.empty(len(B), dtype=np.int64), np.empty((len(B), 2))
    # Unbalanced columns would drown the small ones (49 eps32·σ₁, balanced 1e-8).
    kernel("products", "balance")(B_gram, A_gram, largest, bounds)
    S = _square_root(A_gram)
    core = S.swapaxes(-1, -2) @ B_gram @ S
    wanted = min(B.shape[-1], B.shape[-2], A.shape[-1])
    values = np.ascontiguousarray(np.sqrt(np.maximum(np.linalg.eigvalsh(core), 0.0))[..., ::-1][..., :wanted])
    exponents = largest + B_exponents + A_exponents
    for i in _has_cancelled(values[..., 0], bounds[:, 0] * bounds[:, 1]).nonzero()[0]:
        if _has_cancelled(values[i, 0], bounds[i, 0] * np.linalg.eigvalsh(A_gram[i])[-1]):
            # The difference of two near-equal adapters: a Gram matrix keeps half the digits, QR keeps them all.
            one = slice(i, i + 1)
            values[one], exponents[one] = _qr_core_values(B[one], A[one])
    return values, exponents


def _gram_matrices(B: NDArray[Any], A: NDArray[Any], workers: int, kernel_rank: int) -> list[Scaled] | None:
    """Compute BᵀB and AAᵀ of stacks, each over 4^exponents; None if an entry is not finite."""
    rank = B.shape[-1]

    def gram_of(of_rows: bool) -> Scaled | None:
        factor = A if of_rows else B
        if rank <= kernel_rank and factor.dtype != np.float64:
            gram = kernel_gram(factor, of_rows=of_rows)
            # Finite where every entry of the factor is, and much smaller to look through.
            return Scaled(gram, np.zeros(len(factor), dtype=np.int64)) if np.isfinite(gram).all() else None
        if not all_finite(factor):
            return None
        scaled, exponents = scaled_to_squares(factor)
        return Scaled(gram_matrix(scaled, of_rows=of_rows), exponents)

    grams = [gram for gram in in_threads(gram_of, [False, True], workers) if gram is not None]
    return grams if len(grams) == 2 else None


def kernel_gram(first: NDArray[Any], second: NDArray[Any] | None = None, *, of_rows: bool) -> Floats:
    """Compute the Gram matrices of narrow factors, or of two beside each other, without a float64 copy of them."""
    if second is None:
        second = first[:, :0] if of_rows else first[..., :0]
    singles = [_frozen_singles(factor) for factor in (first, second)]
    rank = sum(factor.shape[-2 if of_rows else -1] for factor in singles)
    grams = np.empty((len(first), rank, rank))
    kernel("products", "gram_matrices")(*singles, of_rows, grams)
    return grams


def _frozen_singles(factors: NDArray[Any]) -> NDArray[np.float32]:
    """Return factors in float32 and C order, read-only: Numba would compile the kernel once more for writeable ones."""
    singles = np.ascontiguousarray(factors, dtype=np.float32).view()
    singles.flags.writeable = False
    return singles


def _without_rounding(values: Floats, R_B: Floats, R_A: Floats, exponents: NDArray[np.int64], size: int) -> Floats:
    r"""Return values over 2^exponents of products R_B R_Aᵀ; of those that cancelled, what rounding makes is 0.

    Householder QR errs by a multiple of eps in each column (Higham, "Accuracy and Stability of Numerical Algorithms",
    2nd ed., theorem 19.4), and the product of the triangles by r·eps·|R_B||R_Aᵀ| (§3.5), both over a sum of outer
    products: with :math:`S = \sum_i \|b_i\| \|a_i\|`, the core is that of a product within size·eps·S of BA, and by
    Weyl's inequality so is each value. Where nothing cancels, :math:`\sigma_1 \ge S / r` as for orthogonal b_i, and
    such values are far below a relative size·eps·r; where σ₁ itself has cancelled they would be counted in a rank.
    """
    if not values.shape[-1]:  # factors of rank 0
        return values
    sizes = np.linalg.norm(R_B, axis=-2) * np.linalg.norm(R_A, axis=-2)
    with np.errstate(over="ignore"):
        total = np.ldexp(sizes.sum(axis=-1), -exponents)
    has_cancelled = values[..., 0] < CANCELLED / sizes.shape[-1] * total
    rounding = np.where(has_cancelled, size * np.finfo(np.float64).eps * total, -1.0)
    return np.where(values <= rounding[..., np.newaxis], 0.0, values)


def _has_cancelled(largest: Any, bound_squared: Any) -> Any:
    """Whether the largest value is far below a bound on ‖B‖₂‖A‖₂, squared."""
    return (largest < CANCELLED * np.sqrt(bound_squared)) & (bound_squared > 0)


def _square_root(grams: Floats) -> Floats:
    """Return an S with G = S Sᵀ for each Gram matrix of a stack."""
    try:
        return np.asarray(np.linalg.cholesky(grams), dtype=np.float64)
    except np.linalg.LinAlgError:
        # Factors may be deficient or padded with zeros: by eigenvectors, one by one, so that a batch changes nothing.
        if len(grams) > 1:
            return np.concatenate([_square_root(grams[i : i + 1]) for i in range(len(grams))])
        squares, vectors = np.linalg.eigh(grams)
        return np.asarray(vectors * np.sqrt(np.maximum(squares, 0.0))[..., np.newaxis, :], dtype=np.float64)


class ProductFactors(NamedTuple):
    """Factors of the products 2^exponent · Q_Bᵀ (U Σ Vᵀ) Q_A of a stack, with orthonormal rows Q_B and Q_A."""

    values: Floats
    norms: Floats
    Q_B: Floats
    U: Floats
    scaled_values: Floats
    Vt: Floats
    Q_A: Floats
    exponents: NDArray[np.int64]

    def at(self, rank: int) -> tuple[Floats, Floats]:
        """Return B = U_r Σ_r and A = V_rᵀ of the products."""
        B = self.Q_B.swapaxes(-1, -2) @ (self.U[..., :rank] * self.scaled_values[..., np.newaxis, :rank])
        return scaled_by(B, self.exponents[:, np.newaxis, np.newaxis]), self.Vt[..., :rank, :] @ self.Q_A


def product_factors(
    B: NDArray[Any], A: NDArray[Any], scaling: float, cholesky_tol: float = CHOLESKY_QR_TOL
) -> ProductFactors:
    """Decompose products γBA of stacks of factors through QR of both factors and an SVD of the core."""
    B_scaled, B_exponents = scaled_to_unit(B)
    A_scaled, A_exponents = scaled_to_unit(A)
    L_B, Q_B = _lq(np.ascontiguousarray(B_scaled.swapaxes(-1, -2)), cholesky_tol)
    L_A, Q_A = _lq(A_scaled, cholesky_tol)
    core, core_exponents = scaled_to_unit(L_B.swapaxes(-1, -2) @ L_A)
    scale, scale_exponent = np.frexp(scaling)
    exponents = B_exponents + A_exponents + core_exponents + scale_exponent
    U, values, Vt = np.linalg.svd(core * scale, full_matrices=False)
    size = max(B.shape[-2], *A.shape[-2:])
    values = _without_rounding(values, L_B.swapaxes(-1, -2) * scale, L_A.swapaxes(-1, -2), core_exponents, size)
    unscaled = unscaled_values(values, norms_of(values), exponents)[:2]
    return ProductFactors(*unscaled, Q_B, U, values, Vt, Q_A, exponents)


def _lq(block: Floats, cholesky_tol: float) -> tuple[Floats, Floats]:
    return lq(block, cholesky_tol if block.shape[-1] >= LONG_ROWS else 0.0)
