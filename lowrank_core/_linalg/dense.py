"""The decompositions of dense matrices that find every singular value, and how a batch of them is cut up."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lowrank_core._linalg import thresholds
from lowrank_core._linalg.band import gram_eigenvalues
from lowrank_core._linalg.powers_of_two import scaled_to_squares, scaled_to_unit, unscaled_by
from lowrank_core._linalg.threads import blas_threads, in_threads

__all__ = [
    "Decomposition",
    "blas_threads_of",
    "direct",
    "direct_values",
    "from_projection",
    "gram",
    "gram_matrix",
    "gram_values",
    "large_gram_values",
    "map_batch",
    "medium_gram_values",
    "row_factors",
    "small_values_of",
]

Floats = NDArray[np.float64]


class Decomposition(NamedTuple):
    """A matrix decomposed: its leading values, its whole norm, and its factors B = U_r Σ_r, A = V_rᵀ at any rank r."""

    values: Floats
    norm: float
    factors: Callable[[int], tuple[Floats, Floats]]


def blas_threads_of(shape: tuple[int, int]) -> int | None:
    """Give the BLAS threads for a matrix: one, or for a large one all that the process allows BLAS (None)."""
    return None if min(shape) > thresholds.LARGE else 1


def map_batch(
    function: Callable[[slice], Any],
    count: int,
    shape: tuple[int, int],
    workers: int,
    together: int = 1,
    *,
    holds_blas: bool = False,
) -> list[Any]:
    """Map `function` over slices of a batch, under the BLAS threads that the matrices' shape asks for.

    A slice but for the last holds a multiple of `together` matrices. A function that holds BLAS's threads itself is
    left to do so.
    """
    threads = blas_threads_of(shape)
    if threads is None:
        with nullcontext() if holds_blas else blas_threads(threads):
            return [function(slice(i, i + 1)) for i in range(count)]
    entries, work = shape[0] * shape[1], shape[0] * shape[1] * min(shape)
    worth = workers if count * work >= thresholds.THREAD_WORTHY else 1
    # Several chunks a worker even out their times; a chunk's float64 copy is the working set of its worker.
    chunk = max(1, min(thresholds.BLOCK_ENTRIES // entries, -(-count // (4 * worth))))
    chunk = -(-chunk // together) * together
    slices = [slice(start, min(start + chunk, count)) for start in range(0, count, chunk)]
    with nullcontext() if holds_blas else blas_threads(threads):
        return in_threads(function, slices, worth)


def direct_values(matrices: NDArray[Any]) -> tuple[Floats, Floats]:
    """Find singular values and norms of a stack by LAPACK's SVD, in float64."""
    scaled, exponents = scaled_to_unit(matrices)
    return _values_and_norms(np.linalg.svd(scaled, compute_uv=False), exponents)


def small_values_of(matrices: NDArray[Any]) -> tuple[Floats, Floats]:
    """Find them by the kernel that takes several matrices together, with LAPACK behind it."""
    from lowrank_core._linalg.kernels.small import small_values

    copied = np.require(matrices, np.float64, ["C", "W"])
    values = np.empty((len(copied), min(copied.shape[1:])))
    exponents = np.empty(len(copied), dtype=np.int64)
    if small_values(copied, values, exponents):
        left = np.flatnonzero(np.isnan(values[:, 0]))
        scaled = np.ldexp(copied[left], -exponents[left, np.newaxis, np.newaxis])
        with blas_threads(1):
            values[left] = np.linalg.svd(scaled, compute_uv=False)
    return _values_and_norms(values, exponents)


def _values_and_norms(values: NDArray[Any], exponents: NDArray[np.int64]) -> tuple[Floats, Floats]:
    """Multiply by 2^exponents again, and take the norms from the small end."""
    return (
        unscaled_by(values, exponents[:, np.newaxis], "a singular value of the update"),
        unscaled_by(np.sqrt((values[:, ::-1] ** 2).sum(axis=-1)), exponents, "the norm of the update"),
    )


def direct(matrix: NDArray[Any]) -> Decomposition:
    """Decompose one matrix by LAPACK's SVD."""
    scaled, exponents = scaled_to_unit(matrix)
    exponent = int(exponents)
    U, values, Vt = np.linalg.svd(scaled, full_matrices=False)
    return Decomposition(
        unscaled_by(values, exponent, "a singular value of the update"),
        float(unscaled_by(np.sqrt(np.sum(values[::-1] ** 2)), exponent, "the norm of the update")),
        lambda r: (np.ldexp(U[:, :r] * values[:r], exponent), Vt[:r].copy()),
    )


def gram_matrix(matrices: NDArray[Any], *, of_rows: bool) -> Floats:
    """Form X Xᵀ (of rows) or Xᵀ X in float64, stacks too, in blocks along the other side where X is large."""
    rows, columns = matrices.shape[-2:]
    size, length = (rows, columns) if of_rows else (columns, rows)
    # A block of a quarter of a square matrix: narrower ones would spend the time on adding up Gram matrices.
    step = length if size * length <= thresholds.BLOCK_ENTRIES else max(thresholds.BLOCK_ENTRIES // size, -(-size // 4))
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


def gram_values(matrices: NDArray[Any]) -> tuple[Floats, Floats]:
    """Find singular values and norms of a stack by LAPACK's eigenvalues of Gram matrices."""
    scaled, exponents = scaled_to_squares(matrices)
    gram = gram_matrix(scaled, of_rows=matrices.shape[-2] < matrices.shape[-1])
    values = np.sqrt(np.maximum(np.linalg.eigvalsh(gram), 0.0))[..., ::-1]
    norms = np.sqrt(np.trace(gram, axis1=-2, axis2=-1))
    return (
        unscaled_by(values, exponents[..., np.newaxis], "a singular value of the update"),
        unscaled_by(norms, exponents, "the norm of the update"),
    )


def medium_gram_values(matrices: NDArray[Any], workers: int) -> tuple[Floats, Floats]:
    """Find singular values (count, p) and norms (count,) through kernels: one matrix at a time, then several."""
    from lowrank_core._linalg.kernels.gram import tridiagonal_values, tridiagonals

    count, m, n = matrices.shape
    p = min(m, n)
    diagonals, squares, values = np.empty((count, p)), np.empty((count, p)), np.empty((count, p))
    norms, exponents, halves = np.empty(count), np.empty(count, dtype=np.int64), np.empty(count, dtype=np.int64)

    def reduce(chunk: slice) -> None:
        scaled, exponents[chunk] = scaled_to_squares(matrices[chunk])
        gram = gram_matrix(scaled, of_rows=m < n)
        norms[chunk] = np.sqrt(np.trace(gram, axis1=-2, axis2=-1))
        tridiagonals(gram, diagonals[chunk], squares[chunk], halves[chunk])

    def solve(chunk: slice) -> None:
        if tridiagonal_values(diagonals[chunk], squares[chunk], values[chunk]):
            for i in chunk.start + np.flatnonzero(np.isnan(values[chunk, 0])):
                values[i] = np.ldexp(gram_values(matrices[i : i + 1])[0][0], -exponents[i] - halves[i])

    map_batch(reduce, count, (m, n), workers)
    map_batch(solve, count, (p, p), workers, thresholds.LANES)
    return (
        unscaled_by(values, (exponents + halves)[:, np.newaxis], "a singular value of the update"),
        unscaled_by(norms, exponents, "the norm of the update"),
    )


def large_gram_values(matrices: NDArray[Any], workers: int) -> tuple[Floats, Floats]:
    """Find singular values (count, p) and norms (count,) of large matrices by the two-stage reduction of each."""
    from lowrank_core._linalg.kernels.compiling import COMPILED

    count, m, n = matrices.shape
    if not COMPILED:
        with blas_threads(blas_threads_of((m, n))):
            return gram_values(matrices)
    values, norms = np.empty((count, min(m, n))), np.empty(count)
    for i, matrix in enumerate(matrices):
        scaled, exponent = scaled_to_squares(matrix)
        eigenvalues, trace, half = gram_eigenvalues(scaled, workers, of_rows=m < n)
        values[i] = unscaled_by(np.sqrt(eigenvalues[::-1]), exponent + half, "a singular value of the update")
        norms[i] = unscaled_by(np.sqrt(trace), exponent, "the norm of the update")
    return values, norms


def gram(matrix: NDArray[Any]) -> Decomposition:
    """Decompose one matrix by the eigenvectors of its Gram matrix."""
    wide = matrix.shape[0] < matrix.shape[1]
    scaled, exponents = scaled_to_squares(matrix)
    exponent = int(exponents)
    gram = gram_matrix(scaled, of_rows=wide)
    squares, vectors = np.linalg.eigh(gram)
    descending = vectors[:, ::-1]

    def factors(r: int) -> tuple[Floats, Floats]:
        basis = np.ascontiguousarray(descending[:, :r])
        return from_projection(_image(scaled, basis, wide=wide), basis, exponent, wide=wide)

    return Decomposition(
        unscaled_by(np.sqrt(np.maximum(squares, 0.0))[::-1], exponent, "a singular value of the update"),
        float(unscaled_by(np.sqrt(np.trace(gram)), exponent, "the norm of the update")),
        factors,
    )


def from_projection(image: Floats, basis: Floats, exponent: int, *, wide: bool) -> tuple[Floats, Floats]:
    """Turn image = X @ basis, of orthogonal columns, into B = U Σ and A = Vᵀ of X, or of its transpose (wide)."""
    if not wide:
        return np.ldexp(image, exponent), basis.T.copy()
    sizes = np.linalg.norm(image, axis=0)
    directions = np.divide(image, sizes, out=np.zeros_like(image), where=sizes > 0)
    return np.ldexp(basis * sizes, exponent), directions.T.copy()


def _image(matrix: NDArray[Any], basis: Floats, *, wide: bool) -> Floats:
    """Multiply X @ basis, or Xᵀ @ basis (wide), in float64, converting X in blocks along its longer side."""
    length = matrix.shape[1] if wide else matrix.shape[0]
    step = max(1, thresholds.CACHED_ENTRIES * length // matrix.size)
    image = np.empty((length, basis.shape[1]))
    for start in range(0, length, step):
        chosen = matrix[:, start : start + step] if wide else matrix[start : start + step]
        # In C order whatever came in, as in gram_matrix.
        block = np.ascontiguousarray(chosen, dtype=np.float64)
        np.matmul(block.T if wide else block, basis, out=image[start : start + step])
    return image


def row_factors(block: Floats, holds: float) -> tuple[Floats, Floats]:
    """Give orthonormal rows Q and an L with block = L Q: by Cholesky's method twice, or by QR.

    Cholesky's method squares the condition, which a second time repairs as long as the first left something (Yamamoto
    et al., ETNA 44 (2015) 306): where no entry of the Gram matrix is further from orthonormal than `holds` after it.
    Rows are first brought to about one size by powers of two. Matrix products make it several times as fast as QR.
    """
    if holds > 0.0:
        sizes = np.frexp(np.linalg.norm(block, axis=1))[1][:, np.newaxis]
        rows = np.ldexp(block, -sizes)
        try:
            first = np.linalg.cholesky(rows @ rows.T)
            rows = np.linalg.inv(first) @ rows
            gram = rows @ rows.T
            if np.all(np.abs(gram - np.eye(len(gram))) < holds):
                second = np.linalg.cholesky(gram)
                return np.linalg.inv(second) @ rows, np.ldexp(first @ second, sizes)
        except np.linalg.LinAlgError:
            pass
    Q, R = np.linalg.qr(block.T)
    return np.ascontiguousarray(Q.T), np.ascontiguousarray(R.T)
