"""Singular values, or the best factors of a rank, of dense matrices and of products of two factors."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from lowrank_core._linalg.batches import MIN_THREADED_WORK, Batching, map_batch
from lowrank_core._linalg.gram import ProjectedFactors
from lowrank_core._linalg.products import product_factors
from lowrank_core._linalg.routes import Problem, choose_product_route, choose_route
from lowrank_core._linalg.values import Factors, Floats, Values, norms_of, unscaled_values
from lowrank_core._validation import all_finite, as_stack, check_finite

__all__ = [
    "Rank",
    "Stack",
    "best_factors",
    "best_factors_and_values",
    "best_product_factors",
    "dense_stack",
    "product_singular_values",
    "product_stack",
    "singular_values",
]

Item = TypeVar("Item")

# A rank, or a function that chooses one by the values of the whole stack.
Rank = int | Callable[[Values], int]


def singular_values(
    matrices: NDArray[Any],
    dtype: str,
    rank: int | None,
    *,
    method: str,
    tolerance: float | None,
    workers: int,
    rng: Any,
) -> Values:
    """Compute the leading singular values (..., rank) and the norms (...) of matrices (..., m, n)."""
    *batch, m, n = matrices.shape
    route = choose_route(method, Problem(dtype, (m, n), rank, tolerance, rng))
    flat = as_stack(matrices, 2)
    if route.needs_finite:
        # In threads, as what follows: of the time for small matrices it is a tenth.
        batching = Batching(route.batching.one_at_a_time, takes_blas_lock=True)
        if not all(map_batch(lambda chunk: all_finite(flat[chunk]), len(flat), (m, n), workers, batching)):
            check_finite(matrices)
    values, norms, missed = route.values(flat, workers)
    if not np.isfinite(norms).all():
        check_finite(matrices)
    if rank is not None:
        values = np.ascontiguousarray(values[:, :rank])
    return Values(
        values.reshape(*batch, values.shape[-1]),
        norms.reshape(batch),
        np.broadcast_to(missed, norms.shape).reshape(batch),
    )


def product_singular_values(
    B: NDArray[Any], A: NDArray[Any], scaling: float, dtype: str, *, method: str, workers: int
) -> Values:
    """Compute singular values (..., min(r, m, n)) and norms (...) of γBA, for B (..., m, r) and A (..., r, n)."""
    m, rank, n = *B.shape[-2:], A.shape[-1]
    route = choose_product_route(method, dtype, (m, n), rank)
    batch, B_stack, A_stack = _broadcast_stacks(B, A)
    count = len(B_stack)
    values, exponents = np.zeros((count, min(rank, m, n))), np.zeros(count, dtype=np.int64)

    # Each factor of a lone product can have a thread, where they are worth two threads that wait for each other.
    lone = count == 1 and not route.batching.one_at_a_time and (m + n) * rank**2 >= 16 * MIN_THREADED_WORK
    factor_workers = workers if lone else 1

    def fill(chunk: slice) -> bool:
        core = route.core_values(B_stack[chunk], A_stack[chunk], factor_workers)
        if core is not None:
            values[chunk], exponents[chunk] = core
        return core is not None

    if rank:
        are_finite = map_batch(fill, count, (m + n, rank), workers, route.batching)
        if not (are_finite and all(are_finite)):
            _check_factors(B, A)
    scale, scale_exponent = math.frexp(abs(scaling))
    values *= scale
    unscaled = unscaled_values(values, norms_of(values), exponents + scale_exponent)
    return Values(unscaled.values.reshape(*batch, values.shape[-1]), unscaled.norms.reshape(batch))


def best_factors(
    matrices: NDArray[Any], dtype: str, rank: Rank, *, method: str, tolerance: float | None, workers: int, rng: Any
) -> tuple[Floats, Floats]:
    """Compute B = U_r Σ_r (..., m, r) and A = V_rᵀ (..., r, n) of matrices (..., m, n)."""
    m, n = matrices.shape[-2:]
    problem = Problem(dtype, (m, n), None if callable(rank) else rank, tolerance, rng)
    stack = dense_stack(matrices, problem, method=method, workers=workers)
    check_finite(matrices)
    return stack.best_factors(rank)


def best_factors_and_values(
    matrix: NDArray[Any], dtype: str, rank: int, *, tolerance: float | None, workers: int
) -> tuple[Floats, Floats, Values]:
    """Compute B = U_r Σ_r (m, r) and A = V_rᵀ (r, n) of one matrix (m, n), and the values that this takes."""
    problem = Problem(dtype, (matrix.shape[0], matrix.shape[1]), rank, tolerance)
    route = choose_route("auto", problem)
    if route.factors_need_finite:
        check_finite(matrix)

    def decompose(_: slice) -> tuple[Factors, tuple[Floats, Floats]]:
        factors = route.factors(matrix[np.newaxis], rank, workers)
        return factors, factors.at(rank)

    # Both in the map, under its BLAS lock: the factors may be a product, too.
    ((factors, (B, A)),) = map_batch(decompose, 1, problem.shape, workers, route.batching)
    if not np.isfinite(factors.norms[0]):
        check_finite(matrix)
    missed = factors.missed if isinstance(factors, ProjectedFactors) else 0.0
    return B[0], A[0], Values(factors.values[0], factors.norms[0], missed)


def best_product_factors(
    B: NDArray[Any], A: NDArray[Any], scaling: float, dtype: str, rank: Rank, *, method: str, workers: int
) -> tuple[Floats, Floats]:
    """Compute B = U_r Σ_r (..., m, r) and A = V_rᵀ (..., r, n) of γBA, for r up to the rank of the factors."""
    stack = product_stack(B, A, scaling, dtype, method=method, workers=workers)
    if B.shape[-1]:
        _check_factors(B, A)
    return stack.best_factors(rank)


class Stack(NamedTuple):
    """A stack to be decomposed: a slice of it up to a rank, its batch axes, the shape of a matrix and of its cost."""

    decompose: Callable[[slice, int | None], Factors]
    batch: tuple[int, ...]
    shape: tuple[int, int]
    cost: tuple[int, int]
    batching: Batching
    workers: int

    def best_factors(self, rank: Rank) -> tuple[Floats, Floats]:
        """Compute B = U_r Σ_r (..., m, r) and A = V_rᵀ (..., r, n)."""
        if not callable(rank):
            return self._joined(self.map(lambda chunk: self.decompose(chunk, rank).at(rank)), rank)
        values, decomposed = self._decomposed()
        # Outside the map, where the BLAS lock is free: the function may well call this library.
        kept = rank(values)
        return self._joined(self.map(lambda chunk: decomposed[chunk.start].at(kept)), kept)

    def whole_factors(self) -> tuple[Floats, Floats, Floats]:
        """Compute the singular values (..., p), with B = U Σ (..., m, p) and A = Vᵀ (..., p, n) of full rank."""
        values, decomposed = self._decomposed()
        p = values.values.shape[-1]
        return values.values, *self._joined(self.map(lambda chunk: decomposed[chunk.start].at(p)), p)

    def _decomposed(self) -> tuple[Values, dict[int, Factors]]:
        """Return the values, and the factors of each slice by its start."""
        parts = self.map(lambda chunk: (chunk.start, self.decompose(chunk, None)))
        values = [factors.values for _, factors in parts] or [np.empty((0, 0))]
        norms = [factors.norms for _, factors in parts] or [np.empty(0)]
        whole = np.concatenate(values)
        p = whole.shape[-1]
        return Values(whole.reshape(*self.batch, p), np.concatenate(norms).reshape(self.batch)), dict(parts)

    def map(self, function: Callable[[slice], Item]) -> list[Item]:
        """Return a function of every slice, on the workers."""
        return map_batch(function, math.prod(self.batch), self.cost, self.workers, self.batching)

    def _joined(self, parts: list[tuple[Floats, Floats]], rank: int) -> tuple[Floats, Floats]:
        """Join the factors of all slices; of products they may have fewer columns than the rank asked for."""
        (m, n), width = self.shape, parts[0][0].shape[-1] if parts else rank
        B, A = zip(*parts, strict=True) if parts else ([np.empty((0, m, width))], [np.empty((0, width, n))])
        return (
            np.concatenate(B).reshape(*self.batch, m, width),
            np.concatenate(A).reshape(*self.batch, width, n),
        )


def dense_stack(matrices: NDArray[Any], problem: Problem, *, method: str, workers: int) -> Stack:
    """Return matrices (..., m, n) as a stack that a route decomposes."""
    route = choose_route(method, problem)
    flat = as_stack(matrices, 2)
    return Stack(
        lambda chunk, rank: route.factors(flat[chunk], rank, workers),
        matrices.shape[:-2],
        problem.shape,
        problem.shape,
        route.batching,
        workers,
    )


def product_stack(B: NDArray[Any], A: NDArray[Any], scaling: float, dtype: str, *, method: str, workers: int) -> Stack:
    """Return products γBA of factors B (..., m, r) and A (..., r, n) as a stack."""
    m, inner, n = *B.shape[-2:], A.shape[-1]
    route = choose_product_route(method, dtype, (m, n), inner)
    batch, B_stack, A_stack = _broadcast_stacks(B, A)
    return Stack(
        lambda chunk, _: product_factors(B_stack[chunk], A_stack[chunk], scaling),
        batch,
        (m, n),
        (m + n, max(inner, 1)),
        route.batching,
        workers,
    )


def _broadcast_stacks(B: NDArray[Any], A: NDArray[Any]) -> tuple[tuple[int, ...], NDArray[Any], NDArray[Any]]:
    """Broadcast the batch axes of two factors, and flatten them to one axis; with the batch axes."""
    batch = np.broadcast_shapes(B.shape[:-2], A.shape[:-2])
    B_stack, A_stack = (
        as_stack(factor if factor.shape[:-2] == batch else np.broadcast_to(factor, (*batch, *factor.shape[-2:])), 2)
        for factor in (B, A)
    )
    return batch, B_stack, A_stack


def _check_factors(B: NDArray[Any], A: NDArray[Any]) -> None:
    check_finite(B, "B")
    check_finite(A, "A")
