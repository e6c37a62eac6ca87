"""Two updates of one shape: the products of their singular vectors, and what of each lies along those of the other.

Of two products with well-conditioned factors these are functions of the Gram matrices of both B beside each other and
of both A; elsewhere of orthonormal bases. Nothing of the size of the update is formed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lowrank_core._linalg.batches import map_batch
from lowrank_core._linalg.gram import gram_matrix
from lowrank_core._linalg.powers_of_two import scaled_to_unit, unscaled_by
from lowrank_core._linalg.products import kernel_gram, product_factors
from lowrank_core._linalg.routes import CrossingRoute, choose_crossing_route
from lowrank_core._linalg.values import Floats, norms_of
from lowrank_core._validation import all_finite

__all__ = ["Crossing", "Operand", "Side", "cross"]

# Factors whose columns have about one norm are taken by their Gram matrices up to this condition number: its square
# times eps, by which the bases that follow from a Gram matrix err, is 1e-12.
GRAM_CONDITION = 64.0

# Worse conditioned factors by Cholesky QR where after the first pass no entry of the Gram matrix is further than this
# from orthonormal: the condition number is then below 1e4, and the second pass errs by 1e-12.
CHOLESKY_QR_TOL = 1e-8

# Columns whose squared norms are between this and its reciprocal lose no digit of their products to float64's range.
LEAST_SQUARE = 1e-200

# Number of singular values (k,) above rounding, for the norm of the whole update.
RankRule = Callable[[Floats, float], int]


class Operand(NamedTuple):
    """A stack of updates as products γBA of factors B (count, m, r) and A (count, r, n).

    `whole` (count, m, n) are the updates themselves where B = U Σ and A = Vᵀ are a leading part. `kept` leading vectors
    are compared, and no more than `rank_rule` counts.
    """

    B: NDArray[Any]
    A: NDArray[Any]
    scaling: float
    kept: int
    rank_rule: RankRule
    whole: NDArray[Any] | None = None

    def item(self, i: int) -> Operand:
        """Return one update of the stack."""
        return self._replace(B=self.B[i], A=self.A[i], whole=None if self.whole is None else self.whole[i])


class Side(NamedTuple):
    """The left, or the right, singular vectors of two updates: u_i of the first, v_j of the second.

    `products` (k₁, k₂) are all u_i·v_j. `of_second` (k₁,) are the fractions of the energy of the second update along
    each u_i, `of_first` (k₂,) those of the first along each v_j. `sines` (min(k₁, k₂),) are those of the principal
    angles, ascending; NaN where no angle is below 45°. All are 0 for vectors beyond an update's rank.
    """

    products: Floats
    of_first: Floats
    of_second: Floats
    sines: Floats


class Crossing(NamedTuple):
    """Two updates: their norms, their ranks, the cosine between them, and the two sides of their vectors."""

    norms: tuple[float, float]
    ranks: tuple[int, int]
    cosine: float
    left: Side
    right: Side


class _Vectors(NamedTuple):
    """Singular values (k,) over the norm of the whole, that norm, and orthonormal columns U (m, k) and V (n, k)."""

    values: Floats
    norm: float
    U: Floats
    V: Floats


class _Products(NamedTuple):
    """Values and norms of two updates, and the products of their left and right vectors; `vectors` computes these."""

    values: tuple[Floats, Floats]
    norms: tuple[float, float]
    left: Floats
    right: Floats
    vectors: Callable[[], tuple[_Vectors, _Vectors]]


def cross(first: Operand, second: Operand, workers: int) -> list[Crossing]:
    """Cross the updates of two stacks pair by pair, but for pairs with an entry that is not finite."""
    m, n, rank = first.B.shape[-2], first.A.shape[-1], first.B.shape[-1] + second.B.shape[-1]
    route = choose_crossing_route((m, n), rank)

    def cross_chunk(chunk: slice) -> list[Crossing | None]:
        return [_cross(first.item(i), second.item(i), route) for i in range(chunk.start, chunk.stop)]

    chunks = map_batch(cross_chunk, len(first.B), (m + n, max(1, rank)), workers, route.batching)
    return [crossing for chunk in chunks for crossing in chunk if crossing is not None]


def _cross(first: Operand, second: Operand, route: CrossingRoute) -> Crossing | None:
    """Cross two updates; None if an entry of their factors is not finite."""
    products = _by_gram(first, second, route)
    if products is None:
        # Of factors that are taken by their Gram matrix, this has shown it.
        if not all(all_finite(factor) for factor in (first.B, first.A, second.B, second.A) if factor.size):
            return None
        products = _by_vectors(first, second)
    first_rank, second_rank = (
        min(operand.kept, operand.rank_rule(values, norm))
        for operand, values, norm in zip((first, second), products.values, products.norms, strict=True)
    )
    ranks, kept = (first_rank, second_rank), (first.kept, second.kept)
    wholes = _unit_whole(first), _unit_whole(second)
    left = _side(products.left, products, ranks, kept, wholes, transposed=False)
    right = _side(products.right, products, ranks, kept, wholes, transposed=True)
    return Crossing(products.norms, ranks, _cosine(products, wholes), left, right)


def _cosine(products: _Products, wholes: tuple[Floats | None, Floats | None]) -> float:
    """Compute ⟨Δ₁, Δ₂⟩ / (‖Δ₁‖‖Δ₂‖), 0 for a zero update."""
    one, other = wholes
    if one is not None and other is not None:
        cosine = float(np.vdot(one, other))
    elif one is not None:
        cosine = _inner_product(one, products.vectors()[1])
    elif other is not None:
        cosine = _inner_product(other, products.vectors()[0])
    else:
        cosine = float(products.values[0] @ (products.left * products.right) @ products.values[1])
    return min(1.0, max(-1.0, cosine))


def _inner_product(whole: Floats, vectors: _Vectors) -> float:
    return float(np.vdot(vectors.U * vectors.values, whole @ vectors.V))


def _side(
    matrix: Floats,
    products: _Products,
    ranks: tuple[int, int],
    kept: tuple[int, int],
    wholes: tuple[Floats | None, Floats | None],
    *,
    transposed: bool,
) -> Side:
    """Return what one side of the vectors, the right one if `transposed`, has in common up to the ranks."""
    (one, other), (values_1, values_2) = ranks, products.values
    of_first = _energies(matrix[:, :other].T, values_1, wholes[0], products.vectors, (1, other), transposed)
    of_second = _energies(matrix[:one], values_2, wholes[1], products.vectors, (0, one), transposed)
    common = np.zeros(kept)
    common[:one, :other] = matrix[:one, :other]
    sines = np.full(min(kept), np.nan)
    # σ₁⁴ ≤ Σσ⁴, so that beyond this no cosine is above √½.
    if np.linalg.norm(common.T @ common) > 0.5:
        sines[: min(ranks)] = _sines(*products.vectors(), ranks, transposed)
    return Side(common, _padded(of_first, kept[1]), _padded(of_second, kept[0]), sines)


def _energies(
    matrix: Floats,
    values: Floats,
    whole: Floats | None,
    vectors: Callable[[], tuple[_Vectors, _Vectors]],
    which: tuple[int, int],
    transposed: bool,
) -> Floats:
    """Compute the energy of an update of unit norm along each vector of another, from the products of their vectors.

    Of a whole update it is that of its products with the vectors themselves: `which` of the two, and how many.
    """
    if whole is None:
        return np.asarray(np.square(matrix) @ np.square(values))
    index, count = which
    U, V = vectors()[index][2:]
    along = whole @ V[:, :count] if transposed else whole.T @ U[:, :count]
    return np.asarray(np.square(along).sum(axis=0))


def _padded(energies: Floats, size: int) -> Floats:
    padded = np.zeros(size)
    padded[: len(energies)] = energies
    return padded


def _sines(first: _Vectors, second: _Vectors, ranks: tuple[int, int], transposed: bool) -> Floats:
    """Compute the sines of the principal angles, ascending: the singular values of what one space leaves of the other.

    A cosine near 1 has lost the angle: by eps it errs by 1.5e-8 (Björck and Golub, Math. Comp. 27 (1973) 579, §3).
    """
    bases = [
        (vectors.V if transposed else vectors.U)[:, :rank] for vectors, rank in zip((first, second), ranks, strict=True)
    ]
    larger, smaller = sorted(bases, key=lambda basis: -basis.shape[1])
    rest = smaller - larger @ (larger.T @ smaller)
    return np.asarray(np.linalg.svd(np.linalg.qr(rest, mode="r"), compute_uv=False)[::-1])


def _unit_whole(operand: Operand) -> Floats | None:
    """Return the update over its norm, where its vectors are those of a leading part."""
    if operand.whole is None:
        return None
    matrix = scaled_to_unit(operand.whole).array
    return np.asarray(matrix / (float(np.linalg.norm(matrix)) or 1.0))


def _by_vectors(first: Operand, second: Operand) -> _Products:
    """Compute the products of vectors from the vectors themselves."""
    one, other = _vectors(first), _vectors(second)
    return _Products(
        (one.values, other.values), (one.norm, other.norm), one.U.T @ other.U, one.V.T @ other.V, lambda: (one, other)
    )


def _vectors(operand: Operand) -> _Vectors:
    """Compute the singular vectors of one update, by QR of its factors unless these have them."""
    if operand.whole is None:
        factors = product_factors(operand.B[np.newaxis], operand.A[np.newaxis], operand.scaling, CHOLESKY_QR_TOL)
        values = factors.scaled_values[0]
        return _Vectors(
            values / (float(norms_of(values)) or 1.0),
            float(factors.norms[0]),
            factors.Q_B[0].T @ factors.U[0],
            factors.Q_A[0].T @ factors.Vt[0].T,
        )
    matrix, exponent = scaled_to_unit(operand.whole)
    norm = float(np.linalg.norm(matrix))
    B = np.ldexp(operand.B, -exponent)
    sizes = np.linalg.norm(B, axis=0)
    U = np.divide(B, sizes, out=np.zeros_like(B), where=sizes > 0)
    return _Vectors(sizes / (norm or 1.0), _unscaled(norm, int(exponent)), U, operand.A.T)


def _unscaled(norm: float, exponent: int) -> float:
    return float(unscaled_by(np.asarray(norm), exponent, "the norm of the update"))


def _by_gram(first: Operand, second: Operand, route: CrossingRoute) -> _Products | None:
    """Compute the products of vectors from Gram matrices; None where factors are too ill conditioned for that."""
    if first.whole is not None or second.whole is not None or 0 in (first.B.shape[-1], second.B.shape[-1]):
        return None
    sides = [
        _gram_side(first.B, second.B, of_rows=False, route=route),
        _gram_side(first.A, second.A, of_rows=True, route=route),
    ]
    left, right = sides
    if left is None or right is None:
        return None
    values, norms, U, V = [], [], [], []
    for i, operand in enumerate((first, second)):
        exponents = left.exponents[i] + right.exponents[i]
        largest = int(exponents.max())
        scale, scale_exponent = math.frexp(operand.scaling)
        core = left.roots[i].T @ (np.ldexp(scale, exponents - largest)[:, np.newaxis] * right.roots[i])
        # Vectors of the core, over the roots: those of the product are linear combinations of its factors.
        core_U, core_values, core_Vt = np.linalg.svd(core)
        norm = float(norms_of(core_values))
        values.append(core_values / (norm or 1.0))
        norms.append(_unscaled(norm, largest + scale_exponent))
        U.append(left.inverses[i].T @ core_U)
        V.append(right.inverses[i].T @ core_Vt.T)
    return _Products(
        (values[0], values[1]),
        (norms[0], norms[1]),
        U[0].T @ left.products @ U[1],
        V[0].T @ right.products @ V[1],
        cache(lambda: (_vectors(first), _vectors(second))),
    )


class _GramSide(NamedTuple):
    """Factors X of two updates, with columns over 2^exponents: roots L with XᵀX = L Lᵀ, their inverses, and X₁ᵀX₂."""

    roots: tuple[Floats, Floats]
    inverses: tuple[Floats, Floats]
    products: Floats
    exponents: tuple[NDArray[np.int64], NDArray[np.int64]]


def _gram_side(first: NDArray[Any], second: NDArray[Any], *, of_rows: bool, route: CrossingRoute) -> _GramSide | None:
    """Compute the Gram matrix of two factors beside each other, and its parts."""
    split = first.shape[0 if of_rows else 1]
    joined = np.concatenate if of_rows else np.hstack
    if route.by_kernel and np.float64 not in (first.dtype, second.dtype):
        singles = joined([factor.astype(np.float32, copy=False) for factor in (first, second)])
        gram, scales = kernel_gram(singles[np.newaxis], of_rows=of_rows)[0], [0, 0]
    else:
        gram, scales = _blas_gram(joined, first, second, of_rows=of_rows)
    squares = np.diagonal(gram)
    if not (squares.min() >= LEAST_SQUARE and squares.max() <= 1.0 / LEAST_SQUARE):
        return None
    # Columns of about one norm: unbalanced ones would be ill conditioned, and powers of two round nothing.
    exponents = np.frexp(squares)[1].astype(np.int64) // 2
    factors = np.ldexp(1.0, -exponents)
    gram *= factors[:, np.newaxis] * factors
    one, other = _inverse_root(gram[:split, :split]), _inverse_root(gram[split:, split:])
    if one is None or other is None:
        return None
    (root, inverse), (other_root, other_inverse) = one, other
    return _GramSide(
        (root, other_root),
        (inverse, other_inverse),
        gram[:split, split:],
        (exponents[:split] + scales[0], exponents[split:] + scales[1]),
    )


def _blas_gram(
    joined: Callable[..., Any], first: NDArray[Any], second: NDArray[Any], *, of_rows: bool
) -> tuple[Floats, list[int]]:
    """Compute the Gram matrix of two factors beside each other, each over a power of two where its squares need one."""
    doubles = joined([factor.astype(np.float64, copy=False) for factor in (first, second)])
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        gram = gram_matrix(doubles, of_rows=of_rows)
    squares = np.diagonal(gram)
    if (squares.min() >= LEAST_SQUARE and squares.max() <= 1.0 / LEAST_SQUARE) or not np.isfinite(doubles).all():
        return gram, [0, 0]
    scaled = [scaled_to_unit(factor) for factor in (first, second)]
    return gram_matrix(joined([each.array for each in scaled]), of_rows=of_rows), [
        int(each.exponents) for each in scaled
    ]


def _inverse_root(gram: Floats) -> tuple[Floats, Floats] | None:
    """Return the Cholesky factor of a Gram matrix and its inverse; None where the factor is too ill conditioned."""
    try:
        root = np.asarray(np.linalg.cholesky(gram), np.float64)
        inverse = np.asarray(np.linalg.inv(root), np.float64)
    except np.linalg.LinAlgError:
        return None
    # ‖L‖₂² ≤ ‖L‖₁‖L‖_∞, so that the product of both bounds is at least κ(L)² = κ(X)².
    sizes = [np.abs(matrix) for matrix in (root, inverse)]
    bound = math.prod(float(size.sum(axis=axis).max()) for size in sizes for axis in (0, 1))
    return (root, inverse) if bound <= GRAM_CONDITION**2 else None
