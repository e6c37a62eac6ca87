"""A matrix becomes its best update of rank r."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import numpy as np

from lowrank_core._linalg.dense import Decomposition, map_batch
from lowrank_core._linalg.products import check_product, decompose_product
from lowrank_core._linalg.routes import choose_route, decompose, holds_its_blas, krylov_seed
from lowrank_core._validation import as_matrices, as_rank, as_stack, as_workers, check_finite
from lowrank_core.spectra import Spectrum
from lowrank_core.updates import LowRankUpdate

__all__ = ["truncate"]

Item = TypeVar("Item")


def truncate(
    update: Any,
    rank: int | Callable[[Spectrum], Any],
    *,
    method: str = "auto",
    workers: int | None = None,
    rng: Any = 0,
) -> LowRankUpdate:
    r"""Find the best update of rank r: :math:`B = U_r \Sigma_r`, :math:`A = V_r^T`.

    Parameters
    ----------
    update : array_like, torch.Tensor or LowRankUpdate, shape (..., m, n)
        A LowRankUpdate is truncated through the r × r core of its factors; B·A is never formed.
    rank : int or callable
        The rank, from 0 to min(m, n); or a function that gives it from the update's Spectrum, so that nothing is
        decomposed twice. One rank per call.
    method, workers, rng
        As in :func:`spectrum`. A function of the spectrum needs all of it, so "auto" takes no partial method then.

    Returns
    -------
    LowRankUpdate
        Factors in float64, scaling 1. Rows of A that belong to zero singular values may be zero.

    Raises
    ------
    ValueError
        As :func:`spectrum`, and if the rank is not one whole number from 0 to min(m, n).

    References
    ----------
    Eckart and Young, Psychometrika 1 (1936) 211; Mirsky, Quart. J. Math. 11 (1960) 50, theorem 3: no other update of
    rank r is nearer, in any unitarily invariant norm.

    Examples
    --------
    >>> from lowrank_core import rank_for_variance, style_update, truncate
    >>> truncate(style_update(64, 64, rng=0), lambda s: rank_for_variance(s, 0.99)).rank
    4
    """
    count = as_workers(workers)
    if isinstance(update, LowRankUpdate):
        check_product(update, method)
        *batch, m, n = update.shape
        B = as_stack(np.broadcast_to(update.B, (*batch, m, update.rank)), 2)
        A = as_stack(np.broadcast_to(update.A, (*batch, update.rank, n)), 2)
        work = _Stack(tuple(batch), (m, n), update.dtype, (m + n, max(update.rank, 1)), count)
        return _truncate(lambda i: decompose_product(B[i], A[i], update.scaling), work, rank)
    matrices, dtype = as_matrices(update)
    shape = (matrices.shape[-2], matrices.shape[-1])
    wanted = None if callable(rank) else as_rank(rank, min(shape))
    route = choose_route(method, dtype, shape, wanted, factors=True)
    check_finite(matrices)
    flat = as_stack(matrices, 2)
    work = _Stack(matrices.shape[:-2], shape, dtype, shape, count, holds_its_blas(route, shape))
    seed = krylov_seed(rng)
    return _truncate(lambda i: decompose(flat[i], route, wanted, seed), work, rank)


class _Stack(NamedTuple):
    """A stack of updates to be decomposed one by one: what they are, and what each costs."""

    batch: tuple[int, ...]
    shape: tuple[int, int]
    dtype: str
    cost: tuple[int, int]
    workers: int
    holds_blas: bool = False

    def map(self, function: Callable[[int], Item]) -> list[Item]:
        count = math.prod(self.batch)
        chunks = map_batch(
            lambda c: [function(i) for i in range(c.start, c.stop)],
            count,
            self.cost,
            self.workers,
            holds_blas=self.holds_blas,
        )
        return [item for chunk in chunks for item in chunk]


def _truncate(
    decomposed: Callable[[int], Decomposition], stack: _Stack, rank: int | Callable[[Spectrum], Any]
) -> LowRankUpdate:
    if callable(rank):
        held = stack.map(decomposed)
        # Outside the map, where BLAS is free again: the function may well call this library.
        kept = as_rank(rank(_spectrum_of(held, stack)), min(stack.shape))
        parts = stack.map(lambda i: held[i].factors(kept))
    else:
        kept = as_rank(rank, min(stack.shape))
        parts = stack.map(lambda i: decomposed(i).factors(kept))
    (m, n), batch = stack.shape, stack.batch
    width = parts[0][0].shape[-1] if parts else kept
    B = np.array([part[0] for part in parts]).reshape(*batch, m, width)
    A = np.array([part[1] for part in parts]).reshape(*batch, width, n)
    return LowRankUpdate(B, A)


def _spectrum_of(held: list[Decomposition], stack: _Stack) -> Spectrum:
    p = len(held[0].values) if held else 0
    values = np.array([item.values for item in held])
    norms = np.array([item.norm for item in held])
    return Spectrum(values.reshape(*stack.batch, p), norms.reshape(stack.batch), stack.shape, True, stack.dtype)
