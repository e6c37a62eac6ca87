"""The search space of a block Krylov iteration, and the projection of XᵀX on it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lowrank_core._linalg.narrow_products import TallMatrix
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
        self._projection = np.zeros((len(self._rows), len(self._rows)))
        self.gram_block = np.empty((0, X.columns))
        self.coupling: NDArray[Any] = np.empty((0, 0))

    @property
    def Q(self) -> Floats:  # noqa: N802 - as in the literature
        """Return the basis (size, columns)."""
        return self._rows[: self.size]

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

        def project() -> None:
            # From products with X: those with XᵀX were rounded next to the largest, which the small ones cannot afford.
            new_rows = self._products[old : self.size] @ self._products[: self.size].T
            self._projection[old : self.size, : self.size] = new_rows
            self._projection[:old, old : self.size] = new_rows[:, :old].T

        def orthogonalise() -> None:
            self.gram_block, self.coupling = orthonormalised(gram_block, self.Q)

        # Neither is large enough to be divided among threads, but neither needs the other.
        self.X.team.map(lambda task: task(), [project, orthogonalise])

    @property
    def projection(self) -> Floats:
        """Return Q XᵀX Qᵀ."""
        return self._projection[: self.size, : self.size]

    def _reserve(self, size: int) -> None:
        missing = size - len(self._rows)
        if missing > 0:
            more = max(missing, min(len(self._rows), self.X.columns - len(self._rows)))
            self._rows = np.concatenate([self._rows, np.empty((more, self.X.columns))])
            self._products = np.concatenate([self._products, np.empty((more, self.X.rows))])
            self._projection = np.pad(self._projection, (0, more))


def orthonormalised(block: Floats, Q: Floats) -> tuple[Floats, NDArray[Any]]:
    """Return rows orthonormal to each other and to Q, and L, with L @ rows the part of the block outside the span of Q.

    One pass is enough where much of the block is left, two always (Giraud et al., Comput. Math. Appl. 50 (2005) 1069),
    unless only rounding is left of a row: QR completes it with a direction of its own, of which Q is removed again.
    """
    rest = block - (block @ Q.T) @ Q
    if np.min(np.linalg.norm(rest, axis=1)) < REORTHOGONALISE_BELOW * np.max(np.linalg.norm(block, axis=1)):
        rest -= (rest @ Q.T) @ Q
    coupling, basis = lq(rest, CHOLESKY_QR_TOL)
    for _ in range(COMPLETION_PASSES):
        # What is left along Q grows from block to block if it is not removed, as it makes Q itself less orthogonal.
        along = basis @ Q.T
        if np.max(np.abs(along), initial=0.0) <= ORTHOGONAL:
            break
        basis = lq(basis - along @ Q, CHOLESKY_QR_TOL)[1]
    return basis, coupling
