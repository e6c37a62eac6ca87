"""Which algorithm for which matrix: one decision, in one place.

The route is chosen by shape and dtype alone, never by batch size or workers, and it fixes the BLAS threads: that is
what keeps a matrix's bits the same in any batch.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lowrank_core._linalg import thresholds
from lowrank_core._linalg.dense import (
    Decomposition,
    blas_threads_of,
    direct,
    direct_values,
    gram,
    gram_values,
    large_gram_values,
    map_batch,
    medium_gram_values,
    small_values_of,
)
from lowrank_core._linalg.krylov import krylov
from lowrank_core._linalg.threads import blas_threads
from lowrank_core._validation import all_finite, as_stack, check_finite

__all__ = ["choose_route", "decompose", "holds_its_blas", "krylov_seed", "singular_values"]

Floats = NDArray[np.float64]

METHODS = ("auto", "direct", "gram", "krylov")


def choose_route(method: str, dtype: str, shape: tuple[int, int], rank: int | None, *, factors: bool = False) -> str:
    """Name the route for a dense matrix.

    Parameters
    ----------
    method : {"auto", "direct", "gram", "krylov"}
    dtype : str
        The dtype that the matrix was stored in.
    shape : (m, n)
    rank : int or None
        How many leading values are wanted; None for all.
    factors : bool
        Whether vectors are wanted too.

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
    if shape[0] * shape[1] <= thresholds.SMALL_ENTRIES and not factors:
        # The kernel for these knows no vectors; for them the eigenvectors of a Gram matrix are half of an SVD's work.
        return "direct"
    smaller = min(shape)
    if (
        rank is not None
        and smaller >= thresholds.KRYLOV_SMALLEST_SIDE
        and rank <= thresholds.KRYLOV_LARGEST_FRACTION * smaller
    ):
        return "krylov-or-gram"
    return "gram"


def singular_values(
    matrices: NDArray[Any], route: str, rank: int | None, workers: int, rng: Any
) -> tuple[Floats, Floats]:
    """Find singular values (..., q) and Frobenius norms (...) of a stack of dense matrices, or raise a ValueError."""
    batch, shape = matrices.shape[:-2], (matrices.shape[-2], matrices.shape[-1])
    flat = as_stack(matrices, 2)
    # In threads, as what follows: of the time for small matrices it is a tenth.
    if not all(map_batch(lambda chunk: all_finite(flat[chunk]), len(flat), shape, workers, holds_blas=True)):
        check_finite(matrices)
    wanted = min(shape) if rank is None else rank
    if route == "gram" and not thresholds.LARGE < min(shape) < thresholds.TWO_STAGES:
        by_kernels = medium_gram_values if min(shape) <= thresholds.LARGE else large_gram_values
        values, norms = by_kernels(flat, workers)
        return np.ascontiguousarray(values[:, :wanted]).reshape(*batch, wanted), norms.reshape(batch)
    seed = krylov_seed(rng) if route.startswith("krylov") else 0
    small = route == "direct" and shape[0] * shape[1] <= thresholds.SMALL_ENTRIES
    values, norms = np.empty((len(flat), wanted)), np.empty(len(flat))

    def fill(chunk: slice) -> None:
        if small:
            found, norm = small_values_of(flat[chunk])
        elif route == "direct":
            found, norm = direct_values(flat[chunk])
        elif route == "gram":
            found, norm = gram_values(flat[chunk])
        else:
            parts = [decompose(matrix, route, wanted, seed) for matrix in flat[chunk]]
            found, norm = np.stack([part.values for part in parts]), np.array([part.norm for part in parts])
        values[chunk], norms[chunk] = found[:, :wanted], norm

    # The kernel for small matrices needs no BLAS: holding its threads would take a fifth of a lone call's time.
    holds_blas = small or holds_its_blas(route, shape)
    map_batch(fill, len(flat), shape, workers, thresholds.LANES if small else 1, holds_blas=holds_blas)
    return values.reshape(*batch, wanted), norms.reshape(batch)


def holds_its_blas(route: str, shape: tuple[int, int]) -> bool:
    """Tell whether decomposing a matrix of this shape by this route holds BLAS's threads where it needs to."""
    return route.startswith("krylov") and blas_threads_of(shape) is None


def decompose(matrix: NDArray[Any], route: str, rank: int | None, seed: int) -> Decomposition:
    """Decompose one finite matrix so that its factors can be had at any rank (up to `rank`, for krylov)."""
    if route == "direct":
        return direct(matrix)
    if route == "gram":
        return gram(matrix)
    limit = int(min(matrix.shape) * (1.0 if route == "krylov" else thresholds.KRYLOV_GIVES_UP))
    found = krylov(matrix, max(1, min(matrix.shape) if rank is None else rank), limit, seed)
    return _gram_instead(matrix) if found is None else found


def _gram_instead(matrix: NDArray[Any]) -> Decomposition:
    """Decompose one matrix by its Gram matrix, on the BLAS threads that its shape asks for."""
    threads = blas_threads_of((matrix.shape[0], matrix.shape[1]))
    with blas_threads(threads):
        found = gram(matrix)

    def factors(rank: int) -> tuple[Floats, Floats]:
        with blas_threads(threads):
            return found.factors(rank)

    return found._replace(factors=factors)


def krylov_seed(rng: Any) -> int:
    """Draw the seed that every matrix of a call starts from, so that a shared generator cannot tell them apart."""
    return int(np.random.default_rng(rng).integers(2**63))
