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

# The fraction of a block's length under which one pass leaves more along Q than a thousand roundings.
REORTHOGONALISE_BELOW = 1e-3

# How far from orthogonal to Q rows may be, and passes that bring them there: where the first leaves little but rounding
# of a row, the second or the third does not.
ORTHOGONAL = 1e-13
COMPLETION_PASSES = 4


class SearchSpace:
    """A space that grows by blocks: an orthonormal basis Q in rows, its products Q Xᵀ, and the projection Q XᵀX Qᵀ.

    XᵀX times the last block is ``coupling @ gram_block`` outside the space, where ``gram_block`` is orthonormal.
    """

    def __init__(self, X: TallMatrix, capacity: int) -> None:
        self.X = X
        self.size = 0
        self._rows = np.empty((min(capacity, X.columns), X.columns))
        self._products = np.empty((len(self._rows), X.rows))
        self._projection = np.empty((len(self._rows), len(self._rows)))
        self.gram_block = np.empty((0, X.columns))
        self.coupling: NDArray[Any] = np.empty((0, 0))

    @property
    def Q(self) -> Floats:  # noqa: N802 - as in the literature
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

        # From products with X: those with XᵀX were rounded next to the largest, which the small ones cannot afford.
        new_rows = rows_of(self._products[: self.size], self.X.team).apply(self._products[old : self.size])
        self._projection[old : self.size, : self.size] = new_rows
        self._projection[:old, old : self.size] = new_rows[:, :old].T
        self.gram_block, self.coupling = orthonormalised(gram_block, self.basis)

    @property
    def projection(self) -> Floats:
        """Return Q XᵀX Qᵀ."""
        return self._projection[: self.size, : self.size]

    def _reserve(self, size: int) -> None:
        if size > len(self._rows):
            capacity = max(size, min(2 * len(self._rows), self.X.columns))
            self._rows = self._grown(self._rows, (capacity, self.X.columns))
            self._products = self._grown(self._products, (capacity, self.X.rows))
            self._projection = self._grown(self._projection, (capacity, capacity))

    def _grown(self, array: Floats, shape: tuple[int, int]) -> Floats:
        """Return a larger array with what is in use of one; the rest is not touched, and takes no memory yet."""
        grown = np.empty(shape)
        grown[: self.size, : array.shape[1]] = array[: self.size]
        return grown


def orthonormalised(block: Floats, *bases: TallMatrix) -> tuple[Floats, NDArray[Any]]:
    """Return rows orthonormal to each other and to bases, and L, with L @ rows the part of the block outside of these.

    One pass is enough where much of the block is left, two always (Giraud et al., Comput. Math. Appl. 50 (2005) 1069),
    unless only rounding is left of a row: QR completes it with a direction of its own, of which the bases are removed
    again. The rows of a basis are orthonormal, and orthogonal to those of the others.
    """
    rest = _outside(block, bases)
    if np.min(np.linalg.norm(rest, axis=1)) < REORTHOGONALISE_BELOW * np.max(np.linalg.norm(block, axis=1)):
        rest = _outside(rest, bases)
    coupling, rows = lq(rest, CHOLESKY_QR_TOL)
    for _ in range(COMPLETION_PASSES):
        # What is left along a basis grows from block to block if it is not removed, as it makes the basis itself less
        # orthogonal.
        if all(np.max(np.abs(Q.apply(rows)), initial=0.0) <= ORTHOGONAL for Q in bases):
            break
        rows = lq(_outside(rows, bases), CHOLESKY_QR_TOL)[1]
    return rows, coupling


def _outside(block: Floats, bases: Sequence[TallMatrix]) -> Floats:
    """Compute b − b Qᵀ Q, for all bases Q."""
    return block - sum(Q.apply_gram(block)[1] for Q in bases)
