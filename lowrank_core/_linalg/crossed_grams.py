"""Pairs of updates by the Gram matrices of their factors beside each other: of both B, and of both A.

Where factors are well conditioned, singular vectors stay combinations of these, and are not formed.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lowrank_core._linalg.crossed_vectors import NORM, CrossedVectors, Operand, Vectors
from lowrank_core._linalg.gram import gram_matrix
from lowrank_core._linalg.machine_code import kernel
from lowrank_core._linalg.powers_of_two import scaled_to_unit, unscaled_by
from lowrank_core._linalg.products import kernel_gram
from lowrank_core._linalg.routes import CrossingRoute
from lowrank_core._linalg.values import Floats, norms_of

__all__ = ["cross_by_gram"]

# Factors whose columns have about one norm are taken by their Gram matrices up to this condition number: its square
# times eps, by which the bases that follow from a Gram matrix err, is 1e-12.
GRAM_CONDITION = 64.0

# Columns whose squared norms are between this and its reciprocal lose no digit of their products to float64's range.
LEAST_SQUARE = 1e-200


class _GramSide(NamedTuple):
    """Factors [X₁ X₂] of pairs, with columns over 2^exponents: XᵀX, and of each factor R with X_iᵀX_i = RᵀR, and R⁻¹.

    `bounds` (count,) are at least the squared condition numbers of both.
    """

    factors: tuple[NDArray[Any], NDArray[Any]]
    of_rows: bool
    grams: Floats
    roots: tuple[Floats, Floats]
    inverses: tuple[Floats, Floats]
    exponents: tuple[NDArray[np.int64], NDArray[np.int64]]
    bounds: Floats

    def of(self, pairs: NDArray[np.int64]) -> _GramSide:
        """Return the side of some pairs."""
        if len(pairs) == len(self.grams):
            return self
        return _GramSide(
            self.factors,
            self.of_rows,
            self.grams[pairs],
            (self.roots[0][pairs], self.roots[1][pairs]),
            (self.inverses[0][pairs], self.inverses[1][pairs]),
            (self.exponents[0][pairs], self.exponents[1][pairs]),
            self.bounds[pairs],
        )

    def products(self, which: int) -> Floats:
        """Return X₁ᵀX₂, or X₂ᵀX₁ if `which` is 1."""
        split = self.factors[0].shape[-2 if self.of_rows else -1]
        return self.grams[:, split:, :split] if which else self.grams[:, :split, split:]


class _Core(NamedTuple):
    """Cores R_B diag(`scales`) R_Aᵀ of updates, and their vectors as combinations of the columns of factors.

    `sizes` (count,) are the norms of the cores, 1 for a zero one, and `norms` those of the updates; `values` (count, r)
    are over them. `left` and `right` (count, r, k) are the coefficients of the leading vectors.
    """

    scales: Floats
    sizes: Floats
    norms: Floats
    values: Floats
    left: Floats
    right: Floats


def cross_by_gram(
    first: Operand, second: Operand, route: CrossingRoute
) -> tuple[NDArray[np.int64], CrossedVectors | None]:
    """Cross those pairs of two stacks whose factors are well conditioned, by Gram matrices; return which they are."""
    if first.whole is not None or second.whole is not None or 0 in (first.B.shape[-1], second.B.shape[-1]):
        return np.empty(0, np.int64), None
    left = _gram_side(first.B, second.B, of_rows=False, route=route)
    right = _gram_side(first.A, second.A, of_rows=True, route=route)
    pairs = np.flatnonzero(np.maximum(left.bounds, right.bounds) <= GRAM_CONDITION**2)
    if not len(pairs):
        return pairs, None
    left, right = left.of(pairs), right.of(pairs)
    cores = [_core(left, right, which, operand, route) for which, operand in enumerate((first, second))]
    one, other = cores
    inner = left.products(0) * right.products(0) * one.scales[:, :, np.newaxis] * other.scales[:, np.newaxis]
    cosines = inner.sum(axis=-1).sum(axis=-1) / (one.sizes * other.sizes)
    return pairs, CrossedVectors(
        (one.values, other.values),
        (one.norms, other.norms),
        np.clip(cosines, -1.0, 1.0),
        _vectors(left, right, cores, pairs),
        _vectors(right, left, cores, pairs),
    )


def _gram_side(first: NDArray[Any], second: NDArray[Any], *, of_rows: bool, route: CrossingRoute) -> _GramSide:
    """Compute the Gram matrices of pairs of factors beside each other, and their parts."""
    split = first.shape[-2 if of_rows else -1]
    if route.by_kernel:
        grams, scales = kernel_gram(first, second, of_rows=of_rows), np.zeros((2, len(first)), np.int64)
    else:
        grams, scales = _blas_grams(first, second, of_rows=of_rows)
    squares = np.diagonal(grams, axis1=-2, axis2=-1)
    is_usable = _in_range(squares)
    # Columns of about one norm: unbalanced ones would be ill conditioned, and powers of two round nothing.
    exponents = np.frexp(np.where(is_usable[:, np.newaxis], squares, 1.0))[1].astype(np.int64) // 2
    factors = np.ldexp(1.0, -exponents)
    with np.errstate(over="ignore", invalid="ignore"):
        grams *= factors[:, :, np.newaxis] * factors[:, np.newaxis]
    one, other = _cholesky(grams[:, :split, :split]), _cholesky(grams[:, split:, split:])
    return _GramSide(
        (first, second),
        of_rows,
        grams,
        (one[0], other[0]),
        (one[1], other[1]),
        (exponents[:, :split] + scales[0][:, np.newaxis], exponents[:, split:] + scales[1][:, np.newaxis]),
        np.where(is_usable, np.maximum(one[2], other[2]), np.inf),
    )


def _in_range(squares: Floats) -> NDArray[np.bool_]:
    """Whether the squared norms (count, r) of columns are such that their products lose no digit."""
    return np.asarray((squares.min(axis=-1) >= LEAST_SQUARE) & (squares.max(axis=-1) <= 1.0 / LEAST_SQUARE))


def _blas_grams(first: NDArray[Any], second: NDArray[Any], *, of_rows: bool) -> tuple[Floats, NDArray[np.int64]]:
    """Compute Gram matrices of pairs of factors beside each other, over powers of two where squares need these."""
    axis = -2 if of_rows else -1
    doubles = np.concatenate([factor.astype(np.float64, copy=False) for factor in (first, second)], axis=axis)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        grams = gram_matrix(doubles, of_rows=of_rows)
    scales = np.zeros((2, len(first)), np.int64)
    for i in np.flatnonzero(~_in_range(np.diagonal(grams, axis1=-2, axis2=-1))):
        if np.isfinite(doubles[i]).all():
            scaled = [scaled_to_unit(factor[i]) for factor in (first, second)]
            grams[i] = gram_matrix(np.concatenate([each.array for each in scaled], axis=axis), of_rows=of_rows)
            scales[:, i] = [each.exponents for each in scaled]
    return grams, scales


def _cholesky(grams: Floats) -> tuple[Floats, Floats, Floats]:
    """Return R with G = RᵀR of each Gram matrix, R⁻¹, and bounds on its squared condition number."""
    roots, inverses, bounds = np.zeros(grams.shape), np.zeros(grams.shape), np.empty(len(grams))
    kernel("cholesky", "cholesky_inverses")(np.ascontiguousarray(grams), roots, inverses, bounds)
    return roots, inverses, bounds


def _core(left: _GramSide, right: _GramSide, which: int, operand: Operand, route: CrossingRoute) -> _Core:
    """Decompose the core of the first, or of the second, updates of pairs."""
    exponents = left.exponents[which] + right.exponents[which]
    largest = exponents.max(axis=-1)
    scale, scale_exponent = np.frexp(operand.scaling)
    scales = np.ldexp(scale, exponents - largest[:, np.newaxis])
    core = (left.roots[which] * scales[:, np.newaxis]) @ right.roots[which].swapaxes(-1, -2)
    values, products, rows = _decomposed_core(core, operand, route)
    # Where both factors are well conditioned, so is their core: it is zero, or has no value near zero.
    leading = values[:, np.newaxis, : operand.kept]
    vectors = products * np.divide(1.0, leading, out=np.zeros_like(leading), where=leading > 0)
    norms = norms_of(values)
    sizes = np.where(norms > 0, norms, 1.0)
    return _Core(
        scales,
        sizes,
        unscaled_by(norms, largest + scale_exponent, NORM),
        values / sizes[:, np.newaxis],
        left.inverses[which] @ vectors,
        right.inverses[which] @ rows.swapaxes(-1, -2),
    )


def _decomposed_core(core: Floats, operand: Operand, route: CrossingRoute) -> tuple[Floats, Floats, Floats]:
    """Return all singular values of cores, and U Σ and Vᵀ of the leading ones."""
    kept = operand.kept
    if not operand.are_decomposed:
        factors = route.core_factors(core, kept, 1)
        return factors.values, *factors.at(kept)
    # Diagonal to rounding, with values that descend to rounding only.
    values = np.minimum.accumulate(np.diagonal(core, axis1=-2, axis2=-1), axis=-1)
    vectors = np.eye(core.shape[-1])
    return (
        values,
        values[:, np.newaxis, :kept] * vectors[:, :kept],
        np.broadcast_to(vectors[:kept], (len(core), kept, len(vectors))),
    )


def _vectors(side: _GramSide, across: _GramSide, cores: list[_Core], pairs: NDArray[np.int64]) -> Vectors:
    """Return the vectors of one side; `across` is the other one."""
    coefficients = [core.right if side.of_rows else core.left for core in cores]
    products, energies = [], []
    for which in (0, 1):
        # Vectors of one update by the factor of the other: these are coefficients of the vectors times that update.
        other = 1 - which
        product = coefficients[which].swapaxes(-1, -2) @ side.products(which)
        products.append(product)
        along = (product * cores[other].scales[:, np.newaxis]) @ across.roots[other].swapaxes(-1, -2)
        energies.append(np.square(along).sum(axis=-1) / np.square(cores[other].sizes)[:, np.newaxis])

    def bases(chosen: NDArray[np.int64]) -> tuple[Floats, Floats]:
        of_first, of_second = (
            _orthonormal(side.factors[which][pairs[chosen]], side, which, chosen, coefficients[which])
            for which in (0, 1)
        )
        return of_first, of_second

    return Vectors(products[0] @ coefficients[1], energies[1], energies[0], bases)


def _orthonormal(
    factors: NDArray[Any], side: _GramSide, which: int, chosen: NDArray[np.int64], coefficients: Floats
) -> Floats:
    """Compute the vectors that are combinations of the columns of factors, orthonormal to rounding."""
    doubles, weights = np.ascontiguousarray(factors, dtype=np.float64), coefficients[chosen]
    exponents = -side.exponents[which][chosen]
    if factors.dtype == np.float64:
        doubles = np.ldexp(doubles, exponents[:, :, np.newaxis] if side.of_rows else exponents[:, np.newaxis])
    else:
        # As exact, and of fewer numbers: scaled by what scales float32, none leaves the range of float64.
        weights = np.ldexp(weights, exponents[:, :, np.newaxis])
    vectors = (weights.swapaxes(-1, -2) @ doubles).swapaxes(-1, -2) if side.of_rows else doubles @ weights
    # Cholesky QR of what is orthonormal to 1e-12, as the second pass of two.
    return vectors @ _cholesky(vectors.swapaxes(-1, -2) @ vectors)[1]
