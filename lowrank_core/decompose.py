"""Which algorithm for which matrix: one decision, in one place, and the decompositions themselves.

The route is chosen by shape and dtype alone, never by batch size or workers, and it fixes the BLAS threads: that is
what keeps a matrix's bits the same in any batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lowrank_core.arrays import as_stack, check_finite, scaled_to_unit, unscaled_by
from lowrank_core.factors import LowRankUpdate
from lowrank_core.threads import blas_threads, in_threads

__all__ = [
    "Decomposition",
    "check_product",
    "choose_route",
    "decompose",
    "decompose_product",
    "krylov_seed",
    "map_batch",
    "product_values",
    "singular_values",
]

Floats = NDArray[np.float64]

METHODS = ("auto", "direct", "gram", "krylov")
PRODUCT_METHODS = ("auto", "direct", "gram")

# Matrices of at most this many entries are decomposed eight together by a kernel of our own, which takes a matrix
# through with as many others as there are lanes: alone it costs up to twice LAPACK's time, in a batch a third of it.
SMALL_ENTRIES = 64 * 64

# A matrix with a smaller side beyond this is decomposed alone, on BLAS's own threads; up to it, a batch is cut over
# workers with one BLAS thread each, since BLAS gains little from threads on so small a matrix.
LARGE = 512

# Block Krylov reads the matrix a few dozen times at the speed of a matrix product; below these it does not pay.
KRYLOV_SMALLEST_SIDE = 1024
KRYLOV_LARGEST_FRACTION = 1 / 16

# Vectors in a block and in a probe, and the share of the smaller side at which "auto" goes to the Gram route instead.
KRYLOV_BLOCK = 32
KRYLOV_PROBE = 8
KRYLOV_GIVES_UP = 4

# A product with σ₁ under this share of ‖B‖₂‖A‖₂ has cancelled. The Gram route errs by 1.5e-8·‖B‖₂‖A‖₂ where a singular
# value is zero, so that from 0.125 on it stays within eps32·σ₁; independent factors lie near ½.
CANCELLED = 0.125

# Entries converted to float64 at a time: 8 MiB, which stays in the outer cache beside the Gram matrix.
BLOCK_ENTRIES = 2**20

# Matrices that the kernel for small ones takes together.
LANES = 8

# Multiplications below which starting threads costs more than they save (about a millisecond's worth).
THREAD_WORTHY = 2**22


class Decomposition(NamedTuple):
    """A matrix decomposed: its leading values, its whole norm, and its factors B = U_r Σ_r, A = V_rᵀ at any rank r."""

    values: Floats
    norm: float
    factors: Callable[[int], tuple[Floats, Floats]]


def choose_route(method: str, dtype: str, shape: tuple[int, int], rank: int | None) -> str:
    """Name the route for a dense matrix.

    Parameters
    ----------
    method : {"auto", "direct", "gram", "krylov"}
    dtype : str
        The dtype that the matrix was stored in.
    shape : (m, n)
    rank : int or None
        How many leading values are wanted; None for all.

    Returns
    -------
    {"direct", "gram", "krylov"}

    Raises
    ------
    ValueError
        If the method is not known, or krylov is asked for all singular values.
    """
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}; accepted are {', '.join(METHODS)}.")
    if method == "krylov" and rank is None:
        raise ValueError("method 'krylov' finds leading singular values only; give rank=k, or use 'auto'.")
    if method != "auto":
        return method
    if dtype == "float64":
        # A Gram matrix squares the condition: values under 1e-8·σ₁ are lost, which only float32 data can afford.
        return "direct"
    if shape[0] * shape[1] <= SMALL_ENTRIES:
        return "direct"
    smaller = min(shape)
    if rank is not None and smaller >= KRYLOV_SMALLEST_SIDE and rank <= KRYLOV_LARGEST_FRACTION * smaller:
        return "krylov-or-gram"
    return "gram"


def map_batch(
    function: Callable[[slice], Any], count: int, shape: tuple[int, int], workers: int, together: int = 1
) -> list[Any]:
    """Map `function` over slices of a batch, under the BLAS threads that the matrices' shape asks for.

    A slice but for the last holds a multiple of `together` matrices.
    """
    if min(shape) > LARGE:
        with blas_threads(None):
            return [function(slice(i, i + 1)) for i in range(count)]
    entries, work = shape[0] * shape[1], shape[0] * shape[1] * min(shape)
    worth = workers if count * work >= THREAD_WORTHY else 1
    # Several chunks a worker even out their times; a chunk's float64 copy is the working set of its worker.
    chunk = max(1, min(BLOCK_ENTRIES // entries, -(-count // (4 * worth))))
    chunk = -(-chunk // together) * together
    slices = [slice(start, min(start + chunk, count)) for start in range(0, count, chunk)]
    with blas_threads(1):
        return in_threads(function, slices, worth)


def singular_values(
    matrices: NDArray[Any], route: str, rank: int | None, workers: int, rng: Any
) -> tuple[Floats, Floats]:
    """Find singular values (..., q) and Frobenius norms (...) of a stack of finite dense matrices."""
    batch, shape = matrices.shape[:-2], (matrices.shape[-2], matrices.shape[-1])
    flat = as_stack(matrices, 2)
    wanted = min(shape) if rank is None else rank
    if route == "gram" and min(shape) <= LARGE:
        values, norms = _medium_gram_values(flat, workers)
        return np.ascontiguousarray(values[:, :wanted]).reshape(*batch, wanted), norms.reshape(batch)
    seed = krylov_seed(rng)
    small = route == "direct" and shape[0] * shape[1] <= SMALL_ENTRIES
    values, norms = np.empty((len(flat), wanted)), np.empty(len(flat))

    def fill(chunk: slice) -> None:
        if small:
            found, norm = _small_values(flat[chunk])
        elif route == "direct":
            found, norm = _direct_values(flat[chunk])
        elif route == "gram":
            found, norm = _gram_values(flat[chunk])
        else:
            parts = [decompose(matrix, route, wanted, seed) for matrix in flat[chunk]]
            found, norm = np.stack([part.values for part in parts]), np.array([part.norm for part in parts])
        values[chunk], norms[chunk] = found[:, :wanted], norm

    map_batch(fill, len(flat), shape, workers, LANES if small else 1)
    return values.reshape(*batch, wanted), norms.reshape(batch)


def decompose(matrix: NDArray[Any], route: str, rank: int | None, seed: int) -> Decomposition:
    """Decompose one finite matrix so that its factors can be had at any rank (up to `rank`, for krylov)."""
    if route == "direct":
        return _direct(matrix)
    if route == "gram":
        return _gram(matrix)
    limit = min(matrix.shape) // (1 if route == "krylov" else KRYLOV_GIVES_UP)
    found = _krylov(matrix, max(1, min(matrix.shape) if rank is None else rank), limit, seed)
    return _gram(matrix) if found is None else found


def _direct_values(matrices: NDArray[Any]) -> tuple[Floats, Floats]:
    scaled, exponents = scaled_to_unit(matrices)
    return _values_and_norms(np.linalg.svd(scaled, compute_uv=False), exponents[..., 0, 0])


def _small_values(matrices: NDArray[Any]) -> tuple[Floats, Floats]:
    from lowrank_core.kernels.small import small_values

    copied = np.require(matrices, np.float64, ["C", "W"])
    values = np.empty((len(copied), min(copied.shape[1:])))
    exponents = np.empty(len(copied), dtype=np.int64)
    if small_values(copied, values, exponents):
        left = np.flatnonzero(np.isnan(values[:, 0]))
        values[left] = np.linalg.svd(np.ldexp(copied[left], -exponents[left, np.newaxis, np.newaxis]), compute_uv=False)
    return _values_and_norms(values, exponents)


def _values_and_norms(values: NDArray[Any], exponents: NDArray[np.int64]) -> tuple[Floats, Floats]:
    """Multiply by 2^exponents again, and take the norms from the small end."""
    return (
        unscaled_by(values, exponents[:, np.newaxis], "a singular value of the update"),
        unscaled_by(np.sqrt(np.sum(values[:, ::-1] ** 2, axis=-1)), exponents, "the norm of the update"),
    )


def _direct(matrix: NDArray[Any]) -> Decomposition:
    scaled, exponents = scaled_to_unit(matrix)
    exponent = int(exponents[0, 0])
    U, values, Vt = np.linalg.svd(scaled, full_matrices=False)
    return Decomposition(
        unscaled_by(values, exponent, "a singular value of the update"),
        float(unscaled_by(np.sqrt(np.sum(values[::-1] ** 2)), exponent, "the norm of the update")),
        lambda r: (np.ldexp(U[:, :r] * values[:r], exponent), Vt[:r].copy()),
    )


def _unit_range(matrices: NDArray[Any]) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Bring matrices into the range where float64 can square them; exponents of shape (...)."""
    if matrices.dtype != np.float64:
        # Squares of float32 and below always fit, so only float64 pays for a scaled copy.
        return matrices, np.zeros(matrices.shape[:-2], dtype=np.int64)
    scaled, exponents = scaled_to_unit(matrices)
    return scaled, exponents[..., 0, 0]


def _gram_matrix(matrices: NDArray[Any], *, of_rows: bool) -> Floats:
    """Form X Xᵀ (of rows) or Xᵀ X in float64, stacks too, in blocks along the other side where X is large."""
    rows, columns = matrices.shape[-2:]
    size, length = (rows, columns) if of_rows else (columns, rows)
    # A block of a quarter of a square matrix: narrower ones would spend the time on adding up Gram matrices.
    step = length if size * length <= BLOCK_ENTRIES else max(BLOCK_ENTRIES // size, -(-size // 4))
    gram: Floats | None = None
    for start in range(0, length, step):
        chosen = matrices[..., :, start : start + step] if of_rows else matrices[..., start : start + step, :]
        # In C order whatever came in: BLAS rounds other layouts otherwise, and a batch must change nothing.
        block = np.ascontiguousarray(chosen, dtype=np.float64)
        across = np.swapaxes(block, -1, -2)
        part = block @ across if of_rows else across @ block
        gram = part if gram is None else np.add(gram, part, out=gram)
    assert gram is not None  # noqa: S101 - matrices are never empty, and mypy cannot know
    return gram


def _gram_values(matrices: NDArray[Any]) -> tuple[Floats, Floats]:
    scaled, exponents = _unit_range(matrices)
    gram = _gram_matrix(scaled, of_rows=matrices.shape[-2] < matrices.shape[-1])
    values = np.sqrt(np.maximum(np.linalg.eigvalsh(gram), 0.0))[..., ::-1]
    norms = np.sqrt(np.trace(gram, axis1=-2, axis2=-1))
    return (
        unscaled_by(values, exponents[..., np.newaxis], "a singular value of the update"),
        unscaled_by(norms, exponents, "the norm of the update"),
    )


def _medium_gram_values(matrices: NDArray[Any], workers: int) -> tuple[Floats, Floats]:
    """Find singular values (count, p) and norms (count,) through kernels: one matrix at a time, then several."""
    from lowrank_core.kernels.gram import tridiagonal_values, tridiagonals

    count, m, n = matrices.shape
    p = min(m, n)
    diagonals, squares, values = np.empty((count, p)), np.empty((count, p)), np.empty((count, p))
    norms, exponents, halves = np.empty(count), np.empty(count, dtype=np.int64), np.empty(count, dtype=np.int64)

    def reduce(chunk: slice) -> None:
        scaled, exponents[chunk] = _unit_range(matrices[chunk])
        gram = _gram_matrix(scaled, of_rows=m < n)
        norms[chunk] = np.sqrt(np.trace(gram, axis1=-2, axis2=-1))
        tridiagonals(gram, diagonals[chunk], squares[chunk], halves[chunk])

    def solve(chunk: slice) -> None:
        if tridiagonal_values(diagonals[chunk], squares[chunk], values[chunk]):
            for i in chunk.start + np.flatnonzero(np.isnan(values[chunk, 0])):
                values[i] = np.ldexp(_gram_values(matrices[i : i + 1])[0][0], -exponents[i] - halves[i])

    map_batch(reduce, count, (m, n), workers)
    map_batch(solve, count, (p, p), workers, LANES)
    return (
        unscaled_by(values, (exponents + halves)[:, np.newaxis], "a singular value of the update"),
        unscaled_by(norms, exponents, "the norm of the update"),
    )


def _gram(matrix: NDArray[Any]) -> Decomposition:
    wide = matrix.shape[0] < matrix.shape[1]
    scaled, exponents = _unit_range(matrix)
    exponent = int(exponents)
    gram = _gram_matrix(scaled, of_rows=wide)
    squares, vectors = np.linalg.eigh(gram)
    descending = vectors[:, ::-1]

    def factors(r: int) -> tuple[Floats, Floats]:
        basis = np.ascontiguousarray(descending[:, :r])
        return _from_projection(_times(scaled.T if wide else scaled, basis), basis, exponent, wide=wide)

    return Decomposition(
        unscaled_by(np.sqrt(np.maximum(squares, 0.0))[::-1], exponent, "a singular value of the update"),
        float(unscaled_by(np.sqrt(np.trace(gram)), exponent, "the norm of the update")),
        factors,
    )


def _from_projection(image: Floats, basis: Floats, exponent: int, *, wide: bool) -> tuple[Floats, Floats]:
    """Turn image = X @ basis, of orthogonal columns, into B = U Σ and A = Vᵀ of X, or of its transpose (wide)."""
    if not wide:
        return np.ldexp(image, exponent), basis.T.copy()
    sizes = np.linalg.norm(image, axis=0)
    directions = np.divide(image, sizes, out=np.zeros_like(image), where=sizes > 0)
    return np.ldexp(basis * sizes, exponent), directions.T.copy()


def _times(matrix: NDArray[Any], basis: Floats) -> Floats:
    """Multiply in float64, converting the matrix in blocks of rows."""
    step = max(1, BLOCK_ENTRIES // matrix.shape[1])
    blocks = range(0, len(matrix), step)
    return np.concatenate(
        [np.ascontiguousarray(matrix[start : start + step], dtype=np.float64) @ basis for start in blocks]
    )


def krylov_seed(rng: Any) -> int:
    """Draw the seed that every matrix of a call starts from, so that a shared generator cannot tell them apart."""
    return int(np.random.default_rng(rng).integers(2**63))


def _krylov(matrix: NDArray[Any], rank: int, limit: int, seed: int) -> Decomposition | None:
    r"""Leading part by block Krylov iteration; None if `limit` basis vectors do not bring it within what is owed.

    The Krylov space of XᵀX from a Gaussian block is spanned with products in float32 (float64 for float64 input) and
    an orthonormal basis in float64 (Musco and Musco, arXiv:1504.05477, algorithm 2). The answer is X V for the best V
    in that space, in float64: each value is attained by a factorisation in hand, so none is overstated.
    """
    wide = matrix.shape[0] < matrix.shape[1]
    scaled, exponents = scaled_to_unit(matrix.T if wide else matrix)
    exponent = int(exponents[0, 0])
    working = scaled if matrix.dtype == np.float64 else scaled.astype(np.float32)
    energy = float(np.sum(scaled**2))
    basis = _krylov_basis(working, rank, limit, energy, np.random.default_rng(seed))
    if basis is None:
        return None
    U, values, Wt = np.linalg.svd(scaled @ basis, full_matrices=False)
    right = basis @ Wt.T
    return Decomposition(
        unscaled_by(values, exponent, "a singular value of the update"),
        float(unscaled_by(np.sqrt(np.array(energy)), exponent, "the norm of the update")),
        lambda r: _from_projection(U[:, :r] * values[:r], right[:, :r], exponent, wide=wide),
    )


class _Subspace(NamedTuple):
    """A growing search space: its orthonormal basis Q, X Q, Ritz values and vectors, and how the space leaks.

    ``pulled`` is what XᵀX maps the last block to outside the space, as an orthonormal block times ``coupling``.
    """

    Q: Floats
    image: Floats
    squares: Floats
    vectors: Floats
    pulled: Floats
    coupling: Floats


def _orthonormal(block: Floats, Q: Floats) -> tuple[Floats, Floats]:
    """QR of what is left of a block outside the span of Q, orthogonal to Q to float64 rounding."""
    # Twice is enough (Giraud et al., Comput. Math. Appl. 50 (2005) 1069), unless nothing but rounding was left: QR
    # then fills up with directions of its own, which a third pass clears of Q.
    for _ in range(2):
        block = block - Q @ (Q.T @ block)
    basis, coupling = np.linalg.qr(block)
    basis = np.linalg.qr(basis - Q @ (Q.T @ basis))[0]
    return basis, coupling


def _extended(working: NDArray[Any], space: _Subspace | None, block: Floats) -> _Subspace:
    """Add an orthonormal block to the space."""
    room = working.shape[1] - (0 if space is None else space.Q.shape[1])
    block = block[:, :room]
    image = (working @ block.astype(working.dtype)).astype(np.float64)
    pulled = (working.T @ image.astype(working.dtype)).astype(np.float64)
    Q = block if space is None else np.hstack([space.Q, block])
    image = image if space is None else np.hstack([space.image, image])
    squares, vectors = np.linalg.eigh(image.T @ image)
    return _Subspace(Q, image, squares[::-1], vectors[:, ::-1], *_orthonormal(pulled, Q))


def _krylov_basis(
    working: NDArray[Any], rank: int, limit: int, energy: float, rng: np.random.Generator
) -> Floats | None:
    """Orthonormal (n, rank) float64 basis of the leading right singular subspace, or None at the limit."""
    columns = working.shape[1]

    def fresh(width: int, Q: Floats) -> Floats:
        return _orthonormal(rng.standard_normal((columns, width)), Q)[0]

    space = _extended(working, None, fresh(min(KRYLOV_BLOCK, columns), np.empty((columns, 0))))
    while space.Q.shape[1] < columns:
        if space.Q.shape[1] < rank or not _close_enough(space, rank, energy):
            if space.Q.shape[1] >= limit:
                return None
            space = _extended(working, space, space.pulled)
            continue
        # A Krylov space holds no more copies of a repeated value than its block has columns, and leaks nothing that
        # would tell: two steps from a few fresh directions show whether energy was overlooked.
        probed = _extended(working, space, fresh(KRYLOV_PROBE, space.Q))
        if probed.Q.shape[1] < columns:
            probed = _extended(working, probed, probed.pulled)
        overlooked = np.sum(probed.squares[:rank]) - np.sum(space.squares[:rank])
        space = probed
        if overlooked <= _owed(space, rank, energy):
            break
        if space.Q.shape[1] < columns:
            space = _extended(working, space, fresh(KRYLOV_BLOCK, space.Q))
    return np.linalg.qr(space.Q @ space.vectors[:, :rank])[0]


def _owed(space: _Subspace, rank: int, energy: float) -> float:
    """How much of the leading energy a partial method may miss."""
    head = float(np.sum(space.squares[:rank]))
    return 1e-4 * min(head, max(energy - head, 1e-6 * energy))


def _close_enough(space: _Subspace, rank: int, energy: float) -> bool:
    """Estimate by how much the leading energies fall short, and hold it against what is owed."""
    width = space.coupling.shape[1]
    residuals = np.linalg.norm(space.coupling @ space.vectors[-width:, :rank], axis=0)
    # Half a block beyond the last wanted value: energies on either side of it that trade places are not lost.
    following = space.squares[min(rank + width // 2, len(space.squares)) - 1]
    # A residual ρ moves an eigenvalue by at most ρ, and by ρ² over the gap where less (Parlett, theorem 11.7.1).
    gaps = np.maximum(space.squares[:rank] - following, residuals)
    shortfall = np.sum(np.divide(residuals**2, gaps, out=np.zeros_like(gaps), where=gaps > 0))
    return bool(shortfall <= _owed(space, rank, energy))


def check_product(update: LowRankUpdate, method: str) -> None:
    """Raise a ValueError if a factor has an entry that is not finite, or the method is not one for products."""
    if method not in PRODUCT_METHODS:
        raise ValueError(f"method {method!r} is not for a LowRankUpdate; accepted are {', '.join(PRODUCT_METHODS)}.")
    if update.rank:
        check_finite(update.B, "B")
        check_finite(update.A, "A")


def product_values(update: LowRankUpdate, method: str, workers: int) -> tuple[Floats, Floats]:
    """Find singular values (..., min(r, m, n)) and norms (...) of γBA through an r × r core; B·A is never formed.

    Raises
    ------
    ValueError
        If the method is krylov, an entry is not finite, or a value does not fit float64.
    """
    *batch, m, n = update.shape
    rank = update.rank
    B = as_stack(np.broadcast_to(update.B, (*batch, m, rank)), 2)
    A = as_stack(np.broadcast_to(update.A, (*batch, rank, n)), 2)
    check_product(update, method)
    # With a rank beyond both sides the r × r core would be larger than the factors themselves; QR's is m × n.
    gram = (method == "gram" or (method == "auto" and update.dtype != "float64")) and rank <= max(m, n)
    wanted = min(rank, m, n)
    values = np.zeros((len(B), wanted))
    exponents = np.zeros((len(B), 1), dtype=np.int64)

    def fill(chunk: slice) -> None:
        if gram:
            values[chunk], exponents[chunk] = _gram_core_values(B[chunk], A[chunk], wanted)
        else:
            values[chunk], exponents[chunk] = _qr_core_values(B[chunk], A[chunk], wanted)

    if rank and len(B):
        map_batch(fill, len(B), (m + n, rank), workers)
    scale, scale_exponent = np.frexp(abs(update.scaling))
    values *= scale
    exponents += int(scale_exponent)
    norms = np.sqrt(np.sum(values[:, ::-1] ** 2, axis=-1))
    return (
        unscaled_by(values, exponents, "a singular value of the update").reshape(*batch, wanted),
        unscaled_by(norms, exponents[:, 0], "the norm of the update").reshape(batch),
    )


def _qr_core_values(B: NDArray[Any], A: NDArray[Any], wanted: int) -> tuple[Floats, NDArray[np.int64]]:
    B_scaled, B_exponents = scaled_to_unit(B)
    A_scaled, A_exponents = scaled_to_unit(A)
    R_B = np.linalg.qr(B_scaled, mode="r")
    R_A = np.linalg.qr(np.swapaxes(A_scaled, -1, -2), mode="r")
    core, core_exponents = scaled_to_unit(R_B @ np.swapaxes(R_A, -1, -2))
    values = np.linalg.svd(core, compute_uv=False)[..., :wanted].astype(np.float64, copy=False)
    return values, (B_exponents + A_exponents + core_exponents)[..., 0]


def _gram_core_values(B: NDArray[Any], A: NDArray[Any], wanted: int) -> tuple[Floats, NDArray[np.int64]]:
    B_unit, B_exponents = _unit_range(B)
    A_unit, A_exponents = _unit_range(A)
    B_gram, A_gram = _gram_matrix(B_unit, of_rows=False), _gram_matrix(A_unit, of_rows=True)
    # ‖b_i‖ = ‖a_i‖ up to a power of two: unbalanced columns would drown the small ones (49 eps32·σ₁, balanced 1e-8).
    # A component that is zero on one side is zero.
    B_squares = np.diagonal(B_gram, axis1=-2, axis2=-1)
    A_squares = np.diagonal(A_gram, axis1=-2, axis2=-1)
    lives = (B_squares > 0) & (A_squares > 0)
    B_sizes = np.where(lives, np.frexp(B_squares)[1] // 2, 0)
    A_sizes = np.where(lives, np.frexp(A_squares)[1] // 2, 0)
    largest = np.max(B_sizes + A_sizes, axis=-1, keepdims=True)
    half = (B_sizes + A_sizes - largest) // 2
    B_core = _rescaled(B_gram, half - B_sizes, lives)
    A_core = _rescaled(A_gram, (B_sizes + A_sizes - largest - half) - A_sizes, lives)
    squares, vectors = np.linalg.eigh(A_core)
    # G_A = S Sᵀ by its eigenvectors: factors may be deficient or padded with zeros, so no Cholesky.
    S = vectors * np.sqrt(np.maximum(squares, 0.0))[..., np.newaxis, :]
    core = np.swapaxes(S, -1, -2) @ B_core @ S
    values = np.sqrt(np.maximum(np.linalg.eigvalsh(core), 0.0))[..., ::-1][..., :wanted]
    exponents = largest + (B_exponents + A_exponents)[..., np.newaxis]
    # The largest row sum bounds ‖B‖₂² without another decomposition, and closely unless the columns are many and alike.
    bound = np.sqrt(np.max(np.sum(np.abs(B_core), axis=-1), axis=-1) * squares[..., -1])
    cancelled = (values[..., 0] < CANCELLED * bound) & (bound > 0)
    values, exponents = np.ascontiguousarray(values), np.ascontiguousarray(exponents)
    for i in np.flatnonzero(cancelled):
        # The difference of two near-equal adapters: a Gram matrix keeps half the digits, QR keeps them all.
        one = slice(i, i + 1)
        values[one], exponents[one] = _qr_core_values(B[one], A[one], wanted)
    return values, exponents


def _rescaled(gram: Floats, shifts: NDArray[Any], lives: NDArray[np.bool_]) -> Floats:
    """Multiply row and column i of a Gram matrix by 2^shift_i; components that are zero drop out."""
    both = lives[..., :, np.newaxis] & lives[..., np.newaxis, :]
    shifted: Floats = np.where(both, np.ldexp(gram, shifts[..., :, np.newaxis] + shifts[..., np.newaxis, :]), 0.0)
    return shifted


def decompose_product(B: NDArray[Any], A: NDArray[Any], scaling: float) -> Decomposition:
    """Decompose one γBA through QR of both factors and an SVD of the core, with its vectors."""
    B_scaled, B_exponents = scaled_to_unit(B)
    A_scaled, A_exponents = scaled_to_unit(A)
    Q_B, R_B = np.linalg.qr(B_scaled)
    Q_A, R_A = np.linalg.qr(A_scaled.T)
    core, core_exponents = scaled_to_unit(R_B @ R_A.T)
    scale, scale_exponent = np.frexp(scaling)
    exponent = int((B_exponents + A_exponents + core_exponents)[0, 0]) + int(scale_exponent)
    U, values, Vt = np.linalg.svd(core * scale, full_matrices=False)
    return Decomposition(
        unscaled_by(values, exponent, "a singular value of the update"),
        float(unscaled_by(np.sqrt(np.sum(values[::-1] ** 2)), exponent, "the norm of the update")),
        lambda r: (np.ldexp(Q_B @ (U[:, :r] * values[:r]), exponent), Vt[:r] @ Q_A.T),
    )
