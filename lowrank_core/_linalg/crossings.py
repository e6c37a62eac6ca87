"""Two stacks of updates as products of factors, pair by pair: the cosine between them, and their singular vectors.

An update is γBA, of factors B (m, r) and A (r, n): its singular vectors are linear combinations of the columns of B and
the rows of A. Nothing of the size of the update is formed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lowrank_core._linalg.batches import map_batch
from lowrank_core._linalg.crossed_grams import cross_by_gram
from lowrank_core._linalg.crossed_vectors import Bases, CrossedVectors, Operand, Vectors, cross_by_vectors
from lowrank_core._linalg.routes import CrossingRoute, choose_crossing_route
from lowrank_core._linalg.values import Floats
from lowrank_core._validation import all_finite

__all__ = ["Crossing", "Operand", "Side", "cross"]


class Side(NamedTuple):
    """The left, or the right, singular vectors of pairs of updates: u_i of the first, v_j of the second.

    `products` (count, k₁, k₂) are all u_i·v_j. `of_second` (count, k₁) are the fractions of the energy of the second
    update along each u_i, `of_first` (count, k₂) those of the first along each v_j. `sines` (count, min(k₁, k₂)) are
    those of the principal angles, ascending; NaN where no angle is below 45°. All else is 0 for vectors beyond an
    update's rank.
    """

    products: Floats
    of_first: Floats
    of_second: Floats
    sines: Floats


class Crossing(NamedTuple):
    """Pairs of updates: norms (2, count), ranks (2, count), cosines (count,), and the two sides of their vectors."""

    norms: Floats
    ranks: NDArray[np.int64]
    cosines: Floats
    left: Side
    right: Side


def cross(first: Operand, second: Operand, workers: int) -> tuple[Crossing, bool]:
    """Cross the updates of two stacks pair by pair; with whether all entries of their factors are finite."""
    m, n, ranks = first.B.shape[-2], first.A.shape[-1], (first.B.shape[-1], second.B.shape[-1])
    dtypes = {factor.dtype.name for factor in (first.B, first.A, second.B, second.A)}
    route = choose_crossing_route("float64" if "float64" in dtypes else "float32", (m, n), ranks)
    count, kept = len(first.B), (first.kept, second.kept)
    norms, cosines, numbers = np.empty((2, count)), np.empty(count), np.empty((2, count), np.int64)
    crossing = Crossing(norms, numbers, cosines, _empty_side(count, kept), _empty_side(count, kept))

    def fill(chunk: slice) -> bool:
        return _fill(_part(crossing, chunk), first.part(chunk), second.part(chunk), route)

    are_finite = map_batch(fill, count, (m + n, max(1, sum(ranks))), workers, route.batching)
    return crossing, all(are_finite)


def _empty_side(count: int, kept: tuple[int, int]) -> Side:
    sizes = [kept, kept[1:], kept[:1], (min(kept),)]
    return Side(*(np.empty((count, *size)) for size in sizes))


def _part(crossing: Crossing, chunk: slice) -> Crossing:
    """Return views of some pairs of a stack."""
    sides = (Side(*(array[chunk] for array in side)) for side in (crossing.left, crossing.right))
    return Crossing(crossing.norms[:, chunk], crossing.ranks[:, chunk], crossing.cosines[chunk], *sides)


def _fill(out: Crossing, first: Operand, second: Operand, route: CrossingRoute) -> bool:
    """Cross some pairs of updates; return whether all entries of their factors are finite."""
    for pairs, crossed in _crossed(first, second, route):
        if crossed is None:
            return False
        ranks = [
            np.minimum(operand.kept, operand.rank_rule(values))
            for operand, values in zip((first, second), crossed.values, strict=True)
        ]
        out.norms[:, pairs], out.ranks[:, pairs], out.cosines[pairs] = crossed.norms, ranks, crossed.cosines
        for side, vectors in ((out.left, crossed.left), (out.right, crossed.right)):
            for array, computed in zip(side, _up_to_ranks(vectors, (ranks[0], ranks[1])), strict=True):
                array[pairs] = computed
    return True


def _crossed(
    first: Operand, second: Operand, route: CrossingRoute
) -> Iterator[tuple[NDArray[np.int64] | list[int], CrossedVectors | None]]:
    """Yield which pairs were crossed with what: those that can be by Gram matrices at once, and the others singly."""
    by_gram, crossed = cross_by_gram(first, second, route)
    if len(by_gram):
        yield by_gram, crossed
    for i in sorted({*range(len(first.B))} - {*by_gram.tolist()}):
        one, other = (operand.part(slice(i, i + 1)) for operand in (first, second))
        # Of factors that are taken by their Gram matrix, this has shown it.
        if not all(all_finite(factor) for factor in (one.B, one.A, other.B, other.A) if factor.size):
            yield [i], None
        else:
            yield [i], cross_by_vectors(one, other)


def _up_to_ranks(vectors: Vectors, ranks: tuple[NDArray[np.int64], NDArray[np.int64]]) -> Side:
    """Return one side with zeros for the vectors beyond the ranks of a pair, and the sines of its angles."""
    of_one, of_other = (
        np.arange(size) < rank[:, np.newaxis] for size, rank in zip(vectors.products.shape[1:], ranks, strict=True)
    )
    products = np.where(of_one[:, :, np.newaxis] & of_other[:, np.newaxis], vectors.products, 0.0)
    return Side(
        products,
        np.where(of_other, vectors.of_first, 0.0),
        np.where(of_one, vectors.of_second, 0.0),
        _sines(products, vectors.bases, ranks),
    )


def _sines(
    products: Floats,
    bases: Bases,
    ranks: tuple[NDArray[np.int64], NDArray[np.int64]],
) -> Floats:
    """Compute the sines of the principal angles of pairs that may have one below 45°, ascending; NaN for the others."""
    squares = products.swapaxes(-1, -2) @ products
    # σ₁⁴ ≤ Σσ⁴, so that elsewhere no cosine is above √½; less than its fourth power ¼, as both are rounded.
    near = np.flatnonzero(np.square(squares).sum(axis=-1).sum(axis=-1) > 0.24)
    sines = np.full((len(products), min(products.shape[1:])), np.nan)
    for one, other in sorted({(int(ranks[0][i]), int(ranks[1][i])) for i in near}):
        pairs = near[(ranks[0][near] == one) & (ranks[1][near] == other)]
        first, second = bases(pairs)
        sines[pairs, : min(one, other)] = _sines_between(first[..., :one], second[..., :other])
    return sines


def _sines_between(first: Floats, second: Floats) -> Floats:
    """Compute the sines of the principal angles, ascending: the singular values of what one space leaves of the other.

    A cosine near 1 has lost the angle: by eps it errs by 1.5e-8 (Björck and Golub, Math. Comp. 27 (1973) 579, §3).
    """
    larger, smaller = sorted((first, second), key=lambda basis: -basis.shape[-1])
    rest = smaller - larger @ (larger.swapaxes(-1, -2) @ smaller)
    return np.linalg.svd(np.linalg.qr(rest, mode="r"), compute_uv=False)[..., ::-1]
