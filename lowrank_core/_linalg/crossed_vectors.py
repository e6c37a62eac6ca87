"""Pairs of updates by their singular vectors: the products of these, and the cosine between the updates."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lowrank_core._linalg.powers_of_two import scaled_to_unit, unscaled_by
from lowrank_core._linalg.products import product_factors
from lowrank_core._linalg.values import Floats, norms_of

__all__ = ["NORM", "CrossedVectors", "Operand", "Vectors", "cross_by_vectors"]

# Factors by Cholesky QR where after the first pass no entry of the Gram matrix is further than this from orthonormal:
# the condition number is then below 1e4, and the second pass errs by 1e-12.
CHOLESKY_QR_TOL = 1e-8

# What a message says that float64 cannot hold.
NORM = "the norm of the update"

# The numbers of singular values (count, k), over the norms of whole updates, above rounding.
RankRule = Callable[[Floats], NDArray[np.int64]]

# Orthonormal bases (…, side, k) of the leading vectors of both updates, of some pairs.
Bases = Callable[[NDArray[np.int64]], tuple[Floats, Floats]]


class Operand(NamedTuple):
    """A stack of updates as products γBA of factors B (count, m, r) and A (count, r, n).

    If they `are_decomposed`, B = U Σ, A = Vᵀ and γ = 1; of a leading part, `whole` (count, m, n) are the updates
    themselves. `kept` leading vectors are compared, and no more than `rank_rule` counts.
    """

    B: NDArray[Any]
    A: NDArray[Any]
    scaling: float
    kept: int
    rank_rule: RankRule
    are_decomposed: bool
    whole: NDArray[Any] | None = None

    def part(self, chunk: slice) -> Operand:
        """Return some updates of the stack."""
        whole = None if self.whole is None else self.whole[chunk]
        return self._replace(B=self.B[chunk], A=self.A[chunk], whole=whole)


class Vectors(NamedTuple):
    """The leading left, or right, singular vectors of pairs: their products, energies as `Side` has them, and bases."""

    products: Floats
    of_first: Floats
    of_second: Floats
    bases: Bases


class CrossedVectors(NamedTuple):
    """Pairs of updates: all singular values (count, p) over the norms (count,), cosines (count,), and both sides."""

    values: tuple[Floats, Floats]
    norms: tuple[Floats, Floats]
    cosines: Floats
    left: Vectors
    right: Vectors


class _Decomposed(NamedTuple):
    """Singular values (k,) of one update over its norm, that norm, and orthonormal columns U (m, k) and V (n, k)."""

    values: Floats
    norm: float
    U: Floats
    V: Floats


def cross_by_vectors(first: Operand, second: Operand) -> CrossedVectors:
    """Cross a pair of updates, two stacks of one, by their vectors."""
    wholes = [None if operand.whole is None else _unit_whole(operand.whole[0]) for operand in (first, second)]
    one, other = _decomposed(first), _decomposed(second)
    left, right = one.U.T @ other.U, one.V.T @ other.V
    return CrossedVectors(
        (one.values[np.newaxis], other.values[np.newaxis]),
        (np.array([one.norm]), np.array([other.norm])),
        np.array([min(1.0, max(-1.0, _cosine(one, other, wholes, left * right)))]),
        _vectors_of_pair(left, (one, other), (one.U, other.U), wholes, (first.kept, second.kept), transposed=False),
        _vectors_of_pair(right, (one, other), (one.V, other.V), wholes, (first.kept, second.kept), transposed=True),
    )


def _unit_whole(whole: NDArray[Any]) -> Floats:
    """Return an update over its norm."""
    matrix = scaled_to_unit(whole).array
    return np.asarray(matrix / (float(np.linalg.norm(matrix)) or 1.0))


def _decomposed(operand: Operand) -> _Decomposed:
    """Compute the singular vectors of one update, by QR of its factors unless these have them."""
    if not operand.are_decomposed:
        factors = product_factors(operand.B, operand.A, operand.scaling, CHOLESKY_QR_TOL)
        values = factors.scaled_values[0]
        return _Decomposed(
            values / (float(norms_of(values)) or 1.0),
            float(factors.norms[0]),
            factors.Q_B[0].T @ factors.U[0],
            factors.Q_A[0].T @ factors.Vt[0].T,
        )
    # ‖U Σ‖ is the norm of the update, unless it is a leading part.
    matrix, exponent = scaled_to_unit(operand.B[0] if operand.whole is None else operand.whole[0])
    norm = float(np.linalg.norm(matrix))
    B = np.ldexp(operand.B[0], -exponent)
    # The sizes of columns with equal or vanishing values descend to rounding only.
    values = np.minimum.accumulate(np.linalg.norm(B, axis=0)) / (norm or 1.0)
    return _Decomposed(
        values, float(unscaled_by(np.asarray(norm), exponent, NORM)), _orthonormal(B), _orthonormal(operand.A[0].T)
    )


def _orthonormal(columns: Floats) -> Floats:
    """Return nearly orthogonal columns made orthonormal, each of its own direction; zero where a column is.

    Over their sizes alone, the columns XV of small values are orthogonal to the others only to rounding over the value.
    """
    Q, R = np.linalg.qr(columns)
    return np.asarray(Q * np.sign(np.diagonal(R)))


def _cosine(one: _Decomposed, other: _Decomposed, wholes: list[Floats | None], products: Floats) -> float:
    """Compute ⟨Δ₁, Δ₂⟩ / (‖Δ₁‖‖Δ₂‖), 0 for a zero update, from the products of left and right vectors."""
    first, second = wholes
    if first is not None and second is not None:
        return float(np.vdot(first, second))
    if first is not None:
        return _inner_product(first, other)
    if second is not None:
        return _inner_product(second, one)
    return float(one.values @ products @ other.values)


def _inner_product(whole: Floats, vectors: _Decomposed) -> float:
    return float(np.vdot(vectors.U * vectors.values, whole @ vectors.V))


def _vectors_of_pair(
    products: Floats,
    decomposed: tuple[_Decomposed, _Decomposed],
    bases: tuple[Floats, Floats],
    wholes: list[Floats | None],
    kept: tuple[int, int],
    *,
    transposed: bool,
) -> Vectors:
    """Return the left vectors of a pair, or the right ones if `transposed`, as a stack of one."""
    one, other = bases[0][:, : kept[0]], bases[1][:, : kept[1]]
    of_first = _energies(products[:, : kept[1]].T, decomposed[0].values, wholes[0], other, transposed=transposed)
    of_second = _energies(products[: kept[0]], decomposed[1].values, wholes[1], one, transposed=transposed)
    return Vectors(
        products[np.newaxis, : kept[0], : kept[1]],
        of_first[np.newaxis],
        of_second[np.newaxis],
        lambda _: (one[np.newaxis], other[np.newaxis]),
    )


def _energies(matrix: Floats, values: Floats, whole: Floats | None, vectors: Floats, *, transposed: bool) -> Floats:
    """Compute the energy of an update of unit norm along each vector of another, from the products of their vectors.

    Of a whole update it is that of its products with the vectors themselves.
    """
    if whole is None:
        return np.asarray(np.square(matrix) @ np.square(values))
    along = whole @ vectors if transposed else whole.T @ vectors
    return np.asarray(np.square(along).sum(axis=0))
