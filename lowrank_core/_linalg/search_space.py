"""The search space of a block Krylov iteration, and the projection of XᵀX on it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lowrank_core._linalg.narrow_products import TallMatrix, rows_of
from lowrank_core._linalg.orthogonal import lq
from lowrank_core._linalg.values import Floats

__all__ = ["CHOLESKY_QR_TOL", "SearchSpace", "orthonormalised"]

# How far from orthonormal the first Cholesky QR may leave rows for the second to be enough.
CHOLESKY_QR_TOL = 0.1

# Passes that bring rows to be orthogonal to bases: where the first leaves little but rounding of a row, the second or
# the third does not.
PASSES = 5


class SearchSpace:
    """A space that grows by blocks: an orthonormal basis Q in rows, its products Q Xᵀ, and the projection Q XᵀX Qᵀ.

    Q and its products have the precision of X: to be more orthonormal than products are exact would help nothing.
    XᵀX times the last block is ``coupling @ gram_block`` outside the space, where ``gram_block`` is orthonormal.
    """

    def __init__(self, X: TallMatrix, capacity: int) -> None:
        self.X = X
        self.size = 0
        self._rows = np.empty((min(capacity, X.columns), X.columns), X.array.dtype)
        self._products = np.empty((len(self._rows), X.rows), X.array.dtype)
        self._projection = np.empty((len(self._rows), len(self._rows)))
        self.gram_block = np.empty((0, X.columns))
        self.coupling: NDArray[Any] = np.empty((0, 0))

    @property
    def Q(self) -> NDArray[Any]:  # noqa: N802 - as in the literature
        """Return the basis (size, columns)."""
        return self._rows[: self.size]

    @property
    def basis(self) -> TallMatrix:
        """Return the basis, to be multiplied by."""
        return rows_of(self.Q, self.X.team)

    @property
    def is_full(self) -> bool:
        """Whether the space has every direction."""
        return self.size == self.X.columns

    def extend(self, block: Floats) -> None:
        """Add an orthonormal block, or as much of it as there are directions left."""
        block = block[: self.X.columns - self.size]
        self._reserve(self.size + len(block))
        old, self.size = self.size, self.size + len(block)
        self._rows[old : self.size] = block
        self._products[old : self.size], gram_block = self.X.apply_gram(block)

        # But for rounding, the blocks before the last two are orthogonal to gram_block, and so are their products.
        last_two = slice(max(0, old - len(block)), self.size)
        self._projection[old : self.size, : self.size] = self._projected(old, last_two)
        self._projection[:old, old : self.size] = self._projection[old : self.size, :old].T
        near = rows_of(self._rows[last_two], self.X.team)
        self.gram_block, self.coupling = orthonormalised(gram_block, self.basis, first=[near])

    @property
    def projection(self) -> Floats:
        """Return Q XᵀX Qᵀ."""
        return self._projection[: self.size, : self.size]

    def _projected(self, start: int, near: slice) -> Floats:
        """Compute rows of the projection from `start` on: what is more than rounding, in `near` columns, in float64.

        They come from products with X: those with XᵀX were rounded next to the largest, which small ones cannot afford.
        """
        new_rows = np.empty((self.size - start, self.size))
        products = rows_of(self._products[: near.start], self.X.team)
        new_rows[:, : near.start] = products.apply(self._products[start : self.size])
        near_products = self._products[near].astype(np.float64)
        new_rows[:, near] = near_products[start - near.start :] @ near_products.T
        return new_rows

    def multiply_by(self, X: TallMatrix) -> None:
        """Go on with the same matrix in another precision."""
        self.X = X
        self._resize(len(self._rows))

    def _reserve(self, size: int) -> None:
        if size > len(self._rows):
            self._resize(max(size, min(2 * len(self._rows), self.X.columns)))

    def _resize(self, capacity: int) -> None:
        self._rows = self._copied(self._rows, np.empty((capacity, self.X.columns), self.X.array.dtype))
        self._products = self._copied(self._products, np.empty((capacity, self.X.rows), self.X.array.dtype))
        self._projection = self._copied(self._projection, np.empty((capacity, capacity)))

    def _copied(self, array: NDArray[Any], into: NDArray[Any]) -> NDArray[Any]:
        """Copy what is in use of an array into a new one; the rest is not touched, and takes no memory yet."""
        into[: self.size, : array.shape[1]] = array[: self.size]
        return into


def orthonormalised(
    block: Floats, *bases: TallMatrix, first: Sequence[TallMatrix] | None = None
) -> tuple[Floats, NDArray[Any]]:
    """Return rows orthonormal to each other and to bases, and L, with L @ rows the part of the block outside of these.

    What lies along bases is removed from the block, along `first` alone if given, and then from orthonormal rows until
    it is little: twice is enough (Giraud et al., Comput. Math. Appl. 50 (2005) 1069), unless only rounding is left of a
    row, which QR completes with a direction of its own. The rows of a basis are orthonormal, and orthogonal to those of
    the others.
    """
    coupling, rows = lq(_outside(block, bases if first is None else first), CHOLESKY_QR_TOL)
    for _ in range(PASSES):
        parts = [Q.apply_gram(rows) for Q in bases]
        rows = rows - sum(inside for _, inside in parts)
        # So far from orthonormal are rows then; what is left along a basis is what was removed times its own rounding.
        if all(np.max(np.sum(along**2, axis=1)) <= Q.eps for (along, _), Q in zip(parts, bases, strict=True)):
            break
        change, rows = lq(rows, CHOLESKY_QR_TOL)
        coupling = coupling @ change
    return rows, coupling


def _outside(block: Floats, bases: Sequence[TallMatrix]) -> Floats:
    """Compute b − b Qᵀ Q, for all bases Q."""
    return block - sum(Q.apply_gram(block)[1] for Q in bases)
