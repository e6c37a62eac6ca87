"""The leading singular values and vectors of one large matrix, by block Krylov iteration."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lowrank_core import thresholds
from lowrank_core.arrays import scaled_to_unit, unscaled_by
from lowrank_core.dense import Decomposition, from_projection, row_factors

__all__ = ["krylov"]

Floats = NDArray[np.float64]

# Vectors in a block and in a probe.
BLOCK = 32
PROBE = 8

# How far from orthonormal Cholesky's method may leave rows for its second time to be enough.
CHOLESKY_HOLDS = 0.1

# The share of a block under which a row is no longer told from rounding, which two passes leave along Q.
NOTHING_LEFT = 1e-8

# The smallest of the values wanted, over the largest, from which a Gram matrix has them to 1e-14·σ₁.
CLOSE_TOGETHER = 0.01

# Sums of squares of float32 entries that say that no product on the way leaves float32's range.
ORDINARY = (1e-20, 1e20)


class _Matrix(NamedTuple):
    """A matrix X with no more columns than rows, as products want it: held as it came, which may be transposed."""

    held: NDArray[Any]
    transposed: bool
    exponent: int

    @property
    def columns(self) -> int:
        return int(self.held.shape[0 if self.transposed else 1])

    @property
    def rows(self) -> int:
        return int(self.held.shape[1 if self.transposed else 0])

    def applied(self, block: Floats) -> tuple[Floats, Floats]:
        """Multiply rows (k, columns) by X, and by XᵀX, in the precision held; in rows, for BLAS reads along memory."""
        given = block.astype(self.held.dtype, copy=False)
        if self.transposed:
            image = given @ self.held
            pulled = np.ascontiguousarray((self.held @ image.T).T)
        elif self.held.nbytes <= thresholds.STAYS_IN_CACHE:
            image = np.ascontiguousarray((self.held @ np.ascontiguousarray(given.T)).T)
            pulled = image @ self.held
        else:
            image, pulled = self._applied_in_one_read(np.ascontiguousarray(given.T))
        return image.astype(np.float64, copy=False), pulled.astype(np.float64, copy=False)

    def _applied_in_one_read(self, given: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
        """Multiply columns by X and by XᵀX, a block of rows after the other, each while it is in cache."""
        rows, columns = self.held.shape
        step = max(1, 2 * thresholds.CACHED_ENTRIES // columns)
        image = np.empty((rows, given.shape[1]), dtype=given.dtype)
        pulled, part = (np.zeros((given.shape[1], columns), dtype=given.dtype) for _ in range(2))
        for start in range(0, rows, step):
            block = self.held[start : start + step]
            found = np.matmul(block, given, out=image[start : start + step])
            pulled += np.matmul(found.T, block, out=part)
        return np.ascontiguousarray(image.T), pulled

    def image(self, basis: Floats) -> tuple[Floats, float]:
        """Give X @ basis (columns, k) and ‖X‖_F², both in float64, converting X in blocks of rows."""
        rows, columns = self.held.shape
        step = max(1, 4 * thresholds.CACHED_ENTRIES // columns)
        energy, image = 0.0, np.zeros((columns if self.transposed else rows, basis.shape[1]))
        for start in range(0, rows, step):
            block = np.asarray(self.held[start : start + step], dtype=np.float64)
            energy += float(np.vdot(block, block))
            if self.transposed:
                image += block.T @ basis[start : start + step]
            else:
                np.matmul(block, basis, out=image[start : start + step])
        return image, energy


def _prepared(matrix: NDArray[Any]) -> tuple[_Matrix, float]:
    """Hold a matrix in the precision of its products, and in their range; with a first estimate of its energy."""
    wide = matrix.shape[0] < matrix.shape[1]
    if matrix.dtype != np.float64:
        held: NDArray[Any] = np.ascontiguousarray(matrix, dtype=np.float32)
        with np.errstate(over="ignore", under="ignore"):
            energy = float(np.sum(np.vecdot(held, held), dtype=np.float64))
        if ORDINARY[0] < energy < ORDINARY[1]:
            return _Matrix(held, wide, 0), energy
    scaled, exponents = scaled_to_unit(matrix)
    held = scaled if matrix.dtype == np.float64 else scaled.astype(np.float32)
    return _Matrix(held, wide, int(exponents[0, 0])), float(np.vdot(scaled, scaled))


def krylov(matrix: NDArray[Any], rank: int, limit: int, seed: int) -> Decomposition | None:
    r"""Leading part by block Krylov iteration; None if `limit` basis vectors do not bring it within what is owed.

    The Krylov space of XᵀX from a Gaussian block is spanned with products in float32 (float64 for float64 input) and
    an orthonormal basis in float64 (Musco and Musco, arXiv:1504.05477, algorithm 2). The answer is X V for the best V
    in that space, in float64: each value is attained by a factorisation in hand, so none is overstated.
    """
    X, estimate = _prepared(matrix)
    basis = _basis(X, rank, limit, estimate, np.random.default_rng(seed))
    if basis is None:
        return None
    image, energy = X.image(basis)
    values, turn = _values_and_turn(image)
    # Rounding must not make what is attained more than there is.
    energy = max(energy, float(np.sum(values[::-1] ** 2)))
    return Decomposition(
        unscaled_by(values, X.exponent, "a singular value of the update"),
        float(unscaled_by(np.sqrt(np.array(energy)), X.exponent, "the norm of the update")),
        lambda r: from_projection(image @ turn[:, :r], basis @ turn[:, :r], X.exponent, wide=X.transposed),
    )


def _values_and_turn(image: Floats) -> tuple[Floats, Floats]:
    """Give the singular values of X V, and the orthogonal matrix that turns V into its right singular vectors."""
    squares, vectors = np.linalg.eigh(image.T @ image)
    if squares[0] >= CLOSE_TOGETHER**2 * squares[-1]:
        return np.sqrt(squares[::-1]), np.ascontiguousarray(vectors[:, ::-1])
    _, values, Wt = np.linalg.svd(image, full_matrices=False)
    return values, Wt.T


class _Space:
    """A search space that grows: an orthonormal basis Q in rows, and QXᵀXQᵀ.

    ``pulled`` is what XᵀX maps the last block to outside the space, as an orthonormal block that ``coupling`` times
    gives it.
    """

    def __init__(self, X: _Matrix, capacity: int) -> None:
        self.X = X
        self.size = 0
        self._rows = np.empty((min(capacity, X.columns), X.columns))
        self._images = np.empty((len(self._rows), X.rows))
        self._squared = np.zeros((len(self._rows), len(self._rows)))
        self.pulled = np.empty((0, X.columns))
        self.coupling: NDArray[Any] = np.empty((0, 0))

    @property
    def Q(self) -> Floats:  # noqa: N802 - as in the literature
        return self._rows[: self.size]

    @property
    def full(self) -> bool:
        return self.size == self.X.columns

    def extend(self, block: Floats) -> None:
        """Add an orthonormal block, or as much of it as there is room for."""
        block = block[: self.X.columns - self.size]
        self._make_room(self.size + len(block))
        old, self.size = self.size, self.size + len(block)
        self._rows[old : self.size] = block
        self._images[old : self.size], pulled = self.X.applied(block)
        # From the images: what XᵀX gave was rounded next to the largest, which the small ones would not survive.
        within = self._images[old : self.size] @ self._images[: self.size].T
        self._squared[old : self.size, : self.size] = within
        self._squared[:old, old : self.size] = within[:, :old].T
        self.pulled, self.coupling = _orthonormal(pulled, self.Q)

    def ritz(self) -> tuple[Floats, Floats]:
        """Give the best approximations to the leading eigenvalues of XᵀX within the space, and their vectors in Q."""
        squares, vectors = np.linalg.eigh(self._squared[: self.size, : self.size])
        return np.maximum(squares[::-1], 0.0), vectors[:, ::-1]

    def _make_room(self, size: int) -> None:
        missing = size - len(self._rows)
        if missing > 0:
            more = max(missing, min(len(self._rows), self.X.columns - len(self._rows)))
            self._rows = np.concatenate([self._rows, np.empty((more, self.X.columns))])
            self._images = np.concatenate([self._images, np.empty((more, self.X.rows))])
            self._squared = np.pad(self._squared, (0, more))


def _orthonormal(block: Floats, Q: Floats) -> tuple[Floats, NDArray[Any]]:
    """Factor what is left of rows outside the span of Q into L and rows orthonormal to each other and to Q.

    Orthogonal to float64 rounding: twice is enough (Giraud et al., Comput. Math. Appl. 50 (2005) 1069), unless nothing
    but rounding was left, which QR fills up with directions of its own; a third pass clears those of Q.
    """
    rest = block - (block @ Q.T) @ Q
    rest -= (rest @ Q.T) @ Q
    basis, coupling = row_factors(rest, CHOLESKY_HOLDS)
    if np.min(np.abs(np.diagonal(coupling))) <= NOTHING_LEFT * np.max(np.abs(block), initial=0.0):
        basis = row_factors(basis - (basis @ Q.T) @ Q, CHOLESKY_HOLDS)[0]
    return basis, coupling


def _basis(X: _Matrix, rank: int, limit: int, energy: float, rng: np.random.Generator) -> Floats | None:
    """Orthonormal (columns, rank) basis of the leading right singular subspace, or None at the limit."""
    space = _Space(X, capacity=min(limit, 4 * rank) + BLOCK + PROBE)

    def fresh(width: int) -> Floats:
        return _orthonormal(rng.standard_normal((width, X.columns)), space.Q)[0]

    space.extend(fresh(min(BLOCK, X.columns)))
    squares, vectors = space.ritz()
    while not space.full:
        if space.size < rank or not _close_enough(space, squares, vectors, rank, energy):
            if space.size >= limit:
                return None
            space.extend(space.pulled)
            if space.size >= rank:
                squares, vectors = space.ritz()
            continue
        # A Krylov space holds no more copies of a repeated value than its block has columns, and leaks nothing that
        # would tell: two steps from a few fresh directions show whether energy was overlooked.
        before = float(np.sum(squares[:rank]))
        space.extend(fresh(PROBE))
        if not space.full:
            space.extend(space.pulled)
        squares, vectors = space.ritz()
        if np.sum(squares[:rank]) - before <= _owed(squares, rank, energy):
            break
        if not space.full:
            space.extend(fresh(BLOCK))
            squares, vectors = space.ritz()
    return np.ascontiguousarray(row_factors(vectors[:, :rank].T @ space.Q, CHOLESKY_HOLDS)[0].T)


def _owed(squares: Floats, rank: int, energy: float) -> float:
    """How much of the leading energy a partial method may miss."""
    head = float(np.sum(squares[:rank]))
    return 1e-4 * min(head, max(energy - head, 1e-6 * energy))


def _close_enough(space: _Space, squares: Floats, vectors: Floats, rank: int, energy: float) -> bool:
    """Estimate by how much the leading energies fall short, and hold it against what is owed."""
    width = len(space.coupling)
    residuals = np.linalg.norm(space.coupling.T @ vectors[-width:, :rank], axis=0)
    # Half a block beyond the last wanted value: energies on either side of it that trade places are not lost.
    following = squares[min(rank + width // 2, len(squares)) - 1]
    # A residual ρ moves an eigenvalue by at most ρ, and by ρ² over the gap where less (Parlett, theorem 11.7.1).
    gaps = np.maximum(squares[:rank] - following, residuals)
    shortfall = np.sum(np.divide(residuals**2, gaps, out=np.zeros_like(gaps), where=gaps > 0))
    return bool(shortfall <= _owed(squares, rank, energy))
