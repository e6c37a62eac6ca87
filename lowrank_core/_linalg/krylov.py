"""The leading singular values and vectors of one large matrix, by block Krylov iteration."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lowrank_core._linalg.dense import Decomposition, from_projection, row_factors
from lowrank_core._linalg.powers_of_two import scaled_to_unit, unscaled_by
from lowrank_core._linalg.threads import Team, blas_threads
from lowrank_core._validation import as_workers

__all__ = ["krylov"]

Floats = NDArray[np.float64]
Singles = NDArray[np.float32]

# Vectors in a block and in a probe.
BLOCK = 32
PROBE = 8

# Rows of the matrix that a thread takes at a time: sums for each are then a sixteenth of the matrix.
PIECE = 512

# Rows that a thread converts to float64 at a time: with fewer, BLAS would spend its time on packing the basis.
CONVERTED = 256

# The share of an energy within which a block's worth of them is looked at for copies that were overlooked.
CROWDED = 0.25

# How far from orthonormal Cholesky's method may leave rows for its second time to be enough.
CHOLESKY_HOLDS = 0.1

# The share of a block under which one pass leaves more along Q than a thousand roundings, and a second is due.
LITTLE_LEFT = 1e-3

# The share of a block under which a row is no longer told from rounding, which two passes leave along Q.
NOTHING_LEFT = 1e-8

# The smallest of the values wanted, over the largest, from which a Gram matrix has them to 1e-14·σ₁.
CLOSE_TOGETHER = 0.01

# How much of a residual may be rounding of the product that it comes from, in eps·σ₁²: where there should be none, the
# largest was 3.8 up to 1,500 × 1,024, and half of them were below 0.5.
ROUNDED = 4.0

# Sums of squares of float32 entries that say that no product on the way leaves float32's range.
ORDINARY = (1e-20, 1e20)


class _Matrix(NamedTuple):
    """A matrix X with no more columns than rows, as products want it: held as it came, which may be transposed.

    With the threads that they are shared out among, at places that the shape alone decides.
    """

    held: NDArray[Any]
    transposed: bool
    exponent: int
    team: Team

    @property
    def columns(self) -> int:
        return int(self.held.shape[0 if self.transposed else 1])

    @property
    def rows(self) -> int:
        return int(self.held.shape[1 if self.transposed else 0])

    def images(self, block: Floats) -> Floats:
        """Multiply rows (k, columns) by X, in the precision held."""
        return self._products(block, twice=False)[0]

    def applied(self, block: Floats) -> tuple[Floats, Floats]:
        """Multiply rows (k, columns) by X, and by XᵀX, in the precision held."""
        return self._products(block, twice=True)

    def _products(self, block: Floats, *, twice: bool) -> tuple[Floats, Floats]:
        from lowrank_core._linalg.kernels.compiling import COMPILED

        given = block.astype(self.held.dtype, copy=False)
        if self.held.dtype == np.float32 and COMPILED:
            image, pulled = _narrow_products(self, given, twice=twice)
        else:
            image = given @ (self.held if self.transposed else self.held.T)
            pulled = image @ (self.held.T if self.transposed else self.held) if twice else image[:, :0]
        return np.asarray(image, np.float64, order="C"), np.asarray(pulled, np.float64, order="C")

    def image(self, basis: Floats) -> tuple[Floats, float]:
        """Give X @ basis (columns, k) and ‖X‖_F², both in float64, converting X in blocks of rows, cut over threads."""
        from lowrank_core._linalg.kernels.compiling import COMPILED

        long = self.held.T if self.transposed else self.held
        image = np.empty((self.rows, basis.shape[1]))
        part = _exact_part if long.dtype == np.float32 and long.flags.c_contiguous and COMPILED else _converted_part
        starts = range(0, self.rows, CONVERTED)
        of_basis = part(basis)
        return image, math.fsum(
            self.team.map(
                lambda start: of_basis(long[start : start + CONVERTED], image[start : start + CONVERTED]), starts
            )
        )


def _converted_part(basis: Floats) -> Callable[[NDArray[Any], Floats], float]:
    """Give a function that fills in the image of some rows, and tells their energy, by BLAS."""

    def fill(rows: NDArray[Any], image: Floats) -> float:
        # In C order whatever came in, as in gram_matrix.
        block = np.ascontiguousarray(rows, dtype=np.float64)
        np.matmul(block, basis, out=image)
        return float(np.vdot(block, block))

    return fill


def _exact_part(basis: Floats) -> Callable[[Singles, Floats], float]:
    """Give one that does so by a kernel, which converts rows in cache: two thirds of the time that BLAS takes."""
    from lowrank_core._linalg.kernels.krylov import FLOAT64_COLUMNS, ROWS, multiply_float64

    columns, rank = basis.shape
    panels = -(-rank // FLOAT64_COLUMNS)
    padded = np.zeros((columns, panels * FLOAT64_COLUMNS))
    padded[:, :rank] = basis
    by_panel = np.ascontiguousarray(padded.reshape(columns, panels, FLOAT64_COLUMNS).swapaxes(0, 1)).ravel()

    def fill(rows: Singles, image: Floats) -> float:
        found = np.zeros((panels, -(-len(rows) // ROWS) * ROWS, FLOAT64_COLUMNS))
        energy = multiply_float64(rows, by_panel, found.ravel())
        image[:] = found[:, : len(rows)].swapaxes(0, 1).reshape(len(rows), -1)[:, :rank]
        return float(energy)

    return fill


def _narrow_products(X: _Matrix, block: Singles, *, twice: bool) -> tuple[Singles, Singles]:
    """Give b Xᵀ and, where asked for, b XᵀX for a block b of rows (k, columns); sums over pieces in their order."""
    from lowrank_core._linalg.kernels.krylov import BOTH, COLUMNS, PLAIN, ROWS, TRANSPOSED, multiply

    rows, columns = X.held.shape
    given = np.zeros((columns, COLUMNS), np.float32)
    images = np.zeros((-(-rows // ROWS) * ROWS, COLUMNS), np.float32)
    (images[:rows] if X.transposed else given)[:, : len(block)] = block.T
    sums = np.zeros((-(-rows // PIECE), given.size), np.float32)

    def products(way: int, given: Singles) -> Singles:
        def piece(start: int) -> None:
            part = slice(start, start + PIECE)
            multiply(X.held[part], given.ravel(), images[part].ravel(), sums[start // PIECE], way)

        X.team.map(piece, range(0, rows, PIECE))
        total: Singles = np.add.reduce(sums, axis=0)
        return total.reshape(given.shape)

    if not X.transposed:
        pulled = products(BOTH if twice else PLAIN, given)
        return images[:rows, : len(block)].T, pulled[:, : len(block)].T
    image = products(TRANSPOSED, given)
    images[:] = 0.0
    if twice:
        products(PLAIN, image)
    return image[:, : len(block)].T, images[:rows, : len(block)].T


def _prepared(matrix: NDArray[Any], team: Team) -> tuple[_Matrix, float]:
    """Hold a matrix in the precision of its products, and in their range; with a first estimate of its energy."""
    wide = matrix.shape[0] < matrix.shape[1]
    if matrix.dtype != np.float64:
        held: NDArray[Any] = np.ascontiguousarray(matrix, dtype=np.float32)
        with np.errstate(over="ignore", under="ignore"):
            energy = float(np.sum(np.vecdot(held, held), dtype=np.float64))
        if ORDINARY[0] < energy < ORDINARY[1]:
            return _Matrix(held, wide, 0, team), energy
    scaled, exponents = scaled_to_unit(matrix)
    held = scaled if matrix.dtype == np.float64 else scaled.astype(np.float32)
    return _Matrix(held, wide, int(exponents), team), float(np.vdot(scaled, scaled))


def krylov(matrix: NDArray[Any], rank: int, limit: int, seed: int) -> Decomposition | None:
    r"""Leading part by block Krylov iteration; None if `limit` basis vectors do not bring it within what is owed.

    The Krylov space of XᵀX from a Gaussian block is spanned with products in float32 (float64 for float64 input) and
    an orthonormal basis in float64 (Musco and Musco, arXiv:1504.05477, algorithm 2). The answer is X V for the best V
    in that space, or a step beyond it, in float64: each value is attained by a factorisation in hand, so none is
    overstated.
    """
    # The threads are its own: those of BLAS would still spin, and wait for work, while they run.
    with blas_threads(1), Team(as_workers(None)) as team:
        X, estimate = _prepared(matrix, team)
        basis = _basis(X, rank, limit, estimate, np.random.default_rng(seed))
        if basis is None:
            return None
        image, energy = X.image(basis)
        values, turn = _values_and_turn(image)
        image, basis = image @ turn, basis @ turn
    # Rounding must not make what is attained more than there is.
    energy = max(energy, float(np.sum(values[::-1] ** 2)))
    return Decomposition(
        unscaled_by(values, X.exponent, "a singular value of the update"),
        float(unscaled_by(np.sqrt(np.array(energy)), X.exponent, "the norm of the update")),
        lambda r: from_projection(image[:, :r], basis[:, :r], X.exponent, wide=X.transposed),
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
        self._ritz: tuple[Floats, Floats] | None = None

    @property
    def Q(self) -> Floats:  # noqa: N802 - as in the literature
        return self._rows[: self.size]

    @property
    def full(self) -> bool:
        return self.size == self.X.columns

    def extend(self, block: Floats, *, solve: bool = True) -> None:
        """Add an orthonormal block, or as much of it as there is room for."""
        block = block[: self.X.columns - self.size]
        self._make_room(self.size + len(block))
        old, self.size = self.size, self.size + len(block)
        self._rows[old : self.size] = block
        self._images[old : self.size], pulled = self.X.applied(block)

        def project() -> None:
            # From the images: what XᵀX gave was rounded next to the largest, which the small ones would not survive.
            within = self._images[old : self.size] @ self._images[: self.size].T
            self._squared[old : self.size, : self.size] = within
            self._squared[:old, old : self.size] = within[:, :old].T
            self._ritz = self._solved() if solve else None

        def look_on() -> None:
            self.pulled, self.coupling = _orthonormal(pulled, self.Q)

        # Neither is large enough to be shared out, but neither waits for the other.
        self.X.team.map(lambda task: task(), [project, look_on])

    def ritz(self) -> tuple[Floats, Floats]:
        """Give the best approximations to the leading eigenvalues of XᵀX within the space, and their vectors in Q."""
        if self._ritz is None:
            self._ritz = self._solved()
        return self._ritz

    def _solved(self) -> tuple[Floats, Floats]:
        squares, vectors = np.linalg.eigh(self._squared[: self.size, : self.size])
        return np.maximum(squares[::-1], 0.0), vectors[:, ::-1]

    def latest(self) -> float:
        """Give the largest energy of a direction within the last block."""
        last = self._squared[: self.size, : self.size][-len(self.coupling) :, -len(self.coupling) :]
        return float(np.linalg.eigvalsh(last)[-1])

    def overlooked(self, squares: Floats, known: int) -> float:
        """Tell how much more the leading energies are with what the space has beyond `known`, and one step from there.

        At least so much, since the directions are orthogonal to those that gave the squares (Ky Fan's theorem).
        """
        images = np.concatenate([self._images[known : self.size], self.X.images(self.pulled)])
        values = np.concatenate([squares, np.linalg.eigvalsh(images @ images.T)])
        return float(np.sum(np.sort(values)[::-1][: len(squares)]) - np.sum(squares))

    def _make_room(self, size: int) -> None:
        missing = size - len(self._rows)
        if missing > 0:
            more = max(missing, min(len(self._rows), self.X.columns - len(self._rows)))
            self._rows = np.concatenate([self._rows, np.empty((more, self.X.columns))])
            self._images = np.concatenate([self._images, np.empty((more, self.X.rows))])
            self._squared = np.pad(self._squared, (0, more))


def _orthonormal(block: Floats, Q: Floats) -> tuple[Floats, NDArray[Any]]:
    """Factor what is left of rows outside the span of Q into L and rows orthonormal to each other and to Q.

    To 1e-13: one pass is enough where enough is left, twice is always (Giraud et al., Comput. Math. Appl. 50 (2005)
    1069), unless nothing but rounding was, which QR fills up with directions of its own; another pass clears those of
    Q.
    """
    rest = block - (block @ Q.T) @ Q
    if np.min(np.linalg.norm(rest, axis=1)) < LITTLE_LEFT * np.max(np.linalg.norm(block, axis=1)):
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

    # The first block is a step away from Gaussian: of as many products, the space lacks but its least useful block.
    _, pulled = X.applied(rng.standard_normal((min(BLOCK, X.columns), X.columns)))
    space.extend(_orthonormal(pulled, space.Q)[0])
    while space.size < rank:
        if space.size >= limit:
            return None
        space.extend(space.pulled)
    squares, vectors = space.ritz()
    while not space.full:
        owed = _owed(squares, rank, energy)
        step, shortfall = _free_step(space, squares, vectors, rank)
        if shortfall > owed:
            if space.size >= limit:
                return None
            space.extend(space.pulled)
        else:
            basis = vectors[:, :rank].T @ space.Q + step @ space.pulled
            if not _crowded(squares[:rank]) or not _more_is_found(space, squares[:rank], owed, fresh):
                return _columns(basis)
        squares, vectors = space.ritz()
    return _columns(vectors[:, :rank].T @ space.Q)


def _columns(basis: Floats) -> Floats:
    """Turn the rows of a basis into orthonormal columns."""
    return np.ascontiguousarray(row_factors(basis, CHOLESKY_HOLDS)[0].T)


def _crowded(squares: Floats) -> bool:
    """Tell whether some value may have more copies than were found: as many as a block has columns lie close together.

    Of a repeated value a Krylov space holds as many copies as its block has columns, if there are so many, and no more.
    """
    apart = squares[: -BLOCK + 1] - squares[BLOCK - 1 :]
    return bool(np.any(apart <= CROWDED * squares[: len(apart)]))


def _more_is_found(space: _Space, squares: Floats, owed: float, fresh: Callable[[int], Floats]) -> bool:
    """Look for energy in a few fresh directions; where there is more than what is owed, the space is given more yet.

    A Krylov space holds no more copies of a repeated value than its block has columns, and leaks nothing that would
    tell: two steps from directions of its own show whether energy was overlooked.
    """
    known = space.size
    space.extend(fresh(PROBE), solve=False)
    if not space.full:
        if space.overlooked(squares, known) <= owed:
            return False
        space.extend(space.pulled)
    if not space.full:
        space.extend(fresh(BLOCK))
    return True


def _owed(squares: Floats, rank: int, energy: float) -> float:
    """How much of the leading energy a partial method may miss."""
    head = float(np.sum(squares[:rank]))
    return 1e-4 * min(head, max(energy - head, 1e-6 * energy))


def _free_step(space: _Space, squares: Floats, vectors: Floats, rank: int) -> tuple[Floats, float]:
    """Give what to add to the leading vectors, in terms of ``pulled``, and estimate what energy is missing after that.

    A residual is a product with XᵀX that is there already: added in the proportion that the shift μ says, it turns a
    vector y into (XᵀX − μ) y / (θ − μ), in which a direction of energy λ keeps (λ − μ) / (θ − μ) of what it had. With
    the shift halfway to the largest energy τ outside the space that is at most τ / (2θ − τ), whichever it is.
    """
    width = len(space.coupling)
    residuals = space.coupling.T @ vectors[-width:, :rank]
    sizes = np.linalg.norm(residuals, axis=0)
    # Half a block beyond the last wanted value: energies on either side of it that trade places are not lost.
    following = squares[min(rank + width // 2, len(squares)) - 1]
    # A residual ρ moves an eigenvalue by at most ρ, and by ρ² over the gap where less (Parlett, theorem 11.7.1).
    before = _over(sizes**2, np.maximum(squares[:rank] - following, sizes))
    # Of a young space the following value says too little: what is outside is about as large as its last block.
    outside = np.minimum(squares[:rank], max(following, space.latest()))
    ahead = squares[:rank] - outside / 2
    # A residual is no less rounded than the product that it comes from, whose rounding would be added with it.
    rounding = ROUNDED * float(np.finfo(space.X.held.dtype).eps) * squares[0]
    after = before * _over(outside / 2, ahead) ** 2 + _over(rounding**2, ahead)
    lengths = np.where(after < before, _over(1.0, ahead), 0.0)
    return (residuals * lengths).T, float(np.sum(np.minimum(before, after)))


def _over(x: Floats | float, y: Floats) -> Floats:
    """Divide, and give 0 where there is nothing to divide by."""
    return np.divide(x, y, out=np.zeros_like(y), where=y > 0)
