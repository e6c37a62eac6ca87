"""Singular values and factors through a Gram matrix X Xᵀ or Xᵀ X, whichever is smaller, in float64."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lowrank_core._linalg.batches import BLOCK_ENTRIES, Batching, map_batch
from lowrank_core._linalg.kernels.sizes import WIDTH
from lowrank_core._linalg.machine_code import kernel
from lowrank_core._linalg.powers_of_two import scaled_by, scaled_to_squares
from lowrank_core._linalg.values import Floats, Values, unscaled_values

__all__ = [
    "GramFactors",
    "ProjectedFactors",
    "gram_factors",
    "gram_matrix",
    "kernel_gram_values",
    "lapack_gram_values",
]

# Entries converted to float64 at a time where one pass makes nothing large of them: 1 MiB, which stay in a core's own
# cache.
CACHED_ENTRIES = 2**17


def gram_matrix(matrices: NDArray[Any], *, of_rows: bool) -> Floats:
    """Compute X Xᵀ (of rows) or Xᵀ X in float64, of stacks too, in blocks along the other side where X is large."""
    rows, columns = matrices.shape[-2:]
    size, length = (rows, columns) if of_rows else (columns, rows)
    # A block of a quarter of a square matrix: narrower ones would spend the time on adding up Gram matrices.
    step = length if size * length <= BLOCK_ENTRIES else max(BLOCK_ENTRIES // size, -(-size // 4))
    gram: Floats | None = None
    for start in range(0, length, step):
        chosen = matrices[..., :, start : start + step] if of_rows else matrices[..., start : start + step, :]
        # In C order whatever was given: BLAS rounds other layouts differently, and a batch must change nothing.
        block = np.ascontiguousarray(chosen, dtype=np.float64)
        transposed = np.swapaxes(block, -1, -2)
        part = block @ transposed if of_rows else transposed @ block
        gram = part if gram is None else np.add(gram, part, out=gram)
    assert gram is not None  # noqa: S101 - matrices are never empty, and mypy cannot know
    return gram


def lapack_gram_values(matrices: NDArray[Any]) -> Values:
    """Compute singular values and norms of a stack by LAPACK's eigenvalues of Gram matrices."""
    scaled, exponents = scaled_to_squares(matrices)
    gram = gram_matrix(scaled, of_rows=matrices.shape[-2] < matrices.shape[-1])
    values = np.sqrt(np.maximum(np.linalg.eigvalsh(gram), 0.0))[..., ::-1]
    return unscaled_values(values, np.sqrt(np.trace(gram, axis1=-2, axis2=-1)), exponents)


def kernel_gram_values(stack: NDArray[Any], workers: int) -> Values:
    """Compute singular values and norms of a stack (count, m, n) by kernels: tridiagonal form, then its eigenvalues.

    The first takes one matrix at a time, the second one in each SIMD lane: they divide the stack differently.
    """
    count, m, n = stack.shape
    p = min(m, n)
    diagonals, squares, values = np.empty((count, p)), np.empty((count, p)), np.empty((count, p))
    norms, exponents = np.empty(count), np.empty(count, np.int64)

    def reduce(chunk: slice) -> None:
        scaled, scale_exponents = scaled_to_squares(stack[chunk])
        gram = gram_matrix(scaled, of_rows=m < n)
        trace = np.trace(gram, axis1=-2, axis2=-1)
        gram_exponents = np.empty(len(gram), np.int64)
        kernel("gram", "tridiagonals")(gram, diagonals[chunk], squares[chunk], gram_exponents)
        norms[chunk] = np.ldexp(np.sqrt(trace), -gram_exponents)
        exponents[chunk] = scale_exponents + gram_exponents

    def solve(chunk: slice) -> None:
        if kernel("gram", "tridiagonal_values")(diagonals[chunk], squares[chunk], values[chunk]):
            for i in chunk.start + np.flatnonzero(np.isnan(values[chunk, 0])):
                values[i] = np.ldexp(lapack_gram_values(stack[i : i + 1]).values[0], -exponents[i])

    map_batch(reduce, count, (m, n), workers, Batching(one_at_a_time=False))
    map_batch(solve, count, (p, p), workers, Batching(one_at_a_time=False, multiple_of=WIDTH))
    return unscaled_values(values, norms, exponents)


class ProjectedFactors(NamedTuple):
    """Factors of matrices 2^exponent · X, or of their transposes (wide), from orthogonal columns X V for bases V.

    `missed` bounds the energy that they may lack, as a fraction of the energy beyond them.
    """

    values: Floats
    norms: Floats
    products: Floats
    bases: Floats
    exponents: NDArray[np.int64]
    wide: bool
    missed: float = 0.0

    def at(self, rank: int) -> tuple[Floats, Floats]:
        """Return B = U_r Σ_r and A = V_rᵀ, for a rank up to the number of columns."""
        products, bases = self.products[..., :rank], self.bases[..., :rank]
        exponents = self.exponents[:, np.newaxis, np.newaxis]
        if not self.wide:
            return scaled_by(products, exponents), bases.swapaxes(-1, -2)
        sizes = np.linalg.norm(products, axis=-2, keepdims=True)
        directions = np.divide(products, sizes, out=np.zeros_like(products), where=sizes > 0)
        return scaled_by(bases * sizes, exponents), directions.swapaxes(-1, -2)


class GramFactors(NamedTuple):
    """Factors of matrices 2^exponent · X, or of their transposes (wide), from the eigenvectors of Xᵀ X."""

    values: Floats
    norms: Floats
    matrices: NDArray[Any]
    vectors: Floats
    exponents: NDArray[np.int64]
    wide: bool

    def at(self, rank: int) -> tuple[Floats, Floats]:
        """Return B = U_r Σ_r and A = V_rᵀ."""
        bases = np.ascontiguousarray(self.vectors[..., :rank])
        products = _products(self.matrices, bases, wide=self.wide)
        return ProjectedFactors(self.values, self.norms, products, bases, self.exponents, self.wide).at(rank)


def gram_factors(
    stack: NDArray[Any],
    rank: int | None,  # noqa: ARG001 - the signature of every route
    workers: int,  # noqa: ARG001
) -> GramFactors:
    """Decompose the matrices of a stack by the eigenvectors of their Gram matrices."""
    wide = stack.shape[-2] < stack.shape[-1]
    scaled, exponents = scaled_to_squares(stack)
    grams = gram_matrix(scaled, of_rows=wide)
    squares, vectors = np.linalg.eigh(grams)
    values, norms = np.sqrt(np.maximum(squares, 0.0))[..., ::-1], np.sqrt(np.trace(grams, axis1=-2, axis2=-1))
    return GramFactors(*unscaled_values(values, norms, exponents)[:2], scaled, vectors[..., ::-1], exponents, wide)


def _products(matrices: NDArray[Any], bases: Floats, *, wide: bool) -> Floats:
    """Compute X @ basis, or Xᵀ @ basis (wide), in float64, converting each X in blocks along its longer side."""
    count, rows, columns = matrices.shape
    length = columns if wide else rows
    step = max(1, CACHED_ENTRIES * length // (rows * columns))
    products = np.empty((count, length, bases.shape[-1]))
    for start in range(0, length, step):
        stop = start + step
        chosen = matrices[..., start:stop] if wide else matrices[:, start:stop]
        # In C order whatever was given, as in gram_matrix.
        block = np.ascontiguousarray(chosen, dtype=np.float64)
        products[:, start:stop] = (block.swapaxes(-1, -2) if wide else block) @ bases
    return products
