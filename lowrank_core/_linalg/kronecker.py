"""Singular values and factors of a Kronecker product γ·(L ⊗ R), from those of L and R; it is never formed."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lowrank_core._linalg.decompositions import (
    Rank,
    Stack,
    dense_stack,
    product_singular_values,
    product_stack,
    singular_values,
)
from lowrank_core._linalg.powers_of_two import scaled_to_squares, scaled_to_unit
from lowrank_core._linalg.routes import Problem, check_structured_method
from lowrank_core._linalg.values import Floats, Values, norms_of, unscaled_values
from lowrank_core._validation import as_stack, check_finite

__all__ = ["Dense", "Product", "best_kronecker_factors", "kronecker_singular_values"]


class Dense(NamedTuple):
    """Matrices (..., m, n) as one side of a Kronecker product, and the dtype that they are stored in."""

    matrices: NDArray[Any]
    dtype: str

    def scaled(self, name: str) -> _Scaled:
        """Check the entries, and scale the matrices so that their squares fit float64."""
        check_finite(self.matrices, name)
        matrices, exponents = scaled_to_squares(self.matrices)
        return _Scaled(Dense(matrices, self.dtype), exponents)

    def values(self, method: str, workers: int) -> Floats:
        """Compute the singular values (..., p)."""
        return singular_values(
            self.matrices, self.dtype, None, method=method, tolerance=0.0, workers=workers, rng=0
        ).values

    def stack(self, method: str, workers: int) -> Stack:
        """Return the matrices as a stack to be decomposed."""
        m, n = self.matrices.shape[-2:]
        return dense_stack(self.matrices, Problem(self.dtype, (m, n)), method=method, workers=workers)


class Product(NamedTuple):
    """Products γBA of factors as one side of a Kronecker product, and the coarser of the dtypes of the factors."""

    B: NDArray[Any]
    A: NDArray[Any]
    scaling: float
    dtype: str

    def scaled(self, name: str) -> _Scaled:
        """Check the entries, and scale the factors so that their squares fit float64."""
        check_finite(self.B, f"B of {name}")
        check_finite(self.A, f"A of {name}")
        (B, B_exponents), (A, A_exponents) = scaled_to_squares(self.B), scaled_to_squares(self.A)
        scale, scale_exponent = math.frexp(self.scaling)
        return _Scaled(Product(B, A, scale, self.dtype), B_exponents + A_exponents + scale_exponent)

    def values(self, method: str, workers: int) -> Floats:
        """Compute the singular values (..., p)."""
        return product_singular_values(*self, method=method, workers=workers).values

    def stack(self, method: str, workers: int) -> Stack:
        """Return the products as a stack to be decomposed."""
        return product_stack(*self, method=method, workers=workers)


Side = Dense | Product


class _Scaled(NamedTuple):
    """One side of a Kronecker product, divided by 2^exponents (...)."""

    side: Side
    exponents: NDArray[np.int64]


def kronecker_singular_values(left: Side, right: Side, scaling: float, *, method: str, workers: int) -> Values:
    """Compute the singular values (..., p·q) and norms (...) of γ·(L ⊗ R), from p values of L and q of R."""
    check_structured_method(method, "a KroneckerUpdate")
    (L, L_exponents), (R, R_exponents) = left.scaled("left"), right.scaled("right")
    return _paired_values(*_values_of_both(L, R, method, workers), scaling, L_exponents + R_exponents)


def _values_of_both(left: Side, right: Side, method: str, workers: int) -> tuple[Floats, Floats]:
    if not (isinstance(left, Dense) and isinstance(right, Dense) and _are_alike(left, right)):
        return left.values(method, workers), right.values(method, workers)
    # As one stack, which changes no bit of either: a kernel that takes eight matrices at once needs no longer for two.
    stacks = [as_stack(side.matrices, 2) for side in (left, right)]
    values = Dense(np.concatenate(stacks), left.dtype).values(method, workers)
    count, p = len(stacks[0]), values.shape[-1]
    return (
        values[:count].reshape(*left.matrices.shape[:-2], p),
        values[count:].reshape(*right.matrices.shape[:-2], p),
    )


def _are_alike(left: Dense, right: Dense) -> bool:
    return left.dtype == right.dtype and left.matrices.shape[-2:] == right.matrices.shape[-2:]


def _products(left: Floats, right: Floats) -> Floats:
    """Return all products of values (..., p) and (..., q), shape (..., p·q)."""
    products = left[..., :, np.newaxis] * right[..., np.newaxis, :]
    return products.reshape(*products.shape[:-2], left.shape[-1] * right.shape[-1])


def _paired_values(left: Floats, right: Floats, scaling: float, exponents: NDArray[np.int64]) -> Values:
    """Return the values and norms of γ·2^exponents·(L ⊗ R), from the values of both sides."""
    scale, scale_exponent = math.frexp(abs(scaling))
    # The products of subnormal float32 numbers, four to a value, have no squares in float64.
    (left, left_exponents), (right, right_exponents) = (scaled_to_unit(side[..., np.newaxis]) for side in (left, right))
    values = np.sort(_products(left[..., 0], right[..., 0]), axis=-1)[..., ::-1] * scale
    return unscaled_values(values, norms_of(values), exponents + left_exponents + right_exponents + scale_exponent)


def best_kronecker_factors(
    left: Side, right: Side, scaling: float, rank: Rank, *, method: str, workers: int
) -> tuple[Floats, Floats]:
    """Compute B = U_r Σ_r (..., m, r) and A = V_rᵀ (..., r, n) of γ·(L ⊗ R), for r up to its number of values."""
    check_structured_method(method, "a KroneckerUpdate")
    (L, L_exponents), (R, R_exponents) = left.scaled("left"), right.scaled("right")
    # Each side is decomposed once, whatever its batch axes are broadcast to.
    L_values, L_B, L_A = L.stack(method, workers).whole_factors()
    R_values, R_B, R_A = R.stack(method, workers).whole_factors()
    exponents = L_exponents + R_exponents
    values = _paired_values(L_values, R_values, scaling, exponents)
    kept = rank(values) if callable(rank) else rank
    order = np.argsort(-_products(L_values, R_values), axis=-1, kind="stable")[..., :kept]
    pairs = np.divmod(order, max(1, R_values.shape[-1]))
    scale, scale_exponent = math.frexp(scaling)
    B = _column_products(L_B, R_B, pairs) * scale
    A = _column_products(L_A.swapaxes(-1, -2), R_A.swapaxes(-1, -2), pairs).swapaxes(-1, -2)
    return np.ldexp(B, exponents[..., np.newaxis, np.newaxis] + scale_exponent), A


def _column_products(left: Floats, right: Floats, pairs: tuple[NDArray[np.int64], NDArray[np.int64]]) -> Floats:
    """Return the Kronecker products (..., m·p, r) of pairs of columns of (..., m, k) and (..., p, l)."""
    batch, r = pairs[0].shape[:-1], pairs[0].shape[-1]
    left_columns, right_columns = (
        np.take_along_axis(np.broadcast_to(factor, (*batch, *factor.shape[-2:])), index[..., np.newaxis, :], axis=-1)
        for factor, index in zip((left, right), pairs, strict=True)
    )
    products = left_columns[..., :, np.newaxis, :] * right_columns[..., np.newaxis, :, :]
    return products.reshape(*batch, left.shape[-2] * right.shape[-2], r)
